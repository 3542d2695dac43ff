"""Combines groups of a convolution that have too few channels for vectors of sixteen."""

from __future__ import annotations

import dataclasses

import numpy as np

from twoscale._codegen.c.vector.tiles import LANES
from twoscale._ir import layers as n

__all__ = ["join_groups"]


def join_groups(layer: n.Conv2d) -> n.Conv2d:
    """Return the same convolution with fewer groups of up to 16 output channels. Weights between the old groups are 0.

    The products with them are wasted, but their lanes would otherwise be idle.
    """
    channels = layer.weight.shape[0] // layer.groups
    together = max(
        k for k in range(1, layer.groups + 1) if layer.groups % k == 0 and k * channels <= max(LANES, channels)
    )
    if together == 1:
        return layer
    out_c, inside, *window = layer.weight.shape
    weight = np.zeros((out_c, together * inside, *window), layer.weight.dtype)
    for channel in range(out_c):
        first = channel // channels % together * inside
        weight[channel, first : first + inside] = layer.weight[channel]
    return dataclasses.replace(layer, weight=weight, groups=layer.groups // together)
