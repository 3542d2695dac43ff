"""Statistics of a float network's weights and of its layers' outputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twoscale import _delegates as delegates
from twoscale._calibration.summaries import TensorSummary
from twoscale._extras import requires_extras

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Inspection", "inspect"]


@dataclass(frozen=True)
class Inspection:
    """Statistics of the tensors of a float network, with batch norms and activation functions folded into layers."""

    network: str
    weights: tuple[TensorSummary, ...]
    """Weights of each layer, and biases that are not all zeros (named "LAYER.bias")."""
    activations: tuple[TensorSummary, ...]
    """The images ("input") and the output of each layer that computes new values."""
    images: int
    """Number of images that the activations are of."""

    def _repr_html_(self) -> str:
        html: str = delegates.call("inspection_html", self)
        return html


@requires_extras("twoscale.inspect")
def inspect(model: nn.Module, batches: Iterable[Any]) -> Inspection:
    """Take statistics of a float network's weights and activations.

    Args:
        model: maps float images (N, C, H, W) to logits (N, classes); it is not changed.
        batches: images as the model takes them, as for ``quantize``; any number. Iterated once.

    Raises:
        CaptureError: the model is not a fixed sequence of supported operators.
        CalibrationError: no images, or NaN or infinity among the values.
    """
    from twoscale._calibration.profile import calibration_images, profile, weight_summaries
    from twoscale._frontends import as_module, float_graph, input_count
    from twoscale._passes.fold import fold

    model = as_module(model)
    first, images = calibration_images(batches, "inspect", input_count(model))
    graph = fold(float_graph(model, first))
    found = profile(graph, images)
    return Inspection(graph.name, weight_summaries(graph), found.summaries(), found.images)
