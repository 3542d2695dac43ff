"""Sentences about the results. Each is computed from the record, whatever the numbers are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from twoscale._display.verification import bits
from twoscale._lab.changes import Change, bias_stage_of, change, float_stage, stage_of
from twoscale._lab.records import LabNetwork, LabResults
from twoscale._page.numbers import count, decimals_for, fixed, joined, percent, signed

__all__ = [
    "activation_findings",
    "activation_range_findings",
    "bias_correction_findings",
    "bias_findings",
    "bits_findings",
    "feedback_findings",
    "half_way_findings",
    "headline",
    "loss_finding",
    "method_findings",
    "pooling_findings",
    "verdict",
    "verify_findings",
    "weight_findings",
    "weight_range_findings",
    "worked_findings",
]

_FAR_BELOW = 0.01
"""An unscaled bias counts for this fraction of its value, or less, in the sums."""


def _described(difference: Change) -> str:
    """Return e.g. "−0.02 points (2 images), not significant (two standard errors: 0.20)"."""
    if difference.images == 0:
        return "no difference"
    images = count(abs(difference.images)) + (" image" if abs(difference.images) == 1 else " images")
    text = f"{signed(difference.points, 2)} points ({images})"
    if difference.chance is None:
        return text
    kind = "significant" if difference.significant else "not significant"
    return f"{text}, {kind} (two standard errors: {fixed(difference.chance, 2)})"


def headline(results: LabResults) -> str:
    """State in one sentence which integer networks lost accuracy."""
    outcomes: dict[str, Change] = {}
    for network in results.networks:
        base = float_stage(network)
        for scheme in results.schemes:
            stage = stage_of(network, scheme, "integer")
            if stage and base:
                outcomes[f"{network.name} ({scheme})"] = change(stage, base)
    if not outcomes:
        return "No network was run all in integers."
    lost = [name for name, one in outcomes.items() if one.lost]
    gained = [name for name, one in outcomes.items() if one.significant and one.points > 0]
    if not lost:
        text = "All in integers, no network loses a significant part of its accuracy"
    else:
        text = f"All in integers, {joined(lost)} {'loses' if len(lost) == 1 else 'lose'} accuracy"
        kept = [name for name in outcomes if name not in lost and name not in gained]
        if kept:
            text += f"; the change of {joined(kept)} is not significant"
    if gained:
        text += f"; {joined(gained)} {'gains' if len(gained) == 1 else 'gain'} accuracy"
    return text + "."


def verdict(results: LabResults) -> list[str]:
    """State the change in accuracy of each network and scheme, and whether the executors agree."""
    sentences = []
    for network in results.networks:
        base = float_stage(network)
        for scheme in results.schemes:
            stage = stage_of(network, scheme, "integer")
            if stage is None or base is None:
                continue
            text = (
                f"{network.name}, scheme “{scheme}”: top-1 {percent(stage.top1)} % all in integers, "
                f"{percent(base.top1)} % in float: {_described(change(stage, base))}."
            )
            sentences.append(text)
    return sentences + _equality(results.networks)


def _equality(networks: Iterable[LabNetwork]) -> list[str]:
    checks = [check for network in networks for check in network.verify.values()]
    sentences = []
    for on_grid, where in ((True, "On the 65536ths grid"), (False, "Off the grid")):
        chosen = [check for check in checks if check.on_grid is on_grid]
        if not chosen:
            continue
        wrong, compared = sum(c.mismatches for c in chosen), sum(c.compared for c in chosen)
        text = f"{where}, {count(wrong)} of {count(compared)} integers differ between executors"
        if on_grid:
            text += ", as promised." if wrong == 0 else ", though none should: this is a fault."
        else:
            text += "; there equality is measured, not promised."
        sentences.append(text)
    return sentences


def loss_finding(results: LabResults) -> list[str]:
    """Describe how the training loss changed and its final value."""
    sentences = []
    for network in results.networks:
        if network.train_loss:
            (_, first), (batches, last) = network.train_loss[0], network.train_loss[-1]
            decimals = min(6, max(3, decimals_for((first, last), significant=2)))
            if len(network.train_loss) == 1:
                text = f"{network.name}: the mean loss was {fixed(last, decimals)}"
            else:
                verb = "fell" if last < first else "rose" if last > first else "went"
                text = f"{network.name}: the loss {verb} from {fixed(first, decimals)} to {fixed(last, decimals)}"
            base = float_stage(network)
            text += f" over {count(batches)} mini-batches"
            text += f"; top-1 on the test images {percent(base.top1)} %." if base else "."
            sentences.append(text)
    return sentences


def weight_findings(network: LabNetwork) -> list[str]:
    """Say where a few large weights stretch the range."""
    tensors = [one for one in network.weights if one.kind == "weight" and one.std > 0]
    if not tensors:
        return []
    ratios = {one.name: one.range / (6 * one.std) for one in tensors}
    widest, narrowest = max(ratios, key=ratios.__getitem__), min(ratios, key=ratios.__getitem__)
    text = f"The total range is {fixed(ratios[widest], 2)} times as wide as the 3-sigma range in {widest}"
    if widest != narrowest:
        text += f" (most) and {fixed(ratios[narrowest], 2)} times in {narrowest} (least)"
    beyond = sum(one.min < one.three_sigma[0] or one.max > one.three_sigma[1] for one in tensors)
    text += f"; {beyond} of {len(tensors)} tensors have weights beyond 3 sigma."
    return [text]


def weight_range_findings(network: LabNetwork, schemes: Sequence[str]) -> list[str]:
    """Describe the effect of quantizing the weights, and whether every integer is in its range."""
    return [*_stage_sentences(network, schemes, "weights"), *_in_range(network, schemes, ("weight",))]


def method_findings(network: LabNetwork) -> list[str]:
    """Compare the range methods of the weights, and say where a narrower range is better."""
    base, sentences = float_stage(network), []
    measured = {one.method: one.logit_sqnr_db for one in network.methods if one.logit_sqnr_db is not None}
    if len(measured) > 1 and base is not None:
        best, worst = max(measured, key=measured.__getitem__), min(measured, key=measured.__getitem__)
        text = (
            f"With one scale per layer, {best} disturbs the logits least ({fixed(measured[best], 1)} dB) and {worst} "
            f"most ({fixed(measured[worst], 1)} dB)"
        )
        lost = [one.method for one in network.methods if change(one, base).lost]
        if not lost:
            text += "; with none of the methods the loss of accuracy is significant."
        else:
            text += f"; accuracy is lost with {joined(lost)}."
        sentences.append(text)
    gains: dict[str, tuple[float, float]] = {}
    for curve in network.clips:
        points = [(one.sqnr_db, one.clip) for one in curve.points if one.sqnr_db is not None]
        if len(points) > 1:
            widest, (db, clip) = points[0], max(points)
            gains[curve.layer] = (db - widest[0], clip / widest[1])
    narrower = {name: gain for name, gain in gains.items() if gain[0] > 0}
    if narrower:
        top = max(narrower, key=narrower.__getitem__)
        gained, part = narrower[top]
        sentences.append(
            f"A range narrower than the widest gives the weights a higher SQNR in {len(narrower)} of {len(gains)} "
            f"layers; the gain is largest in {top}, {fixed(gained, 1)} dB at {percent(part, 0)} % of the "
            "largest weight."
        )
    elif gains:
        sentences.append("In no layer does a range narrower than the widest give the weights a higher SQNR.")
    return sentences


def feedback_findings(network: LabNetwork, scheme: str) -> list[str]:
    """Say what error feedback does to the weights and to what they compute, where the scheme has it."""
    pairs = [
        (one.weights_db - one.nearest_weights_db, one.output_db - one.nearest_output_db)
        for one in network.noise.get(scheme, ())
        if None not in (one.weights_db, one.output_db, one.nearest_weights_db, one.nearest_output_db)
        and one.weights_db is not None
        and one.output_db is not None
        and one.nearest_weights_db is not None
        and one.nearest_output_db is not None
    ]
    if not pairs:
        return []
    fewer = sum(weights < 0 for weights, _ in pairs)
    better = sum(output > 0 for _, output in pairs)
    mean = sum(output for _, output in pairs) / len(pairs)
    text = (
        f"Error feedback rounds weights so that their errors cancel in the output. Compared with rounding each weight "
        f"to the nearest integer, the SQNR of the weights is lower in {fewer} of {len(pairs)} layers, and that of the "
        f"output is higher in {better} of {len(pairs)} ({signed(mean, 1)} dB on average)"
    )
    if better == len(pairs):
        text += ": the output is what counts."
    elif better == 0:
        text += ": here it does not help."
    else:
        text += ": it does not help everywhere."
    return [text]


def pooling_findings(network: LabNetwork) -> list[str]:
    """Say how pooling changes the mean of each layer's output that is pooled."""
    before = {one.name: one for one in network.activations}
    parts = []
    for one in network.pooled:
        if one.name in before:
            first = before[one.name].mean
            verb = "raises" if one.mean > first else "lowers" if one.mean < first else "keeps"
            decimals = decimals_for((first, one.mean))
            parts.append(f"{verb} the mean of {one.name} from {fixed(first, decimals)} to {fixed(one.mean, decimals)}")
    return [f"Pooling {joined(parts)}: the next layer receives the pooled values."] if parts else []


