"""Search for better networks: the cost of fewer bits in each layer, and the best bits for a size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from twoscale._extras import requires_extras
from twoscale._quantization.scheme import DEFAULT, Scheme, find_scheme
from twoscale._search.bits import BitsChoice, LayerSensitivity, Sensitivity
from twoscale._search.choice import MeasuredChoice, measure_choice
from twoscale._search.layer_noise import measure_sensitivity

if TYPE_CHECKING:
    from torch import nn

    from twoscale._quantization import Normalization

__all__ = [
    "BitsChoice",
    "LayerSensitivity",
    "MeasuredChoice",
    "Sensitivity",
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
        activation_bits: of layer outputs, each 4 to 8.
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
