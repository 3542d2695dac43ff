"""The wheel alone, installed into an empty environment: saved networks load, run, verify, compile and export there."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
import torch

import twoscale
from tests.once import once_in
from twoscale import data, models
from twoscale._extras import EXTRAS

ROOT = Path(__file__).parents[1]

# The parent process ran the same network with torch installed; this one compares with its logits.
CLASSIFY = """
import sys, json
import numpy as np
import twoscale
from twoscale import data

network = twoscale.load("net.onnx")
digits = data.load("digits").test
images = data.normalize(digits.images[:8], network.metadata["mean"], network.metadata["std"])
logits = network(images)
assert np.array_equal(logits, np.load("logits.npy"))
assert np.array_equal(logits.argmax(1), np.load("classes.npy"))
assert np.array_equal(network(images[:1]), logits[:1])
if sys.argv[1:]:
    compiled = twoscale.compile(network)
    assert np.array_equal(compiled(images), logits)
result = twoscale.verify(network, [(images, digits.labels[:8])], executors=["reference", *sys.argv[1:]])
assert result.ok and result.samples == 8
network.save("again.onnx")
assert twoscale.load("again.onnx").fingerprint == network.fingerprint
assert "<table" in network._repr_html_()
print(json.dumps(sorted(name.partition(".")[0] for name in sys.modules)))
"""


class Environment:
    """A virtual environment, and a folder in which its programs run."""

    def __init__(self, prefix: Path, folder: Path) -> None:
        self.scripts = prefix / ("Scripts" if os.name == "nt" else "bin")
        self.folder = folder

    def run(self, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        return subprocess.run(
            [self.scripts / program, *map(str, arguments)],
            cwd=self.folder,
            env={**variables, "NO_COLOR": "1", "COLUMNS": "120"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )


def pip(environment: Environment, *arguments: object) -> None:
    """Run this environment's pip for another, and skip the test if nothing can be downloaded."""

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        python = environment.scripts / "python"
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, *words]
        return subprocess.run(
            [*map(str, command)], cwd=environment.folder, capture_output=True, text=True, timeout=300, check=False
        )

    done = run(*arguments)
    if done.returncode:
        probe = run("download", "--no-deps", "--no-cache-dir", "--dest", "probe", "iniconfig")
        if probe.returncode:
            pytest.skip("pip reaches no package index")
        pytest.fail(done.stderr)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment that holds the wheel and its required dependencies, and a saved network."""
    return in_folder(Path(once_in(tmp_path_factory, "bare", lambda: str(installed(tmp_path_factory.mktemp("bare"))))))


def in_folder(folder: Path) -> Environment:
    return Environment(folder / "environment", folder)


def installed(folder: Path) -> Path:
    venv.create(folder / "environment", with_pip=False, symlinks=os.name != "nt")
    environment = in_folder(folder)
    pip(environment, "wheel", "--no-deps", "--wheel-dir", "wheels", ROOT)
    [wheel] = (folder / "wheels").glob("twoscale-*.whl")
    pip(environment, "install", "--no-compile", "--constraint", ROOT / "constraints.txt", wheel)
    digits = data.load("digits")
    images = data.normalize(digits.train.images[:64], digits.mean, digits.std)
    network = twoscale.quantize(models.create("net", seed=1), [torch.from_numpy(images)])
    said = {"data": "digits", "mean": list(digits.mean), "std": list(digits.std)}
    network = dataclasses.replace(network, metadata={**network.metadata, **said})
    network.save(folder / "net.onnx")
    logits = network(data.normalize(digits.test.images[:8], digits.mean, digits.std))
    np.save(folder / "logits.npy", logits)
    np.save(folder / "classes.npy", logits.argmax(1))
    return folder


def test_only_required_packages_are_installed(bare: Environment) -> None:
    code = "import importlib.util as u, sys; print([n for n in sys.argv[1:] if u.find_spec(n)])"
    assert bare.run("python", "-c", code, *EXTRAS).stdout.strip() == "[]"


def test_the_library_classifies_a_picture(bare: Environment) -> None:
    done = bare.run("python", "-W", "error", "-c", CLASSIFY, *(["c"] if shutil.which("cc") else []))
    assert done.returncode == 0, done.stderr
    assert not {*EXTRAS} & {*json.loads(done.stdout)}


def test_the_command_line_evaluates_verifies_exports_and_inspects(bare: Environment) -> None:
    evaluated = bare.run("twoscale", "eval", "net.onnx", "--json", "--max-samples", "8")
    assert evaluated.returncode == 0, evaluated.stderr
    right = int((np.load(bare.folder / "classes.npy") == data.load("digits").test.labels[:8]).sum())
    assert json.loads(evaluated.stdout)["top1"] == right / 8
    verified = bare.run("twoscale", "verify", "net.onnx", "--json", "--max-samples", "8")
    assert verified.returncode == 0, verified.stderr
    assert json.loads(verified.stdout)["executors"] == ["reference", *(["c"] if shutil.which("cc") else [])]
    exported = bare.run("twoscale", "export", "net.onnx", "--out", "net-c")
    assert exported.returncode == 0, exported.stderr
    assert {"Net.c", "Net.h", "Makefile"} <= {path.name for path in (bare.folder / "net-c").iterdir()}
    qdq = bare.run("twoscale", "export", "net.onnx", "--to", "qdq", "--out", "net-qdq.onnx")
    assert (qdq.returncode, (bare.folder / "net-qdq.onnx").is_file()) == (0, True), qdq.stderr
    inspected = bare.run("twoscale", "inspect", "net.onnx")
    assert inspected.returncode == 0, inspected.stderr
    assert "conv1" in inspected.stdout
    assert bare.run("twoscale", "data", "list").returncode == 0
    assert bare.run("twoscale", "--help").returncode == 0


@pytest.mark.sweep(3)
@pytest.mark.parametrize(
    ("words", "start"),
    [
        ("train net --out run", "twoscale train needs torch"),
        ("lab --out lab", "twoscale lab needs torch"),
        ("scale --out scale", "twoscale scale needs torch"),
        ("quantize weights.safetensors -o again.onnx", "twoscale quantize needs torch"),
        ("sensitivity weights.safetensors", "twoscale sensitivity needs torch"),
        ("eval weights.safetensors", "twoscale.training.evaluate needs torch"),
        ("inspect weights.safetensors", "twoscale inspect needs torch"),
        ("verify net.onnx --executors reference,torch", "the torch executor needs torch"),
        ("verify net.onnx --checkpoint weights.safetensors", "twoscale verify needs torch"),
        ("data fetch cifar10", "twoscale.data.fetch needs safetensors"),
    ],
)
def test_what_needs_an_extra_says_which(bare: Environment, words: str, start: str) -> None:
    (bare.folder / "weights.safetensors").touch()
    done = bare.run("twoscale", *words.split())
    expected = f"{start}, which is not installed; install it with: pip install 'twoscale[torch]'"
    assert (done.returncode, done.stderr.splitlines()) == (2, [f"twoscale: error: {expected}"])


def test_onnxruntime_has_an_extra_of_its_own(bare: Environment) -> None:
    done = bare.run("twoscale", "verify", "net.onnx", "--executors", "reference,onnxruntime")
    assert done.returncode == 2
    assert done.stderr.rstrip().endswith("install it with: pip install 'twoscale[onnxruntime]'")


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    "code",
    [
        "twoscale.models.create('net')",
        "twoscale.models.Net",
        "twoscale.models.load('net', 'weights.safetensors')",
        "twoscale.training.train",
        "twoscale.training.evaluate",
        "twoscale.data.fetch('cifar10')",
        "twoscale.verify(net, [np.zeros((1, 3, 32, 32), np.float32)], model=object())",
    ],
)
def test_functions_that_need_an_extra_say_which(bare: Environment, code: str) -> None:
    program = f"""