def worked_findings(network: LabNetwork, schemes: Sequence[str]) -> list[str]:
    """Check the worked output: that the integer follows from the accumulator, and how far it is from float."""
    sentences = []
    for scheme in schemes:
        one = network.worked.get(scheme)
        if one is None:
            continue
        follows = min(max(round(one.accumulator * one.multiplier) + one.zero_point, one.lo), one.hi)
        what = (
            f"Scheme “{scheme}”, output {one.index} of {one.layer}: {count(one.accumulator)} · M gives {count(follows)}"
        )
        if follows != one.output:
            sentences.append(f"{what}, but the network has {count(one.output)}: this is a fault.")
            continue
        steps = abs(one.y_scale * (one.output - one.zero_point) - one.real) / one.y_scale
        side = "less than half a step" if steps < 0.5 else f"{fixed(steps, 1)} steps"
        why = "" if steps < 0.5 else ", since the inputs and the weights are rounded too"
        sentences.append(f"{what}; that is {side} from the float network's value{why}.")
    return sentences


def half_way_findings(network: LabNetwork, schemes: Sequence[str]) -> list[str]:
    """Explain the network of integer weights without requantization: its unit, and what a bias does in it."""
    base, sentences = float_stage(network), []
    for scheme in schemes:
        unscaled, without, scaled = (
            bias_stage_of(network, scheme, f"weights-{key}") for key in ("unscaled", "without", "scaled")
        )
        if base is None or unscaled is None or without is None or scaled is None or not network.product_of_scales:
            continue
        text = (
            f"Scheme “{scheme}”, integer weights only: nothing is requantized, so the last sums count in units of the "
            f"product of all weight scales, {f'{network.product_of_scales:.2g}'.replace('-', '−')}. With the bias "
            f"unscaled, top-1 is {percent(unscaled.top1)} %; with no bias at all {percent(without.top1)} %; with the "
            f"bias divided by that product {percent(scaled.top1)} % (float {percent(base.top1)} %)."
        )
        if unscaled.top1 == without.top1:
            text += " Unscaled, the bias has no effect on the accuracy"
            text += ": it is far below the sums." if network.product_of_scales < _FAR_BELOW else "."
        else:
            text += " Unscaled, the bias still has an effect, but in the wrong unit."
        if change(unscaled, base).lost and not change(scaled, base).lost:
            text += " Scaled, it costs nothing significant."
        sentences.append(text)
    return sentences


