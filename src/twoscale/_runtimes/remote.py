"""The remote executor: a board that runs the exported C, behind a serial port or TCP.

The board runs NAME_link.c of ``twoscale export --link``, which documents the frames. It answers each image with the
outputs and the CRC-32 of every layer. A layer whose checksum is that of the reference's integers has these integers.
The bytes of other layers are requested, so that every integer can be compared.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from twoscale._codegen.c.common.arrange import arrange, require_grid
from twoscale._ir.execution import check_images, layers_to_keep
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.reference import ReferenceExecutor
from twoscale._runtimes.link import Limits, Link, MissingAnswerError
from twoscale._runtimes.ports import PREFIX, open_port
from twoscale.errors import ExecutorError

__all__ = ["RemoteExecutor"]

_FINGERPRINT_BYTES = 64
_SIZES = struct.Struct("<3I")

T = TypeVar("T")


@dataclass(frozen=True)
class _Answer:
    cycles: int
    outputs: bytes
    checksums: tuple[int, ...]
    layers: Mapping[int, bytes]
    """Bytes of the layers that were requested."""


class RemoteExecutor:
    """Runs a network on a board.

    Args:
        network: what the board runs; on the grid.
        address: "HOST:PORT", or a serial port such as "/dev/ttyACM0" or "/dev/ttyACM0@921600".
        limits: how long to wait.

    Raises:
        ConfigurationError: the address has another form, or the network is off the grid.
        ExecutorError: there is no board, it does not answer, or it runs another network.
    """

    def __init__(self, network: IntegerNetwork, address: str, *, limits: Limits | None = None) -> None:
        require_grid(network)
        self.name = PREFIX + address
        self.network = network
        self.images = 0
        """Images that the board computed."""
        self.cycles = 0
        """Cycles that they took; 0 if the board does not count them."""
        self._limits = limits or Limits()
        self._tensors = arrange(network).tensors
        self._reference = ReferenceExecutor(network)
        self._outputs = [self._tensors[name] for name in network.outputs]
        self._port = open_port(address)
        self._link = Link(self._port, self._limits)
        try:
            self._greet()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the port."""
        self._port.close()

    def __del__(self) -> None:
        if hasattr(self, "_port"):
            self._port.close()

    @property
    def cycles_per_image(self) -> int | None:
        """Mean cycles of one image; None if the board does not count them."""
        return round(self.cycles / self.images) if self.cycles else None

    def run(self, images_nchw: NDArray[np.float32], keep: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
        """Compute a batch; see Executor.run."""
        wanted = layers_to_keep(self.network, keep)
        images = check_images(self.network, images_nchw)
        inside = sorted(wanted - set(self.network.outputs))
        inputs = [layer.name for layer in self.network.inputs]
        expected = self._reference.run(images, [*inputs, *inside])
        stored = {name: self._tensors[name].to_memory(values) for name, values in expected.items()}
        found = {name: np.empty_like(stored[name]) for name in inside}
        outputs = {
            tensor.name: np.empty((len(images), *tensor.spec.shape), tensor.spec.dtype) for tensor in self._outputs
        }
        for index in range(len(images)):
            image = b"".join(
                (stored[name][index].astype(np.int16) - self._tensors[name].shift).astype(np.uint8).tobytes()
                for name in inputs
            )
            same = {name: _stored_bytes(stored[name][index]) for name in inside}
            layers, read = self._compute(image, same)
            for name in inside:
                found[name][index] = np.frombuffer(layers[name], found[name].dtype.newbyteorder("<"))
            for tensor in self._outputs:
                outputs[tensor.name][index] = read[tensor.name]
        return {name: self._tensors[name].from_memory(values) for name, values in found.items()} | {
            name: values for name, values in outputs.items() if name in wanted
        }

    def _compute(self, image: bytes, expected: Mapping[str, bytes]) -> tuple[dict[str, bytes], dict[str, NDArray[Any]]]:
        """Return the bytes of the layers in ``expected``, and the integers of the outputs, of one image."""
        numbers = {layer.name: number for number, layer in enumerate(self.network)}
        answer = self._request_run(image, ())
        self.images += 1
        self.cycles += answer.cycles
        other = [name for name, content in expected.items() if answer.checksums[numbers[name]] != zlib.crc32(content)]
        layers = dict(expected)
        if other:
            fetched = self._request_run(image, [numbers[name] for name in other]).layers
            layers |= {name: fetched[numbers[name]] for name in other}
        outputs, start = {}, 0
        for tensor in self._outputs:
            content = np.frombuffer(
                answer.outputs, np.dtype(tensor.spec.dtype).newbyteorder("<"), len(tensor.order), start
            )
            integers = np.empty(len(tensor.order), tensor.spec.dtype)
            integers[tensor.order] = content
            outputs[tensor.name] = integers.reshape(tensor.spec.shape)
            start += tensor.size
        return layers, outputs

    def _greet(self) -> None:
        """Check that the board runs this network.

        Raises:
            ExecutorError: it does not.
        """
        expected = (
            sum(self._tensors[layer.name].size for layer in self.network.inputs),
            sum(tensor.size for tensor in self._outputs),
            len(self.network.layers),
        )
        size = _FINGERPRINT_BYTES + _SIZES.size
        content = self._ask(
            b"H", b"", lambda: self._link.receive(lambda kind, length: kind == b"H" and length == size).content
        )
        fingerprint = content[:_FINGERPRINT_BYTES].decode("ascii", "replace")
        if fingerprint != self.network.fingerprint or _SIZES.unpack(content[_FINGERPRINT_BYTES:]) != expected:
            raise ExecutorError(
                f"the board at {self._address} runs a network with the fingerprint {fingerprint[:12]}..., expected "
                f"{self.network.fingerprint[:12]}...; program the board with {self.network.name}, exported with --link"
            )

    def _request_run(self, image: bytes, layers: Collection[int]) -> _Answer:
        """Have the board compute an image, and send the bytes of some layers."""
        mask = bytearray(-(-len(self.network.layers) // 8))
        for layer in layers:
            mask[layer // 8] |= 1 << layer % 8
        sizes = {number: self._tensors[self.network.layers[number].name].size for number in layers}
        return self._ask(b"R", bytes(mask) + image, lambda: self._read_run(sizes))

    def _read_run(self, sizes: Mapping[int, int]) -> _Answer:
        """Read the answers to a request to run, with the bytes of layers of these sizes, whole or row by row."""
        count, output_bytes = len(self.network.layers), sum(tensor.size for tensor in self._outputs)
        last, largest = 8 + output_bytes + 4 * count, 2 + max(sizes.values(), default=0)
        parts = {number: bytearray() for number in sizes}
        while True:
            kind, content = self._link.receive(
                lambda kind, length: (kind == b"R" and length == last) or (kind == b"D" and 2 < length <= largest)
            )
            if kind == b"R":
                break
            number = int.from_bytes(content[:2], "little")
            if number not in parts or len(parts[number]) + len(content) - 2 > sizes[number]:
                raise MissingAnswerError(f"it sent layer {number}, which was not requested")
            parts[number] += content[2:]
        if short := [number for number, size in sizes.items() if len(parts[number]) < size]:
            raise MissingAnswerError(f"a part of layer {short[0]} is missing")
        return _Answer(
            cycles=int.from_bytes(content[:8], "little"),
            outputs=content[8 : 8 + output_bytes],
            checksums=struct.unpack(f"<{count}I", content[8 + output_bytes :]),
            layers={number: bytes(part) for number, part in parts.items()},
        )

    def _ask(self, kind: bytes, content: bytes, read: Callable[[], T]) -> T:
        """Send a request and read its answer; again if the answer is damaged or does not come.

        Raises:
            ExecutorError: it does not come.
        """
        for _ in range(self._limits.attempts):
            self._link.send(kind, content)
            try:
                return read()
            except MissingAnswerError as error:
                reason = error
        raise ExecutorError(
            f"the board at {self._address} did not answer after {self.images:,} images, in {self._limits.attempts} "
            f"attempts: {reason}"
        )

    @property
    def _address(self) -> str:
        return self.name.removeprefix(PREFIX)


def _stored_bytes(values: NDArray[Any]) -> bytes:
    """Return stored integers as a board sends them: low byte first."""
    return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
