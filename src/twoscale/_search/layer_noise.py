"""Sensitivity: the cost of fewer bits in each layer.

One layer at a time gets fewer bits, in its weights or in its output, and is rounded and corrected again. All other
integers stay the same. The increase of the mean square error of the logits is the layer's *noise*. The errors of layers
are nearly independent, so the noise of several layers is nearly the sum of theirs. ``Sensitivity.choose`` chooses bits
by this model.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twoscale._metrics import Batch, NetworkMetrics, labelled, number_of_images
from twoscale._progress import report
from twoscale._quantization.scheme import DEFAULT, Scheme
from twoscale._search.bits import LayerSensitivity, Sensitivity
from twoscale.errors import ConfigurationError

if TYPE_CHECKING:
    import torch

    from twoscale._calibration.profile import Profile
    from twoscale._ir.float_graph import FloatGraph
    from twoscale._ir.float_module import GraphModule
    from twoscale._ir.integer_network import IntegerNetwork
    from twoscale._ir.layers import Layer
    from twoscale._quantization.plan import Plan
    from twoscale._quantization.ranges import Ranges
    from twoscale._runtimes.torch import TorchExecutor

__all__ = ["measure_sensitivity"]

_CHUNK = 100
"""Number of test images whose tensors between layers are in memory at a time."""


@dataclass(frozen=True, eq=False)
class _Variant:
    """A network that differs from the base in one layer's bits."""

    layer: str
    kind: str
    bits: int
    values: int
    """Weights, or values of the output for one image."""
    plan: Plan
    network: IntegerNetwork
    changed: frozenset[str]
    """Layers that differ from the base."""


@dataclass(frozen=True, eq=False)
class _Tensors:
    """A tensor over the calibration images, in the float network and in all integer networks."""

    real: torch.Tensor
    base: torch.Tensor
    own: Mapping[int, torch.Tensor]
    """By index of a variant, for variants that quantize it differently from the base."""


def measure_sensitivity(
    graph: FloatGraph,
    found: Profile,
    batches: Iterable[Any],
    *,
    scheme: Scheme = DEFAULT,
    weight_bits: Sequence[int] = (2, 3, 4, 6),
    activation_bits: Sequence[int] = (4, 6),
    progress: Callable[[str], None] | None = None,
) -> Sensitivity:
    """Measure the cost of fewer bits in each single layer. All other layers have the bits of ``scheme``.

    Args:
        graph: folded (for a scheme that equalizes: equalized).
        found: its profile; the first images are used for corrections.
        batches: test images (N, C, H, W), normalized, or (images, labels). Iterated once.
        scheme: the network that is changed in one layer at a time.
        weight_bits: of weights, each 2 to 8. A layer's current bits are left out.
        activation_bits: of layer outputs, each 2 to 8.
        progress: called with the name of each layer and the number of test images so far.

    Raises:
        ConfigurationError: no test images, or bits out of range.
        QuantizationError: integers would not fit.
    """
    from twoscale._ir.float_module import GraphModule
    from twoscale._quantization.build import build
    from twoscale._quantization.corrections import correct
    from twoscale._quantization.layer_bits import with_layer_bits
    from twoscale._quantization.plan import make_plan
    from twoscale._quantization.range_tuning import tune_ranges
    from twoscale._quantization.ranges import choose_ranges

    say = progress or (lambda what: None)
    scheme = with_layer_bits(scheme, graph)
    ranges = tune_ranges(choose_ranges(graph, found.statistics, scheme), graph, found, scheme)
    plan = make_plan(graph, ranges, scheme)
    base = correct(build(plan), plan, found.samples_nchw)
    module = GraphModule(graph)
    nearest = [
        *_variants(plan, base, found, ranges, "weight", sorted(set(weight_bits))),
        *_variants(plan, base, found, ranges, "activation", sorted(set(activation_bits))),
    ]
    variants = _corrected(base, module, nearest, found.samples_nchw, say)
    test_images = number_of_images(batches)
    total, *metrics = (NetworkMetrics(base.outputs, base.class_output) for _ in range(1 + len(variants)))
    samples = 0
    for whole in labelled(batches, base.classes, base.input_layout):
        for batch in whole.parts(_CHUNK):
            _evaluate(base, module, variants, batch, total, metrics)
            samples += len(batch.images)
            say(f"{samples} images")
            report("measuring networks", samples, test_images)
    if not samples:
        raise ConfigurationError("sensitivity got no test images; pass at least one batch")
    signal, noise = total.power
    return Sensitivity(
        network=base.name,
        scheme=base.scheme,
        samples=samples,
        signal=signal,
        noise=noise,
        sqnr_db=total.sqnr_db,
        agreement=total.agreement,
        top1=total.top1,
        weights=tuple(_weights(base, scheme)),
        layers=tuple(
            LayerSensitivity(
                layer=variant.layer,
                kind=variant.kind,
                bits=variant.bits,
                values=variant.values,
                noise=measured.power[1] - noise,
                sqnr_db=measured.sqnr_db,
                agreement=measured.agreement,
                top1=measured.top1,
            )
            for variant, measured in zip(variants, metrics, strict=True)
        ),
    )


