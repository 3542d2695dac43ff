"""Scheme → plan → integer network, and the corrections that raise its accuracy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from twoscale.quantization.scheme import COURSE, DEFAULT, SCHEMES, Scheme, find_scheme

if TYPE_CHECKING:
    from torch import nn

    from twoscale.calibration.profile import Profile
    from twoscale.graph.nodes import FloatGraph
    from twoscale.network.network import IntegerNetwork

__all__ = ["COURSE", "DEFAULT", "SCHEMES", "Scheme", "find_scheme", "quantize", "quantize_graph"]


def quantize(
    model: nn.Module, batches: Iterable[Any], *, scheme: Scheme | str = DEFAULT, name: str | None = None
) -> IntegerNetwork:
    """Turn an image classifier into an integer-only network.

    Args:
        model: maps float images (N, C, H, W) to logits (N, classes); it is not changed.
        batches: calibration images as the model takes them (normalized), as tensors, arrays, or tuples that begin
            with them; a few hundred images are enough, any number is fine. Iterated once.
        scheme: how, or the name of a scheme ("default", "course").
        name: of the network; the model's class by default.

    Raises:
        CaptureError: the model is not a fixed sequence of supported operators.
        CalibrationError: no images, or NaN or infinity among the values.
        QuantizationError: integers would not fit.
    """
    import itertools

    import torch

    from twoscale.calibration.profile import image_batches, profile
    from twoscale.errors import CalibrationError
    from twoscale.graph.capture import capture
    from twoscale.graph.folding import fold

    how = find_scheme(scheme) if isinstance(scheme, str) else scheme
    images = iter(image_batches(batches))
    first = next(images, None)
    if first is None:
        raise CalibrationError("calibration got no images; pass at least one batch (a few hundred images are good)")
    graph = fold(capture(model, torch.from_numpy(first), name=name), join_residuals=how.join_residuals)
    return quantize_graph(graph, profile(graph, itertools.chain([first], images)), how)


def quantize_graph(graph: FloatGraph, found: Profile, how: Scheme | str = DEFAULT) -> IntegerNetwork:
    """Turn a folded graph and its profile into an integer network; see ``quantize``."""
    from twoscale.quantization.build import build
    from twoscale.quantization.corrections import correct
    from twoscale.quantization.plan import make_plan

    plan = make_plan(graph, found.statistics, find_scheme(how) if isinstance(how, str) else how)
    return correct(build(plan), plan, found.samples_nchw)
