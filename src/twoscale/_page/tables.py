"""Tables as data: the contents of each cell, independent of how a page or a terminal draws it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from twoscale._text import printable

__all__ = ["Cell", "Column", "Table", "table", "text_column"]

_LONGEST_CELL = 200
_LONGEST_CAPTION = 500


@dataclass(frozen=True)
class Column:
    """A column head; ``unit`` is shown beside the label."""

    label: str
    unit: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Cell:
    """Text, with a smaller remark under it or a link behind it where there is one."""

    text: str
    note: str = ""
    href: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", printable(self.text, _LONGEST_CELL))
        object.__setattr__(self, "note", printable(self.note))


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first cell of a row names it."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "caption", printable(self.caption, _LONGEST_CAPTION))


def table(caption: str, columns: Sequence[Column], rows: Iterable[Sequence[str | Cell]]) -> Table:
    """Return a table of rows of cells or plain texts."""
    cells = (tuple(Cell(cell) if isinstance(cell, str) else cell for cell in row) for row in rows)
    return Table(caption, tuple(columns), tuple(cells))


def text_column(label: str) -> Column:
    """Return a column of words, not numbers."""
    return Column(label, numeric=False)
