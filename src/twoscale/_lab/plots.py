"""The lab's charts, drawn from its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from twoscale._display.verification import bits
from twoscale._lab.records import LabNetwork, LabResults, StageResult
from twoscale._page.charts import WIDTH, Bracket, Drawing, Reference, Series, dot_plot, histogram, line_plot
from twoscale._page.numbers import count, fixed, joined, percent
from twoscale._quantization.records import RangeRecord

__all__ = [
    "bias_plot",
    "bits_plot",
    "bounds_plot",
    "integers_histogram",
    "layer_sqnr_plot",
    "loss_plot",
    "stages_plot",
    "tensor_sqnr_plot",
]

_STAGES = {
    "weights": "weights",
    "activations": "+ activations",
    "integer": "all integer",
}
_BIASES = {
    "integer": "bias scaled",
    "unscaled": "bias unscaled",
    "stretched": "bias stretched",
    "weights-scaled": "weights: scaled",
    "weights-unscaled": "weights: unscaled",
    "weights-without": "weights: no bias",
}
"""Biases of the integer network, then of the network of integer weights only."""


def stages_plot(
    network: LabNetwork, schemes: Sequence[str], *, width: float = WIDTH, row_height: float = 22
) -> Drawing:
    """Draw top-1 of every quantized stage against that of the float network."""
    present = dict.fromkeys(stage.stage for stage in network.stages if stage.stage != "float")
    rows = {key: name for key, name in _STAGES.items() if key in present}
    rows |= {key: key for key in present if key not in _STAGES}
    return _top1_plot(
        "Top-1 by stage", "at each stage", network, network.stages, rows, schemes, width=width, row_height=row_height
    )


def bias_plot(network: LabNetwork, stages: Sequence[StageResult], schemes: Sequence[str]) -> Drawing | None:
    """Draw top-1 of the networks with right and wrong biases; None where there are none."""
    present = {stage.stage for stage in stages}
    rows = {key: name for key, name in _BIASES.items() if key in present}
    if not rows:
        return None
    return _top1_plot("Top-1 by bias", "with right and wrong biases", network, stages, rows, schemes)


def _top1_plot(
    title: str,
    what: str,
    network: LabNetwork,
    stages: Sequence[StageResult],
    rows: Mapping[str, str],
    schemes: Sequence[str],
    *,
    width: float = WIDTH,
    row_height: float = 22,
) -> Drawing:
    """Draw one row per stage in ``rows``, key to name, with a marker per scheme and a line at the float network."""
    found = {(stage.scheme, stage.stage): 100 * stage.top1 for stage in stages}
    floats = [100 * stage.top1 for stage in stages if stage.stage == "float"]
    return dot_plot(
        title,
        list(rows.values()),
        [Series(scheme, tuple(found.get((scheme, key)) for key in rows)) for scheme in schemes],
        references=[Reference(top1, f"float {fixed(top1, 2)}") for top1 in floats],
        label=f"Top-1 accuracy of {network.name} {what}: {_spoken(stages)}",
        note=network.name,
        x_label="top-1, %",
        least_span=2.0,
        limits=(0.0, 100.0),
        row_height=row_height,
        width=width,
    )


def bits_plot(network: LabNetwork, schemes: Sequence[str], base: StageResult | None) -> Drawing | None:
    """Draw top-1 against the bits of the weights; None where fewer than two were tried."""
    every = sorted({one.bits for one in network.bits})
    if len(every) < 2:
        return None
    lines = [
        (scheme, [(float(one.bits), 100 * one.top1) for one in network.bits if one.scheme == scheme])
        for scheme in schemes
    ]
    if base is not None:
        lines.append(("float", [(float(bits), 100 * base.top1) for bits in (every[0], every[-1])]))
    return line_plot(
        "Accuracy by bits",
        lines,
        label=f"Top-1 of {network.name} against the bits of its weights: "
        + "; ".join(f"{one.bits} bits ({one.scheme}) {percent(one.top1)} %" for one in network.bits),
        x_label="bits of each weight",
        y_label="top-1, %",
        x_ticks=[(float(bits), str(bits)) for bits in every],
        dots=True,
    )


def loss_plot(results: LabResults) -> Drawing:
    """Draw the training loss of every network."""
    lines = [(network.name, network.train_loss) for network in results.networks]
    ends = [f"{name} from {fixed(points[0][1], 3)} to {fixed(points[-1][1], 3)}" for name, points in lines if points]
    return line_plot(
        "Training loss",
        lines,
        label="Training loss over mini-batches: " + "; ".join(ends),
        x_label="mini-batches",
        y_label="mean cross-entropy",
    )


def integers_histogram(one: RangeRecord, *, log: bool) -> Drawing | None:
    """Draw how often each integer occurs, with the allowed and the seen range; None where not kept."""
    if one.histogram is None:
        return None
    return histogram(
        one.name,
        one.histogram.counts,
        one.histogram.lo,
        one.histogram.hi,
        brackets=[Bracket("allowed", one.lo, one.hi), Bracket("seen", one.seen_lo, one.seen_hi)],
        label=(
            f"Histogram of the integers of {one.name}: {count(one.seen_lo)} to {count(one.seen_hi)} seen, "
            f"{count(one.lo)} to {count(one.hi)} allowed"
        ),
        x_label="integer" + (", counts on a log axis" if log else ""),
        note="one scale" if len(one.scales) == 1 else f"{count(len(one.scales))} scales",
        log=log,
    )


def tensor_sqnr_plot(network: LabNetwork, schemes: Sequence[str], kinds: Sequence[str]) -> Drawing | None:
    """Draw the SQNR of each tensor alone; None where nothing was measured."""
    by_scheme = {
        scheme: {one.name: one.sqnr_db for one in network.ranges.get(scheme, ()) if one.kind in kinds}
        for scheme in schemes
    }
    label = f"SQNR of each tensor of {network.name} alone"
    return _sqnr_plot("Each tensor alone", network.name, by_scheme, label)


def layer_sqnr_plot(network: LabNetwork, schemes: Sequence[str]) -> Drawing | None:
    """Draw the SQNR of each layer's output in the integer network; None where nothing was measured."""
    by_scheme = {
        scheme: {layer.name: layer.sqnr_db for layer in network.verify[scheme].layers}
        if scheme in network.verify
        else {}
        for scheme in schemes
    }
    label = f"SQNR of each layer's output in the integer form of {network.name}"
    return _sqnr_plot("Layer outputs", network.name, by_scheme, label)