import numpy as np, twoscale, twoscale.data, twoscale.models, twoscale.training
net = twoscale.load("net.onnx")
try:
    {code}
except twoscale.TwoscaleError as error:
    print(type(error).__name__, isinstance(error, ImportError), error)
"""
    done = bare.run("python", "-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("MissingPackageError True ")
    assert done.stdout.rstrip().endswith("which is not installed; install it with: pip install 'twoscale[torch]'")


def test_a_module_that_no_extra_installs_is_not_explained_away() -> None:
    from twoscale._extras import requires_extras

    with pytest.raises(ModuleNotFoundError, match="twoscale_nonsense"), requires_extras("this test"):
        __import__("twoscale_nonsense")


def test_every_extra_package_is_in_its_extra() -> None:
    import tomllib
    from importlib.metadata import packages_distributions

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for package, extra in EXTRAS.items():
        [distribution] = set(packages_distributions().get(package, [package]))
        assert any(requirement.startswith(distribution.lower()) for requirement in extras[extra]), package


def test_wheel_holds_the_package_and_nothing_else(bare: Environment) -> None:
    import zipfile

    [wheel] = (bare.folder / "wheels").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"twoscale"}
    assert "twoscale/py.typed" in names
    assert not [name for name in names if "__pycache__" in name]
    assert sys.version_info >= (3, 11)
