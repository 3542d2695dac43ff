"""Random integer networks for tests: every layer type, small, with integers at the edges of what is allowed.

    network = random_network(np.random.default_rng(7), operators={"conv", "linear"}, length=5)
    images = random_images(np.random.default_rng(8), network, 10)

Equal generators give equal networks. ``networks(...)`` is the same as a hypothesis strategy. A test that
supports fewer layer types names those it supports; ``extreme=False`` keeps multipliers to what trained
networks have, ``on_grid=False`` makes free float32 multipliers and odd zero points.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from twoscale._ir import layers as n
from twoscale._ir.arithmetic import ADD_SHIFT, MULTIPLIER_LIMIT, REQUANTIZE_SHIFT
from twoscale._ir.fixed_point import exponential_table, quantize_multiplier
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.operators.attention import exponentials, largest_exponential

__all__ = ["COMPOSED", "OF_ATTENTION", "OF_TFLITE", "OPERATORS", "networks", "random_images", "random_network"]

OPERATORS = (
    "add",
    "average_pool",
    "clamp",
    "concat",
    "conv",
    "depthwise",
    "linear",
    "matmul",
    "max_pool",
    "mul",
    "normalize",
    "pad",
    "permute",
    "reshape",
    "residual",
    "slice",
    "softmax",
    "softmax_matmul",
    "table",
)
"""Possible values in ``operators``. A flatten and the final layer are always there."""

COMPOSED = ("flip", "pool_1d", "prelu", "roll", "shuffle", "split", "stack", "upsample")
"""More possible values: operators that front-ends compose of several layers, some on tensors of rank 4 and 5."""

OF_TFLITE = ("fixed_point_softmax",)
"""More possible values: operators of .tflite files alone, which have no ONNX form."""

OF_ATTENTION = ("matmul", "normalize", "softmax", "softmax_matmul")
"""Those of networks with attention, equations (14) to (17)."""

ActivationType = Literal["uint8", "int8", "mixed"]
Output = Literal["accumulators", "tensor"]
Shape = tuple[int, ...]

_MOST_VALUES = 600  # of a tensor, so that scalar oracles stay fast


def random_network(
    rng: np.random.Generator,
    *,
    operators: Collection[str] = OPERATORS,
    length: int = 8,
    dtype: ActivationType | None = None,
    bits: int | None = None,
    on_grid: bool = True,
    extreme: bool = True,
    output: Output | None = None,
    image_shape: tuple[int, int, int] | None = None,
    classes: int | None = None,
    widest: int = 6,
    more_outputs: int = 0,
    more_inputs: int = 0,
    name: str = "random",
) -> IntegerNetwork:
    """Make a network.

    Args:
        rng: determines everything that the other arguments leave open.
        operators: those that the network may have, from OPERATORS, COMPOSED and OF_TFLITE.
        length: how many operators to draw; a few more layers result.
        dtype: of the activations; None draws "uint8" or "int8" for the whole network, "mixed" for each tensor.
        bits: of every activation's range, 2..8; None draws 4..8 for each, mostly 8.
        on_grid: whether multipliers are whole numbers of 2**-16ths (additions 2**-14ths) and zero points even.
        extreme: whether weights of ±127 only, biases beyond 2**24 and the smallest and largest multipliers occur.
        output: int32 accumulators or an 8-bit tensor; None draws.
        image_shape: (C, H, W); None draws up to (4, 8, 8).
        classes: number of outputs; None draws 2..10.
        widest: channels of a convolution; more than 6 also make larger windows and tensors.
        more_outputs: how many other layers, drawn at random, are outputs besides the last.
        more_inputs: how many inputs of the same shape there are besides the first.
        name: of the network.
    """
    unknown = set(operators) - set(_MAKE)
    if unknown:
        raise ValueError(f"no such operators: {sorted(unknown)}; there are {', '.join(sorted(_MAKE))}")
    maker = _Maker(rng, dtype or ("uint8", "int8")[rng.integers(2)], bits, on_grid, extreme, widest)
    shape = image_shape or (_int(rng, 1, 4), _int(rng, 4, 8), _int(rng, 4, 8))
    for index in range(1 + more_inputs):
        maker.quantize_input(shape, f"input{index + 1 if index else ''}")
    choices = sorted(operators)
    for _ in range(length):
        for operator in rng.permutation(choices):
            if _MAKE[operator](maker):
                break
    final = maker.finish(classes or _int(rng, 2, 10), output, "conv" in operators)
    others = [layer.name for layer in maker.layers[1 + more_inputs :] if layer.name != final]
    drawn: list[str] = list(rng.permutation(others)[:more_outputs]) if more_outputs else []
    return IntegerNetwork(
        name=name,
        layers=tuple(maker.layers),
        outputs=(final, *map(str, drawn)),
        scheme="test",
        metadata={"made by": "tests"},
    )


def random_images(rng: np.random.Generator, network: IntegerNetwork, count: int) -> NDArray[np.float32]:
    """Make ``count`` images (N, C, H, W) that reach the whole input range and beyond, with many exact ties.

    Several inputs are in one array, see ``InputLayout``.
    """
    return network.input_layout.joined([_images_of(rng, layer.output, count) for layer in network.inputs])


def _images_of(rng: np.random.Generator, spec: n.TensorSpec, count: int) -> NDArray[np.float32]:
    steps = rng.uniform(spec.lo - 8, spec.hi + 8, (count, *spec.shape)) - spec.zero_point
    kind = rng.random(steps.shape)
    steps = np.where(kind < 0.25, np.round(steps) + 0.5, steps)
    steps = np.where(kind > 0.95, 0.0, steps)
    return (steps * spec.scale).astype(np.float32)


def networks(
    *,
    operators: Collection[str] = OPERATORS,
    longest: int = 10,
    dtype: ActivationType | None = None,
    bits: int | None = None,
    on_grid: bool = True,
    extreme: bool = True,
    output: Output | None = None,
) -> st.SearchStrategy[IntegerNetwork]:
    """Return a hypothesis strategy for random networks; it shrinks towards few layers."""

    def make(length: int, seed: int) -> IntegerNetwork:
        return random_network(
            np.random.default_rng(seed), operators=operators, length=length, dtype=dtype, bits=bits,
            on_grid=on_grid, extreme=extreme, output=output, name=f"random-{length}-{seed}",
        )  # fmt: skip

    return st.builds(make, st.integers(0, longest), st.integers(0, 2**32 - 1))


def _int(rng: np.random.Generator, lowest: int, highest: int) -> int:
    return int(rng.integers(lowest, highest + 1))


def _reach(spec: n.TensorSpec) -> int:
    """Return the largest |q − z|."""
    return max(spec.hi - spec.zero_point, spec.zero_point - spec.lo)


class _Maker:
    """Collects layers. Each make-method appends some, or returns False if it does not apply."""

    def __init__(
        self,
        rng: np.random.Generator,
        dtype: ActivationType,
        bits: int | None,
        on_grid: bool,
        extreme: bool,
        widest: int,
    ) -> None:
        self.rng = rng
        self.dtype = dtype
        self.bits = bits
        self.on_grid = on_grid
        self.extreme = extreme
        self.widest = widest
        self.largest_kernel = 3 if widest <= 6 else 5
        self.most_values = _MOST_VALUES if widest <= 6 else 40 * _MOST_VALUES
        self.layers: list[n.Layer] = []

    # Choices.

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def tensor(self, suits: Callable[[Shape], bool] = lambda shape: True) -> n.Layer | None:
        """Return a layer with a suitable output: mostly the newest, so that networks get deep, or else any."""
        found = [layer for layer in self.layers if suits(layer.output.shape)]
        if not found:
            return None
        return found[-1] if self.chance(0.7) else found[_int(self.rng, 0, len(found) - 1)]

    def image(self) -> n.Layer | None:
        return self.tensor(lambda shape: len(shape) == 3)

    def spec(self, shape: Shape) -> n.TensorSpec:
        """Draw a quantization: full or narrow range, zero point at an end or inside, a ReLU or ReLU6 or none."""
        rng = self.rng
        dtype: str = self.dtype if self.dtype != "mixed" else ("uint8", "int8")[rng.integers(2)]
        bits = self.bits or int(rng.choice([4, 5, 6, 7, 8, 8, 8, 8]))
        lo, hi = (0, 2**bits - 1) if dtype == "uint8" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        if dtype == "int8" and self.chance(0.3):
            lo += 1  # symmetric
        kind = rng.random()
        zero = lo if kind < 0.3 else (lo + hi) // 2 if kind < 0.5 else hi if kind < 0.55 else _int(rng, lo, hi)
        if self.on_grid and zero % 2:
            zero += 1 if zero < hi else -1
        if zero < hi and self.chance(0.3):
            lo = zero
        if zero < hi and self.chance(0.2):
            hi = _int(rng, zero + 1, hi)
        return n.TensorSpec(shape, dtype, float(np.float32(2.0 ** rng.uniform(-9, 1))), zero, lo, hi)

    def multiplier(self, ratios: NDArray[np.float64], shift: int = REQUANTIZE_SHIFT) -> n.Multiplier:
        """Return multipliers near the ratios; some are powers of two, which make ties."""
        rng = self.rng
        ratios = np.asarray(ratios, np.float64) * 2.0 ** rng.uniform(-2, 1, np.shape(ratios))
        powers = rng.random(ratios.shape) < 0.25
        ratios = np.where(powers, 2.0 ** np.round(np.log2(ratios)), ratios)
        if not self.on_grid:
            return n.Multiplier(ratios.astype(np.float32), None)
        integers = np.clip(np.round(np.ldexp(ratios, shift)), 1, MULTIPLIER_LIMIT - 1).astype(np.int64)
        if self.extreme:
            edges = np.array([1, 2, 3, MULTIPLIER_LIMIT - 1, MULTIPLIER_LIMIT - 2, 65535, 65536, 65537])
            integers = np.where(rng.random(integers.shape) < 0.04, rng.choice(edges, integers.shape), integers)
        return n.Multiplier.on_grid(integers, shift)

    def weights(self, shape: Shape) -> NDArray[np.int8]:
        """Draw weights, output channel first: of 2..8 bits, some channels all ±127, some all zero."""
        rng = self.rng
        limit = int(rng.choice([1, 7, 31, 127, 127, 127]))
        weights = rng.integers(-limit, limit + 1, shape)
        if self.extreme:
            for channel in range(shape[0]):
                kind = rng.random()
                if kind < 0.06:
                    weights[channel] = rng.choice([-127, 127], shape[1:])
                elif kind < 0.09:
                    weights[channel] = 127 if kind < 0.075 else -127
                elif kind < 0.11:
                    weights[channel] = 0
        return weights.astype(np.int8)

    def weighted(self, x: n.TensorSpec, weight: NDArray[np.int8]) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Return biases and the size that accumulators will have, (O,) each."""
        flat = weight.reshape(len(weight), -1).astype(np.float64)
        mean, variance = (x.lo + x.hi) / 2 - x.zero_point, (x.hi - x.lo + 1) ** 2 / 12
        size = np.sqrt((flat.sum(1) * mean) ** 2 + (flat**2).sum(1) * variance) + 1
        bias = np.zeros(len(weight)) if self.chance(0.2) else self.rng.normal(size=len(weight)) * size
        if self.extreme and self.chance(0.1):
            bias += self.rng.choice([-1, 1], len(bias)) * (2.0**24 + self.rng.integers(-1000, 1000, len(bias)))
        return bias.astype(np.int32), size + np.abs(bias) / 2

    # Making layers.

    def add_layer(self, layer: n.Layer) -> bool:
        self.layers.append(layer)
        return True

    def new_name(self, kind: str) -> str:
        return f"{kind}{len(self.layers)}"

    def quantize_input(self, shape: Shape, name: str = "input") -> None:
        self.add_layer(n.QuantizeInput(name=name, inputs=(), output=self.spec(shape)))

    def flat(self) -> n.Layer:
        """Return the newest tensor as a vector, flattened if need be."""
        x = self.layers[-1]
        if len(x.output.shape) != 1:
            spec = dataclasses.replace(x.output, shape=(math.prod(x.output.shape),))
            self.add_layer(n.Reshape(name=self.new_name("flatten"), inputs=(x.name,), output=spec))
        return self.layers[-1]

    def finish(self, classes: int, output: Output | None, may_convolve: bool) -> str:
        """Append the last layers; return the output's name."""
        output = output or ("accumulators" if self.chance(0.7) else "tensor")
        x = self.flat()
        features = x.output.shape[0]
        convolve = may_convolve and self.chance(0.2)
        shape = (classes, features, 1, 1) if convolve else (classes, features)
        if convolve:
            spec = dataclasses.replace(x.output, shape=(features, 1, 1))
            x = n.Reshape(name=self.new_name("unflatten"), inputs=(x.name,), output=spec)
            self.add_layer(x)
        weight = self.weights(shape)
        bias, size = self.weighted(x.output, weight)
        out_shape = (classes, 1, 1) if convolve else (classes,)
        if output == "accumulators":
            spec = n.TensorSpec(out_shape, "int32", float(np.float32(2.0 ** self.rng.uniform(-16, -8))))
            multiplier = None
        else:
            spec = self.spec(out_shape)
            multiplier = self.multiplier((spec.hi - spec.lo) / 2 / size)
        kind = n.Conv2d if convolve else n.Linear
        self.add_layer(
            kind(
                name="logits", inputs=(x.name,), output=spec, multiplier=multiplier, weight=weight, bias_o=bias,
            )
        )  # fmt: skip
        return self.flat().name

    def conv(self, depthwise: bool = False) -> bool:
        x = self.image()
        if x is None:
            return False
        rng = self.rng
        channels, *size = x.output.shape
        groups = channels if depthwise else int(rng.choice([g for g in range(1, channels + 1) if channels % g == 0]))
        if not depthwise and self.chance(0.6):
            groups = 1
        out = groups * _int(rng, 1, max(1, self.widest // groups))
        dilation = (_int(rng, 1, 2), _int(rng, 1, 2)) if self.chance(0.3) else (1, 1)
        stride = (_int(rng, 1, 3), _int(rng, 1, 3)) if self.chance(0.4) else (1, 1)
        kernel = (_int(rng, 1, self.largest_kernel), _int(rng, 1, self.largest_kernel))
        padding = self.padding(kernel, dilation)
        out_size = _pooled(size, kernel, stride, padding, dilation)
        if min(out_size) < 1 or out * math.prod(out_size) > self.most_values:
            return False
        weight = self.weights((out, channels // groups, *kernel))
        bias, acc = self.weighted(x.output, weight)
        spec = self.spec((out, *out_size))
        ratios = (spec.hi - spec.lo) / 2 / acc
        multiplier = self.multiplier(ratios if self.chance(0.7) else np.exp(np.log(ratios).mean(keepdims=True)))
        return self.add_layer(
            n.Conv2d(
                name=self.new_name("depthwise" if depthwise else "conv"), inputs=(x.name,), output=spec,
                multiplier=multiplier, weight=weight, bias_o=bias, stride=stride, padding=padding,
                dilation=dilation, groups=groups,
            )
        )  # fmt: skip

    def padding(self, kernel: tuple[int, int], dilation: tuple[int, int] = (1, 1)) -> n.Padding:
        """Draw a padding, smaller than the window: none, symmetric, or different on each side."""
        if self.chance(0.3):
            return (0, 0, 0, 0)
        most = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        top, left = _int(self.rng, 0, most[0]), _int(self.rng, 0, most[1])
        if self.chance(0.5):
            return (top, left, top, left)
        return (top, left, _int(self.rng, 0, most[0]), _int(self.rng, 0, most[1]))

    def residual(self) -> bool:
        """Append a convolution with an earlier tensor as residual, equation (7b)."""
        rng = self.rng
        skip = self.image()
        if skip is None:
            return False
        channels, *size = skip.output.shape
        x = self.tensor(lambda shape: len(shape) == 3 and shape[1:] == tuple(size))
        assert x is not None
        radius = _int(rng, 0, 1)
        kernel = 2 * radius + 1
        weight = self.weights((channels, x.output.shape[0], kernel, kernel))
        bias, acc = self.weighted(x.output, weight)
        spec = self.spec(skip.output.shape)
        joined = self.multiplier(np.array([(spec.hi - spec.lo) / 2 / _reach(skip.output)]), ADD_SHIFT)
        if self.on_grid:
            largest = 3 * 2**22 // _reach(skip.output)
            joined = n.Multiplier.on_grid(
                np.array([largest]) if self.extreme and self.chance(0.1) else np.minimum(joined.integers, largest),
                ADD_SHIFT,
            )
        return self.add_layer(
            n.Conv2d(
                name=self.new_name("residual"), inputs=(x.name, skip.name), output=spec, weight=weight, bias_o=bias,
                multiplier=self.multiplier((spec.hi - spec.lo) / 2 / acc, ADD_SHIFT),
                residual_multiplier=joined, padding=(radius,) * 4,
            )
        )  # fmt: skip

    def linear(self) -> bool:
        x = self.tensor(lambda shape: len(shape) == 1)
        if x is None:
            return False
        weight = self.weights((_int(self.rng, 1, 2 * self.widest), x.output.shape[0]))
        bias, acc = self.weighted(x.output, weight)
        spec = self.spec((len(weight),))
        return self.add_layer(
            n.Linear(
                name=self.new_name("linear"), inputs=(x.name,), output=spec, weight=weight, bias_o=bias,
                multiplier=self.multiplier((spec.hi - spec.lo) / 2 / acc),
            )
        )  # fmt: skip

    def add(self) -> bool:
        a = self.tensor()
        assert a is not None
        wanted = a.output.shape
        b = self.tensor(lambda shape: shape == wanted)
        assert b is not None
        return self.sum_of(a, b)

    def sum_of(self, a: n.Layer, b: n.Layer) -> bool:
        spec = self.spec(a.output.shape)
        reaches = [_reach(x.output) for x in (a, b)]
        m_a, m_b = (self.multiplier(np.array([(spec.hi - spec.lo) / 2 / r]), ADD_SHIFT) for r in reaches)
        if self.on_grid:
            # Below the limits of float32 sums: both products at most 2**24, or the smaller at most 3·2**22.
            limit = 2**24 if self.chance(0.5) else 3 * 2**22
            largest = [limit // reaches[0], (2**24 if limit == 2**24 else MULTIPLIER_LIMIT * 255) // reaches[1]]
            largest = [min(m, MULTIPLIER_LIMIT - 1) for m in largest]
            at_limit = self.extreme and self.chance(0.15)
            m_a, m_b = (
                n.Multiplier.on_grid(np.array([most]) if at_limit else np.minimum(m.integers, most), ADD_SHIFT)
                for m, most in zip((m_a, m_b), largest, strict=True)
            )
        if self.chance(0.5):
            a, b, m_a, m_b = b, a, m_b, m_a
        return self.add_layer(
            n.Add(name=self.new_name("add"), inputs=(a.name, b.name), output=spec, multipliers=(m_a, m_b))
        )

    def mul(self) -> bool:
        """Append a product: of equal shapes, or with a gate whose dimensions of size 1 broadcast."""
        a = self.tensor()
        assert a is not None
        shape = a.output.shape
        gates = [x for x in self.layers if len(x.output.shape) == len(shape)]
        gates = [x for x in gates if all(q in (1, p) for p, q in zip(shape, x.output.shape, strict=True))]
        b = gates[_int(self.rng, 0, len(gates) - 1)]
        if len(shape) == 3 and self.chance(0.5):
            b = self.layers[-1] if self.pool_whole(a) else b
        spec = self.spec(shape)
        ratio = (spec.hi - spec.lo) / (_reach(a.output) * _reach(b.output))
        inputs = (a.name, b.name) if self.chance(0.7) else (b.name, a.name)
        return self.add_layer(
            n.Mul(name=self.new_name("mul"), inputs=inputs, output=spec, multiplier=self.multiplier(np.array([ratio])))
        )

    def pool_whole(self, x: n.Layer) -> bool:
        """Append the mean over height and width."""
        kernel = (x.output.shape[1], x.output.shape[2])
        return self.average(x, kernel, kernel, (0, 0, 0, 0))

    def average(self, x: n.Layer, kernel: tuple[int, int], stride: tuple[int, int], padding: n.Padding) -> bool:
        channels, *size = x.output.shape
        out_size = _pooled(size, kernel, stride, padding)
        if min(out_size) < 1:
            return False
        spec = self.spec((channels, *out_size))
        ratio = (spec.hi - spec.lo) / (_reach(x.output) * math.prod(kernel))
        return self.add_layer(
            n.AveragePool2d(
                name=self.new_name("average_pool"), inputs=(x.name,), output=spec, kernel=kernel, stride=stride,
                padding=padding, multiplier=self.multiplier(np.array([ratio])),
            )
        )  # fmt: skip

    def average_pool(self) -> bool:
        x = self.image()
        if x is None:
            return False
        if self.chance(0.2):
            return self.pool_whole(x)
        kernel = (_int(self.rng, 1, 3), _int(self.rng, 1, 3))
        stride = kernel if self.chance(0.5) else (_int(self.rng, 1, 2), _int(self.rng, 1, 2))
        return self.average(x, kernel, stride, self.padding(kernel))

    def max_pool(self) -> bool:
        x = self.image()
        if x is None:
            return False
        channels, *size = x.output.shape
        kernel = (_int(self.rng, 1, 3), _int(self.rng, 1, 3))
        dilation = (_int(self.rng, 1, 2), _int(self.rng, 1, 2)) if self.chance(0.2) else (1, 1)
        stride = kernel if self.chance(0.5) else (_int(self.rng, 1, 2), _int(self.rng, 1, 2))
        # At most one step of padding, so that every window sees a value.
        padding = tuple(min(p, (kernel[i % 2] - 1) * dilation[i % 2], 1) for i, p in enumerate(self.padding((2, 2))))
        top, left, bottom, right = padding
        out_size = _pooled(size, kernel, stride, (top, left, bottom, right), dilation)
        if min(out_size) < 1 or min(size) < 2:
            return False
        spec = dataclasses.replace(x.output, shape=(channels, *out_size))
        return self.add_layer(
            n.MaxPool2d(
                name=self.new_name("max_pool"), inputs=(x.name,), output=spec, kernel=kernel, stride=stride,
                padding=(top, left, bottom, right), dilation=dilation,
            )
        )  # fmt: skip

    def concat(self) -> bool:
        a = self.tensor()
        assert a is not None
        shape = a.output.shape
        axis = _int(self.rng, 0, len(shape) - 1)
        fitting = [
            x
            for x in self.layers
            if len(x.output.shape) == len(shape)
            and all(p == q for i, (p, q) in enumerate(zip(shape, x.output.shape, strict=True)) if i != axis)
        ]
        parts = [a, *(fitting[_int(self.rng, 0, len(fitting) - 1)] for _ in range(_int(self.rng, 1, 2)))]
        out = list(shape)
        out[axis] = sum(x.output.shape[axis] for x in parts)
        if math.prod(out) > self.most_values:
            return False
        copied = self.chance(0.5)  # the first operand gives the common scale
        spec = dataclasses.replace(a.output, shape=tuple(out)) if copied else self.spec(tuple(out))
        multipliers = tuple(
            None if copied and x is a else self.multiplier(np.array([(spec.hi - spec.lo + 1) / 2 / _reach(x.output)]))
            for x in parts
        )
        return self.add_layer(
            n.Concat(
                name=self.new_name("concat"), inputs=tuple(x.name for x in parts), output=spec, axis=axis,
                multipliers=multipliers,
            )
        )  # fmt: skip

    def reshape(self) -> bool:
        x = self.tensor()
        assert x is not None
        count = math.prod(x.output.shape)
        if len(x.output.shape) == 3 and self.chance(0.3):
            shape: Shape = (count,)
        else:
            divisors = [d for d in range(1, 9) if count % d == 0]
            height = int(self.rng.choice(divisors))
            width = int(self.rng.choice([d for d in divisors if count // height % d == 0]))
            if count // height // width > 64:
                return False
            shape = (count // height // width, height, width)
        spec = dataclasses.replace(x.output, shape=shape)
        return self.add_layer(n.Reshape(name=self.new_name("reshape"), inputs=(x.name,), output=spec))

    def permute(self) -> bool:
        x = self.image()
        if x is None:
            return False
        axes = tuple(int(axis) for axis in self.rng.permutation(3))
        spec = dataclasses.replace(x.output, shape=tuple(x.output.shape[axis] for axis in axes))
        return self.add_layer(n.Permute(name=self.new_name("permute"), inputs=(x.name,), output=spec, axes=axes))

    def slice(self) -> bool:
        x = self.tensor(lambda shape: max(shape) > 1)
        if x is None:
            return False
        shape = list(x.output.shape)
        axis = int(self.rng.choice([i for i, size in enumerate(shape) if size > 1]))
        start = _int(self.rng, 0, shape[axis] // 2)
        stop = _int(self.rng, start + 1, shape[axis])
        step = _int(self.rng, 1, 3)
        shape[axis] = len(range(start, stop, step))
        spec = dataclasses.replace(x.output, shape=tuple(shape))
        return self.add_layer(
            n.Slice(
                name=self.new_name("slice"), inputs=(x.name,), output=spec, axis=axis, start=start, stop=stop,
                step=step,
            )
        )  # fmt: skip

    def pad(self) -> bool:
        x = self.tensor()
        assert x is not None
        widths = tuple((_int(self.rng, 0, 2), _int(self.rng, 0, 2)) for _ in x.output.shape)
        shape = tuple(size + sum(pair) for size, pair in zip(x.output.shape, widths, strict=True))
        if math.prod(shape) > self.most_values:
            return False
        spec = dataclasses.replace(x.output, shape=shape)
        return self.add_layer(n.Pad(name=self.new_name("pad"), inputs=(x.name,), output=spec, widths=widths))

    def clamp(self) -> bool:
        x = self.tensor()
        assert x is not None
        old = x.output
        spec = dataclasses.replace(
            old, lo=_int(self.rng, old.lo, old.zero_point), hi=_int(self.rng, old.zero_point, old.hi)
        )
        if spec.lo == spec.hi:
            return False
        return self.add_layer(n.Clamp(name=self.new_name("clamp"), inputs=(x.name,), output=spec))

    def table(self) -> bool:
        x = self.tensor()
        assert x is not None
        spec = self.spec(x.output.shape)
        table = self.rng.integers(spec.lo, spec.hi + 1, 256)
        if self.chance(0.5):
            table = np.sort(table)  # an increasing function, like most
        return self.add_layer(
            n.Table(name=self.new_name("table"), inputs=(x.name,), output=spec, table=table.astype(np.int16))
        )

    def transposed(self, x: n.Layer) -> n.Layer:
        """Append a tensor with its matrices transposed."""
        shape = x.output.shape
        spec = dataclasses.replace(x.output, shape=(shape[0], shape[2], shape[1]))
        self.add_layer(n.Permute(name=self.new_name("transposed"), inputs=(x.name,), output=spec, axes=(0, 2, 1)))
        return self.layers[-1]

    def second_matrices(self, a: n.Layer) -> n.Layer:
        """Return matrices that a's can be multiplied with: some tensor, perhaps transposed."""
        matrices, _, inner = a.output.shape
        found = [x for x in self.layers if len(x.output.shape) == 3 and x.output.shape[0] == matrices]
        fitting = [x for x in found if inner in x.output.shape[1:]]
        b = fitting[_int(self.rng, 0, len(fitting) - 1)]
        return b if b.output.shape[1] == inner and self.chance(0.7) else self.turned(b, inner)

    def turned(self, b: n.Layer, inner: int) -> n.Layer:
        return self.transposed(b) if b.output.shape[2] == inner else b

    def matmul(self) -> bool:
        a = self.image()
        if a is None or a.output.shape[0] * a.output.shape[1] * 64 > 40 * self.most_values:
            return False
        b = self.second_matrices(a)
        spec = self.spec((*a.output.shape[:2], b.output.shape[2]))
        if math.prod(spec.shape) > self.most_values:
            return False
        size = _reach(a.output) * _reach(b.output) * math.sqrt(a.output.shape[2]) / 3
        ratio = (spec.hi - spec.lo) / size
        return self.add_layer(
            n.MatMul(
                name=self.new_name("matmul"), inputs=(a.name, b.name), output=spec,
                multiplier=self.multiplier(np.array([ratio])),
            )
        )  # fmt: skip

    def score_scale(self, spec: n.TensorSpec) -> float:
        """Draw a scale with which a softmax is neither even nor a maximum, mostly."""
        return float(2.0 ** self.rng.uniform(-1, 4) / (spec.hi - spec.lo))

    def softmax(self) -> bool:
        x = self.tensor()
        assert x is not None
        spec = self.spec(x.output.shape)
        zero = spec.lo + spec.lo % 2
        spec = dataclasses.replace(
            spec, scale=2.0 ** -int(self.rng.choice([0, 4, 6, 7, 8, 8, 9, 10])), zero_point=min(zero, spec.hi)
        )
        if spec.zero_point % 2 and self.on_grid:
            return False
        table = exponentials(self.score_scale(x.output), 1 << int(self.rng.choice([2, 8, 12, 15, 15])))
        axis = _int(self.rng, 0, len(spec.shape) - 1)
        return self.add_layer(
            n.Softmax(name=self.new_name("softmax"), inputs=(x.name,), output=spec, axis=axis, table=table)
        )

    def fixed_point_softmax(self) -> bool:
        x = self.tensor()
        assert x is not None
        dtype = self.spec(x.output.shape).dtype
        lo, hi = (0, 255) if dtype == "uint8" else (-128, 127)
        spec = n.TensorSpec(x.output.shape, dtype, 2.0**-8, lo, lo, hi)
        factor = self.score_scale(x.output) * (1 << 26)
        table = np.array(exponential_table(*quantize_multiplier(factor)), np.int32)
        axis = _int(self.rng, 0, len(spec.shape) - 1)
        return self.add_layer(
            n.FixedPointSoftmax(
                name=self.new_name("fixed_point_softmax"), inputs=(x.name,), output=spec, axis=axis, table=table
            )
        )

    def softmax_matmul(self) -> bool:
        scores = self.image()
        if scores is None:
            return False
        values = self.second_matrices(scores)
        spec = self.spec((*scores.output.shape[:2], values.output.shape[2]))
        if math.prod(spec.shape) > self.most_values:
            return False
        reach = _reach(values.output)
        largest = largest_exponential(scores.output.shape[2], reach)
        ratio = (spec.hi - spec.lo) / 2 / reach
        return self.add_layer(
            n.SoftmaxMatMul(
                name=self.new_name("softmax_matmul"), inputs=(scores.name, values.name), output=spec,
                multiplier=self.multiplier(np.array([ratio])),
                table=exponentials(self.score_scale(scores.output), largest >> _int(self.rng, 0, 3)),
            )
        )  # fmt: skip

    def normalize(self) -> bool:
        x = self.tensor()
        assert x is not None
        spec, rng, shape = self.spec(x.output.shape), self.rng, x.output.shape
        chosen = [axis for axis in range(len(shape)) if self.chance(0.5)] or [_int(rng, 0, len(shape) - 1)]
        count = math.prod(shape[axis] for axis in chosen)
        sizes = tuple(size if self.chance(0.4) else 1 for size in shape)
        gain = rng.normal(size=sizes) * (spec.hi - spec.lo) / 4
        bias = rng.normal(size=sizes) * (spec.hi - spec.lo) / 8 + (spec.lo + spec.hi) / 2 - spec.zero_point
        if self.extreme and self.chance(0.1):
            gain = np.where(rng.random(sizes) < 0.5, 4095.9, gain)
        if self.chance(0.3):  # ties where a value is its mean
            bias = np.rint(bias) + 0.5
        epsilon = float(rng.choice([1, 2, count * count * 2.0 ** rng.uniform(-4, 8), 2.0**50 if self.extreme else 1]))
        return self.add_layer(
            n.Normalize(
                name=self.new_name("normalize"), inputs=(x.name,), output=spec, axes=tuple(chosen),
                epsilon=max(1, round(epsilon)), centered=self.chance(0.7),
                gain=np.rint(65536 * gain).astype(np.int32), bias=np.rint(65536 * bias).astype(np.int32),
            )
        )  # fmt: skip

    # Operators that front-ends compose of the layers above.

    def append(self, kind: type[n.Layer], shape: Shape, *inputs: n.Layer, **fields: Any) -> n.Layer:
        """Append a layer that moves integers: its output has the first input's quantization."""
        spec = dataclasses.replace(inputs[0].output, shape=shape)
        names = tuple(x.name for x in inputs)
        self.add_layer(kind(name=self.new_name(kind.__name__.lower()), inputs=names, output=spec, **fields))
        return self.layers[-1]

    def joined(self, parts: Sequence[n.Layer], axis: int) -> n.Layer:
        """Append the concatenation of tensors of one quantization."""
        shape = list(parts[0].output.shape)
        shape[axis] = sum(x.output.shape[axis] for x in parts)
        return self.append(n.Concat, tuple(shape), *parts, axis=axis, multipliers=(None,) * len(parts))

    def parts(self, x: n.Layer, axis: int, bounds: Sequence[int]) -> list[n.Layer]:
        """Append the slices of ``x`` between neighbouring bounds."""
        shape = x.output.shape
        return [
            self.append(
                n.Slice, (*shape[:axis], stop - start, *shape[axis + 1 :]), x, axis=axis, start=start, stop=stop, step=1
            )
            for start, stop in itertools.pairwise(bounds)
        ]

    def long_axis(self) -> tuple[n.Layer, int] | None:
        """Return a tensor, and one of its dimensions of more than one entry."""
        x = self.tensor(lambda shape: max(shape) > 1)
        if x is None:
            return None
        return x, int(self.rng.choice([i for i, size in enumerate(x.output.shape) if size > 1]))

    def flip(self) -> bool:
        """One dimension backwards."""
        chosen = self.long_axis()
        if chosen is None or chosen[0].output.shape[chosen[1]] > 8:
            return False
        x, axis = chosen
        self.joined(self.parts(x, axis, range(x.output.shape[axis] + 1))[::-1], axis)
        return True

    def roll(self) -> bool:
        """One dimension, rotated."""
        chosen = self.long_axis()
        if chosen is None:
            return False
        x, axis = chosen
        size = x.output.shape[axis]
        self.joined(self.parts(x, axis, (0, _int(self.rng, 1, size - 1), size))[::-1], axis)
        return True

    def split(self) -> bool:
        """Up to four parts of one dimension, in another order and some of them twice."""
        chosen = self.long_axis()
        if chosen is None:
            return False
        x, axis = chosen
        size = x.output.shape[axis]
        inner = self.rng.choice(np.arange(1, size), min(size - 1, _int(self.rng, 1, 3)), replace=False)
        parts = self.parts(x, axis, [0, *sorted(int(bound) for bound in inner), size])
        chosen_parts = [parts[_int(self.rng, 0, len(parts) - 1)] for _ in range(_int(self.rng, 1, 4))]
        if math.prod(x.output.shape) * len(chosen_parts) > self.most_values:
            return False
        self.joined(chosen_parts, axis)
        return True

    def stack(self) -> bool:
        """Two or three tensors along a new dimension, which is then moved and merged with the next."""
        x = self.image()
        if x is None or 3 * math.prod(x.output.shape) > self.most_values:
            return False
        count, axis, shape = _int(self.rng, 2, 3), _int(self.rng, 0, 3), list(x.output.shape)
        shape.insert(axis, 1)
        stacked = self.joined([self.append(n.Reshape, tuple(shape), x) for _ in range(count)], axis)
        return self.permuted_and_merged(stacked, tuple(int(i) for i in self.rng.permutation(4)))

    def permuted_and_merged(self, x: n.Layer, axes: tuple[int, ...]) -> bool:
        """Append a permutation and a reshape to three dimensions."""
        sizes = [x.output.shape[axis] for axis in axes]
        moved = self.append(n.Permute, tuple(sizes), x, axes=axes)
        first = len(axes) - 2 if self.chance(0.5) else 1
        shape = (math.prod(sizes[:first]), math.prod(sizes[first:-1]), sizes[-1])
        self.append(n.Reshape, shape, moved)
        return True

    def shuffle(self) -> bool:
        """Channels or pixels to other places, through a permutation of four or five dimensions."""
        x = self.image()
        if x is None:
            return False
        channels, height, width = x.output.shape
        groups = [g for g in range(2, channels + 1) if channels % g == 0]
        factors = [f for f in (2, 3) if height % f == 0 and width % f == 0]
        if channels % 4 == 0 and self.chance(0.5):  # a pixel shuffle
            split: Shape = (channels // 4, 2, 2, height, width)
            axes: tuple[int, ...] = (0, 3, 1, 4, 2)
            shape: Shape = (channels // 4, 2 * height, 2 * width)
        elif factors and self.chance(0.5):  # a pixel unshuffle
            f = int(self.rng.choice(factors))
            split = (channels, height // f, f, width // f, f)
            axes, shape = (0, 2, 4, 1, 3), (channels * f * f, height // f, width // f)
        elif groups:
            g = int(self.rng.choice(groups))
            split, axes, shape = (g, channels // g, height, width), (1, 0, 2, 3), (channels, height, width)
        else:
            return False
        moved = self.append(n.Reshape, split, x)
        moved = self.append(n.Permute, tuple(split[axis] for axis in axes), moved, axes=axes)
        self.append(n.Reshape, shape, moved)
        return True

    def upsample(self) -> bool:
        """Every pixel several times: copies along new dimensions."""
        x = self.image()
        if x is None:
            return False
        (channels, height, width), factors = x.output.shape, (_int(self.rng, 1, 3), _int(self.rng, 1, 3))
        if math.prod(factors) * channels * height * width > self.most_values or factors == (1, 1):
            return False
        made = self.append(n.Reshape, (channels, height, 1, width, 1), x)
        for axis, factor in zip((2, 4), factors, strict=True):
            if factor > 1:
                made = self.joined([made] * factor, axis)
        self.append(n.Reshape, (channels, height * factors[0], width * factors[1]), made)
        return True

    def pool_1d(self) -> bool:
        """A mean or a maximum over windows of a sequence."""
        x = self.image()
        if x is None or x.output.shape[1] * x.output.shape[2] < 2:
            return False
        channels, height, width = x.output.shape
        sequence = self.append(n.Reshape, (channels, height * width, 1), x)
        kernel, stride = _int(self.rng, 1, min(5, height * width)), _int(self.rng, 1, 3)
        before, after = (_int(self.rng, 0, kernel // 2) for _ in range(2))
        if self.chance(0.5):
            return self.average(sequence, (kernel, 1), (stride, 1), (before, 0, after, 0))
        count = (height * width + before + after - kernel) // stride + 1
        if (count - 1) * stride - before >= height * width:
            return False
        self.append(
            n.MaxPool2d, (channels, count, 1), sequence, kernel=(kernel, 1), stride=(stride, 1),
            padding=(before, 0, after, 0),
        )  # fmt: skip
        return True

    def prelu(self) -> bool:
        """The positive part, and the negative part with a factor per channel, added."""
        x = self.image()
        if x is None:
            return False
        old = x.output
        if not old.lo < old.zero_point < old.hi:
            return False
        halves = [
            dataclasses.replace(old, lo=lo, hi=hi) for lo, hi in ((old.zero_point, old.hi), (old.lo, old.zero_point))
        ]
        for spec in halves:
            self.add_layer(n.Clamp(name=self.new_name("clamp"), inputs=(x.name,), output=spec))
        above, below = self.layers[-2:]
        channels = old.shape[0]
        spec = self.spec(old.shape)
        weight = self.weights((channels, 1, 1, 1))
        ratios = (spec.hi - spec.lo) / 2 / (127.0 * np.full(channels, _reach(below.output)))
        scaled = n.Conv2d(
            name=self.new_name("depthwise"), inputs=(below.name,), output=spec, multiplier=self.multiplier(ratios),
            weight=weight, bias_o=np.zeros(channels, np.int32), groups=channels,
        )  # fmt: skip
        self.add_layer(scaled)
        return self.sum_of(above, scaled)


_MAKE: dict[str, Callable[[_Maker], bool]] = {
    **{name: getattr(_Maker, name) for name in (*OPERATORS, *COMPOSED, *OF_TFLITE) if name != "depthwise"},
    "depthwise": lambda maker: maker.conv(depthwise=True),
}


def _pooled(
    size: Collection[int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: n.Padding,
    dilation: tuple[int, int] = (1, 1),
) -> tuple[int, int]:
    """Return the output height and width; below 1 if the window does not fit."""
    height, width = (
        (s + padding[i] + padding[i + 2] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i, s in enumerate(size)
    )
    return (height, width)
