"""Operators that only move values: shapes, orders, slices, concatenation, copies."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx

from twoscale._frontends.torch_export.aten.emitter import Emitter, pair
from twoscale._ir.float_graph import Concat


def reshape(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """The same values in the same order; the batch may merge with the dimensions behind it and part from them."""
    before, after = (e.entries_before_batch(x) for x in (a["self"], node))
    if before != after and not _merges_before(e, a["self"], node, before, after):
        raise e.mixed(node)
    return e.at(node).reshape(e.input(a["self"]), e.shape(node))


def _merges_before(e: Emitter, x: fx.Node, node: fx.Node, before: int, after: int) -> bool:
    """Tell whether the batch merges with what lies before it, or parts from it again, as in nn.MultiheadAttention.

    (T, N, E) becomes (T·N, E), in which each image has T entries, in order. Whether what parts again is what was merged
    shows when the captured graph is compared with the model.
    """
    (_, parts_before), (_, parts_after) = e.batch_of(x), e.batch_of(node)
    merges = after == 1 and parts_before == 1 and parts_after == before
    parts = before == 1 and parts_after == 1 and parts_before == after
    return merges or parts


def channel_shuffle(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """Channels taken from each group in turn."""
    channels, *rest = shape = e.shape(node)
    groups = int(a["groups"])
    axes = (1, 0, *range(2, 2 + len(rest)))
    return e.at(node).rearrange(e.input(a["self"]), (groups, channels // groups, *rest), axes, shape)


def pixel_shuffle(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """Channels to pixels."""
    (_, height, width), factor, shape = e.input_shape(a["self"]), int(a["upscale_factor"]), e.shape(node)
    split = (shape[0], factor, factor, height, width)
    return e.at(node).rearrange(e.input(a["self"]), split, (0, 3, 1, 4, 2), shape)


def pixel_unshuffle(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """Pixels to channels."""
    channels, height, width = e.input_shape(a["self"])
    factor = int(a["downscale_factor"])
    split = (channels, height // factor, factor, width // factor, factor)
    return e.at(node).rearrange(e.input(a["self"]), split, (0, 2, 4, 1, 3), e.shape(node))


def upsample_nearest(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """Copies of the nearest pixels: every pixel several times, or some pixels of each side."""
    at, argument = e.at(node), a["input"] if "input" in a else a["self"]
    (channels, *size), (_, *out) = e.input_shape(argument), e.shape(node)
    name = e.input(argument)
    if all(after % before == 0 for before, after in zip(size, out, strict=True)):
        factors = [after // before for before, after in zip(size, out, strict=True)]
        image = at.reshape(name, (channels, *([1] * (2 - len(size))), *size))
        return at.reshape(at.upsample(image, (1, factors[0]) if len(factors) == 1 else pair(factors)), e.shape(node))
    for axis, length in enumerate(size):
        positions = torch.arange(length).reshape(-1, *[1] * (len(size) - 1 - axis)).expand(size).float()
        found = node.target(positions[None, None], *node.args[1:], **node.kwargs)[0, 0]  # type: ignore[operator]
        for other in reversed(range(len(size))):
            if other != axis:
                found = found.select(other, 0)
        name = at.gather(name, 1 + axis, [int(position) for position in found])
    return name


def interpolation(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """A linear interpolation, whose every output is a fixed sum of inputs: a product with a matrix along each side."""
    at, argument = e.at(node), a["input"] if "input" in a else a["self"]
    name, (_, *size) = e.input(argument), e.input_shape(argument)
    rest, named = node.args[1:], node.kwargs
    for axis, length in enumerate(size):
        basis = torch.zeros(length, 1, *size, dtype=torch.float64)
        for index in range(length):
            basis[index].select(1 + axis, index).fill_(1.0)
        found = node.target(basis, *rest, **named)  # type: ignore[operator]
        for other in reversed(range(len(size))):  # a constant stays one along the other side
            if other != axis:
                found = found.select(2 + other, 0)
        name = at.along(name, 1 + axis, found[:, 0].T.contiguous().float().numpy())
    return name


def permute(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """Dimensions in another order."""
    rank = len(a["self"].meta["val"].shape)
    order = list(range(rank))
    if "dims" in a:
        order = [int(d) % rank for d in a["dims"]]
    elif set(a) == {"self"}:  # .T
        order.reverse()
    elif "source" in a:  # movedim
        source, destination = ([int(d) % rank for d in np.atleast_1d(a[key])] for key in ("source", "destination"))
        order = [d for d in order if d not in source]
        for position, dim in sorted(zip(destination, source, strict=True)):
            order.insert(position, dim)
    else:
        i, j = (int(a[old if old in a else new]) % rank for old, new in (("dim0", "axis0"), ("dim1", "axis1")))
        order[i], order[j] = order[j], order[i]
    position, parts = e.batch_of(a["self"])
    if parts > 1:  # the batch's dimension holds the parts of an image, and is one of our tensor
        return e.at(node).permute(e.input(a["self"]), tuple(order))
    return e.at(node).permute(e.input(a["self"]), tuple(e.axis(a["self"], d) for d in order if d != position))


def stack(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """Concatenation along a new dimension."""
    if not all(e.is_activation(x) for x in a["tensors"]):
        raise e.at(node).unsupported("a stack of activations and constants", "use torch.cat")
    at, axis, shape = e.at(node), axis_of(e, node, node, a["dim"]), e.shape(node)
    part = (*shape[:axis], 1, *shape[axis + 1 :])
    return at.append(Concat, shape, *[at.reshape(e.input(x), part) for x in a["tensors"]], axis=axis)


def cat(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """Concatenation along any dimension but the batch."""
    parts: list[Any] = []
    for part in a["tensors"]:
        if e.is_activation(part):
            parts.append(e.input(part))
        elif part.meta["val"].numel() != 0:
            constant = e.array(part)
            assert constant is not None
            parts.append(constant[0])
    return e.at(node).concat(parts, axis_of(e, node, node, a["dim"]), e.shape(node))


def axis_of(e: Emitter, node: fx.Node, argument: fx.Node, dim: Any) -> int:
    """Return a dimension of ``argument``, counted without the batch."""
    axis = e.axis(argument, dim)
    if axis < 0:
        raise e.at(node).wrong("works along the batch; expected images to stay apart")
    return axis


def slicing(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """A range of indices, with a step."""
    shape = e.input_shape(a["self"])
    if e.shape(node) == shape and int(a["step"]) == 1:
        return e.input(a["self"])
    axis = axis_of(e, node, a["self"], a["dim"])
    start, stop, step = slice(a["start"], a["end"], a["step"]).indices(shape[axis])
    return e.at(node).slice(e.input(a["self"]), axis, start, stop, step)


def select(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """One index of a dimension, which is dropped."""
    axis = e.axis(a["self"], a["dim"])
    if axis < 0:
        raise e.at(node).wrong("takes one image; expected images to stay apart")
    return e.at(node).select(e.input(a["self"]), axis, int(a["index"]) % e.input_shape(a["self"])[axis])


def unbind(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """Every index of a dimension, which is dropped, apart."""
    axis = e.axis(a["self"], a["dim"])
    if axis < 0:
        raise e.at(node).wrong("takes images apart; expected them to stay a batch")
    for user in list(node.users):
        e.tensors[user] = e.at(user).select(e.input(a["self"]), axis, int(user.args[1]))  # type: ignore[arg-type]


def narrow(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """A range of indices."""
    return slicing(e, node, {**a, "start": a["start"], "end": int(a["start"]) + int(a["length"]), "step": 1})


def split(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """Each part that is read is a slice of the whole."""
    parts = node.meta["val"]
    axis = e.axis(a["self"], a["dim"])
    if axis < 0:
        raise e.at(node).wrong("splits the batch; expected images to stay apart")
    dim = int(a["dim"])
    starts = np.cumsum([0, *(int(part.shape[dim]) for part in parts)])
    for user in list(node.users):
        index = int(user.args[1])  # type: ignore[arg-type]
        start, stop = int(starts[index]), int(starts[index + 1])
        e.tensors[user] = e.at(user).slice(e.input(a["self"]), axis, start, stop)


def identity(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """Operators that change nothing in eval mode."""
    if a.get("train"):
        raise e.at(node).unsupported("a dropout that is on in eval mode", "pass training=self.training")
    return e.input(a["self"] if "self" in a else a["input"])


def to(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """A copy in float32."""
    value = node.meta["val"]
    if value.dtype not in (torch.float32, e.dtype):
        raise e.at(node).unsupported(f"a conversion to {value.dtype}", "keep the model in float32")
    return e.input(a["self"])


def filled(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """One value in the shape of another tensor. The constant has a batch of one image."""
    value = 1.0 if "ones" in str(node.target) else float(a.get("fill_value") or 0.0)
    e.constants[node] = torch.full((1, *e.shape(node)), value)


def repeat(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """Copies one after the other along each dimension."""
    if e.batch_of(node)[1] != e.batch_of(a["self"])[1]:
        raise e.mixed(node)
    return e.at(node).tile(e.input(a["self"]), e.shape(node))


def rearranged(e: Emitter, node: fx.Node, a: dict[str, Any]) -> str:
    """Indices of dimensions in another order, or several times: index, index_select, flip, roll."""
    name = e.input(a["self"])
    function = str(node.target._opname)  # type: ignore[union-attr]
    orders: list[tuple[int, Any]]
    if function == "index":
        orders = [(dim, index) for dim, index in enumerate(a["indices"]) if index is not None]
    elif function == "index_select":
        orders = [(int(a["dim"]), a["index"])]
    elif function == "repeat_interleave":
        orders = [(int(a["dim"]), None)]
    elif function == "flip":
        orders = [(int(dim), None) for dim in a["dims"]]
    else:
        orders = [(int(dim), int(shift)) for dim, shift in zip(a["dims"], a["shifts"], strict=True)]
    if len(orders) > 1 and function == "index":
        raise e.at(node).unsupported("an index along several dimensions", "index one after the other")
    for dim, order in orders:
        axis = e.axis(a["self"], dim)
        if axis < 0 and function == "repeat_interleave":  # each image becomes several parts
            axis, parts = e.batch_of(a["self"])
            shape = e.shape(a["self"])
            name = e.at(node).reshape(name, shape if parts > 1 else (*shape[:axis], 1, *shape[axis:]))
        if axis < 0:
            raise e.at(node).wrong("moves images; expected them to stay apart")
        indices = np.arange(e.builder[name].shape[axis])
        if function == "flip":
            indices = indices[::-1]
        elif function == "roll":
            indices = np.roll(indices, order)
        elif function == "repeat_interleave":
            indices = np.repeat(indices, int(a["repeats"]))
        else:
            chosen = np.asarray(e.constants[order].cpu()) if isinstance(order, fx.Node) else np.asarray(order)
            indices = indices[chosen]
        name = e.at(node).gather(name, axis, indices.tolist())
    return e.at(node).reshape(name, e.shape(node))