def _weights(network: IntegerNetwork, scheme: Scheme) -> Iterator[tuple[str, int, int, int]]:
    from twoscale._ir.layers import Accumulating

    own = dict(scheme.layer_weight_bits)
    for layer in network:
        if isinstance(layer, Accumulating):
            bits = own.get(layer.name, scheme.weight_bits)
            yield layer.name, layer.weight.size, int(np.count_nonzero(layer.bias_o)), bits


def _variants(
    plan: Plan,
    base: IntegerNetwork,
    found: Profile,
    ranges: Ranges,
    kind: str,
    bits_wanted: Sequence[int],
) -> Iterator[_Variant]:
    """Yield the networks with one layer at other bits, with the changed layers rounded to the nearest."""
    from twoscale._calibration.profile import moves_values
    from twoscale._ir.layers import Accumulating
    from twoscale._quantization.build import build_layers
    from twoscale._quantization.plan import make_plan
    from twoscale._quantization.ranges import range_of

    own = dict(getattr(plan.scheme, f"layer_{kind}_bits"))
    usual = getattr(plan.scheme, f"{kind}_bits")
    for layer in base:
        if kind == "weight":
            if not isinstance(layer, Accumulating):
                continue
            values = layer.weight.size
        else:
            if moves_values(plan.graph[layer.name]) or layer.output.dtype == "int32":
                continue
            values = math.prod(layer.output.shape)
        for bits in bits_wanted:
            if bits == own.get(layer.name, usual):
                continue
            changed_bits = tuple({**own, layer.name: bits}.items())
            if kind == "weight":
                how = dataclasses.replace(plan.scheme, layer_weight_bits=changed_bits)
                other = dataclasses.replace(plan, scheme=how)  # activations do not change
            else:
                how = dataclasses.replace(plan.scheme, layer_activation_bits=changed_bits)
                own_range = range_of(plan.graph[layer.name], found.statistics[layer.name], how)
                other = make_plan(plan.graph, {**ranges, layer.name: own_range}, how)
            different = {name for name in plan.specs if plan.specs[name] != other.specs[name]}
            changed = {node.name for node in plan.graph if different & {node.name, *node.inputs}}
            if kind == "weight":
                changed.add(layer.name)
            for node in plan.graph:  # the scale of a head, and of what only reshapes it, comes from its weights
                if node.inputs and node.inputs[0] in changed and plan.specs[node.inputs[0]].dtype == "int32":
                    changed.add(node.name)
            rebuilt = build_layers(other, changed, base)
            network = _with_layers(base, rebuilt)
            yield _Variant(layer.name, kind, bits, values, other, network, frozenset(changed))


