"""The checklist of docs/adding-an-operator.md names every place that knows particular operators, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.operator_places import operator_uses
from twoscale._ir import float_graph, layers
from twoscale._ir.operators import base

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "adding-an-operator.md").read_text()
ROWS = re.findall(r"^\| .* \| (?:a file of )?`([^`]+)` \|(.*)\|$", TEXT, re.MULTILINE)
OPERATORS = ROOT / "src" / "twoscale" / "_ir" / "operators"
SOURCES = sorted(path for path in (ROOT / "src" / "twoscale").rglob("*.py") if not path.is_relative_to(OPERATORS))


def in_checklist(path: str, *, by_folder: bool) -> bool:
    return any(path == file or (by_folder and file.endswith("/") and path.startswith(file)) for file, _ in ROWS)


def test_checklist_names_what_is_there() -> None:
    assert len(ROWS) >= 20
    for file, names in ROWS:
        assert (ROOT / file).exists(), file
        if (ROOT / file).is_file():
            for name in re.findall(r"`(\w+)`", names):
                assert re.search(rf"\b{name}\b", (ROOT / file).read_text()), f"{file} has no {name}"


def test_every_place_that_knows_operators_is_in_the_checklist() -> None:
    """A table must be listed by file; tests for a class and constructor calls at least by folder."""
    found = {str(path.relative_to(ROOT)): operator_uses(path) for path in SOURCES}
    tables = {path for path, uses in found.items() if "table" in uses}
    assert len(tables) >= 6
    assert not {path for path in tables if not in_checklist(path, by_folder=False)}
    assert not {path for path, uses in found.items() if uses and not in_checklist(path, by_folder=True)}


@pytest.mark.parametrize(
    ("source", "uses"),
    [
        ("from twoscale._ir import layers as n\nT = {n.Conv2d: 1}", {"table"}),
        ("from twoscale._ir import layers\nT = {layers.Pad: 1}", {"table"}),
        ("from twoscale._ir.float_graph import Add\nT = {Add: 1}", {"table"}),
        ("from twoscale._ir.float_graph import Add as Sum\ndef f(x): return isinstance(x, Sum | int)", {"test"}),
        ("from twoscale._ir import float_graph as g\ndef f(x): return isinstance(x, (g.Mul, g.Pad))", {"test"}),
        ("from twoscale._ir import layers as n\ndef f(x): return type(x) is n.Mul", {"test"}),
        ("from twoscale._ir import layers as n\nKINDS = (n.Mul, n.Add)", {"test"}),
        ("from twoscale._ir import layers as n\ndef f(x):\n match x:\n  case n.Mul(): return 1", {"test"}),
        ("def f():\n from twoscale._ir import layers as n\n return n.Pad(name='p')", {"make"}),
        ("from twoscale._ir import layers as n\ndef f(x: n.Conv2d) -> n.Layer: return x", set()),
        ("from twoscale._ir import layers as n\ndef f(x): return isinstance(x, n.Layer)", set()),
        ("class n:\n Mul = 1\nT = {n.Mul: 1}", set()),
    ],
)
def test_uses_are_found_in_the_syntax_tree(source: str, uses: set[str], tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(source)
    assert operator_uses(path) == uses


def concrete(kind: type[base.Layer] | type[base.Node], package: str) -> set[type]:
    found = set()
    for child in kind.__subclasses__():
        found |= concrete(child, package)
        if child.__module__.startswith(package) and not getattr(child, "__abstractmethods__", None):
            found.add(child)
    return found


def test_layers_and_nodes_are_listed() -> None:
    """Readers of saved networks and the tests here only know classes that are listed."""
    assert concrete(base.Layer, "twoscale.") == set(layers.LAYERS)
    assert concrete(base.Node, "twoscale.") - {base.Bounded} == set(float_graph.NODES)
    assert {layer.__name__ for layer in layers.LAYERS} <= set(layers.__all__)
    assert {node.__name__.removesuffix("Node") for node in float_graph.NODES} <= set(float_graph.__all__)
