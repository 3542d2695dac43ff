"""Float ONNX files that packages ship, through the float front-end.

    python -m benchmarks.published_onnx --folder F [--only TEXT] [--fresh]
    python -m benchmarks.published_onnx --table      # the recorded rows as a table

Every ``.onnx`` file below the folder is read. Each activation of the graph is compared with the tensor of that name in
ONNX Runtime on the file itself, in float32. Then the network is quantized, and verified in torch and ONNX
Runtime, with the float network beside it. The inputs are random numbers, so the SQNR says little about real pictures;
the integers must be equal all the same. A file that is refused is recorded with the reason. Networks need not be
classifiers. The files are not part of this project. A file's row is kept in build/published_onnx, so an interrupted run
continues where it stopped. The result is results/published_onnx.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

import twoscale
from benchmarks.common import RESULTS, write_result
from twoscale._environment import Environment
from twoscale._files import read_record
from twoscale._frontends import float_graph
from twoscale._ir.float_module import GraphModule
from twoscale.errors import TwoscaleError

WORK = Path(__file__).parents[1] / "build" / "published_onnx"
SIZE = 64
"""Of each dimension of an input that the file leaves open, but for channels."""
CALIBRATION, TEST = 4, 1
"""Number of inputs to calibrate with and to verify on."""
_NO_VALUE = ("Shape", "Size", "Constant", "ConstantOfShape")
_LEFT_OUT = ("Softmax", "LogSoftmax")
"""Operators whose result a network of integers may leave out at its end."""


@dataclass(frozen=True)
class Row:
    """One file."""

    file: str
    """Name, with the folder that it is in."""
    sha256: str
    producer: str
    nodes: int
    input: tuple[int, ...]
    """Without the batch."""
    outputs: tuple[tuple[int, ...], ...] = ()
    tensors: int = 0
    """Activations compared with ONNX Runtime in float32."""
    deviation: float | None = None
    """The largest error of any of them, relative to the tensor's largest value."""
    parameters: int = 0
    compared: int = 0
    """Integers compared."""
    mismatches: int | None = None
    sqnr_db: float | None = None
    agreement: float | None = None
    refused: str | None = None
    """Why the file is not read or quantized."""


def input_shape(model: onnx.ModelProto, size: int) -> tuple[int, ...]:
    """Return the shape of the only input without the batch; open sizes are ``size``, open channels 3."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    sizes = [dimension.dim_value for dimension in inputs[0].type.tensor_type.shape.dim][1:]
    return tuple(found or (3 if place == 0 and len(sizes) == 3 else size) for place, found in enumerate(sizes))


def activations(model: onnx.ModelProto) -> list[str]:
    """Return the tensors that depend on the values of the input and that something reads."""
    constants = {tensor.name for tensor in model.graph.initializer}
    depending = {value.name for value in model.graph.input} - constants
    read = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    names: list[str] = []
    for node in model.graph.node:
        if node.op_type not in _NO_VALUE and depending.intersection(node.input):
            made = [name for name in node.output if name in read]
            depending.update(made)
            names += made
    return names


def deviations(path: Path, images: NDArray[np.float32]) -> Iterator[float]:
    """Yield the largest error of each activation against ONNX Runtime on the file, relative to its largest value.

    The activations become outputs of the graph.
    """
    model = onnx.load(path)
    names = activations(model)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    batch = session.get_inputs()[0].shape[0]
    batch = batch if isinstance(batch, int) else len(images)
    expected = session.run(names, {session.get_inputs()[0].name: images[:batch]})
    del model.graph.output[:]
    model.graph.output.extend(  # now with their types, which the front-end checks
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None] * values.ndim)
        for name, values in zip(names, expected, strict=True)
    )
    with tempfile.TemporaryDirectory() as folder:
        every = Path(folder) / "every.onnx"
        onnx.save(model, every)
        graph = float_graph(every, images[:batch])
    with torch.no_grad():
        found = GraphModule(graph).run(torch.from_numpy(images[:batch]))
    left_out: set[str] = set()  # and what follows
    for node in model.graph.node:
        if node.op_type in _LEFT_OUT or left_out.intersection(node.input):
            left_out.update(node.output)
    for tensor, name, values in zip(names, graph.outputs, expected, strict=True):
        if tensor not in left_out:
            largest = float(np.abs(values).max(initial=0))
            yield float(np.abs(found[name].numpy() - values).max(initial=0)) / (largest or 1.0)


def _runtime_errors() -> tuple[type[Exception], ...]:
    """Return what ONNX Runtime raises for a file that it cannot run with these images."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return state.Fail, state.InvalidArgument, state.InvalidGraph, state.NotImplemented, state.RuntimeException


