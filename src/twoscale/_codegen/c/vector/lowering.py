"""IntegerNetwork → FastProgram: vector kernels on rows of bytes, several images at a time. No text yet.

Images lie in H, W, C order like those of the portable C, but a tensor that a convolution reads has a border of zero
points, so that windows need no bounds checks: rows are further apart than they are long. What has no vector kernel
keeps its portable one, image after image, on tensors without a border.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._codegen.c.common.memory import Buffer, MemoryPlan, plan_memory
from twoscale._codegen.c.common.names import Identifiers
from twoscale._codegen.c.common.program import Call, Constant, Fields, Lowered, Operand, Place, Program, Step, Tensor
from twoscale._codegen.c.common.text import decimal
from twoscale._codegen.c.portable.lowering import lower, window_fields
from twoscale._codegen.c.vector.convolutions import (
    Packed,
    PackedDepthwise,
    best_merge,
    conv_fields,
    conv_windows,
    linear_windows,
    pack,
    pack_depthwise,
    requantizes_exactly,
)
from twoscale._codegen.c.vector.groups import join_groups
from twoscale._codegen.c.vector.layout import Rows, bordered, dense
from twoscale._codegen.c.vector.tiles import Tile
from twoscale._ir import layers as n
from twoscale._ir.arithmetic import sum_is_exact
from twoscale._ir.checks import sum_bounds
from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["FastCall", "FastProgram", "FastStep", "lower_fast"]

_ALIGNMENT = 64
_SLACK = 64
"""Bytes after each tensor that vector loads may touch."""
_BLOCK_BYTES = 2 * 1024 * 1024
"""Arenas of a block of images are to stay in a core's second-level cache."""
_LARGEST_BLOCK = 16
_MOST_GROUPS = 64
"""A convolution of more groups, with at least 16 channels or all there are in each, keeps its portable kernel."""


@dataclass(frozen=True)
class FastCall(Call):
    """One call of a kernel for a block of images.

    Kernels of the portable C (``portable``) take one image; others take the block.
    """

    portable: bool = False
    instance: tuple[int, ...] = ()
    """Numbers that the kernel is compiled for."""


@dataclass(frozen=True, eq=False)
class FastStep(Step):
    """What one layer does."""

    calls: tuple[FastCall, ...]


@dataclass(frozen=True, eq=False)
class FastProgram(Lowered):
    """A network as calls of kernels for a block of images.

    Places are those of a tensor's first row in an image's part of the arena, and ``live_bytes`` are of that part.
    """

    steps: tuple[FastStep, ...]
    rows: Mapping[str, Rows]
    """By tensor."""
    image_bytes: int
    """An image's part of the arena."""
    block: int
    """Images that are computed together."""

    @property
    def arena_bytes(self) -> int:
        """Size of the arena of one thread, with what alignment takes and what vectors read beyond the last tensor."""
        beyond = max(
            (4 * layer.groups * layer.dilation[1] for layer in self.network if isinstance(layer, n.Conv2d)), default=0
        )
        return self.image_bytes * self.block + _ALIGNMENT + _SLACK + beyond


