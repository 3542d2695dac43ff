"""Runs executors on the same images, compares them integer by integer, and compares the network with the float
network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from twoscale._extras import requires_extras
from twoscale._formats import is_tflite
from twoscale._ir import layers as n
from twoscale._ir.execution import Executor, check_images
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.weights_hash import has_same_weights
from twoscale._metrics import Batch, NetworkMetrics, SignalToNoise, labelled, number_of_images, predicted_classes
from twoscale._progress import report
from twoscale._runtimes import EXECUTORS, create, default_pair
from twoscale._runtimes.remote import RemoteExecutor
from twoscale._verification.original import OriginalFile
from twoscale._verification.original_tflite import TfliteFile
from twoscale._verification.results import LayerCheck, OutputCheck, VerifyResult
from twoscale.errors import ConfigurationError, ExecutorError, MissingPackageError

if TYPE_CHECKING:
    from torch import nn

    from twoscale._ir.float_graph import FloatGraph

__all__ = ["accuracy", "float_values", "verify"]

_MEMORY = 1 << 28
"""Bytes for the tensors of the images that are compared at a time."""

_VALUE_BYTES = 8
"""Bytes of each value of each layer: the integers of two executors, and float32 in torch."""


class _LayerTally:
    """Counts of one layer over the batches so far."""

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
        if spec.lo != spec.zero_point:  # a ReLU's zero loses nothing
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
    executors: Sequence[str | Executor] | None = None,
    model: nn.Module | FloatGraph | None = None,
    against: IntegerNetwork | nn.Module | FloatGraph | None = None,
    original: str | Path | None = None,
) -> VerifyResult:
    """Run every executor over all images and compare each layer's integers with the first executor's.

    A network that was read from another tool's file is also compared with that file in ONNX Runtime, or in LiteRT's
    reference kernels if it is a `.tflite` file.

    Args:
        network: what to verify.
        batches: float32 images (N, C, H, W), normalized, as a tensor or an array, or batches of them, or tuples
            (images, labels). Iterated once. Several inputs come in tuples (a, b), (a, b, labels) or ((a, b), labels).
            Labels are class indices (0 and 1 for a network with one output, which are separated by its sign). Real
            targets, (N, outputs), mean that the outputs are not classes; top-1 and agreement are then None.
        executors: names or executors. The first is the reference. By default "reference" and "torch";
            without torch, "reference" and the first of "onnxruntime" and "c" that can run here.
        model: the float model (or its FloatGraph) for agreement and SQNR; without it they are None.
        against: instead of ``model``, another float or integer network to compare with. Layers of two networks
            correspond if they have the same name, inputs and shape. SQNR is that of their real values.
        original: another tool's file that the network was read from; by default the one that ``load`` read, if it is
            still there and onnxruntime is installed.

    Returns:
        Mismatches (0 on the grid, unless something is wrong), top-1, agreement with the float model or the other
        network, and the outputs' SQNR; for each output its own figures; for each layer mismatches, SQNR, accumulator
        bound, saturation. Top-1 and agreement are those of the first output that is a vector, which labels belong to.

    Raises:
        ConfigurationError: no images, wrong shapes, NaN among them, labels that are not class indices of the
            network, fewer than one executor, the model of another network, or both ``model`` and ``against``.
        ExecutorError: an executor cannot run here, or does not return the network's tensors; or ONNX
            Runtime does not run ``original``.
    """
    if executors is None:
        made = default_pair(network)
    else:
        wanted = [executors] if isinstance(executors, str) else executors
        made = [create(e, network) if isinstance(e, str) else e for e in wanted]
    if not made:
        raise ConfigurationError("verify needs at least one executor, e.g. reference")
    if model is not None and against is not None:
        raise ConfigurationError("verify compares with one network; pass model or against, not both")
    compared_with = against if model is None else model
    tallies = {layer.name: _LayerTally(layer) for layer in network}
    by_executor = {executor.name: 0 for executor in made[1:]}
    file, left_out = _original(network, original)
    if file is not None:
        by_executor[file.name] = 0
    compared = dict.fromkeys(by_executor, 0)
    divergences: dict[str, str] = {}
    other: _FloatSide | _IntegerSide | None = None
    metrics = NetworkMetrics(network.outputs, network.class_output)
    samples = 0
    total = number_of_images(batches)
    at_once = _images_at_once(network)
    for batch in _parts(batches, network, at_once):
        images = check_images(network, batch.images)
        if other is None and compared_with is not None:
            if isinstance(compared_with, IntegerNetwork):
                other = _IntegerSide(network, compared_with, made[0])
            else:
                other = _FloatSide(network, compared_with, images)
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
                    if executor.name not in divergences:
                        divergences[executor.name] = _divergence(
                            layer, executor.name, samples, expected[layer.name], found[layer.name], different
                        )
                compared[executor.name] += different.size
        for beside in () if file is None else file.compare(images, expected):
            assert file is not None
            different = beside.expected != beside.found
            compared[file.name] += different.size
            count = int(np.count_nonzero(different))
            if count:
                tallies[beside.layer.name].mismatches += count
                by_executor[file.name] += count
                divergences.setdefault(
                    file.name,
                    _divergence(beside.layer, file.name, samples, beside.expected, beside.found, different),
                )
        real = {name: network.logits(expected[name], name) for name in network.outputs}
        metrics.update(real, batch, None if other is None else other.compare(images, expected, tallies))
        samples += len(images)
        report("verifying", samples, total)
    if not samples:
        raise ConfigurationError("verify got no images; pass at least one batch")
    checks = tuple(tally.check(network) for tally in tallies.values())
    return VerifyResult(
        network=network.name,
        scheme=network.scheme,
        on_grid=network.on_grid,
        executors=(*(executor.name for executor in made), *(() if file is None else (file.name,))),
        samples=samples,
        mismatches=sum(check.mismatches for check in checks),
        compared=sum(compared.values()),
        top1=metrics.top1,
        agreement=metrics.agreement,
        sqnr_db=metrics.sqnr_db,
        rms_error=metrics.rms_error,
        outputs=tuple(
            OutputCheck(
                name=name,
                shape=network.spec(name).shape,
                values=tallies[name].values,
                mismatches=tallies[name].mismatches,
                sqnr_db=found.noise.db,
                rms_error=found.noise.rms_error,
                top1=found.top1,
                agreement=found.agreement,
            )
            for name, found in metrics.of.items()
        ),
        same_weights=_has_same_weights(network, compared_with),
        layers=checks,
        mismatches_by_executor=by_executor,
        compared_by_executor=compared,
        first_divergence=next(iter(divergences.values()), None),
        divergence_by_executor=divergences,
        against=None if other is None else other.name,
        uncompared=() if other is None else other.uncompared,
        original=None if file is None else file.path.name,
        original_left_out=left_out,
        exact=network.exact,
        cycles_by_executor={
            executor.name: executor.cycles_per_image
            for executor in made
            if isinstance(executor, RemoteExecutor) and executor.cycles_per_image is not None
        },
    )


def _images_at_once(network: IntegerNetwork) -> int:
    """Return how many images are compared at a time, so that all their tensors are within bounded memory."""
    return max(1, _MEMORY // (_VALUE_BYTES * sum(math.prod(layer.output.shape) for layer in network)))


def _parts(batches: Iterable[Any], network: IntegerNetwork, size: int) -> Iterator[Batch]:
    for batch in labelled(batches, network.classes, network.input_layout):
        yield from batch.parts(size)


def _original(network: IntegerNetwork, path: str | Path | None) -> tuple[OriginalFile | TfliteFile | None, str | None]:
    """Return the file that a network was read from, or the reason why it cannot be run."""
    if path is not None:
        return _opened(Path(path), network), None
    if network.source is None:
        return None, "which file it was read from is not known" if network.scheme == "foreign" else None
    try:
        return _opened(network.source, network), None
    except (ExecutorError, MissingPackageError) as error:
        return None, str(error)


def _opened(path: Path, network: IntegerNetwork) -> OriginalFile | TfliteFile:
    return TfliteFile(path, network) if is_tflite(path) else OriginalFile(path, network)


def _has_same_weights(network: IntegerNetwork, model: Any) -> bool | None:
    from twoscale._frontends import as_module

    if model is None or isinstance(model, IntegerNetwork):
        return None
    return has_same_weights(network.metadata, as_module(model))


def accuracy(
    network: IntegerNetwork,
    batches: Iterable[Any],
    *,
    executor: str | Executor = "torch",
    max_samples: int | None = None,
) -> tuple[float, int]:
    """Return (top-1 fraction, images used) of labelled batches, each image counted once.

    Raises:
        ConfigurationError: no images, no labels, or as for ``verify``.
    """
    name = network.class_output
    if name is None:
        shapes = ", ".join(f"(N, {', '.join(map(str, network.spec(output).shape))})" for output in network.outputs)
        raise ConfigurationError(
            f"{network.name} has no accuracy: its output has the shape {shapes}; expected a vector of classes, "
            "(N, classes)"
        )
    running = create(executor, network) if isinstance(executor, str) else executor
    correct = samples = 0
    total = number_of_images(batches)
    for images, labels, targets in labelled(batches, network.classes, network.input_layout):
        if labels is None:
            given = "the batches hold real targets" if targets else "pass batches of (images, labels)"
            raise ConfigurationError(f"accuracy needs labels; {given}")
        taken = len(images) if max_samples is None else min(len(images), max_samples - samples)
        if taken <= 0:
            break
        output = running.run(check_images(network, images[:taken]))[name]
        correct += int(np.count_nonzero(predicted_classes(network.logits(output, name)) == labels[:taken]))
        samples += taken
        report("evaluating", samples, total)
    if not samples:
        raise ConfigurationError("accuracy got no images; pass at least one batch")
    return correct / samples, samples


def _equalization(network: IntegerNetwork) -> str:
    return str(network.metadata.get("equalization", "none"))


def _factors(network: IntegerNetwork) -> dict[str, float]:
    return cast(dict[str, float], network.metadata.get("branch_factors", {}))


def _balanced(graph: FloatGraph, network: IntegerNetwork) -> FloatGraph:
    """Return the folded graph with the factors of concatenated branches that the network was made with."""
    from twoscale._passes.equalize import with_branch_factors

    factors = _factors(network)
    try:
        numbers = {name: float(factor) for name, factor in factors.items()}
        if not all(0 < factor < math.inf for factor in numbers.values()):
            raise ValueError
        return with_branch_factors(graph, numbers) if numbers else graph
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ConfigurationError(
            f"the metadata of {network.name} has branch_factors that do not fit the model; pass the model that the "
            "network was made from"
        ) from None


def float_values(
    network: IntegerNetwork, model: nn.Module | FloatGraph, images: NDArray[np.float32]
) -> dict[str, NDArray[np.float32]]:
    """Return the values of the float network's layers for a batch, by the integer layers' names, (N, ...).

    Layers that cannot be compared are left out: those of an equalized network, and those that the model does not have.

    Raises:
        ConfigurationError: the model is not the one that the network was made from.
    """
    return _FloatSide(network, model, images).values(images)


class _FloatSide:
    """The float network in its folded form, in which nodes have the names of the integer layers."""

    name = "float"

    def __init__(self, network: IntegerNetwork, model: nn.Module | FloatGraph, images: NDArray[np.float32]) -> None:
        with requires_extras("comparing with the float model"):
            import torch  # noqa: F401 - the runner of FloatGraphs needs it
        from twoscale import _frontends as frontends
        from twoscale._ir.float_graph import FloatGraph
        from twoscale._ir.float_module import GraphModule
        from twoscale._passes.absorb_normalization import with_normalization
        from twoscale._passes.fold import fold

        equalized = False
        graph = model
        if not isinstance(graph, FloatGraph):
            joined = any(isinstance(layer, n.Conv2d) and len(layer.inputs) == 2 for layer in network)
            layout = network.input_layout
            graph = frontends.float_graph(graph, tuple(layout.split(images[:1])) if layout.several else images[:1])
            if "normalization" in network.metadata:  # the network takes pixels, the model normalized images
                graph = with_normalization(graph, **network.metadata["normalization"])
            graph = fold(graph, join_residuals=joined)
            graph = _balanced(graph, network)
            equalized = _equalization(network) != "none"
        nodes = {node.name: node for node in graph}
        for layer in network:
            node = nodes.get(layer.name)
            if node is not None and (node.inputs, node.shape) != (layer.inputs, layer.output.shape):
                raise ConfigurationError(
                    f"{layer.name} makes {node.shape} of {', '.join(node.inputs)} in the model, but "
                    f"{layer.output.shape} of {', '.join(layer.inputs)} in the network; pass the model that the "
                    "network was made from"
                )
        shapes = tuple(nodes[name].shape for name in graph.outputs)
        expected = tuple(network.spec(name).shape for name in network.outputs)
        if shapes != expected:
            has, other = _in_words(shapes, expected)
            raise ConfigurationError(
                f"the model has {has} and the network {other}; pass the model that the network was made from"
            )
        self._outputs = dict(zip(network.outputs, graph.outputs, strict=True))
        self._module = GraphModule(graph)
        # Channels of an equalized network are multiples of the model's, so only inputs and outputs can be compared.
        ends = {*(layer.name for layer in network.inputs), *network.outputs}
        self._names = {name for name in nodes if not equalized or name in ends}
        self.uncompared = tuple(layer.name for layer in network if layer.name not in self._names)

    def values(self, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return the values of the nodes that can be compared."""
        import torch

        found: dict[str, NDArray[np.float32]] = {}

        def visit(node: Any, value: Any) -> None:
            if node.name in self._names:
                found[node.name] = value.numpy().copy()

        outputs = self._module.run(torch.from_numpy(np.ascontiguousarray(images)), visit)
        return found | {name: outputs[node].numpy() for name, node in self._outputs.items()}

    def compare(
        self, images: NDArray[np.float32], integers: dict[str, NDArray[Any]], tallies: dict[str, _LayerTally]
    ) -> dict[str, NDArray[np.float32]]:
        """Add every layer's error against the float network; return the float outputs by the network's names."""
        import torch

        def visit(node: Any, value: Any) -> None:
            if node.name in self._names and node.name in tallies:
                tally = tallies[node.name]
                tally.noise.update(value.numpy(), _real(integers[node.name], tally.layer.output))

        outputs = self._module.run(torch.from_numpy(np.ascontiguousarray(images)), visit)
        return {name: outputs[node].numpy() for name, node in self._outputs.items()}


