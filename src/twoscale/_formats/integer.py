"""The form that is read back: standard integer operators with which ONNX Runtime computes the network's integers.

ONNX Runtime, and any other runtime of the default domain, runs the graph without conversion, from float32 images
"input" (N, C, H, W) to float32 "logits" (N, classes), and computes the integers of the NumPy reference. Between input
and logits the graph counts in integer units (all scales are 1, or a multiplier m / 2**16), so that float32
requantization is exact by equation (5). The real scales and everything else about the network are in the file's
metadata, from which ``load`` makes an equal network.
"""

from __future__ import annotations

from pathlib import Path

from twoscale._formats.onnx import reading, writing
from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["load", "to_bytes"]


def to_bytes(network: IntegerNetwork, *, int4: bool = False) -> bytes:
    """Return the network as a file. The same network always gives the same bytes.

    Args:
        network: what to write.
        int4: whether weights that fit 4 bits take half a byte each. Such a file needs opset 21, others opset 18.
    """
    return bytes(writing.to_model(network, int4=int4).SerializeToString(deterministic=True))


def load(path: Path) -> IntegerNetwork:
    """Read a network.

    Raises:
        NetworkFileError: the file is missing, damaged, altered, or not an integer network.
    """
    return reading.load(path)
