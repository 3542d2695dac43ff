"""A self-contained page: sections of sentences, charts and tables, in light and dark."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from twoscale._environment import Environment
from twoscale._page.charts import DARK, LIGHT, Drawing, palette_variables, style_rules
from twoscale._page.tables import Table

__all__ = ["Figure", "Group", "Section", "all_figures", "figure", "file_name", "render_page", "table_html"]


@dataclass(frozen=True)
class Figure:
    """A chart with the name of its file, without the ending."""

    name: str
    drawing: Drawing


@dataclass(frozen=True)
class Group:
    """Part of a section: findings, charts and tables that belong together."""

    title: str = ""
    findings: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    level: int = 3
    """Of the heading: 3 for a network, 4 for a scheme of it."""


@dataclass(frozen=True)
class Section:
    """One question of the lab: how to read the answer, then the answer."""

    id: str
    title: str
    intro: Sequence[str]
    groups: Sequence[Group]
    lead: str = ""
    """The answer in a sentence, above everything else."""
    findings: Sequence[str] = ()


def render_page(title: str, subtitle: str, sections: Sequence[Section], environment: Environment, source: str) -> str:
    """Return a self-contained page: no scripts, no requests, light and dark.

    Args:
        title: of the page.
        subtitle: under it.
        sections: in order; the first has the id "summary".
        environment: where the numbers were made.
        source: name of the file beside the page that holds them.
    """
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            title=title,
            subtitle=subtitle,
            sections=sections,
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
    return _environment().get_template("fragment.html.jinja").render(table=table).strip()


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("twoscale._page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["relative_url"] = _relative_url
    environment.filters["unbroken"] = _unbroken
    return environment


def _relative_url(name: str) -> str:
    """Return a link to a file beside the page; never one with a scheme."""
    return "./" + quote(name.lstrip("/"))


def _unbroken(sentence: str) -> str:
    """Return ``sentence`` with no line break between a number and its unit."""
    return re.sub(r"(?<=\d) (?=%|dB|bits|points)", "\N{NO-BREAK SPACE}", sentence)


def all_figures(sections: Sequence[Section]) -> list[Figure]:
    """Return the charts of the page, with names that are unique."""
    taken: dict[str, int] = {}
    figures = []
    for figure in (f for section in sections for group in section.groups for f in group.figures):
        taken[figure.name] = taken.get(figure.name, 0) + 1
        suffix = f"-{taken[figure.name]}" if taken[figure.name] > 1 else ""
        figures.append(Figure(figure.name + suffix, figure.drawing))
    return figures


def file_name(*parts: str) -> str:
    """Return a file name of lower-case letters, digits and hyphens."""
    return "-".join(re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-") or "x" for part in parts)


def figure(drawing: Drawing | None, *name: str) -> list[Figure]:
    """Return the chart under a file name made of ``name``, in a list that is empty if there is no chart."""
    return [] if drawing is None else [Figure(file_name(*name), drawing)]
