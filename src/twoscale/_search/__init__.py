"""Search for better networks: the cost of fewer bits in each layer, the best bits for a size, learned rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from twoscale._calibration.memory import DEFAULT_MEMORY
from twoscale._extras import requires_extras
from twoscale._quantization.scheme import DEFAULT, Scheme, find_scheme
from twoscale._search.bits import BitsChoice, LayerSensitivity, Sensitivity
from twoscale._search.choice import MeasuredChoice, measure_choice
from twoscale._search.layer_noise import measure_sensitivity
from twoscale._search.learning import LearnedRounding
from twoscale._search.target_budget import choose_for_target

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from twoscale._calibration.profile import Profile
    from twoscale._ir.float_graph import FloatGraph
    from twoscale._ir.integer_network import IntegerNetwork
    from twoscale._quantization import Normalization

__all__ = [
    "BitsChoice",
    "LayerSensitivity",
    "LearnedRounding",
    "MeasuredChoice",
    "Sensitivity",
    "choose_for_target",
    "learn_rounding",
    "measure_choice",
    "measure_sensitivity",
    "sensitivity",
]


@requires_extras("twoscale.sensitivity")
def sensitivity(
    model: nn.Module,
    batches: Iterable[Any],
    test_batches: Iterable[Any],
    *,
    scheme: Scheme | str = DEFAULT,
    weight_bits: Sequence[int] = (2, 3, 4, 6),
    activation_bits: Sequence[int] = (4, 6),
    normalization: Normalization | None = None,
    progress: Callable[[str], None] | None = None,
) -> Sensitivity:
    """Measure the cost of fewer bits in each single layer of a model. All other layers have the bits of ``scheme``.

    ``Sensitivity.choose`` then chooses bits for a size, and ``quantize`` makes the network of
    ``Scheme(layer_weight_bits=choice.layer_weight_bits)``.

    Args:
        model: as for ``quantize``.
        batches: calibration images, as for ``quantize``. Iterated once.
        test_batches: images as in ``batches``, or tuples (images, labels). Iterated once.
        scheme: the network that is changed in one layer at a time, or the name of a scheme.
        weight_bits: of weights, each 2 to 8. A layer's current bits are left out.
        activation_bits: of layer outputs, each 2 to 8.
        normalization: as for ``quantize``: both kinds of batches then hold pixels 0..255.
        progress: called with the name of each layer and the number of test images so far.

    Raises:
        CaptureError: the model is not a fixed sequence of supported operators.
        CalibrationError: no calibration images, or NaN or infinity among the values.
        ConfigurationError: no test images, or bits out of range.
        QuantizationError: integers would not fit.
    """
    from twoscale._calibration.profile import calibration_images, profile
    from twoscale._frontends import as_module, input_count
    from twoscale._quantization import float_graph

    how = find_scheme(scheme) if isinstance(scheme, str) else scheme
    model = as_module(model)
    first, images = calibration_images(batches, inputs=input_count(model))
    graph = float_graph(model, first, how, normalization=normalization)
    return measure_sensitivity(
        graph,
        profile(graph, images),
        test_batches,
        scheme=how,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        progress=progress,
    )


@requires_extras("twoscale.learn_rounding")
def learn_rounding(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    scheme: Scheme | str = DEFAULT,
    how: LearnedRounding | None = None,
    name: str | None = None,
    normalization: Normalization | None = None,
    further: Iterable[Any] = (),
    memory: int = DEFAULT_MEMORY,
    announce: Callable[[float], None] | None = None,
) -> IntegerNetwork:
    """Turn an image classifier into an integer-only network, with weights, biases and scales that are learned.

    For few bits. It takes minutes where ``quantize`` takes seconds: weights, biases and scales are changed so that the
    integer network computes what the float network computes, first block by block, then as a whole. It needs no labels.

    Args:
        model: as for ``quantize``, with one input and one output.
        batches: as for ``quantize``, some hundreds of images, which calibrate and of which all are kept.
        scheme: as for ``quantize``.
        how: iterations and learning rates. Default: ``LearnedRounding()``.
        name: as for ``quantize``.
        normalization: as for ``quantize``.
        further: more images, in batches of the same form, which the whole network learns from at the end. They help
            most below 4 bits: thousands are better than hundreds.
        memory: bytes for the tensors between layers, and for the images. With less, fewer images are learned from.
        announce: called before learning begins with the seconds that it will take.

    Raises:
        CaptureError: the model is not a fixed sequence of supported operators.
        CalibrationError: no images, batches of other shapes, or NaN or infinity among the values.
        ConfigurationError: several inputs or outputs, fewer than 16 images, or a scheme without on_grid.
        QuantizationError: integers would not fit.
    """
    import numpy as np

    from twoscale._quantization.pipeline import quantize_by
    from twoscale._search.learned_rounding import learn_network, within

    scheme = find_scheme(scheme) if isinstance(scheme, str) else scheme
    learning = how or LearnedRounding()
    images: list[NDArray[np.float32]] = []

    def make(graph: FloatGraph, found: Profile) -> IntegerNetwork:
        return learn_network(
            graph,
            found,
            np.concatenate(images),
            scheme,
            learning,
            further=within(further, memory, images[0].shape[1:]),
            memory=memory,
            announce=announce or (lambda seconds: None),
        )

    return quantize_by(
        make, model, batches, scheme, name=name, normalization=normalization, memory=memory, seen=images.append
    )