def bias_correction_findings(network: LabNetwork, scheme: str) -> list[str]:
    """Say where the integer network has biases that the float network has not."""
    added = [one.layer for one in network.biases.get(scheme, ()) if not any(one.reals) and any(one.integers)]
    if not added:
        return []
    every = [value for one in network.biases[scheme] for value in one.integers]
    used = sum(value != 0 for value in every)
    return [
        f"Scheme “{scheme}”: bias correction gives biases to {joined(added)}, which have none in float. Of the "
        f"{count(len(every))} biases of the integer network, {count(used)} are not 0."
    ]


def bits_findings(network: LabNetwork, schemes: Sequence[str]) -> list[str]:
    """Say down to how many bits accuracy is kept, and what is lost below."""
    base, sentences = float_stage(network), []
    for scheme in schemes:
        found = sorted((one for one in network.bits if one.scheme == scheme), key=lambda one: -one.bits)
        if base is None or not found:
            continue
        kept = []
        for one in found:
            if change(one, base).lost:
                break
            kept.append(one)
        start = f"Scheme “{scheme}”: "
        if not kept:
            text = f"already at {found[0].bits} bits accuracy is lost, {_described(change(found[0], base))}"
        elif len(kept) == len(found):
            text = f"no significant loss of accuracy down to {kept[-1].bits} bits"
        else:
            below = found[len(kept)]
            text = (
                f"no significant loss of accuracy down to {kept[-1].bits} bits; at {below.bits} bits top-1 is "
                f"{percent(below.top1)} %, {_described(change(below, base))}"
            )
        sentences.append(f"{start}{text}.")
    return sentences


