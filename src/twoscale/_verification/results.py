"""Results of verify, as records: frozen dataclasses of plain values."""

from __future__ import annotations

from dataclasses import dataclass, field

from twoscale import _delegates as delegates

__all__ = ["LayerCheck", "OutputCheck", "VerifyResult"]


@dataclass(frozen=True)
class LayerCheck:
    """The results for one layer."""

    name: str
    op: str
    mismatches: int
    """Number of integers that differ between the reference and the others, over all images."""
    values: int
    """Integers compared."""
    sqnr_db: float | None
    """SQNR of this layer's output against the float network's, in dB."""
    accumulator_bound: int | None = None
    """Largest |accumulator| that any input can produce, proved from the weights; None without accumulator."""
    float32_exact: bool | None = None
    """Whether that bound is below 2**24."""
    pair_saturation_safe: bool | None = None
    """Whether no 16-bit pair sum of AVX2's vpmaddubsw can saturate with these weights."""
    saturated: float | None = None
    """Fraction of outputs at a clamp bound that is not a ReLU's zero."""
    seen_lo: int | None = None
    """Smallest integer that occurred."""
    seen_hi: int | None = None
    """Largest integer that occurred."""
    outside: int = 0
    """Number of outputs that are not integers in [lo, hi]. 0 proves that all are."""


@dataclass(frozen=True)
class OutputCheck:
    """The results for one output of the network."""

    name: str
    """Of its layer."""
    shape: tuple[int, ...]
    """Without the batch."""
    values: int
    """Integers compared."""
    mismatches: int
    """Number of integers that differ between the reference and the others, over all images."""
    sqnr_db: float | None
    """SQNR of the real values against the float network, in dB; None without one, and without an error."""
    rms_error: float | None
    """Root of the mean squared error, in the unit of the values."""
    top1: float | None
    """None without labels, if the output is no vector of classes, and for all but the first that is one."""
    agreement: float | None
    """None without a network to compare with, and if the output is no vector of classes."""


@dataclass(frozen=True)
class VerifyResult:
    """Results of all executors over a data set, compared integer by integer."""

    network: str
    scheme: str
    on_grid: bool
    """Whether the network is on the grid, so that 0 mismatches are guaranteed."""
    executors: tuple[str, ...]
    """The executors compared, the reference first."""
    samples: int
    mismatches: int
    """Over all layers and executors."""
    compared: int
    """Integers compared."""
    top1: float | None
    """None without labels, or if the outputs are not classes."""
    agreement: float | None
    """None without a network to compare with, or if its outputs are not classes."""
    sqnr_db: float | None
    """SQNR of the output, in dB. Of several outputs each has the same weight: 10·log10(1 / mean(noise / signal))."""
    layers: tuple[LayerCheck, ...]
    mismatches_by_executor: dict[str, int] = field(default_factory=dict)
    compared_by_executor: dict[str, int] = field(default_factory=dict)
    """Integers compared with each executor but the first."""
    first_divergence: str | None = None
    """Layer, image, index, expected and found of the first differing integer."""
    divergence_by_executor: dict[str, str] = field(default_factory=dict)
    """The same for each executor that differs."""
    against: str | None = None
    """The network that agreement and SQNR refer to: "float", or another integer network's name and scheme, or None."""
    uncompared: tuple[str, ...] = ()
    """Layers without a counterpart in it."""
    same_weights: bool | None = None
    """Whether the model has the weights that the network was made from; None if they are not recorded."""
    original: str | None = None
    """Name of the other tool's file that the network was read from, if ONNX Runtime or LiteRT ran that file beside it;
    it counts as an executor then."""
    original_left_out: str | None = None
    """Why that file was not run, if the network is from another tool."""
    rms_error: float | None = None
    """Root of the mean squared error of the output, in its unit; None without a network to compare with, and for
    several outputs."""
    outputs: tuple[OutputCheck, ...] = ()
    """One per output of the network, in its order."""
    exact: bool = False
    """Whether 0 mismatches are guaranteed: on the grid, or in TensorFlow Lite's arithmetic."""
    cycles_by_executor: dict[str, int] = field(default_factory=dict)
    """Processor cycles of one image, on average, on each board that counts them."""

    @property
    def ok(self) -> bool:
        """Whether no integer differed."""
        return self.mismatches == 0

    def _repr_html_(self) -> str:
        html: str = delegates.call("verify_html", self)
        return html
