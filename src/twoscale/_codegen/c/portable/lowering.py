"""IntegerNetwork → Program: which kernels run on which bytes, with which constants. No text yet.

An activation is one byte, q for uint8 and q + 128 for int8, so that kernels know one type: no difference q − z
changes. Accumulators are four bytes in the machine's order. Equation numbers are those of docs/arithmetic.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._codegen.c.common.names import Identifiers
from twoscale._codegen.c.common.placement import place
from twoscale._codegen.c.common.program import Call, Constant, Fields, Operand, Program, Step, Tensor
from twoscale._codegen.c.common.storage import Move, memory_axes, memory_order, memory_steps, reshape_move
from twoscale._ir import layers as n
from twoscale._ir.arithmetic import ADD_SHIFT
from twoscale._ir.checks import multipliers
from twoscale._ir.integer_network import IntegerNetwork
from twoscale.errors import ConfigurationError

__all__ = ["copy_call", "lower", "window_fields"]

_LARGEST = 2**31 - 1
_COPY_RANK = 6


def lower(network: IntegerNetwork) -> Program:
    """Turn a network into calls of kernels and plan its memory.

    Raises:
        ConfigurationError: integers alone cannot compute it; names the layer and what to do.
    """
    for layer in network:
        if any(m.shift is None for m in multipliers(layer)):
            raise ConfigurationError(
                f"layer {layer.name} of {network.name} has free float multipliers, which integer-only C cannot "
                'reproduce; quantize with a scheme on the grid, e.g. scheme="default"'
            )
    lowering = _Lowering(network)
    steps = tuple(lowering.step(index, layer) for index, layer in enumerate(network))
    places, plan, live = place(lowering.tensors, steps, network)
    return Program(network, lowering.tensors, steps, places, plan, live)


class _Lowering:
    """Walks the layers; what one handler needs to know of those before."""

    def __init__(self, network: IntegerNetwork) -> None:
        self.network = network
        self.tensors: dict[str, Tensor] = {}
        self.roots: dict[str, str] = {}
        self.names = {layer.name for layer in network}
        self.identifiers = Identifiers()
        self.constants: list[Constant] = []
        self.scratch: list[Tensor] = []
        self.identifier = ""

    def step(self, index: int, layer: n.Layer) -> Step:
        self.identifier = self.identifiers.of(layer.name)
        self.constants, self.scratch = [], []
        if math.prod(layer.output.shape) * 4 > _LARGEST:
            raise self.refusal(layer, f"has an output of shape {layer.output.shape}", "tensors must fit 2**29 elements")
        if index == 0 and layer.name == self.network.output:
            raise self.refusal(layer, "is the network's output", "there is nothing to compute")
        self.tensors[layer.name] = Tensor(layer.name, layer.output, memory_order(layer.output.shape))
        made = _LOWER[type(layer)](self, layer)
        self.roots[layer.name] = layer.name if made.view_of is None else self.roots[made.view_of]
        return Step(
            index,
            layer,
            self.identifier,
            made.calls,
            tuple(self.constants),
            tuple(self.scratch),
            made.view_of,
            made.in_place_of,
        )

    def refusal(self, layer: n.Layer, found: str, remedy: str) -> ConfigurationError:
        return ConfigurationError(f"layer {layer.name} of {self.network.name} {found}: {remedy}")

    def inputs(self, layer: n.Layer) -> list[Tensor]:
        return [self.tensors[name] for name in layer.inputs]

    def constant(self, kind: str, ctype: str, values: NDArray[Any], dimensions: tuple[int, ...]) -> str:
        name = self.identifiers.of(f"{self.identifier}_{kind}")
        self.constants.append(Constant(name, ctype, np.ascontiguousarray(values).ravel(), dimensions))
        return name

    def requantization(self, layer: n.Layer, multiplier: n.Multiplier | None) -> Fields:
        """Return the fields of a ``requantization``: how accumulators become the layer's output."""
        if multiplier is None:
            return {"multiplier": "NULL"}
        integers = multiplier.integers
        fields = self.bounds(layer)
        if len(integers) == 1:
            return {"multiplier": f"(const int32_t[]){{{integers[0]}}}", "shift": multiplier.shift, **fields}
        array = self.constant("multiplier", "int32_t", integers, integers.shape)
        return {"multiplier": array, "per_channel": 1, "shift": multiplier.shift, **fields}

    def bounds(self, layer: n.Layer) -> dict[str, int]:
        """Return the zero point and the bounds of a layer's output, as they are kept."""
        tensor = self.tensors[layer.name]
        return {"zero": tensor.zero, "lo": layer.output.lo + tensor.shift, "hi": layer.output.hi + tensor.shift}

    def view_or_copy(self, layer: n.Layer, move: Move) -> _Made:
        """Return nothing to do, if bytes can stay as they are, else the copy."""
        (x,) = self.inputs(layer)
        if move.is_plain and x.size == self.tensors[layer.name].size and not self._must_leave_image(layer):
            return _Made(view_of=x.name)
        return _Made((copy_call(self.network, x, self.tensors[layer.name], move),))

    def _must_leave_image(self, layer: n.Layer) -> bool:
        """Whether this is the network's output but would lie in the caller's image."""
        return layer.name == self.network.output and self.roots[layer.inputs[0]] == self.network.input.name

    def order_is_free(self, name: str) -> bool:
        """Whether only linear layers read a tensor, whose weights can follow any order of elements."""
        readers = [layer for layer in self.network if name in layer.inputs]
        return (
            name != self.network.output
            and bool(readers)
            and all(
                isinstance(reader, n.Linear)
                or (isinstance(reader, n.Clamp | n.Table) and self.order_is_free(reader.name))
                for reader in readers
            )
        )

    def keep_order(self, layer: n.Layer) -> None:
        """Let a layer's output have its input's order of elements."""
        self.tensors[layer.name] = Tensor(layer.name, layer.output, self.tensors[layer.inputs[0]].order)