def activation_findings(network: LabNetwork) -> list[str]:
    """Say how many values are exact zeros, how far the ranges reach beyond 3 sigma, and what pooling changes."""
    layers = [one for one in network.activations if one.kind == "activation" and one.count]
    if not layers:
        return []
    shares = {one.name: one.zeros / one.count for one in layers}
    most, least = max(shares, key=shares.__getitem__), min(shares, key=shares.__getitem__)
    total = sum(one.zeros for one in layers) / sum(one.count for one in layers)
    sentences = [
        f"{percent(total, 1)} % of all layer outputs are exact zeros: {percent(shares[most], 1)} % in {most} "
        f"(most), {percent(shares[least], 1)} % in {least} (least)."
    ]
    outside = [one for one in layers if one.std > 0]
    if outside:
        far = max(outside, key=lambda one: (one.max - one.mean) / one.std)
        sentences.append(
            f"The largest value lies {fixed((far.max - far.mean) / far.std, 1)} standard deviations above "
            f"the mean, in {far.name}."
        )
    return sentences + pooling_findings(network)


def activation_range_findings(network: LabNetwork, schemes: Sequence[str]) -> list[str]:
    """Describe the effect of also quantizing activations, the worst tensors, and whether all integers are in range."""
    sentences = _stage_sentences(network, schemes, "activations")
    kinds = ("input", "activation")
    for scheme in schemes:
        ranges = [one for one in network.ranges.get(scheme, ()) if one.kind in kinds]
        if not ranges:
            continue
        idle = min(ranges, key=lambda one: (one.seen_hi - one.seen_lo) / max(1, one.hi - one.lo))
        if (idle.seen_lo, idle.seen_hi) == (idle.lo, idle.hi):
            text = f"Scheme “{scheme}”: every tensor reaches both ends of its integers"
        else:
            text = (
                f"Scheme “{scheme}”: of all tensors, {idle.name} uses the fewest of its integers, "
                f"{count(idle.seen_lo)} to {count(idle.seen_hi)} of {count(idle.lo)} to {count(idle.hi)}"
            )
        measured = {one.name: one.sqnr_db for one in ranges if one.sqnr_db is not None}
        if measured:
            worst = min(measured, key=measured.__getitem__)
            text += f"; the noisiest tensor is {worst}, {fixed(measured[worst], 1)} dB"
        sentences.append(text + ".")
    return sentences + _in_range(network, schemes, kinds)


