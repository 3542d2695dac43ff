"""Folding does not change the function: on graphs by hand, where a pass must or must not apply, and on random
graphs."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from twoscale._ir import float_graph as g
from twoscale._ir.float_module import GraphModule
from twoscale._passes.fold import fold

SHAPE = (3, 6, 6)


def array(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def conv(name: str, source: str, seed: int = 0, **fields: Any) -> g.Conv2d:
    defaults = {"padding": (1, 1, 1, 1), "shape": SHAPE}
    weight = array(3, 3, 3, 3, seed=seed) * np.float32(0.3)
    return g.Conv2d(
        name=name, inputs=(source,), weight_oihw=weight, bias_o=array(3, seed=seed + 1), **{**defaults, **fields}
    )


def affine(name: str, source: str, seed: int = 0, **fields: Any) -> g.ChannelAffine:
    return g.ChannelAffine(
        name=name, inputs=(source,), shape=SHAPE, scale_c=array(3, seed=seed), shift_c=array(3, seed=seed + 1), **fields
    )


def clamp(name: str, source: str, lo: float = 0.0, hi: float = math.inf) -> g.Clamp:
    return g.Clamp(name=name, inputs=(source,), shape=SHAPE, bounds=(lo, hi))


def add(name: str, first: str, second: str, **fields: Any) -> g.Add:
    return g.Add(name=name, inputs=(first, second), shape=SHAPE, **fields)


def graph(*nodes: g.Node, output: str | None = None) -> g.FloatGraph:
    """Nodes after the images, flattened to logits."""
    last = output or nodes[-1].name
    flat = g.Reshape(name="logits", inputs=(last,), shape=(math.prod(SHAPE),))
    images = g.Input(name="input", inputs=(), shape=SHAPE)
    return g.FloatGraph(name="test", nodes=(images, *nodes, flat), outputs=("logits",))


def names(folded: g.FloatGraph) -> list[str]:
    return [node.name for node in folded][1:-1]


def assert_same_function(first: g.FloatGraph, second: g.FloatGraph) -> None:
    x = torch.randn(3, *first.input.shape, generator=torch.Generator().manual_seed(0)) * 3
    expected = GraphModule(first, dtype=torch.float64)(x)
    found = GraphModule(second, dtype=torch.float64)(x)
    # Folded weights are float32, so the difference is theirs.
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max() + 1))


def folded(*nodes: g.Node, output: str | None = None, **options: Any) -> g.FloatGraph:
    original = graph(*nodes, output=output)
    result = fold(original, **options)
    assert_same_function(original, result)
    assert fold(result, **options).nodes == result.nodes, "folding twice is folding once"
    return result


def test_batch_norm_and_relu_go_into_the_convolution() -> None:
    result = folded(conv("conv", "input"), affine("bn", "conv"), clamp("relu", "bn"))
    assert names(result) == ["conv"]
    joint = result["conv"]
    assert isinstance(joint, g.Conv2d)
    assert joint.bounds == (0.0, math.inf)
    expected = conv("conv", "input").weight_oihw * affine("bn", "conv").scale_c[:, None, None, None]
    assert np.allclose(joint.weight_oihw, expected, rtol=1e-6)


def test_batch_norm_goes_into_a_linear_layer() -> None:
    linear = g.Linear(name="fc", inputs=("flat",), shape=(4,), weight_oi=array(4, 108), bias_o=array(4))
    bn = g.ChannelAffine(name="bn", inputs=("fc",), shape=(4,), scale_c=array(4), shift_c=array(4, seed=1))
    flat = g.Reshape(name="flat", inputs=("input",), shape=(108,))
    original = g.FloatGraph("test", (g.Input(name="input", inputs=(), shape=SHAPE), flat, linear, bn), ("bn",))
    result = fold(original)
    assert_same_function(original, result)
    assert [node.op for node in result] == ["Input", "Reshape", "Linear"]
    assert result.output == "fc"


def test_affine_maps_join() -> None:
    result = folded(affine("a", "input"), affine("b", "a", seed=3), clamp("relu", "b"))
    (joint,) = result.nodes[1:-1]
    assert isinstance(joint, g.Conv2d)
    assert joint.weight_oihw.shape == (3, 1, 1, 1)
    assert joint.groups == 3
    assert joint.bounds == (0.0, math.inf)


def test_an_affine_map_of_a_vector_becomes_a_diagonal() -> None:
    flat = g.Reshape(name="flat", inputs=("input",), shape=(108,))
    scale = g.ChannelAffine(
        name="scale", inputs=("flat",), shape=(108,), scale_c=array(108), shift_c=array(108, seed=1)
    )
    original = g.FloatGraph("test", (g.Input(name="input", inputs=(), shape=SHAPE), flat, scale), ("scale",))
    result = fold(original)
    assert_same_function(original, result)
    linear = result["scale"]
    assert isinstance(linear, g.Linear)
    assert np.array_equal(linear.weight_oi, np.diag(scale.scale_c))


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        # Between the convolution and its batch norm is a ReLU.
        ((conv("conv", "input"), clamp("relu", "conv"), affine("bn", "relu")), ["conv", "bn"]),
        # The convolution has two readers.
        ((conv("conv", "input"), affine("bn", "conv"), add("add", "bn", "conv")), ["conv", "bn"]),
        ((conv("conv", "input"), clamp("relu", "conv"), add("add", "relu", "conv")), ["conv", "relu", "add"]),
        # Nothing to join.
        ((clamp("relu", "input"), clamp("relu6", "relu", 0, 6)), ["relu"]),
        ((affine("bn", "input"), clamp("relu", "bn"), conv("conv", "relu")), ["bn", "conv"]),
    ],
)
def test_what_must_not_join_stays(nodes: tuple[g.Node, ...], expected: list[str]) -> None:
    assert names(folded(*nodes)) == expected


def test_the_output_is_not_joined_to_a_later_reader() -> None:
    """A node that is the output and has a reader keeps its value."""
    images = g.Input(name="input", inputs=(), shape=(4,))
    linear = g.Linear(name="fc", inputs=("input",), shape=(4,), weight_oi=array(4, 4), bias_o=array(4))
    relu = g.Clamp(name="relu", inputs=("fc",), shape=(4,), bounds=(0.0, math.inf))
    original = g.FloatGraph("test", (images, linear, relu), ("fc",))
    assert_same_function(original, fold(original))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((0, math.inf), (0, 6), (0, 6)),
        ((0, 6), (0, math.inf), (0, 6)),
        ((-1, 1), (0, 6), (0, 1)),
        ((2, 3), (0, 1), (1, 1)),
        ((0, 1), (2, 3), (2, 2)),
        ((-math.inf, 4), (-4, math.inf), (-4, 4)),
    ],
)
def test_clamps_compose(first: tuple[float, float], second: tuple[float, float], expected: tuple[float, float]) -> None:
    result = folded(conv("conv", "input"), clamp("a", "conv", *first), clamp("b", "a", *second))
    node = result["conv"]
    assert isinstance(node, g.Conv2d)
    assert node.bounds == expected


def test_padding_goes_into_convolution_and_average_pool() -> None:
    pad = g.Pad(name="pad", inputs=("input",), shape=(3, 7, 8), widths=((0, 0), (0, 1), (2, 0)))
    inner = conv("conv", "pad", padding=(0, 0, 0, 0), shape=(3, 5, 6))
    grown = dataclasses.replace(conv("next", "conv", padding=(1, 1, 2, 1)), shape=(3, 6, 6))
    result = folded(pad, inner, grown)
    assert names(result) == ["conv", "next"]
    joint = result["conv"]
    assert isinstance(joint, g.Conv2d)
    assert joint.padding == (0, 2, 1, 0)
    pool = g.AveragePool2d(name="pool", inputs=("pad",), shape=(3, 6, 6), kernel=(2, 3), stride=(1, 1))
    result = folded(pad, pool)
    assert names(result) == ["pool"]


def test_padding_of_channels_and_before_a_max_pool_stays() -> None:
    channels = g.Pad(name="pad", inputs=("thin",), shape=SHAPE, widths=((1, 0), (0, 0), (0, 0)))
    thin = g.Slice(name="thin", inputs=("input",), shape=(2, 6, 6), axis=0, start=0, stop=2, step=1)
    assert names(folded(thin, channels, conv("conv", "pad"))) == ["thin", "pad", "conv"]
    pad = g.Pad(name="pad", inputs=("input",), shape=(3, 7, 7), widths=((0, 0), (1, 0), (0, 1)))
    pool = g.MaxPool2d(name="pool", inputs=("pad",), shape=SHAPE, kernel=(2, 2), stride=(1, 1))
    assert names(folded(pad, pool)) == ["pad", "pool"]


def test_a_residual_joins_its_convolution() -> None:
    nodes = (conv("a", "input"), conv("b", "a", seed=5), add("add", "b", "input"), clamp("relu", "add"))
    result = folded(*nodes)
    assert names(result) == ["a", "b"]
    joint = result["b"]
    assert joint.inputs == ("a", "input")
    assert isinstance(joint, g.Conv2d)
    assert joint.bounds == (0.0, math.inf)
    assert names(folded(*nodes, join_residuals=False)) == ["a", "b", "add"]


def test_residuals_join_on_either_side_and_in_a_row() -> None:
    result = folded(
        conv("a", "input"), add("x", "input", "a"), conv("b", "x", seed=2), add("y", "x", "b"),
        conv("c", "y", seed=4), conv("d", "y", seed=6), add("z", "c", "d"),
    )  # fmt: skip
    assert names(result) == ["a", "b", "d", "c"]
    assert result["a"].inputs == ("input", "input")
    assert result["b"].inputs == ("a", "a")
    assert result["c"].inputs == ("b", "d")


def test_residuals_that_must_not_join() -> None:
    # The convolution is read elsewhere too, has a ReLU before the sum, or is summed with itself.
    assert names(folded(conv("a", "input"), add("x", "a", "input"), add("y", "x", "a"))) == ["a", "x", "y"]
    assert names(folded(conv("a", "input"), clamp("r", "a"), add("x", "r", "input"))) == ["a", "x"]
    assert names(folded(conv("a", "input"), add("x", "a", "a"))) == ["a", "x"]
    # Both operands are convolutions, and one takes the other as residual.
    assert names(folded(conv("a", "input"), conv("b", "input", seed=3), add("x", "a", "b"))) == ["b", "a"]


# Random graphs.


def random_graph(seed: int, length: int) -> g.FloatGraph:
    """Images of one shape through nodes of every kind that keeps it, each reading any earlier ones."""
    rng = np.random.default_rng(seed)
    made: list[g.Node] = []
    available = ["input"]
    for index in range(length):
        source = available[-1] if rng.random() < 0.7 else str(rng.choice(available))
        other = str(rng.choice(available))
        name = f"n{index}"
        kind = int(rng.integers(9))
        node_seed = int(rng.integers(1000))
        if kind <= 1:
            node: g.Node = conv(name, source, node_seed)
        elif kind <= 3:
            node = affine(name, source, node_seed)
        elif kind == 4:
            lo, hi = sorted(float(v) for v in rng.normal(size=2) * 3)
            node = clamp(name, source) if rng.random() < 0.6 else clamp(name, source, lo, hi)
        elif kind <= 6:
            node = add(name, source, other)
        elif kind == 7:
            widths = ((0, 0), (1, 0), (0, 1))
            made.append(g.Pad(name=f"{name}.pad", inputs=(source,), shape=(3, 7, 7), widths=widths))
            node = g.AveragePool2d(name=name, inputs=(f"{name}.pad",), shape=SHAPE, kernel=(2, 2), stride=(1, 1))
        else:
            node = g.Elementwise(name=name, inputs=(source,), shape=SHAPE, function="tanh")
        made.append(node)
        available.append(name)
    return graph(*made) if made else graph(clamp("relu", "input"))


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(0, 14), st.booleans())
def test_random_graphs_keep_their_function(seed: int, length: int, join: bool) -> None:
    original = random_graph(seed, length)
    result = fold(original, join_residuals=join)
    assert_same_function(original, result)
    assert not any(isinstance(node, g.ChannelAffine) for node in result)
    seen: set[str] = set()
    for node in result:
        assert seen.issuperset(node.inputs)
        assert node.name not in seen
        seen.add(node.name)
        if isinstance(node, g.Clamp):  # every node that could take it has another reader or cannot
            producer = result[node.inputs[0]]
            assert len(result.users[producer.name]) > 1 or not isinstance(producer, g.Bounded | g.Clamp)


def test_a_fold_that_is_wrong_would_show() -> None:
    """Planted: one batch norm's shift is lost."""
    original = graph(conv("conv", "input"), affine("bn", "conv"))
    wrong = fold(
        graph(conv("conv", "input"), dataclasses.replace(affine("bn", "conv"), shift_c=np.zeros(3, np.float32)))
    )
    with pytest.raises(AssertionError):
        assert_same_function(original, wrong)


