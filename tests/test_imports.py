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
from twoscale.executors import EXECUTORS

SOURCE = Path(twoscale.__file__).parent
MODULES = sorted(
    module.name for module in pkgutil.walk_packages([str(SOURCE)], "twoscale.") if not module.name.endswith("__main__")
)

# Room to the rooms it may import, wherever in its files. Data flows one way: down this table.
PLAIN = {"errors", "files"}
MAY_IMPORT = {
    "arithmetic": set[str](),
    "errors": set[str](),
    "files": {"errors"},
    "records": {*PLAIN, "report"},  # for _repr_html_ only
    "data": PLAIN,
    "models": PLAIN,
    "launching": set[str](),
    "training": {*PLAIN, "data", "launching", "models", "records"},
    "scaling": {*PLAIN, "data", "launching", "models", "records", "report", "training"},
    "graph": {"errors"},
    "calibration": {"errors", "graph", "records"},
    "network": {*PLAIN, "arithmetic", "executors", "report"},  # network(x) and _repr_html_ only
    "executors": {*PLAIN, "arithmetic", "data", "export", "network"},
    "export": {*PLAIN, "arithmetic", "data", "executors", "network", "records"},
    "verification": {"errors", "executors", "graph", "network", "records"},
    "quantization": {
        "arithmetic", "calibration", "errors", "executors", "graph", "network", "records", "verification",
    },
    "report": {*PLAIN, "network", "records"},
    "lab": {"calibration", "data", "errors", "graph", "quantization", "records", "report", "training", "verification"},
}  # fmt: skip
# Imports that run back are made inside functions, so that no room loads another that comes after it.
BACKWARDS = {("records", "report"), ("network", "executors"), ("network", "report")}

# What works where there is no torch.
WITHOUT_TORCH = [
    "twoscale",
    "twoscale.arithmetic",
    "twoscale.calibration",
    "twoscale.cli",
    "twoscale.data",
    "twoscale.errors",
    "twoscale.executors",
    "twoscale.executors.c",
    "twoscale.executors.onnxruntime",
    "twoscale.executors.reference",
    "twoscale.export.c",
    "twoscale.files",
    "twoscale.graph.nodes",
    "twoscale.launching.torchrun",
    "twoscale.models",
    "twoscale.network",
    "twoscale.quantization",
    "twoscale.records",
    "twoscale.report",
    "twoscale.report.networks",
    "twoscale.training",
    "twoscale.verification",
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
    """Return the room of a module of the package: "calibration" of twoscale.calibration.affine."""
    parts = module.split(".")
    return parts[1] if parts[0] == "twoscale" and len(parts) > 1 else None


def faults(imports: list[Import]) -> list[str]:
    found = []
    for one in imports:
        by, of = room(one.by), room(one.of)
        if by is None or of is None or by == of or by == "cli" or of == "__version__":
            continue
        if of not in MAY_IMPORT[by]:
            found.append(f"{one.by} imports {one.of}: {by} may not know {of}")
        elif one.at_start and (by, of) in BACKWARDS:
            found.append(f"{one.by} imports {one.of} at its start: it may do so inside functions only")
    return found


def test_every_room_is_in_the_table() -> None:
    rooms = {room(module) for module in MODULES}
    assert rooms - {"cli"} == set(MAY_IMPORT)


def test_rooms_know_only_what_comes_before_them() -> None:
    assert faults(all_imports()) == []


def test_a_planted_import_is_found() -> None:
    text = "from twoscale.quantization import quantize\n"
    assert faults(list(imports_of("twoscale.graph.folding", text))) == [
        "twoscale.graph.folding imports twoscale.quantization.quantize: graph may not know quantization"
    ]
    inside = "def call():\n    from twoscale.executors import run_logits\n"
    assert faults(list(imports_of("twoscale.network.network", inside))) == []
    assert faults(list(imports_of("twoscale.network.network", "from twoscale.executors import create\n"))) == [
        "twoscale.network.network imports twoscale.executors.create at its start: it may do so inside functions only"
    ]


def test_executors_do_not_know_each_other() -> None:
    executors = {path.split(":")[0] for path in EXECUTORS.values()}
    for one in all_imports():
        if one.by in executors:
            assert ".".join(one.of.split(".")[:3]) not in executors, one


def test_arithmetic_imports_nothing_of_others() -> None:
    for one in all_imports():
        if one.by == "twoscale.arithmetic":
            assert one.of.split(".")[0] in {"__future__", *sys.stdlib_module_names}


def test_only_the_command_line_knows_tyro() -> None:
    for one in all_imports():
        if one.of.split(".")[0] in {"tyro", "docstring_parser"}:
            assert room(one.by) == "cli", one


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
