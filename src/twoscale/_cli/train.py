"""``twoscale train``."""

from __future__ import annotations

import dataclasses
import os
import sys
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from twoscale._cli.common import AS_RECORDED, Pictures, console, load_data, print_json
from twoscale._cli.ending import ending_at_once
from twoscale._launching import torchrun
from twoscale.errors import ConfigurationError, UnknownNameError
from twoscale.models._files import MODEL_FILE
from twoscale.training import RunRecord, TrainConfig
from twoscale.training._effects import without_effect
from twoscale.training._progress import per_second
from twoscale.training._record import NETWORK_FILE, RECORD_FILE, STATE_FILE

__all__ = ["TrainOptions", "train_command"]

_SPEED_RECORD = 0.94
"""Accuracy on CIFAR-10 that speed records train to."""


_RENAMED = {"start": "from"}
"""Options whose name is not that of their field."""


def _unset(field: dataclasses.Field[Any], hint: Any) -> tuple[str, Any, Any]:
    """Return an option whose default is None, so that the recipe decides unless it is given."""
    if field.name == "model":
        model = Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
        return field.name, model, dataclasses.field(default=None, metadata={"note": "Default: the recipe's."})
    if field.name in _RENAMED:
        renamed = Annotated[hint | None, tyro.conf.arg(name=_RENAMED[field.name])]
        return field.name, renamed, dataclasses.field(default=None, metadata={"note": ""})
    lab = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    note = "" if field.default is None or isinstance(field.default, bool) else f"(lab: {lab})"
    return field.name, hint | None, dataclasses.field(default=None, metadata={"note": note})


_FIELDS = [field for field in dataclasses.fields(TrainConfig) if field.name != "preprocessing"]
"""Those that are options; the options of the pictures give the preprocessing."""
_HINTS = typing.get_type_hints(TrainConfig)
TrainOptions = dataclasses.make_dataclass(
    "TrainOptions",
    [_unset(field, _HINTS[field.name]) for field in _FIELDS],
    bases=(TrainConfig,),
    namespace={"__post_init__": lambda self: None, "__module__": __name__},
    frozen=True,
)
"""The options of a training run: the fields of its configuration, each unset."""


def train_command(
    options: Annotated[TrainOptions, tyro.conf.arg(name="")],  # type: ignore[valid-type]
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",), metavar="DIR")],
    recipe: Literal["lab", "standard", "large-batch", "fast", "speedrun", "quantized"] = "lab",
    without: tuple[str, ...] | None = None,
    procs: int | None = None,
    max_restarts: int = 0,
    pictures: Pictures = AS_RECORDED,
    resume: bool = False,
    overwrite: bool = False,
    json: bool = False,
) -> int:
    """Train a float model by a recipe; options override its values.

    Writes DIR/model.safetensors (the weights), DIR/run.json (what ran, losses, accuracy, rate) and
    DIR/training-state.safetensors (the checkpoint, from which --resume continues to the same weights). Exit code 130
    after Ctrl-C, which writes a checkpoint first.

    --data takes the name of a data set; or pictures of your own: a folder with a folder per class (--data ./flowers
    --size 64), a .npz, .npy or .parquet file, or FILE.py:FUNCTION, whose code then runs.

    Data-parallel: --procs starts the processes on this machine; for several machines start torchrun on each:
    torchrun ... -m twoscale train ...

    Args:
        options: The run.
        out: Folder of the run; it is created.
        recipe: lab: the quantization lab's, for small networks. standard: resnet18 on cifar10, on a GPU. fast: to about
            94% in few seconds. speedrun: speednet, made for that. large-batch: standard at 5,000 images an update.
            quantized: with --quantize, from trained weights.
        without: Switches of the recipe to turn off, such as whiten or channels-last.
        procs: Processes that share each batch, over NCCL with a GPU each or over gloo on processors. Default: 1, or
            those that torchrun started.
        max_restarts: How often all processes restart from the last checkpoint after one has died.
        pictures: How pictures become pixels.
        resume: Continue the run in the folder, or begin where there is none yet.
        overwrite: Replace a run that the folder holds.
        json: Print the record as JSON when done.
    """
    from twoscale import training

    if resume and overwrite:
        raise ConfigurationError("--resume and --overwrite exclude each other; choose one")
    for option, values in (
        ("--without", without),
        ("--milestones", options.milestones),  # type: ignore[attr-defined]
        ("--freeze", options.freeze),  # type: ignore[attr-defined]
        ("--mean", options.mean),  # type: ignore[attr-defined]
        ("--std", options.std),  # type: ignore[attr-defined]
    ):
        if values == ():
            raise ConfigurationError(f"{option} needs a value; leave it out, or say at least one")
    leads = torchrun.leads()
    given = {field.name: getattr(options, field.name) for field in _FIELDS}
    off = {_switch(name): False for name in without or ()}
    given = {name: value for name, value in given.items() if value is not None}
    config = training.recipe(recipe, **given | off)
    state = out / STATE_FILE
    if leads and state.exists() and not (resume or overwrite or (torchrun.restarted() and _begun_here(state))):
        raise ConfigurationError(
            f"{out} holds a run already; continue it with --resume, replace it with --overwrite, "
            "or choose another --out"
        )
    if procs is not None or max_restarts:
        procs = 1 if procs is None else procs
        if procs < 1 or max_restarts < 0:
            raise ConfigurationError(f"--procs is {procs} and --max-restarts {max_restarts}; expected at least 1 and 0")
        if "RANK" in os.environ:
            raise ConfigurationError("torchrun started this process already; give --procs and --max-restarts to it")
        if config.batch_size < procs:
            raise ConfigurationError(
                f"a batch of {config.batch_size} cannot be shared by {procs} processes; "
                "expected at least one image each"
            )
        if procs > 1 or max_restarts:
            words = _words(
                options,
                {
                    **dataclasses.asdict(pictures),
                    "out": out,
                    "recipe": recipe,
                    "without": without,
                    "resume": resume,
                    "overwrite": overwrite,
                    "json": json,
                },
            )
            return torchrun.run(procs, max_restarts, "twoscale", ["train", *words])
    if leads:
        for name, reason in without_effect(config, given).items():
            sys.stderr.write(f"twoscale: --{name.replace('_', '-')} has no effect: {reason}\n")
    dataset = load_data(config.data, None, pictures)
    with ending_at_once():
        train = training.train
    try:
        result = train(config, dataset, out=out, resume=resume)
    except training.TrainingInterrupted as error:
        if leads:
            sys.stderr.write(f"twoscale: {error}\n")
        return 130
    if not leads:
        return 0
    if json:
        print_json(result.record)
    else:
        console().print(_summary(result.record, len(dataset.test), out), soft_wrap=True)
    return 0