def bias_findings(network: LabNetwork, schemes: Sequence[str]) -> list[str]:
    """Compare float, the integer network with its bias unscaled and stretched, and the right integer network."""
    sentences = []
    for scheme in schemes:
        base = float_stage(network)
        wrong, integer = bias_stage_of(network, scheme, "unscaled"), stage_of(network, scheme, "integer")
        stretched = bias_stage_of(network, scheme, "stretched")
        if base is None or wrong is None or integer is None:
            continue
        without, within = change(wrong, base), change(integer, base)
        text = (
            f"Scheme “{scheme}”, all integer: float {percent(base.top1)} %; bias unscaled "
            f"{percent(wrong.top1)} % ({_described(without)}); bias scaled, that "
            f"is divided by s_x·s_w, {percent(integer.top1)} % ({_described(within)})."
        )
        if without.lost and not within.lost:
            text += " The unscaled bias costs accuracy; the scaled one costs nothing significant."
        elif without.lost and within.lost:
            text += " Accuracy is lost both ways, so the bias is not the only cause."
        elif within.lost:
            text += " The bias is not the cause of the loss: it appears only with the bias scaled."
        else:
            text += " In this network the bias is too small for its unit to show in the accuracy."
        if stretched is not None:
            difference = change(stretched, base)
            text += f" Stretched to the full range of int32: {percent(stretched.top1)} % ({_described(difference)})"
            text += "; the unit of a bias cannot be chosen." if difference.lost else "."
        sentences.append(text)
    return sentences


def verify_findings(network: LabNetwork, schemes: Sequence[str]) -> list[str]:
    """Say how many integers differed, where the noise is largest, and how large accumulators can get."""
    sentences = []
    for scheme in schemes:
        check = network.verify.get(scheme)
        if check is None:
            continue
        text = (
            f"Scheme “{scheme}”: {count(check.mismatches)} of {count(check.compared)} integers differ between "
            f"{joined(check.executors) if check.executors else 'no executors'} over "
            f"{count(check.samples)} images."
        )
        if check.first_divergence:
            text += f" First difference: {check.first_divergence}."
        outside = [layer.name for layer in check.layers if layer.outside]
        if outside:
            text += f" Values outside the allowed integers occurred in {joined(outside)}: this is a fault."
        elif check.layers:
            text += " Every output of every layer is an integer inside its range."
        measured = {layer.name: layer.sqnr_db for layer in check.layers if layer.sqnr_db is not None}
        if measured:
            worst = min(measured, key=measured.__getitem__)
            text += f" The noisiest layer output is {worst}, {fixed(measured[worst], 1)} dB."
        sentences.append(text + _bound_sentence({x.name: x.accumulator_bound for x in check.layers}))
    return sentences


def _bound_sentence(bounds: dict[str, int | None]) -> str:
    known = {name: bound for name, bound in bounds.items() if bound}
    if not known:
        return ""
    top = max(known, key=known.__getitem__)
    text = f" The largest accumulator bound is {count(known[top])} ({fixed(bits(known[top]), 1)} bits), in {top}"
    above = [name for name, bound in known.items() if bound >= 2**24]
    if any(bound >= 2**31 for bound in known.values()):
        return text + ": it does not fit into 32 bits."
    if above:
        verb = "are" if len(above) > 1 else "is"
        which = joined(above) if len(above) <= 4 else f"{len(above)} of {len(known)} layers"
        return text + f"; beyond 2²⁴, where float32 is no longer exact, {verb} {which}."
    return text + "; all are below 2²⁴, so even float32 computes them exactly."


def _stage_sentences(network: LabNetwork, schemes: Sequence[str], key: str) -> list[str]:
    base, sentences = float_stage(network), []
    for scheme in schemes:
        stage = stage_of(network, scheme, key)
        if base and stage:
            sentences.append(
                f"Scheme “{scheme}”: top-1 {percent(stage.top1)} % against {percent(base.top1)} % in float: "
                f"{_described(change(stage, base))}."
            )
    return sentences


def _in_range(network: LabNetwork, schemes: Sequence[str], kinds: Sequence[str]) -> list[str]:
    ranges = [(s, one) for s in schemes for one in network.ranges.get(s, ()) if one.kind in kinds]
    if not ranges:
        return []
    outside = [f"{one.name} ({scheme})" for scheme, one in ranges if one.seen_lo < one.lo or one.seen_hi > one.hi]
    if outside:
        return [f"Integers outside their allowed range occurred in {joined(outside)}: this is a fault."]
    return [f"In all {len(ranges)} quantized tensors, every integer is inside its allowed range."]
