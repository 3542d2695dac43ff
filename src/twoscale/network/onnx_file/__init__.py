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
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

    from twoscale.network.network import IntegerNetwork

__all__ = ["load", "save", "to_model"]


def to_model(network: IntegerNetwork) -> onnx.ModelProto:
    """Return the network as an ONNX model of standard integer operators, opset 18, with its metadata."""
    from twoscale.network.onnx_file import writing

    return writing.to_model(network)


def save(network: IntegerNetwork, path: str | Path) -> None:
    """Write the network as an ONNX file, all of it or nothing.

    Args:
        network: what to save.
        path: the file, by custom ending in ".onnx"; folders on the way are made.

    Raises:
        TwoscaleError: the file cannot be written; what was there before is unchanged.
    """
    from twoscale.files import write_bytes

    write_bytes(Path(path), to_model(network).SerializeToString(deterministic=True))


def load(path: str | Path) -> IntegerNetwork:
    """Read a network that ``save`` wrote; its fingerprint is that of the network that was saved.

    Raises:
        NetworkFileError: the file is missing, damaged, altered, or not an integer network.
    """
    from twoscale.network.onnx_file import reading

    return reading.load(Path(path))
