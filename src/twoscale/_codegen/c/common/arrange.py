"""IntegerNetwork → Arrangement: the order of tensors in memory, and the copies that layers need.

Every back end begins here and chooses its own kernels for these bytes. Equation numbers are those of
docs/arithmetic.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from twoscale._codegen.c.common.calls import Operand
from twoscale._codegen.c.common.names import Identifiers
from twoscale._codegen.c.common.storage import Move, memory_axes, memory_order, memory_steps, reshape_move
from twoscale._codegen.c.common.tensors import Tensor
from twoscale._ir import layers as n
from twoscale._ir.checks import multipliers
from twoscale._ir.integer_network import IntegerNetwork
from twoscale.errors import ConfigurationError

__all__ = ["ArrangedLayer", "Arrangement", "Copy", "Rescale", "arrange", "refusal", "require_grid"]

_LARGEST = 2**31 - 1
_COPY_RANK = 6


@dataclass(frozen=True)
class Copy:
    """A copy of runs of bytes from one regular pattern to another: nested loops, the last one the fastest."""

    source: Operand
    target: Operand
    sizes: tuple[int, ...]
    """Iterations of each loop; empty for a single run."""
    from_steps: tuple[int, ...]
    to_steps: tuple[int, ...]
    """Bytes."""
    run: int
    """Bytes."""

    @staticmethod
    def of(network: IntegerNetwork, source: Tensor, target: Tensor, move: Move) -> Copy:
        """Return ``move`` in bytes.

        Raises:
            ConfigurationError: the move has more nested loops than the kernels support; names the layer.
        """
        item = source.item
        sizes, from_steps, to_steps = list(move.sizes), list(move.from_steps), list(move.to_steps)
        run = item
        if sizes and from_steps[-1] == to_steps[-1] == 1:
            run *= sizes.pop()
            from_steps.pop(), to_steps.pop()
        if len(sizes) > _COPY_RANK:
            raise ConfigurationError(
                f"layer {target.name} of {network.name} moves data in {len(sizes)} nested strides: "
                f"{_COPY_RANK} are supported"
            )
        return Copy(
            Operand(source.name, move.from_offset * item),
            Operand(target.name, move.to_offset * item),
            tuple(sizes),
            tuple(item * step for step in from_steps),
            tuple(item * step for step in to_steps),
            run,
        )


@dataclass(frozen=True)
class Rescale:
    """An operand of a concatenation that is converted to the result's scale, equation (3)."""

    source: Operand
    target: Operand
    outer: int
    """Runs."""
    run: int
    """Bytes of a run."""
    y_step: int
    """Bytes between runs of the result."""
    in_zero: int
    """The operand's zero point as stored."""
    multiplier: n.Multiplier


@dataclass(frozen=True, eq=False, kw_only=True)
class ArrangedLayer:
    """One layer: its name in C, and the copies and views of its bytes."""

    index: int
    layer: n.Layer
    identifier: str
    moves: tuple[Copy | Rescale, ...]
    """The copies that write the output of a layer that only moves integers."""
    scratch: tuple[Tensor, ...]
    """Tensors that only this layer uses."""
    view_of: str | None
    """The tensor whose bytes this one shares unchanged."""
    in_place_of: tuple[str, ...]
    """Operands that the result may overwrite if nothing reads them afterwards and the kernel writes the result in
    order."""

    @property
    def macs(self) -> int:
        """Multiply-adds of weights."""
        if not isinstance(self.layer, n.Accumulating):
            return 0
        return math.prod(self.layer.output.shape[1:]) * self.layer.weight.size


@dataclass(frozen=True, eq=False)
class Arrangement:
    """A network's tensors in memory."""

    network: IntegerNetwork
    tensors: Mapping[str, Tensor]
    """Layers' outputs and scratch, by name."""
    layers: tuple[ArrangedLayer, ...]
    """In order."""
    roots: Mapping[str, str]
    """For each layer, the tensor that owns the bytes of its output: itself, or the one that it is a view of."""

    def inputs(self, layer: n.Layer) -> list[Tensor]:
        """Return the tensors that a layer reads."""
        return [self.tensors[name] for name in layer.inputs]


def arrange(network: IntegerNetwork) -> Arrangement:
    """Decide the order of a network's tensors in memory.

    Raises:
        ConfigurationError: integers alone cannot compute it; names the layer and what to do.
    """
    require_grid(network)
    arranger = _Arranger(network)
    layers = tuple(arranger.layer(index, layer) for index, layer in enumerate(network))
    return Arrangement(network, arranger.tensors, layers, arranger.roots)


def require_grid(network: IntegerNetwork) -> None:
    """Check that every multiplier is on the grid.

    Raises:
        ConfigurationError: one is not; names the layer and what to do.
    """
    for layer in network:
        if any(m.is_free for m in multipliers(layer)):
            raise ConfigurationError(
                f"layer {layer.name} of {network.name} has free float multipliers, which integer-only C cannot "
                "reproduce; move them onto the grid with network.requantize() or twoscale requantize, or quantize with "
                'a scheme on the grid, e.g. scheme="default"'
            )


