"""Gradient noise against its closed form, and planted remedies: one that helps, one that harms, a useless one."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from twoscale.errors import ConfigurationError
from twoscale.scaling._measure import large_batch
from twoscale.scaling._measure.large_batch import Remedy, compare_remedies, gradient_noise, measure_large_batch
from twoscale.scaling._measure.records import LargeBatchRecord, Workload
from twoscale.scaling._measure.statistics import summarize
from twoscale.scaling._measure.trials import ImageSet
from twoscale.scaling._questions.answers import read_results
from twoscale.scaling._questions.noise import (
    QUESTION,
    NoiseAnswer,
    batches_table,
    losses_plot,
    noise_table,
    remedies_table,
)
from twoscale.scaling._questions.registry import QUESTIONS

CLASSES = 4


def _images(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of four classes around four corners."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    corners = torch.eye(CLASSES)[labels]
    return (corners + 0.3 * torch.randn(count, CLASSES, generator=generator)).reshape(count, 1, 2, 2), labels


IMAGES = ImageSet(_images(160, 0), _images(80, 1))
SMALL = Workload(data="digits", batch_size=4, lr=0.1, momentum=0.0)


def _linear(workload: Workload) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(workload.seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(CLASSES, CLASSES))


@pytest.fixture(scope="module")
def record() -> LargeBatchRecord:
    with (
        mock.patch.object(large_batch, "create_model", _linear),
        mock.patch.object(large_batch, "image_sets", return_value=(IMAGES, IMAGES)),
    ):
        return measure_large_batch(SMALL, (4, 40), epochs=1, seeds=3, draws=8)


def test_the_noise_scale_of_a_quadratic_is_its_closed_form() -> None:
    """Of ½‖w − x‖² the gradient is w − x: G is w less the mean of the x, and Σ their covariance."""
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(500, 12, generator=generator, dtype=torch.float64) + torch.linspace(0, 1, 12)
    mean, trace = x.mean(0), ((x - x.mean(0)) ** 2).sum(1).mean().item()
    for small, parts in ((4, 8), (1, 32)):
        found = gradient_noise(lambda chosen: -x[chosen].mean(0), 500, small=small, parts=parts, draws=400)
        assert found.scale is not None
        assert found.interval is not None
        assert found.interval.low < trace / float(mean @ mean) < found.interval.high
        assert found.scale == pytest.approx(trace / float(mean @ mean), rel=0.05)
        assert found.trace == pytest.approx(trace, rel=0.03)
    # Without noise the scale is 0, and without a gradient it is not known.
    same = gradient_noise(lambda chosen: mean, 500, small=4)
    assert same.scale == pytest.approx(0, abs=1e-12)
    balanced = gradient_noise(lambda chosen: (x - mean)[chosen].mean(0), 500, small=4)
    assert balanced.scale is None or balanced.interval is None


def test_the_noise_scale_of_a_network_is_that_of_its_images_gradients() -> None:
    model = _linear(SMALL)
    of = large_batch._gradient(model, IMAGES.train)
    single = torch.stack([of(torch.tensor([i])) for i in range(160)]).double()
    mean = single.mean(0)
    known = float(((single - mean) ** 2).sum(1).mean() / (mean @ mean))
    found = gradient_noise(of, 160, small=4, draws=120)
    assert found.scale == pytest.approx(known, rel=0.1)
    # A planted fault is found: gradients of one image that pass for those of four.
    wrong = gradient_noise(lambda chosen: of(chosen[:1]), 160, small=4, draws=40)
    assert wrong.scale is not None
    assert wrong.scale > 2 * known


def test_planted_remedies_are_judged() -> None:
    planted = (
        Remedy("more of the rate", lambda growth: growth),
        Remedy("no rate", lambda growth: 0.0),
        Remedy("other seeds", shift=500),
        Remedy("too much", lambda growth: math.inf),
    )
    with mock.patch.object(large_batch, "create_model", _linear):
        found = compare_remedies(
            replace(SMALL, batch_size=40), IMAGES, 0.1, epochs=2, seeds=8, growth=10, remedies=planted
        )
    verdicts = {one.name: one.verdict for one in found[1:]}
    assert verdicts == {
        "more of the rate": "better", "no rate": "worse", "other seeds": "not shown", "too much": "diverged"
    }  # fmt: skip
    difference = found[1].difference
    assert difference is not None
    assert difference.mean_interval is not None
    assert difference.mean_interval.coverage == 1 - 0.05 / 4
    assert [one.name for one in found[:1]] == ["nothing changed"]


def test_equal_epochs_and_equal_steps(record: LargeBatchRecord) -> None:
    assert [(run.batch_size, run.equal, run.steps) for run in record.runs] == [
        (4, "epochs", 40), (40, "epochs", 4), (40, "steps", 40)
    ]  # fmt: skip
    small, epochs, steps = (run.losses[0] for run in record.runs)
    assert small is not None
    assert epochs is not None
    assert steps is not None
    # Fewer steps from the same weights end higher; as many less noisy steps end about as low.
    assert steps < 1.1 * small < epochs
    assert [one.epoch for one in record.noise] == [0, 1]
    assert record.rate in dict(record.tried)


def test_the_sentence_and_tables(record: LargeBatchRecord) -> None:
    from benchmarks.scaling_study import RECORD

    study = read_results(RECORD)
    results = study.changed(NoiseAnswer(record))
    text = QUESTION.sentence(results)
    assert text is not None
    assert text.startswith("The gradient noise scale is about ")
    assert "batch 4 ends at a training loss of " in text
    assert text.endswith(" (3 seeds).")
    nothing, *remedies = record.remedies
    unclear = next(one for one in remedies if one.name == "other seeds")
    assert unclear.verdict == "not shown"
    text = QUESTION.sentence(study.changed(NoiseAnswer(replace(record, remedies=(nothing, unclear)))))
    assert "; against nothing changed at batch 40, no remedy is shown to be better or worse (3" in str(text)
    worse = replace(unclear, name="planted", difference=summarize([0.5, 0.6, 0.55]))
    text = QUESTION.sentence(study.changed(NoiseAnswer(replace(record, remedies=(nothing, unclear, worse)))))
    assert "; against nothing changed at batch 40, worse: planted, the others not shown (3" in str(text)
    assert [row[0].text for row in batches_table(record).rows] == ["4", "40", "40"]
    assert len(noise_table(record).rows) == 2
    assert next(row[6].text for row in remedies_table(record).rows) == "–"
    assert losses_plot(record) is not None
    assert QUESTION in QUESTIONS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_sizes": (16,)}, "batch sizes 16, 3 epochs, 5 seeds: expected at least two"),
        ({"batch_sizes": (16, 64), "seeds": 1}, "1 seeds"),
        ({"batch_sizes": (16, 64), "workload": Workload()}, "the data are synthetic, which have nothing to learn"),
    ],
)
def test_what_cannot_be_measured(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        measure_large_batch(**{"workload": SMALL, **options})
