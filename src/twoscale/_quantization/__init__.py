"""From a float graph to an integer network: ranges, a plan, rounding, and corrections that raise the accuracy."""

from twoscale._quantization.pipeline import Normalization, float_graph, quantize, quantize_graph, taking_pixels
from twoscale._quantization.scheme import COURSE, DEFAULT, FAST, SCHEMES, Scheme, find_scheme

__all__ = [
    "COURSE",
    "DEFAULT",
    "FAST",
    "SCHEMES",
    "Normalization",
    "Scheme",
    "find_scheme",
    "float_graph",
    "quantize",
    "quantize_graph",
    "taking_pixels",
]
