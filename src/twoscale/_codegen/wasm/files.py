"""The files beside the modules of WebAssembly: an ES module, its types, and pages that classify pictures."""

from __future__ import annotations

import base64
import html
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twoscale._codegen.c.common.names import printable
from twoscale._codegen.c.common.selftest import layer_values
from twoscale._codegen.c.common.storage import memory_order
from twoscale._codegen.c.common.tensors import Tensor
from twoscale._codegen.pixels import pixel_table
from twoscale._codegen.wasm.source import WasmSource
from twoscale._environment import VERSION
from twoscale._ir.preprocessing import picture_steps

if TYPE_CHECKING:
    import jinja2

__all__ = ["about", "es_module", "files", "inlined", "test_images"]

_PROBE = "AGFzbQEAAAABBwFgAn9/AX8DAgEABwUBAXAAAAokASIAIAD9DyAB/Q/9DAAAAAAAAAAAAAAAAAAAAAD9kwL9GwAL"
"""(module (func (export "p") (param i32 i32) (result i32) (i32x4.extract_lane 0 (i32x4.relaxed_dot_i8x16_i7x16_add_s
(i8x16.splat (local.get 0)) (i8x16.splat (local.get 1)) (v128.const i32x4 0 0 0 0)))))"""


@dataclass(frozen=True)
class _TensorFacts:
    """A tensor, as network.d.ts describes it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float
    zeroPoint: int


def _facts(tensor: Tensor) -> dict[str, Any]:
    spec = tensor.spec
    return asdict(_TensorFacts(tensor.name, spec.shape, spec.dtype, float(spec.scale), spec.zero_point))


def _memory_order(tensor: Tensor, tensors: Iterable[Tensor]) -> dict[str, Any]:
    """Return the shape whose elements lie in memory as the tensor's do: for a flattened image that of the image. If
    there is none, also return the order."""
    alike = [each.spec.shape for each in tensors if len(each.order) == len(tensor.order)]
    for shape in (tensor.spec.shape, *alike):
        if np.array_equal(tensor.order, memory_order(shape)):
            return {"memoryShape": shape}
    return {"memoryShape": tensor.spec.shape, "order": tensor.order.tolist()}


def test_images(inputs: tuple[Tensor, ...], count: int) -> tuple[NDArray[Any], ...]:
    """Return the images of the self-test as integers (count, ...) of each input: numbers of a linear congruential
    generator. The third image has only the lowest integers, and the fourth only the highest."""
    found: list[list[NDArray[Any]]] = [[] for _ in inputs]
    for image in range(count):
        state = image + 1
        for tensor, images in zip(inputs, found, strict=True):
            spec, random = tensor.spec, []
            for _ in tensor.order:
                state = (state * 1664525 + 1013904223) % 2**32
                random.append(spec.lo + (state >> 16) % (spec.hi - spec.lo + 1))
            values = np.array(random if image not in (2, 3) else [(spec.lo, spec.hi)[image - 2]] * len(random))
            integers = np.empty(len(values), spec.dtype)
            integers[tensor.order] = values
            images.append(integers.reshape(spec.shape))
    return tuple(np.stack(images) for images in found)


def about(source: WasmSource, modules: Mapping[str, str], classes: tuple[str, ...] | None) -> dict[str, Any]:
    """Return the facts that the ES module exports.

    Args:
        source: of one of the modules.
        modules: the file of each kind.
        classes: names of the classes, if they are known.
    """
    program = source.program
    network = program.network
    steps = picture_steps(network.metadata)
    return {
        "name": printable(source.name),
        "fingerprint": network.fingerprint,
        "files": dict(modules),
        "inputs": [{**_facts(tensor), "lo": tensor.spec.lo, "hi": tensor.spec.hi} for tensor in program.inputs],
        "sampleSize": sum(len(tensor.order) for tensor in program.inputs),
        "outputs": [
            {**_facts(tensor), "offset": offset}
            for tensor, offset in zip(program.outputs, program.outputs_layout.offsets, strict=True)
        ],
        "outputSize": program.outputs_layout.size,
        "layers": [
            {
                **_facts(program.tensors[layer.name]),
                "op": layer.op,
                "inputs": layer.inputs,
                "bytes": program.tensors[layer.name].size,
                **_memory_order(program.tensors[layer.name], program.tensors.values()),
            }
            for layer in network
        ],
        "classes": classes,
        "preprocessing": {
            "resize": "shorter" if steps is None else steps.resize,
            "resizeTo": None if steps is None else steps.resize_to,
        },
    }


def files(
    source: WasmSource, modules: Mapping[str, bytes], classes: tuple[str, ...] | None, images: int
) -> dict[str, str | bytes]:
    """Return the names and contents of the files of an export.

    Args:
        source: of one of the modules.
        modules: of each kind, compiled.
        classes: names of the classes, if they are known.
        images: number of images of the self-test.
    """
    name = source.prefix
    named = {kind: f"{name}.wasm" if kind == "simd128" else f"{name}.{kind}.wasm" for kind in modules}
    script = es_module(source, about(source, named, classes), images)
    written: dict[str, str | bytes] = {named[kind]: content for kind, content in modules.items()}
    written[f"{name}.mjs"] = script
    written[f"{name}.d.ts"] = _render("network.d.ts.jinja", source, test_images=images)
    network = source.program.network
    if len(network.inputs) == 1 and pixel_table(network.inputs[0].output, network.metadata) is not None:
        title = html.escape(printable(source.name))
        page = {"title_html": title}
        written["index.html"] = _render("index.html.jinja", source, **page, inlined="", modules="")
        written[f"{name}.html"] = _render("index.html.jinja", source, **page, inlined=script, modules=inlined(modules))
    return written


def es_module(source: WasmSource, facts: Mapping[str, Any], images: int) -> str:
    """Return the text of the ES module."""
    program = source.program
    kept = {}
    if images:
        values = layer_values(program.network, test_images(tuple(program.inputs), images))
        kept = {name: program.tensors[name].to_memory(value) for name, value in values.items()}
    expected = [
        [
            zlib.crc32(kept[layer.name][i].astype(kept[layer.name].dtype.newbyteorder("<")).tobytes())
            for layer in program.network
        ]
        for i in range(images)
    ]
    return _render(
        "network.mjs.jinja",
        source,
        about=_json(facts, indent=2),
        block=program.block,
        layer_starts=_json(source.layer_starts),
        expected=_json(expected),
        probe=_PROBE,
    )


def inlined(modules: Mapping[str, bytes]) -> str:
    """Return the members of a JavaScript object: each kind's module in base64."""
    return ", ".join(f'{kind}: "{base64.b64encode(content).decode()}"' for kind, content in modules.items())


def _json(value: Any, indent: int | None = None) -> str:
    """Return JSON that may be part of a script in a page."""
    return json.dumps(value, indent=indent).replace("<", "\\u003c")


def _render(template: str, source: WasmSource, **values: Any) -> str:
    return (
        _templates()
        .get_template(template)
        .render(file=source.prefix, title=printable(source.name), version=VERSION, **values)
    )


@cache
def _templates() -> jinja2.Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("twoscale._codegen.wasm", "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
