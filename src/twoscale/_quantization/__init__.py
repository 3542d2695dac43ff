"""Scheme → plan → integer network, and the corrections that raise its accuracy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from twoscale._quantization.scheme import COURSE, DEFAULT, SCHEMES, Scheme, find_scheme

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from twoscale._calibration.profile import Profile
    from twoscale._ir.float_graph import FloatGraph
    from twoscale._ir.integer_network import IntegerNetwork
    from twoscale._quantization.plan import Plan

__all__ = [
    "COURSE",
    "DEFAULT",
    "SCHEMES",
    "Scheme",
    "find_scheme",
    "float_graph",
    "quantize",
    "quantize_graph",
    "quantize_plan",
    "taking_pixels",
]


Normalization = tuple[Sequence[float], Sequence[float]]
"""(mean, standard deviation) of pixels / 255, one number for each channel."""


def quantize(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    scheme: Scheme | str = DEFAULT,
    name: str | None = None,
    normalization: Normalization | None = None,
) -> IntegerNetwork:
    """Turn an image classifier into an integer-only network.

    Args:
        model: maps float images (N, C, H, W) to logits (N, classes); it is not changed.
        batches: calibration images as the model takes them (normalized), as tensors, arrays, or tuples that begin
            with them; a few hundred images are enough, any number is fine. Iterated once.
        scheme: how, or the name of a scheme ("default", "course").
        name: of the network; the model's class by default.
        normalization: (mean, std) of pixels / 255 in each channel, as the model's images are normalized. Then
            ``batches`` hold pixels 0..255 as floats, not normalized, and so do the images that the network takes: its
            first layer has them as they are, without a rounding error.

    Raises:
        CaptureError: the model is not a fixed sequence of supported operators.
        CalibrationError: no images, or NaN or infinity among the values.
        QuantizationError: integers would not fit.
    """
    import itertools

    from twoscale._calibration.profile import image_batches, profile
    from twoscale.errors import CalibrationError

    how = find_scheme(scheme) if isinstance(scheme, str) else scheme
    images = iter(image_batches(batches))
    first = next(images, None)
    if first is None:
        raise CalibrationError("calibration got no images; pass at least one batch (a few hundred images are good)")
    graph = float_graph(model, first, how, name=name, normalization=normalization)
    network = quantize_graph(graph, profile(graph, itertools.chain([first], images)), how)
    return network if normalization is None else taking_pixels(network, normalization)


def taking_pixels(network: IntegerNetwork, normalization: Normalization) -> IntegerNetwork:
    """Return a network made with ``normalization`` that says so: verify needs it to compare with the model."""
    mean, std = (list(map(float, values)) for values in normalization)
    return dataclasses.replace(network, metadata={**network.metadata, "normalization": {"mean": mean, "std": std}})


def float_graph(
    model: nn.Module,
    example_nchw: NDArray[np.float32],
    how: Scheme = DEFAULT,
    *,
    name: str | None = None,
    normalization: Normalization | None = None,
) -> FloatGraph:
    """Capture a model and give it the form that a scheme quantizes: folded, and equalized if the scheme says so.

    Args:
        model: as for ``quantize``.
        example_nchw: images, float32 (N, C, H, W): one, or a hundred for a scheme that equalizes activations.
        how: the scheme.
        name: of the network; the model's class by default.
        normalization: as for ``quantize``: the graph's images, and the example's, are pixels 0..255.

    Raises:
        CaptureError: the model is not a fixed sequence of supported operators.
        ConfigurationError: the normalization has not one positive deviation and one mean for each channel.
    """
    import torch

    from twoscale._frontends.torch_export.capture import capture
    from twoscale._passes.absorb_normalization import with_normalization
    from twoscale._passes.equalize import equalize
    from twoscale._passes.fold import fold

    graph = capture(model, torch.from_numpy(example_nchw), name=name)
    if normalization is not None:
        graph = with_normalization(graph, *normalization)
    return equalize(fold(graph, join_residuals=how.join_residuals), how.equalization, example_nchw)


def quantize_graph(graph: FloatGraph, found: Profile, how: Scheme | str = DEFAULT) -> IntegerNetwork:
    """Turn a graph, from ``float_graph`` with the same scheme, and its profile into an integer network."""
    from twoscale._quantization.range_tuning import tuned_plan

    return quantize_plan(tuned_plan(graph, found, find_scheme(how) if isinstance(how, str) else how), found)


def quantize_plan(plan: Plan, found: Profile) -> IntegerNetwork:
    """Turn a plan and the profile that it rests on into an integer network."""
    from twoscale._quantization.build import build
    from twoscale._quantization.corrections import correct

    network = correct(build(plan), plan, found.samples_nchw)
    if plan.scheme.equalization == "none":
        return network
    # Channels are then not those of the model: verify must know.
    return dataclasses.replace(network, metadata={**network.metadata, "equalization": plan.scheme.equalization})
