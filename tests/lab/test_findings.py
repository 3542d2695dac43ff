from __future__ import annotations

import math
from dataclasses import replace

import pytest

from twoscale._lab import findings
from twoscale._lab.changes import change
from twoscale._lab.records import LabNetwork, LabResults, StageResult

BOTH = ("course", "default")


def _changed(results: LabResults, stage: str, scheme: str, **values: object) -> LabResults:
    """Return ``results`` with other ``values`` in one stage of the last network."""
    *others, network = results.networks
    stages = tuple(
        replace(one, **values) if (one.stage, one.scheme) == (stage, scheme) else one  # type: ignore[arg-type]
        for one in network.stages
    )
    return replace(results, networks=(*others, replace(network, stages=stages)))


def _stage(top1: float, agreement: float | None = None, samples: int = 1000) -> StageResult:
    return StageResult("n", "s", "integer", "t", samples, top1, agreement)


def test_chance_is_two_standard_errors_of_the_paired_difference() -> None:
    one = change(_stage(0.49, agreement=0.96), _stage(0.5))
    assert one.points == pytest.approx(-1.0)
    assert one.images == -10
    assert one.chance == pytest.approx(100 * 2 * math.sqrt(0.04 / 1000))
    assert not one.significant
    assert not one.lost


def test_a_loss_beyond_chance_is_a_loss() -> None:
    one = change(_stage(0.40, agreement=0.9), _stage(0.5))
    assert one.lost
    assert not change(_stage(0.6, agreement=0.9), _stage(0.5)).lost


def test_without_agreement_any_fewer_is_a_loss() -> None:
    assert change(_stage(0.499), _stage(0.5)).lost
    assert not change(_stage(0.5), _stage(0.5)).lost


def test_the_verdict_when_nothing_is_lost(results: LabResults) -> None:
    assert findings.headline(results) == "All in integers, no network loses more accuracy than chance explains."
    first = findings.verdict(results)[0]
    assert first == (
        "Net, scheme “course”: top-1 53.91 % all in integers, 54.21 % in float: "
        "−0.30 points (30 images), within the ±0.30 that chance explains."
    )


def test_the_verdict_follows_a_collapse(results: LabResults) -> None:
    bad = _changed(results, "integer", "default", top1=0.1, agreement=0.12)
    assert findings.headline(bad) == (
        "All in integers, NetWithBias (default) loses more accuracy than chance explains; "
        "Net (course), Net (default) and NetWithBias (course) do not."
    )
    assert "10.00 % all in integers, 54.68 % in float: −44.68 points (4,468 images), more than" in " ".join(
        findings.verdict(bad)
    )


def test_the_verdict_reports_a_gain(results: LabResults) -> None:
    good = _changed(results, "integer", "default", top1=0.6)
    assert "NetWithBias (default) gains more than chance explains" in findings.headline(good)


def test_no_difference_at_all(results: LabResults) -> None:
    same = _changed(results, "integer", "default", top1=0.5468)
    assert "54.68 % in float: no image more and none fewer." in " ".join(findings.verdict(same))


def test_an_empty_record_has_a_verdict(results: LabResults) -> None:
    empty = replace(results, networks=())
    assert findings.headline(empty) == "No network was run all in integers."
    assert findings.verdict(empty) == []


def test_the_promise_of_the_grid_is_checked(results: LabResults) -> None:
    text = " ".join(findings.verdict(results))
    assert "On the 65536ths grid, 0 of 191,800,000 integers differ between executors, as promised." in text
    assert "Off the grid, 28 of 191,800,000 integers differ" in text
    network = results.networks[0]
    broken = replace(network.verify["default"], mismatches=3)
    faulty = replace(results, networks=(replace(network, verify={"default": broken}),))
    assert "3 of 95,900,000 integers differ between executors, though none should: this is a fault." in " ".join(
        findings.verdict(faulty)
    )


def test_the_lesson_of_the_bias(results: LabResults) -> None:
    lost, *_ = findings.bias_findings(results.networks[1], BOTH)
    assert lost == (
        "Scheme “course”: float 54.68 %; bias left in real units 53.02 % (−1.66 points (166 images), more than "
        "the ±0.60 that chance explains); everything in integers 54.45 % (−0.23 points (23 images), within the "
        "±0.31 that chance explains). The unscaled bias is what costs accuracy: brought to the accumulator's "
        "units, it costs none."
    )


@pytest.mark.parametrize(
    ("real", "integer", "lesson"),
    [
        (0.30, 0.30, "Accuracy is lost both ways, so the bias is not the only cause."),
        (0.5468, 0.30, "Here the loss is not the bias's: it appears once everything is in integers."),
        (0.5468, 0.5468, "In this network the bias is too small for its units to show in the accuracy."),
    ],
)
def test_the_lesson_follows_the_numbers(results: LabResults, real: float, integer: float, lesson: str) -> None:
    changed = _changed(results, "bias-real", "course", top1=real)
    changed = _changed(changed, "integer", "course", top1=integer)
    assert findings.bias_findings(changed.networks[1], BOTH)[0].endswith(lesson)