class _IntegerSide:
    """Another integer network, run by an executor of the same kind."""

    def __init__(self, network: IntegerNetwork, other: IntegerNetwork, executor: Executor) -> None:
        shapes = [
            (
                side.input_layout.shapes if side.input_layout.several else side.input_layout.shape,
                tuple(side.spec(name).shape for name in side.outputs),
            )
            for side in (network, other)
        ]
        if shapes[0] != shapes[1]:
            makes, others = _in_words(shapes[0][1], shapes[1][1])
            raise ConfigurationError(
                f"{network.name} makes {makes} of images {shapes[0][0]}, and {other.name}, which it is compared with, "
                f"{others} of {shapes[1][0]}; pass networks for the same images and classes"
            )
        self._outputs = dict(zip(network.outputs, other.outputs, strict=True))
        self.name = f"{other.name}, scheme {other.scheme}"
        self._network = other
        self._convert = _conversion(network, other)
        self._executor = create(executor.name if executor.name in EXECUTORS else "reference", other)
        form = {layer.name: (layer.inputs, layer.output.shape) for layer in other}
        alike = _equalization(network) == _equalization(other) and _factors(network) == _factors(other)
        ends = {*(layer.name for layer in network.inputs), *network.outputs}
        self._names = [
            layer.name
            for layer in network
            if form.get(layer.name) == (layer.inputs, layer.output.shape) and (alike or layer.name in ends)
        ]
        self.uncompared = tuple(layer.name for layer in network if layer.name not in self._names)

    def compare(
        self, images: NDArray[np.float32], integers: dict[str, NDArray[Any]], tallies: dict[str, _LayerTally]
    ) -> dict[str, NDArray[np.float32]]:
        """Add the error of every common layer against the other network's; return its outputs by our names."""
        found = self._executor.run(self._convert(images), {*self._names, *self._network.outputs})
        for name in self._names:
            tally = tallies[name]
            tally.noise.update(_real(found[name], self._network.spec(name)), _real(integers[name], tally.layer.output))
        return {name: self._network.logits(found[other], other) for name, other in self._outputs.items()}


