"""verify: every executor over the same images, compared integer by integer, and with the float network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twoscale.errors import ConfigurationError, ExecutorError, TwoscaleError
from twoscale.executors import Executor, check_images, create
from twoscale.network import layers as n
from twoscale.network.network import IntegerNetwork
from twoscale.records import LayerCheck, VerifyResult

if TYPE_CHECKING:
    from torch import nn

    from twoscale.graph.nodes import FloatGraph

__all__ = ["SignalToNoise", "accuracy", "labelled", "verify"]

Batch = tuple[NDArray[Any], NDArray[Any] | None]


class SignalToNoise:
    """Streaming SQNR: 10·log10(Σ reference² / Σ (reference − value)²), in dB."""

    def __init__(self) -> None:
        self.signal = 0.0
        self.noise = 0.0

    def update(self, reference: NDArray[Any], value: NDArray[Any]) -> None:
        """Add values, of any shape, both alike."""
        reference = reference.astype(np.float64, copy=False)
        self.signal += float(np.square(reference).sum())
        self.noise += float(np.square(reference - value).sum())

    @property
    def db(self) -> float | None:
        """The ratio in dB; None without noise or without signal."""
        if self.noise == 0.0 or self.signal == 0.0:
            return None
        return 10.0 * float(np.log10(self.signal / self.noise))


def labelled(batches: Iterable[Any]) -> Iterable[Batch]:
    """Yield (images, labels or None) from tensors, arrays, or tuples (images, labels, …); empty batches are left out.

    Raises:
        ConfigurationError: images of uint8 pixels, or labels that are not one class index an image.
    """
    for index, batch in enumerate(batches):
        images, *rest = batch if isinstance(batch, tuple | list) and len(batch) else (batch,)
        images = _array(images)
        if images.dtype == np.uint8:
            raise ConfigurationError(
                f"batch {index} holds uint8 pixels; expected the normalized float images the network takes"
            )
        labels = None if not rest or rest[0] is None else _array(rest[0])
        if labels is not None and (labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]):
            raise ConfigurationError(
                f"batch {index} has images {images.shape} with labels {labels.dtype}{labels.shape}; "
                "expected one class index for each image"
            )
        if images.shape[:1] != (0,):
            yield images, labels


def _array(value: Any) -> NDArray[Any]:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value  # NumPy has no bfloat16
    return np.asarray(value)


class _LayerTally:
    """What is counted about one layer while batches stream by."""

    def __init__(self, layer: n.Layer) -> None:
        self.layer = layer
        self.mismatches = 0
        self.values = 0
        self.saturated = 0
        self.outside = 0
        self.seen_lo = np.iinfo(np.int64).max
        self.seen_hi = np.iinfo(np.int64).min
        self.noise = SignalToNoise()

    def count(self, q: NDArray[Any]) -> None:
        spec = self.layer.output
        if not q.size:
            return
        self.values += q.size
        self.seen_lo, self.seen_hi = min(self.seen_lo, int(q.min())), max(self.seen_hi, int(q.max()))
        self.outside += int(np.count_nonzero((q < spec.lo) | (q > spec.hi)))
        self.saturated += int(np.count_nonzero(q == spec.hi))
        if spec.lo != spec.zero_point:  # at a ReLU's zero nothing is lost
            self.saturated += int(np.count_nonzero(q == spec.lo))

    def check(self, network: IntegerNetwork) -> LayerCheck:
        bound = next((b for b in network.bounds if b.layer == self.layer.name), None)
        is_accumulator = self.layer.output.dtype == "int32"
        return LayerCheck(
            name=self.layer.name,
            op=self.layer.op,
            mismatches=self.mismatches,
            values=self.values,
            sqnr_db=self.noise.db,
            accumulator_bound=None if bound is None else bound.bound,
            float32_exact=None if bound is None else bound.float32_exact,
            pair_saturation_safe=None if bound is None else bound.pair_saturation_safe,
            saturated=None if is_accumulator or not self.values else self.saturated / self.values,
            seen_lo=self.seen_lo if self.values else None,
            seen_hi=self.seen_hi if self.values else None,
            outside=self.outside,
        )


def verify(
    network: IntegerNetwork,
    batches: Iterable[Any],
    *,
    executors: Sequence[str | Executor] = ("reference", "torch"),
    model: nn.Module | FloatGraph | None = None,
) -> VerifyResult:
    """Run every executor over all images and compare each layer's integers with the first executor's.

    Args:
        network: what to verify.
        batches: float32 images (N, C, H, W), normalized, or tuples (images, labels). Iterated once.
        executors: names, or executors made already; the first is the reference.
        model: the float model (or its FloatGraph) for agreement and SQNR; without it they are None.

    Returns:
        Mismatches (0 on the grid, or something is wrong), top-1, agreement with the float model, logit SQNR, and
        for each layer mismatches, SQNR, accumulator bound, saturation.

    Raises:
        ConfigurationError: no images, wrong shapes, NaN among them, labels that are not class indices, fewer than
            one executor, or the model of another network.
        ExecutorError: an executor cannot run here, or gives something else than the network's tensors.
    """
    wanted = [executors] if isinstance(executors, str) else executors
    made = [create(e, network) if isinstance(e, str) else e for e in wanted]
    if not made:
        raise ConfigurationError("verify needs at least one executor, e.g. reference")
    tallies = {layer.name: _LayerTally(layer) for layer in network}
    by_executor = {executor.name: 0 for executor in made[1:]}
    first_divergence: str | None = None
    graph_module: Any = None
    logit_noise = SignalToNoise()
    samples = correct = agreeing = labels_seen = 0
    for images, labels in labelled(batches):
        images = check_images(network, images)
        if graph_module is None and model is not None:
            graph_module = _float_side(network, model, images)
        expected = _integers(network, made[0], images)
        for name, tally in tallies.items():
            tally.count(expected[name])
        for executor in made[1:]:
            found = _integers(network, executor, images)
            for layer in network:
                different = expected[layer.name] != found[layer.name]
                count = int(np.count_nonzero(different))
                if count:
                    tallies[layer.name].mismatches += count
                    by_executor[executor.name] += count
                    if first_divergence is None:
                        first_divergence = _divergence(
                            layer, executor.name, samples, expected[layer.name], found[layer.name], different
                        )
        logits = network.logits(expected[network.output])
        predicted = logits.argmax(1)
        if graph_module is not None:
            real = _compare_with_float(graph_module, images, expected, tallies)
            logit_noise.update(real, logits)
            agreeing += int(np.count_nonzero(real.argmax(1) == predicted))
        if labels is not None:
            labels_seen += len(labels)
            correct += int(np.count_nonzero(predicted == labels))
        samples += len(images)
    if not samples:
        raise ConfigurationError("verify got no images; pass at least one batch")
    checks = tuple(tally.check(network) for tally in tallies.values())
    return VerifyResult(
        network=network.name,
        scheme=network.scheme,
        on_grid=network.on_grid,
        executors=tuple(executor.name for executor in made),
        samples=samples,
        mismatches=sum(check.mismatches for check in checks),
        compared=sum(check.values for check in checks) * (len(made) - 1),
        top1=correct / labels_seen if labels_seen else None,
        agreement=agreeing / samples if graph_module is not None else None,
        sqnr_db=logit_noise.db,
        layers=checks,
        mismatches_by_executor=by_executor,
        first_divergence=first_divergence,
    )


def accuracy(
    network: IntegerNetwork, batches: Iterable[Any], *, executor: str = "torch", max_samples: int | None = None
) -> tuple[float, int]:
    """Return (top-1 fraction, images used) of labelled batches, each image counted once.

    Raises:
        ConfigurationError: no images, no labels, or as for ``verify``.
    """
    running = create(executor, network)
    correct = samples = 0
    for images, labels in labelled(batches):
        if labels is None:
            raise ConfigurationError("accuracy needs labels; pass batches of (images, labels)")
        room = len(images) if max_samples is None else min(len(images), max_samples - samples)
        if room <= 0:
            break
        output = running.run(check_images(network, images[:room]))[network.output]
        correct += int(np.count_nonzero(network.logits(output).argmax(1) == labels[:room]))
        samples += room
    if not samples:
        raise ConfigurationError("accuracy got no images; pass at least one batch")
    return correct / samples, samples


def _float_side(network: IntegerNetwork, model: nn.Module | FloatGraph, images: NDArray[np.float32]) -> Any:
    """Return the float network in the folded form whose nodes have the integer layers' names."""
    try:
        import torch
    except ImportError as error:
        raise TwoscaleError("comparing with the float model needs torch; install it, or leave the model out") from error
    from twoscale.graph.capture import capture
    from twoscale.graph.evaluate import GraphModule
    from twoscale.graph.folding import fold
    from twoscale.graph.nodes import FloatGraph

    graph = model
    if not isinstance(graph, FloatGraph):
        joined = any(isinstance(layer, n.Conv2d) and len(layer.inputs) == 2 for layer in network)
        graph = fold(capture(graph, torch.from_numpy(images[:1])), join_residuals=joined)
    nodes = {node.name: node for node in graph}
    for layer in network:
        node = nodes.get(layer.name)
        if node is not None and (node.inputs, node.shape) != (layer.inputs, layer.output.shape):
            raise ConfigurationError(
                f"{layer.name} makes {node.shape} of {', '.join(node.inputs)} in the model, but {layer.output.shape} "
                f"of {', '.join(layer.inputs)} in the network; pass the model that the network was made from"
            )
    if nodes[graph.output].shape != (network.classes,):
        raise ConfigurationError(
            f"the model has {nodes[graph.output].shape[0]} classes and the network {network.classes}; "
            "pass the model that the network was made from"
        )
    return GraphModule(graph)