def test_no_bias_no_lesson(results: LabResults) -> None:
    assert findings.bias_findings(results.networks[0], BOTH) == []


def test_the_loss_rises_falls_or_is_one_number(results: LabResults) -> None:
    network = results.networks[0]
    for losses, words in (
        (((10, 2.0), (20, 1.0)), "the loss fell from 2.000 to 1.000 over 20 mini-batches"),
        (((10, 1.0), (20, 2.0)), "the loss rose from 1.000 to 2.000 over 20 mini-batches"),
        (((10, 2.0), (20, 0.00042)), "the loss fell from 2.00000 to 0.00042 over 20 mini-batches"),
        (((10, 1.0),), "the mean loss was 1.000 over 10 mini-batches"),
    ):
        (text,) = findings.loss_finding(replace(results, networks=(replace(network, train_loss=losses),)))
        assert text == f"Net: {words}; top-1 on the test images 54.21 %."
    assert findings.loss_finding(replace(results, networks=(replace(network, train_loss=()),))) == []


def test_weights_that_reach_beyond_three_sigma(results: LabResults) -> None:
    network = results.networks[0]
    (text,) = findings.weight_findings(network)
    ratios = {one.name: (one.max - one.min) / (6 * one.std) for one in network.weights}
    worst = max(ratios, key=ratios.__getitem__)
    assert f"{ratios[worst]:.2f} times as wide as the 3-sigma range in {worst} (most)" in text
    assert f"{sum(ratio > 1 for ratio in ratios.values())} of 5 tensors" in text


def test_zeros_are_counted_over_all_layers(results: LabResults) -> None:
    network = results.networks[0]
    layers = [one for one in network.activations if one.name != "input"]
    share = 100 * sum(one.zeros for one in layers) / sum(one.count for one in layers)
    assert findings.activation_findings(network)[0].startswith(f"{share:.1f} % of all layer outputs are exact zeros")


def test_the_tensor_that_uses_least_of_its_integers_is_named(results: LabResults) -> None:
    network = results.networks[0]
    text = " ".join(findings.activation_range_findings(network, ("course",)))
    assert "uses the smallest part of its integers, 0 to 127 of −127 to 127; the noisiest tensor is " in text
    full = tuple(replace(one, seen_lo=one.lo, seen_hi=one.hi) for one in network.ranges["course"])
    text = " ".join(findings.activation_range_findings(replace(network, ranges={"course": full}), ("course",)))
    assert "every tensor reaches both ends of its integers; the noisiest tensor is " in text


def test_integers_outside_their_range_are_a_fault(results: LabResults) -> None:
    network = results.networks[0]
    assert findings.weight_range_findings(network, BOTH)[-1] == (
        "In all 10 quantized tensors, every integer is inside its allowed range."
    )
    first, *rest = network.ranges["course"]
    bad = replace(network, ranges={"course": (replace(first, seen_lo=-128), *rest)})
    assert findings.weight_range_findings(bad, BOTH)[-1] == (
        "Integers outside their allowed range occurred in conv1 (course): this is a fault."
    )


def _with_bound(network: LabNetwork, bound: int) -> LabNetwork:
    check = network.verify["default"]
    first, second, *rest = check.layers
    layers = (first, replace(second, accumulator_bound=bound), *rest)
    return replace(network, verify={"default": replace(check, layers=layers)})


@pytest.mark.parametrize(
    ("bound", "words"),
    [
        (2**24 - 1, "all are below 2²⁴, so even float32 computes them exactly."),
        (2**24, "beyond 2²⁴, where float32 is no longer exact, is conv1."),
        (2**31, "it does not fit into 32 bits."),
    ],
)
def test_bounds_are_compared_with_what_holds_them(results: LabResults, bound: int, words: str) -> None:
    (text,) = findings.verify_findings(_with_bound(results.networks[0], bound), BOTH)
    assert text.endswith(words)
    assert f"{bound:,}" in text


def test_verify_tells_where_executors_part(results: LabResults) -> None:
    course, default = findings.verify_findings(results.networks[0], BOTH)
    assert "14 of 95,900,000 integers differ between reference and torch over 10,000 images" in course
    assert "First difference: fc1, image 713, index (64,): expected 37, found 38." in course
    assert "0 of 95,900,000 integers differ" in default
    assert "First difference" not in default


def test_values_that_are_no_allowed_integers_are_a_fault(results: LabResults) -> None:
    network = results.networks[0]
    check = network.verify["default"]
    first, *rest = check.layers
    bad = replace(network, verify={"default": replace(check, layers=(replace(first, outside=2), *rest))})
    assert "Values outside the allowed integers occurred in input: this is a fault." in " ".join(
        findings.verify_findings(bad, BOTH)
    )
