"""Compiled networks as files load without a compiler, in Python with NumPy alone and in C, and refuse what does not
fit."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import twoscale
from tests.integer_networks import random_images, random_network
from twoscale._cli import main
from twoscale._codegen import targets
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._runtimes import sealed
from twoscale._runtimes.description import Description
from twoscale._runtimes.saving import SavedLibrary
from twoscale.data import normalize
from twoscale.errors import ConfigurationError, ExecutorError, NetworkFileError, TwoscaleError

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler (cc) is installed")

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)

# None of the packages that twoscale requires, except NumPy.
NUMPY_ALONE = """
import importlib.abc, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("jinja2", "onnx", "msgspec", "platformdirs", "rich", "tyro", "torch"):
            raise ImportError(name)

sys.meta_path.insert(0, Blocker())
import numpy as np
import twoscale

run = twoscale.load_compiled("net.so", threads=2, fingerprint=sys.argv[1])
assert np.array_equal(run(np.load("images.npy")), np.load("logits.npy"))
assert np.array_equal(run(np.load("pixels.npy")), np.load("pixel_logits.npy"))
print(run.name, run.fingerprint, run.kernels)
"""

C_PROGRAM = """
#include "net.h"

#include <stdio.h>
#include <string.h>

int main(void)
{
    static float images[3 * 90];
    static int32_t found[3 * NET_OUTPUT_COUNT], expected[3 * NET_OUTPUT_COUNT];
    FILE *file = fopen("images.bin", "rb");
    net_pool *pool = net_pool_new(2);
    int bad;

    if (file == NULL || pool == NULL || fread(images, sizeof images, 1, file) != 1)
        return 2;
    fclose(file);
    file = fopen("expected.bin", "rb");
    if (file == NULL || fread(expected, sizeof expected, 1, file) != 1)
        return 2;
    fclose(file);
    bad = net_pool_run(pool, images, NET_FLOATS, 3, found);
    net_pool_free(pool);
    printf("%s %d %d\\n", net_kernels(), bad, strcmp(net_fingerprint(), NET_FINGERPRINT));
    return memcmp(found, expected, sizeof found) != 0;
}
"""


@pytest.fixture(scope="module")
def network() -> IntegerNetwork:
    made = random_network(
        np.random.default_rng(3), image_shape=(3, 6, 5), length=5, output="accumulators", dtype="uint8"
    )
    return dataclasses.replace(made, metadata={"mean": MEAN, "std": STD})


@pytest.fixture(scope="module")
def images(network: IntegerNetwork) -> NDArray[np.float32]:
    return random_images(np.random.default_rng(0), network, 3)


@pytest.fixture(scope="module")
def made(network: IntegerNetwork, tmp_path_factory: pytest.TempPathFactory) -> SavedLibrary:
    return twoscale.save_compiled(network, tmp_path_factory.mktemp("saved") / "net.so", target="avx2")


@pytest.fixture
def folder(made: SavedLibrary, tmp_path: Path) -> Path:
    """Return a folder with copies of the files. The system caches loaded libraries by path."""
    for path in (made.library, made.header):
        shutil.copy(path, tmp_path)
    return tmp_path


def has_avx2() -> bool:
    cpu = Path("/proc/cpuinfo")
    return cpu.exists() and {"avx2", "fma"} <= {*cpu.read_text().split()}


needs_avx2 = pytest.mark.skipif(not has_avx2(), reason="this CPU has no AVX2")


@needs_avx2
def test_it_loads_with_numpy_alone_and_without_a_compiler(
    folder: Path, network: IntegerNetwork, images: NDArray[np.float32]
) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (2, 3, 6, 5), dtype=np.uint8)
    np.save(folder / "images.npy", images)
    np.save(folder / "logits.npy", network(images))
    np.save(folder / "pixels.npy", pixels)
    np.save(folder / "pixel_logits.npy", network(normalize(pixels, MEAN, STD)))
    home = folder / "home"
    home.mkdir(mode=0o500)  # nothing can be cached
    environment = {"PATH": "", "HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", NUMPY_ALONE, network.fingerprint], cwd=folder, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"random {network.fingerprint} avx2\n"


@needs_avx2
def test_a_c_program_links_it(folder: Path, network: IntegerNetwork, images: NDArray[np.float32]) -> None:
    (folder / "main.c").write_text(C_PROGRAM)
    (folder / "images.bin").write_bytes(images.tobytes())
    (folder / "expected.bin").write_bytes(network.integers(network.output, images).tobytes())
    command = ["cc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-o", "main", "main.c", "net.so", "-Wl,-rpath,."]
    subprocess.run(command, cwd=folder, check=True)
    done = subprocess.run([str(folder / "main")], cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "avx2 0 0\n")


def test_a_cpu_without_the_features_is_refused(
    network: IntegerNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted set needs XOP, which only processors of AMD from 2011 to 2015 have."""
    (avx2,) = (isa for isa in targets.INSTRUCTION_SETS if isa.name == "avx2")
    planted = dataclasses.replace(avx2, features=(*avx2.features, "xop"))
    target = dataclasses.replace(targets.VECTOR_TARGETS["avx2"], instruction_sets=(planted, targets.GENERIC))
    monkeypatch.setitem(targets.VECTOR_TARGETS, "avx2", target)
    saved = twoscale.save_compiled(network, tmp_path / "net.so", target="avx2")
    assert saved.features == ("avx2", "fma", "xop")
    with pytest.raises(
        ExecutorError, match=r"cannot run random, which needs avx2, fma, xop( \(missing here: .*xop\))?"
    ):
        twoscale.load_compiled(tmp_path / "net.so")
    assert "needs a CPU with avx2, fma, xop" in (tmp_path / "net.h").read_text()
    program = """
    #include "net.h"
    int main(void)
    {
        return net_pool_new(1) != 0 || net_kernels() != 0 || net_run(0, 0, 1, 0, 0, 0, 0) != 2;
    }
    """
    (tmp_path / "main.c").write_text(textwrap.dedent(program))
    subprocess.run(["cc", "-o", "main", "main.c", "net.so", "-Wl,-rpath,."], cwd=tmp_path, check=True)
    assert subprocess.run([str(tmp_path / "main")], cwd=tmp_path, check=False).returncode == 0


