"""Documents, notebooks and the reference use only public names, and the reference has all of them."""

from __future__ import annotations

import ast
import importlib
import json
import re
from pathlib import Path

import pytest

import twoscale

ROOT = Path(__file__).parents[1]
MODULES = ("data", "errors", "models", "scaling", "training")
"""The public modules beside the names of the package itself."""
SOURCES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*.ipynb")],
    key=lambda path: path.name,
)


def public_names(module: str) -> set[str]:
    loaded = importlib.import_module(module)
    extra = {*MODULES, "__version__"} if module == "twoscale" else set()
    return {*loaded.__all__, *extra}


def programs(path: Path) -> str:
    """Return the Python code of a document or a notebook."""
    text = path.read_text()
    if path.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        return "\n".join("".join(cell["source"]) for cell in cells)
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))


def private_uses(code: str) -> list[str]:
    """Return the names of twoscale that a program imports or uses and that are not public."""
    tree = ast.parse(code)
    modules = {"twoscale": "twoscale"}  # what a program calls a public module, and the module
    used = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "twoscale":
                    used += [tuple(alias.name.rpartition(".")[::2])] if "." in alias.name else []
                    modules[alias.asname or "twoscale"] = alias.name if alias.asname else "twoscale"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "twoscale":
            for alias in node.names:
                used.append((str(node.module), alias.name))
                if f"{node.module}.{alias.name}" in {f"twoscale.{name}" for name in MODULES}:
                    modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            used.append((modules[node.value.id], node.attr))
    known = {"twoscale": public_names("twoscale")} | {f"twoscale.{m}": public_names(f"twoscale.{m}") for m in MODULES}
    return [f"{module}.{name}" for module, name in used if name not in known.get(module, set())]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_programs_use_public_names(path: Path) -> None:
    assert private_uses(programs(path)) == []


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("from twoscale._ir import arithmetic", "twoscale._ir.arithmetic"),
        ("import twoscale._passes.fold", "twoscale._passes.fold"),
        ("from twoscale.data import _cache", "twoscale.data._cache"),
        ("from twoscale.training import Trainer", "twoscale.training.Trainer"),
        ("import twoscale\ntwoscale.capture(model)", "twoscale.capture"),
        ("from twoscale import data as d\nd.secret()", "twoscale.data.secret"),
    ],
)
def test_a_planted_private_name_is_found(code: str, fault: str) -> None:
    assert private_uses(code) == [fault]


def test_public_programs_are_accepted() -> None:
    code = "import twoscale\nfrom twoscale import data\nfrom twoscale.models import create\ntwoscale.load(data.load)"
    assert private_uses(code) == []


@pytest.mark.parametrize("module", ["twoscale", *(f"twoscale.{name}" for name in MODULES)])
def test_the_reference_has_every_public_name(module: str) -> None:
    page = ROOT / "docs" / "api" / f"{module.rpartition('.')[2]}.md"
    shown = re.findall(r"^::: ([\w.]+)$", page.read_text(), re.MULTILINE)
    assert sorted(shown) == sorted(f"{module}.{name}" for name in importlib.import_module(module).__all__)


def test_every_public_module_is_named() -> None:
    there = {path.stem for path in Path(twoscale.__file__).parent.iterdir() if not path.name.startswith("_")}
    assert there - {"py"} == set(MODULES)
    assert [module for module in MODULES if not importlib.import_module(f"twoscale.{module}").__all__] == []


@pytest.mark.parametrize("module", ["twoscale", *(f"twoscale.{name}" for name in MODULES)])
def test_public_functions_and_classes_are_documented(module: str) -> None:
    loaded = importlib.import_module(module)
    bare = [name for name in loaded.__all__ if callable(getattr(loaded, name)) and not getattr(loaded, name).__doc__]
    assert bare == []


def test_every_page_of_the_site_is_in_its_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text()
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if not re.search(rf": {re.escape(page)}$", menu, re.MULTILINE)] == []
