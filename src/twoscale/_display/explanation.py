"""A page in which a reader follows the integers of a network: feature maps, and any output worked by hand."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twoscale._codegen.targets import WASM_SETS
from twoscale._codegen.wasm.files import about, es_module
from twoscale._ir import layers as n
from twoscale._ir.operators.vectorized import quantize_input
from twoscale._ir.preprocessing import normalize, pixel_normalization
from twoscale._ir.reference import ReferenceExecutor
from twoscale._metrics import SignalToNoise
from twoscale._runtimes.wasm import compiled_modules
from twoscale._text import printable
from twoscale.errors import ConfigurationError

if TYPE_CHECKING:
    from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["Modules", "compiled_for_page", "explanation_page", "layer_integers", "normalized"]


def normalized(network: IntegerNetwork, pixels_chw: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return pixels as the network takes them, (C, H, W).

    Raises:
        ConfigurationError: the network has several inputs, its input is not an image of that shape, or its metadata has
            no normalization.
    """
    shape = network.inputs[0].output.shape
    found = pixel_normalization(network.metadata, shape[0]) if len(shape) == 3 and len(network.inputs) == 1 else None
    if found is None:
        raise ConfigurationError(
            f"{network.name} takes no pictures: expected one input of (C, H, W), and the normalization of pixels in "
            "its metadata, as twoscale quantize writes it"
        )
    if pixels_chw.shape != shape:
        raise ConfigurationError(f"the picture has shape {pixels_chw.shape}; {network.name} takes {shape}")
    return normalize(pixels_chw, *found)


