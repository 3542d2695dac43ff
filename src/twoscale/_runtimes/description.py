"""What a compiled library computes and what it needs: the note of its file. Reading one needs only the standard library
and NumPy.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._environment import VERSION, this_platform
from twoscale._ir.input_layout import InputLayout
from twoscale._ir.operators.base import TensorSpec

__all__ = ["Description", "DescriptionError"]

_FORM = 1
"""Number of the form of the note."""
_FORM_OF_SEVERAL_OUTPUTS = 2
_FORM_OF_SEVERAL_INPUTS = 3
_DTYPES = ("uint8", "int8", "int32")


class DescriptionError(Exception):
    """The note does not describe a compiled network."""


@dataclass(frozen=True)
class Description:
    """What a compiled library computes, and what it needs."""

    name: str
    """Of the network."""
    prefix: str
    """Of the public names in C."""
    fingerprint: str
    """Of the network."""
    target: str
    features: tuple[str, ...]
    """Features that the CPU must have, as compilers name them; empty if any CPU of the architecture will do."""
    inputs: tuple[TensorSpec, ...]
    """Of the quantized images (C, H, W), and other inputs."""
    outputs: tuple[TensorSpec, ...]
    arena_bytes: int
    shares_images: bool
    """Whether threads share each image of a batch that has fewer images than there are threads."""
    metadata: Mapping[str, Any]
    """Of the network, as JSON values."""
    platform: str = dataclasses.field(default_factory=this_platform)
    version: str = VERSION
    """Of twoscale."""

    def to_note(self) -> bytes:
        """Return the note of the library's file."""
        values = {"form": _FORM_OF_SEVERAL_INPUTS, **dataclasses.asdict(self)}
        if len(self.inputs) == 1:  # as older versions write and read it
            values["form"] = _FORM_OF_SEVERAL_OUTPUTS
            (values["input"],) = values.pop("inputs")
            if len(self.outputs) == 1:
                values["form"] = _FORM
                (values["output"],) = values.pop("outputs")
        return json.dumps(values).encode()

    @staticmethod
    def from_note(note: bytes) -> Description:
        """Read a note.

        Raises:
            DescriptionError: it is not a note of this form; the message says what is wrong.
        """
        try:
            values = json.loads(note)
            form = values.pop("form")
            if form not in (_FORM, _FORM_OF_SEVERAL_OUTPUTS, _FORM_OF_SEVERAL_INPUTS):
                raise DescriptionError("was written by another version of twoscale")
            if form != _FORM_OF_SEVERAL_INPUTS:
                values["inputs"] = [values.pop("input")]
            if form == _FORM:
                values["outputs"] = [values.pop("output")]
            made = Description(**values)
            made = dataclasses.replace(
                made,
                features=tuple(made.features),
                inputs=tuple(_spec(given) for given in values["inputs"]),
                outputs=tuple(_spec(output) for output in values["outputs"]),
            )
            if not made.inputs or not made.outputs:
                raise DescriptionError("does not describe a compiled network")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise DescriptionError("does not describe a compiled network") from error
        return made

    @property
    def input_layout(self) -> InputLayout:
        """How a batch of all inputs is one array."""
        return InputLayout(tuple(spec.shape for spec in self.inputs))

    def logits(self, integers: NDArray[Any], output: int = 0) -> NDArray[np.float32]:
        """Return the real values of an output's integers, equation (12)."""
        spec = self.outputs[output]
        return ((integers.astype(np.float64) - spec.zero_point) * spec.scale).astype(np.float32)


def _spec(values: Mapping[str, Any]) -> TensorSpec:
    spec = TensorSpec(**values)
    if spec.dtype not in _DTYPES:
        raise ValueError(spec.dtype)
    return dataclasses.replace(spec, shape=tuple(int(size) for size in spec.shape))
