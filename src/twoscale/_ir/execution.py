"""The interface of executors, and the checks of their arguments."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from twoscale._ir.input_layout import InputLayout
from twoscale._ir.memory_estimate import refuse_beyond_memory
from twoscale._ir.preprocessing import normalize, pixel_normalization
from twoscale.errors import ConfigurationError, ExecutorError, UnknownNameError

if TYPE_CHECKING:
    from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["Executor", "as_images", "check_images", "layers_to_keep", "run_logits"]


class Executor(Protocol):
    """Runs an integer network. This is the interface that verify uses."""

    name: str

    def __init__(self, network: IntegerNetwork) -> None: ...

    def run(self, images_nchw: NDArray[np.float32], keep: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
        """Compute a batch.

        Args:
            images_nchw: float32 images (N, C, H, W), normalized as the network was calibrated. For several inputs a
                tuple of arrays, or all inputs in one array, see ``InputLayout``.
            keep: layers whose integers to return; by default only the outputs'.

        Returns:
            Layer name to integers, (N, ...) in the dtype of the layer's spec.

        Raises:
            ConfigurationError: images of another shape, or NaN or infinity among them.
            ExecutorError: one image needs more memory than the machine has.
            UnknownNameError: ``keep`` names a layer that the network does not have.
        """
        ...


def check_images(network: IntegerNetwork, images: Any) -> NDArray[np.float32]:
    """Return images as a float32 array that fits the network.

    Raises:
        ConfigurationError: wrong shape, or NaN or infinity among the values.
        ExecutorError: one image needs more memory than the machine has.
    """
    refuse_beyond_memory(network.name, network.layers, ExecutorError)
    return as_images(network.name, network.input_layout, images)


def as_images(name: str, layout: InputLayout, images: Any) -> NDArray[np.float32]:
    """Return images as a float32 array that fits a network.

    Args:
        name: of the network, for error messages.
        layout: of its inputs.
        images: array or tensor; for several inputs a tuple of them, or all inputs in one array.

    Raises:
        ConfigurationError: wrong shape, or NaN or infinity among the values.
    """
    if layout.several and isinstance(images, tuple | list):
        return layout.joined(_each(name, layout, images))
    return _array(name, layout.shape, images, layout.text())


def _each(name: str, layout: InputLayout, inputs: Sequence[Any]) -> list[NDArray[np.float32]]:
    """Return the arrays of several inputs."""
    if len(inputs) != len(layout.shapes):
        raise ConfigurationError(f"{name} takes {len(layout.shapes)} inputs, {layout.text()}, got {len(inputs)}")
    if any(str(getattr(part, "dtype", "")).removeprefix("torch.") == "uint8" for part in inputs):
        raise ConfigurationError(f"{name} takes float32 inputs, normalized as it was calibrated, got uint8")
    arrays = [
        _array(f"input {index} of {name}", shape, part, f"(N, {', '.join(map(str, shape))})")
        for index, (shape, part) in enumerate(zip(layout.shapes, inputs, strict=True))
    ]
    if len({len(array) for array in arrays}) > 1:
        raise ConfigurationError(
            f"{name} takes inputs of one batch, got {' and '.join(str(array.shape) for array in arrays)}; expected as "
            "many samples in each"
        )
    return arrays


def _array(name: str, expected: tuple[int, ...], images: Any, wanted: str) -> NDArray[np.float32]:
    """Return one array as float32; ``wanted`` is the text of the shapes for errors."""
    array = np.asarray(images.detach().cpu().float() if hasattr(images, "detach") else images)
    if array.dtype.kind not in "fiub":
        raise ConfigurationError(f"images are arrays of numbers, got {type(images).__name__} of {array.dtype}")
    with np.errstate(over="ignore"):  # values beyond float32 become infinite, and are reported below
        array = np.require(array, np.float32, "W")  # torch warns about read-only arrays
    if array.ndim != 1 + len(expected) or array.shape[1:] != expected:
        raise ConfigurationError(f"{name} takes images of shape {wanted}, got {array.shape}")
    if not np.isfinite(array).all():
        bad = np.argwhere(~np.isfinite(array))
        raise ConfigurationError(
            f"the images hold {len(bad)} values that are NaN or infinite, the first in image {bad[0][0]}; "
            "expected finite, normalized pixels"
        )
    return array


def layers_to_keep(network: IntegerNetwork, keep: Collection[str] | None) -> set[str]:
    """Return the layers whose integers ``Executor.run`` returns: those in ``keep``, or the outputs'.

    Raises:
        UnknownNameError: the network has no layer of that name.
    """
    if keep is None:
        return set(network.outputs)
    names = [layer.name for layer in network]
    for name in keep:
        if name not in names:
            raise UnknownNameError("layer", name, names)
    return set(keep)


def _normalized(network: IntegerNetwork, images: Any) -> Any:
    """Return 8-bit pixels as the network's input; other images as they are.

    Raises:
        ConfigurationError: the network does not say how it normalizes pixels.
    """
    if str(getattr(images, "dtype", "")).removeprefix("torch.") != "uint8":
        return images
    shape = network.input_layout.shape
    found = pixel_normalization(network.metadata, shape[0]) if len(shape) == 3 else None
    if found is None:
        raise ConfigurationError(
            f"the images are uint8 pixels, and {network.name} does not say how it normalizes; "
            "pass float32 images, normalized as it was calibrated"
        )
    if tuple(images.shape[1:]) != tuple(shape):
        return images  # check_images names both shapes
    return normalize(images, *found)


def run_logits(executor: Executor, network: IntegerNetwork, images: Any) -> Any:
    """Return the float32 output (N, ...) as the same kind of array as the images, NumPy or torch.

    Several outputs are returned as a tuple, in the network's order.
    """
    array = check_images(network, _normalized(network, images))
    integers = executor.run(array)
    results: list[Any] = [network.logits(integers[name], name) for name in network.outputs]
    first = images[0] if isinstance(images, tuple | list) and len(images) else images
    if hasattr(first, "detach"):
        import torch

        results = [torch.from_numpy(result).to(first.device) for result in results]
    return results[0] if len(results) == 1 else tuple(results)
