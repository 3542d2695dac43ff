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
    assert findings.headline(results) == "All in integers, no network loses a significant part of its accuracy."
    first = findings.verdict(results)[0]
    assert first == (
        "Net, scheme “course”: top-1 53.91 % all in integers, 54.21 % in float: "
        "−0.30 points (30 images), not significant (two standard errors: 0.30)."
    )


def test_the_verdict_follows_a_collapse(results: LabResults) -> None:
    bad = _changed(results, "integer", "default", top1=0.1, agreement=0.12)
    assert findings.headline(bad) == (
        "All in integers, NetWithBias (default) loses accuracy; "
        "the change of Net (course), Net (default) and NetWithBias (course) is not significant."
    )
    assert "10.00 % all in integers, 54.68 % in float: −44.68 points (4,468 images), significant (" in " ".join(
        findings.verdict(bad)
    )


def test_the_verdict_reports_a_gain(results: LabResults) -> None:
    good = _changed(results, "integer", "default", top1=0.6)
    assert "; NetWithBias (default) gains accuracy." in findings.headline(good)


def test_no_difference_at_all(results: LabResults) -> None:
    same = _changed(results, "integer", "default", top1=0.5468)
    assert "54.68 % in float: no difference." in " ".join(findings.verdict(same))


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


def _changed_bias(results: LabResults, key: str, **values: object) -> LabNetwork:
    """Return the last network with other ``values`` in one row of a wrong bias, scheme course."""
    network = results.networks[-1]
    rows = tuple(
        replace(one, **values) if (one.stage, one.scheme) == (key, "course") else one  # type: ignore[arg-type]
        for one in network.bias_stages
    )
    assert rows != network.bias_stages
    return replace(network, bias_stages=rows)


def test_the_lesson_of_the_bias(results: LabResults) -> None:
    lost, *_ = findings.bias_findings(results.networks[1], BOTH)
    assert lost == (
        "Scheme “course”, all integer: float 54.68 %; bias unscaled 53.02 % (−1.66 points (166 images), significant "
        "(two standard errors: 0.68)); bias scaled, that is divided by s_x·s_w, 54.45 % (−0.23 points (23 images), "
        "not significant (two standard errors: 0.31)). The unscaled bias costs accuracy; the scaled one costs nothing "
        "significant. Stretched to the full range of int32: 10.00 % (−44.68 points (4,468 images), significant (two "
        "standard errors: 1.83)); the unit of a bias cannot be chosen."
    )
    harmless = findings.bias_findings(_changed_bias(results, "stretched", top1=0.5468), ("course",))[0]
    assert harmless.endswith("Stretched to the full range of int32: 54.68 % (no difference).")


@pytest.mark.parametrize(
    ("wrong", "integer", "lesson"),
    [
        (0.30, 0.30, "Accuracy is lost both ways, so the bias is not the only cause. "),
        (0.5468, 0.30, "The bias is not the cause of the loss: it appears only with the bias scaled. "),
        (0.5468, 0.5468, "In this network the bias is too small for its unit to show in the accuracy. "),
    ],
)
def test_the_lesson_follows_the_numbers(results: LabResults, wrong: float, integer: float, lesson: str) -> None:
    changed = replace(results, networks=(_changed_bias(results, "unscaled", top1=wrong),))
    changed = _changed(changed, "integer", "course", top1=integer)
    assert lesson in findings.bias_findings(changed.networks[0], BOTH)[0]


def test_integer_weights_without_requantization(results: LabResults) -> None:
    network = results.networks[1]
    assert findings.half_way_findings(network, BOTH) == [
        "Scheme “course”, integer weights only: nothing is requantized, so the last sums count in units of the product "
        "of all weight scales, 3.7e−13. With the bias unscaled, top-1 is 49.70 %; with no bias at all 49.70 %; with "
        "the bias divided by that product 54.61 % (float 54.68 %). Unscaled, the bias has no effect on the accuracy: "
        "it is far below the sums. Scaled, it costs nothing significant."
    ]
    (other,) = findings.half_way_findings(_changed_bias(results, "weights-without", top1=0.30), BOTH)
    assert other.endswith(
        "Unscaled, the bias still has an effect, but in the wrong unit. Scaled, it costs nothing significant."
    )
    (lost,) = findings.half_way_findings(_changed_bias(results, "weights-scaled", top1=0.30), BOTH)
    assert lost.endswith("it is far below the sums.")
    (large,) = findings.half_way_findings(replace(network, product_of_scales=0.5), ("course",))
    assert " Unscaled, the bias has no effect on the accuracy. Scaled, it costs nothing significant." in large
    assert findings.half_way_findings(replace(network, product_of_scales=None), BOTH) == []