def test_a_mean_over_a_large_window_is_a_mean_of_means() -> None:
    """Its multiplier would round to 1 or 0 of 65536ths: 14.7 dB at 700 x 700 before."""
    image = g.Input(name="input", inputs=(), shape=(2, 150, 300))
    pool = g.AveragePool2d(
        name="pool", inputs=("input",), shape=(2, 2, 2), kernel=(140, 150), stride=(20, 149), padding=(3, 0, 7, 1),
        bounds=(0.0, 4.0),
    )  # fmt: skip
    flat = g.Reshape(name="logits", inputs=("pool",), shape=(8,))
    original = g.FloatGraph("test", (image, pool, flat), ("logits",))
    folded = fold(original)
    assert names(folded) == ["pool.columns", "pool"]
    images = torch.randn(3, 2, 150, 300, generator=torch.Generator().manual_seed(0))
    found, expected = (GraphModule(one, dtype=torch.float64)(images) for one in (folded, original))
    assert torch.allclose(found, expected, atol=1e-12)
    small = dataclasses.replace(pool, kernel=(128, 128), stride=(22, 172), padding=(0, 0, 0, 0))
    assert names(fold(g.FloatGraph("test", (image, small, flat), ("logits",)))) == ["pool"]


# Reshapes.


def reshape(name: str, source: str, *shape: int) -> g.Reshape:
    return g.Reshape(name=name, inputs=(source,), shape=shape)


