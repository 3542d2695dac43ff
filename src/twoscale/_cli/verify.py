"""``twoscale verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import tyro

from twoscale._cli.common import (
    Channels,
    DataName,
    File,
    ModelName,
    at_least_one,
    batches_of,
    console,
    dataset_for,
    load_model,
    print_json,
    recorded,
    require_file,
)
from twoscale.errors import ConfigurationError

__all__ = ["verify_command"]


def verify_command(
    file: File,
    executors: Annotated[str, tyro.conf.arg(metavar="NAME,NAME,...")] = "reference,torch",
    checkpoint: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    against: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    model: ModelName = None,
    data: DataName = None,
    mean: Channels = None,
    std: Channels = None,
    max_samples: int | None = None,
    json: bool = False,
) -> int:
    """Run an integer network in several executors over all test images, and compare every integer of every layer.

    Exit code 1 if any integer differs. On the grid none may; off the grid (the course's scheme) the number is what was
    measured.

    Args:
        file: Integer network (.onnx).
        executors: The first is what the others are compared with. There are reference (NumPy), torch, onnxruntime, c.
        checkpoint: Weights of the float network: gives agreement, and signal to noise of every layer.
        against: Compare with this instead: another integer network (.onnx), layer by layer, or weights.
        model: Model of those weights, where their file does not say it.
        data: Data set. Default: the one the network was calibrated with.
        mean: Mean of pixels / 255 that images are normalized with. Default: what the network says, else 0.5.
        std: Standard deviation likewise.
        max_samples: Use only the first images.
        json: Print JSON for programs instead of a table.
    """
    from twoscale._formats import load
    from twoscale._verification import verify

    at_least_one("--max-samples", max_samples)
    network = load(require_file(file, "an integer network (.onnx)"))
    if checkpoint is not None and against is not None:
        raise ConfigurationError("--checkpoint and --against both say what to compare with; give one of them")
    weights = checkpoint or against
    other: Any = None
    if weights is not None and weights.suffix == ".onnx":
        other = load(require_file(weights, "an integer network (.onnx) or weights"))
    elif weights is not None:
        other = load_model(weights, model)
    dataset = dataset_for(data, recorded(network), mean, std)
    result = verify(
        network,
        batches_of(dataset.test, dataset, limit=max_samples),
        executors=[name.strip() for name in executors.split(",") if name.strip()],
        against=other,
    )
    if json:
        print_json(result)
    else:
        from twoscale._display.verification import verify_tables

        printer = console()
        for part in verify_tables(result):
            printer.print(part)
    return 0 if result.ok else 1
