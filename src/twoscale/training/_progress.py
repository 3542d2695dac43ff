"""The progress of a run on standard error: a bar in a terminal, else plain lines."""

from __future__ import annotations

import sys
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from twoscale.training._config import TrainConfig
from twoscale.training._schedule import describe_schedule

__all__ = ["Reporter", "create_reporter", "per_second", "title"]

_OPTIMIZERS = {"sgd": "SGD", "lars": "LARS", "lamb": "LAMB", "adamw": "AdamW", "muon": "Muon"}


def title(config: TrainConfig, per_epoch: int, how: str, processes: int, done: int) -> str:
    """Describe a run in one line.

    Args:
        config: with every default filled in.
        per_epoch: mini-batches of an epoch.
        how: its steps run.
        processes: that share each batch.
        done: mini-batches of an earlier session.
    """
    threads = "1 thread" if config.threads == 1 else f"{config.threads} threads"
    epochs = "1 epoch" if config.epochs == 1 else f"{config.epochs} epochs"
    each = " each" if processes > 1 else ""
    begun = f"; resumed after mini-batch {done:,}" if done else ""
    return (
        f"{config.model} on {config.data}: {epochs} of {per_epoch:,} mini-batches of {config.batch_size}, "
        f"{_OPTIMIZERS[config.optimizer]}, {describe_schedule(config, per_epoch)}, "
        f"momentum {config.momentum:g}, seed {config.seed}; {how}, {threads}{each}{begun}"
    )


def per_second(rate: float) -> str:
    """Format a rate; low ones with two digits."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


class Reporter(Protocol):
    """Receives the events of a run."""

    def start(self, title: str, total: int, done: int) -> None:
        """Begin; ``total`` and ``done`` are mini-batches."""

    def advance(self, done: int, rate: float) -> None:
        """Report the number of finished mini-batches and their rate per second. Called several times a second."""

    def loss(self, done: int, value: float) -> None:
        """Report the mean loss since the last report."""

    def accuracy(self, epoch: int, epochs: int, value: float) -> None:
        """Report the test accuracy after an epoch, 0..1."""

    def say(self, line: str) -> None:
        """Print a line."""

    def close(self) -> None:
        """Remove the bar; always called."""


def create_reporter(enabled: bool = True) -> Reporter:
    """Return the reporter for this process's standard error, or a silent one."""
    if not enabled:
        return _Silent()
    console = Console(stderr=True, highlight=False)
    return _Bar(console) if console.is_terminal else _Lines()


class _Silent:
    def start(self, title: str, total: int, done: int) -> None:
        pass

    def advance(self, done: int, rate: float) -> None:
        pass

    def loss(self, done: int, value: float) -> None:
        pass

    def accuracy(self, epoch: int, epochs: int, value: float) -> None:
        pass

    def say(self, line: str) -> None:
        pass

    def close(self) -> None:
        pass


class _Lines:
    """One line per event, for logs."""

    def __init__(self) -> None:
        self._total = 0
        self._rate = 0.0

    def start(self, title: str, total: int, done: int) -> None:
        self._total = total
        self.say(title)

    def advance(self, done: int, rate: float) -> None:
        self._rate = rate

    def loss(self, done: int, value: float) -> None:
        self.say(f"mini-batch {done:,} of {self._total:,}: loss {value:.3f}, {per_second(self._rate)} mini-batches/s")

    def accuracy(self, epoch: int, epochs: int, value: float) -> None:
        self.say(f"epoch {epoch} of {epochs}: test accuracy {value:.2%}")

    def say(self, line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    def close(self) -> None:
        pass


class _Bar:
    """A bar with the latest values beside it."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            TextColumn("loss {task.fields[loss]}  accuracy {task.fields[accuracy]}  {task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            refresh_per_second=4,  # drawing slows training down
        )
        self._task = self._progress.add_task("training", total=None, loss="-", accuracy="-", rate="-", visible=False)

    def start(self, title: str, total: int, done: int) -> None:
        self.say(title)
        self._progress.update(self._task, total=total, completed=done, visible=True)
        self._progress.start()

    def advance(self, done: int, rate: float) -> None:
        self._progress.update(self._task, completed=done, rate=f"{per_second(rate)}/s")

    def loss(self, done: int, value: float) -> None:
        self._progress.update(self._task, completed=done, loss=f"{value:.3f}")

    def accuracy(self, epoch: int, epochs: int, value: float) -> None:
        self._progress.update(self._task, accuracy=f"{value:.1%}")

    def say(self, line: str) -> None:
        self._progress.console.print(line, markup=False, soft_wrap=True)

    def close(self) -> None:
        self._progress.stop()
