"""The C with vector kernels: no warnings, right for every layer under the sanitizers, threads, faults that show."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.codegen.compiling import NOT_INLINED, build, every_kernel, need, run
from twoscale._codegen.c import export_c

STRICT = (
    "-std=gnu99", "-O1", "-pthread", "-Wall", "-Wextra", "-Werror", "-Wshadow", "-Wundef", "-Wstrict-prototypes",
    "-Wmissing-prototypes",
)  # fmt: skip
QUICK = ("-std=gnu99", "-O0", NOT_INLINED, "-pthread")
SANITIZED = (*QUICK, "-g0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
SOURCES = ["fast_test.c", "fast.c"]
EXPECTED = "fast: 4 images, all layers and outputs as expected ("


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of layer, for every instruction set; tests that change files take a copy."""
    path = tmp_path_factory.mktemp("fast")
    export_c(every_kernel("mixed"), path, target="native", name="fast")
    return path


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_it_compiles_without_a_warning_and_passes_its_self_test(compiler: str, folder: Path) -> None:
    need(compiler)
    program = build(compiler, folder, SOURCES, *STRICT, out=compiler)
    assert run(program).stdout.startswith(EXPECTED)


@pytest.mark.parametrize("target", ["avx512vnni", "avx2"])
def test_it_is_clean_under_the_sanitizers(target: str, tmp_path: Path) -> None:
    need("gcc")
    export_c(every_kernel("uint8"), tmp_path, target=target, name="fast")
    done = run(build("gcc", tmp_path, SOURCES, *SANITIZED))
    assert (done.returncode, done.stdout[: len(EXPECTED)], done.stderr) == (0, EXPECTED, "")


def test_any_cpu_can_run_it(folder: Path, tmp_path: Path) -> None:
    need("gcc")
    copy = shutil.copytree(folder, tmp_path / "copy")
    program = build("gcc", copy, SOURCES, *STRICT[:3], "-DFAST_GENERIC")
    assert run(program).stdout == f"{EXPECTED}generic)\n"


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("fast_kernels.h", "return _mm512_cvtps_epi32(a);", "return _mm512_cvttps_epi32(a);"),
        ("fast.c", ".zero = ", ".zero = 1 + "),
        ("fast_kernels.h", "memset(y + after, p->zero,", "memset(y + after, p->zero + 1,"),
    ],
    ids=["ties", "a zero point", "the border"],
)
def test_a_planted_fault_shows(file: str, old: str, new: str, folder: Path, tmp_path: Path) -> None:
    need("gcc")
    if "_mm512" in old and "avx512_vnni" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this CPU has no AVX-512 VNNI")
    copy = shutil.copytree(folder, tmp_path / "copy")
    text = (copy / file).read_text()
    assert old in text
    (copy / file).write_text(text.replace(old, new))
    program = build("gcc", copy, SOURCES, *QUICK)
    assert run(program).returncode != 0
