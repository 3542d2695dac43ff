"""Norms that exporters write as means, squares and roots, recognized where the division by the root is read."""

from __future__ import annotations

import onnx

from twoscale._frontends.onnx_float.reader import Reader

__all__ = ["norm"]


def norm(r: Reader, node: onnx.NodeProto, values: str, divisor: str) -> str | None:
    """Append values / divisor where it is (x - mean(x)) / sqrt(mean((x - mean(x))²) + eps), or the same without means.

    Args:
        r: the graph read so far.
        node: the division.
        values: name in the file of what is divided.
        divisor: name in the file of what it is divided by.

    Returns:
        The result's name; None if it is another quotient.
    """
    root = r.made_by(divisor, "Sqrt")
    total = root and r.made_by(root.input[0], "Add")
    if not total:
        return None
    constant = next((index for index in (0, 1) if total.input[index] in r.constants), None)
    if constant is None or r.constants[total.input[constant]].size != 1:
        return None
    eps = float(r.weights(total, constant).reshape(()))
    variance = r.made_by(total.input[1 - constant], "ReduceMean")
    axes = variance and _axes(r, variance)
    if not variance or not axes or not eps > 0 or not _is_square(r, variance.input[0], values):
        return None
    centered = r.made_by(values, "Sub")
    mean = centered and r.made_by(centered.input[1], "ReduceMean")
    source, has_mean = values, False
    if centered and mean and mean.input[0] == centered.input[0] and _axes(r, mean) == axes:
        source, has_mean = centered.input[0], True
    return r.at(node).normalize(r.tensors[source], axes, eps, None, None, centered=has_mean)  # type: ignore[arg-type]


def _axes(r: Reader, node: onnx.NodeProto) -> list[int] | None:
    """Return the dimensions of a mean that keeps them."""
    given = r.integers(node, 1, "axes", None)
    if not given or not r.attribute(node, "keepdims", 1):
        return None
    return sorted(r.axis(node, axis, 1 + len(r.shape(node))) for axis in given)


def _is_square(r: Reader, name: str, values: str) -> bool:
    power, product = r.made_by(name, "Pow"), r.made_by(name, "Mul")
    if power and power.input[1] in r.constants:
        return power.input[0] == values and bool((r.constants[power.input[1]] == 2).all())
    return bool(product) and list(product.input) == [values, values]  # type: ignore[union-attr]
