"""Ledgers, memory and weights of the ways to share a step, each against what is known from elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests import sweep
from twoscale._cli.scale import _sections
from twoscale.errors import ConfigurationError
from twoscale.scaling._measure.records import StrategyRecord, decode
from twoscale.scaling._questions.registry import DEFAULT_SECTIONS, SECTIONS
from twoscale.scaling._questions.strategies import strategies_table

NET = 247_080
"""Bytes of the small CNN's parameters."""


@pytest.fixture(scope="module")
def core(measured: Callable[..., Any]) -> dict[str, Any]:
    result: dict[str, Any] = measured("core")
    return result


@pytest.fixture(scope="module")
def found(core: dict[str, Any]) -> dict[str, StrategyRecord]:
    return {one["name"]: decode(one, StrategyRecord) for one in core["strategies"]}


def test_every_ledger_is_as_predicted(found: dict[str, StrategyRecord], core: dict[str, Any]) -> None:
    assert len(found) == (15 if sweep.whole() else 5)
    buffered = [decode(one, StrategyRecord) for one in core["strategies with buffers"]]
    for record in (*found.values(), *buffered):
        assert record.differences == (), record.name
        assert record.observed, record.name


def test_a_planted_difference_is_found(core: dict[str, Any]) -> None:
    one_more, short = (decode(one, StrategyRecord) for one in core["planted strategies"])
    assert one_more.differences == ("update 2: all_reduce of 4 bytes float32 observed, nothing predicted",)
    assert short.differences == (
        "update 7: parameters predicted as broadcast of 1799 bytes float32, observed broadcast of 1800 bytes float32",
    )


def test_what_a_rank_sends_is_known(found: dict[str, StrategyRecord]) -> None:
    """At two ranks a ring's all-reduce sends all bytes once; Rajbhandari et al. 2020: sharding sends half as much
    again."""
    assert found["DDP"].sent() == NET
    assert found["DDP, fp16 gradients"].sent() == NET / 2
    assert found["ZeRO-1"].sent() == found["FSDP2"].sent() == 1.5 * NET
    assert (found["FSDP2"].sent("all_gather"), found["FSDP2"].sent("reduce_scatter")) == (NET, NET / 2)
    # P (n, 2) and Q (m, 2) of each gradient (n, m): conv1, conv2, fc1, fc2, fc3.
    sides = 6 + 75 + 16 + 150 + 120 + 400 + 84 + 120 + 10 + 84
    assert found["DDP, PowerSGD of rank 2"].sent() == 4 * 2 * sides


def test_what_a_rank_holds_is_known(found: dict[str, StrategyRecord]) -> None:
    ddp, zero, fsdp = (found[name].memory for name in ("DDP", "ZeRO-1", "FSDP2"))
    assert (ddp.parameters, ddp.gradients, ddp.optimizer, ddp.buckets) == (NET, NET, NET, NET)
    # The largest parameter, fc1, is more than half of all: one rank has its momentum, the other that of the rest.
    assert (zero.parameters, zero.gradients, zero.optimizer, zero.buckets) == (NET, NET, 120 * 400 * 4, NET)
    assert (fsdp.parameters, fsdp.gradients, fsdp.optimizer, fsdp.buckets) == (NET / 2, NET / 2, NET / 2, 0)
    if sweep.whole():
        assert found["DDP, gradient_as_bucket_view"].memory.total == 3 * NET


def test_exact_strategies_have_ddps_weights(found: dict[str, StrategyRecord]) -> None:
    lossy = {
        "DDP, fp16 gradients",
        "DDP, bf16 gradients",
        "DDP, PowerSGD of rank 2",
        "local SGD, average every 4 steps",
    }
    for name, record in found.items():
        if name in lossy:
            assert 1e-8 < record.distance < 0.1, name
        else:
            assert record.distance < 1e-6, name
        assert len(record.accuracies) == (2 if name in lossy or name == "DDP" else 0)


def test_a_table_says_what_was_not_as_predicted(found: dict[str, StrategyRecord]) -> None:
    ddp = found["DDP"]
    wrong = replace(ddp, name="wrong", differences=("planted",))
    column = [row[5].text for row in strategies_table([ddp, wrong]).rows]
    assert column[:2] == ["yes", "no"]


def test_data_parallel_takes_the_images_of_all_ranks(core: dict[str, Any], found: dict[str, StrategyRecord]) -> None:
    """On a processor, rank 0 computes on the batch of both ranks: DDP's weights, and no collective."""
    record = decode(core["data parallel"], StrategyRecord)
    assert (record.name, record.observed, record.differences) == ("nn.DataParallel", (), ())
    assert 0 < record.distance < 1e-6  # sums of 8 images, and not two of 4
    assert (record.memory.parameters, record.memory.gradients, record.memory.buckets) == (NET, NET, 0)
    without = strategies_table([found["DDP"]]).rows
    assert (without[1][0].text, without[1][0].note) == ("nn.DataParallel", "on GPUs only")
    measured = strategies_table([found["DDP"], record]).rows
    assert [row[0].note for row in measured] == ["", ""]
    assert len(measured) == 2


def test_questions_of_the_command_line() -> None:
    assert _sections(None, False, SECTIONS) is None
    assert _sections(None, True, SECTIONS) == SECTIONS
    assert set(DEFAULT_SECTIONS) < set(SECTIONS)
    assert SECTIONS[: len(DEFAULT_SECTIONS)] == DEFAULT_SECTIONS
    with pytest.raises(ConfigurationError, match="--full answers all questions"):
        _sections("wire", True, SECTIONS)