def _compare_with_float(
    module: Any, images: NDArray[np.float32], integers: dict[str, NDArray[Any]], tallies: dict[str, _LayerTally]
) -> NDArray[np.float32]:
    """Add every layer's error against the float network; return the float logits."""
    import torch

    def visit(node: Any, value: Any) -> None:
        tally = tallies.get(node.name)
        if tally is not None:
            spec = tally.layer.output
            real = (integers[node.name].astype(np.float64) - spec.zero_point) * spec.scale
            tally.noise.update(value.numpy(), real)

    outputs = module.run(torch.from_numpy(np.ascontiguousarray(images)), visit)
    logits: NDArray[np.float32] = outputs[module.graph.output].numpy()
    return logits


def _integers(network: IntegerNetwork, executor: Executor, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Run an executor for every layer, and see to it that comparing compares what belongs together."""
    found = executor.run(images, [layer.name for layer in network])
    for layer in network:
        shape = (len(images), *layer.output.shape)
        if layer.name not in found or found[layer.name].shape != shape:
            given = f"{found[layer.name].shape}" if layer.name in found else "nothing"
            raise ExecutorError(f"executor {executor.name} gave {given} for layer {layer.name}; expected {shape}")
    return found


def _divergence(
    layer: n.Layer, executor: str, before: int, expected: NDArray[Any], found: NDArray[Any], different: NDArray[Any]
) -> str:
    index = tuple(int(i) for i in np.argwhere(different)[0])
    return (
        f"layer {layer.name} ({layer.op}), image {before + index[0]}, index {index[1:]}: "
        f"expected {int(expected[index])}, {executor} gave {int(found[index])}"
    )
