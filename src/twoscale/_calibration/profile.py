"""Profile of a FloatGraph: statistics of the input and of every layer's output, in one streaming pass over images."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twoscale._calibration.memory import DEFAULT_MEMORY, images_at_once, images_within
from twoscale._calibration.statistics import StatisticsAccumulator, TensorStatistics, to_summary
from twoscale._calibration.summaries import TensorSummary
from twoscale._ir import float_graph as g
from twoscale._ir.input_layout import InputLayout, parts_of
from twoscale._metrics import CountedBatches, in_batches, number_of_images
from twoscale._progress import report
from twoscale.errors import CalibrationError

if TYPE_CHECKING:
    import torch

__all__ = ["Profile", "calibration_images", "image_batches", "moves_values", "profile", "weight_summaries"]

_KEEP_AT_LEAST = 32
KEEP_SAMPLES = 512
"""Images kept for the corrections after calibration: enough for stable means, with little memory."""

_IMAGE_BINS = 8192
"""Bins for the images. 8-bit images have few distinct values, and a bin should hold only one of them."""


@dataclass(frozen=True, eq=False)
class Profile:
    """The results of a calibration."""

    statistics: Mapping[str, TensorStatistics]
    """From the name of a node to the statistics of its output. Nodes that only move values are left out."""
    samples_nchw: NDArray[np.float32]
    """The first images: KEEP_SAMPLES, or fewer if not as many can run through the graph at once within the memory."""
    images: int
    """Number of images seen."""
    inputs: tuple[str, ...] = ("input",)
    """Names of the network's inputs."""

    def summaries(self) -> tuple[TensorSummary, ...]:
        """Return a record of each tensor."""
        return tuple(
            to_summary(stats, "input" if name in self.inputs else "activation")
            for name, stats in self.statistics.items()
        )


def moves_values(node: g.Node) -> bool:
    """Whether a node's output has only values of its input (and zeros), so that it shares its scale."""
    return node.moves_values


def calibration_images(
    batches: Iterable[Any], caller: str = "calibration", inputs: int = 1
) -> tuple[Any, Iterable[NDArray[np.float32]]]:
    """Return the first batch as the model takes it, and all batches with the first among them.

    Args:
        batches: as for ``image_batches``.
        caller: who asks, for messages.
        inputs: as for ``image_batches``. The first batch of several inputs is a tuple.

    Raises:
        CalibrationError: no images, or what ``image_batches`` raises.
    """
    seen: list[InputLayout] = []
    images = iter(image_batches(batches, inputs, seen.append))
    first = next(images, None)
    if first is None:
        raise CalibrationError(f"{caller} got no images; pass at least one batch (a few hundred images are good)")
    example = tuple(seen[0].split(first)) if seen else first
    everything, count = itertools.chain([first], images), number_of_images(batches)
    return example, everything if count is None else CountedBatches(everything, count)


def image_batches(
    batches: Iterable[Any], inputs: int = 1, found: Callable[[InputLayout], object] = lambda layout: None
) -> Iterable[NDArray[np.float32]]:
    """Yield the images of tensors, arrays, or tuples that begin with one; or of one tensor or array.

    Args:
        batches: as above. For several inputs tuples (a, b, …) or ((a, b), …), or all inputs in one array, see
            ``InputLayout``, which is also what is yielded.
        inputs: number of the model's inputs.
        found: called with the layout of several inputs, once.

    Raises:
        CalibrationError: something else, or a batch that is not (N, C, H, W).
    """
    layout: InputLayout | None = None
    for index, batch in enumerate(in_batches(batches)):
        parts = parts_of(batch, inputs)
        if parts is None:
            raise CalibrationError(
                f"calibration batch {index} is a tuple of {len(batch)}; the model takes {inputs} inputs, so expected a "
                "tuple that begins with one array for each"
            )
        arrays = [_images(part, batch, index, inputs) for part in parts[0]]
        if len(arrays) > 1:
            own = InputLayout(tuple(array.shape[1:] for array in arrays))
            if layout is None:
                layout = own
                found(own)
            if own != layout or len({len(array) for array in arrays}) > 1:
                raise CalibrationError(
                    f"calibration batch {index} has inputs {' and '.join(str(array.shape) for array in arrays)}; "
                    f"expected {layout.text()}, as many samples in each"
                )
        images = arrays[0] if layout is None or len(arrays) == 1 else layout.joined(arrays)
        if len(images):
            yield np.require(images, np.float32, ("C", "W"))  # torch warns about read-only arrays


