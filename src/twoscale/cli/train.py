"""``twoscale train``."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from twoscale import data as data_room
from twoscale.cli.common import console, print_json
from twoscale.errors import ConfigurationError
from twoscale.training import RunRecord, TrainConfig
from twoscale.training.record import MODEL_FILE, RECORD_FILE, STATE_FILE

__all__ = ["TrainOptions", "train_command"]


@dataclass(frozen=True)
class TrainOptions(TrainConfig):
    """The options of a training run, the model's name without a dash."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")] = "net"
    """Name of the model, such as net, net-with-bias or resnet18."""


def train_command(
    options: Annotated[TrainOptions, tyro.conf.arg(name="")],
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",), metavar="DIR")],
    resume: bool = False,
    overwrite: bool = False,
    json: bool = False,
) -> int:
    """Train a float model; the quantization lab's recipe unless options say otherwise.

    Writes DIR/model.safetensors (the weights), DIR/run.json (what ran, losses, accuracy, rate) and
    DIR/training-state.safetensors, from which a run that was killed goes on to the same weights. Exit code 130 after
    Ctrl-C, which writes a checkpoint first.

    Args:
        options: The run.
        out: Folder of the run; it is made.
        resume: Continue the run in the folder, or begin where there is none yet.
        overwrite: Begin anew where the folder holds a run.
        json: Print the record as JSON when done.
    """
    from twoscale import training

    if resume and overwrite:
        raise ConfigurationError("--resume and --overwrite exclude each other; choose one")
    if (out / STATE_FILE).exists() and not (resume or overwrite):
        raise ConfigurationError(
            f"{out} holds a run already; continue it with --resume, replace it with --overwrite, "
            "or choose another --out"
        )
    config = TrainConfig(**{field.name: getattr(options, field.name) for field in dataclasses.fields(TrainConfig)})
    dataset = data_room.load(config.data)
    try:
        result = training.train(config, dataset, out=out, resume=resume)
    except training.TrainingInterrupted as error:
        sys.stderr.write(f"twoscale: {error}\n")
        return 130
    if json:
        print_json(result.record)
    else:
        console().print(_summary(result.record, len(dataset.test), out), soft_wrap=True)
    return 0


def _summary(record: RunRecord, samples: int, out: Path) -> str:
    accuracy = "-" if record.test_accuracy is None else f"{record.test_accuracy:.2%}"
    rate = "" if record.steps_per_second is None else f", {record.steps_per_second:,.0f} mini-batches a second"
    return (
        f"{record.config.model}: {accuracy} of {samples:,} test images right after {record.mini_batches:,} "
        f"mini-batches in {record.seconds:.1f} s{rate}\nWrote {out / MODEL_FILE} and {out / RECORD_FILE}"
    )