def in_rows(node: g.Node) -> g.Node:
    return dataclasses.replace(node, shape=(3, 36))


def test_a_relu_after_a_reshape_becomes_part_of_the_convolution_before_it() -> None:
    result = folded(conv("conv", "input"), reshape("rows", "conv", 3, 36), in_rows(clamp("relu", "rows")))
    assert names(result) == ["conv"]
    assert isinstance(joint := result["conv"], g.Conv2d)
    assert joint.bounds == (0.0, math.inf)


def test_a_function_keeps_its_name_when_it_moves_before_a_reshape() -> None:
    result = folded(
        conv("conv", "input"),
        reshape("rows", "conv", 3, 36),
        g.Elementwise(name="gelu", inputs=("rows",), shape=(3, 36), function="gelu"),
        reshape("image", "gelu", 3, 6, 6),
        conv("last", "image", 2),
    )
    assert names(result) == ["conv", "gelu", "last"]
    assert result["gelu"].shape == SHAPE


def test_a_reshape_that_others_read_stays_where_it_is() -> None:
    result = folded(
        conv("conv", "input"),
        reshape("rows", "conv", 3, 36),
        in_rows(clamp("relu", "rows")),
        in_rows(add("sum", "rows", "relu")),
    )
    assert isinstance(first := result["conv"], g.Conv2d)
    assert first.bounds == g.UNBOUNDED


def test_reshapes_in_a_row_are_one_or_none() -> None:
    result = folded(
        conv("conv", "input"),
        reshape("a", "conv", 3, 36),
        reshape("b", "a", 1, 3, 36),
        reshape("c", "b", *SHAPE),
        conv("next", "c", 2),
        reshape("d", "next", 36, 3),
        reshape("e", "d", 4, 27),
    )
    assert names(result) == ["conv", "next"]
