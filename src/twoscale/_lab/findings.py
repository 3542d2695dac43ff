"""Sentences about the results. Each is computed from the record, whatever the numbers are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from twoscale._calibration.summaries import TensorSummary
from twoscale._display.verification import bits
from twoscale._lab.changes import Change, change, float_stage, stage_of
from twoscale._lab.records import LabNetwork, LabResults
from twoscale._page.numbers import count, decimals_for, fixed, joined, percent, signed

__all__ = [
    "activation_findings",
    "activation_range_findings",
    "bias_findings",
    "headline",
    "loss_finding",
    "verdict",
    "verify_findings",
    "weight_findings",
    "weight_range_findings",
]


def _described(difference: Change) -> str:
    """Return e.g. "−0.02 points (2 images), within the ±0.20 that chance explains"."""
    if difference.images == 0:
        return "no image more and none fewer"
    images = count(abs(difference.images)) + (" image" if abs(difference.images) == 1 else " images")
    text = f"{signed(difference.points, 2)} points ({images})"
    if difference.chance is None:
        return text
    side = "more than" if difference.significant else "within"
    return f"{text}, {side} the ±{fixed(difference.chance, 2)} that chance explains"


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
        text = "All in integers, no network loses more accuracy than chance explains"
    else:
        text = f"All in integers, {joined(lost)} {'loses' if len(lost) == 1 else 'lose'} more accuracy than "
        text += "chance explains"
        kept = [name for name in outcomes if name not in lost and name not in gained]
        if kept:
            text += f"; {joined(kept)} {'does' if len(kept) == 1 else 'do'} not"
    if gained:
        text += f"; {joined(gained)} {'gains' if len(gained) == 1 else 'gain'} more than chance explains"
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
    ratios = {one.name: _stretch(one) for one in network.weights if one.kind == "weight" and one.std > 0}
    if not ratios:
        return []
    widest, narrowest = max(ratios, key=ratios.__getitem__), min(ratios, key=ratios.__getitem__)
    text = f"The total range is {fixed(ratios[widest], 2)} times as wide as the 3-sigma range in {widest}"
    if widest != narrowest:
        text += f" (most) and {fixed(ratios[narrowest], 2)} times in {narrowest} (least)"
    stretched = sum(ratio > 1 for ratio in ratios.values())
    text += f"; {stretched} of {len(ratios)} tensors reach beyond 3 sigma."
    return [text]


def _stretch(one: TensorSummary) -> float:
    return one.range / (6 * one.std)


def weight_range_findings(network: LabNetwork, schemes: Sequence[str]) -> list[str]:
    """Describe the effect of quantizing the weights, and whether every integer is in its range."""
    return [*_stage_sentences(network, schemes, "weights"), *_in_range(network, schemes, ("weight",))]


def activation_findings(network: LabNetwork) -> list[str]:
    """Say how many values are exact zeros, and how far the ranges reach beyond 3 sigma."""
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
    return sentences


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
                f"Scheme “{scheme}”: {idle.name} uses the smallest part of its integers, "
                f"{count(idle.seen_lo)} to {count(idle.seen_hi)} of {count(idle.lo)} to {count(idle.hi)}"
            )
        measured = {one.name: one.sqnr_db for one in ranges if one.sqnr_db is not None}
        if measured:
            worst = min(measured, key=measured.__getitem__)
            text += f"; the noisiest tensor is {worst}, {fixed(measured[worst], 1)} dB"
        sentences.append(text + ".")
    return sentences + _in_range(network, schemes, kinds)


def bias_findings(network: LabNetwork, schemes: Sequence[str]) -> list[str]:
    """Compare float, the bias left in real units, and everything in integers."""
    sentences = []
    for scheme in schemes:
        base = float_stage(network)
        real, integer = stage_of(network, scheme, "bias-real"), stage_of(network, scheme, "integer")
        if base is None or real is None or integer is None:
            continue
        without, within = change(real, base), change(integer, base)
        text = (
            f"Scheme “{scheme}”: float {percent(base.top1)} %; bias left in real units "
            f"{percent(real.top1)} % ({_described(without)}); everything in integers "
            f"{percent(integer.top1)} % ({_described(within)})."
        )
        if without.lost and not within.lost:
            text += " The unscaled bias is what costs accuracy: brought to the accumulator's units, it costs none."
        elif without.lost and within.lost:
            text += " Accuracy is lost both ways, so the bias is not the only cause."
        elif within.lost:
            text += " Here the loss is not the bias's: it appears once everything is in integers."
        else:
            text += " In this network the bias is too small for its units to show in the accuracy."
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
