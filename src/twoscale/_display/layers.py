"""One layer of an integer network for notebooks: its scales, its integers, and one of its sums worked through."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._calibration.statistics import StatisticsAccumulator, to_summary
from twoscale._calibration.summaries import TensorSummary
from twoscale._display.statistics import summary_svg
from twoscale._ir import layers as n
from twoscale._ir.worked import worked_output
from twoscale._page.document import table_html
from twoscale._page.numbers import MISSING, count
from twoscale._page.tables import Column, Table, table, text_column

__all__ = ["BitWidths", "bit_widths", "integer_summary", "layer_html"]


@dataclass(frozen=True)
class BitWidths:
    """How many bits the integers of one layer need."""

    layer: str
    weights: int | None
    """2 to 8; None without weights."""
    output: int
    """2 to 8, or 32 where the accumulator is the output."""


def bit_widths(layer: n.Layer) -> BitWidths:
    """Return the bits of a layer's weights, signed, and of its output, signed or unsigned like its type."""
    weights = None
    if isinstance(layer, n.Accumulating):
        weights = max(2, max(int(layer.weight.max(initial=0)), ~int(layer.weight.min(initial=0))).bit_length() + 1)
    y = layer.output
    if y.dtype == "int32":
        return BitWidths(layer.name, weights, 32)
    sign = int(y.dtype.startswith("int"))
    return BitWidths(layer.name, weights, max(y.hi, ~y.lo).bit_length() + sign)


def integer_summary(name: str, values: NDArray[Any], *, is_weight: bool) -> TensorSummary:
    """Return statistics and histogram of integers."""
    accumulator = StatisticsAccumulator(name)
    accumulator.update(values)
    return to_summary(accumulator.finish(), "weight" if is_weight else "activation")


def layer_html(layer: n.Layer) -> str:
    """Return a layer for a notebook; sums and scales of weights where it was taken from a network."""
    parts = [table_html(_facts(layer))]
    if isinstance(layer, n.Accumulating):
        parts.append(summary_svg(integer_summary(layer.name, layer.weight, is_weight=True)))
        if "_owner" in vars(layer) and len(layer.inputs) == 1:
            parts.append(table_html(_worked(layer)))
    return "".join(parts)


def _facts(layer: n.Layer) -> Table:
    y = layer.output
    rows = [
        ["Operator", layer.op],
        ["Output", f"{'×'.join(map(str, y.shape))} {y.dtype}"],
        ["Output scale", f"{y.scale:.6g}"],
        ["Zero point", str(y.zero_point)],
    ]
    if y.dtype != "int32":
        rows.append(["Output integers", f"{count(y.lo)} to {count(y.hi)}"])
    if isinstance(layer, n.Accumulating):
        rows += [
            ["Weights", f"{'×'.join(map(str, layer.weight.shape))} int8"],
            ["Weight integers", f"{count(int(layer.weight.min()))} to {count(int(layer.weight.max()))}"],
            ["Weight bits", count(bit_widths(layer).weights)],
            ["Bias integers", f"{count(int(layer.bias_o.min()))} to {count(int(layer.bias_o.max()))}"],
        ]
        if "_owner" in vars(layer):
            scales = layer.weight_scale
            ends = dict.fromkeys(f"{value:.6g}" for value in (scales.min(), scales.max()))
            rows.append([f"Weight scale{'s' * (len(scales) > 1)}", " to ".join(ends)])
    return table(layer.name, [text_column("What"), Column("Value")], rows)


def _worked(layer: n.Accumulating) -> Table:
    """Return the steps from an accumulator to an output integer, for an image of zeros."""
    network, y = layer.owner, layer.output
    one = worked_output(network, layer, np.zeros(network.input_layout.shape, np.float32))
    rows = [
        ["Products of integers, summed", count(one.accumulator - one.bias)],
        ["Bias", count(one.bias)],
        ["Accumulator a", count(one.accumulator)],
    ]
    if one.multiplier is not None:
        whole = "" if one.numerator is None else f" = {count(one.numerator)}/65,536"
        product = one.accumulator * one.multiplier
        rows += [
            ["M = s_x·s_w/s_y", f"{one.multiplier:.6g}{whole}"],
            ["a · M, rounded", f"{product:.4f}, {count(round(product))}".replace("-", "−")],
            [f"With zero point {y.zero_point}, in {count(y.lo)} to {count(y.hi)}", count(one.output)],
        ]
    real = y.scale * (one.output - y.zero_point)
    rows.append(["It stands for", f"{real:.6g}".replace("-", "−") if math.isfinite(real) else MISSING])
    where = ", ".join(map(str, one.index))
    return table(f"Output ({where}) of an image of zeros", [text_column("Step"), Column("Value")], rows)
