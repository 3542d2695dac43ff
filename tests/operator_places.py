"""The modules of the package that know particular operators, found in their syntax trees."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Literal

from twoscale._ir import float_graph, layers

__all__ = ["operator_uses"]

Use = Literal["table", "test", "make"]
"""A dictionary whose keys are operator classes, a test for a class (isinstance, match, is), or a constructor call."""

_HOMES = {"twoscale._ir.layers": layers.LAYERS, "twoscale._ir.float_graph": float_graph.NODES}


def _operators(home: str) -> set[str]:
    """Return the names under which a module exports the operators."""
    module = {"twoscale._ir.layers": layers, "twoscale._ir.float_graph": float_graph}[home]
    return {name for name, value in vars(module).items() if value in _HOMES[home]}


class _Finder(ast.NodeVisitor):
    def __init__(self, tree: ast.Module) -> None:
        self.uses: set[Use] = set()
        self.modules: dict[str, set[str]] = {}  # alias of a home to the operators in it
        self.classes: set[str] = set()  # operators imported by name
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    name = alias.asname or alias.name
                    if f"{node.module}.{alias.name}" in _HOMES:
                        self.modules[name] = _operators(f"{node.module}.{alias.name}")
                    elif node.module in _HOMES and alias.name in _operators(node.module):
                        self.classes.add(name)
        self.visit(tree)

    def is_operator(self, node: ast.AST | None) -> bool:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            return node.attr in self.modules.get(node.value.id, ())
        return isinstance(node, ast.Name) and node.id in self.classes

    def names_operator(self, node: ast.AST) -> bool:
        return any(self.is_operator(part) for part in ast.walk(node))

    def visit_Dict(self, node: ast.Dict) -> None:
        if any(self.is_operator(key) for key in node.keys):
            self.uses.add("table")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id in ("isinstance", "issubclass"):
            if self.names_operator(node.args[1]):
                self.uses.add("test")
        elif self.is_operator(node.func) or any(self.is_operator(argument) for argument in node.args):
            self.uses.add("make")
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        if any(self.is_operator(part) for part in (node.left, *node.comparators)):
            self.uses.add("test")
        self.generic_visit(node)

    def visit_MatchClass(self, node: ast.MatchClass) -> None:
        if self.is_operator(node.cls):
            self.uses.add("test")
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        # A tuple or union of operators that has a name is a table too: Weighted = Conv2d | Linear.
        if isinstance(node.value, ast.Tuple | ast.BinOp) and self.names_operator(node.value):
            self.uses.add("test")
        self.generic_visit(node)


def operator_uses(source: Path) -> set[Use]:
    """Return how a module uses the classes of layers and nodes, apart from annotations; empty if it does not."""
    return _Finder(ast.parse(source.read_text())).uses
