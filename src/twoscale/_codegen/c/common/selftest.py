"""The self-test of an exported network: images, and the NumPy reference's outputs and checksums of every layer."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._codegen.c.common.names import printable
from twoscale._codegen.c.common.source_base import SourceBase
from twoscale._codegen.c.common.text import number_lines, rows, structs
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.operators.base import TensorSpec
from twoscale._ir.reference import ReferenceExecutor
from twoscale.errors import ConfigurationError

__all__ = ["default_images", "layer_values", "self_test"]


def default_images(network: IntegerNetwork, count: int = 4) -> tuple[NDArray[Any], ...]:
    """Return quantized images (count, C, H, W) of each input. They are random; of three or more, the last two have only
    the lowest and only the highest integer."""
    random = np.random.default_rng(0)
    inputs = []
    for layer in network.inputs:
        spec = layer.output
        images = random.integers(spec.lo, spec.hi, (count, *spec.shape), endpoint=True)
        if count > 2:
            images[-2], images[-1] = spec.lo, spec.hi
        inputs.append(images.astype(spec.dtype))
    return tuple(inputs)


def self_test(source: SourceBase, inputs: Sequence[NDArray[Any]], *, has_main: bool = True) -> str:
    """Return the text of the self-test for quantized images (N, C, H, W) of each input.

    It is a program, or without ``main`` a function NAME_selftest.

    Raises:
        ConfigurationError: another number of inputs, or images of another type, shape or range than the network's.
    """
    program = source.program
    _check(program.network, inputs)
    values = layer_values(program.network, inputs)
    images = inputs[0]
    kept = {name: program.tensors[name].to_memory(value) for name, value in values.items()}
    shown_inputs = [kept[tensor.name].astype(np.int16) - tensor.shift for tensor in program.inputs]
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
        has_main=has_main,
        images=rows(list(shown_inputs[0])) if len(shown_inputs) == 1 else structs(shown_inputs),
        expected=rows(list(shown[0])) if len(shown) == 1 else structs(shown),
        crc=rows(crc),
        items=number_lines([kept[layer.name].dtype.itemsize for layer in program.network]),
        layer_names=[printable(layer.name) for layer in program.network],
    )


def _check(network: IntegerNetwork, inputs: Sequence[NDArray[Any]]) -> None:
    if len(inputs) != len(network.inputs) or len({len(images) for images in inputs}) > 1:
        raise ConfigurationError(
            f"test images of {network.name} must be one array for each of {len(network.inputs)} inputs, as many images "
            f"in each, got {len(inputs)}"
        )
    for layer, images in zip(network.inputs, inputs, strict=True):
        _check_input(network, layer.output, images)


def _check_input(network: IntegerNetwork, spec: TensorSpec, images: NDArray[Any]) -> None:
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


def layer_values(network: IntegerNetwork, inputs: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the integers of every layer, by the reference."""
    reference = ReferenceExecutor(network)
    values = {layer.name: images for layer, images in zip(network.inputs, inputs, strict=True)}
    for layer in network.layers[len(inputs) :]:
        values[layer.name] = reference.compute(layer, [values[name] for name in layer.inputs])
    return values
