"""What results.json of the lab holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from twoscale import _delegates as delegates
from twoscale._calibration.summaries import TensorSummary
from twoscale._environment import Environment
from twoscale._quantization.records import RangeRecord
from twoscale._verification.results import VerifyResult

__all__ = [
    "BiasIntegers",
    "BitsResult",
    "ClipCurve",
    "ClipPoint",
    "LabNetwork",
    "LabResults",
    "LayerScales",
    "RangeMethodResult",
    "StageResult",
    "WeightNoise",
    "WorkedOutput",
]


@dataclass(frozen=True)
class StageResult:
    """One row of the lab's table."""

    network: str
    scheme: str
    """"float", "course" or "default"."""
    stage: str
    """"float", "weights", "activations" or "integer". Of biases: "weights-unscaled", "weights-without" and
    "weights-scaled", where weights are integers and nothing is requantized, and "unscaled" and "stretched", in the
    integer network."""
    title: str
    """For display, e.g. "weights int8, activations float"."""
    samples: int
    """Test images used."""
    top1: float
    """Fraction correct, 0..1."""
    agreement: float | None = None
    """Fraction of images with the float model's class, 0..1."""
    sqnr_db: float | None = None
    """Logit signal to quantization noise against the float model, dB."""
    mismatches: int | None = None
    """Differing integers between executors over all layers; None where only one computed it."""
    note: str = ""
    """One plain sentence, where the row has a lesson."""


@dataclass(frozen=True)
class RangeMethodResult:
    """The network with all weights rounded to int8, one scale per layer chosen by one range method; biases float."""

    method: str
    clipped: float
    """Fraction of all weights that lie more than half a step outside the range, 0..1."""
    sqnr_db: float | None
    """Signal to quantization noise of all weights together, dB."""
    samples: int
    top1: float
    agreement: float
    logit_sqnr_db: float | None


@dataclass(frozen=True)
class ClipPoint:
    """One layer's weights rounded to int8 with one scale, where 127 stands for ``clip``."""

    clip: float
    """Largest magnitude that is kept, in the units of the weights."""
    clipped: float
    """Fraction of the layer's weights that lie more than half a step beyond ``clip``, 0..1."""
    sqnr_db: float | None
    """Signal to quantization noise of the layer's weights, dB."""
    top1: float | None
    """Fraction correct with only this layer quantized; None where not measured."""


@dataclass(frozen=True)
class ClipCurve:
    """What the clip range of one layer's weights costs, from the widest range to the narrowest."""

    layer: str
    samples: int
    """Test images of the accuracies."""
    points: tuple[ClipPoint, ...]


@dataclass(frozen=True)
class WeightNoise:
    """Quantization noise of one layer's weights, and of its output with only these weights quantized."""

    layer: str
    weights_db: float | None
    output_db: float | None
    nearest_weights_db: float | None = None
    """The same with each weight rounded to the nearest integer; None where the scheme does that anyway."""
    nearest_output_db: float | None = None


@dataclass(frozen=True)
class LayerScales:
    """The scales that meet in one layer, and its multipliers M = s_x · s_w / s_y, equation (3)."""

    layer: str
    x_scale: float
    weight_scales: tuple[float, ...]
    """One, or one per output channel."""
    y_scale: float
    multipliers: tuple[float, ...]
    numerators: tuple[int, ...]
    """The multipliers times 65536; empty off the grid, where they are any float32 number."""


@dataclass(frozen=True)
class WorkedOutput:
    """One accumulator on its way to one output integer."""

    layer: str
    image: int
    """Index in the test set."""
    index: tuple[int, ...]
    """Of the output, (channel, row, column) or (channel,)."""
    x_scale: float
    weight_scale: float
    y_scale: float
    multiplier: float
    numerator: int | None
    """The multiplier times 65536; None off the grid."""
    bias: int
    accumulator: int
    """Sum of products, bias included."""
    zero_point: int
    lo: int
    hi: int
    output: int
    real: float
    """What the float network computes there."""


