"""A study's record, read back: its answers, and tables and charts that notebooks show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twoscale._page.charts import Drawing
from twoscale._page.document import Group, table_html
from twoscale._page.tables import Table
from twoscale.errors import UnknownNameError
from twoscale.scaling._questions.answers import read_results
from twoscale.scaling._questions.communication import CommunicationAnswer
from twoscale.scaling._questions.forecast import link_of, measured_steps, over
from twoscale.scaling._questions.link_model import Link
from twoscale.scaling._questions.registry import ANSWERED, VERDICT
from twoscale.scaling._questions.report import study_sections
from twoscale.scaling._questions.results import StudyResults
from twoscale.scaling._questions.step_forecast import Forecast, forecast

__all__ = ["Chart", "ShownTable", "Study", "load_study"]


@dataclass(frozen=True, repr=False)
class ShownTable:
    """A table that notebooks show as HTML."""

    table: Table

    def __repr__(self) -> str:
        return f"<table of {len(self.table.rows)} rows: {self.table.caption}>"

    def _repr_html_(self) -> str:
        return table_html(self.table)


@dataclass(frozen=True, repr=False)
class Chart:
    """A chart that notebooks show as SVG."""

    drawing: Drawing

    def __repr__(self) -> str:
        return f"<chart: {self.drawing.label}>"

    def _repr_svg_(self) -> str:
        return self.drawing.standalone()


@dataclass(frozen=True)
class Study:
    """A scaling study.

    Sections have the names of the questions on the command line, such as batch or wire; "summary" holds the verdict.
    """

    results: StudyResults
    """The study's configuration, its machine, its sentences, and every answer."""

    def answer(self, section: str) -> Any:
        """Return the numbers of a section: a dataclass, whose documentation names their units.

        Raises:
            UnknownNameError: there is no such section.
        """
        for question in ANSWERED:
            if question.name == section:
                return self.results.of(question.record)
        raise UnknownNameError("section", section, [question.name for question in ANSWERED])

    def sentence(self, section: str) -> str:
        """Return the answer of a section in a sentence; that of "summary" is the verdict.

        Raises:
            UnknownNameError: there is no such section, or it was not asked for.
        """
        known = {VERDICT.name: VERDICT.sentence(self.results) or "", **self.results.sentences}
        if section not in known:
            raise UnknownNameError("section", section, list(known))
        return known[section]

    def tables(self, section: str) -> list[ShownTable]:
        """Return the tables of a section, in the order of the report.

        Raises:
            UnknownNameError: there is no such section.
        """
        return [ShownTable(table) for group in self._groups(section) for table in group.tables]

    def charts(self, section: str) -> list[Chart]:
        """Return the charts of a section, in the order of the report.

        Raises:
            UnknownNameError: there is no such section.
        """
        return [Chart(figure.drawing) for group in self._groups(section) for figure in group.figures]

    def _groups(self, name: str) -> Sequence[Group]:
        sections = {section.id: section for section in study_sections(self.results)}
        if name not in sections:
            raise UnknownNameError("section", name, list(sections))
        return sections[name].groups

    def forecast(self, world_size: int, batch_size: int | None = None, link: Link | None = None) -> Forecast:
        """Forecast a step on ``world_size`` ranks from the steps that the study measured.

        Args:
            world_size: ranks, at least 1.
            batch_size: images per rank; measured, or between two that were. Default: the study's base batch.
            link: Default: the one that the study's ranks on one host used.

        Raises:
            ForecastError: no measurement covers it.
        """
        config, found = self.results.config, self.results.of(CommunicationAnswer)
        link = link or link_of(config)
        steps = over(measured_steps(config, found.arms, found.bandwidth), link)
        return forecast(steps, world_size, batch_size or config.base_batch, link)


def load_study(path: Path | str) -> Study:
    """Read the study.json of a study.

    Raises:
        TwoscaleError: the file is missing, or it holds no study.
    """
    return Study(read_results(Path(path)))
