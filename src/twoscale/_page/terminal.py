"""Tables drawn for a terminal, however narrow: names are broken between words, and no number is cut."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

from twoscale._page.tables import Column, Table

__all__ = ["rich_table"]

_HEAD_WIDTH = 8
"""Longer heads are wrapped, so that wide tables fit 80 columns."""
_WORD = re.compile(r"[^\s./_-]+?(?:(?<=[a-z])(?=[A-Z])|[\s./_-]+|$)|[\s./_-]+")
"""Of a name: "stack1." and "conv1", "Quantize" and "Input"."""


def rich_table(table: Table) -> RenderableType:
    """Draw a table for a terminal: units under the heads, numbers to the right.

    If the terminal is too narrow for whole numbers, columns are left out: first columns of words, then numbers, both
    from the right. A line under the table names them.
    """
    return _Fitting(table)


@dataclass(frozen=True)
class _Fitting:
    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = self.table.columns
        least = [self._width(place, words=True) for place in range(len(columns))]
        shown = list(range(len(columns)))

        def room(gap: int) -> int:
            return options.max_width - sum(least[place] + gap for place in shown) + gap

        while len(shown) > 1 and room(1) < 0:
            shown.remove(max(shown[1:], key=lambda place: (not columns[place].numeric, place)))
        gap = 2 if room(2) >= 0 else 1
        left = max(0, room(gap))
        widths = []
        for place in shown:
            widths.append(min(least[place] + left, self._width(place)))
            left -= widths[-1] - least[place]
        yield Text(f"{self.table.caption}\n", style="bold")
        yield self._drawn(shown, widths, gap)
        if left_out := [column.label for place, column in enumerate(columns) if place not in shown]:
            yield Text(f"columns not shown, the terminal is too narrow: {', '.join(left_out)}")

    def _width(self, place: int, words: bool = False) -> int:
        """Return the width that a column needs: for whole cells, or for the longest of the words of names."""
        column = self.table.columns[place]
        texts = [row[place].text for row in self.table.rows]
        if words and not column.numeric:
            texts = [word.rstrip() for text in texts for word in _WORD.findall(text)]
        return max(map(cell_len, [*_head(column), *texts]))

    def _drawn(self, shown: Sequence[int], widths: Sequence[int], gap: int) -> RichTable:
        columns = [self.table.columns[place] for place in shown]
        drawn = RichTable(
            box=box.SIMPLE_HEAD,
            show_edge=False,
            padding=(0, gap - 1, 0, 0),  # besides the box's own space
            pad_edge=False,
        )
        for column, width in zip(columns, widths, strict=True):
            head = Text("\n".join(_head(column)))
            drawn.add_column(head, justify="right" if column.numeric else "left", width=width, overflow="fold")
        for row in self.table.rows:
            drawn.add_row(*(Text(_folded(row[i].text, width)) for i, width in zip(shown, widths, strict=True)))
        return drawn


def _head(column: Column) -> list[str]:
    return textwrap.wrap(column.label, _HEAD_WIDTH) + [column.unit] * bool(column.unit)


def _folded(text: str, width: int) -> str:
    """Return text in lines of the width, broken between words."""
    if cell_len(text) <= width:
        return text
    lines = [""]
    for word in _WORD.findall(text):
        if lines[-1] and cell_len((lines[-1] + word).rstrip()) > width:
            lines.append("")
        lines[-1] += word
    return "\n".join(line.rstrip() for line in lines)