def copy_call(network: IntegerNetwork, source: Tensor, target: Tensor, move: Move) -> Call:
    """Return the call that does ``move``.

    Raises:
        ConfigurationError: the move has more strides than the kernel knows; names the layer.
    """
    item = source.item
    arguments = (
        Operand(source.name, move.from_offset * item),
        Operand(target.name, move.to_offset * item),
    )
    sizes, from_steps, to_steps = list(move.sizes), list(move.from_steps), list(move.to_steps)
    run = item
    if sizes and from_steps[-1] == to_steps[-1] == 1:
        run *= sizes.pop()
        from_steps.pop(), to_steps.pop()
    if not sizes:
        return Call("memcpy", (arguments[1], arguments[0], run))
    if len(sizes) > _COPY_RANK:
        raise ConfigurationError(
            f"layer {target.name} of {network.name} moves data in {len(sizes)} nested strides: "
            f"{_COPY_RANK} are supported"
        )
    fields = {
        "rank": len(sizes),
        "size": tuple(sizes),
        "from_step": tuple(item * step for step in from_steps),
        "to_step": tuple(item * step for step in to_steps),
        "run": run,
    }
    return Call("copy", arguments, fields)


@dataclass(frozen=True)
class _Made:
    """What a handler decided."""

    calls: tuple[Call, ...] = ()
    view_of: str | None = None
    in_place_of: tuple[str, ...] = ()


def _chw(shape: tuple[int, ...]) -> tuple[int, int, int]:
    channels, height, width = shape
    return channels, height, width


def _quantize_input(b: _Lowering, layer: n.QuantizeInput) -> _Made:
    if layer.output.dtype != "int8":
        return _Made()
    size = b.tensors[layer.name].size
    return _Made((Call("from_int8", ("image", Operand(layer.name), size)),))


