"""A compiled network as a function from images to its outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._codegen.pixels import pixel_table
from twoscale._environment import core_count
from twoscale._ir.execution import as_images
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._runtimes.compiled import CompiledLibrary, CompiledNetwork
from twoscale.errors import ConfigurationError

__all__ = ["CompiledClassifier", "compile"]


def compile(
    network: IntegerNetwork,
    *,
    threads: int | None = None,
    target: str = "native",
) -> CompiledClassifier:
    """Compile a network for this CPU; same as ``network.compile()``.

    Args:
        network: on the grid.
        threads: see ``IntegerNetwork.compile``.
        target: see ``IntegerNetwork.compile``.

    Raises:
        ConfigurationError: the network is off the grid (names the layer), or ``threads`` is below 1.
        ExecutorError: there is no C compiler here, or it fails; the message says what is missing.
        UnknownNameError: there is no such target.
    """
    threads = core_count() if threads is None else threads
    return CompiledClassifier(CompiledNetwork(network, threads=threads, target=target, logits=True))


class CompiledClassifier:
    """The result of ``compile`` and ``load_compiled``. Any number of Python threads may call it at once."""

    def __init__(self, compiled: CompiledLibrary) -> None:
        self._compiled = compiled
        self._quick_logits = compiled.quick_logits
        inputs = compiled.description.inputs
        self._pixels = pixel_table(inputs[0], compiled.description.metadata) if len(inputs) == 1 else None

    def __repr__(self) -> str:
        alone = ", one per image" if self.threads > 1 and not self.shares_images else ""
        return f"<CompiledClassifier {self.name}: {self.kernels} kernels, threads: {self.threads}{alone}>"

    @property
    def name(self) -> str:
        """Name of the network."""
        return self._compiled.description.name

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the network: SHA-256 of everything that determines the output's bits."""
        return self._compiled.description.fingerprint

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Metadata of the network, such as the normalization of its images."""
        return self._compiled.description.metadata

    @property
    def threads(self) -> int:
        """Number of threads that share a batch."""
        return self._compiled.threads

    @property
    def shares_images(self) -> bool:
        """Whether threads share each image of a batch that has fewer images than there are threads.

        Networks whose layers are too short to share compute each image on one thread.
        """
        return self._compiled.description.shares_images

    @property
    def kernels(self) -> str:
        """The instruction set in use: one of the target's, or "generic" if this CPU supports none of them."""
        return self._compiled.kernels

    def __call__(self, images_nchw: Any, *others: Any) -> Any:
        """Return the output of a batch, float32, as the same kind of array as the images.

        It is the logits (N, classes) of a classifier, or has another shape (N, ...). Several outputs are a tuple, in
        the order of ``IntegerNetwork.outputs``.

        Args:
            images_nchw: NumPy array or torch tensor on the CPU, (N, C, H, W). Either float32, normalized as in
                calibration, which is not copied if it is in C order; or uint8 pixels, if the network's metadata has the
                normalization. N may be 0.
            others: of a network with several inputs, the other inputs, (N, ...) each. A tuple of all is taken too.

        Raises:
            ConfigurationError: another shape, type or device, or NaN or infinity among the values.
        """
        if not others:
            logits = self._quick_logits(images_nchw)
            if logits is not None:
                return logits
        if others or isinstance(images_nchw, tuple):
            return self._of_several((images_nchw, *others) if others else images_nchw)
        if isinstance(images_nchw, np.ndarray):
            return self._outputs(images_nchw)
        if not hasattr(images_nchw, "detach"):
            raise ConfigurationError(
                f"{self.name} takes NumPy arrays and torch tensors, got {type(images_nchw).__name__}"
            )
        import torch

        if images_nchw.device.type != "cpu":
            raise ConfigurationError(
                f"{self.name} is compiled for the CPU and the images are on {images_nchw.device}; pass images.cpu()"
            )
        tensor = images_nchw.detach()
        outputs = self((tensor.float() if tensor.is_floating_point() else tensor).numpy())
        return tuple(map(torch.from_numpy, outputs)) if isinstance(outputs, tuple) else torch.from_numpy(outputs)

    def _of_several(self, inputs: tuple[Any, ...]) -> Any:
        """Return the output of a batch of several inputs."""
        description = self._compiled.description
        joined = as_images(self.name, description.input_layout, inputs if len(description.inputs) > 1 else inputs[0])
        if len(inputs) != len(description.inputs):
            raise ConfigurationError(f"{self.name} takes one input, got {len(inputs)}")
        outputs = self(joined)
        if not hasattr(inputs[0], "detach"):
            return outputs
        import torch

        return tuple(map(torch.from_numpy, outputs)) if isinstance(outputs, tuple) else torch.from_numpy(outputs)

    def _outputs(self, images: NDArray[Any]) -> NDArray[np.float32] | tuple[NDArray[np.float32], ...]:
        integers = self._compiled.outputs(self._integers(images) if images.dtype == np.uint8 else images)
        reals = [self._compiled.description.logits(output, place) for place, output in enumerate(integers)]
        return reals[0] if len(reals) == 1 else tuple(reals)

    def _integers(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """Quantize pixels (N, C, H, W) to integers (N, H, W, C) in the type of the network's input."""
        name, shape = self.name, self._compiled.description.inputs[0].shape
        if self._pixels is None:
            raise ConfigurationError(
                f"the images are uint8 pixels, and {name} does not say how it normalizes; "
                "pass float32 images, normalized as it was calibrated"
            )
        if pixels.shape[1:] != shape:
            raise ConfigurationError(
                f"{name} takes images of shape (N, {', '.join(map(str, shape))}), got {pixels.shape}"
            )
        channels, height, width = shape
        integers = np.empty((len(pixels), height, width, channels), self._pixels.dtype)
        for channel, table in enumerate(self._pixels):
            integers[..., channel] = table[pixels[:, channel]]
        return integers