def layer_integers(network: IntegerNetwork, image_chw: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Return the integers of every layer for one normalized image, without the batch."""
    first = network.inputs[0]
    values = {first.name: quantize_input(image_chw[None], first.output)}
    reference = ReferenceExecutor(network)
    for layer in network.layers[1:]:
        values[layer.name] = reference.compute(layer, [values[name] for name in layer.inputs])
    return {layer.name: values[layer.name][0].astype(layer.output.dtype) for layer in network}


@dataclass(frozen=True)
class Modules:
    """The network as WebAssembly."""

    script: str
    """Its ES module."""
    compiled: Mapping[str, bytes]
    """The compiled module of each kind."""


def compiled_for_page(network: IntegerNetwork) -> Modules:
    """Return what runs the network in a page: two kinds of modules, since each adds its size to the page.

    Raises:
        ConfigurationError: the network is off the grid (names the layer).
        ExecutorError: there is no clang for WebAssembly here, or it fails; the message says what to install.
    """
    kinds = [kind for kind in WASM_SETS if kind.name in ("relaxed", "simd128")]
    source, compiled = compiled_modules(network, network.name, kinds)
    return Modules(es_module(source, about(source, dict.fromkeys(compiled, ""), None), 0), compiled)


def explanation_page(
    network: IntegerNetwork,
    pixels_chw: NDArray[np.uint8],
    *,
    modules: Modules | None,
    real: Mapping[str, NDArray[np.float32]] | None = None,
    classes: Sequence[str] | None = None,
) -> str:
    """Return a self-contained page.

    Args:
        network: with one input, an image, and the normalization of pixels in its metadata; on the grid, or in
            TensorFlow Lite's arithmetic.
        pixels_chw: the picture.
        modules: what runs in the page; None: the page shows the integers of this picture only.
        real: values of the float network's layers for this picture, without the batch, where they are known.
        classes: names of the classes.

    Raises:
        ConfigurationError: the network takes no pictures, or another shape.
    """
    integers = layer_integers(network, normalized(network, pixels_chw))
    channels = pixels_chw.shape[0]
    rgb = pixels_chw[:3] if channels >= 3 else np.repeat(pixels_chw[:1], 3, axis=0)
    rgba = np.concatenate([rgb, np.full((1, *rgb.shape[1:]), 255, np.uint8)]).transpose(1, 2, 0)
    output = network[network.outputs[0]]
    data = {
        "name": printable(network.name),
        "output": output.name,
        "classes": None if classes is None or output.output.shape != (len(classes),) else list(classes),
        "pixels": _base64(rgba),
        "modules": None
        if modules is None
        else {kind: base64.b64encode(content).decode() for kind, content in modules.compiled.items()},
        "layers": [
            {
                **_facts(network, layer),
                **({} if modules is not None else {"integers": _base64(integers[layer.name])}),
                **_against_float(layer, integers[layer.name], None if real is None else real.get(layer.name)),
            }
            for layer in network
        ],
    }
    parameters = f"{network.parameters:,} parameters, {len(network.layers)} layers, scheme {network.scheme}"
    texts = {
        "title": html.escape(f"{printable(network.name, 100)}: every integer of one picture"),
        "subtitle": html.escape(f"{parameters}, fingerprint {network.fingerprint[:12]}"),
        "data": json.dumps(data).replace("<", "\\u003c"),
        "module": "" if modules is None else modules.script,
        "worked": _text("worked.js"),
        "script": _text("explain.js"),
    }
    return _rendered(texts)


def _rendered(texts: Mapping[str, str]) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("twoscale._display", "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        autoescape=False,
    )
    return environment.get_template("explain.html.jinja").render(texts)


def _text(name: str) -> str:
    return (resources.files("twoscale._display") / "templates" / name).read_text(encoding="utf-8")


def _base64(values: NDArray[Any]) -> str:
    little = values.dtype.newbyteorder("<")
    return base64.b64encode(np.ascontiguousarray(values.astype(little)).tobytes()).decode()


def _against_float(
    layer: n.Layer, integers: NDArray[Any], real: NDArray[np.float32] | None
) -> dict[str, str | float | None]:
    """Return the float values of a layer and the SQNR of its integers, if they are known."""
    if real is None or real.shape != integers.shape:
        return {}
    noise = SignalToNoise()
    spec = layer.output
    noise.update(real, ((integers.astype(np.float64) - spec.zero_point) * spec.scale).astype(np.float32))
    return {"real": _base64(real.astype(np.float32)), "sqnr": noise.db}


def _facts(network: IntegerNetwork, layer: n.Layer) -> dict[str, Any]:
    """Return what the page needs of a layer to compute any of its outputs."""
    spec = layer.output
    facts: dict[str, Any] = {
        "name": layer.name,
        "op": layer.op,
        "inputs": list(layer.inputs),
        "shape": list(spec.shape),
        "dtype": spec.dtype,
        "scale": float(spec.scale),
        "zeroPoint": spec.zero_point,
        "lo": spec.lo,
        "hi": spec.hi,
    }
    if isinstance(layer, n.Requantize):
        facts["multiplier"] = _multiplier(layer.multiplier)
    if isinstance(layer, n.Accumulating):
        facts |= {
            "weight": _base64(layer.weight),
            "weightShape": list(layer.weight.shape),
            "bias": layer.bias_o.tolist(),
        }
    if isinstance(layer, n.Conv2d):
        facts |= {
            "stride": layer.stride,
            "padding": layer.padding,
            "dilation": layer.dilation,
            "groups": layer.groups,
            "residualMultiplier": _multiplier(layer.residual_multiplier),
        }
    if isinstance(layer, n.MaxPool2d | n.AveragePool2d):
        facts |= {"kernel": layer.kernel, "stride": layer.stride, "padding": layer.padding}
    if isinstance(layer, n.MaxPool2d):
        facts["dilation"] = layer.dilation
    if isinstance(layer, n.Add):
        facts["multipliers"] = [_multiplier(multiplier) for multiplier in layer.multipliers]
    if isinstance(layer, n.Table):
        facts["table"] = layer.table.tolist()
    return facts


def _multiplier(multiplier: n.Multiplier | None) -> dict[str, Any] | None:
    if multiplier is None:
        return None
    if isinstance(multiplier, n.WindowQuotient):
        return {"kind": "quotient"}
    if isinstance(multiplier, n.FixedPoint):
        return {
            "kind": "fixed",
            "mantissas": multiplier.mantissas.tolist(),
            "exponents": multiplier.exponents.tolist(),
        }
    return {"kind": "grid", "integers": multiplier.integers.tolist(), "shift": multiplier.shift}