def _corrected(
    base: IntegerNetwork,
    module: GraphModule,
    variants: Sequence[_Variant],
    samples_nchw: NDArray[np.float32],
    say: Callable[[str], None],
) -> list[_Variant]:
    """Correct every variant's changed layers for their actual inputs, in one walk over the calibration images."""
    import torch

    from twoscale._ir import float_graph as g
    from twoscale._ir.interpreter import interpret
    from twoscale._ir.layers import Accumulating
    from twoscale._quantization.corrections import correct_layer
    from twoscale._runtimes.torch import TorchExecutor

    graph, executor = module.graph, TorchExecutor(base)
    images = torch.from_numpy(np.ascontiguousarray(samples_nchw))
    given = base.given(images)
    corrected: list[dict[str, Layer]] = [{} for _ in variants]
    done: list[str] = []

    def compute(layer: Layer, inputs: list[_Tensors]) -> _Tensors:
        node = graph[layer.name]
        real = module.compute(node, [x.real for x in inputs]) if inputs else given[layer.name]
        own: dict[int, torch.Tensor] = {}
        for place, variant in enumerate(variants):
            if layer.name not in variant.changed:
                continue
            executor_of_variant, mine = TorchExecutor(variant.network, exact=False), variant.network[layer.name]
            x_mine = [x.own.get(place, x.base) for x in inputs] or [given[layer.name]]
            is_read = any(reader.name in variant.changed for reader in graph.users[layer.name])
            if isinstance(mine, Accumulating) and isinstance(node, g.Conv2d | g.Linear):
                found = correct_layer(mine, node, variant.plan.scheme, real, executor_of_variant, x_mine)
                mine = found.layer
                if is_read:
                    own[place] = found.integers(executor_of_variant, x_mine).float()
            elif is_read:
                own[place] = executor_of_variant.compute(mine, x_mine)
            corrected[place][layer.name] = mine
        result = _Tensors(real, executor.compute(layer, [x.base for x in inputs] or [given[layer.name]]), own)
        say(layer.name)
        done.append(layer.name)
        report("correcting networks", len(done), len(base.layers))
        return result

    with torch.no_grad():
        interpret(base.layers, compute)
    return [
        dataclasses.replace(variant, network=_with_layers(variant.network, layers))
        for variant, layers in zip(variants, corrected, strict=True)
    ]


def _with_layers(network: IntegerNetwork, layers: Mapping[str, Layer]) -> IntegerNetwork:
    return dataclasses.replace(network, layers=tuple(layers.get(layer.name, layer) for layer in network))


def _evaluate(
    base: IntegerNetwork,
    module: GraphModule,
    variants: Sequence[_Variant],
    batch: Batch,
    total: NetworkMetrics,
    metrics: Sequence[NetworkMetrics],
) -> None:
    """Run a batch through the base, and through every variant from its first difference on. Add to their metrics."""
    import torch

    from twoscale._ir.execution import check_images
    from twoscale._ir.interpreter import interpret
    from twoscale._runtimes.torch import TorchExecutor

    images = torch.from_numpy(check_images(base, batch.images))
    real = {name: value.double().numpy() for name, value in module.run(images).items()}
    values = TorchExecutor(base).run_tensors(images, [layer.name for layer in base])

    total.update(_real(base, values), batch, real)
    for variant, own in zip(variants, metrics, strict=True):
        executor = TorchExecutor(
            variant.network
        )  # made for each batch, since the weights of all variants would not fit
        found = interpret(_affected(variant), _on_images(executor, images), keep=base.outputs, given=values)
        own.update(_real(variant.network, {**values, **found}), batch, real)


def _real(network: IntegerNetwork, values: Mapping[str, torch.Tensor]) -> dict[str, NDArray[np.float32]]:
    """Return the real values of a network's outputs."""
    return {name: network.logits(values[name].numpy(), name) for name in network.outputs}


def _on_images(executor: TorchExecutor, images: torch.Tensor) -> Callable[[Layer, list[torch.Tensor]], torch.Tensor]:
    given = executor.network.given(images)
    return lambda layer, inputs: executor.compute(layer, inputs or [given[layer.name]])


def _affected(variant: _Variant) -> list[Layer]:
    """Return the layers whose outputs may differ from the base's: the changed layers and all after them."""
    affected: dict[str, Layer] = {}
    for layer in variant.network:
        if layer.name in variant.changed or not affected.keys().isdisjoint(layer.inputs):
            affected[layer.name] = layer
    return list(affected.values())