def _begun_here(state: Path) -> bool:
    from twoscale.training._checkpoint import begun_here

    return begun_here(state)


def _switch(option: str) -> str:
    """Return the field of an option that is on or off."""
    switches = [field.name for field in dataclasses.fields(TrainConfig) if isinstance(field.default, bool)]
    name = option.removeprefix("--").replace("-", "_")
    if name not in switches:
        raise UnknownNameError("switch", option, [switch.replace("_", "-") for switch in switches])
    return name


def _words(options: Any, others: dict[str, Any]) -> list[str]:
    """Return the words of the command line that say the same."""
    given = {field.name: getattr(options, field.name) for field in _FIELDS} | others
    model = given.pop("model")
    words = [] if model is None else [model]
    for name, value in given.items():
        option = f"--{_RENAMED.get(name, name).replace('_', '-')}"
        if value is True:
            words.append(option)
        elif value not in (None, False, ()):
            words += [option, *map(str, value if isinstance(value, tuple) else [value])]
    return words


def _summary(record: RunRecord, samples: int, out: Path) -> str:
    accuracy = "-" if record.test_accuracy is None else f"{record.test_accuracy:.2%}"
    made = MODEL_FILE if record.config.quantize is None else NETWORK_FILE
    rate = "" if record.steps_per_second is None else f", {per_second(record.steps_per_second)} mini-batches per second"
    work = "" if record.training_flops is None else f", {record.training_flops:.3g} floating-point operations"
    return (
        f"{record.config.model}: {accuracy} of {samples:,} test images right after {record.mini_batches:,} "
        f"mini-batches in {record.seconds:.1f} s{rate}{work}{_reached(record)}\n"
        f"Wrote {out / made} and {out / RECORD_FILE}"
    )


def _reached(record: RunRecord) -> str:
    """Return a line on when CIFAR-10 was first classified as well as speed records ask; empty if it was not."""
    if record.config.data != "cifar10":
        return ""
    for number, epoch in enumerate(record.epochs, 1):
        if epoch.accuracy is not None and epoch.accuracy >= _SPEED_RECORD and epoch.training_flops is not None:
            updates = record.mini_batches * number // len(record.epochs)
            return (
                f"\n{_SPEED_RECORD:.0%} first measured after epoch {number}: {updates:,} mini-batches, "
                f"{epoch.training_flops:.3g} floating-point operations"
            )
    return ""
