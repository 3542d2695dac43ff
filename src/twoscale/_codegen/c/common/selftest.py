"""The self-test of an exported network: images, and the NumPy reference's outputs and checksums of every layer."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._codegen.c.common.names import printable
from twoscale._codegen.c.common.source_base import SourceBase
from twoscale._codegen.c.common.text import rows, structs
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.reference import ReferenceExecutor
from twoscale.errors import ConfigurationError

__all__ = ["default_images", "self_test"]


def default_images(network: IntegerNetwork, count: int = 4) -> NDArray[Any]:
    """Return quantized images (count, C, H, W). They are random; of three or more, the last two have only the lowest
    and only the highest integer."""
    spec = network.input.output
    images = np.random.default_rng(0).integers(spec.lo, spec.hi, (count, *spec.shape), endpoint=True)
    if count > 2:
        images[-2], images[-1] = spec.lo, spec.hi
    return images.astype(spec.dtype)


def self_test(source: SourceBase, images: NDArray[Any]) -> str:
    """Return the text of the self-test for quantized ``images`` (N, C, H, W).

    Raises:
        ConfigurationError: images of another type, shape or range than the network's input.
    """
    program = source.program
    _check(program.network, images)
    values = _all_layers(program.network, images)
    kept = {name: program.tensors[name].to_memory(value) for name, value in values.items()}
    network_input = program.input
    shown_input = kept[network_input.name].astype(np.int16) - network_input.shift
    shown = [kept[tensor.name].astype(np.int64) - tensor.shift for tensor in program.outputs]
    crc = [
        [
            f"0x{zlib.crc32(kept[layer.name][i].astype(kept[layer.name].dtype.newbyteorder('<')).tobytes()):08x}u"
            for layer in program.network
        ]
        for i in range(len(images))
    ]
    return source.render(
        source.self_test_template,
        count=len(images),
        images=rows(list(shown_input)),
        expected=rows(list(shown[0])) if len(shown) == 1 else structs(shown),
        crc=rows(crc),
        layer_names=[printable(layer.name) for layer in program.network],
    )


def _check(network: IntegerNetwork, images: NDArray[Any]) -> None:
    spec = network.input.output
    if images.dtype != spec.dtype or images.ndim != 1 + len(spec.shape) or images.shape[1:] != spec.shape:
        raise ConfigurationError(
            f"test images of {network.name} must be {spec.dtype} of shape (N, {', '.join(map(str, spec.shape))}), "
            f"got {images.dtype} of shape {images.shape}"
        )
    if not len(images):
        raise ConfigurationError("the self-test needs at least one image")
    if images.min() < spec.lo or images.max() > spec.hi:
        raise ConfigurationError(
            f"test images of {network.name} must be integers in [{spec.lo}, {spec.hi}], "
            f"got {images.min()}..{images.max()}"
        )


def _all_layers(network: IntegerNetwork, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
    reference = ReferenceExecutor(network)
    values = {network.input.name: images}
    for layer in network.layers[1:]:
        values[layer.name] = reference.compute(layer, [values[name] for name in layer.inputs])
    return values
