"""Self-tests for processors that clang compiles for, without a C library: programs bring the functions they need.

It runs under QEMU's user mode for PowerPC or RISC-V, and its exit code is that of the self-test.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.codegen.compiling import build, every_kernel, need
from tests.integer_networks import ActivationType
from twoscale._codegen.c import export_c

__all__ = ["compiled", "exit_code", "program_for"]

HEADERS = {
    "stdio.h": "int printf(const char *, ...);\n",
    "string.h": "#include <stddef.h>\nvoid *memcpy(void *, const void *, size_t), *memset(void *, int, size_t);\n",
    "inttypes.h": '#include <stdint.h>\n#define PRId32 "d"\n#define PRIx32 "x"\n',
}
START = """
#include <stddef.h>

int printf(const char *, ...);
int main(void);
void *memcpy(void *, const void *, size_t), *memset(void *, int, size_t);
void _start(void);

void *memcpy(void *to, const void *from, size_t count)
{
    for (size_t i = 0; i < count; i++)
        ((char *)to)[i] = ((const char *)from)[i];
    return to;
}

void *memset(void *to, int value, size_t count)
{
    for (size_t i = 0; i < count; i++)
        ((char *)to)[i] = (char)value;
    return to;
}

int printf(const char *text, ...)
{
    (void)text;
    return 0;
}

void _start(void)
{
    const long result = main();
#ifdef __riscv
    register long number __asm__("a7") = 93, status __asm__("a0") = result; /* exit */

    __asm__ volatile("ecall" : : "r"(number), "r"(status));
#else
    register long number __asm__("r0") = 1, status __asm__("r3") = result; /* exit */

    __asm__ volatile("sc" : : "r"(number), "r"(status));
#endif
    for (;;) {
    }
}
"""
COMPILER = "clang-19"
FLAGS = (
    "-std=gnu99", "-ffreestanding", "-fno-builtin", "-nostdlib", "-static", "-fuse-ld=lld", "-Iheaders", "-DNET_TRACE",
)  # fmt: skip


def program_for(folder: Path, dtype: ActivationType, target: str, *flags: str) -> Path:
    """Compile the self-test, with the checksum of every layer, of a network with every kind of layer."""
    need(COMPILER, "ld.lld-19")
    export_c(every_kernel(dtype), folder, target=target, name="net")
    for name, text in {"start.c": START, **{f"headers/{name}": text for name, text in HEADERS.items()}}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return compiled(folder, *flags)


def compiled(folder: Path, *flags: str) -> Path:
    """Compile the files of ``program_for`` again."""
    return build(COMPILER, folder, ["start.c", "net.c", "net_test.c"], *flags, *FLAGS)


def exit_code(emulator: str, *arguments: str | Path) -> int:
    """Run a program."""
    need(emulator)
    return subprocess.run([emulator, *arguments], check=False, timeout=60).returncode
