"""The training loop.

    order of the epoch → gather uint8 → normalize → step → (every so often) losses, accuracy, checkpoint

Nothing in it reads a value back from the device except where a line is written: each step leaves its loss in
its own place of a buffer, and the buffer is read once an entry.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from twoscale import models
from twoscale.data import Dataset, epoch_order, normalize
from twoscale.errors import ConfigurationError, TwoscaleError
from twoscale.models import ModelInfo, save_model
from twoscale.records import current_environment, write_record
from twoscale.training.accuracy import check_takes, evaluate
from twoscale.training.checkpoint import Position, check_continues, read_state, write_state
from twoscale.training.config import TrainConfig
from twoscale.training.optimizers import SGD
from twoscale.training.progress import Reporter, reporter
from twoscale.training.record import MODEL_FILE, RECORD_FILE, STATE_FILE, RunRecord
from twoscale.training.step import Step, numerics

__all__ = ["TrainResult", "TrainingInterrupted", "train"]

_GATHER = 256
"""Images that are gathered and normalized at once: they stay in the processor's cache."""
_EVALUATION_BATCH = 100
_LOOK_EVERY = 64
"""Mini-batches between looks at the clock and at Ctrl-C."""
_USED = frozenset(
    {"model", "data", "epochs", "batch_size", "lr", "momentum", "seed", "log_every", "checkpoint_every", "step"}
    | {"threads", "device"}
)
_WORTH_RECORDING = 10_000
"""Mini-batches from which on recording the step, which takes 1 to 2 s, pays."""


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C ended a run; the message says where it was saved and how it goes on."""


@dataclass(frozen=True, eq=False)
class TrainResult:
    """A finished run."""

    model: nn.Module
    """With the final weights, in evaluation mode."""
    record: RunRecord


def train(
    config: TrainConfig,
    dataset: Dataset,
    *,
    out: Path | None = None,
    resume: bool = False,
    model: nn.Module | None = None,
    progress: bool = True,
) -> TrainResult:
    """Train a model, and write its folder.

    The same configuration, data and number of threads give the same weights, bit for bit, however often the run
    was interrupted and resumed. Torch's global random state is left as it was.

    Args:
        config: what to do.
        dataset: what to train on.
        out: folder for ``model.safetensors`` (weights, once finished), ``run.json`` (:class:`RunRecord`) and
            ``training-state.safetensors`` (to go on from, at every epoch's end). What an earlier run left in it is
            replaced unless it is resumed. None: nothing is written.
        resume: continue the run in ``out``, or begin where there is none yet. More epochs than it had extend it.
        model: any module that maps images to logits, trained in place and on its device, instead of a new one by
            the name in the configuration.
        progress: tell on standard error how it goes.

    Returns:
        The model and the record.

    Raises:
        TrainingInterrupted: Ctrl-C; a checkpoint was written first.
        ConfigurationError: options that do not fit each other, or the loss became infinite or NaN.
        DataError: the model does not take these images.
        CheckpointError: the state to resume from is damaged.
        TwoscaleError: the folder cannot be written, or the disk is full; the last checkpoint is kept.
    """
    if resume and out is None:
        raise ConfigurationError("resume needs the folder (out) of the run that is to be continued")
    unused = [
        field.name
        for field in dataclasses.fields(config)
        if field.name not in _USED and getattr(config, field.name) != field.default
    ]
    if unused:
        raise ConfigurationError(f"{', '.join(unused)} cannot be changed in this version; leave it out")
    with torch.random.fork_rng(devices=[]), contextlib.ExitStack() as stack:
        # For what is random in a model, such as dropout; the initial weights have their own generator.
        torch.default_generator.manual_seed(config.seed)
        telling = reporter(progress)
        stack.callback(telling.close)
        run = _Run(config.resolved(), dataset, out, model, telling)
        stack.enter_context(numerics(threads=run.threads, batch_size=config.batch_size))
        stack.enter_context(torch.no_grad())
        run.begin(resume)
        run.loop()
        return run.finish()


class _Run:
    """A run in progress."""

    def __init__(
        self, config: TrainConfig, dataset: Dataset, out: Path | None, model: nn.Module | None, telling: Reporter
    ) -> None:
        assert config.epochs is not None  # resolved
        assert config.threads is not None
        self.config, self.dataset, self.out, self.telling = config, dataset, out, telling
        self.epochs, self.threads = config.epochs, config.threads
        self.options = {} if model is not None else {"classes": len(dataset.classes)}
        self.model = model if model is not None else models.create(config.model, seed=config.seed, **self.options)
        check_takes(self.model, dataset.train, dataset.mean, dataset.std)
        # Everything lies where the model is, once; a mini-batch is then a gather there.
        self.device = next((value.device for value in self.model.parameters()), torch.device("cpu"))
        self.images = torch.from_numpy(dataset.train.images).to(self.device)
        self.labels = torch.from_numpy(dataset.train.labels).to(self.device).long()
        self.per_epoch = math.ceil(len(dataset.train) / config.batch_size)
        self.total = self.epochs * self.per_epoch
        self.position = Position(config, zlib.crc32(dataset.train.labels.tobytes()))
        how = config.step
        if how == "auto":
            how = "captured" if self.total >= _WORTH_RECORDING else "eager"
        self.step = Step(self.model, SGD(config.lr, config.momentum), how)
        self.recent = torch.zeros(config.log_every, device=self.device)
        self.prepare_seconds = 0.0
        self.saved: int | None = None
        """Mini-batches done at the last checkpoint."""

    def begin(self, resume: bool) -> None:
        """Take up an earlier state or clear it away, and get the step ready."""
        if self.out is not None:
            state = self.out / STATE_FILE
            if resume and state.exists():
                self._take_up(state)
            else:
                if resume:
                    self.telling.say(f"nothing to resume in {self.out}: it begins at the beginning")
                self._save()  # also shows that the folder can be written, before time is spent
        self.model.train()
        clock = time.perf_counter()
        if self.position.done < self.total:
            for size in {min(self.config.batch_size, len(self.labels)), len(self.labels) % self.config.batch_size}:
                if size:
                    self.step.prepare(self._gather(torch.arange(size, device=self.device)), self.labels[:size])
        self.prepare_seconds = time.perf_counter() - clock

    def loop(self) -> None:
        """Take all steps that are left."""
        config, position, recent = self.config, self.position, self.recent.unbind()
        looks = [_LOOK_EVERY, config.log_every, self.per_epoch, *filter(None, [config.checkpoint_every])]
        self.telling.start(self._title(), self.total, position.done)
        for note in self.step.notes:
            self.telling.say(note)
        with _deferred_interrupt() as interrupted:
            done = position.done
            look = _next(done, looks)
            clock = time.perf_counter()
            for epoch in range(done // self.per_epoch, self.epochs):
                for images, labels in self._batches(epoch, done % self.per_epoch):
                    self.step(images, labels, recent[done % config.log_every])
                    done += 1
                    if done == look:
                        position.seconds += time.perf_counter() - clock
                        position.done = done
                        self._look(interrupted)
                        look = _next(done, looks)
                        clock = time.perf_counter()

    def finish(self) -> TrainResult:
        """Write what is left of a finished run."""
        self.model.eval()
        record = self._record()
        if self.out is not None:
            self._save_model(record)
            write_record(self.out / RECORD_FILE, record)
        return TrainResult(self.model, record)

    def _look(self, interrupted: threading.Event) -> None:
        """Do what is due after so many mini-batches."""
        config, position, done = self.config, self.position, self.position.done
        if done % config.log_every == 0 or done == self.total:
            self._enter_loss()
        self.telling.advance(done, done / position.seconds if position.seconds else 0.0)
        epoch_ends = done % self.per_epoch == 0
        if epoch_ends:
            self._checked_losses()
            with numerics(threads=self.threads, batch_size=_EVALUATION_BATCH):
                accuracy = evaluate(
                    self.model, self.dataset.test, self.dataset.mean, self.dataset.std, batch_size=_EVALUATION_BATCH
                )
            position.epoch_accuracy.append(accuracy)
            self.telling.accuracy(done // self.per_epoch, self.epochs, accuracy)
        stops = interrupted.is_set() and done < self.total
        if epoch_ends or stops or (config.checkpoint_every and done % config.checkpoint_every == 0):
            self._checked_losses()
            self._save()
        if stops:
            where = (
                f"saved after mini-batch {done:,} of {self.total:,}; go on with the same command and --resume"
                if self.out is not None
                else "nothing is saved, since no folder (out) was given"
            )
            raise TrainingInterrupted(f"interrupted: {where}")

    def _enter_loss(self) -> None:
        losses = self._checked_losses()
        mean = float(losses.double().mean())
        self.position.losses.append((self.position.done, mean))
        self.telling.loss(self.position.done, mean)

    def _checked_losses(self) -> torch.Tensor:
        """Return the losses since the last entry.

        Raises:
            ConfigurationError: one is NaN or infinite; says of which mini-batch.
        """
        done, entry = self.position.done, self.config.log_every
        losses = self.recent[: (done - 1) % entry + 1]
        bad = torch.nonzero(~torch.isfinite(losses))
        weights = all(bool(torch.isfinite(value).all()) for value in self.step.parameters.values())
        if len(bad) or not weights:
            first = done - len(losses) + 1 + int(bad[0]) if len(bad) else done
            what = f"the loss became {float(losses[bad[0]])}" if len(bad) else "a weight became NaN or infinite"
            kept = (
                f"the last checkpoint (mini-batch {self.saved:,}) is kept"
                if self.saved is not None
                else "no checkpoint had been written yet"
            )
            raise ConfigurationError(
                f"{what} in mini-batch {first:,} (epoch {(first - 1) // self.per_epoch + 1}): "
                f"lower the learning rate, which is {self.config.lr:g}; {kept}"
            )
        return losses

    def _save(self) -> None:
        if self.out is None:
            return
        position = self.position
        recent = self.recent[: position.done % self.config.log_every]
        write_state(self.out / STATE_FILE, position, self.model, self.step.state, recent)
        write_record(self.out / RECORD_FILE, self._record())
        self.saved = position.done
        if position.done < self.total:
            _remove(self.out / MODEL_FILE)  # of an earlier run

    def _save_model(self, record: RunRecord) -> None:
        assert self.out is not None
        info = ModelInfo(
            model=self.config.model if self.options else type(self.model).__name__,
            data=self.config.data,
            classes=self.dataset.classes,
            mean=self.dataset.mean,
            std=self.dataset.std,
            seed=self.config.seed,
            epochs=self.epochs,
            test_accuracy=record.test_accuracy,
            options=self.options,
        )
        save_model(self.out / MODEL_FILE, self.model, info)

    def _take_up(self, state: Path) -> None:
        found, recent = read_state(state, self.model, self.step.state)
        check_continues(found, self.position, state)
        if found.done > self.total:
            raise ConfigurationError(
                f"{self.out} holds a run of {found.done // self.per_epoch} epochs; expected at most "
                f"{self.epochs}: ask for more epochs, or choose another folder"
            )
        if found.config.threads != self.threads:
            self.step.notes.append(
                f"resumed with {self.threads} threads after {found.config.threads}: the last bits may differ"
            )
        if found.done % self.config.log_every and found.losses and found.losses[-1][0] == found.done < self.total:
            found.losses.pop()  # the short entry at what then was the end
        self.position = Position(
            self.config, found.labels, found.done, found.losses, found.epoch_accuracy, found.seconds
        )
        self.recent[: len(recent)] = recent
        self.saved = found.done

    def _batches(self, epoch: int, first: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the mini-batches of an epoch from number ``first`` on."""
        size = self.config.batch_size
        order = torch.from_numpy(epoch_order(len(self.labels), seed=self.config.seed, epoch=epoch)).to(self.device)
        # Gathers begin at the same places whether resumed or not, so that every batch lies at the same
        # alignment in memory, on which the order of a kernel's sums may depend.
        batches = max(1, _GATHER // size)
        for start in range(first - first % batches, self.per_epoch, batches):
            where = order[start * size : (start + batches) * size]
            pairs = zip(torch.split(self._gather(where), size), torch.split(self.labels[where], size), strict=True)
            for number, pair in enumerate(pairs, start):
                if number >= first:
                    yield pair

    def _gather(self, where: torch.Tensor) -> torch.Tensor:
        return normalize(self.images[where], self.dataset.mean, self.dataset.std)

    def _record(self) -> RunRecord:
        position = self.position
        return RunRecord(
            config=self.config,
            finished=position.done == self.total,
            parameters=sum(value.numel() for value in self.model.parameters()),
            mini_batches=position.done,
            losses=tuple(position.losses),
            epoch_accuracy=tuple(position.epoch_accuracy),
            test_accuracy=position.epoch_accuracy[-1] if position.epoch_accuracy else None,
            seconds=position.seconds,
            steps_per_second=position.done / position.seconds if position.seconds else None,
            prepare_seconds=self.prepare_seconds,
            notes=(self.step.describe(), *self.step.notes),
            environment=current_environment("safetensors"),
        )

    def _title(self) -> str:
        config = self.config
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        epochs = "1 epoch" if self.epochs == 1 else f"{self.epochs} epochs"
        begun = f"; resumed after mini-batch {self.position.done:,}" if self.position.done else ""
        return (
            f"{config.model} on {config.data}: {epochs} of {self.per_epoch:,} mini-batches of {config.batch_size}, "
            f"SGD, lr {config.lr:g}, momentum {config.momentum:g}, seed {config.seed}; "
            f"{self.step.describe()}, {threads}{begun}"
        )


def _next(done: int, intervals: list[int]) -> int:
    """Return the next number of mini-batches at which one of the intervals ends."""
    return min((done // interval + 1) * interval for interval in intervals)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise TwoscaleError(f"cannot remove {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def _deferred_interrupt() -> Iterator[threading.Event]:
    """Let Ctrl-C set an event, so that a step is never left half done; the second one ends at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # only the main thread may change what a signal does
        return

    def note(_signal: int, _frame: FrameType | None) -> None:
        event.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before: Any = signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
