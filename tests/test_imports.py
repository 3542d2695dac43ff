"""Packages import only from packages below them, saved networks need no torch, and the public names are right."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
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

# The packages, lowest first. A module imports only from its own package and from packages before it, wherever in the
# file the import is. Above them all are the face, twoscale/__init__.py, and twoscale/__main__.py.
LAYERS = [
    "_text",
    "errors",
    "_progress",
    "_extras",
    "_files",
    "_environment",
    "_delegates",
    "_user_code",
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
SCALING_LAYERS = ["_measure", "_study", "_questions"]
"""Layers of the package scaling, lowest first. Its other modules are above them."""
FACE = ("", "__main__")
EVERY_MODULE = ["twoscale", "twoscale.__main__", *MODULES]
NAMED = re.compile(rf"twoscale\.(?:{'|'.join(LAYERS)})(?:\.\w+)+(?::\w+)?")

# Modules that work without torch.
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
    """A place in a module of this project that imports another module, or names one to be imported."""

    by: str
    of: str
    """Dotted name: a module, or a name in one."""
    by_statement: bool = True
    """False: a string such as the "module:name" of a registry."""


def imports_of(module: str, text: str) -> Iterator[Import]:
    """Yield the imports of a module, at its top, in functions and by a string, but not those for type checkers."""

    def visit(node: ast.AST) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from (found for other in child.orelse for found in visit(ast.Module([other], [])))
                continue
            if isinstance(child, ast.Import):
                yield from (Import(module, alias.name) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{module}: imports are absolute"
                yield from (Import(module, f"{child.module}.{alias.name}") for alias in child.names)
            elif isinstance(child, ast.Constant) and NAMED.fullmatch(str(child.value)):
                yield Import(module, str(child.value).replace(":", "."), by_statement=False)
            yield from visit(child)

    return visit(ast.parse(text))


def all_imports() -> list[Import]:
    found: list[Import] = []
    for file in sorted(SOURCE.rglob("*.py")):
        parts = file.relative_to(SOURCE.parent).with_suffix("").parts
        module = ".".join(parts).removesuffix(".__init__")
        found += imports_of(module, file.read_text())
    return found


def package_of(name: str) -> str | None:
    """Return the package of a dotted name: "_calibration" of twoscale._calibration.affine, "" of the face."""
    parts = name.split(".")
    if parts[0] != "twoscale":
        return None
    return parts[1] if len(parts) > 1 and (parts[1] in LAYERS or parts[1] == "__main__") else ""


def upward_imports(imports: Iterable[Import], layers: list[str] = LAYERS) -> list[str]:
    order = {package: height for height, package in enumerate([*layers, *FACE])}
    found = []
    for one in imports:
        by, of = package_of(one.by), package_of(one.of)
        if by is not None and of is not None and by != of and order[by] <= order[of]:
            found.append(f"{one.by} imports {one.of}: {by} is below {of or 'the face'}")
    return found


def module_graph(imports: Iterable[Import], modules: Iterable[str]) -> dict[str, set[str]]:
    """Return, for each module, the modules that its import statements name."""
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for one in imports:
        # "from a import b" imports a.b where that is a module, else a.
        of = one.of if one.of in graph else one.of.rpartition(".")[0]
        if one.by_statement and of in graph and of != one.by:
            graph[one.by].add(of)
    return graph


def cyclic(graph: Mapping[str, set[str]]) -> set[str]:
    """Return the modules on cycles or between two: those left after repeatedly removing modules without imports or
    importers."""
    left = {module: set(named) for module, named in graph.items()}
    while True:
        named = set().union(*left.values()) if left else set()
        ends = {module for module in left if not left[module] or module not in named}
        if not ends:
            return set(left)
        left = {module: named - ends for module, named in left.items() if module not in ends}


def test_every_package_has_its_layer() -> None:
    there = {path.stem for path in SOURCE.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert there - {"__init__", "__main__", "__pycache__"} == set(LAYERS)


def test_packages_import_only_from_packages_below_them() -> None:
    assert upward_imports(all_imports()) == []


def scaling_faults(imports: Iterable[Import]) -> list[str]:
    def layer(name: str) -> int | None:
        parts = name.split(".")
        if parts[:2] != ["twoscale", "scaling"]:
            return None
        inside = parts[2] if len(parts) > 2 else ""
        return SCALING_LAYERS.index(inside) if inside in SCALING_LAYERS else len(SCALING_LAYERS)

    found = []
    for one in imports:
        by, of = layer(one.by), layer(one.of)
        if by is not None and of is not None and by < of:
            found.append(f"{one.by} imports {one.of}")
    return found


def test_scaling_measures_below_its_studies_and_these_below_its_questions() -> None:
    assert scaling_faults(all_imports()) == []
    folders = {path.name for path in (SOURCE / "scaling").iterdir() if path.is_dir()}
    assert folders - {"__pycache__"} == set(SCALING_LAYERS)


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("_study.run", "def measure():\n    from twoscale.scaling._questions.answers import answered"),
        ("_study.run", "from twoscale.scaling import run_study"),
        ("_measure.jobs", "import twoscale.scaling._study"),
        ("_measure.jobs", 'TASK = "twoscale.scaling._questions.answers:answered"'),
        ("_questions.report", "def render():\n    from twoscale.scaling._run import run_study"),
    ],
)
def test_a_planted_upward_import_within_scaling_is_found(module: str, text: str) -> None:
    assert len(scaling_faults(imports_of(f"twoscale.scaling.{module}", text))) == 1


def test_imports_downwards_within_scaling_are_right() -> None:
    text = "from twoscale.scaling._measure import jobs\nfrom twoscale.scaling._study.plan import Need"
    assert scaling_faults(imports_of("twoscale.scaling._questions.batch", text)) == []


def test_no_modules_import_each_other() -> None:
    assert cyclic(module_graph(all_imports(), EVERY_MODULE)) == set()


@pytest.mark.parametrize(
    ("module", "text", "fault"),
    [
        ("_passes.fold", "from twoscale._quantization import quantize", "_passes is below _quantization"),
        ("_ir.checks", "def call():\n    from twoscale._runtimes import create", "_ir is below _runtimes"),
        ("_ir.checks", "class A:\n    def b(self):\n        import twoscale._cli", "_ir is below _cli"),
        ("_ir.checks", "def call():\n    import twoscale", "_ir is below the face"),
        ("_ir.checks", "from twoscale import load", "_ir is below the face"),
        ("_formats", 'HOMES = {"c": "twoscale._runtimes.c:CExecutor"}', "_formats is below _runtimes"),
        ("_formats", "if TYPE_CHECKING:\n    pass\nelse:\n    import twoscale.data", "_formats is below data"),
    ],
)
def test_a_planted_upward_import_is_found(module: str, text: str, fault: str) -> None:
    [found] = upward_imports(imports_of(f"twoscale.{module}", text))
    assert found.endswith(fault)


def test_imports_downwards_and_for_type_checkers_are_right() -> None:
    text = "if TYPE_CHECKING:\n    from twoscale._cli import main\nfrom twoscale import data, errors\nimport torch\n"
    assert upward_imports(imports_of("twoscale.models._files", text)) == []


def test_a_planted_cycle_is_found() -> None:
    planted = [*all_imports(), Import("twoscale.errors", "twoscale._files.remove")]
    assert {"twoscale.errors", "twoscale._files"} <= cyclic(module_graph(planted, EVERY_MODULE))
    straight = {"a": {"b"}, "b": {"c"}, "c": set(), "d": {"b", "c"}}
    assert cyclic(straight) == set()
    assert cyclic({**straight, "c": {"a"}}) == {"a", "b", "c"}


def test_runtimes_do_not_know_each_other() -> None:
    runtimes = {path.split(":")[0] for path in EXECUTORS.values()}
    for one in all_imports():
        if one.by in runtimes:
            assert ".".join(one.of.split(".")[:3]) not in runtimes, one


def test_arithmetic_imports_nothing_of_others() -> None:
    for one in all_imports():
        if one.by == "twoscale._ir.arithmetic":
            assert one.of.split(".")[0] in {"__future__", *sys.stdlib_module_names}


def test_only_the_command_line_knows_tyro() -> None:
    for one in all_imports():
        if one.of.split(".")[0] in {"tyro", "docstring_parser"}:
            assert package_of(one.by) == "_cli", one


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


def test_packages_that_need_no_torch() -> None:
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
        "LearnedRounding",
        "Scheme",
        "TwoscaleError",
        "compile",
        "export",
        "export_wasm",
        "inspect",
        "learn_rounding",
        "load",
        "load_compiled",
        "quantize",
        "save_compiled",
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


def test_only_public_names_and_packages_are_in_the_namespace() -> None:
    code = "import twoscale; print(*(name for name in vars(twoscale) if not name.startswith('_')))"
    visible = set(run_without_torch(code).split())
    assert visible <= {*LAYERS, "annotations", "importlib", "Any", "TYPE_CHECKING"}
