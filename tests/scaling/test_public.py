"""What twoscale.scaling offers, the registry of questions, and the command line's words for them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

import twoscale.scaling
from twoscale._cli.scale import _link, scale_command
from twoscale.errors import ConfigurationError, ForecastError, UnknownNameError
from twoscale.scaling import GivenLink, Link, Study, load_study
from twoscale.scaling._questions import forecast
from twoscale.scaling._questions.answers import plain
from twoscale.scaling._questions.communication import CommunicationAnswer
from twoscale.scaling._questions.forecast import measured_steps
from twoscale.scaling._questions.registry import ANSWERED, DEFAULT_SECTIONS, SECTIONS
from twoscale.scaling._questions.results import StudyResults

RECORD = Path(__file__).parents[2] / "docs" / "scaling-study.json"


@pytest.fixture(scope="module")
def study() -> Study:
    return load_study(RECORD)


def test_every_public_name_is_there() -> None:
    assert twoscale.scaling.__all__ == sorted(twoscale.scaling.__all__)
    for name in twoscale.scaling.__all__:
        assert getattr(twoscale.scaling, name).__module__.startswith("twoscale.scaling.")
    with pytest.raises(AttributeError, match="has no attribute 'load_studies'"):
        getattr(twoscale.scaling, "load_studies")  # noqa: B009


def test_tables_and_charts_show_themselves(study: Study) -> None:
    for section in ("summary", *study.results.config.sections):
        assert all("<table" in table._repr_html_() for table in study.tables(section))
        assert all(ElementTree.fromstring(chart._repr_svg_()).tag.endswith("svg") for chart in study.charts(section))
        assert study.sentence(section)
        for shown in (*study.tables(section), *study.charts(section)):
            assert len(repr(shown)) < 600
        assert dataclasses.is_dataclass(study.answer(section))
    with pytest.raises(UnknownNameError, match="unknown section 'speedups': did you mean 'speedup'"):
        study.tables("speedups")


def test_a_table_and_a_chart_in_a_terminal_are_one_line(study: Study) -> None:
    table, chart = study.tables("sampler")[0], study.charts("sampler")[0]
    assert repr(table) == "<table of 3 rows: 12 images without set_epoch>"
    assert repr(chart).startswith("<chart: Share of images in the place they have in the first epoch: ")
    assert "\n" not in repr([table, chart])


def test_a_forecast_of_ones_own(study: Study) -> None:
    assert study.forecast(4).world_size == 4
    with pytest.raises(ForecastError, match="no collective was timed over 'wire'"):
        study.forecast(4, link=Link("wire"))


def test_no_two_questions_share_a_field(study: Study) -> None:
    fields = [field.name for question in ANSWERED for field in dataclasses.fields(question.record)]
    fields += [field.name for field in dataclasses.fields(StudyResults)]
    assert [name for name, count in Counter(fields).items() if count > 1] == []
    assert set(plain(study.results)) == set(fields) - {"answers"}


def test_the_help_names_every_question_in_order() -> None:
    text = " ".join((scale_command.__doc__ or "").split())
    assert (
        f"Questions to answer: {', '.join(SECTIONS)}, or their numbers 1 to {len(SECTIONS)}. "
        f"Default: 1 to {len(DEFAULT_SECTIONS)}."
    ) in text


@pytest.mark.parametrize(
    ("text", "latency", "rate"),
    [("50us,10Gbit", 5e-5, 1.25e9), ("1.5ms,100Mbit/s", 1.5e-3, 1.25e7), ("0s,8kbit", 0.0, 1e3)],
)
def test_a_link_on_the_command_line(text: str, latency: float, rate: float) -> None:
    found = _link(text)
    assert (found.latency, found.bytes_per_second) == pytest.approx((latency, rate))


@pytest.mark.parametrize("text", ["10Gbit", "50us", "50us,10GB", "50us,", "-1us,1Gbit", "1us,0Gbit"])
def test_a_link_that_is_none(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"link"):
        _link(text)


def test_steps_over_a_given_link(study: Study) -> None:
    found = study.results.of(CommunicationAnswer)
    steps = measured_steps(study.results.config, found.arms, found.bandwidth)
    config = dataclasses.replace(study.results.config, link=GivenLink(5e-5, 1.25e9))
    answer = forecast._forecasts(config, steps)
    assert [one.world_size for one in answer.given_link] == [2, 4, 8, 16]
    assert forecast._forecasts(study.results.config, steps).given_link == ()
    shown = Study(dataclasses.replace(study.results, config=config).changed(answer)).tables("forecast")
    assert "Over a link of 50 µs and 10000 Mbit/s, as given and not measured" in shown[-1].table.caption