def _conv2d(b: _Lowering, layer: n.Conv2d) -> _Made:
    x = b.inputs(layer)[0]
    in_c, in_h, in_w = _chw(x.spec.shape)
    out_c, out_h, out_w = _chw(layer.output.shape)
    kernel_h, kernel_w = layer.weight.shape[2:]
    weight_ohwi = layer.weight.transpose(0, 2, 3, 1)
    fields: dict[str, Any] = {
        "in_h": in_h,
        "in_w": in_w,
        "in_c": in_c,
        "out_h": out_h,
        "out_w": out_w,
        "out_c": out_c,
        "kernel_h": kernel_h,
        "kernel_w": kernel_w,
        "stride_h": layer.stride[0],
        "stride_w": layer.stride[1],
        "dilation_h": layer.dilation[0],
        "dilation_w": layer.dilation[1],
        "pad_top": layer.padding[0],
        "pad_left": layer.padding[1],
        "groups": layer.groups,
        "in_zero": x.zero,
        "weight": b.constant("weight", "int8_t", weight_ohwi, weight_ohwi.shape),
        "bias": b.constant("bias", "int32_t", layer.bias_o, layer.bias_o.shape),
    }
    residual: Operand | str = "NULL"
    in_place_of: tuple[str, ...] = ()
    if layer.residual_multiplier is not None:
        joined = b.inputs(layer)[1]
        fields["residual_zero"] = joined.zero
        fields["residual_multiplier"] = int(layer.residual_multiplier.integers[0])
        residual = Operand(joined.name)
        in_place_of = (joined.name,) if joined is not x else ()  # x is read around each pixel
    fields["to"] = b.requantization(layer, layer.multiplier)
    return _Made((Call("conv2d", (Operand(x.name), residual, Operand(layer.name)), fields),), None, in_place_of)


def _linear(b: _Lowering, layer: n.Linear) -> _Made:
    (x,) = b.inputs(layer)
    weight = layer.weight[:, x.order]
    fields = {
        "in_count": weight.shape[1],
        "out_count": weight.shape[0],
        "in_zero": x.zero,
        "weight": b.constant("weight", "int8_t", weight, weight.shape),
        "bias": b.constant("bias", "int32_t", layer.bias_o, layer.bias_o.shape),
        "to": b.requantization(layer, layer.multiplier),
    }
    return _Made((Call("linear", (Operand(x.name), Operand(layer.name)), fields),))


def _add(b: _Lowering, layer: n.Add) -> _Made:
    first, second = b.inputs(layer)
    fields = {
        "count": b.tensors[layer.name].size,
        "a_zero": first.zero,
        "a_multiplier": int(layer.multipliers[0].integers[0]),
        "b_zero": second.zero,
        "b_multiplier": int(layer.multipliers[1].integers[0]),
        "to": {"shift": ADD_SHIFT, **b.bounds(layer)},
    }
    call = Call("add", (Operand(first.name), Operand(second.name), Operand(layer.name)), fields)
    return _Made((call,), None, (first.name, second.name))


def _mul(b: _Lowering, layer: n.Mul) -> _Made:
    operands = b.inputs(layer)
    shape = layer.output.shape
    left, right = (
        [step if size > 1 else 0 for size, step in zip(x.spec.shape, memory_steps(x.spec.shape), strict=True)]
        for x in operands
    )
    loops: list[tuple[int, int, int]] = []
    for axis in memory_axes(len(shape)):
        size = shape[axis]
        if loops and loops[-1][1:] == (size * left[axis], size * right[axis]):
            loops[-1] = (loops[-1][0] * size, left[axis], right[axis])
        elif size > 1:
            loops.append((size, left[axis], right[axis]))
    if len(loops) > 3:
        raise b.refusal(layer, f"repeats operands along {len(loops)} dimensions", "3 are supported")
    loops = [(1, 0, 0)] * (3 - len(loops)) + loops
    fields = {
        "size": tuple(loop[0] for loop in loops),
        "a_step": tuple(loop[1] for loop in loops),
        "b_step": tuple(loop[2] for loop in loops),
        "a_zero": operands[0].zero,
        "b_zero": operands[1].zero,
        "to": b.requantization(layer, layer.multiplier),
    }
    call = Call("multiply", (*(Operand(x.name) for x in operands), Operand(layer.name)), fields)
    whole = tuple(x.name for x in operands if x.spec.shape == shape)
    return _Made((call,), None, whole if b.tensors[layer.name].item == 1 else ())


