"""A self-contained page: sections of sentences, charts and tables, in light and dark."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from twoscale._environment import Environment
from twoscale._page.charts import DARK, LIGHT, Drawing, clip_overlay, palette_variables, style_rules
from twoscale._page.tables import Table
from twoscale._text import printable

__all__ = ["Explorer", "Figure", "Group", "Section", "Stop", "all_figures", "figures_of", "render_page", "table_html"]


@dataclass(frozen=True)
class Figure:
    """A chart, and the name of its file without the suffix."""

    name: str
    drawing: Drawing


@dataclass(frozen=True)
class Stop:
    """One clip range of an explorer, and what the page shows of it."""

    clip: float
    """Largest magnitude inside the range, in the units of the x axis."""
    readings: tuple[tuple[str, str], ...]
    """(what, value), as shown."""


@dataclass(frozen=True)
class Explorer:
    """A histogram whose clip range the reader drags: along the chart, or with a slider under it.

    Without a script it is a histogram with the first stop drawn over it.
    """

    name: str
    """Of the chart's file, without the suffix."""
    drawing: Drawing
    stops: tuple[Stop, ...]
    """From the widest range to the narrowest."""
    start: int = 0
    """The stop that is shown first."""

    @property
    def figure(self) -> Figure:
        """The chart as it is before anyone drags it."""
        return Figure(self.name, clip_overlay(self.drawing, self.stops[self.start].clip))

    @property
    def data(self) -> dict[str, object]:
        """What the script needs: where the axis is, and the stops."""
        frame = self.drawing.frame
        assert frame is not None
        return {
            "left": frame.left,
            "right": frame.right,
            "lo": frame.lo,
            "hi": frame.hi,
            "stops": [{"clip": one.clip, "texts": [value for _, value in one.readings]} for one in self.stops],
        }


@dataclass(frozen=True)
class Group:
    """Findings, charts and tables that belong together under one heading of a section."""

    title: str = ""
    findings: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    explorers: Sequence[Explorer] = ()
    level: int = 3
    """Level of the heading: 3, or 4 where the group belongs to the group above it."""


@dataclass(frozen=True)
class Section:
    """One question of a page: how to read the answer, then the answer."""

    id: str
    title: str
    intro: Sequence[str]
    groups: Sequence[Group]
    lead: str = ""
    """The answer in one sentence, above everything else."""
    findings: Sequence[str] = ()


def render_page(title: str, subtitle: str, sections: Sequence[Section], environment: Environment, source: str) -> str:
    """Return a self-contained page: no requests, light and dark, and no script but that of explorers.

    Args:
        title: of the page.
        subtitle: shown under the title.
        sections: in order; the first has the id "summary".
        environment: where the numbers were measured.
        source: name of the file beside the page that holds the numbers.
    """
    return (
        _templates()
        .get_template("report.html.jinja")
        .render(
            title=title,
            subtitle=subtitle,
            sections=sections,
            explores=any(group.explorers for section in sections for group in section.groups),
            date=environment.date,
            version=environment.versions.get("twoscale", ""),
            source=source,
            light=Markup(palette_variables(LIGHT)),
            dark=Markup(palette_variables(DARK)),
            plot_rules=Markup(style_rules({name: f"var(--{name})" for name in LIGHT})),
        )
    )


def table_html(table: Table) -> str:
    """Return a small HTML table for a notebook, in the notebook's own colours."""
    return _templates().get_template("fragment.html.jinja").render(table=table).strip()


def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("twoscale._page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    environment.filters["relative_url"] = _relative_url
    environment.filters["unbroken"] = _unbroken
    return environment


def _visible(value: object) -> object:
    """Return what a template prints; text from files, as in findings, must not hide or reverse what is around it."""
    return printable(value) if type(value) is str else value


def _relative_url(name: str) -> str:
    """Return a link to a file beside the page; never one with a scheme."""
    return "./" + quote(name.lstrip("/"))


def _unbroken(sentence: str) -> str:
    """Return ``sentence`` with no line break between a number and its unit."""
    return re.sub(r"(?<=\d) (?=%|dB|bits|points)", "\N{NO-BREAK SPACE}", sentence)


def figures_of(drawings: Mapping[str, Drawing | None]) -> list[Figure]:
    """Return the drawings that are not None, each under a file name made from its name."""
    return [Figure(file_name(name), drawing) for name, drawing in drawings.items() if drawing is not None]


def all_figures(sections: Sequence[Section]) -> list[Figure]:
    """Return the figures of a page in order; names that occur twice are numbered."""
    seen: dict[str, int] = {}
    figures = []
    groups = [group for section in sections for group in section.groups]
    drawn = (one for group in groups for one in (*group.figures, *(explorer.figure for explorer in group.explorers)))
    for figure in drawn:
        seen[figure.name] = seen.get(figure.name, 0) + 1
        suffix = f"-{seen[figure.name]}" if seen[figure.name] > 1 else ""
        figures.append(Figure(figure.name + suffix, figure.drawing))
    return figures


def file_name(text: str) -> str:
    """Return ``text`` as a file name of lower-case letters, digits and hyphens; "x" where nothing is left."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"