def refusal(network: IntegerNetwork, layer: n.Layer, found: str, remedy: str) -> ConfigurationError:
    """Return the error for a layer that C cannot compute."""
    return ConfigurationError(f"layer {layer.name} of {network.name} {found}: {remedy}")


@dataclass(frozen=True)
class _Arranged:
    """The decision of a handler."""

    moves: tuple[Copy | Rescale, ...] = ()
    view_of: str | None = None
    in_place_of: tuple[str, ...] = ()
    scratch: tuple[Tensor, ...] = ()


class _Arranger:
    """Walks the layers and keeps what later handlers need."""

    def __init__(self, network: IntegerNetwork) -> None:
        self.network = network
        self.tensors: dict[str, Tensor] = {}
        self.roots: dict[str, str] = {}
        self.names = {layer.name for layer in network}
        self.identifiers = Identifiers()

    def layer(self, index: int, layer: n.Layer) -> ArrangedLayer:
        if math.prod(layer.output.shape) * 4 > _LARGEST:
            raise refusal(
                self.network, layer, f"has an output of shape {layer.output.shape}", "tensors must fit 2**29 elements"
            )
        if not layer.inputs and layer.name in self.network.outputs:
            raise refusal(self.network, layer, "is an output of the network", "there is nothing to compute")
        self.tensors[layer.name] = Tensor(layer.name, layer.output, memory_order(layer.output.shape))
        handler = _ARRANGE.get(type(layer))
        made = _Arranged() if handler is None else handler(self, layer)
        self.roots[layer.name] = layer.name if made.view_of is None else self.roots[made.view_of]
        return ArrangedLayer(
            index=index,
            layer=layer,
            identifier=self.identifiers.of(layer.name),
            moves=made.moves,
            scratch=made.scratch,
            view_of=made.view_of,
            in_place_of=made.in_place_of,
        )

    def inputs(self, layer: n.Layer) -> list[Tensor]:
        return [self.tensors[name] for name in layer.inputs]

    def view_or_copy(self, layer: n.Layer, move: Move) -> _Arranged:
        """Return a view if no byte has to move, else the copy."""
        (x,) = self.inputs(layer)
        if move.is_plain and x.size == self.tensors[layer.name].size and not self._must_own_bytes(layer):
            return _Arranged(view_of=x.name)
        return _Arranged((Copy.of(self.network, x, self.tensors[layer.name], move),))

    def _must_own_bytes(self, layer: n.Layer) -> bool:
        """Whether a view would place an output of the network in the caller's image, or two outputs in one place."""
        if layer.name not in self.network.outputs:
            return False
        root = self.roots[layer.inputs[0]]
        taken = {self.roots[name] for name in self.network.outputs if name in self.roots}
        return root in taken or any(root == layer.name for layer in self.network.inputs)

    def order_is_free(self, name: str) -> bool:
        """Whether only linear layers read a tensor. Their weights can be stored for any order of elements."""
        readers = [layer for layer in self.network if name in layer.inputs]
        return (
            name not in self.network.outputs
            and bool(readers)
            and all(
                isinstance(reader, n.Linear)
                or (isinstance(reader, n.Clamp | n.Table) and self.order_is_free(reader.name))
                for reader in readers
            )
        )

    def keep_order(self, layer: n.Layer) -> None:
        """Give a layer's output the element order of its input."""
        self.tensors[layer.name] = Tensor(layer.name, layer.output, self.tensors[layer.inputs[0]].order)


def _conv2d(a: _Arranger, layer: n.Conv2d) -> _Arranged:
    if layer.residual_multiplier is None:
        return _Arranged()
    x, joined = a.inputs(layer)
    return _Arranged(in_place_of=(joined.name,) if joined is not x else ())  # x is read around each pixel


def _mul(a: _Arranger, layer: n.Mul) -> _Arranged:
    whole = tuple(x.name for x in a.inputs(layer) if x.spec.shape == layer.output.shape)
    return _Arranged(in_place_of=whole if a.tensors[layer.name].item == 1 else ())


def _pool_fits_in_place(
    layer: n.MaxPool2d | n.AveragePool2d, shape: tuple[int, ...], dilation: tuple[int, int]
) -> bool:
    """Whether no window reads a pixel that an earlier result has overwritten.

    Pixel p of the result is written after windows 0 to p are read, so it is sufficient that window p reads only pixels
    from p on.
    """
    firsts = []
    for axis in (0, 1):
        start = np.arange(layer.output.shape[1 + axis]) * layer.stride[axis] - layer.padding[axis]
        firsts.append(np.where(start < 0, start % dilation[axis], start).clip(0, shape[1 + axis]))
    first_pixel = firsts[0][:, None] * shape[2] + firsts[1][None, :]
    return bool((first_pixel.ravel() >= np.arange(first_pixel.size)).all())


