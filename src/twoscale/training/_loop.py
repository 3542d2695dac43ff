"""The training loop.

    order of the epoch → gather uint8 → normalize → step → (every so often) losses, accuracy, checkpoint

Values are read back from the device only for log entries: each step writes its loss to its own place in a buffer, and
the buffer is read once per log entry.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType

import torch
from torch import nn

from twoscale._files import held, remove, remove_leftovers, write_record
from twoscale._launching.torchrun import launch, restarted
from twoscale.data import Dataset, Split
from twoscale.errors import ConfigurationError
from twoscale.models._files import MODEL_FILE
from twoscale.models._registry import model_options
from twoscale.training._accuracy import check_takes, correct, picture_options
from twoscale.training._batch_norm import alone, check_batches, synchronized
from twoscale.training._checkpoint import Position, SavedState, begun_here, noted, read_state, write_state
from twoscale.training._config import TrainConfig
from twoscale.training._construction import as_expected, create_model, create_step
from twoscale.training._flops import training_flops, work_of
from twoscale.training._freezing import frozen_at
from twoscale.training._graphed import GraphedStep
from twoscale.training._images import DeviceImages
from twoscale.training._interrupts import TrainingInterrupted, deferred_interrupt
from twoscale.training._parallel import ParallelStep
from twoscale.training._progress import Reporter, create_reporter, title
from twoscale.training._quantized import QuantizedModel
from twoscale.training._random_state import put_random_state, random_state, seeded
from twoscale.training._ranks import Ranks, process_group, share_of
from twoscale.training._record import NETWORK_FILE, RECORD_FILE, STATE_FILE, EpochRecord, RunRecord
from twoscale.training._results import peak_memory, run_record, save_result
from twoscale.training._schedule import learning_rates
from twoscale.training._step import numerics

__all__ = ["TrainResult", "TrainingInterrupted", "train"]

_GATHER = 256
"""Images gathered and normalized at once, few enough to stay in the processor's cache."""
_EVALUATION_BATCH = 100
_EVALUATION_BATCH_ON_GPU = 1000
_LOOK_EVERY = 64
"""Mini-batches between checks of the clock and of Ctrl-C."""
_LOOK_EVERY_ON_GPU = 1024


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

    Under torchrun, every process makes the same call, and all of them train together. Only rank 0 prints and writes.
    After torchrun has restarted the processes, the run that they had begun in ``out`` continues.

    Args:
        config: the run's configuration. Its data and preprocessing are replaced by those of ``dataset``.
        dataset: its training images are used, normalized as the configuration says, or as the weights that training
            begins with expect; else as it says itself.
        out: folder for ``model.safetensors`` (weights, once finished; with ``quantize`` the integer network,
            ``network.onnx``), ``run.json`` (:class:`RunRecord`) and
            ``training-state.safetensors`` (the checkpoint, written at the end of every epoch). What an earlier run left
            in it is replaced unless that run is resumed. None: nothing is written.
        resume: continue the run in ``out``, or begin where there is none yet. More epochs than it had extend it.
        model: any module that maps images to logits, trained in place and on its device, instead of a new one by
            the name in the configuration. With ``quantize`` it stays as it is.
        progress: show the progress on standard error.

    Returns:
        The model and the record.

    Raises:
        TrainingInterrupted: Ctrl-C; a checkpoint was written first.
        ConfigurationError: options that do not fit each other, the loss became infinite or NaN, or another process is
            training in the folder.
        DataError: the model does not take these images.
        CheckpointError: the state to resume from is damaged.
        TwoscaleError: the folder cannot be written, or the disk is full; the last checkpoint is kept.
    """
    if resume and out is None:
        raise ConfigurationError("resume needs the folder (out) of the run that is to be continued")
    with contextlib.ExitStack() as stack:
        ranks = stack.enter_context(process_group(config.device))
        reporter = create_reporter(enabled=progress and ranks.leads)
        stack.callback(reporter.close)
        config = dataclasses.replace(config, data=dataset.name, preprocessing=dataset.preprocessing).resolved()
        dataset = as_expected(dataset, config)
        assert config.threads is not None
        # Computed initial weights must have the same bits for every OMP_NUM_THREADS.
        stack.enter_context(numerics(threads=config.threads, batch_size=config.batch_size))
        run = _Run(config, dataset, out, model, reporter, ranks)
        stack.enter_context(seeded(config.seed + ranks.rank, run.device))
        stack.enter_context(numerics(threads=run.threads, batch_size=run.size))
        stack.enter_context(torch.no_grad())
        if out is not None:
            ranks.from_leader(lambda: stack.enter_context(_own(out)), NoneType)
        run.begin(resume)
        run.loop()
        result = run.finish()
        if ranks.size > 1:
            # DistributedDataParallel is in reference cycles. If they lasted until the interpreter's end, its process
            # group would abort this process.
            del run
            gc.collect()
        return result


@contextlib.contextmanager
def _own(folder: Path) -> Iterator[None]:
    with held(folder, "training"):
        for name in (MODEL_FILE, NETWORK_FILE, RECORD_FILE, STATE_FILE):
            remove_leftovers(folder / name)
        yield


class _Run:
    """A run in progress."""

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        out: Path | None,
        model: nn.Module | None,
        reporter: Reporter,
        ranks: Ranks,
    ) -> None:
        self.dataset, self.out, self.reporter, self.ranks = dataset, out, reporter, ranks
        self.options = (
            None if model is not None else model_options(config.model, len(dataset.classes), config.model_args)
        )
        """Of a model made here by its name."""
        self.model, self.device = create_model(config, dataset, model, self.options or {}, ranks)
        self.config = config = dataclasses.replace(config, device="cuda" if self.device.type == "cuda" else "cpu")
        assert config.epochs is not None  # resolved
        assert config.threads is not None
        self.epochs, self.threads = config.epochs, config.threads
        check_takes(self.model, dataset.train, dataset.mean, dataset.std, hint=picture_options(dataset))
        if config.sync_batch_norm and ranks.size > 1:
            self.model = synchronized(self.model, self.device)
        # Unless they are streamed, all images are on the model's device, so a mini-batch is a gather there.
        dtype = next((value.dtype for value in self.model.parameters()), torch.float32)
        self.images = DeviceImages(dataset, config, self.device, dtype)
        self.batch = min(config.batch_size, len(self.images))
        self.size = self._share(self.batch)
        """This process's images of a batch."""
        if self.batch < ranks.size:
            raise ConfigurationError(
                f"a batch of {self.batch} cannot be shared by {ranks.size} processes; expected at least one image each"
            )
        if not (config.sync_batch_norm and ranks.size > 1):
            check_batches(
                self.model,
                self.images.take(torch.arange(1, device=self.device)),
                images=len(self.images),
                batch=self.batch,
                processes=ranks.size,
                accumulation=config.accumulation,
            )
        self.per_epoch = math.ceil(len(self.images) / config.batch_size)
        self.total = self.epochs * self.per_epoch
        self.position = Position(
            config, zlib.crc32(dataset.train.labels.tobytes()), world_size=ranks.size, launch=launch()
        )
        self.rates = self._rates(0, dtype)
        """Learning rates of the current epoch; None if they are all the same."""
        self.frozen = frozen_at(config, self.model, self.total)
        """From which mini-batch on which parameters do not train."""
        self.work = work_of(self.model, self.images.take(torch.arange(1, device=self.device)))
        self.step = create_step(config, self.model, self.images, ranks, mini_batches=self.total)
        self.recent = torch.zeros(min(config.log_every, self.total), device=self.device, dtype=dtype)
        self.epoch_loss = torch.zeros((), device=self.device, dtype=torch.float64)
        """Sum of the losses of the current epoch, up to the last check."""
        self.prepare_seconds = 0.0
        self.news: list[str] = []
        """Changes of this session against those before it."""
        self.saved: int | None = None
        """Mini-batches done at the last checkpoint."""

    def _share(self, batch: int) -> int:
        """Return how many of a batch's images are this process's."""
        return len(range(self.ranks.rank, batch, self.ranks.size))

    def _rates(self, epoch: int, dtype: torch.dtype) -> torch.Tensor | None:
        updates = range(epoch * self.per_epoch, (epoch + 1) * self.per_epoch)
        rates = learning_rates(self.config, self.total, self.per_epoch, updates)
        return None if rates is None else torch.tensor(rates, device=self.device, dtype=dtype)

    def begin(self, resume: bool) -> None:
        """Load the checkpoint or replace it, and prepare the step."""
        if self.out is not None:
            state = self.out / STATE_FILE
            if self.ranks.from_leader(lambda: state.exists() and (resume or begun_here(state)), bool):
                self._take_up(state)
            else:
                if resume:
                    self.reporter.say(f"nothing to resume in {self.out}; starting from the beginning")
                self._save()  # also checks that the folder is writable before time is spent
        if attempt := restarted():
            where = f"after mini-batch {self.position.done:,}" if self.position.done else "from the beginning"
            self.news.append(f"a process had died: restart {attempt} continues {where}")
            self.position.notes.append(self.news[-1])
        self.model.train()
        clock = time.perf_counter()
        if self.position.done < self.total:
            before = random_state(self.device)
            if not isinstance(self.step, ParallelStep):
                for start, names in self.frozen:
                    if start > self.position.done:
                        self.step.freeze(names)
                        self._prepare()
            self.step.freeze(self._frozen())
            self._prepare()
            put_random_state(before, self.device)
        self.prepare_seconds = self._now() - clock

    def _frozen(self) -> frozenset[str]:
        """Return the names of the parameters that do not train any more."""
        return next(names for start, names in reversed(self.frozen) if start <= self.position.done)

    def _freeze(self) -> None:
        """Freeze the layers that begin to be frozen at the next mini-batch."""
        if self.position.done not in [start for start, _ in self.frozen if start]:
            return
        self.step.freeze(self._frozen())
        if isinstance(self.step, ParallelStep):
            before = random_state(self.device)
            self._prepare()
            put_random_state(before, self.device)

    def _prepare(self) -> None:
        last = len(self.images) % self.batch
        if isinstance(self.step, GraphedStep):
            self.step.prepare(self.size, last, len(self.images) // self.size, self.rates is not None)
            return
        if isinstance(self.step, ParallelStep):
            images = self.images.take(torch.arange(self.size, device=self.device))
            batches = [(self._share(batch), batch) for batch in (self.batch, last) if batch]
            self.step.prepare(images, self.images.labels[: self.size], batches)
            return
        for size in {self.size, last} - {0}:
            rate = None if self.rates is None else self.rates[0]
            self.step.prepare(self.images.take(torch.arange(size, device=self.device)), self.images.labels[:size], rate)

    def loop(self) -> None:
        """Take all remaining steps."""
        config, position = self.config, self.position
        often = _LOOK_EVERY if self.device.type == "cpu" else _LOOK_EVERY_ON_GPU
        looks = [often, config.log_every, self.per_epoch, *filter(None, [config.checkpoint_every])]
        self.reporter.start(
            title(config, self.per_epoch, self.step.describe(), self.ranks.size, position.done),
            self.total,
            position.done,
        )
        for note in [*self.news, *self.step.notes]:
            self.reporter.say(note)
        with deferred_interrupt() as interrupted:
            while position.done < self.total:
                epoch, first = divmod(position.done, self.per_epoch)
                self.rates = self._rates(epoch, self.recent.dtype)
                clock = self._now()
                take = self._steps(share_of(self.images.begin_epoch(epoch), self.batch, self.ranks), first)
                position.epoch_data_wait += self._now() - clock
                while position.done < (epoch + 1) * self.per_epoch:
                    self._freeze()
                    ahead = [start for start, _ in self.frozen if start > position.done]
                    done = min([_next(position.done, looks), *ahead])
                    take(done)
                    self.ranks.sum_(self._losses(position.done, done))
                    self.epoch_loss += self._losses(position.done, done).double().sum()
                    position.done = done
                    now = self._now()
                    position.seconds += now - clock
                    position.epoch_seconds += now - clock
                    self._look(interrupted)
                    clock = self._now()

    def _steps(self, order: torch.Tensor, first: int) -> Callable[[int], None]:
        """Return a function that continues an epoch up to a number of mini-batches of the run.

        Args:
            order: of the epoch, this process's share.
            first: the first mini-batch.
        """
        size, position = self.size, self.position
        step = self.step

        def graphed(done: int) -> None:
            assert isinstance(step, GraphedStep)
            clock = time.perf_counter()
            begin = position.done % self.per_epoch
            rates = None if self.rates is None else self.rates[begin : begin + done - position.done]
            where = order[begin * size : (begin + done - position.done) * size]
            position.epoch_data_wait += time.perf_counter() - clock
            step.run(where, size, self._losses(position.done, done), rates)

        if isinstance(step, GraphedStep):
            return graphed
        batches, recent = self._mini_batches(order, first), self.recent.unbind()

        def each(done: int) -> None:
            assert not isinstance(step, GraphedStep)
            for number in range(position.done, done):
                images, labels = next(batches)
                rate = None if self.rates is None else self.rates[number % self.per_epoch]
                loss = recent[number % self.config.log_every]
                if isinstance(step, ParallelStep):
                    last = len(self.images) % self.batch if (number + 1) % self.per_epoch == 0 else 0
                    step(images, labels, loss, rate, share=self._share(last or self.batch), batch=last or self.batch)
                else:
                    step(images, labels, loss, rate)

        return each

    def _losses(self, start: int, stop: int) -> torch.Tensor:
        """Return the buffer for the losses of mini-batches between two entries of the log."""
        first = start % self.config.log_every
        return self.recent[first : first + stop - start]

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def finish(self) -> TrainResult:
        """Write the results of a finished run."""
        for value in self.step.parameters.values():
            value.requires_grad_()
        self.model.eval()
        alone(self.model)
        if self.options is not None:
            self.model.to("cpu").to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        record = self._record()
        if self.out is not None:
            self.ranks.from_leader(lambda: self._write_results(record), NoneType)
        return TrainResult(self.model, record)

    def _look(self, interrupted: threading.Event) -> None:
        """Log, evaluate, save and stop when it is time."""
        config, position, done = self.config, self.position, self.position.done
        self.reporter.advance(done, done / position.seconds if position.seconds else 0.0)
        if done % config.log_every == 0 or done == self.total:
            self._enter_loss()
        epoch_ends = done % self.per_epoch == 0
        if epoch_ends:
            self._checked_losses()
            self._end_epoch()
        stops = self.ranks.any(interrupted.is_set(), self.device) and done < self.total
        if epoch_ends or stops or (config.checkpoint_every and done % config.checkpoint_every == 0):
            self._checked_losses()
            self._save()
        if stops:
            where = (
                f"saved after mini-batch {done:,} of {self.total:,}; continue with the same command and --resume"
                if self.out is not None
                else "nothing is saved, since no folder (out) was given"
            )
            raise TrainingInterrupted(f"interrupted: {where}")

    def _end_epoch(self) -> None:
        position = self.position
        clock = self._now()
        number = len(position.epochs) + 1
        due = number == self.epochs or number % self.config.evaluate_every == 0
        accuracy = self._accuracy() if due else None
        seconds = position.epoch_seconds
        epoch = EpochRecord(
            loss=float(self.epoch_loss) / self.per_epoch,
            accuracy=accuracy,
            seconds=seconds,
            images_per_second=len(self.images) / seconds if seconds else 0.0,
            data_wait_seconds=position.epoch_data_wait,
            evaluation_seconds=self._now() - clock,
            peak_memory_bytes=peak_memory(self.device),
            training_flops=self._flops(),
        )
        position.epochs.append(epoch)
        position.epoch_seconds = position.epoch_data_wait = 0.0
        self.epoch_loss.zero_()
        if accuracy is not None:
            self.reporter.accuracy(number, self.epochs, accuracy)

    def _flops(self) -> int | None:
        """Return the floating-point operations of the mini-batches done; None if the model has no layers to count."""
        if not self.work:
            return None
        return training_flops(self.work, self.frozen, self.position.done, len(self.images), self.batch)

    def _accuracy(self) -> float:
        """Return the test accuracy. Each process evaluates its share of the images."""
        dataset = self.dataset
        batch = _EVALUATION_BATCH if self.device.type == "cpu" else _EVALUATION_BATCH_ON_GPU
        # BatchNorm's statistics are of each process's own images. Those of the leading process are kept.
        self.ranks.broadcast(self.model.buffers())
        mine = slice(self.ranks.rank, None, self.ranks.size)
        share = Split(dataset.test.images[mine], dataset.test.labels[mine])
        with numerics(threads=self.threads, batch_size=batch):
            right = correct(
                self.model, share, dataset.mean, dataset.std, batch_size=batch, views=self.config.test_views
            )
        return int(self.ranks.sum_(torch.tensor(right, device=self.device))) / len(dataset.test)

    def _enter_loss(self) -> None:
        losses = self._checked_losses()
        mean = float(losses.double().mean())
        self.position.losses.append((self.position.done, mean))
        self.reporter.loss(self.position.done, mean)

    def _checked_losses(self) -> torch.Tensor:
        """Return the losses since the last entry.

        Raises:
            ConfigurationError: one is NaN or infinite; the message names the mini-batch.
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
        random_states = self.ranks.gathered(random_state(self.device).numpy().tobytes())
        self.ranks.broadcast(self.model.buffers())
        self.ranks.from_leader(lambda: self._write_state(random_states), NoneType)
        self.saved = self.position.done

    def _write_state(self, random_states: list[bytes]) -> None:
        assert self.out is not None
        position = self.position
        recent = self.recent[: position.done % self.config.log_every].tolist()
        saved = SavedState(position, recent, float(self.epoch_loss), random_states)
        write_state(self.out / STATE_FILE, saved, self.model, self.step.state)
        write_record(self.out / RECORD_FILE, self._record())
        if position.done < self.total:
            for name in (MODEL_FILE, NETWORK_FILE):  # of an earlier run
                remove(self.out / name)

    def _write_results(self, record: RunRecord) -> None:
        assert self.out is not None
        if isinstance(self.model, QuantizedModel):
            self.model.to_network().save(self.out / NETWORK_FILE)
        else:
            save_result(self.out / MODEL_FILE, self.model, record, self.dataset, self.options)
        write_record(self.out / RECORD_FILE, record)

    def _take_up(self, state: Path) -> None:
        saved = self.ranks.from_leader(lambda: self._read_state(state), SavedState)
        found = saved.position
        self.ranks.broadcast([*self.model.state_dict(keep_vars=True).values(), *self.step.state.values()])
        if isinstance(self.model, QuantizedModel):
            self.model.set_extra_state(self.model.get_extra_state())
        self.news += noted(found, self.position)
        if found.world_size == self.ranks.size:
            state_here = torch.frombuffer(bytearray(saved.random_states[self.ranks.rank]), dtype=torch.uint8)
            put_random_state(state_here, self.device)
        if found.done % self.config.log_every and found.losses and found.losses[-1][0] == found.done < self.total:
            found.losses.pop()  # the short entry at what then was the end
        self.position = dataclasses.replace(found, config=self.config, world_size=self.ranks.size, launch=launch())
        self.position.notes += self.news
        recent = torch.tensor(saved.recent_losses, device=self.device, dtype=self.recent.dtype)
        self.recent[: len(recent)] = recent
        self.epoch_loss.fill_(saved.epoch_loss)
        self.saved = found.done

    def _read_state(self, state: Path) -> SavedState:
        saved = read_state(state, self.position, self.model, self.step.state)
        found = saved.position
        if found.done > self.total:
            raise ConfigurationError(
                f"{self.out} holds a run of {found.done // self.per_epoch} epochs; expected at most "
                f"{self.epochs}: ask for more epochs, or choose another folder"
            )
        return saved

    def _mini_batches(self, order: torch.Tensor, first: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the mini-batches of an epoch from number ``first`` on."""
        size, position = self.size, self.position
        # Gathers begin at the same positions whether resumed or not, so that every batch has the same alignment in
        # memory. The
        # order of a kernel's sums may depend on it.
        batches = max(1, _GATHER // size)
        starts = range(first - first % batches, self.per_epoch, batches)
        places = [order[start * size : (start + batches) * size] for start in starts]
        gathered = self.images.batches(places)
        for start, where in zip(starts, places, strict=True):
            clock = time.perf_counter()
            images, labels = next(gathered), self.images.labels[where]
            position.epoch_data_wait += time.perf_counter() - clock
            pairs = zip(torch.split(images, size), torch.split(labels, size), strict=True)
            for number, pair in enumerate(pairs, start):
                if number >= first:
                    yield pair

    def _record(self) -> RunRecord:
        return run_record(
            self.position,
            self.total,
            self.model,
            self.device,
            self.ranks,
            prepare_seconds=self.prepare_seconds,
            training_flops=self._flops(),
            how=(self.step.describe(), *self.position.notes, *self.step.notes),
        )


def _next(done: int, intervals: list[int]) -> int:
    """Return the next number of mini-batches at which one of the intervals ends."""
    return min((done // interval + 1) * interval for interval in intervals)
