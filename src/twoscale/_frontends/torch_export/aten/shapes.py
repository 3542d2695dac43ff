"""What moves values only: other shapes, orders and parts, concatenation, copies."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx

from twoscale._frontends.torch_export.aten.emitter import Emitter, unsupported
from twoscale._ir.float_graph import Concat, Pad, Slice
from twoscale.errors import CaptureError


def reshape(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """The same values in the same order."""
    e.reshape(node, e.input(a["self"]), e.shape(node))


def channel_shuffle(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """Channels taken from each group in turn."""
    channels, *rest = e.shape(node)
    groups = int(a["groups"])
    axes = (1, 0, *range(2, 2 + len(rest)))
    e.rearrange(node, (groups, channels // groups, *rest), axes)


def pixel_shuffle(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """Channels to pixels."""
    (_, height, width), factor = e.input_shape(a["self"]), int(a["upscale_factor"])
    e.rearrange(node, (e.shape(node)[0], factor, factor, height, width), (0, 3, 1, 4, 2))


def pixel_unshuffle(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """Pixels to channels."""
    channels, height, width = e.input_shape(a["self"])
    factor = int(a["downscale_factor"])
    e.rearrange(node, (channels, height // factor, factor, width // factor, factor), (0, 2, 4, 1, 3))


def upsample_nearest(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """Every pixel several times: concatenated with itself along new dimensions."""
    argument = a["input"] if "input" in a else a["self"]
    (channels, height, width), out = e.input_shape(argument), e.shape(node)
    if out[1] % height or out[2] % width:
        raise unsupported(e, node, f"enlarging {height}x{width} to {out[1]}x{out[2]}", "enlarge by whole factors")
    shape = [channels, height, 1, width, 1]
    name = e.reshape(node, e.input(argument), tuple(shape))
    for axis, factor in ((2, out[1] // height), (4, out[2] // width)):
        if factor > 1:
            shape[axis] = factor
            name = e.derive(node, Concat, tuple(shape), *[name] * factor, axis=axis)
    e.reshape(node, name, out)


def permute(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """Dimensions in another order; the batch stays the first."""
    rank = 1 + len(e.input_shape(a["self"]))
    order = list(range(rank))
    if "dims" in a:
        order = [int(d) % rank for d in a["dims"]]
    elif "source" in a:  # movedim
        source, destination = ([int(d) % rank for d in np.atleast_1d(a[key])] for key in ("source", "destination"))
        order = [d for d in order if d not in source]
        for position, dim in sorted(zip(destination, source, strict=True)):
            order.insert(position, dim)
    else:
        i, j = (int(a[old if old in a else new]) % rank for old, new in (("dim0", "axis0"), ("dim1", "axis1")))
        order[i], order[j] = order[j], order[i]
    if order[0] != 0:
        raise CaptureError(
            f"{node.target} at {e.source(node)} moves the batch; expected it to stay the first dimension"
        )
    e.permute(node, e.input(a["self"]), tuple(d - 1 for d in order[1:]))


def stack(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """Concatenation along a new dimension."""
    axis, shape = axis_of(e, node, a["dim"]), e.shape(node)
    part = (*shape[:axis], 1, *shape[axis + 1 :])
    e.derive(node, Concat, shape, *[e.reshape(node, e.input(x), part) for x in a["tensors"]], axis=axis)


def cat(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """Concatenation along any dimension but the batch; zeros at the ends are padding."""
    axis, shape = axis_of(e, node, a["dim"]), e.shape(node)
    parts = [part for part in a["tensors"] if part.meta["val"].numel() != 0]
    first, *_, last = [index for index, part in enumerate(parts) if e.is_activation(part)] * 2
    ends = parts[:first], parts[last + 1 :]
    if any(e.array(part).any() for end in ends for part in end):  # type: ignore[union-attr]
        raise unsupported(e, node, "a concatenation with constants that are not zero", "concatenate activations")
    before, after = (sum(int(part.meta["val"].shape[axis + 1]) for part in end) for end in ends)
    names = [e.input(part) for part in parts[first : last + 1]]
    inner = (*shape[:axis], shape[axis] - before - after, *shape[axis + 1 :])
    name = names[0] if len(names) == 1 else e.derive(node, Concat, inner, *names, axis=axis)
    e.tensors[node] = name
    if before or after:
        widths = tuple((before, after) if index == axis else (0, 0) for index in range(len(shape)))
        e.derive(node, Pad, shape, name, widths=widths)


def axis_of(e: Emitter, node: fx.Node, dim: Any) -> int:
    """Return a dimension of the result, counted without the batch."""
    rank = len(node.meta["val"].shape)
    axis = int(dim) % rank
    if axis == 0:
        raise CaptureError(f"{node.target} at {e.source(node)} works along the batch; expected images to stay apart")
    return axis - 1


def slicing(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """A range of indices, with a step."""
    shape = e.input_shape(a["self"])
    dim = int(a["dim"]) % (1 + len(shape))
    if e.shape(node) == shape and int(a["step"]) == 1:
        e.same(node, a["self"])
        return
    axis = axis_of(e, node, dim)
    start, stop, step = slice(a["start"], a["end"], a["step"]).indices(shape[axis])
    e.add(node, Slice(**e.common(node, a["self"]), axis=axis, start=start, stop=stop, step=step))


def select(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """One index of a dimension, which is dropped."""
    shape = e.input_shape(a["self"])
    dim = int(a["dim"]) % (1 + len(shape))
    if dim == 0:
        raise CaptureError(f"{node.target} at {e.source(node)} takes one image; expected images to stay apart")
    _take(e, node, a["self"], dim - 1, int(a["index"]) % shape[dim - 1])


def _take(e: Emitter, node: fx.Node, argument: fx.Node, axis: int, index: int) -> None:
    """One index along ``axis``, which is dropped."""
    shape = list(e.input_shape(argument))
    shape[axis] = 1
    name = e.input(argument)
    name = e.derive(node, Slice, tuple(shape), name, axis=axis, start=index, stop=index + 1, step=1)
    e.reshape(node, name, tuple(shape[:axis] + shape[axis + 1 :]))


def unbind(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """Every index of a dimension, which is dropped, apart."""
    dim = int(a["dim"]) % (1 + len(e.input_shape(a["self"])))
    if dim == 0:
        raise CaptureError(f"{node.target} at {e.source(node)} takes images apart; expected them to stay a batch")
    for user in list(node.users):
        _take(e, user, a["self"], dim - 1, int(user.args[1]))  # type: ignore[arg-type]


def narrow(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """A range of indices."""
    slicing(e, node, {**a, "start": a["start"], "end": int(a["start"]) + int(a["length"]), "step": 1})


def split(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """Each part that is read is a slice of the whole."""
    parts = node.meta["val"]
    rank = 1 + len(e.input_shape(a["self"]))
    dim = int(a["dim"]) % rank
    if dim == 0:
        raise CaptureError(f"{node.target} at {e.source(node)} splits the batch; expected images to stay apart")
    starts = np.cumsum([0, *(int(part.shape[dim]) for part in parts)])
    for user in list(node.users):
        index = int(user.args[1])  # type: ignore[arg-type]
        made = Slice(
            **e.common(user, a["self"]),
            axis=dim - 1,
            start=int(starts[index]),
            stop=int(starts[index + 1]),
            step=1,
        )
        e.add(user, made)


def identity(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """What changes nothing in eval mode."""
    if a.get("train"):
        raise unsupported(e, node, "a dropout that is on in eval mode", "pass training=self.training")
    e.same(node, a["self"] if "self" in a else a["input"])


def to(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """A copy in float32."""
    value = node.meta["val"]
    if value.dtype not in (torch.float32, e.dtype):
        raise unsupported(e, node, f"a conversion to {value.dtype}", "keep the model in float32")
    e.same(node, a["self"])


def filled(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """One value in the shape of another tensor; as a constant, one image stands for all."""
    value = 1.0 if "ones" in str(node.target) else float(a.get("fill_value") or 0.0)
    e.constants[node] = torch.full((1, *e.shape(node)), value)


def repeat(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """Copies one after the other along each dimension."""
    shape = e.shape(node)
    name = e.input(a["self"])
    size = e.made(name).shape
    size = (1,) * (len(shape) - len(size)) + size
    name = e.reshape(node, name, size)
    for axis, (whole, part) in enumerate(zip(shape, size, strict=True)):
        if whole != part:
            size = (*size[:axis], whole, *size[axis + 1 :])
            name = e.derive(node, Concat, size, *[name] * (whole // part), axis=axis)
    e.tensors[node] = name


def rearranged(e: Emitter, node: fx.Node, a: dict[str, Any]) -> None:
    """Indices of dimensions in another order, or several times: index, index_select, flip, roll."""
    name, rank = e.input(a["self"]), 1 + len(e.input_shape(a["self"]))
    function = str(node.target._opname)  # type: ignore[union-attr]
    orders: list[tuple[int, Any]]
    if function == "index":
        orders = [(dim, e.array(index)) for dim, index in enumerate(a["indices"]) if index is not None]
    elif function == "index_select":
        orders = [(int(a["dim"]), e.array(a["index"]))]
    elif function == "repeat_interleave":
        orders = [(int(a["dim"]), None)]
    elif function == "flip":
        orders = [(int(dim), None) for dim in a["dims"]]
    else:
        orders = [(int(dim), int(shift)) for dim, shift in zip(a["dims"], a["shifts"], strict=True)]
    if len(orders) > 1 and function == "index":
        raise unsupported(e, node, "an index along several dimensions", "index one after the other")
    for dim, order in orders:
        axis = dim % rank - 1
        if axis < 0:
            raise CaptureError(f"{node.target} at {e.source(node)} moves images; expected them to stay apart")
        indices = np.arange(e.made(name).shape[axis])
        if function == "flip":
            indices = indices[::-1]
        elif function == "roll":
            indices = np.roll(indices, order)
        elif function == "repeat_interleave":
            indices = np.repeat(indices, int(a["repeats"]))
        else:
            indices = indices[np.asarray(order).astype(int)]
        name = e.gather(node, name, axis, [int(i) for i in indices])
    e.tensors[node] = name
