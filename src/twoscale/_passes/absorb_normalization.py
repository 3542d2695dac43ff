"""Makes the normalization of images part of the network, so that it takes 8-bit pixels unchanged.

Normalized pixels are not multiples of one step, because every channel has its own mean and standard deviation. Rounding
them to 8 bits is the largest single error of many networks. The pixels themselves are integers, and normalization is
linear, so it can move into the weights of the first convolution.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from twoscale._ir import float_graph as g
from twoscale.errors import ConfigurationError

__all__ = ["into_weights", "with_normalization"]


def with_normalization(graph: g.FloatGraph, mean: Sequence[float], std: Sequence[float]) -> g.FloatGraph:
    """Return the graph for pixels 0..255 in place of images (pixel / 255 − mean) / std.

    Args:
        graph: from ``capture``, not folded.
        mean: of pixels / 255, one number per channel.
        std: of pixels / 255, one positive number per channel.

    Raises:
        ConfigurationError: another number of means or deviations, a deviation that is not positive, or no images.
    """
    first = graph.input
    if len(graph.input_layout.shape) != 3:
        raise ConfigurationError(
            f"{graph.name} takes {graph.input_layout.text()}, and only images (N, C, H, W) have pixels to "
            "normalize; leave the normalization out"
        )
    if not len(mean) == len(std) == first.shape[0] or not all(value > 0 for value in std):
        raise ConfigurationError(
            f"normalization is mean {tuple(mean)} and standard deviation {tuple(std)}; "
            f"expected one number for each of {first.shape[0]} channels, and positive deviations"
        )
    scale = 1.0 / (255.0 * np.asarray(std, np.float64))
    names = {node.name for node in graph}
    name = next(name for name in ("normalize", *(f"normalize{i}" for i in range(2, 9))) if name not in names)
    affine = g.ChannelAffine(
        name=name, inputs=(first.name,), shape=first.shape, source="",
        scale_c=scale.astype(np.float32), shift_c=(-np.asarray(mean, np.float64) * 255.0 * scale).astype(np.float32),
    )  # fmt: skip
    rest = (
        dataclasses.replace(node, inputs=tuple(name if i == first.name else i for i in node.inputs))
        for node in graph.nodes[1:]
    )
    return dataclasses.replace(graph, nodes=(first, affine, *rest))


def into_weights(graph: g.FloatGraph) -> g.FloatGraph:
    """Move a map scale · x + shift of the images into the convolutions that read it.

    Zero padding of normalized images is padding with the mean of each channel, which one zero point cannot express. So
    a convolution with padding gets an additional channel that is constant inside the image and zero in the padding;
    its weights add the shift inside the image only.
    """
    readers = graph.users[graph.input.name]
    affine = readers[0] if len(readers) == 1 else None
    if not isinstance(affine, g.ChannelAffine) or affine.bounds != g.UNBOUNDED or len(affine.shape) != 3:
        return graph
    convs = graph.users[affine.name]
    shifts = bool(affine.shift_c.any())
    for conv in convs:
        fits = isinstance(conv, g.Conv2d) and conv.inputs[0] == affine.name and affine.name not in conv.inputs[1:]
        if not fits or (isinstance(conv, g.Conv2d) and shifts and conv.groups != 1):
            return graph
    if affine.name in graph.outputs or not affine.scale_c.all():
        return graph
    pads = shifts and any(isinstance(conv, g.Conv2d) and any(conv.padding) for conv in convs)
    level = _representable(float(np.abs(affine.shift_c / affine.scale_c).max()))
    made = _constant_channel(affine, graph.input, level) if pads else []
    changes = {
        conv.name: _absorbed(conv, affine, made[-1].name if pads else graph.input.name, level if pads else None)
        for conv in convs
        if isinstance(conv, g.Conv2d)
    }
    nodes: list[g.Node] = []
    for node in graph:
        nodes.extend(made if node.name == affine.name else [changes.get(node.name, node)])
    return dataclasses.replace(graph, nodes=tuple(nodes))


def _representable(level: float) -> float:
    """Return a level near this one that is an integer of 8-bit images, in pixels 0..255 or in 0..1."""
    return float(np.rint(level)) if level >= 1 else float(np.rint(level * 255) / 255) or level


def _constant_channel(affine: g.ChannelAffine, image: g.Node, level: float) -> list[g.Node]:
    """Return the nodes that append a channel of ``level`` to the images."""
    channels, *size = image.shape
    one, whole = (1, *size), (channels + 1, *size)
    names = [f"{affine.name}.{part}" for part in ("channel", "constant")]
    source = affine.source
    return [
        g.Slice(name=names[0], inputs=(image.name,), shape=one, source=source, axis=0, start=0, stop=1, step=1),
        g.Elementwise(
            name=names[1], inputs=(names[0],), shape=one, source=source, function="constant", parameters=(level,)
        ),
        g.Concat(name=affine.name, inputs=(image.name, names[1]), shape=whole, source=source, axis=0),
    ]


def _absorbed(conv: g.Conv2d, affine: g.ChannelAffine, source: str, level: float | None) -> g.Conv2d:
    weight = conv.weight_oihw.astype(np.float64)
    per_group = weight.shape[1]
    scale = affine.scale_c.astype(np.float64)
    if conv.groups == 1:
        scaled = weight * scale[None, :, None, None]
    else:
        group = np.arange(len(weight)) // (len(weight) // conv.groups)
        channels = group[:, None] * per_group + np.arange(per_group)
        scaled = weight * scale[channels][:, :, None, None]
    bias = conv.bias_o
    shift: NDArray[np.float64] = affine.shift_c.astype(np.float64)
    if level is not None:
        brought = np.einsum("oihw,i->ohw", weight, shift)[:, None] / level
        scaled = np.concatenate([scaled, brought], axis=1)
    elif shift.any():
        bias = (bias + np.einsum("oihw,i->o", weight, shift)).astype(np.float32)
    return dataclasses.replace(
        conv, inputs=(source, *conv.inputs[1:]), weight_oihw=scaled.astype(np.float32), bias_o=bias
    )