@pytest.mark.parametrize("place", [0, 1000, -3000, -100, -1])
def test_a_damaged_file_is_refused(place: int, folder: Path) -> None:
    content = bytearray((folder / "net.so").read_bytes())
    content[place] ^= 0x10
    damaged = folder / "damaged.so"
    damaged.write_bytes(content)
    with pytest.raises(
        NetworkFileError, match=r"damaged\.so is (damaged|not a sealed file).*; expected a library that"
    ):
        twoscale.load_compiled(damaged)


@pytest.mark.parametrize("kept", [0, 10, 2000, -1])
def test_a_file_that_is_cut_short_is_refused(kept: int, folder: Path) -> None:
    cut = folder / "cut.so"
    cut.write_bytes((folder / "net.so").read_bytes()[:kept])
    with pytest.raises(NetworkFileError, match=r"cut\.so is not a sealed file"):
        twoscale.load_compiled(cut)


@pytest.mark.parametrize(
    "note", [b"", b"{}", b"[]", b"null", b"\xff", b'{"form": 2}', b"[" * 5000, b'{"form": 1, "input": 3}']
)
def test_other_notes_are_refused(note: bytes, tmp_path: Path) -> None:
    other = tmp_path / "other.so"
    other.write_bytes(b"not a library")
    sealed.seal(other, note)
    with pytest.raises(NetworkFileError, match=r"other\.so (does not describe|was written by another version)"):
        twoscale.load_compiled(other)


def test_another_network_or_platform_is_refused(folder: Path, network: IntegerNetwork) -> None:
    with pytest.raises(NetworkFileError, match=f"with fingerprint {network.fingerprint}; expected {'0' * 64}"):
        twoscale.load_compiled(folder / "net.so", fingerprint="0" * 64)
    description = Description.from_note(sealed.read_note(folder / "net.so"))
    for name, platform, message in (
        ("moved.so", "linux riscv64", "is compiled for linux riscv64, and this is "),
        ("here.so", description.platform, r"cannot load .*here\.so"),
    ):
        (folder / name).write_bytes(b"not a library")
        sealed.seal(folder / name, dataclasses.replace(description, platform=platform).to_note())
        with pytest.raises(NetworkFileError, match=message):
            twoscale.load_compiled(folder / name)
    with pytest.raises(NetworkFileError, match=r"cannot read .*nothing\.so: No such file"):
        twoscale.load_compiled(folder / "nothing.so")


def test_what_cannot_be_saved(network: IntegerNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"net does not end in \.so; expected the path of a shared library"):
        twoscale.save_compiled(network, tmp_path / "net")
    (tmp_path / "file").write_text("")
    with pytest.raises(TwoscaleError, match="cannot write"):
        twoscale.save_compiled(network, tmp_path / "file" / "net.so", target="avx2")
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(ExecutorError, match="needs a C compiler"):
        twoscale.save_compiled(network, tmp_path / "net.so")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_description_survives_its_note(made: SavedLibrary, network: IntegerNetwork) -> None:
    description = Description.from_note(sealed.read_note(Path(made.library)))
    found: dict[str, Any] = dataclasses.asdict(description)
    assert (*found["inputs"], *found["outputs"]) == tuple(
        dataclasses.asdict(network.spec(name)) for name in (network.input.name, network.output)
    )
    assert description.metadata == {"mean": list(MEAN), "std": list(STD)}
    assert description == Description.from_note(description.to_note())
    several = dataclasses.replace(description, inputs=description.inputs * 2)
    assert several == Description.from_note(several.to_note())


def test_the_verb_writes_both_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = random_network(np.random.default_rng(3), operators={"linear"}, length=2, image_shape=(2, 5, 5))
    small.save(tmp_path / "small.onnx")
    main(["compile", str(tmp_path / "small.onnx"), "-o", str(tmp_path / "my-net.so"), "--target", "avx2", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert (told["fingerprint"], told["features"]) == (small.fingerprint, ["avx2", "fma"])
    assert "int my_net_pool_run(" in Path(told["header"]).read_text()
    assert Path(told["header"]).name == "my_net.h"
    if has_avx2():
        images = random_images(np.random.default_rng(0), small, 2)
        assert np.array_equal(twoscale.load_compiled(told["library"])(images), small(images))
