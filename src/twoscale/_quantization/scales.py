"""Scales of a layer's weights and accumulators, and biases at those scales."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from twoscale._ir import layers as n
from twoscale.errors import QuantizationError

__all__ = ["quantize_bias", "weight_scales"]

Float64 = NDArray[np.float64]


def weight_scales(layer: n.Accumulating, x: n.TensorSpec) -> Float64:
    """Return the real weight scales of a layer, (O,) or (1,): s_w = m · s_y / (2**shift · s_x), equation (4)."""
    return layer.weight_scales(x)


def quantize_bias(name: str, bias: Float64, scales: Float64) -> NDArray[np.int32]:
    """Return RNE(bias / (s_x · s_w)) as int32, equation (2).

    Raises:
        QuantizationError: a bias does not fit; names layer and channel.
    """
    integers = np.rint(bias / scales)
    worst = int(np.abs(integers).argmax())
    if abs(integers[worst]) >= 2**31:
        raise QuantizationError(
            f"layer {name}, channel {worst}: the bias {bias[worst]:g} is {integers[worst]:.3g} steps of its "
            "accumulator, beyond int32; its weights are too small for it, retrain or prune the channel"
        )
    return integers.astype(np.int32)