def _average_pool(a: _Arranger, layer: n.AveragePool2d) -> _Arranged:
    (x,) = a.inputs(layer)
    reach = max(x.spec.hi - x.spec.zero_point, x.spec.zero_point - x.spec.lo)
    if math.prod(layer.kernel) * reach > _LARGEST:
        raise refusal(a.network, layer, f"sums windows of {layer.kernel}", "sums must fit 32 bits")
    in_place = a.tensors[layer.name].item == 1 and _pool_fits_in_place(layer, x.spec.shape, (1, 1))
    return _Arranged(in_place_of=(x.name,) if in_place else ())


def _max_pool(a: _Arranger, layer: n.MaxPool2d) -> _Arranged:
    (x,) = a.inputs(layer)
    return _Arranged(in_place_of=(x.name,) if _pool_fits_in_place(layer, x.spec.shape, layer.dilation) else ())


def _concat(a: _Arranger, layer: n.Concat) -> _Arranged:
    target = a.tensors[layer.name]
    steps = memory_steps(layer.output.shape)
    moves: list[Copy | Rescale] = []
    start = 0
    for x, multiplier in zip(a.inputs(layer), layer.multipliers, strict=True):
        shape = x.spec.shape
        offset = start * steps[layer.axis]
        start += shape[layer.axis]
        if multiplier is None:
            moves.append(Copy.of(a.network, x, target, Move.of(shape, memory_steps(shape), steps, 0, offset)))
            continue
        axes = memory_axes(len(shape))
        inside = axes[axes.index(layer.axis) :]
        run = math.prod(shape[axis] for axis in inside)
        moves.append(
            Rescale(
                Operand(x.name),
                Operand(layer.name, offset),
                outer=x.size // run,
                run=run,
                y_step=math.prod(layer.output.shape[axis] for axis in inside),
                in_zero=x.zero,
                multiplier=multiplier,
            )
        )
    return _Arranged(tuple(moves))


def _reshape(a: _Arranger, layer: n.Reshape) -> _Arranged:
    (x,) = a.inputs(layer)
    target = a.tensors[layer.name]
    if not np.array_equal(x.order, target.order) and a.order_is_free(layer.name):
        a.keep_order(layer)
        return _Arranged(view_of=x.name)
    move = reshape_move(x.spec.shape, layer.output.shape)
    if move is not None:
        return a.view_or_copy(layer, move)
    flat_shape = (len(x.order),)
    name = f"{layer.name} in C order"
    while name in a.names:
        name += " once more"
    flat = Tensor(name, n.TensorSpec(flat_shape, x.spec.dtype, 1.0), memory_order(flat_shape))
    a.tensors[flat.name] = flat
    there, back = reshape_move(x.spec.shape, flat_shape), reshape_move(flat_shape, layer.output.shape)
    assert there is not None
    assert back is not None
    moves = (Copy.of(a.network, x, flat, there), Copy.of(a.network, flat, target, back))
    return _Arranged(moves, scratch=(flat,))


def _permute(a: _Arranger, layer: n.Permute) -> _Arranged:
    (x,) = a.inputs(layer)
    from_steps = memory_steps(x.spec.shape)
    shape = layer.output.shape
    return a.view_or_copy(layer, Move.of(shape, tuple(from_steps[axis] for axis in layer.axes), memory_steps(shape)))


def _slice(a: _Arranger, layer: n.Slice) -> _Arranged:
    (x,) = a.inputs(layer)
    steps = list(memory_steps(x.spec.shape))
    offset = layer.start * steps[layer.axis]
    steps[layer.axis] *= layer.step
    shape = layer.output.shape
    return a.view_or_copy(layer, Move.of(shape, tuple(steps), memory_steps(shape), offset))


def _pad(a: _Arranger, layer: n.Pad) -> _Arranged:
    (x,) = a.inputs(layer)
    steps = memory_steps(layer.output.shape)
    offset = sum(before * step for (before, _), step in zip(layer.widths, steps, strict=True))
    move = Move.of(x.spec.shape, memory_steps(x.spec.shape), steps, 0, offset)
    return _Arranged((Copy.of(a.network, x, a.tensors[layer.name], move),))


def _byte_by_byte(a: _Arranger, layer: n.Clamp | n.Table) -> _Arranged:
    a.keep_order(layer)
    return _Arranged(in_place_of=layer.inputs)


_ARRANGE: dict[type[n.Layer], Callable[[_Arranger, Any], _Arranged]] = {
    n.Add: lambda a, layer: _Arranged(in_place_of=tuple(layer.inputs)),
    n.AveragePool2d: _average_pool,
    n.Clamp: _byte_by_byte,
    n.Concat: _concat,
    n.Conv2d: _conv2d,
    n.MaxPool2d: _max_pool,
    n.Mul: _mul,
    n.Pad: _pad,
    n.Permute: _permute,
    n.Reshape: _reshape,
    n.Slice: _slice,
    n.Table: _byte_by_byte,
}
"""Other layers are computed into their own bytes, in memory order."""
