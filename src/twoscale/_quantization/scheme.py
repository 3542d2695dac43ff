"""The scheme of a quantization: the command line's options, and part of a result's record."""

from __future__ import annotations

from dataclasses import dataclass

from twoscale._calibration import RangeMethod
from twoscale._passes.equalize import EQUALIZATIONS
from twoscale.errors import ConfigurationError, UnknownNameError

__all__ = ["ACTIVATIONS", "COURSE", "DEFAULT", "FAST", "SCHEMES", "TFLITE", "Scheme", "find_scheme"]


ACTIVATIONS = ("asymmetric", "symmetric")
"""Kinds of activations."""


@dataclass(frozen=True)
class Scheme:
    """Everything that determines the integers, given a float network and its calibration images.

    Raises:
        ConfigurationError: bits outside 2..8 (the output: 8 or 32), a layer named twice, or options that exclude each
            other.
        UnknownNameError: there is no such range method, kind of activations or equalization.
    """

    name: str = "default"
    weight_range: str = "mse"
    """Range method of weights: minmax, 3-sigma, percentile-99.99, mse, entropy."""
    weight_bits: int = 8
    per_channel: bool = True
    """One weight scale per output channel, or one per layer. The last layer always has one, so that its integers can be
    compared."""
    activation_range: str = "mse"
    """Range method of activations."""
    tune_ranges: bool = True
    """Tune activation ranges chosen by mse for the least error of the logits."""
    activation_bits: int = 8
    activations: str = "asymmetric"
    """"asymmetric": uint8 with an even zero point. "symmetric": int8 with zero point 0; a ReLU leaves half unused."""
    on_grid: bool = True
    """Multipliers are multiples of 1/65536, so that all executors compute the same bits, equation (4)."""
    join_residuals: bool = True
    """Add residuals before requantization, equation (7b), instead of after it, (7). This saves one rounding per
    block."""
    float32_scales: bool = False
    """Scales whose float32 quotients are the multipliers exactly, (6b), odd multipliers, (3b), and additions with an
    operand that has the output's scale, (7e): what LiteRT needs to compute the same bits."""
    output_bits: int = 32
    """Bits of the network's output: 32-bit accumulators, or 8 bits like every other layer."""
    equalization: str = "none"
    """Equalization of channels before quantization: none, weights, activations."""
    error_feedback: bool = True
    """Round weights so that their errors cancel over the calibration images (GPTQ), instead of to the nearest."""
    bias_correction: bool = True
    """Adjust each bias so that the mean output of its channel is the same as before quantization."""
    edge_bits: int | None = None
    """Bits of the weights of the first and the last layer, and of what the last one reads, if they are others than
    ``weight_bits`` and ``activation_bits``. Papers on few bits keep 8 there."""
    layer_weight_bits: tuple[tuple[str, int], ...] = ()
    """(layer, bits) of layers whose weights have other bits than ``weight_bits``."""
    layer_activation_bits: tuple[tuple[str, int], ...] = ()
    """(layer, bits) of layers whose output has other bits than ``activation_bits``. "input" is the images, which have
    8 otherwise."""

    def __post_init__(self) -> None:
        RangeMethod.parse(self.weight_range)
        RangeMethod.parse(self.activation_range)
        if self.activations not in ACTIVATIONS:
            raise UnknownNameError("kind of activations", self.activations, ACTIVATIONS)
        if self.equalization not in EQUALIZATIONS:
            raise UnknownNameError("equalization", self.equalization, EQUALIZATIONS)
        if self.output_bits not in (8, 32):
            raise ConfigurationError(f"output_bits is {self.output_bits}; expected 8 or 32")
        if self.float32_scales and not (self.on_grid and not self.join_residuals):
            raise ConfigurationError("float32_scales needs on_grid=True and join_residuals=False")
        if self.edge_bits is not None:
            _check_bits("edge_bits", self.edge_bits)
        for kind in ("weight", "activation"):
            _check_bits(f"{kind}_bits", getattr(self, f"{kind}_bits"))
            own = getattr(self, f"layer_{kind}_bits")
            for layer, bits in own:
                _check_bits(f"layer_{kind}_bits of {layer}", bits)
            twice = sorted({layer for layer, _ in own if [name for name, _ in own].count(layer) > 1})
            if twice:
                raise ConfigurationError(f"layer_{kind}_bits names {', '.join(twice)} more than once")

    @property
    def symmetric(self) -> bool:
        """Whether activations are signed and have no zero point."""
        return self.activations == "symmetric"

    @property
    def tunes_ranges(self) -> bool:
        """Whether activation ranges are tuned after the range method. Only those of mse are."""
        return self.tune_ranges and self.activation_range == "mse"

    @property
    def weight_limit(self) -> int:
        """Largest integer weight of a layer without its own bits: weights are in [-limit, limit]."""
        return int(2 ** (self.weight_bits - 1) - 1)

    def weight_limit_of(self, layer: str) -> int:
        """Return the largest integer weight of a layer."""
        return int(2 ** (dict(self.layer_weight_bits).get(layer, self.weight_bits) - 1) - 1)

    @property
    def activation_limits(self) -> tuple[int, int]:
        """Smallest and largest integer of an activation without its own bits."""
        return self._activation_limits(self.activation_bits)

    def activation_limits_of(self, layer: str) -> tuple[int, int]:
        """Return the smallest and the largest integer of a layer's output."""
        return self._activation_limits(dict(self.layer_activation_bits).get(layer, self.activation_bits))

    def _activation_limits(self, bits: int) -> tuple[int, int]:
        return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if self.symmetric else (0, 2**bits - 1)

    @property
    def activation_dtype(self) -> str:
        """Type that holds the activations."""
        return "int8" if self.symmetric else "uint8"


def _check_bits(what: str, bits: int) -> None:
    if not 2 <= bits <= 8:
        raise ConfigurationError(f"{what} is {bits}; expected 2 to 8")


DEFAULT = Scheme()
"""uint8 activations with even zero points, a weight scale per channel, multipliers on the grid."""

FAST = Scheme(name="fast", tune_ranges=False, error_feedback=False)
"""The default without tuned ranges and error feedback, in a fraction of the time."""

COURSE = Scheme(
    name="course",
    weight_range="minmax",
    per_channel=False,
    activation_range="minmax",
    tune_ranges=False,
    activations="symmetric",
    on_grid=False,
    join_residuals=False,
    error_feedback=False,
    bias_correction=False,
)
"""The scheme of the course lab: symmetric int8, one scale per layer, free float multipliers."""

TFLITE = Scheme(name="tflite", join_residuals=False, float32_scales=True, output_bits=8)
"""The default scheme with what a TensorFlow Lite file needs, so that LiteRT computes the same integers."""

SCHEMES = {scheme.name: scheme for scheme in (DEFAULT, FAST, COURSE, TFLITE)}


def find_scheme(name: str) -> Scheme:
    """Return the scheme of that name.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in SCHEMES:
        raise UnknownNameError("scheme", name, SCHEMES)
    return SCHEMES[name]
