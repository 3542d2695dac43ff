"""Ways to run a step, and optimizers: the same weights, a planted slow way, and accuracies that are learned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests import sweep
from twoscale import models
from twoscale.errors import ConfigurationError
from twoscale.scaling._measure.optimizers import compare_optimizers, without_batch_norm
from twoscale.scaling._measure.records import OptimizerRecord, VariantRecord, Workload, decode
from twoscale.scaling._questions.optimizers import optimizers_table
from twoscale.scaling._questions.variants import variants_table


@pytest.fixture(scope="module")
def alone(measured: Callable[..., Any]) -> dict[str, Any]:
    result: dict[str, Any] = measured("alone", world_size=1)
    return result


def test_ways_to_run_a_step(alone: dict[str, Any]) -> None:
    records = [decode(one, VariantRecord) for one in alone["variants"]]
    found = {one.name: one for one in records}
    assert found["tf32"].message == "on GPUs only"
    assert (found["failing"].step, found["failing"].message) == (None, "planted failure")
    # The small network's forward pass has a view that only the usual layout has.
    assert found["channels_last"].message.startswith("view size is not compatible")
    failed = {"tf32", "failing", "channels_last", "bf16, channels_last"}
    assert {name for name, one in found.items() if one.step is None} == failed
    for name, one in found.items():
        if name in failed:
            continue
        assert one.distance is not None
        # bfloat16 has 8 bits of mantissa; the other ways sum in another order.
        assert one.distance < (1e-2 if "bf16" in name else 1e-5), name
    assert found["bf16"].distance
    assert found["slow"].distance == 0
    assert found["slow"].against_eager is not None
    assert found["slow"].against_eager.median >= 0.06
    rows = {row[0].text: row for row in variants_table(records).rows}
    assert rows["failing"][0].note == "planted failure"


def test_optimizers_learn(alone: dict[str, Any]) -> None:
    records = [decode(one, OptimizerRecord) for one in alone["optimizers"]]
    assert len(records) == (10 if sweep.whole() else 1)
    parameters = 247_080
    for one in records:
        assert [rate for rate, _ in one.tried] == sorted({rate for rate, _ in one.tried})
        assert dict(one.tried)[one.rate] == max(accuracy for _, accuracy in one.tried)
        assert [len(run) for run in one.accuracies] == [1]
    states = {one.name: one.state_bytes for one in records}
    # Adam has two moments and a number of steps for each of five parameters.
    assert states["Adam"] == 2 * parameters + 5 * 4
    if sweep.whole():
        assert (states["SGD"], states["SGD, Nesterov"]) == (0, parameters)
    assert [row[0].text for row in optimizers_table(records).rows] == [one.name for one in records]


def test_a_model_without_batch_norm() -> None:
    model = without_batch_norm(models.create("resnet20"))
    assert not any(isinstance(one, nn.BatchNorm2d) for one in model.modules())
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_optimizers_need_something_to_learn() -> None:
    with pytest.raises(ConfigurationError, match="synthetic, which have nothing to learn"):
        compare_optimizers(Workload(), "resnet20")
    with pytest.raises(ConfigurationError, match="resnet8 has no BatchNorm; expected a model with it"):
        compare_optimizers(Workload(data="digits"), "resnet8")
    with pytest.raises(ConfigurationError, match="0 epochs"):
        compare_optimizers(Workload(data="digits"), "resnet20", epochs=0)
