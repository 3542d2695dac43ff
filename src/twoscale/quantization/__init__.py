"""Scheme → plan → integer network, and the corrections that raise its accuracy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from twoscale.quantization.mixed_precision import (
    BitsChoice,
    MeasuredChoice,
    Sensitivity,
    choose_bits,
    measure,
    sensitivity,
)
from twoscale.quantization.scheme import COURSE, DEFAULT, SCHEMES, Scheme, find_scheme

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from twoscale.calibration.profile import Profile
    from twoscale.graph.nodes import FloatGraph
    from twoscale.network.network import IntegerNetwork

__all__ = [
    "COURSE",
    "DEFAULT",
    "SCHEMES",
    "BitsChoice",
    "MeasuredChoice",
    "Scheme",
    "Sensitivity",
    "choose_bits",
    "find_scheme",
    "float_graph",
    "measure",
    "quantize",
    "quantize_graph",
    "sensitivity",
]


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

    from twoscale.calibration.profile import image_batches, profile
    from twoscale.errors import CalibrationError

    how = find_scheme(scheme) if isinstance(scheme, str) else scheme
    images = iter(image_batches(batches))
    first = next(images, None)
    if first is None:
        raise CalibrationError("calibration got no images; pass at least one batch (a few hundred images are good)")
    graph = float_graph(model, first, how, name=name)
    return quantize_graph(graph, profile(graph, itertools.chain([first], images)), how)


def float_graph(
    model: nn.Module, example_nchw: NDArray[np.float32], how: Scheme = DEFAULT, *, name: str | None = None
) -> FloatGraph:
    """Capture a model and give it the form that a scheme quantizes: folded, and equalized if the scheme says so.

    Args:
        model: as for ``quantize``.
        example_nchw: images, float32 (N, C, H, W): one, or a hundred for a scheme that equalizes activations.
        how: the scheme.
        name: of the network; the model's class by default.

    Raises:
        CaptureError: the model is not a fixed sequence of supported operators.
    """
    import torch

    from twoscale.graph.capture import capture
    from twoscale.graph.folding import fold
    from twoscale.quantization.equalization import equalize

    graph = fold(capture(model, torch.from_numpy(example_nchw), name=name), join_residuals=how.join_residuals)
    return equalize(graph, how.equalization, example_nchw)


def quantize_graph(graph: FloatGraph, found: Profile, how: Scheme | str = DEFAULT) -> IntegerNetwork:
    """Turn a graph, from ``float_graph`` with the same scheme, and its profile into an integer network."""
    from twoscale.quantization.build import build
    from twoscale.quantization.corrections import correct
    from twoscale.quantization.plan import make_plan

    scheme = find_scheme(how) if isinstance(how, str) else how
    plan = make_plan(graph, found.statistics, scheme)
    network = correct(build(plan), plan, found.samples_nchw)
    if scheme.equalization == "none":
        return network
    # Channels are then not those of the model: verify must know.
    return dataclasses.replace(network, metadata={**network.metadata, "equalization": scheme.equalization})
