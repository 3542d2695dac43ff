"""The c executor equals the NumPy reference in every layer, and its cache stays clean."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import twoscale._codegen as codegen
import twoscale._runtimes.compiler as module
from tests.integer_networks import COMPOSED, ActivationType, random_images, random_network
from twoscale._codegen.c.common.source_base import SourceBase
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.operators.vectorized import quantize_input
from twoscale._ir.reference import ReferenceExecutor
from twoscale._runtimes import EXECUTORS, calling, create, processor, sealed
from twoscale._runtimes.c import CExecutor
from twoscale._runtimes.compiled import CompiledNetwork
from twoscale.errors import ConfigurationError, ExecutorError, TwoscaleError, UnknownNameError

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler (cc) is installed")


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cache(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder for compiled code, separate from the user's."""
    monkeypatch.setenv("TWOSCALE_CACHE", str(shared_cache))
    return shared_cache / "c"


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TWOSCALE_CACHE", str(tmp_path))
    return tmp_path / "c"


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def some_network(seed: int = 3, **options: Any) -> IntegerNetwork:
    return random_network(np.random.default_rng(seed), **options)


def small_network(seed: int = 3) -> IntegerNetwork:
    """Return a network that compiles quickly, for tests in which its function does not matter."""
    return some_network(seed, operators={"linear"}, length=2, image_shape=(2, 5, 5))


