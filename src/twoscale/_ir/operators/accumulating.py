"""Layers with weights: convolutions and linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._ir.arithmetic import ADD_SHIFT, FLOAT32_LIMIT
from twoscale._ir.operators.base import (
    Bounded,
    Float32,
    Multiplier,
    Padding,
    Requantize,
    Shape,
    TensorSpec,
    window_shape,
)
from twoscale._ir.operators.operation import operation
from twoscale._ir.operators.vectorized import (
    Int64,
    finish,
    padded,
    per_channel,
    rint,
    rne_shift,
    saturate,
    shifted,
    windows,
)
from twoscale.errors import QuantizationError

__all__ = ["Accumulating", "ChannelAffineNode", "Conv2d", "Conv2dNode", "Linear", "LinearNode"]

_CHUNK_BYTES = 1 << 22  # size of a convolution's patches, so that they stay in the cache and memory is bounded


@operation
class Conv2dNode(Bounded):
    """Two-dimensional convolution (cross-correlation, as everywhere in deep learning).

    A second input, of the output's shape, is added before the bounds apply.
    """

    weight_oihw: Float32
    bias_o: Float32
    stride: tuple[int, int] = (1, 1)
    padding: Padding = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


@operation
class LinearNode(Bounded):
    """y = x·Wᵀ + b over the last dimension."""

    weight_oi: Float32
    bias_o: Float32


@operation
class ChannelAffineNode(Bounded):
    """y = x·scale + shift per channel: a batch norm with its statistics fixed. ``fold`` leaves none."""

    scale_c: Float32
    shift_c: Float32


@operation
class Accumulating(Requantize):
    """A layer with weights: int32 accumulators by equation (2).

    Sums of products use BLAS. All partial sums are integers, hence exact in any order: in float32 where equation (13)
    proves that they stay below 2**24, else in float64, with 2**53.
    """

    weight: NDArray[np.int8]
    """Output channel first."""
    bias_o: NDArray[np.int32]

    @property
    def weight_integers(self) -> NDArray[np.int8]:
        """The weights, output channel first."""
        return self.weight

    @property
    def bias_integers(self) -> NDArray[np.int32]:
        """The biases, (O,), in steps of input scale times weight scale."""
        return self.bias_o

    @property
    def weight_scale(self) -> NDArray[np.float64]:
        """What one step of a weight is worth, (1,), or (O,) with a scale per output channel.

        Raises:
            ConfigurationError: the layer was not taken from a network, as network["fc3"] is.
        """
        return self.weight_scales(self.owner.spec(self.inputs[0]))

    def weight_scales(self, x: TensorSpec) -> NDArray[np.float64]:
        """Return the real weight scales for an input, (O,) or (1,): s_w = m · s_y / (2**shift · s_x), equation (4)."""
        if self.multiplier is None:  # the head: its output scale is s_x · s_w
            return np.array([self.output.scale / x.scale])
        scales: NDArray[np.float64] = self.multiplier.values.astype(np.float64) * self.output.scale / x.scale
        return scales

    def partial_bound(self, x: TensorSpec) -> NDArray[np.int64]:
        """Return Σ|q_w|·max(z − lo, hi − z) + |b| of each output channel, (O,), equation (13).

        It bounds every partial sum too, in any order of summation.
        """
        # int16 holds |−128|, and the sum is taken in int64.
        weight = np.abs(self.weight, dtype=np.int16).reshape(len(self.bias_o), -1).sum(1, dtype=np.int64)
        bound: NDArray[np.int64] = weight * x.reach
        return bound + np.abs(self.bias_o.astype(np.int64))

    def accumulator_reach(self, inputs: Sequence[TensorSpec]) -> NDArray[np.int64]:
        """Return the bound of equation (13)."""
        return self.partial_bound(inputs[0])

    def exact_type(self, x: TensorSpec) -> type[np.float32 | np.float64]:
        """Return the smaller type in which every partial sum is exact."""
        return np.float32 if int(self.partial_bound(x).max()) <= FLOAT32_LIMIT else np.float64

    def channels_of(self, multiplier: Multiplier) -> int:
        """Return the number of output channels for the accumulators' multiplier."""
        return self.output.shape[0] if multiplier is self.multiplier else 1

    def check(self, inputs: Sequence[TensorSpec]) -> None:
        """Check types and shapes of the weights, and that no accumulator can leave int32, equation (13)."""
        if self.weight.dtype != np.int8 or self.bias_o.dtype != np.int32:
            raise QuantizationError(
                f"layer {self.name}: weights are {self.weight.dtype} and biases {self.bias_o.dtype}; "
                "expected int8 and int32"
            )
        if self.bias_o.shape != self.weight.shape[:1] or not self.weight.size:
            raise QuantizationError(
                f"layer {self.name}: weights {self.weight.shape} and biases {self.bias_o.shape} do not fit together"
            )
        bounds = self.partial_bound(inputs[0])
        worst = int(bounds.argmax())
        if bounds[worst] >= 2**31:
            raise QuantizationError(
                f"layer {self.name}, channel {worst}: accumulators can reach {bounds[worst]}, beyond int32; "
                "use fewer weight bits there, or split the layer"
            )