def test_biases_that_bias_correction_adds(results: LabResults) -> None:
    network = results.networks[1]
    (text,) = findings.bias_correction_findings(network, "default")
    every = [value for one in network.biases["default"] for value in one.integers]
    assert text == (
        "Scheme “default”: bias correction gives biases to conv1, conv2, fc1 and fc2, which have none in float. Of the "
        f"{len(every)} biases of the integer network, {sum(map(bool, every))} are not 0."
    )
    assert findings.bias_correction_findings(network, "course") == []


def test_the_methods_are_ranked_by_what_the_logits_lose(results: LabResults) -> None:
    network = results.networks[0]
    first, second = findings.method_findings(network)
    assert first == (
        "With one scale per layer, mse disturbs the logits least (36.5 dB) and 3-sigma most (28.2 dB); with none of "
        "the methods the loss of accuracy is significant."
    )
    assert second.startswith("A range narrower than the widest gives the weights a higher SQNR in 5 of 5 layers; ")
    methods = tuple(
        replace(one, top1=0.3, logit_sqnr_db=50.0) if one.method == "3-sigma" else one for one in network.methods
    )
    text = findings.method_findings(replace(network, methods=methods))[0]
    assert text == (
        "With one scale per layer, 3-sigma disturbs the logits least (50.0 dB) and entropy most (31.6 dB); accuracy is "
        "lost with 3-sigma."
    )


def test_where_a_narrower_range_is_better(results: LabResults) -> None:
    network = results.networks[0]

    def clips(*gains: float) -> LabNetwork:
        """Return the network with curves whose second point gains so many dB on the first."""
        curves = []
        for curve, gain in zip(network.clips, gains, strict=False):
            widest, second, *_ = curve.points
            points = (replace(widest, clip=1.0, sqnr_db=40.0), replace(second, clip=0.75, sqnr_db=40.0 + gain))
            curves.append(replace(curve, points=points))
        return replace(network, clips=tuple(curves))

    assert findings.method_findings(clips(1.5, -1.0, 0.0))[1] == (
        "A range narrower than the widest gives the weights a higher SQNR in 1 of 3 layers; the gain is largest in "
        "conv1, 1.5 dB at 75 % of the largest weight."
    )
    assert findings.method_findings(clips(-1.5, 0.0))[1] == (
        "In no layer does a range narrower than the widest give the weights a higher SQNR."
    )


def test_what_error_feedback_does(results: LabResults) -> None:
    network = results.networks[0]
    start = (
        "Error feedback rounds weights so that their errors cancel in the output. Compared with rounding each weight "
        "to the nearest integer, the SQNR of the weights is lower in "
    )
    assert findings.feedback_findings(network, "default") == [
        f"{start}5 of 5 layers, and that of the output is higher in 5 of 5 (+5.5 dB on average): the output is what "
        "counts."
    ]
    assert findings.feedback_findings(network, "course") == []
    good, bad = network.noise["default"][0], replace(network.noise["default"][1], weights_db=44.0, output_db=41.6)
    mixed = replace(network, noise={"default": (good, bad)})
    assert findings.feedback_findings(mixed, "default")[0] == (
        f"{start}1 of 2 layers, and that of the output is higher in 1 of 2 (+2.2 dB on average): it does not help "
        "everywhere."
    )
    useless = replace(network, noise={"default": (bad,)})
    assert findings.feedback_findings(useless, "default")[0] == (
        f"{start}0 of 1 layers, and that of the output is higher in 0 of 1 (−1.0 dB on average): here it does not help."
    )


def test_pooling_raises_lowers_or_keeps_the_mean(results: LabResults) -> None:
    network = results.networks[0]
    means = {"conv1": (0.375, 0.570), "conv2": (0.5, 0.25), "fc1": (0.5, 0.5)}
    activations = tuple(replace(one, mean=means[one.name][0]) for one in network.activations if one.name in means)
    pooled = tuple(replace(one, mean=means[one.name][1]) for one in activations)
    assert findings.pooling_findings(replace(network, activations=activations, pooled=pooled)) == [
        "Pooling raises the mean of conv1 from 0.375 to 0.570, lowers the mean of conv2 from 0.500 to 0.250 and keeps "
        "the mean of fc1 from 0.500 to 0.500: the next layer receives the pooled values."
    ]
    assert findings.pooling_findings(replace(network, pooled=())) == []