def assert_equal(network: IntegerNetwork, images: NDArray[np.float32], **options: Any) -> None:
    """Check every integer of every layer, and the output alone."""
    names = [layer.name for layer in network]
    executor = CExecutor(network, **options)
    found, expected = executor.run(images, names), ReferenceExecutor(network).run(images, names)
    assert list(found) == names
    for name in names:
        assert found[name].dtype == expected[name].dtype
        assert found[name].shape == expected[name].shape
        assert np.array_equal(found[name], expected[name]), name
    alone = executor.run(images)
    assert list(alone) == [network.output]
    assert np.array_equal(alone[network.output], expected[network.output])


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("seed", "target"), [*((seed, "portable") for seed in range(5)), *((seed, "native") for seed in range(2))]
)
@pytest.mark.parametrize("dtype", ["uint8", "int8", "mixed"])
def test_every_integer_of_random_networks(
    seed: int, dtype: ActivationType, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if target == "portable" or seed == 0:  # compiled as for users
        monkeypatch.delenv("CC", raising=False)
    network = some_network(seed, dtype=dtype, length=14)
    assert_equal(network, random_images(np.random.default_rng(seed + 100), network, 5), target=target)


@pytest.mark.parametrize(("seed", "target"), [(1, "portable"), (2, "native")])
def test_operators_that_are_composed_of_several_layers(seed: int, target: str) -> None:
    network = some_network(seed, operators=COMPOSED, dtype="mixed", length=12)
    assert_equal(network, random_images(np.random.default_rng(seed), network, 5), target=target)


def test_odd_zero_points_change_nothing() -> None:
    """C rounds before it adds the zero point, so zero points need not be even."""
    network = some_network(5, dtype="uint8")
    odd = {layer.name: dataclasses.replace(layer.output, zero_point=layer.output.zero_point + 1, lo=0, hi=255)
           if layer.output.dtype == "uint8" else layer.output for layer in network}  # fmt: skip
    layers = tuple(dataclasses.replace(layer, output=odd[layer.name]) for layer in network)
    network = IntegerNetwork("odd", layers, network.outputs)
    assert not network.on_grid
    assert_equal(network, random_images(np.random.default_rng(1), network, 6))


@pytest.mark.parametrize("count", [0, 1, 2, 7])
@pytest.mark.parametrize("threads", [1, 3])
def test_any_number_of_images_and_threads(count: int, threads: int) -> None:
    network = some_network()
    assert_equal(network, random_images(np.random.default_rng(2), network, count), threads=threads)


def test_images_need_not_be_contiguous() -> None:
    network = some_network()
    images = random_images(np.random.default_rng(2), network, 6)
    assert_equal(network, np.asfortranarray(images))
    assert_equal(network, images[::-2])


def test_quantizing_is_that_of_the_reference_at_ties_and_beyond_the_range() -> None:
    network = some_network(image_shape=(1, 8, 8), bits=8)
    spec = network.input.output
    scale = np.float32(spec.scale)
    steps = np.concatenate([np.arange(-300, 300) + 0.5, np.arange(-300, 300), [0.0, -0.0]]).astype(np.float32) * scale
    near = np.concatenate([np.nextafter(steps, np.float32(np.inf)), np.nextafter(steps, np.float32(-np.inf)), steps])
    far = np.array([1e30, -1e30, 3.4e38, -3.4e38, 1e-45, 65535.5, 65536, -65536.5, 2**31, -(2.0**31)], np.float32)
    values = np.concatenate([near, far, far * scale]).astype(np.float32)
    images = np.resize(values, (-(-values.size // 64), 1, 8, 8))
    found = CExecutor(network).run(images, [network.input.name])[network.input.name]
    assert np.array_equal(found, quantize_input(images, spec))


def test_the_registry_knows_it() -> None:
    assert "c" in EXECUTORS
    assert create("c", small_network()).name == "c"


def test_wrong_images_are_refused() -> None:
    network = small_network()
    executor = CExecutor(network)
    with pytest.raises(ConfigurationError, match=r"takes images of shape \(N, 2, 5, 5\), got \(1, 2, 5, 4\)"):
        executor.run(np.zeros((1, 2, 5, 4), np.float32))
    with pytest.raises(ConfigurationError, match="NaN or infinite, the first in image 1"):
        executor.run(np.array([np.zeros((2, 5, 5)), np.full((2, 5, 5), np.nan)], np.float32))
    with pytest.raises(UnknownNameError, match="unknown layer 'nothing'"):
        executor.run(np.zeros((1, 2, 5, 5), np.float32), ["nothing"])
    with pytest.raises(ConfigurationError, match="threads is 0; expected at least 1"):
        CExecutor(network, threads=0)


def test_free_float_multipliers_are_refused() -> None:
    network = some_network(on_grid=False, operators={"linear"}, output="tensor")
    with pytest.raises(ConfigurationError, match=r"layer \w+ of random has free float multipliers"):
        CExecutor(network)


def test_what_was_compiled_is_used_again(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = small_network()
    CExecutor(network)
    assert len(files(empty_cache)) == 1

    def never(*arguments: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(module, "build", never)
    assert_equal(network, random_images(np.random.default_rng(1), network, 2))
    with pytest.raises(AssertionError, match="compiled again"):
        CExecutor(small_network(4))
    monkeypatch.setenv("CC", "cc -DNOTHING")
    with pytest.raises(AssertionError, match="compiled again"):
        CExecutor(network)


@pytest.mark.parametrize("target", ["native", "portable"])
def test_what_was_compiled_needs_neither_a_compiler_nor_its_c(
    target: str, empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = small_network()
    (tmp_path / "bin").mkdir()
    shutil.copy(os.environ["CC"], tmp_path / "bin" / "quick")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CC", "quick")
    CExecutor(network, target=target)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ExecutorError, match="needs a C compiler"):
        CExecutor(small_network(4), target=target)

    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("C was written again")

    monkeypatch.setattr(SourceBase, "render", never)
    assert_equal(network, random_images(np.random.default_rng(1), network, 2), target=target)
    assert len(files(empty_cache)) == 1


def test_another_cpu_compiles_again(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library has the kernels of one instruction set, so that its key depends on the CPU."""
    network = small_network()
    for known in (frozenset({"avx2", "fma"}), frozenset[str]()):
        monkeypatch.setattr(processor, "features", lambda known=known: known)
        assert_right(network)
    assert CompiledNetwork(network).kernels == "generic"
    assert len(files(empty_cache)) == 2


def test_a_generator_that_changed_compiles_again(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = small_network()
    CExecutor(network)
    monkeypatch.setattr(module, "generator", lambda: "another generator")
    CExecutor(network)
    assert len(files(empty_cache)) == 2


def test_a_damaged_library_is_made_again(empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = small_network()
    CExecutor(network)
    (name,) = files(empty_cache)
    damaged = tmp_path / "other" / "c" / name  # another folder, because the system caches loaded libraries by path
    damaged.parent.mkdir(parents=True)
    whole = (empty_cache / name).read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    monkeypatch.setenv("TWOSCALE_CACHE", str(tmp_path / "other"))
    for content in (b"not a library", b"", whole[: len(whole) // 2], bytes(flipped), whole[:-1]):
        damaged.unlink(missing_ok=True)  # otherwise the library that is loaded already would change
        damaged.write_bytes(content)
        assert_equal(network, random_images(np.random.default_rng(1), network, 2))
        assert damaged.read_bytes() != content
        sealed.read_note(damaged)


def test_without_a_compiler_it_says_so(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -O2")
    with pytest.raises(ExecutorError) as caught:
        CExecutor(small_network())
    assert str(caught.value) == (
        "the c executor needs a C compiler, and 'no-such-compiler' is not there; "
        "install gcc or clang, or name one in the environment variable CC"
    )
    assert files(empty_cache) == []


def test_a_compiler_that_fails_leaves_nothing(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\necho 'note: reading' >&2\necho 'network.c:1: error: disk on fire' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.raises(ExecutorError, match=r"the C compiler failed on random: network\.c:1: error: disk on fire; the"):
        CExecutor(small_network())
    assert files(empty_cache) == []


def test_a_compiler_may_have_options(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "cc -g0 -DNOTHING=1")
    assert_equal(small_network(), np.zeros((1, *small_network().input.output.shape), np.float32))


def test_an_interrupted_compile_leaves_nothing(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_run = subprocess.run

    def interrupted(command: list[str], **options: Any) -> Any:
        if "-o" in command:
            Path(command[command.index("-o") + 1]).write_bytes(b"half a library")
            raise KeyboardInterrupt
        return real_run(command, **options)

    monkeypatch.setattr(subprocess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        CExecutor(small_network())
    assert files(empty_cache) == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_process_that_is_stopped_while_it_compiles(
    how: signal.Signals, empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt leaves no files. Files of a killed process are removed by the next process that compiles."""
    compiler = tmp_path / "slow-compiler"
    compiler.write_text('#!/bin/sh\ncase "$*" in *-o*) echo half > library.so; exec sleep 60;; esac\n')
    compiler.chmod(0o755)
    program = textwrap.dedent(
        """
        import numpy as np
        from tests.integer_networks import random_network
        from twoscale._runtimes.c import CExecutor
        CExecutor(random_network(np.random.default_rng(3)))
        """
    )
    environment = {**os.environ, "CC": str(compiler), "TWOSCALE_CACHE": str(empty_cache.parent)}
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], env=environment, stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:  # fmt: skip
        while not list(empty_cache.glob("*/library.so")):
            assert process.poll() is None
            time.sleep(0.01)
        before = files(empty_cache)
        CExecutor(small_network(4))  # files of another running process are kept
        assert set(before) < set(files(empty_cache))
        if how == signal.SIGINT:
            os.killpg(process.pid, how)  # like the terminal
        else:
            process.kill()
        process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the orphaned compiler
    compiled = set(files(empty_cache)) - set(before)
    assert len(compiled) == 1
    if how == signal.SIGINT:
        assert set(files(empty_cache)) == compiled
    CExecutor(small_network(5))
    assert compiled < set(files(empty_cache))
    assert not any(name.startswith(".") for name in files(empty_cache))


def assert_right(network: IntegerNetwork) -> None:
    assert_equal(network, random_images(np.random.default_rng(1), network, 2))


def test_a_cache_that_cannot_be_written_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TWOSCALE_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert_right(small_network())
    assert files(tmp_path) == ["file"]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(TwoscaleError, match=r"cannot compile random in .*none: No such file.*; free space there, or"):
        CExecutor(small_network())


def test_a_full_cache_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real full disk, if this process may mount one: the compiler itself runs out of space."""
    folder = tmp_path / "small"
    folder.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        monkeypatch.setenv("TWOSCALE_CACHE", str(folder))
        assert_right(small_network())
        assert files(folder / "c") == []
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_cache_of_a_user_who_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOSCALE_CACHE", "~no-such-user/cache")
    with pytest.raises(ConfigurationError, match="TWOSCALE_CACHE is ~no-such-user/cache, and that user has no home"):
        CExecutor(small_network())


@dataclasses.dataclass
class Planted:
    """A cache with another user's library in place of ours."""

    cache: Path
    folder: Path
    library: Path
    marker: Path
    """A file that the library creates when it is loaded."""


def plant(ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Planted:
    """Move to another cache, because the system caches loaded libraries by path."""
    cache = tmp_path / "other"
    planted = Planted(cache, cache / "c", cache / "c" / ours.name, tmp_path / "marker")
    planted.folder.mkdir(parents=True)
    source = tmp_path / "planted.c"
    source.write_text(
        "#include <stdio.h>\n__attribute__((constructor)) static void run(void)"
        f'{{ fclose(fopen("{planted.marker}", "w")); }}'
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(planted.library), str(source)], check=True)
    sealed.seal(planted.library, sealed.read_note(ours))
    for path in (planted.cache, planted.folder, planted.library):
        path.chmod(0o755)
    monkeypatch.setenv("TWOSCALE_CACHE", str(cache))
    return planted


def give_away(path: Path, how: int | str) -> None:
    """Make a file or folder writable for others, or change its owner."""
    if isinstance(how, int):
        path.chmod(path.stat().st_mode | how)
    elif os.geteuid() == 0:
        os.chown(path, 12345, -1)
    else:
        pytest.skip("only root can give files away")


@pytest.mark.sweep
@pytest.mark.parametrize("how", [0o020, 0o002, "another's"])
@pytest.mark.parametrize("what", ["cache", "folder", "library"])
def test_a_planted_library_is_not_run(
    what: str, how: int | str, empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = small_network()
    assert_right(network)
    (name,) = files(empty_cache)
    planted = plant(empty_cache / name, tmp_path, monkeypatch)
    path: Path = getattr(planted, what)
    give_away(path, how)
    if what == "library":  # it is compiled again
        assert_right(network)
        assert planted.library.stat().st_uid == os.geteuid()
    else:
        with pytest.warns(UserWarning, match=f"compiled networks are not kept: {path} belongs to another user, or"):
            assert_right(network)
    assert not planted.marker.exists()


def test_a_planted_library_of_calls_is_not_run(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calling.maker.cache_clear()
    if calling.maker() is None:
        pytest.skip("there are no headers of Python")
    (name,) = files(empty_cache)
    planted = plant(empty_cache / name, tmp_path, monkeypatch)
    give_away(planted.library, 0o002)
    calling.maker.cache_clear()
    assert calling.maker() is not None
    assert not planted.marker.exists()
    calling.maker.cache_clear()


def test_a_planted_library_is_one_that_would_run(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted library of the tests above creates its marker if the cache is trusted."""
    network = small_network()
    CExecutor(network)
    (name,) = files(empty_cache)
    planted = plant(empty_cache / name, tmp_path, monkeypatch)
    with pytest.raises(AttributeError):
        CExecutor(network)
    assert planted.marker.exists()


def test_what_is_kept_is_private_whatever_the_umask(empty_cache: Path) -> None:
    umask = os.umask(0)
    try:
        CExecutor(small_network())
    finally:
        os.umask(umask)
    (name,) = files(empty_cache)
    for path in (empty_cache, empty_cache / name):
        assert not path.stat().st_mode & 0o022


def test_where_there_are_no_posix_locks_it_says_so() -> None:
    """On Windows the module can be imported, and its error says what it cannot do."""
    program = textwrap.dedent(
        """
        import sys
        sys.platform = "win32"
        sys.modules["fcntl"] = None
        from twoscale._runtimes import compiler
        from twoscale.errors import ExecutorError
        try:
            compiler.load("net", [], compiler.Sources, [])
        except ExecutorError as error:
            print(error)
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("compiled networks need Linux or macOS, and this is Windows; use another executor")


def test_a_change_of_any_file_that_writes_c_compiles_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = shutil.copytree(Path(codegen.__file__).parent, tmp_path / "codegen")
    monkeypatch.setattr(resources, "files", lambda package: copy)
    digests = {module.generator()}
    changed = [path for path in copy.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    for path in changed:
        path.write_bytes(path.read_bytes() + b" ")
        digests.add(module.generator())
    assert len(digests) == len(changed) + 1 > 60


def test_processes_at_once_do_not_collide(empty_cache: Path) -> None:
    program = textwrap.dedent(
        """
        import numpy as np
        from tests.runtimes.test_c import small_network
        from tests.integer_networks import random_images
        from twoscale._runtimes.c import CExecutor
        network = small_network()
        images = random_images(np.random.default_rng(1), network, 3)
        print(CExecutor(network).run(images)[network.output].tolist())
        """
    )
    root = Path(__file__).parents[2]
    running = [
        subprocess.Popen([sys.executable, "-c", program], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    told = [process.communicate() for process in running]
    network = small_network()
    expected = ReferenceExecutor(network).run(random_images(np.random.default_rng(1), network, 3))[network.output]
    assert {(out.decode().strip(), err.decode()) for out, err in told} == {(str(expected.tolist()), "")}
    assert len(files(empty_cache)) == 1


def test_it_needs_no_torch() -> None:
    program = "import sys, twoscale._runtimes.c, twoscale._codegen.c; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_multiplier_off_by_one_shows() -> None:
    spec = n.TensorSpec((1, 4, 4), "uint8", 1.0, 0, 0, 255)
    image = n.QuantizeInput(name="image", inputs=(), output=spec)
    flat = n.Reshape(name="flat", inputs=("pool",), output=dataclasses.replace(spec, shape=(4,)))

    def network(multiplier: int) -> IntegerNetwork:
        pool = n.AveragePool2d(
            name="pool", inputs=("image",), output=dataclasses.replace(spec, shape=(1, 2, 2)), kernel=(2, 2),
            stride=(2, 2), multiplier=n.Multiplier.on_grid(np.array([multiplier])),
        )  # fmt: skip
        return IntegerNetwork("planted", (image, pool, flat), ("flat",))

    images = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)  # means end in .5, where rounding is to even
    assert ReferenceExecutor(network(16384)).run(images)["flat"].tolist() == [[2, 4, 10, 12]]
    assert CExecutor(network(16384)).run(images)["flat"].tolist() == [[2, 4, 10, 12]]
    assert CExecutor(network(16385)).run(images)["flat"].tolist() == [[3, 5, 11, 13]]
