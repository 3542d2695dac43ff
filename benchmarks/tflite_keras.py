"""Integer `.tflite` files that TensorFlow makes of Keras models, read and compared with LiteRT.

    python -m benchmarks.tflite_keras FOLDER [--only TEXT] [--images N] [--fresh]
    python -m benchmarks.tflite_keras --table      # the recorded rows as a table

Every ``.tflite`` file below the folder is read and verified: torch against the reference, and every tensor of LiteRT's
reference kernels that a layer computes. The inputs are random numbers. A file that is refused is recorded with the
reason, and so is one that LiteRT's reference kernels do not run. The files are not part of this project. They were made
with TensorFlow 2.21 and random weights:

    model = tf.keras.applications.MobileNet(input_shape=(96, 96, 3), alpha=0.25, weights=None, classes=10)
    for layer in model.layers:
        if isinstance(layer, tf.keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(pixels(16), training=True)        # gives batch norms the statistics of these images
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([pixels(1)] for _ in range(16))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8    # not in files -int8f
    Path("mobilenet-int8.tflite").write_bytes(converter.convert())

A file's row is kept in build/tflite_keras, so an interrupted run continues where it stopped. The result is
results/tflite_keras.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

import twoscale
from benchmarks.common import RESULTS, write_result
from twoscale._environment import Environment
from twoscale._files import read_record
from twoscale._frontends.tflite.opening import parsed
from twoscale.errors import TwoscaleError

WORK = Path(__file__).parents[1] / "build" / "tflite_keras"
IMAGES = 2


@dataclass(frozen=True)
class Row:
    """One file."""

    file: str
    sha256: str
    images: int
    operators: int = 0
    kinds: tuple[str, ...] = ()
    """Names of the operators."""
    input: tuple[int, ...] = ()
    """Without the batch, (C, H, W)."""
    parameters: int = 0
    layers: int = 0
    compared: int = 0
    """Integers compared with LiteRT's reference kernels."""
    differing: int = 0
    torch_compared: int = 0
    """Integers of torch compared with the reference."""
    torch_differing: int = 0
    first_difference: str | None = None
    not_run: str | None = None
    """Why LiteRT's reference kernels do not run it."""
    refused: str | None = None


def measure(path: Path, name: str, images: int) -> Row:
    """Read and verify one file."""
    content = path.read_bytes()
    row = Row(file=name, sha256=hashlib.sha256(content).hexdigest(), images=images)
    try:
        model = parsed(path, content)
        kinds = tuple(sorted({operator.name for operator in model.operators}))
        network = twoscale.load(path)
        shape = network.input.output.shape
        spec = network.input.output
        integers = np.random.default_rng(0).integers(spec.lo, spec.hi + 1, (images, *shape))
        real = ((integers - spec.zero_point) * spec.scale).astype(np.float32)
        result = twoscale.verify(network, [real], executors=["reference", "torch"])
    except TwoscaleError as error:
        return dataclasses.replace(row, refused=str(error).replace(str(path), path.name)[:400])
    ours, theirs = (
        next((name for name in result.compared_by_executor if name.startswith(start)), "")
        for start in ("torch", "lite")
    )
    return dataclasses.replace(
        row,
        operators=len(model.operators),
        kinds=kinds,
        input=shape,
        parameters=network.parameters,
        layers=len(network.layers),
        compared=result.compared_by_executor.get(theirs, 0),
        differing=result.mismatches_by_executor.get(theirs, 0),
        torch_compared=result.compared_by_executor.get(ours, 0),
        torch_differing=result.mismatches_by_executor.get(ours, 0),
        first_difference=result.first_divergence,
        not_run=result.original_left_out and result.original_left_out.replace(str(path), path.name),
    )


@dataclass(frozen=True)
class Results:
    """benchmarks/results/tflite_keras.json."""

    rows: tuple[Row, ...]
    load_average_at_end: tuple[float, ...] | None = None
    environment: Environment | None = None


def markdown(rows: Sequence[Row]) -> str:
    """Return the table for docs/tflite.md: first the files that are verified, then the rest with the reason."""
    lines = ["| file | input | operators | parameters | integers compared with LiteRT | differing |"]
    lines.append("|---|---|--:|--:|--:|--:|")
    for row in rows:
        if row.refused is None and row.not_run is None:
            lines.append(
                f"| {row.file} | {'×'.join(map(str, row.input))} | {row.operators} | {row.parameters / 1e6:.2f} M | "
                f"{row.compared:,} | {row.differing} |"
            )
    others = [(row.file, row.refused or row.not_run or "") for row in rows if row.refused or row.not_run]
    if others:
        lines += ["", "| file | not compared because |", "|---|---|"]
        lines += [f"| {file} | {reason.replace('|', '/')} |" for file, reason in others]
    return "\n".join(lines)


def main() -> None:
    """Measure every file of a folder, print and record the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="with .tflite files")
    parser.add_argument("--images", type=int, default=IMAGES, help="number of random images")
    parser.add_argument("--only", default="", help="only files whose name contains this; nothing is recorded")
    parser.add_argument("--fresh", action="store_true", help="measure files again that an interrupted run has finished")
    parser.add_argument("--table", action="store_true", help="print the recorded rows, and measure nothing")
    options = parser.parse_args()
    if options.table:
        print(markdown(read_record(RESULTS / "tflite_keras.json", Results).rows))
        return
    if options.folder is None:
        parser.error("FOLDER is missing")
    WORK.mkdir(parents=True, exist_ok=True)
    rows = []
    for path in sorted(options.folder.rglob("*.tflite")):
        name = path.relative_to(options.folder).as_posix()
        if options.only not in name:
            continue
        kept = WORK / f"{name.replace('/', '_')}-{options.images}.json"
        if kept.exists() and not options.fresh:
            row = msgspec.json.decode(kept.read_bytes(), type=Row)
        else:
            row = measure(path, name, options.images)
            kept.write_bytes(msgspec.json.encode(row))
        print(row, flush=True)
        rows.append(row)
    print(markdown(rows))
    if not options.only:
        write_result("tflite_keras", Results(tuple(rows)), "ai-edge-litert")


if __name__ == "__main__":
    main()
