"""The page of the lab: its sections in the order of the lab's questions, and the files they become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from twoscale._calibration.summaries import TensorSummary
from twoscale._display.statistics import statistics_table, values_histogram
from twoscale._display.verification import layers_table
from twoscale._files import write_text
from twoscale._lab import findings, plots, tables
from twoscale._lab.changes import float_stage
from twoscale._lab.records import LabNetwork, LabResults, StageResult
from twoscale._page.document import (
    Explorer,
    Figure,
    Group,
    Section,
    Stop,
    all_figures,
    figures_of,
    file_name,
    render_page,
    table_html,
)
from twoscale._page.numbers import MISSING, count, decimals_for, fixed, joined, percent
from twoscale._page.tables import Table
from twoscale._quantization.records import RangeRecord

__all__ = ["before_and_after", "render_report", "stages_html", "write_plots", "write_report"]


def render_report(results: LabResults) -> str:
    """Return the self-contained page of ``results``: no requests, light and dark."""
    return render_page(
        f"twoscale lab: {results.data}",
        f"{joined(network.name for network in results.networks) if results.networks else 'No network'}, "
        f"from float to 8-bit integers, on {count(results.test_samples)} test images",
        _sections(results),
        results.environment,
        "results.json",
    )


def write_plots(results: LabResults, folder: Path) -> tuple[Path, ...]:
    """Write every chart of the page into ``folder`` as an SVG file; return the paths in page order.

    Raises:
        TwoscaleError: the folder cannot be written.
    """
    paths = []
    for one in all_figures(_sections(results)):
        path = folder / f"{one.name}.svg"
        write_text(path, one.drawing.standalone())
        paths.append(path)
    return tuple(paths)


def write_report(results: LabResults, out: Path) -> tuple[Path, ...]:
    """Write ``out``/report.html and ``out``/plots/*.svg; return the paths, the page first.

    Raises:
        TwoscaleError: the folder cannot be written; each file is whole or is not there.
    """
    page = out / "report.html"
    write_text(page, render_report(results))
    return page, *write_plots(results, out / "plots")


def stages_html(stages: Sequence[StageResult], caption: str = "") -> str:
    """Return a small HTML table of ``stages`` for a notebook, in the notebook's own colours."""
    return table_html(tables.stages_table(stages, caption))


def _sections(results: LabResults) -> list[Section]:
    schemes = results.schemes
    networks = results.networks
    return [
        _summary(results, schemes),
        _training(results),
        Section(
            "weights",
            "1 Weights",
            (
                "How the trained weights of each layer are distributed: the height of a bar is the number of "
                "weights in it. Above the bars, the line marked range goes from the smallest to the largest "
                "weight, the line marked 3σ three standard deviations to both sides of the mean (its dot).",
                "Eight bits have to cover whatever range is chosen: the total range loses no weight but has "
                "coarser steps, a narrower one has finer steps and clips the few weights outside.",
            ),
            [_weights(network) for network in networks],
        ),
        Section(
            "quantized-weights",
            "2 Quantize weights",
            (
                "Each weight becomes an integer q that stands for scale × q. A layer has one scale, or one for "
                "each output channel. The histograms show how often each integer occurs: the more of the "
                "allowed range is in use, the finer the steps. Accuracy is measured with only the weights "
                "quantized; activations are still float.",
                "The range methods are compared with one scale per layer, each weight rounded to the nearest integer. "
                "Clipped is the share of weights that lie more than half a step outside the range. Drag across a "
                "histogram, or move the slider under it, to choose another clip range for that layer.",
                "Output SQNR compares, over test images, the output of a layer with its output when only its weights "
                "are quantized. Under a scheme with error feedback, the columns called nearest show both numbers with "
                "each weight rounded to the nearest integer.",
            ),
            [group for network in networks for group in _quantized_weights(network, schemes)],
        ),
        Section(
            "activations",
            "3 Activations",
            (
                f"How the input and the output of each layer are distributed over "
                f"{count(results.calibration_samples)} calibration images. A ReLU turns every negative value "
                "into exactly zero. The count axis is logarithmic, so that the few large "
                "values that decide the range are visible beside the many small ones.",
                "Where a layer's output is pooled, it is shown before and after pooling. Max pooling moves values and "
                "rounds nothing, so both have the same scale; the next layer receives the values after pooling.",
            ),
            [_activations(network) for network in networks],
        ),
        Section(
            "quantized-activations",
            "4 Quantize activations",
            (
                "Each activation becomes an integer q that stands for scale × (q − zero point). SQNR compares "
                "the tensor with the rounding error made on it, in decibels: 6 dB are one bit. Saturated is the "
                "share of a layer's outputs that end at a limit of the integer range, the zeros of a ReLU not "
                "counted; black and white pixels of the input are there by nature.",
                "A layer adds products of integers. Each product counts in units of s_x·s_w, so the accumulator a "
                "stands for s_x·s_w·a. The output integer counts in units of s_y, so a is multiplied by "
                "M = s_x·s_w/s_y and rounded. s_y follows from the largest output to be covered, as 255 or 127 steps.",
                "The lab sheet uses factors n by which real values are multiplied; they are the reciprocals of these "
                "scales: n_x = 1/s_x, n_w = 1/s_w. Its factor n_out = 127 / (max · n_w · n_initial_input · "
                "Π(n_w·n_out)) is M: n_initial_input · Π(n_w·n_out) over the layers before is 1/s_x, and s_y is "
                "max/127.",
                "Networks of the lab take normalized images. twoscale quantize makes such networks with --images "
                "normalized, which is its default for symmetric activations; for uint8 activations its default is "
                "pixels.",
            ),
            [group for network in networks for group in _quantized_activations(network, schemes)],
        ),
        _biases(results, schemes),
        Section(
            "verify",
            "6 Verify",
            (
                "The integer network is computed by several independent programs, the executors, and every "
                "integer of every layer is compared. On the 65536ths grid, where every multiplier is a whole "
                "number of 65536ths, they must agree exactly. SQNR compares each layer's output with the float "
                "network's; it counts the noise of all layers before it too.",
                "The accumulator bound is the largest sum that any input at all could produce, proved from the "
                "weights. Below 2²⁴ a float32 computes every sum exactly; below 2³¹ it fits into 32 bits. Pair sums "
                "are safe where x86 processors that add neighbouring products in 16 bits cannot saturate.",
            ),
            [_verify(network, schemes) for network in networks],
        ),
        _bits(results, schemes),
        Section(
            "making",
            "8 How it was made",
            ("Everything needed to repeat this: the same data, recipe, seed and versions.",),
            [Group(tables=tables.details_tables(results))],
        ),
    ]


def _summary(results: LabResults, schemes: Sequence[str]) -> Section:
    intro = [
        "Each row is one way to compute a trained network: in float, with some of its tensors rounded to "
        "8-bit integers, or all in integers. Top-1 is the share of test images classified correctly, agreement "
        "the share given the class that the float network gives. Logit SQNR compares the float network's "
        "outputs with the error made on them; 6 dB more halve the error. Differing integers are those on which "
        "two executors disagree.",
    ]
    if results.test_samples:
        intro.append(f"One image of {count(results.test_samples)} is {100 / results.test_samples:.2g} points.")
    staged = [network for network in results.networks if network.stages]
    group = Group(
        figures=figures_of({f"{network.name} stages": plots.stages_plot(network, schemes) for network in staged}),
        tables=[
            tables.stages_table(
                network.stages,
                f"{network.name}, {count(network.parameters)} parameters in float: accuracy at each stage",
            )
            for network in staged
        ],
    )
    return Section("summary", "Summary", intro, [group], findings.headline(results), findings.verdict(results))


def _training(results: LabResults) -> Section:
    drawn = any(network.train_loss for network in results.networks)
    return Section(
        "training",
        "Training",
        (
            "The networks are trained in float first. Each point is the mean loss over the mini-batches since "
            "the point before it, so the loss of the untrained network is not shown.",
        ),
        [
            Group(
                findings=findings.loss_finding(results),
                figures=figures_of({"training loss": plots.loss_plot(results) if drawn else None}),
            )
        ],
    )


def _weights(network: LabNetwork) -> Group:
    return Group(
        network.name,
        findings.weight_findings(network),
        figures_of(
            {f"{network.name} {one.kind} {one.name}": values_histogram(one, log=False) for one in network.weights}
        ),
        [statistics_table(network.weights, f"Weights of {network.name}", zeros=False)] if network.weights else [],
    )


def _quantized_weights(network: LabNetwork, schemes: Sequence[str]) -> list[Group]:
    accuracy = _stages_of(network, "weights", "only the weights quantized")
    groups = [Group(network.name, findings.weight_range_findings(network, schemes), tables=accuracy)]
    if network.methods or network.clips:
        caption = f"Range methods for the weights of {network.name}"
        base = float_stage(network)
        groups.append(
            Group(
                f"{network.name}, which range",
                findings.method_findings(network),
                tables=[tables.methods_table(network.methods, base, caption)] if network.methods else [],
                explorers=_explorers(network),
                level=4,
            )
        )
    for scheme in schemes:
        ranges = [one for one in network.ranges.get(scheme, ()) if one.kind == "weight"]
        if ranges:
            caption = f"Weights of {network.name} in integers, scheme “{scheme}”"
            made = [tables.weight_ranges_table(ranges, network.noise.get(scheme, ()), caption)]
            figures = _integers(network, scheme, ranges, log=False)
            said = findings.feedback_findings(network, scheme)
            groups.append(Group(_titled(network, scheme), said, figures, made, level=4))
    return groups


def _explorers(network: LabNetwork) -> list[Explorer]:
    """Return a histogram with draggable clip range for each layer whose clip ranges were measured."""
    weights = {one.name: one for one in network.weights}
    explorers = []
    for curve in network.clips:
        if curve.layer not in weights or not curve.points:
            continue
        widest = curve.points[0].clip
        decimals = decimals_for(one.clip for one in curve.points)
        measured = curve.points[0].top1 is not None
        stops = []
        for one in curve.points:
            readings = [
                ("Range", f"±{fixed(one.clip, decimals)} ({percent(one.clip / widest, 0)} %)"),
                ("Clipped", f"{percent(one.clipped, 2)} %"),
                ("Weights SQNR", MISSING if one.sqnr_db is None else f"{fixed(one.sqnr_db, 1)} dB"),
            ]
            if measured:
                readings.append(("Top-1", f"{percent(one.top1)} %"))
            stops.append(Stop(one.clip, tuple(readings)))
        on = f", top-1 on {count(curve.samples)} images" if measured else ""
        drawing = replace(
            values_histogram(weights[curve.layer], log=False, title=curve.layer),
            label=f"Weights of {curve.layer} of {network.name} and a clip range: clipped share, SQNR{on}",
        )
        explorers.append(Explorer(file_name(f"{network.name} clip {curve.layer}"), drawing, tuple(stops)))
    return explorers


def _activations(network: LabNetwork) -> Group:
    named = before_and_after(network)
    return Group(
        network.name,
        findings.activation_findings(network),
        figures_of({f"{network.name} activation {one.name}": values_histogram(one, log=True) for one in named}),
        [statistics_table(named, f"Activations of {network.name}", zeros=True)] if named else [],
    )


def before_and_after(network: LabNetwork) -> list[TensorSummary]:
    """Return the activations in order, those that are pooled before and after it."""
    after = {one.name: one for one in network.pooled}
    named = []
    for one in network.activations:
        if one.name in after:
            named.append(replace(one, name=f"{one.name} before pooling"))
            named.append(replace(after[one.name], name=f"{one.name} after pooling"))
        else:
            named.append(one)
    return named


def _quantized_activations(network: LabNetwork, schemes: Sequence[str]) -> list[Group]:
    kinds = ("input", "activation")
    drawing = plots.tensor_sqnr_plot(network, schemes, kinds)
    groups = [
        Group(
            network.name,
            [*findings.activation_range_findings(network, schemes), *findings.worked_findings(network, schemes)],
            figures_of({f"{network.name} tensor SQNR": drawing}),
            _stages_of(network, "activations", "weights and activations quantized"),
        )
    ]
    for scheme in schemes:
        ranges = [one for one in network.ranges.get(scheme, ()) if one.kind in kinds]
        if ranges:
            caption = f"Activations of {network.name} in integers, scheme “{scheme}”"
            made = [tables.activation_ranges_table(ranges, network.verify.get(scheme), caption)]
            if network.scales.get(scheme):
                caption = f"Scales of {network.name}, scheme “{scheme}”: input, weights, output"
                made.append(tables.scales_table(network.scales[scheme], caption))
            if scheme in network.worked:
                one = network.worked[scheme]
                caption = f"{network.name}, scheme “{scheme}”: one output of {one.layer}, by hand"
                made.append(tables.worked_table(one, caption))
            if scheme in network.explained:
                caption = f"{network.name}, scheme “{scheme}”: every integer of every layer; click one to see its sum"
                made.append(tables.explained_table(network.explained[scheme], caption))
            figures = _integers(network, scheme, ranges, log=True)
            groups.append(Group(_titled(network, scheme), (), figures, made, level=4))
    return groups


def _integers(network: LabNetwork, scheme: str, ranges: Sequence[RangeRecord], *, log: bool) -> list[Figure]:
    return figures_of(
        {
            f"{network.name} {scheme} {one.kind} integers {one.name}": plots.integers_histogram(one, log=log)
            for one in ranges
        }
    )


def _titled(network: LabNetwork, scheme: str) -> str:
    return f"{network.name}, scheme “{scheme}”"


def _biases(results: LabResults, schemes: Sequence[str]) -> Section:
    groups = []
    for network in results.networks:
        rows = [stage for stage in network.stages if stage.stage in ("float", "integer")]
        rows[1:1] = network.bias_stages
        made = [
            tables.bias_integers_table(network.biases[scheme], f"Biases of {network.name}, scheme “{scheme}”")
            for scheme in schemes
            if any(any(one.integers) or any(one.reals) for one in network.biases.get(scheme, ()))
        ]
        if network.bias_stages:
            made.insert(0, tables.stages_table(rows, f"{network.name}: right and wrong biases"))
        corrected = [text for scheme in schemes for text in findings.bias_correction_findings(network, scheme)]
        said = [*findings.half_way_findings(network, schemes), *findings.bias_findings(network, schemes), *corrected]
        drawn = plots.bias_plot(network, rows, schemes) if network.bias_stages else None
        if said or made:
            groups.append(Group(network.name, said, figures_of({f"{network.name} biases": drawn}), made))
    intro = [
        "A layer adds its bias to the sum of its products. In integers the sum counts in units of s_x·s_w (input "
        "scale × weight scale), so the bias is divided by s_x·s_w and rounded to an int32. Its unit follows from the "
        "two scales and cannot be chosen: a bias that is unscaled, or stretched to the full range of int32, is added "
        "to numbers of another unit.",
    ]
    if any(row.stage.startswith("weights") for network in results.networks for row in network.bias_stages):
        intro.append(
            "In the rows “integer weights only”, the weights are integers and nothing is requantized. The output of a "
            "layer then counts in units of the product of all weight scales up to it, not of s_x·s_w, and this is what "
            "a bias has to be divided by."
        )
    if not any(network.bias_stages for network in results.networks):
        intro.append("No network of this run has a bias in float, so no wrong bias was measured.")
    return Section("quantized-biases", "5 Quantize biases", intro, groups)


def _bits(results: LabResults, schemes: Sequence[str]) -> Section:
    groups = []
    for network in results.networks:
        if network.bits:
            base = float_stage(network)
            drawn = plots.bits_plot(network, schemes, base)
            groups.append(
                Group(
                    network.name,
                    findings.bits_findings(network, schemes),
                    figures_of({f"{network.name} bits": drawn}),
                    [tables.bits_table(network.bits, base, f"{network.name}: all integer, by bits of the weights")],
                )
            )
    intro = (
        "The integer network with weights of fewer bits; activations stay at 8. With one bit less, the steps of the "
        "weights are about twice as large. twoscale sensitivity measures the layers one by one and chooses the bits of "
        "each for a given size.",
    )
    return Section("bits", "7 Fewer bits", intro, groups)


def _verify(network: LabNetwork, schemes: Sequence[str]) -> Group:
    checks = [network.verify[scheme] for scheme in schemes if scheme in network.verify]
    made = [tables.verify_table(checks, f"{network.name}: executors compared")] if checks else []
    made += [
        layers_table(check.layers, f"{network.name}, scheme “{check.scheme}”: each layer")
        for check in checks
        if check.layers
    ]
    figures = figures_of(
        {
            f"{network.name} layer SQNR": plots.layer_sqnr_plot(network, schemes),
            f"{network.name} accumulator bounds": plots.bounds_plot(network, schemes),
        }
    )
    return Group(network.name, findings.verify_findings(network, schemes), figures, made)


def _stages_of(network: LabNetwork, key: str, what: str) -> list[Table]:
    rows = [stage for stage in network.stages if stage.stage in ("float", key)]
    if not any(stage.stage == key for stage in rows):
        return []
    return [tables.stages_table(rows, f"Accuracy of {network.name} with {what}")]
