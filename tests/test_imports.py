"""The import graph: who may know whom, what works without torch, and what is public."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import twoscale
from twoscale._runtimes import EXECUTORS

SOURCE = Path(twoscale.__file__).parent
MODULES = sorted(
    module.name for module in pkgutil.walk_packages([str(SOURCE)], "twoscale.") if not module.name.endswith("__main__")
)

# The packages, lowest first. A package imports only from packages before it, wherever in its files the import is.
LAYERS = [
    "errors",
    "_files",
    "_environment",
    "_delegates",
    "_page",
    "_ir",
    "_metrics",
    "_passes",
    "_frontends",
    "_formats",
    "_codegen",
    "_runtimes",
    "_calibration",
    "_quantization",
    "_verification",
    "_search",
    "_display",
    "data",
    "models",
    "_launching",
    "training",
    "scaling",
    "_lab",
    "_cli",
]

# What works where there is no torch.
WITHOUT_TORCH = [
    "twoscale",
    "twoscale._ir.arithmetic",
    "twoscale._calibration",
    "twoscale._cli",
    "twoscale.data",
    "twoscale.errors",
    "twoscale._runtimes",
    "twoscale._runtimes.c",
    "twoscale._runtimes.onnxruntime",
    "twoscale._ir.reference",
    "twoscale._codegen.c",
    "twoscale._files",
    "twoscale._ir.float_graph",
    "twoscale._launching.torchrun",
    "twoscale.models",
    "twoscale._formats",
    "twoscale._quantization",
    "twoscale._lab",
    "twoscale._display.networks",
    "twoscale._display.statistics",
    "twoscale._display.verification",
    "twoscale._search",
    "twoscale.training",
    "twoscale._verification",
]


@dataclass(frozen=True)
class Import:
    """An import statement of a file of the package."""

    by: str
    of: str
    at_start: bool
    """Whether it runs when the module is imported."""


def imports_of(module: str, text: str) -> Iterator[Import]:
    def visit(node: ast.AST, at_start: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            names = []
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{module}: imports are absolute"
                names = [f"{child.module}.{alias.name}" for alias in child.names]
            yield from (Import(module, name, at_start) for name in names)
            yield from visit(child, at_start and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))

    return visit(ast.parse(text), True)


def all_imports() -> list[Import]:
    found: list[Import] = []
    for file in sorted(SOURCE.rglob("*.py")):
        parts = file.relative_to(SOURCE.parent).with_suffix("").parts
        module = ".".join(parts).removesuffix(".__init__")
        found += imports_of(module, file.read_text())
    return found


def room(module: str) -> str | None:
    """Return the room of a module of the package: "calibration" of twoscale._calibration.affine."""
    parts = module.split(".")
    if parts[0] != "twoscale" or len(parts) == 1 or parts[1].startswith("__"):
        return None
    return parts[1]


def faults(imports: list[Import]) -> list[str]:
    found = []
    for one in imports:
        by, of = room(one.by), room(one.of)
        if by is None or of is None or by == of:
            continue
        if of not in LAYERS or LAYERS.index(by) <= LAYERS.index(of):
            found.append(f"{one.by} imports {one.of}: {by} is below {of}")
    return found


def test_every_package_has_its_layer() -> None:
    assert {room(module) for module in MODULES} == set(LAYERS)


def test_packages_import_only_from_packages_below_them() -> None:
    assert faults(all_imports()) == []


def test_a_planted_import_is_found() -> None:
    text = "from twoscale._quantization import quantize\n"
    assert faults(list(imports_of("twoscale._passes.fold", text))) == [
        "twoscale._passes.fold imports twoscale._quantization.quantize: _passes is below _quantization"
    ]
    inside = "def call():\n    from twoscale._runtimes import create\n"
    assert faults(list(imports_of("twoscale._ir.integer_network", inside))) == [
        "twoscale._ir.integer_network imports twoscale._runtimes.create: _ir is below _runtimes"
    ]


def test_executors_do_not_know_each_other() -> None:
    executors = {path.split(":")[0] for path in EXECUTORS.values()}
    for one in all_imports():
        if one.by in executors:
            assert ".".join(one.of.split(".")[:3]) not in executors, one


def test_arithmetic_imports_nothing_of_others() -> None:
    for one in all_imports():
        if one.by == "twoscale._ir.arithmetic":
            assert one.of.split(".")[0] in {"__future__", *sys.stdlib_module_names}


def test_only_the_command_line_knows_tyro() -> None:
    for one in all_imports():
        if one.of.split(".")[0] in {"tyro", "docstring_parser"}:
            assert room(one.by) == "_cli", one


BLOCKER = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision"):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
sys.meta_path.insert(0, NoTorch())
"""