def _in_words(mine: Sequence[tuple[int, ...]], others: Sequence[tuple[int, ...]]) -> tuple[str, str]:
    """Return the shapes of two networks' outputs in words: "5 classes" and "7", or "outputs (5,), (3, 8, 8)"."""
    if [len(shape) for shape in (*mine, *others)] == [1, 1]:
        return f"{mine[0][0]} classes", str(others[0][0])
    first, second = (", ".join(map(str, shapes)) for shapes in (mine, others))
    return f"outputs {first}", second


def _conversion(network: IntegerNetwork, other: IntegerNetwork) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Return the map from the images of one network to those of another, for networks of which one takes pixels."""
    mine, others = (side.metadata.get("normalization") for side in (network, other))
    known: dict[str, Any] = mine or others or {}
    if bool(mine) == bool(others):
        return lambda images: images
    mean, std = (np.asarray(known[key], np.float32)[:, None, None] for key in ("mean", "std"))
    if mine:
        return lambda images: ((images / np.float32(255) - mean) / std).astype(np.float32)
    return lambda images: ((images * std + mean) * np.float32(255)).astype(np.float32)


def _real(integers: NDArray[Any], spec: n.TensorSpec) -> NDArray[np.float64]:
    return (integers.astype(np.float64) - spec.zero_point) * spec.scale


def _integers(network: IntegerNetwork, executor: Executor, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Run an executor for all layers, and check that it returns every tensor in its shape."""
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
        f"expected {expected[index].item()}, {executor} gave {found[index].item()}"
    )
