"""The C on other platforms: it compiles for their ABIs here, or names what is missing, and runs with their compilers.

Here clang compiles for each platform, with small headers in the place of the platform's. On Windows and macOS, CI runs
the self-tests with the compilers of these systems.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import sweep
from tests.codegen.compiling import NOT_INLINED, compile_c, every_kernel, need, run
from tests.codegen.test_c_vector import EXPECTED
from twoscale._codegen.c import export_c

HEADERS = {
    "pthread.h": """
typedef struct { void *at[8]; } pthread_mutex_t, pthread_cond_t;
typedef struct thread *pthread_t;
int pthread_mutex_init(pthread_mutex_t *, const void *);
int pthread_mutex_lock(pthread_mutex_t *);
int pthread_mutex_unlock(pthread_mutex_t *);
int pthread_cond_init(pthread_cond_t *, const void *);
int pthread_cond_wait(pthread_cond_t *, pthread_mutex_t *);
int pthread_cond_broadcast(pthread_cond_t *);
int pthread_create(pthread_t *, const void *, void *(*)(void *), void *);
int pthread_join(pthread_t, void **);
""",
    "sched.h": "int sched_yield(void);\n",
    "stdlib.h": "#include <stddef.h>\nvoid *malloc(size_t), *calloc(size_t, size_t);\nvoid free(void *);\n",
    "string.h": """
#include <stddef.h>
void *memcpy(void *, const void *, size_t), *memmove(void *, const void *, size_t), *memset(void *, int, size_t);
int memcmp(const void *, const void *, size_t);
""",
    "sys/auxv.h": "unsigned long getauxval(unsigned long);\n",
    "time.h": "struct timespec { long tv_sec, tv_nsec; };\nint nanosleep(const struct timespec *, void *);\n",
    "unistd.h": "typedef int pid_t;\npid_t getpid(void);\n",
    "windows.h": "int IsProcessorFeaturePresent(unsigned);\n",
}
"""What the C uses of each header that a compiler does not bring."""
ON_SSE = ("-msse2", "-mfpmath=sse")
COMPILES = [
    ("native", "arm64-apple-macos12", ()),
    ("native", "x86_64-apple-macos12", ()),
    ("native", "x86_64-w64-mingw32", ()),
    ("native", "aarch64-w64-mingw32", ()),
    ("native", "i686-linux-gnu", ON_SSE),
    ("native", "arm-linux-gnueabihf", ()),
    ("native", "riscv64-linux-gnu", ()),
    ("native", "s390x-linux-gnu", ()),
    ("portable", "arm64-apple-macos12", ()),
    ("portable", "x86_64-pc-windows-msvc", ()),
    ("portable", "aarch64-pc-windows-msvc", ()),
    ("portable", "i686-pc-windows-msvc", ()),
    ("small-ram", "x86_64-pc-windows-msvc", ()),
    ("portable", "msp430-elf", ()),
    ("small-ram", "msp430-elf", ()),
    # at -O0, clang 19 runs out of registers for AVR
    ("portable", "avr", ("-mmcu=atmega2560", "-O1")),
    ("small-ram", "avr", ("-mmcu=atmega2560", "-O1")),
]
"""Target of the export, platform as clang names it, and flags."""
REFUSES = [
    ("x86_64-pc-windows-msvc", "fast.c needs POSIX threads; on Windows compile it with MinGW-w64"),
    ("i686-linux-gnu", "fast.c needs floats without excess precision; on 32-bit x86 compile with -msse2 -mfpmath=sse"),
]


def compile_for(platform: str, folder: Path, target: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Export a network with every kind of layer, and compile it for a platform."""
    need("clang")
    for name, text in HEADERS.items():
        header = folder / "headers" / name
        header.parent.mkdir(parents=True, exist_ok=True)
        header.write_text(f"#pragma once\n{text}")
    export_c(every_kernel("mixed"), folder, target=target, name="fast")
    general = (f"--target={platform}", "-ffreestanding", "-Iheaders", "-std=gnu99", "-O0", NOT_INLINED, "-c")
    return compile_c("clang", folder, ["fast.c"], *general, *flags, out="fast.o")


@pytest.mark.sweep(2)
@pytest.mark.parametrize(("target", "platform", "flags"), COMPILES)
def test_it_compiles_without_a_warning(target: str, platform: str, flags: tuple[str, ...], tmp_path: Path) -> None:
    checks = ("-Wall", "-Wextra", "-Werror", *(() if sweep.whole() else ("-fsyntax-only",)))
    done = compile_for(platform, tmp_path, target, *checks, *flags)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("platform", "message"), REFUSES, ids=lambda value: value.split()[0])
def test_it_names_what_is_missing(platform: str, message: str, tmp_path: Path) -> None:
    excess = ("-mno-sse",) if platform.startswith("i686") else ()
    done = compile_for(platform, tmp_path, "native", "-fsyntax-only", "-Wfatal-errors", *excess)
    assert done.returncode != 0
    assert message in done.stderr


COMPILERS = {
    "cc": ["cc", "-O2", "-pthread", "-o", "program.exe"],
    "clang-cl": ["clang-cl", "/O2", "/Fe:program.exe"],
    "cl": ["cl", "/nologo", "/std:c11", "/O2", "/Fe:program.exe"],
}
"""The commands of the compilers of Linux and macOS, and of Windows."""


@pytest.mark.parametrize("target", ["portable", "small-ram", "native"])
@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_self_test_passes_with_the_compiler_of_this_system(compiler: str, target: str, tmp_path: Path) -> None:
    """The target native needs POSIX threads, which MSVC does not have."""
    need(compiler)
    if compiler == "cc" and sys.platform == "linux":
        pytest.skip("tests of each target compile it on Linux")
    if compiler != "cc" and target == "native":
        pytest.skip("native needs POSIX threads")
    export_c(every_kernel("mixed"), tmp_path, target=target, name="fast")
    trace = [] if target == "native" else ["-DFAST_TRACE"]
    command = [*COMPILERS[compiler], *trace, "fast_test.c", "fast.c"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert run(tmp_path / "program.exe").stdout.startswith(EXPECTED if target == "native" else "fast: 4 images")