@operation
class Conv2d(Accumulating):
    """Convolution, weights O,I/groups,H,W.

    A second input, if there is one, is added before requantization by equation (7b).
    """

    stride: tuple[int, int] = (1, 1)
    padding: Padding = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    residual_multiplier: Multiplier | None = None

    @property
    def arity(self) -> int:
        """One, or two with a residual."""
        return 1 if self.residual_multiplier is None else 2

    @property
    def multiplier_shift(self) -> int:
        """Multipliers on the grid count 2**-multiplier_shift."""
        return super().multiplier_shift if self.residual_multiplier is None else ADD_SHIFT

    def output_shape(self, inputs: Sequence[TensorSpec]) -> Shape:
        """Return (O, rows, columns)."""
        out, per_group, *kernel = self.weight.shape
        if len(kernel) != 2 or self.groups < 1 or out % self.groups or per_group * self.groups != inputs[0].shape[0]:
            raise ValueError(f"weights {self.weight.shape} in {self.groups} groups")
        shape = (out, *window_shape(inputs[0].shape, kernel, self.stride, self.padding, self.dilation))
        if len(inputs) == 2 and inputs[1].shape != shape:
            raise ValueError(f"the residual has another shape than {shape}")
        return shape

    def check(self, inputs: Sequence[TensorSpec]) -> None:
        """Check the weights, and that a layer with a residual requantizes."""
        super().check(inputs)
        if self.residual_multiplier is not None and self.multiplier is None:
            raise QuantizationError(f"layer {self.name}: a residual joins before requantization; it needs a multiplier")

    def sum_bounds(self, inputs: Sequence[TensorSpec]) -> tuple[int, int] | None:
        """Return the largest products of (7b)."""
        if self.multiplier is None or self.residual_multiplier is None:
            return None
        products = self.partial_bound(inputs[0]) * self.multiplier.integers
        return int(products.max()), inputs[1].reach * int(self.residual_multiplier.integers.max())

    def compute(self, inputs: Sequence[TensorSpec], x: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Equations (2) and (3), or (7b) with a residual."""
        acc = self._accumulate(inputs[0], x[0])
        if self.residual_multiplier is None:
            return finish(acc, self)
        assert self.multiplier is not None
        residual = shifted(x[1], inputs[1])
        if self.multiplier.shift is None:
            real = acc.astype(np.float32) * per_channel(self.multiplier.values, 4)
            real += residual.astype(np.float32) * self.residual_multiplier.values
            return saturate(rint(real), self.output)
        total = acc * per_channel(self.multiplier.integers, 4) + residual * self.residual_multiplier.integers
        return saturate(rne_shift(total, self.multiplier.shift), self.output)

    def _accumulate(self, spec: TensorSpec, q: NDArray[Any]) -> Int64:
        out, per_group, kh, kw = self.weight.shape
        groups = self.groups
        _, out_h, out_w = self.output.shape
        real = self.exact_type(spec)
        weight = self.weight.astype(real).reshape(groups, out // groups, per_group * kh * kw)
        acc = np.empty((len(q), *self.output.shape), np.int64)
        taps = per_group * kh * kw
        row_bytes = weight.itemsize * out_w * groups * taps
        chunk = max(1, _CHUNK_BYTES // (out_h * row_bytes))
        rows = max(1, min(out_h, _CHUNK_BYTES // row_bytes))
        for start in range(0, len(acc), chunk):
            x = padded(q[start : start + chunk], spec, self.padding, 0)
            view = windows(x, (kh, kw), self.stride, self.dilation)
            for top in range(0, out_h, rows):
                part = view[:, :, top : top + rows]
                # (N, C, kernel_h, kernel_w, rows, out_w): rows are copied whole, and the product needs no transpose.
                columns = np.empty((len(x), groups * per_group, kh, kw, part.shape[2], out_w), real)
                for i in range(kh):
                    for j in range(kw):
                        columns[:, :, i, j] = part[..., i, j]
                product = weight @ columns.reshape(len(x), groups, taps, -1)
                acc[start : start + chunk, :, top : top + rows] = product.reshape(len(x), out, part.shape[2], out_w)
        acc += per_channel(self.bias_o.astype(np.int64), 4)
        return acc


@operation
class Linear(Accumulating):
    """Fully connected layer, weights O,I."""

    def output_shape(self, inputs: Sequence[TensorSpec]) -> Shape:
        """Return (O,)."""
        if inputs[0].shape != self.weight.shape[1:]:
            raise ValueError(f"weights {self.weight.shape}")
        return self.weight.shape[:1]

    def compute(self, inputs: Sequence[TensorSpec], x: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Equations (2) and (3)."""
        real = self.exact_type(inputs[0])
        products = (x[0].astype(real) - inputs[0].zero_point) @ self.weight.T.astype(real)
        acc = products.astype(np.int64) + self.bias_o.astype(np.int64)
        return finish(acc, self)
