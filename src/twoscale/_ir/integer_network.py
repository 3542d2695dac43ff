"""IntegerNetwork: layers in order, the bounds of their accumulators, and whether executors must agree."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twoscale import _delegates as delegates
from twoscale._ir import checks
from twoscale._ir import layers as n
from twoscale._ir.input_layout import InputLayout
from twoscale._text import printable
from twoscale.errors import UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Callable

    from twoscale._runtimes.classifier import CompiledClassifier

__all__ = ["AccumulatorBound", "IntegerNetwork"]


@dataclass(frozen=True)
class AccumulatorBound:
    """Facts about one layer's accumulators that follow from its weights, equation (13)."""

    layer: str
    bound: int
    """Largest |accumulator| over channels."""
    float32_exact: bool
    """Below 2**24: a float32 convolution on these integers is exact in any order of summation."""
    pair_saturation_safe: bool
    """|w0| + |w1| ≤ 128 for all neighbours in memory order: 16-bit pair sums (vpmaddubsw) cannot saturate."""


@dataclass(frozen=True, eq=False, repr=False)
class IntegerNetwork:
    """A network of integers: 8-bit activations and weights, 32-bit biases and accumulators.

    Called with images (N, C, H, W), NumPy or torch, it returns its output as float32, computed by the NumPy reference:
    the logits (N, classes) of a classifier, or an output of any other shape. A network with several outputs returns a
    tuple, in the order of ``outputs``. The images are float32, normalized as in calibration; or uint8 pixels, if its
    metadata has the normalization. A network with several inputs is called with one array for each, in the order of
    ``inputs``. The first layers are QuantizeInput, one per input; an output is its layer's integers minus their zero
    point, times their scale, equation (12).

    Networks are equal if they compute the same bits (their fingerprints are equal) and have the same name, scheme and
    metadata. ``load`` returns a network equal to the one that was saved.
    """

    name: str
    layers: tuple[n.Layer, ...]
    outputs: tuple[str, ...]
    """Names of the layers whose integers the network returns. Most networks have one."""
    scheme: str = "default"
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Its origin, as JSON values."""
    source: Path | None = None
    """The file of another tool that it was read from. verify compares the network with it. Not compared, not saved."""

    def __post_init__(self) -> None:
        """Check the conditions that every executor relies on.

        Raises:
            QuantizationError: an accumulator could overflow int32, or layers do not fit together.
        """
        checks.check(self)

    def __repr__(self) -> str:
        grid = "on the grid" if self.on_grid else "TensorFlow Lite's arithmetic" if self.exact else "off the grid"
        return (
            f"<IntegerNetwork {printable(self.name, 100)}: {len(self.layers)} layers, {self.parameters:,} parameters, "
            f"scheme {self.scheme}, {grid}>"
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, IntegerNetwork):
            return NotImplemented
        mine, theirs = ((x.fingerprint, x.name, x.scheme, dict(x.metadata)) for x in (self, other))
        return mine == theirs

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __iter__(self) -> Iterator[n.Layer]:
        return iter(self.layers)

    def __getitem__(self, name: str) -> n.Layer:
        """Return a layer that knows its network: its weight scale, its integers for images, and how to show itself.

        Raises:
            UnknownNameError: there is no such layer.
        """
        if name not in self._by_name:
            raise UnknownNameError("layer", name, self._by_name)
        mine = self._by_name[name].of(self)
        if mine is not self._by_name[name]:  # it was another network's: what is taken is one of the layers
            self._by_name[name] = mine
            object.__setattr__(self, "layers", tuple(self._by_name.values()))
        return mine

    @cached_property
    def _by_name(self) -> dict[str, n.Layer]:
        return {layer.name: layer for layer in self.layers}

    @property
    def input(self) -> n.Layer:
        """The layer that quantizes the images, the first input."""
        return self.layers[0]

    @cached_property
    def inputs(self) -> tuple[n.Layer, ...]:
        """The layers that quantize the inputs, in the order in which the network takes them. Most networks have one."""
        return tuple(layer for layer in self.layers if isinstance(layer, n.QuantizeInput))

    @cached_property
    def input_layout(self) -> InputLayout:
        """How a batch of all inputs is one array."""
        return InputLayout(tuple(layer.output.shape for layer in self.inputs))

    def given(self, batch: Any) -> dict[str, Any]:
        """Return the inputs in a batch by their names; the batch is an array or tensor as of ``input_layout``."""
        return dict(zip((x.name for x in self.inputs), self.input_layout.split(batch), strict=True))

    @property
    def output(self) -> str:
        """Name of the first output's layer."""
        return self.outputs[0]

    @property
    def class_output(self) -> str | None:
        """Name of the first output that is a vector, whose values can be classes; None if there is none."""
        return next((name for name in self.outputs if len(self.spec(name).shape) == 1), None)

    @property
    def classes(self) -> int | None:
        """Number of classes: the length of ``class_output``; None without one."""
        return None if self.class_output is None else self.spec(self.class_output).shape[0]

    def spec(self, name: str) -> n.TensorSpec:
        """Return how the named tensor is quantized."""
        return self._by_name[name].output

    @cached_property
    def off_grid(self) -> tuple[str, ...]:
        """One line per reason why executors may give different integers; empty on the grid."""
        return checks.off_grid(self)

    @property
    def on_grid(self) -> bool:
        """Whether all executors provably give the same integers, equations (4), (5) and (7c).

        Every multiplier is a whole number of 2**-16ths (additions: 2**-14ths), every zero point is even, and
        additions stay where float32 is exact. Off the grid, verify measures how many integers differ.
        """
        return not self.off_grid

    @property
    def in_fixed_point(self) -> bool:
        """Whether the network has TensorFlow Lite's arithmetic, (18) to (21), in any layer."""
        return any(map(checks.in_fixed_point, self.layers))

    @cached_property
    def exact(self) -> bool:
        """Whether every executor that runs the network provably gives the same integers.

        It is on the grid, or every layer that computes has TensorFlow Lite's arithmetic.
        """
        return checks.is_exact(self)

    @cached_property
    def ties(self) -> tuple[str, ...]:
        """One line per layer whose rounding can meet a tie, with the first tie; empty if the network is tie-free."""
        from twoscale._ir import ties

        return ties.ties(self)

    @property
    def tie_free(self) -> bool:
        """Whether runtimes that round ties up, or away from zero, provably give the same integers, (3b) and (7e)."""
        return not self.ties

    @cached_property
    def bounds(self) -> tuple[AccumulatorBound, ...]:
        """Bounds of every layer with weights, equation (13)."""
        found = []
        for layer in self.layers:
            if isinstance(layer, n.Accumulating):
                bound = int(layer.partial_bound(self.spec(layer.inputs[0])).max(initial=0))
                found.append(AccumulatorBound(layer.name, bound, bound < 2**24, _pairs_are_safe(layer.weight)))
        return tuple(found)

    @property
    def parameters(self) -> int:
        """Number of weights, and of biases that are not 0."""
        return sum(
            layer.weight.size + int(np.count_nonzero(layer.bias_o))
            for layer in self.layers
            if isinstance(layer, n.Accumulating)
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that determines the output's bits, as 64 hexadecimal digits."""
        digest = hashlib.sha256()
        for layer in self.layers:
            _feed(digest.update, layer.op)
            for attribute in dataclasses.fields(layer):
                _feed(digest.update, getattr(layer, attribute.name))
        if len(self.outputs) == 1:
            digest.update(self.output.encode())
        else:
            _feed(digest.update, self.outputs)
        return digest.hexdigest()

    def integers(self, layer: str, images_nchw: Any) -> NDArray[Any]:
        """Return the output integers of a layer for float images, (N, ...), computed by the NumPy reference.

        Raises:
            ConfigurationError: images of another shape, or NaN or infinity among them.
            UnknownNameError: there is no such layer.
        """
        from twoscale._ir.reference import ReferenceExecutor

        return ReferenceExecutor(self).run(images_nchw, [layer])[layer]

    def logits(self, integers: NDArray[Any], output: str | None = None) -> NDArray[np.float32]:
        """Return the real values of an output's integers, (N, ...): scale · (q − z).

        Args:
            integers: of the output.
            output: its name; by default the first output's.
        """
        spec = self.spec(self.output if output is None else output)
        return ((integers.astype(np.float64) - spec.zero_point) * spec.scale).astype(np.float32)

    def __call__(self, *inputs: Any) -> Any:
        """Return the output of float images, or a tuple of several, as the same kind of array (NumPy or torch).

        Args:
            inputs: the images; of a network with several inputs one array for each, or a tuple of them.
        """
        from twoscale._ir.execution import run_logits
        from twoscale._ir.reference import ReferenceExecutor

        return run_logits(ReferenceExecutor(self), self, inputs[0] if len(inputs) == 1 else inputs)

    def compile(self, *, threads: int | None = None, target: str = "native") -> CompiledClassifier:
        """Compile the network for this CPU: the same logits as calling it, much faster.

        The result takes NumPy arrays and torch tensors on the CPU, float32 (N, C, H, W), or uint8 pixels if the
        network's metadata has the normalization. Compiled libraries are kept in the user's cache.

        Args:
            threads: number of threads that share a batch, or a single image if the network is large enough
                (``shares_images``); by default one per core. With 1, calls from several threads
                run at the same time; with more they wait for each other.
            target: instruction sets, such as "avx2"; "native" compiles all of them and chooses the best at run time.

        Raises:
            ConfigurationError: the network is off the grid (names the layer), or ``threads`` is below 1.
            ExecutorError: there is no C compiler here, or it fails; the message names what is missing.
            UnknownNameError: there is no such target.
        """
        compiled: CompiledClassifier = delegates.call("compile", self, threads=threads, target=target)
        return compiled

    def requantize(self) -> IntegerNetwork:
        """Return the network with its multipliers on the grid, so that every executor, and C, computes it alike.

        For networks that other tools quantized, and those of the scheme "course": free multipliers become the nearest
        whole numbers of 2**-16ths and odd zero points even ones, which changes integers. Measure by how much:
        ``twoscale.verify(network.requantize(), images, against=network)``. A network on the grid is returned as it is.

        Raises:
            QuantizationError: a multiplier is beyond the grid; names the layer.
        """
        from twoscale._ir.onto_grid import onto_grid

        return onto_grid(self).network

    def save(self, path: str | Path, *, form: str = "integer", io: str | None = None, int4: bool = False) -> None:
        """Write the network to a file, completely or not at all.

        Args:
            path: the file.
            form: "integer" for standard integer operators, which ``twoscale.load`` reads back and ONNX Runtime
                computes bit for bit; "qdq" for runtimes that expect float operators between DequantizeLinear and
                QuantizeLinear, whose rounding may give other integers; "tflite" for LiteRT, which computes the integers
                of networks of the scheme "tflite".
            io: type of the input and output of a "tflite" file: "int8" (the default), "uint8" or "float32".
            int4: store weights of layers that fit 4 bits in half a byte each, in ONNX files. The integers stay the
                same. Such a file needs opset 21, others opset 18.

        Raises:
            ConfigurationError: a layer has no operators with the same integers in that form; names the layer.
            UnknownNameError: there is no such form or type.
        """
        delegates.call("save", self, Path(path), form=form, io=io, int4=int4)

    def _repr_html_(self) -> str:
        html: str = delegates.call("network_html", self)
        return html


def _pairs_are_safe(weight: NDArray[np.int8]) -> bool:
    flat = np.abs(weight.astype(np.int64)).reshape(weight.shape[0], -1)
    pairs = flat[:, : flat.shape[1] // 2 * 2].reshape(flat.shape[0], -1, 2).sum(2)
    return bool(pairs.max(initial=0) <= 128)


def _feed(update: Callable[[bytes], None], value: Any) -> None:
    """Hash a value with its type and shape, so that different sequences of values cannot give the same bytes.

    Numbers are hashed by value: a NumPy scalar hashes like the Python number that is read from a saved file.
    """
    if isinstance(value, np.ndarray):
        little = value.astype(value.dtype.newbyteorder("<"), copy=False)
        update(f"a{little.dtype.str}{value.shape}".encode() + little.tobytes())
    elif isinstance(value, n.Multiplier):
        kind = "" if type(value) is n.Multiplier else type(value).__name__
        update(f"m{value.shift}{kind}".encode())
        for numbers in value.arrays:
            _feed(update, numbers)
    elif isinstance(value, n.TensorSpec):
        _feed(update, tuple(getattr(value, attribute.name) for attribute in dataclasses.fields(value)))
    elif isinstance(value, tuple):
        update(f"({len(value)}".encode())
        for item in value:
            _feed(update, item)
    elif isinstance(value, float | np.floating):
        update(f"f{float(value).hex()};".encode())
    elif isinstance(value, int | np.integer):
        update(f"i{int(value)};".encode())
    else:
        update(repr(value).encode() + b";")