def _images(images: Any, batch: Any, index: int, inputs: int) -> NDArray[Any]:
    """Return one input of a batch as an array of numbers."""
    if hasattr(images, "detach"):
        images = images.detach().cpu()
        images = (images.float() if images.is_floating_point() else images).numpy()  # NumPy has no bfloat16
    if not isinstance(images, np.ndarray):
        raise CalibrationError(
            f"calibration batch {index} is a {type(batch).__name__}; expected images (N, C, H, W) as a tensor or "
            "an array, or a tuple that begins with them"
        )
    if images.ndim < 2 and inputs > 1:
        raise CalibrationError(
            f"the model takes {inputs} inputs, and one in calibration batch {index} has shape {images.shape}; expected "
            "tuples that begin with the inputs, (N, ...) each"
        )
    if images.ndim < 2:
        raise CalibrationError(
            f"calibration batch {index} has shape {images.shape}; expected images (N, C, H, W), or other "
            "inputs (N, ...) as the model takes them"
        )
    if images.dtype == np.uint8 or images.dtype.kind not in "fiu":
        kind = "uint8 pixels" if images.dtype == np.uint8 else str(images.dtype)
        raise CalibrationError(
            f"calibration batch {index} holds {kind}; expected the normalized float images the model takes"
        )
    return images


def profile(
    graph: g.FloatGraph,
    batches: Iterable[Any],
    *,
    device: str | torch.device = "cpu",
    memory: int = DEFAULT_MEMORY,
    seen: Callable[[NDArray[np.float32]], object] | None = None,
) -> Profile:
    """Run ``graph`` over all batches once and collect statistics in bounded memory.

    Args:
        graph: from ``capture``, folded or not.
        batches: images (N, C, H, W), or tuples that begin with them; any number. As for ``image_batches``.
        device: where the graph runs.
        memory: bytes for the tensors between layers: larger batches are split.
        seen: called with each batch.

    Raises:
        CalibrationError: no images, wrong shapes, NaN or infinity (names the layer).
    """
    import torch

    from twoscale._ir.float_module import GraphModule, channels_last

    module, at_once = GraphModule(graph, device), images_at_once(graph, memory)
    keep = min(KEEP_SAMPLES, max(_KEEP_AT_LEAST, images_within(graph, memory)))
    accumulators = {node.name: StatisticsAccumulator(node.name) for node in graph if not moves_values(node)}
    accumulators.update({x.name: StatisticsAccumulator(x.name, bins=_IMAGE_BINS) for x in graph.inputs})
    kept: list[NDArray[np.float32]] = []
    images, total = 0, number_of_images(batches)

    def visit(node: g.Node, value: torch.Tensor) -> None:
        if node.name in accumulators:
            accumulators[node.name].update(value.cpu().numpy())

    for batch in image_batches(batches, len(graph.inputs)):
        if batch.shape[1:] != graph.input_layout.shape:
            raise CalibrationError(
                f"calibration images have shape (N, {', '.join(map(str, batch.shape[1:]))}); "
                f"{graph.name} takes {graph.input_layout.text()}"
            )
        if seen is not None:
            seen(batch)
        missing = max(0, keep - images)
        if missing:
            kept.append(batch[:missing].copy())
        images += len(batch)
        for part in torch.split(torch.from_numpy(batch), at_once):
            module.run(channels_last(part), visit)
        report("calibrating", images, total)
    if not images:
        raise CalibrationError("calibration got no images; pass at least one batch (a few hundred images are good)")
    names = tuple(node.name for node in graph.inputs)
    return Profile({name: a.finish() for name, a in accumulators.items()}, np.concatenate(kept), images, names)


def weight_summaries(graph: g.FloatGraph) -> tuple[TensorSummary, ...]:
    """Return a record of every weight tensor of a graph, and of every bias that is not all zeros."""
    summaries = []
    for node in graph:
        for field, value in vars(node).items():
            if isinstance(value, np.ndarray) and (field != "bias_o" or value.any()):
                is_bias = field == "bias_o"
                accumulator = StatisticsAccumulator(f"{node.name}.bias" if is_bias else node.name)
                accumulator.update(value)
                summaries.append(to_summary(accumulator.finish(), "bias" if is_bias else "weight"))
    return tuple(summaries)
