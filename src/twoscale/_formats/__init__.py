"""The saved form of an integer network: an ONNX file of standard integer operators.

The file is a program and a document at once. ONNX Runtime and any other runtime of the default domain run its
graph as it is, float32 images "input" (N, C, H, W) to float32 "logits" (N, classes), and get the integers of the
NumPy reference. Between input and logits the graph counts in integer units (all scales are 1, or a multiplier
m / 2**16), so that float32 requantization is exact by equation (5). The real scales and everything else about the
network are in the file's metadata, from which ``load`` gives back an equal network.

``onnx`` is imported when a file is read or written, not before.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from twoscale._files import write_bytes
from twoscale.errors import UnknownNameError

if TYPE_CHECKING:
    import onnx

    from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["Form", "load", "save", "to_model"]

Form = Literal["integer", "qdq"]
"""Of the graph: operators on integers, or floating-point operators between quantize and dequantize nodes."""


def to_model(network: IntegerNetwork, form: Form = "integer") -> onnx.ModelProto:
    """Return the network as an ONNX model with its metadata: standard operators, opset 18, dynamic batch "N".

    Args:
        network: what to write.
        form: "integer", the form that is read back and gives the reference's integers, or "qdq" for runtimes that
            fuse that form themselves.

    Raises:
        UnknownNameError: there is no such form.
    """
    from twoscale._formats import qdq
    from twoscale._formats.onnx import writing

    forms = {qdq.FORM: qdq.to_model, writing.FORM: writing.to_model}
    if form not in forms:
        raise UnknownNameError("form of ONNX file", form, forms)
    return forms[form](network)


def save(network: IntegerNetwork, path: str | Path, form: Form = "integer") -> None:
    """Write the network as an ONNX file, all of it or nothing.

    Args:
        network: what to save.
        path: the file, by custom ending in ".onnx"; folders on the way are made.
        form: see ``to_model``; only the integer form is read back.

    Raises:
        UnknownNameError: there is no such form.
        TwoscaleError: the file cannot be written; what was there before is unchanged.
    """
    write_bytes(Path(path), to_model(network, form).SerializeToString(deterministic=True))


def load(path: str | Path) -> IntegerNetwork:
    """Read an integer network.

    A file that ``save`` wrote gives back a network of the same fingerprint, with its metadata. Other tools' files of
    QLinear operators are read where they fit; their networks have the scheme "foreign" and are off the grid.

    Raises:
        NetworkFileError: the file is missing, damaged, altered, or not an integer network.
    """
    from twoscale._formats.onnx import reading

    return reading.load(Path(path))
