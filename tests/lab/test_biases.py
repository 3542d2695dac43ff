"""Wrong biases and worked outputs of a small network, against integers computed one by one."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from tests.quantization.small_models import accumulating, images, residual_model, small_cnn
from twoscale._calibration.profile import profile
from twoscale._frontends.torch_export.capture import capture
from twoscale._ir import float_graph as g
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._lab.biases import bias_integers, half_way_stages, units_without_requantization, wrong_bias_stages
from twoscale._lab.judge import Judge
from twoscale._lab.observed import pooled_summaries, weight_noise
from twoscale._lab.weight_ranges import METHODS, clip_curves, compare_methods
from twoscale._lab.worked import layer_scales, worked_output
from twoscale._passes.fold import fold
from twoscale._quantization import COURSE, DEFAULT, Scheme, quantize_graph
from twoscale._quantization.simulate import has_bias

PIXELS = images(71, 60)
LABELS = (np.arange(60) % 4).astype(np.uint8)


def made(model: nn.Module, how: Scheme) -> tuple[g.FloatGraph, IntegerNetwork, Judge]:
    graph = fold(capture(model, torch.from_numpy(PIXELS[:1])), join_residuals=how.join_residuals)
    return graph, quantize_graph(graph, profile(graph, [PIXELS]), how), Judge(graph, [(PIXELS, LABELS)])


def test_units_are_products_of_the_weight_scales() -> None:
    graph, network, _ = made(small_cnn(1), COURSE)
    units = units_without_requantization(graph, network)
    assert units is not None
    product = 1.0
    for layer in accumulating(network):
        node = graph[layer.name]
        weight = node.weight_oihw if isinstance(node, g.Conv2d) else node.weight_oi  # type: ignore[attr-defined]
        product *= float(np.abs(weight).max()) / 127  # minmax, one scale per layer
        assert units[layer.name] == pytest.approx(product, rel=1e-6)


def test_no_unit_without_one_product() -> None:
    graph, network, _ = made(residual_model(3), COURSE)
    assert units_without_requantization(graph, network) is None  # two ways to the sum
    graph, network, judge = made(small_cnn(1), DEFAULT)
    assert units_without_requantization(graph, network) is None  # a scale per channel
    assert half_way_stages(graph, network, judge) == ()


def test_a_scaled_bias_gives_the_classes_of_quantized_weights() -> None:
    from twoscale._ir.float_module import GraphModule
    from twoscale._quantization.simulate import with_weights_quantized

    graph, network, judge = made(small_cnn(2), COURSE)
    unscaled, without, scaled = half_way_stages(graph, network, judge)
    expected = judge.run(GraphModule(with_weights_quantized(graph, network))).argmax(1)
    assert scaled.agreement == (expected == judge.float_logits.argmax(1)).mean()
    assert [row.stage for row in (unscaled, without, scaled)] == [
        "weights-unscaled", "weights-without", "weights-scaled",
    ]  # fmt: skip
    assert all(row.sqnr_db is None for row in (unscaled, without, scaled))  # in other units than the float logits


@pytest.mark.parametrize("how", [DEFAULT, COURSE], ids=["default", "course"])
def test_wrong_biases_are_those_of_the_names(how: Scheme, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, network, judge = made(small_cnn(3), how)
    seen: list[IntegerNetwork] = []
    run = judge.run_integers

    def recording(wrong: IntegerNetwork) -> NDArray[np.float32]:
        seen.append(wrong)
        return run(wrong)

    monkeypatch.setattr(judge, "run_integers", recording)
    rows = wrong_bias_stages(graph, network, judge)
    assert [row.stage for row in rows] == ["unscaled", "stretched"]
    unscaled, stretched = seen
    for right, plain, large in zip(accumulating(network), accumulating(unscaled), accumulating(stretched), strict=True):
        assert list(plain.bias_o) == [round(float(value)) for value in graph[right.name].bias_o]  # type: ignore[attr-defined]
        if right.bias_o.any():
            top = int(np.abs(large.bias_o.astype(np.int64)).max())
            assert 2**31 - 2**24 < top < 2**31
            factor = top / np.abs(right.bias_o.astype(np.int64)).max()
            np.testing.assert_allclose(large.bias_o, right.bias_o * factor, atol=factor)
        assert np.array_equal(large.weight, right.weight)


def test_networks_without_biases_have_no_wrong_ones() -> None:
    graph, network, judge = made(small_cnn(4, bias=False), COURSE)
    assert not has_bias(graph)
    assert wrong_bias_stages(graph, network, judge) == half_way_stages(graph, network, judge) == ()


@pytest.mark.parametrize("how", [DEFAULT, COURSE], ids=["default", "course"])
def test_bias_integers_are_the_reals_in_their_units(how: Scheme) -> None:
    plain = dataclasses.replace(how, bias_correction=False)
    graph, network, _ = made(small_cnn(5), plain)
    for record in bias_integers(graph, network):
        units = record.units * (1 if len(record.units) > 1 else len(record.reals))
        assert record.integers == tuple(
            round(Fraction(real) / Fraction(unit)) for real, unit in zip(record.reals, units, strict=True)
        )


@pytest.mark.parametrize("how", [DEFAULT, COURSE], ids=["default", "course"])
def test_the_worked_output_is_computed_one_by_one(how: Scheme) -> None:
    graph, network, _ = made(small_cnn(6), how)
    one = worked_output(graph, network, PIXELS[0])
    assert one is not None
    layer = next(x for x in network if x.name == one.layer)
    assert isinstance(layer, n.Conv2d)
    from twoscale._runtimes import create

    x = create("reference", network).run(PIXELS[:1], [layer.inputs[0]])[layer.inputs[0]][0].astype(int)
    zero = network.spec(layer.inputs[0]).zero_point
    channel, row, column = one.index
    _, kernel_h, kernel_w = layer.weight.shape[1:]
    patch = x[:, row : row + kernel_h, column : column + kernel_w]
    total = sum(
        (int(value) - zero) * int(weight) for value, weight in zip(patch.flat, layer.weight[channel].flat, strict=True)
    )
    assert one.accumulator == total + int(layer.bias_o[channel])
    assert one.bias == layer.bias_o[channel]
    rounded = round(Fraction(one.accumulator) * Fraction(one.multiplier))
    assert one.output == min(max(rounded + one.zero_point, one.lo), one.hi)
    assert one.multiplier == pytest.approx(one.x_scale * one.weight_scale / one.y_scale, rel=1e-6)
    assert (one.numerator is not None) == network.on_grid
    if one.numerator is not None:
        assert Fraction(one.numerator, 65536) == Fraction(one.multiplier)
    scales = {record.layer: record for record in layer_scales(network)}[one.layer]
    assert one.multiplier in scales.multipliers
    assert one.weight_scale in scales.weight_scales


def test_clipped_weights_are_counted() -> None:
    graph, _, judge = made(small_cnn(7), COURSE)
    for curve in clip_curves(graph, judge):
        node = graph[curve.layer]
        weight = (node.weight_oihw if isinstance(node, g.Conv2d) else node.weight_oi).astype(np.float64)  # type: ignore[attr-defined]
        for point in curve.points:
            scale = point.clip / 127
            assert point.clipped == np.mean(np.abs(weight) > 127.5 * scale)
            error = np.clip(np.rint(weight / scale), -127, 127) * scale - weight
            assert point.sqnr_db == pytest.approx(10 * np.log10((weight**2).sum() / (error**2).sum()), abs=1e-6)
        assert curve.points[0].clipped == 0
        assert [point.clip for point in curve.points] == sorted((p.clip for p in curve.points), reverse=True)
        assert curve.points[0].top1 is not None


def test_the_accuracy_of_a_clip_range_is_that_of_the_whole_network() -> None:
    """Only the layers after the clipped one are computed; the result is what all of them give."""
    from twoscale._ir.float_module import GraphModule
    from twoscale._quantization.simulate import weight_of, with_weights

    graph, _, judge = made(small_cnn(8), COURSE)
    for curve in clip_curves(graph, judge):
        point = curve.points[-4]
        weight = weight_of(graph[curve.layer]).astype(np.float64)
        scale = point.clip / 127
        rounded = np.clip(np.rint(weight / scale), -127, 127) * scale
        logits = judge.run(GraphModule(with_weights(graph, {curve.layer: rounded})))
        assert point.top1 == (logits.argmax(1) == LABELS).mean()


def test_every_method_is_compared() -> None:
    graph, _, judge = made(small_cnn(9), COURSE)
    results = compare_methods(graph, judge)
    assert [one.method for one in results] == list(METHODS)
    minmax = results[0]
    assert minmax.clipped == 0
    assert all(one.clipped >= 0 for one in results)
    assert max(results, key=lambda one: one.sqnr_db or 0).method == "mse"  # it minimizes just that


def test_noise_of_one_layer_at_a_time() -> None:
    graph, network, _ = made(small_cnn(10), DEFAULT)
    records = weight_noise(graph, network, PIXELS, network)
    assert [record.layer for record in records] == [layer.name for layer in accumulating(network)]
    for record in records:
        assert (record.weights_db, record.output_db) == (record.nearest_weights_db, record.nearest_output_db)
        assert record.output_db is not None
        assert 20 < record.output_db < 80


def test_pooled_outputs_are_the_largest_of_each_window() -> None:
    from twoscale._ir.float_module import GraphModule

    graph, _, _ = made(small_cnn(11), COURSE)
    (pool,) = [node for node in graph if isinstance(node, g.MaxPool2d)]
    seen: dict[str, torch.Tensor] = {}
    GraphModule(graph).run(torch.from_numpy(PIXELS), lambda node, value: seen.__setitem__(node.name, value))
    (summary,) = pooled_summaries(graph, [PIXELS])
    assert summary.name == pool.inputs[0]
    assert summary.mean == pytest.approx(seen[pool.name].double().mean().item())
    assert summary.mean > seen[pool.inputs[0]].double().mean().item()