def test_the_worked_output_is_recomputed(results: LabResults) -> None:
    network = results.networks[0]
    start = "Scheme “default”, output (1, 2, 3) of conv2: 12,345 · M gives 38"
    (right,) = findings.worked_findings(network, ("default",))
    assert right == f"{start}; that is less than half a step from the float network's value."

    def changed(**values: object) -> LabNetwork:
        return replace(network, worked={"default": replace(network.worked["default"], **values)})  # type: ignore[arg-type]

    assert findings.worked_findings(changed(output=39), ("default",)) == [
        f"{start}, but the network has 39: this is a fault."
    ]
    assert findings.worked_findings(changed(real=1.25), ("default",)) == [
        f"{start}; that is 2.0 steps from the float network's value, since the inputs and the weights are rounded too."
    ]
    assert findings.worked_findings(changed(accumulator=10**9, output=255, real=255 * 0.03125), ("default",))[
        0
    ].endswith("1,000,000,000 · M gives 255; that is less than half a step from the float network's value.")


def test_how_many_bits_are_enough(results: LabResults) -> None:
    network = results.networks[0]
    course, default = findings.bits_findings(network, BOTH)
    assert course == (
        "Scheme “course”: no significant loss of accuracy down to 8 bits; at 4 bits top-1 is 52.00 %, −2.21 points "
        "(221 images), significant (two standard errors: 0.89)."
    )
    assert default.startswith("Scheme “default”: no significant loss of accuracy down to 4 bits; at 2 bits top-1 is ")
    fine = tuple(replace(one, top1=0.5421) for one in network.bits)
    assert findings.bits_findings(replace(network, bits=fine), ("course",)) == [
        "Scheme “course”: no significant loss of accuracy down to 2 bits."
    ]
    bad = tuple(replace(one, top1=0.2) for one in network.bits)
    assert findings.bits_findings(replace(network, bits=bad), ("course",)) == [
        "Scheme “course”: already at 8 bits accuracy is lost, −34.21 points (3,421 images), significant (two standard "
        "errors: 0.35)."
    ]


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
    beyond = [one for one in network.weights if one.min < one.mean - 3 * one.std or one.max > one.mean + 3 * one.std]
    assert text.endswith(f"; {len(beyond)} of 5 tensors have weights beyond 3 sigma.")


def test_one_tail_beyond_three_sigma_is_enough(results: LabResults) -> None:
    """A range narrower than 6 standard deviations may still reach beyond 3 of them on one side."""
    network = results.networks[0]
    lopsided = replace(network.weights[0], mean=0.0, std=1.0, min=-1.0, max=4.4)
    inside = replace(network.weights[1], mean=0.0, std=1.0, min=-2.0, max=3.0)
    assert findings.weight_findings(replace(network, weights=(lopsided, inside))) == [
        "The total range is 0.90 times as wide as the 3-sigma range in conv1 (most) and 0.83 times in conv2 (least); "
        "1 of 2 tensors have weights beyond 3 sigma."
    ]
    constant = replace(inside, std=0.0)
    assert findings.weight_findings(replace(network, weights=(inside, constant))) == [
        "The total range is 0.83 times as wide as the 3-sigma range in conv2; 0 of 1 tensors have weights beyond 3 "
        "sigma."
    ]
    assert findings.weight_findings(replace(network, weights=(constant,))) == []


def test_zeros_are_counted_over_all_layers(results: LabResults) -> None:
    network = results.networks[0]
    layers = [one for one in network.activations if one.name != "input"]
    share = 100 * sum(one.zeros for one in layers) / sum(one.count for one in layers)
    assert findings.activation_findings(network)[0].startswith(f"{share:.1f} % of all layer outputs are exact zeros")


def test_the_tensor_that_uses_least_of_its_integers_is_named(results: LabResults) -> None:
    network = results.networks[0]
    text = " ".join(findings.activation_range_findings(network, ("course",)))
    assert "of all tensors, " in text
    assert " uses the fewest of its integers, 0 to 127 of −127 to 127; the noisiest tensor is " in text
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


def test_zeros_and_outliers_follow_the_numbers(results: LabResults) -> None:
    network = results.networks[0]
    name = network.activations[1].name
    layer = replace(network.activations[1], count=100, zeros=0, mean=1.0, std=0.5, max=2.0)
    assert findings.activation_findings(replace(network, activations=(layer,), pooled=())) == [
        f"0.0 % of all layer outputs are exact zeros: 0.0 % in {name} (most), 0.0 % in {name} (least).",
        f"The largest value lies 2.0 standard deviations above the mean, in {name}.",
    ]
    assert findings.activation_findings(replace(network, activations=())) == []