def window_fields(layer: n.MaxPool2d | n.AveragePool2d, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the fields of a pool of inputs of ``shape`` (C, H, W) that say where its windows lie."""
    channels, in_h, in_w = _chw(shape)
    _, out_h, out_w = _chw(layer.output.shape)
    return {
        "in_h": in_h,
        "in_w": in_w,
        "channels": channels,
        "out_h": out_h,
        "out_w": out_w,
        "kernel_h": layer.kernel[0],
        "kernel_w": layer.kernel[1],
        "stride_h": layer.stride[0],
        "stride_w": layer.stride[1],
        "pad_top": layer.padding[0],
        "pad_left": layer.padding[1],
    }


def _pool_fits_in_place(fields: Fields, dilation: tuple[int, int]) -> bool:
    """Whether no window reads a pixel that an earlier one was written over.

    Pixel p of the result is written after windows up to p were read, so it suffices that every window p reads
    pixels from p on.
    """
    firsts = []
    for out_size, in_size, stride, pad, step in (
        (fields["out_h"], fields["in_h"], fields["stride_h"], fields["pad_top"], dilation[0]),
        (fields["out_w"], fields["in_w"], fields["stride_w"], fields["pad_left"], dilation[1]),
    ):
        start = np.arange(out_size) * stride - pad
        firsts.append(np.where(start < 0, start % step, start).clip(0, in_size))
    first_pixel = firsts[0][:, None] * fields["in_w"] + firsts[1][None, :]
    return bool((first_pixel.ravel() >= np.arange(first_pixel.size)).all())


def _average_pool(b: _Lowering, layer: n.AveragePool2d) -> _Made:
    (x,) = b.inputs(layer)
    fields = window_fields(layer, x.spec.shape)
    fields["in_zero"] = x.zero
    fields["to"] = b.requantization(layer, layer.multiplier)
    in_place = b.tensors[layer.name].item == 1 and _pool_fits_in_place(fields, (1, 1))
    call = Call("average_pool2d", (Operand(x.name), Operand(layer.name)), fields)
    return _Made((call,), None, (x.name,) if in_place else ())


def _max_pool(b: _Lowering, layer: n.MaxPool2d) -> _Made:
    (x,) = b.inputs(layer)
    fields = window_fields(layer, x.spec.shape)
    fields["dilation_h"], fields["dilation_w"] = layer.dilation
    call = Call("max_pool2d", (Operand(x.name), Operand(layer.name)), fields)
    return _Made((call,), None, (x.name,) if _pool_fits_in_place(fields, layer.dilation) else ())


def _concat(b: _Lowering, layer: n.Concat) -> _Made:
    target = b.tensors[layer.name]
    steps = memory_steps(layer.output.shape)
    calls = []
    start = 0
    for x, multiplier in zip(b.inputs(layer), layer.multipliers, strict=True):
        offset = start * steps[layer.axis]
        start += x.spec.shape[layer.axis]
        if multiplier is None:
            calls.append(
                copy_call(b.network, x, target, Move.of(x.spec.shape, memory_steps(x.spec.shape), steps, 0, offset))
            )
            continue
        axes = memory_axes(len(x.spec.shape))
        inside = axes[axes.index(layer.axis) :]
        run = math.prod(x.spec.shape[axis] for axis in inside)
        fields = {
            "outer": x.size // run,
            "run": run,
            "y_step": math.prod(layer.output.shape[axis] for axis in inside),
            "in_zero": x.zero,
            "to": b.requantization(layer, multiplier),
        }
        calls.append(Call("rescale", (Operand(x.name), Operand(layer.name, offset)), fields))
    return _Made(tuple(calls))


def _reshape(b: _Lowering, layer: n.Reshape) -> _Made:
    (x,) = b.inputs(layer)
    target = b.tensors[layer.name]
    if not np.array_equal(x.order, target.order) and b.order_is_free(layer.name):
        b.keep_order(layer)
        return _Made(view_of=x.name)
    move = reshape_move(x.spec.shape, layer.output.shape)
    if move is not None:
        return b.view_or_copy(layer, move)
    flat_shape = (len(x.order),)
    name = f"{layer.name} in C order"
    while name in b.names:
        name += " once more"
    flat = Tensor(name, n.TensorSpec(flat_shape, x.spec.dtype, 1.0), memory_order(flat_shape))
    b.scratch.append(flat)
    b.tensors[flat.name] = flat
    there, back = reshape_move(x.spec.shape, flat_shape), reshape_move(flat_shape, layer.output.shape)
    assert there is not None
    assert back is not None
    return _Made((copy_call(b.network, x, flat, there), copy_call(b.network, flat, target, back)))


def _permute(b: _Lowering, layer: n.Permute) -> _Made:
    (x,) = b.inputs(layer)
    from_steps = memory_steps(x.spec.shape)
    shape = layer.output.shape
    return b.view_or_copy(layer, Move.of(shape, tuple(from_steps[axis] for axis in layer.axes), memory_steps(shape)))


def _slice(b: _Lowering, layer: n.Slice) -> _Made:
    (x,) = b.inputs(layer)
    steps = list(memory_steps(x.spec.shape))
    offset = layer.start * steps[layer.axis]
    steps[layer.axis] *= layer.step
    shape = layer.output.shape
    return b.view_or_copy(layer, Move.of(shape, tuple(steps), memory_steps(shape), offset))


def _pad(b: _Lowering, layer: n.Pad) -> _Made:
    (x,) = b.inputs(layer)
    target = b.tensors[layer.name]
    steps = memory_steps(layer.output.shape)
    offset = sum(before * step for (before, _), step in zip(layer.widths, steps, strict=True))
    move = Move.of(x.spec.shape, memory_steps(x.spec.shape), steps, 0, offset)
    return _Made((Call("memset", (Operand(layer.name), x.zero, target.size)), copy_call(b.network, x, target, move)))


def _clamp(b: _Lowering, layer: n.Clamp) -> _Made:
    (x,) = b.inputs(layer)
    b.keep_order(layer)
    target = b.tensors[layer.name]
    bounds = (layer.output.lo + target.shift, layer.output.hi + target.shift)
    return _Made((Call("clamp", (Operand(x.name), Operand(layer.name), target.size, *bounds)),), None, (x.name,))


def _table(b: _Lowering, layer: n.Table) -> _Made:
    (x,) = b.inputs(layer)
    b.keep_order(layer)
    target = b.tensors[layer.name]
    table = b.constant("table", "uint8_t", (layer.table + target.shift).astype(np.uint8), (256,))
    return _Made((Call("look_up", (Operand(x.name), Operand(layer.name), target.size, table)),), None, (x.name,))


_LOWER: dict[type[n.Layer], Callable[[_Lowering, Any], _Made]] = {
    n.Add: _add,
    n.AveragePool2d: _average_pool,
    n.Clamp: _clamp,
    n.Concat: _concat,
    n.Conv2d: _conv2d,
    n.Linear: _linear,
    n.MaxPool2d: _max_pool,
    n.Mul: _mul,
    n.Pad: _pad,
    n.Permute: _permute,
    n.QuantizeInput: _quantize_input,
    n.Reshape: _reshape,
    n.Slice: _slice,
    n.Table: _table,
}
