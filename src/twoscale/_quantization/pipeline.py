"""The pipeline from a model to an integer network. Every stage takes values and returns a new one.

    model ─ float_graph ─► FloatGraph ─ profile ─► Profile ─ quantize_graph ─► IntegerNetwork

``quantize`` runs all three. Callers that quantize a graph in several ways, or study it, run them one by one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from twoscale._calibration.memory import DEFAULT_MEMORY
from twoscale._extras import requires_extras
from twoscale._ir.weights_hash import weights_metadata
from twoscale._quantization.scheme import DEFAULT, Scheme, find_scheme

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from twoscale._calibration.profile import Profile
    from twoscale._ir.float_graph import FloatGraph
    from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["Normalization", "float_graph", "quantize", "quantize_by", "quantize_graph", "taking_pixels"]

Normalization = tuple[Sequence[float], Sequence[float]]
"""(mean, standard deviation) of pixels / 255, one number for each channel."""

_BALANCING_IMAGES = 64
"""Images over which the ranges of concatenated branches are compared."""


@requires_extras("twoscale.quantize")
def quantize(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    scheme: Scheme | str = DEFAULT,
    name: str | None = None,
    normalization: Normalization | None = None,
    memory: int = DEFAULT_MEMORY,
) -> IntegerNetwork:
    """Turn an image classifier into an integer-only network.

    Args:
        model: maps float images (N, C, H, W), signals (N, C, L) or features (N, F) to logits (N, classes); it is not
            changed. The network, its files and its C take inputs of the same shape. A model with several inputs takes
            one tensor for each: as many as ``forward`` has parameters without a default.
        batches: calibration images as the model takes them (normalized): one tensor or array, or batches of them, or
            tuples that begin with images; for several inputs tuples that begin with one array for each, or with a tuple
            of them. A few hundred are enough, any number is fine. Iterated once.
        scheme: how, or the name of a scheme ("default", "fast", "course").
        name: of the network; the model's class by default.
        normalization: (mean, std) of pixels / 255 in each channel, as the model's images are normalized. Then
        ``batches`` are pixels 0..255 as floats, not normalized, and so are the images that the network takes. Its first
        layer represents them exactly.
        memory: bytes for the tensors between layers, 1 GiB by default; with more, corrections use more images. Weights
        and the first 512 images need additional memory.

    Raises:
        CaptureError: the model is not a fixed sequence of supported operators.
        CalibrationError: no images, or NaN or infinity among the values.
        QuantizationError: integers would not fit.
    """
    how = find_scheme(scheme) if isinstance(scheme, str) else scheme

    def make(graph: FloatGraph, found: Profile) -> IntegerNetwork:
        return quantize_graph(graph, found, how, memory=memory)

    return quantize_by(make, model, batches, how, name=name, normalization=normalization, memory=memory)


def quantize_by(
    make: Callable[[FloatGraph, Profile], IntegerNetwork],
    model: nn.Module,
    batches: Iterable[Any],
    how: Scheme,
    *,
    name: str | None,
    normalization: Normalization | None,
    memory: int,
    seen: Callable[[NDArray[np.float32]], object] | None = None,
) -> IntegerNetwork:
    """Capture and profile a model, and make its integer network.

    Args:
        make: of the graph and its profile.
        model: as for ``quantize``, and so are ``batches``, ``name``, ``normalization`` and ``memory``.
        how: the scheme.
        seen: called with the images of each batch.
    """
    from twoscale._calibration.profile import calibration_images, profile
    from twoscale._frontends import as_module, input_count

    model = as_module(model)
    first, images = calibration_images(batches, inputs=input_count(model))
    graph = float_graph(model, first, how, name=name, normalization=normalization)
    found = profile(graph, images, memory=memory, seen=seen)
    network = _made_from(make(graph, found), model)
    return network if normalization is None else taking_pixels(network, normalization)


def float_graph(
    model: nn.Module,
    example_nchw: Any,
    how: Scheme = DEFAULT,
    *,
    name: str | None = None,
    normalization: Normalization | None = None,
) -> FloatGraph:
    """Capture a model and bring it into the form that a scheme quantizes.

    Args:
        model: as for ``quantize``.
        example_nchw: images, float32 (N, C, H, W), over which ranges are compared where factors are moved between
            layers: some tens. For several inputs a tuple of arrays.
        how: the scheme.
        name: of the network; the model's class by default.
        normalization: as for ``quantize``: the graph's images, and the example's, are pixels 0..255.

    Raises:
        CaptureError: the model is not a fixed sequence of supported operators.
        ConfigurationError: the normalization must have one mean and one positive deviation per channel.
    """
    from twoscale import _frontends as frontends
    from twoscale._passes.absorb_normalization import with_normalization
    from twoscale._passes.equalize import balance_concatenations, equalize
    from twoscale._passes.fold import fold

    graph = frontends.float_graph(model, example_nchw, name=name)
    graph = graph if normalization is None else with_normalization(graph, *normalization)
    graph = fold(graph, join_residuals=how.join_residuals)
    example_nchw = graph.input_layout.joined(example_nchw if graph.input_layout.several else [example_nchw])
    if how.per_channel and how.equalization == "none":
        return balance_concatenations(graph, example_nchw[:_BALANCING_IMAGES])
    return equalize(graph, how.equalization, example_nchw)


def quantize_graph(
    graph: FloatGraph, found: Profile, scheme: Scheme | str = DEFAULT, *, memory: int = DEFAULT_MEMORY
) -> IntegerNetwork:
    """Turn a graph into an integer network.

    Args:
        graph: from ``float_graph`` with the same scheme.
        found: its profile.
        scheme: how, or the name of a scheme.
        memory: as for ``quantize``.

    Raises:
        QuantizationError: integers would not fit.
        UnknownNameError: the scheme gives bits to a layer that does not exist or has no integers of its own.
    """
    from twoscale._quantization.build import build
    from twoscale._quantization.corrections import correct
    from twoscale._quantization.layer_bits import with_layer_bits
    from twoscale._quantization.plan import make_plan
    from twoscale._quantization.range_tuning import tune_ranges
    from twoscale._quantization.ranges import choose_ranges

    how = with_layer_bits(find_scheme(scheme) if isinstance(scheme, str) else scheme, graph)
    ranges = choose_ranges(graph, found.statistics, how)
    ranges = tune_ranges(ranges, graph, found, how, memory=memory)
    plan = make_plan(graph, ranges, how)
    network = build(plan)
    network = correct(network, plan, found.samples_nchw, memory=memory)
    return _equalized(network, graph, how)


def taking_pixels(network: IntegerNetwork, normalization: Normalization) -> IntegerNetwork:
    """Return the network with ``normalization`` in its metadata. verify needs it to compare with the model."""
    mean, std = (list(map(float, values)) for values in normalization)
    return dataclasses.replace(network, metadata={**network.metadata, "normalization": {"mean": mean, "std": std}})


def _made_from(network: IntegerNetwork, model: nn.Module) -> IntegerNetwork:
    """Return the network with the hash of the float weights in its metadata, by which verify detects other weights."""
    from twoscale._frontends import as_module

    found = weights_metadata(as_module(model))
    return dataclasses.replace(network, metadata={**network.metadata, **found}) if found else network


def _equalized(network: IntegerNetwork, graph: FloatGraph, how: Scheme) -> IntegerNetwork:
    """Return the network with how factors were moved in the metadata, since its channels differ from the model's."""
    found: dict[str, object] = {}
    if how.equalization != "none":
        found["equalization"] = how.equalization
    if graph.branch_factors:
        found["branch_factors"] = dict(graph.branch_factors)
    return dataclasses.replace(network, metadata={**network.metadata, **found}) if found else network
