"""``twoscale verify``."""

from __future__ import annotations

from pathlib import Path

from twoscale.cli.common import File, batches_of, console, load_model, print_json, require_file
from twoscale.errors import ConfigurationError

__all__ = ["verify_command"]


def verify_command(
    network: File,
    data: str = "digits",
    executors: str = "reference,torch",
    checkpoint: Path | None = None,
    model: str | None = None,
    max_samples: int | None = None,
    json: bool = False,
) -> int:
    """Run an integer network in every executor over the whole test set and compare all integers.

    Exit code 1 if any integer differs.

    Args:
        network: Integer network (.onnx).
        data: Data set whose test images are used.
        executors: Names with commas between; the first is what the others are compared with.
        checkpoint: Weights of the float network, for agreement and SQNR.
        model: Model of the checkpoint, where the checkpoint does not say it.
        max_samples: Use only the first images.
        json: Print JSON for programs instead of a table.
    """
    from twoscale import data as data_room
    from twoscale import network as network_room
    from twoscale.verification import verify

    if max_samples is not None and max_samples < 1:
        raise ConfigurationError(f"--max-samples is {max_samples}; expected at least 1")
    loaded = network_room.load(require_file(network, "an integer network (.onnx)"))
    float_model = None if checkpoint is None else load_model(checkpoint, model)
    dataset = data_room.load(data)
    result = verify(
        loaded,
        batches_of(dataset.test, dataset, limit=max_samples),
        executors=[name.strip() for name in executors.split(",") if name.strip()],
        model=float_model,
    )
    if json:
        print_json(result)
    else:
        from twoscale.report.networks import verify_tables

        printer = console()
        for part in verify_tables(result):
            printer.print(part)
    return 0 if result.ok else 1