def measure(path: Path, name: str, size: int) -> Row:
    """Read, quantize and verify one file."""
    content = path.read_bytes()
    model = onnx.load_model_from_string(content)
    row = Row(
        file=name,
        sha256=hashlib.sha256(content).hexdigest(),
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        nodes=len(model.graph.node),
        input=input_shape(model, size),
    )
    generator = np.random.default_rng(0)
    images = generator.uniform(-1, 1, (CALIBRATION + TEST, *row.input)).astype(np.float32)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a softmax that is left out
            source: Any = path
            float_graph(path, images[-TEST:])  # a refusal names the file, not the one that ``deviations`` writes
            errors = list(deviations(path, images[-TEST:]))
            network = twoscale.quantize(source, [images[:CALIBRATION]])
            result = twoscale.verify(network, [images[-TEST:]], executors=["torch", "onnxruntime"], model=source)
    except _runtime_errors() as error:
        return dataclasses.replace(row, refused=f"ONNX Runtime cannot run it: {str(error)[:300]}")
    except TwoscaleError as error:
        return dataclasses.replace(row, refused=str(error).replace(str(path), path.name)[:400])
    return dataclasses.replace(
        row,
        outputs=tuple(output.shape for output in result.outputs),
        tensors=len(errors),
        deviation=max(errors, default=0.0),
        parameters=network.parameters,
        compared=result.compared,
        mismatches=result.mismatches,
        sqnr_db=result.sqnr_db,
        agreement=result.agreement,
    )


@dataclass(frozen=True)
class Results:
    """benchmarks/results/published_onnx.json."""

    size: int
    rows: tuple[Row, ...]
    load_average_at_end: tuple[float, ...] | None = None
    environment: Environment | None = None


def markdown(rows: Sequence[Row]) -> str:
    """Return the table for docs/onnx.md: first the files that are verified, then the rest with the reason."""

    def number(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    lines = ["| file | input | parameters | largest float error | integers compared | differing | SQNR, dB |"]
    lines.append("|---|---|--:|--:|--:|--:|--:|")
    for row in rows:
        if row.refused is None:
            lines.append(
                f"| {row.file} | {'×'.join(map(str, row.input))} | {row.parameters / 1e6:.1f} M | "
                f"{number(row.deviation, '.0e')} | {row.compared:,} | {row.mismatches} | {number(row.sqnr_db, '.1f')} |"
            )
    lines += ["", "| file | refused because |", "|---|---|"]
    lines += [f"| {row.file} | {row.refused.replace('|', '/')} |" for row in rows if row.refused is not None]
    return "\n".join(lines)


def main() -> None:
    """Measure every file of a folder, print and record the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="with .onnx files, in folders of its own or not")
    parser.add_argument("--size", type=int, default=SIZE, help="of dimensions that a file leaves open")
    parser.add_argument("--only", default="", help="only files whose name contains this; nothing is recorded")
    parser.add_argument("--fresh", action="store_true", help="measure files again that an interrupted run has finished")
    parser.add_argument("--table", action="store_true", help="print the recorded rows, and measure nothing")
    options = parser.parse_args()
    if options.table:
        print(markdown(read_record(RESULTS / "published_onnx.json", Results).rows))
        return
    if options.folder is None:
        parser.error("--folder is missing")
    WORK.mkdir(parents=True, exist_ok=True)
    rows = []
    for path in sorted(options.folder.rglob("*.onnx")):
        name = path.relative_to(options.folder).as_posix()
        if options.only not in name:
            continue
        kept = WORK / f"{name.replace('/', '_')}-{options.size}.json"
        if kept.exists() and not options.fresh:
            row = msgspec.json.decode(kept.read_bytes(), type=Row)
        else:
            row = measure(path, name, options.size)
            kept.write_bytes(msgspec.json.encode(row))
        print(row, flush=True)
        rows.append(row)
    print(markdown(rows))
    if not options.only:
        write_result("published_onnx", Results(options.size, tuple(rows)), "onnx", "onnxruntime")


if __name__ == "__main__":
    main()