def run_without_torch(code: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BLOCKER + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_blocker_blocks() -> None:
    with pytest.raises(AssertionError, match="No module named 'torch'"):
        run_without_torch("import torch")


def test_rooms_that_need_no_torch() -> None:
    run_without_torch("import importlib\nfor name in sys.argv[1:]: importlib.import_module(name)", *WITHOUT_TORCH)


class Small(nn.Module):
    """A network of the common kinds of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 * 4 * 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.max_pool2d(torch.relu(self.bn(self.conv(x))), 2)
        logits: torch.Tensor = self.fc(y.flatten(1))
        return logits


USE = """
import numpy as np
import twoscale
network = twoscale.load(sys.argv[1])
images = np.load(sys.argv[2])
logits = network(images)
result = twoscale.verify(network, [(images, np.zeros(len(images), int))], executors=sys.argv[4].split(","))
assert result.mismatches == 0 and result.compared > 0, result
network.save(sys.argv[1] + ".again.onnx")
assert twoscale.load(sys.argv[1] + ".again.onnx").fingerprint == network.fingerprint
assert "<table" in network._repr_html_() and "<table" in result._repr_html_()
np.save(sys.argv[3], logits)
assert "torch" not in sys.modules
"""


def test_a_saved_network_needs_no_torch(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(20, 3, 8, 8, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = Small().eval()
    network = twoscale.quantize(model, [images])
    network.save(tmp_path / "net.onnx")
    np.save(tmp_path / "images.npy", images.numpy())
    executors = ["reference"] + ["onnxruntime"] * (importlib.util.find_spec("onnxruntime") is not None)
    run_without_torch(USE, tmp_path / "net.onnx", tmp_path / "images.npy", tmp_path / "logits.npy", ",".join(executors))
    assert np.array_equal(np.load(tmp_path / "logits.npy"), network(images).numpy())


def test_verify_with_a_float_model_but_no_torch_says_so(tmp_path: Path) -> None:
    code = (
        "import numpy as np, twoscale\n"
        "from twoscale.errors import TwoscaleError\n"
        "network = twoscale.load(sys.argv[1])\n"
        "try:\n"
        "    twoscale.verify(network, [np.zeros((1, 3, 8, 8), np.float32)], executors=['reference'], model=object())\n"
        "except TwoscaleError as error:\n"
        "    print(error)\n"
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = Small().eval()
    twoscale.quantize(model, [torch.zeros(1, 3, 8, 8)]).save(tmp_path / "net.onnx")
    assert "needs torch" in run_without_torch(code, tmp_path / "net.onnx")


def test_public_names_of_the_package() -> None:
    assert twoscale.__all__ == [
        "IntegerNetwork",
        "Scheme",
        "TwoscaleError",
        "compile",
        "export",
        "inspect",
        "load",
        "quantize",
        "sensitivity",
        "verify",
    ]
    assert twoscale.__all__ == sorted(twoscale.__all__)
    assert dir(twoscale) == sorted([*twoscale.__all__, "__version__"])
    for name in twoscale.__all__:
        assert getattr(twoscale, name).__module__.startswith("twoscale.")
    with pytest.raises(AttributeError, match="module 'twoscale' has no attribute 'quantise'"):
        getattr(twoscale, "quantise")  # noqa: B009


@pytest.mark.parametrize("module", MODULES)
def test_what_a_module_calls_public_is_there(module: str) -> None:
    loaded = importlib.import_module(module)
    missing = [name for name in getattr(loaded, "__all__", []) if not hasattr(loaded, name)]
    assert missing == []


def test_what_is_in_the_package_beside_its_public_names_is_rooms() -> None:
    """``twoscale.x`` is a public name, a room, or nothing."""
    rooms = {room(module) for module in MODULES}
    code = "import twoscale; print(*(name for name in vars(twoscale) if not name.startswith('_')))"
    visible = set(run_without_torch(code).split())
    assert visible <= {*rooms, "annotations", "importlib", "Any", "TYPE_CHECKING"}