@dataclass(frozen=True)
class BiasIntegers:
    """The biases of one layer as int32, in steps of s_x · s_w."""

    layer: str
    units: tuple[float, ...]
    """s_x · s_w; one, or one per output channel."""
    reals: tuple[float, ...]
    """The biases of the float network, batch norms folded."""
    integers: tuple[int, ...]


@dataclass(frozen=True)
class BitsResult:
    """The integer network with weights of other bits."""

    scheme: str
    bits: int
    samples: int
    top1: float
    agreement: float
    sqnr_db: float | None
    """Logit signal to quantization noise, dB."""


@dataclass(frozen=True)
class LabNetwork:
    """Everything the lab found about one network."""

    name: str
    parameters: int
    train_loss: tuple[tuple[int, float], ...]
    """(mini-batches done, mean loss since the last entry)."""
    weights: tuple[TensorSummary, ...]
    activations: tuple[TensorSummary, ...]
    """Before pooling."""
    ranges: dict[str, tuple[RangeRecord, ...]]
    """Scheme to the ranges of its weights and activations."""
    stages: tuple[StageResult, ...]
    verify: dict[str, VerifyResult]
    """Scheme to the check of its integer network."""
    files: dict[str, str]
    """What ("checkpoint", "default", "course") to file name, relative to the results."""
    pooled: tuple[TensorSummary, ...] = ()
    """Outputs after max pooling, named after the layer whose output is pooled."""
    methods: tuple[RangeMethodResult, ...] = ()
    """Range methods of the weights compared."""
    clips: tuple[ClipCurve, ...] = ()
    """For each layer with weights, the cost of every clip range."""
    noise: dict[str, tuple[WeightNoise, ...]] = field(default_factory=dict)
    """Scheme to the noise of its weights, for each layer."""
    scales: dict[str, tuple[LayerScales, ...]] = field(default_factory=dict)
    """Scheme to the scales of each layer that requantizes."""
    worked: dict[str, WorkedOutput] = field(default_factory=dict)
    """Scheme to one output, computed by hand."""
    biases: dict[str, tuple[BiasIntegers, ...]] = field(default_factory=dict)
    """Scheme to the bias integers of each layer."""
    bias_stages: tuple[StageResult, ...] = ()
    """Networks with wrong biases; empty where the network has none."""
    explained: dict[str, str] = field(default_factory=dict)
    """Scheme to the page of every integer for one picture, relative to the results."""
    product_of_scales: float | None = None
    """Unit of the last sums where weights are integers and nothing is requantized; None where that has no unit."""
    bits: tuple[BitsResult, ...] = ()
    """Accuracy against the bits of the weights."""


@dataclass(frozen=True)
class LabResults:
    """results.json of ``twoscale lab``."""

    data: str
    seed: int
    train_samples: int
    test_samples: int
    calibration_samples: int
    recipe: dict[str, Any]
    """The training configuration as it ran."""
    networks: tuple[LabNetwork, ...]
    environment: Environment
    seconds: dict[str, float]
    """Stage to wall-clock seconds."""

    @property
    def schemes(self) -> tuple[str, ...]:
        """Schemes in the order in which the stages name them; colours follow this order."""
        names = [stage.scheme for network in self.networks for stage in network.stages]
        names += [scheme for network in self.networks for scheme in (*network.ranges, *network.verify)]
        return tuple(dict.fromkeys(name for name in names if name != "float"))

    def __repr__(self) -> str:  # a dataclass's own would print every histogram
        accuracies = [
            f"{stage.network} {stage.scheme} {stage.top1:.2%}"
            for network in self.networks
            for stage in network.stages
            if stage.stage in {"float", "integer"}
        ]
        return f"LabResults({', '.join([self.data, *accuracies])})"

    def _repr_html_(self) -> str:
        stages = [stage for network in self.networks for stage in network.stages]
        html: str = delegates.call("stages_html", stages, self.data)
        return html