def lower_fast(network: IntegerNetwork) -> FastProgram:
    """Turn a network into calls of vector kernels and plan its memory.

    Raises:
        ConfigurationError: integers alone cannot compute it; names the layer and what to do.
    """
    lowering = _Lowering(lower(network))
    steps = tuple(lowering.step(step) for step in lowering.program.steps)
    rows, tensors = lowering.rows, lowering.tensors
    places, plan, live = _place(network, rows, steps)
    image_bytes = _aligned(max(plan.size, 1) + _SLACK)
    if image_bytes % 4096 == 0:  # images then would compete for the same sets of the first-level cache
        image_bytes += _ALIGNMENT
    block = max(1, min(_LARGEST_BLOCK, _BLOCK_BYTES // image_bytes))
    return FastProgram(network, tensors, steps, places, plan, live, rows, image_bytes, block)


class _Lowering:
    """Walks the layers; decides where rows lie."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.network = program.network
        self.tensors = dict(program.tensors)
        self.roots: dict[str, str] = {}
        for step in program.steps:
            name = step.layer.name
            self.roots[name] = name if step.view_of is None else self.roots[step.view_of]
        self.rows = {name: dense(tensor) for name, tensor in program.tensors.items()}
        self.readers: dict[str, list[n.Layer]] = {name: [] for name in self.roots}
        for layer in self.network:
            for name in layer.inputs:
                self.readers[name].append(layer)
        for name in self.roots:
            if self.roots[name] == name and self._may_have_border(name):
                self._give_border(name)
        for name, root in self.roots.items():
            if self.rows[root].has_border:
                self.rows[name] = self.rows[root]
        self.identifiers = Identifiers()
        self.constants: list[Constant] = []

    def has_kernel(self, layer: n.Layer) -> bool:
        """Whether a layer has a vector kernel, which reads and writes rows that are apart."""
        if isinstance(layer, n.Conv2d):
            if self.is_depthwise(layer):
                return True
            return join_groups(layer).groups <= _MOST_GROUPS and self.is_exact(layer)
        if isinstance(layer, n.Add):
            products = sum_bounds(self.network, layer)
            return products is not None and sum_is_exact(*products)
        if isinstance(layer, n.Mul):
            return layer.multiplier is not None and self.gate_of(layer) is not None
        if isinstance(layer, n.Linear):
            return self.is_exact(layer)
        return isinstance(layer, n.QuantizeInput | n.MaxPool2d | n.AveragePool2d | n.Table)

    def is_exact(self, layer: n.Conv2d | n.Linear) -> bool:
        """Whether accumulators become the right bytes in float32."""
        x, *others = (self.network.spec(name) for name in layer.inputs)
        if not others:
            return requantizes_exactly(layer, x)
        return requantizes_exactly(layer, x, others[0], self.tensors[layer.inputs[1]].shift)

    def is_depthwise(self, layer: n.Layer) -> bool:
        """Whether a convolution has one input and one output channel a group, and becomes bytes."""
        return (
            isinstance(layer, n.Conv2d)
            and layer.groups > 1
            and layer.groups == layer.output.shape[0] == self.network.spec(layer.inputs[0]).shape[0]
            and layer.multiplier is not None
            and layer.residual_multiplier is None
        )

    def gate_of(self, layer: n.Mul) -> tuple[str, str, int] | None:
        """Return (whole operand, other operand, channels that the other repeats or 0), if the kernel knows the case."""
        for whole, other in (layer.inputs, layer.inputs[::-1]):
            shapes = [self.network.spec(name).shape for name in (layer.name, whole, other)]
            if shapes[1] == shapes[0] and shapes[2] in (shapes[0], (*shapes[0][:1], 1, 1)):
                return whole, other, 0 if shapes[2] == shapes[0] else shapes[0][0]
        return None

    def _may_have_border(self, name: str) -> bool:
        """Whether whatever touches a tensor knows rows that are apart; its views only as what linear layers read."""
        views = [view for view, root in self.roots.items() if root == name and view != name]
        plain = [reader for reader in self.readers[name] if reader.name not in views]
        return (
            len(self.tensors[name].spec.shape) == 3
            and name != self.network.output
            and all(self.has_kernel(layer) for layer in (self.network[name], *plain))
            and all(
                isinstance(reader, n.Linear) or reader.name in views for view in views for reader in self.readers[view]
            )
            and self.network.output not in views
        )

    def _give_border(self, name: str) -> None:
        """Give a tensor the border that the convolutions that read it need."""
        pads = [
            layer.padding
            for layer in self.readers[name]
            if isinstance(layer, n.Conv2d) and layer.inputs[0] == name and any(layer.padding)
        ]
        if pads:
            self.rows[name] = bordered(self.tensors[name], [max(sides) for sides in zip(*pads, strict=True)])

    def step(self, step: Step) -> FastStep:
        self.constants = []
        layer = step.layer
        calls: list[FastCall] = []
        if self.roots[layer.name] == layer.name and self.rows[layer.name].has_border:
            calls.append(self.fill_border(layer.name))
        if isinstance(layer, n.QuantizeInput):
            calls.append(self.read_images())
        elif isinstance(layer, n.Conv2d) and self.is_depthwise(layer):
            calls += self.depthwise(step.identifier, layer)
        elif isinstance(layer, n.Conv2d) and self.has_kernel(layer):
            calls += self.conv(step.identifier, layer)
        elif isinstance(layer, n.Linear) and self.has_kernel(layer):
            calls += self.linear(step.identifier, layer)
        elif isinstance(layer, n.MaxPool2d | n.AveragePool2d):
            calls.append(self.pool(layer))
        elif isinstance(layer, n.Add) and self.has_kernel(layer):
            a_scale, b_scale = (_float(m.values[0]) for m in layer.multipliers)
            calls.append(self.join("add_rows", layer, *layer.inputs, a_scale=a_scale, b_scale=b_scale))
        elif isinstance(layer, n.Table):
            calls.append(self.look_up(step.identifier, layer))
        elif isinstance(layer, n.Mul) and self.has_kernel(layer):
            gate = self.gate_of(layer)
            assert gate is not None
            assert layer.multiplier is not None
            whole, other, gates = gate
            scale = _float(layer.multiplier.values[0])
            calls.append(self.join("multiply_rows", layer, whole, other, gates=gates, a_scale=scale))
        else:
            calls += [self.for_a_block(call, layer, index) for index, call in enumerate(step.calls)]
            self.constants += step.constants
        constants = tuple(self.constants)
        return FastStep(step.index, layer, step.identifier, tuple(calls), constants, view_of=step.view_of)

    def for_a_block(self, call: Call, layer: n.Layer, index: int) -> FastCall:
        """Return call number ``index`` of a layer's portable C as one for a block, where there is a kernel for it."""
        if call.kernel == "copy":
            assert call.fields is not None
            return FastCall("move", (*call.arguments, "count"), _longest_inside(call.fields))
        if call.kernel == "rescale":
            assert call.fields is not None
            assert isinstance(layer, n.Concat)
            multiplier = layer.multipliers[index]  # one call an operand, which may be the same tensor again
            assert multiplier is not None
            runs = {name: call.fields[name] for name in ("outer", "run", "y_step")}
            fields = {**runs, "in_zero": call.fields["in_zero"], "scale": _float(multiplier.values[0])}
            return FastCall("rescale_runs", (*call.arguments, "count"), fields | self.bounds(layer))
        return FastCall(call.kernel, call.arguments, call.fields, portable=True)

    def look_up(self, identifier: str, layer: n.Table) -> FastCall:
        """Return the call of any function of one byte."""
        rows, table = self.rows[layer.name], (layer.table + self.tensors[layer.name].shift).astype(np.uint8)
        fields = {
            "rows": rows.count,
            "row_bytes": rows.length,
            "in_row": self.rows[layer.inputs[0]].stride,
            "out_row": rows.stride,
            "table": self.constant(f"{identifier}_table", "uint8_t", table, table.shape),
        }
        return FastCall("look_up_rows", (Operand(layer.inputs[0]), Operand(layer.name), "count"), fields)

    def constant(self, name: str, ctype: str, values: NDArray[Any], dimensions: tuple[int, ...]) -> str:
        identifier = self.identifiers.of(name)
        self.constants.append(Constant(identifier, ctype, np.ascontiguousarray(values).ravel(), dimensions))
        return identifier

    def read_images(self) -> FastCall:
        x = self.program.input
        spec = x.spec
        channels, height, width = spec.shape if len(spec.shape) == 3 else (1, 1, len(x.order))
        has_inverse = 2.0**-100 < spec.scale < 2.0**100  # else it could lack bits, or be infinite
        fields = {
            "in_h": height,
            "in_w": width,
            "in_c": channels,
            "row_stride": self.rows[x.name].stride,
            "scale": _float(spec.scale),
            "inverse": _float(1 / spec.scale) if has_inverse else "0.0f",
            "tie": _float(0.5 - 2**-12) if has_inverse else "-1.0f",
            "shift": x.shift,
            **self.bounds(self.network.input),
        }
        return FastCall("read_images", ("b", Operand(x.name)), fields)

    def fill_border(self, name: str) -> FastCall:
        rows = self.rows[name]
        fields = {
            "rows": rows.count,
            "row_bytes": rows.length,
            "row_stride": rows.stride,
            "first": rows.first,
            "size": rows.size,
            "zero": self.tensors[name].zero,
        }
        return FastCall("fill_border", (Operand(name, -rows.first), "count"), fields)

    def conv(self, identifier: str, layer: n.Conv2d) -> list[FastCall]:
        """Return the calls of a convolution, one for each group and kind of tile."""
        layer = join_groups(layer)
        x = self.tensors[layer.inputs[0]]
        channels = x.spec.shape[0]
        calls: list[FastCall] = []
        source, start = self.first_window(layer, calls)
        rows = self.rows[source]
        target = self.rows[layer.name]
        item = self.tensors[layer.name].item
        for group in range(layer.groups):
            windows = conv_windows(layer, x.spec.shape, x.zero, rows.stride, group)
            if layer.groups == 1:
                windows = best_merge(windows)
            out_pixel = layer.output.shape[0] * windows.merged
            for packed in pack(windows):
                channel = group * (layer.output.shape[0] // layer.groups) + packed.first
                more: dict[str, Any] = {"out_row": target.stride, "out_pixel": out_pixel * item}
                more |= self.weights(identifier, layer, packed)
                residual: Operand | str = "NULL"
                if layer.residual_multiplier is not None:
                    joined = self.tensors[layer.inputs[1]]
                    scale = layer.residual_multiplier.values[0]
                    more |= {
                        "residual_row": self.rows[joined.name].stride,
                        "residual_pixel": out_pixel,
                        "residual_scale": _float(scale),
                        "zero": _float(self.tensors[layer.name].zero - joined.zero * float(scale)),
                    }
                    residual = Operand(joined.name, channel)
                arguments = (
                    Operand(source, start + group * (channels // layer.groups)),
                    residual,
                    Operand(layer.name, channel * item),
                    "count",
                )
                instance = (
                    packed.tile.pixels,
                    packed.tile.rows,
                    packed.tile.vectors,
                    windows.pixel_step,
                    int(windows.is_short),
                    int(packed.is_far),
                    _end(layer),
                )
                fields = conv_fields(windows, packed, **more)
                calls.append(FastCall("conv", arguments, fields, instance=instance))
        return calls

    def depthwise(self, identifier: str, layer: n.Conv2d) -> list[FastCall]:
        """Return the calls of a convolution of each channel by itself."""
        calls: list[FastCall] = []
        source, start = self.first_window(layer, calls)
        stride = self.rows[source].stride
        channels, out_h, out_w = layer.output.shape
        packed = pack_depthwise(layer, self.tensors[source].zero)
        joined = layer.stride[1] == 1  # then neighbouring pixels are neighbouring bytes of the input, too
        fields = {
            "out_h": out_h,
            "runs": 1 if joined else out_w,
            "run_bytes": channels * (out_w if joined else 1),
            "run_step": layer.stride[1] * channels,
            "row_step": layer.stride[0] * stride,
            "tap_step": layer.dilation[1] * channels,
            "tap_row": layer.dilation[0] * stride,
            "out_row": self.rows[layer.name].stride,
            "period": len(packed.weight),
            **self.weights(identifier, layer, packed),
        }
        arguments = (Operand(source, start), Operand(layer.name), "count")
        instance = (layer.weight.shape[2], packed.weight.shape[2])
        return [*calls, FastCall("depthwise", arguments, fields, instance=instance)]

    def first_window(self, layer: n.Conv2d, calls: list[FastCall]) -> tuple[str, int]:
        """Return the tensor that a convolution reads, and where in it the first window begins.

        If its input has no border, ``calls`` are given those that make a copy with one.
        """
        x = self.tensors[layer.inputs[0]]
        source = x.name
        if any(layer.padding) and not self.rows[source].has_border:
            source = self.with_border(layer, x, bordered(x, layer.padding), calls)
        top, left = layer.padding[:2]
        return source, -top * self.rows[source].stride - left * x.spec.shape[0]

    def with_border(self, layer: n.Conv2d, x: Tensor, rows: Rows, calls: list[FastCall]) -> str:
        """Copy a tensor to where it has a border; return the copy's name."""
        name = f"{layer.name}: {x.name} with a border"
        while name in self.tensors:
            name += "'"
        self.tensors[name] = replace(x, name=name)
        self.rows[name] = rows
        dense = self.rows[x.name]
        fields = {"rows": rows.count, "row_bytes": rows.length, "from_stride": dense.stride, "to_stride": rows.stride}
        calls.append(self.fill_border(name))
        calls.append(FastCall("copy_rows", (Operand(x.name), Operand(name), "count"), fields))
        return name

    def linear(self, identifier: str, layer: n.Linear) -> list[FastCall]:
        """Return the calls of a linear layer: images are the pixels of one row."""
        x = self.tensors[layer.inputs[0]]
        rows = self.rows[x.name]
        count = rows.count if rows.has_border else 1
        windows = linear_windows(layer, x.order, x.zero, count, rows.stride)
        item = self.tensors[layer.name].item
        calls = []
        for packed in pack(windows, Tile(6, 1, 4)):
            arguments = (Operand(x.name), Operand(layer.name, packed.first * item), "count")
            fields = conv_fields(windows, packed, out_pixel="IMAGE_BYTES") | self.weights(identifier, layer, packed)
            calls.append(
                FastCall("linear", arguments, fields, instance=(packed.tile.pixels, packed.tile.vectors, _end(layer)))
            )
        return calls

    def pool(self, layer: n.MaxPool2d | n.AveragePool2d) -> FastCall:
        x = self.tensors[layer.inputs[0]]
        fields = window_fields(layer, x.spec.shape)
        fields |= {"in_row": self.rows[x.name].stride, "out_row": self.rows[layer.name].stride}
        arguments = (Operand(x.name), Operand(layer.name), "count")
        if isinstance(layer, n.MaxPool2d):
            fields |= {"dilation_h": layer.dilation[0], "dilation_w": layer.dilation[1]}
            inside = int(not any(layer.padding))  # the last window ends within the image
            return FastCall("max_pool", arguments, fields, instance=(*layer.kernel, inside))
        fields["in_zero"] = x.zero
        if layer.multiplier is not None:
            fields |= {"scale": _float(layer.multiplier.values[0]), **self.bounds(layer)}
        return FastCall("average_pool", arguments, fields)

    def join(self, kernel: str, layer: n.Layer, a: str, b: str, **more: Any) -> FastCall:
        """Return the call of a sum or a product."""
        rows = self.rows[layer.name]
        fields = {
            "rows": rows.count,
            "row_bytes": rows.length,
            "a_row": self.rows[a].stride,
            "b_row": self.rows[b].stride,
            "out_row": rows.stride,
            "a_zero": self.tensors[a].zero,
            "b_zero": self.tensors[b].zero,
            **more,
            **self.bounds(layer),
        }
        return FastCall(kernel, (Operand(a), Operand(b), Operand(layer.name), "count"), fields)

    def bounds(self, layer: n.Layer) -> dict[str, Any]:
        """Return the bounds of a layer's output, relative to its zero point, and that as it is kept."""
        spec = layer.output
        return {
            "lo": f"{spec.lo - spec.zero_point}.0f",
            "hi": f"{spec.hi - spec.zero_point}.0f",
            "zero": self.tensors[layer.name].zero,
        }

    def weights(self, identifier: str, layer: n.Accumulating, packed: Packed | PackedDepthwise) -> dict[str, Any]:
        """Return the fields that name constants, and how accumulators become bytes."""
        fields: dict[str, Any] = {
            "weight": self.constant(f"{identifier}_weight", "int8_t", packed.weight, packed.weight.shape),
            "bias": self.constant(f"{identifier}_bias", "int32_t", packed.bias, packed.bias.shape),
        }
        if packed.scale is None:
            return fields
        fields["scale"] = self.constant(f"{identifier}_scale", "float", packed.scale, packed.scale.shape)
        if isinstance(packed, PackedDepthwise):
            return fields | self.bounds(layer)
        tensor = self.tensors[layer.name]
        lo, hi = layer.output.lo + tensor.shift, layer.output.hi + tensor.shift
        return fields | {"lo": lo, "hi": hi, "zero": f"{tensor.zero}.0f"}


def _end(layer: n.Conv2d | n.Linear) -> int:
    """Return what accumulators become: the kernels' NUMBERS, BYTES or JOINED."""
    if layer.multiplier is None:
        return 0
    return 2 if len(layer.inputs) > 1 else 1


def _longest_inside(fields: Fields) -> Fields:
    """Return the parameters of a copy with its longest loop as the last one: its elements go anywhere in any order."""
    loops = sorted(zip(fields["size"], fields["from_step"], fields["to_step"], strict=True))
    size, from_step, to_step = zip(*loops, strict=True)
    return {**fields, "size": size, "from_step": from_step, "to_step": to_step}


def _float(value: float) -> str:
    """Return a float32 for C."""
    return f"{decimal(np.float32(value))}f"


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _place(
    network: IntegerNetwork, rows: Mapping[str, Rows], steps: Sequence[FastStep]
) -> tuple[dict[str, Place], MemoryPlan, tuple[int, ...]]:
    """Lay out one image's part of the arena."""
    roots: dict[str, str] = {}
    spans: dict[str, tuple[int, int]] = {}
    for step in steps:
        name = step.layer.name
        roots[name] = name if step.view_of is None else roots[step.view_of]
        used = [a.tensor for call in step.calls for a in call.arguments if isinstance(a, Operand)]
        for tensor in (name, *used, *step.layer.inputs):
            root = roots.setdefault(tensor, tensor)
            first, _ = spans.get(root, (step.index, step.index))
            spans[root] = (first, step.index)
    root = roots[network.output]
    spans[root] = (spans[root][0], len(steps))  # read once more, when outputs are handed over
    buffers = [Buffer(_aligned(rows[name].size + _SLACK), *span) for name, span in spans.items()]
    plan = plan_memory(buffers)
    placed = dict(zip(spans, plan.offsets, strict=True))
    live = tuple(sum(b.size for b in buffers if b.first <= step.index <= b.last) for step in steps)
    places = {name: Place("arena", placed[root] + rows[name].first) for name, root in roots.items()}
    return places, plan, live
