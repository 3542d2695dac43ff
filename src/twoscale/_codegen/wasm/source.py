"""The C of a network for one kind of WebAssembly: the vector kernels without threads, and functions to export."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from twoscale._codegen.c.common.text import number_lines, rows
from twoscale._codegen.c.vector.source import VectorSource, lowered
from twoscale._codegen.pixels import pixel_table
from twoscale._codegen.targets import InstructionSet, Target
from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["WasmSource", "source_of"]

_ALIGNMENT = 16


def source_of(network: IntegerNetwork, name: str, kind: InstructionSet) -> WasmSource:
    """Return the C of a network for one kind of module, with the constants in a file of their own.

    Raises:
        ConfigurationError: integers alone cannot compute it; names the layer and what to do.
    """
    target = Target(kind.name, "vector", "browsers", "-O3", (kind,))
    return WasmSource(lowered(network, target), name, target, binary=True)


@dataclass(frozen=True)
class WasmSource(VectorSource):
    """The C of one module."""

    source_template = "wasm.c.jinja"

    def contents(self) -> dict[str, str | bytes]:
        """Return names and contents of the files to compile."""
        return {**self.texts(), self.data_file: self.data()}

    @property
    def layer_starts(self) -> tuple[int, ...]:
        """Where the bytes of each layer start in what ``layers`` returns, and where those of the last end."""
        tensors = [self.program.tensors[layer.name] for layer in self.program.network]
        sizes = [-(-tensor.size // _ALIGNMENT) * _ALIGNMENT for tensor in tensors]
        return tuple(itertools.accumulate(sizes, initial=0))

    def source_facts(self) -> Mapping[str, Any]:
        """Return what the template needs."""
        network = self.program.network
        spec = network.inputs[0].output
        table = None if len(network.inputs) > 1 else pixel_table(spec, network.metadata)
        return {
            **super().source_facts(),
            "sample": math.prod(network.input_layout.shape),
            "outputs_elements": 1 if len(self.outputs) > 1 else self.outputs[0].count,
            "pixels": None if table is None else rows(table.astype("uint8")),
            "channels": spec.shape[0],
            "layer_starts": number_lines(self.layer_starts),
        }
