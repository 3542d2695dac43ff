"""TensorFlow Lite files (`.tflite`), with which LiteRT computes the network's integers, layer by layer.

Activations are int8: the network's integers, less 128 where they are uint8. Images and feature maps are NHWC. Weights
are int8 with a scale per channel, biases int32. Scales are the network's own, as float32; weight scales are those with
which LiteRT's float32 quotients are the network's multipliers exactly, equation (6b). A network has such scales, and
8-bit outputs, if it was quantized with the scheme "tflite".

The schema is that of the package ai-edge-litert; TensorFlow is not needed.
"""

from __future__ import annotations

from twoscale._formats.tflite.writing import Written, write
from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["Written", "to_bytes", "write"]


def to_bytes(network: IntegerNetwork, *, io: str = "int8") -> bytes:
    """Return the network as a file. The same network always gives the same bytes.

    Args:
        network: quantized with the scheme "tflite".
        io: type of input and output: "int8", "uint8" or "float32".

    Raises:
        ConfigurationError: a layer has no TensorFlow Lite form with the same integers; names it, and what to do.
        MissingPackageError: ai-edge-litert is not installed.
    """
    return write(network, io=io).data