def _sqnr_plot(title: str, note: str, by_scheme: dict[str, dict[str, float | None]], label: str) -> Drawing | None:
    rows = list(dict.fromkeys(name for values in by_scheme.values() for name in values))
    series = [Series(scheme, tuple(values.get(row) for row in rows)) for scheme, values in by_scheme.items()]
    measured = [value for one in series for value in one.values if value is not None]
    if not measured:
        return None
    label += f": {fixed(min(measured), 1)} to {fixed(max(measured), 1)} dB"
    return dot_plot(title, rows, series, label=label, note=note, x_label="SQNR, dB", least_span=6.0)


def bounds_plot(network: LabNetwork, schemes: Sequence[str]) -> Drawing | None:
    """Draw the accumulator bounds in bits against 2**24 and 2**31; None where there is none."""
    by_scheme = {
        scheme: {layer.name: bits(layer.accumulator_bound) for layer in network.verify[scheme].layers}
        if scheme in network.verify
        else {}
        for scheme in schemes
    }
    bounded = [name for values in by_scheme.values() for name, value in values.items() if value is not None]
    rows = list(dict.fromkeys(bounded))
    if not rows:
        return None
    series = [Series(scheme, tuple(values.get(row) for row in rows)) for scheme, values in by_scheme.items()]
    largest = max(value for one in series for value in one.values if value is not None)
    return dot_plot(
        "Accumulator bounds",
        rows,
        series,
        note=network.name,
        label=f"Accumulator bounds of {network.name}: at most {fixed(largest, 1)} bits",
        x_label="log₂ of the largest possible |accumulator|",
        references=[Reference(24, "2²⁴"), Reference(31, "2³¹")],
        span=(8.0, max(32.0, largest + 1)),
    )


def _spoken(stages: Sequence[StageResult]) -> str:
    return joined(
        f"{stage.title}{'' if stage.stage == 'float' else f' ({stage.scheme})'} {percent(stage.top1)} %"
        for stage in stages
    )
