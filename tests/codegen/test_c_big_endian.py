"""The C on a big-endian processor: the self-test, with the checksum of every layer, under QEMU for PowerPC.

clang compiles for it; there is no C library, so the program brings the few functions that it needs.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests import sweep
from tests.codegen.compiling import DTYPES, build, every_kernel, need
from tests.integer_networks import ActivationType
from twoscale._codegen.c import export_c

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
    register long number __asm__("r0") = 1, status __asm__("r3") = main(); /* exit */

    __asm__ volatile("sc" : : "r"(number), "r"(status));
    for (;;) {
    }
}
"""
COMPILER = "clang-19"
FLAGS = (
    "--target=powerpc-linux-gnu", "-O1", "-std=gnu99", "-ffreestanding", "-fno-builtin", "-nostdlib", "-static",
    "-fuse-ld=lld", "-Iheaders", "-DNET_TRACE",
)  # fmt: skip
TARGETS = ("portable", "small-ram", "cortex-m4", "cortex-m55", "cortex-m4-small-ram", "cortex-m55-small-ram")


def program_for(folder: Path, dtype: ActivationType, target: str) -> Path:
    need(COMPILER, "ld.lld-19", "qemu-ppc")
    export_c(every_kernel(dtype), folder, target=target, name="net")
    for name, text in {"start.c": START, **{f"headers/{name}": text for name, text in HEADERS.items()}}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return build(COMPILER, folder, ["start.c", "net.c", "net_test.c"], *FLAGS)


@pytest.mark.parametrize("dtype", DTYPES if sweep.whole() else DTYPES[:1])
@pytest.mark.parametrize("target", TARGETS if sweep.whole() else TARGETS[:1])
def test_every_layer_is_the_same(target: str, dtype: ActivationType, tmp_path: Path) -> None:
    done = subprocess.run(["qemu-ppc", program_for(tmp_path, dtype, target)], check=False, timeout=60)
    assert done.returncode == 0


@pytest.mark.skipif(not sweep.whole(), reason="compiles once more: --sweep all")
def test_checksums_of_native_bytes_would_differ(tmp_path: Path) -> None:
    """Planted: bytes in this processor's order."""
    program_for(tmp_path, "uint8", "portable")
    test = tmp_path / "net_test.c"
    text = test.read_text()
    assert text.count("byte[i ^ reversed]") == 1
    test.write_text(text.replace("byte[i ^ reversed]", "byte[i ^ (0 * reversed)]"))
    program = build(COMPILER, tmp_path, ["start.c", "net.c", "net_test.c"], *FLAGS)
    assert subprocess.run(["qemu-ppc", program], check=False, timeout=60).returncode == 1
