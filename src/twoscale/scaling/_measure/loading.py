"""What a training step waits for its batches: pictures decoded from a folder, by number of workers, and arrays.

The loader is that of ``twoscale train``: :class:`twoscale.data.StreamedImages`. Pictures of a named data set are
written to a folder first, as large JPEG files; pictures of the user's own are read from theirs.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from twoscale import data
from twoscale._environment import core_count
from twoscale.data import Preprocessing, StreamedImages
from twoscale.errors import ConfigurationError
from twoscale.scaling._measure.clocks import FreeRun, RankClock, free_running
from twoscale.scaling._measure.records import LoadingRecord, LoadingRow, Workload, is_own
from twoscale.scaling._measure.statistics import summarize
from twoscale.scaling._measure.workload import (
    Batch,
    batch_stream,
    create_model,
    device_of,
    load_images,
    training_images,
    training_step,
)

__all__ = ["measure_loading"]

_PICTURES = 256
_SIDE = 256
"""Pixels of a written picture's sides."""
_MOST_OWN = 2_048
"""Pictures of the user's own that are read."""
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"}
_TIMED = 32
"""Pictures that one process decodes alone."""


def _write_pictures(workload: Workload, folder: Path) -> tuple[list[str], NDArray[np.int64], Preprocessing]:
    """Write pictures of the workload's data as JPEG files, enlarged as photographs are; return how to read them."""
    from PIL import Image

    split, _, _ = training_images(workload)
    images = np.asarray(split.images[:_PICTURES])
    channels, height, width = images.shape[1:]
    how = Preprocessing(size=(height, width), resize="stretch", channels=channels)
    paths = []
    for number, pixels in enumerate(images):
        picture = Image.fromarray(pixels.transpose(1, 2, 0).squeeze())
        paths.append(str(folder / f"{number}.jpg"))
        picture.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths, split.labels[: len(paths)].astype(np.int64), how


def _own_pictures(folder: Path, workload: Workload) -> tuple[list[str], NDArray[np.int64], Preprocessing]:
    """Return pictures of the user's own folder; their labels, which no time depends on, are 0."""
    files = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in _SUFFIXES)
    paths = [str(path) for path in itertools.islice(files, _MOST_OWN)]
    return paths, np.zeros(len(paths), np.int64), workload.preprocessing or Preprocessing()


def _decoded(
    images: StreamedImages, labels: NDArray[np.int64], workload: Workload, order: Iterator[NDArray[np.int64]]
) -> Iterator[Batch]:
    """Give batches of pictures that are decoded by the workers of ``images``."""
    if workload.data == "synthetic":
        mean: Sequence[float] = data.LAB_MEAN
        std: Sequence[float] = data.LAB_STD
    else:
        dataset = load_images(workload.data, workload.preprocessing)
        mean, std = dataset.mean, dataset.std
    device = device_of(workload)
    first, second = itertools.tee(order)
    with contextlib.closing(images.stream(first)) as pixels:  # type: ignore[type-var]
        for part, places in zip(pixels, second, strict=True):
            batch = torch.from_numpy(part).to(device)
            yield data.normalize(batch, mean, std), torch.from_numpy(labels[places]).to(device)


def measure_loading(
    workload: Workload,
    *,
    workers: Sequence[int] = (0, 1, 2, 4),
    steps: int = 10,
    rounds: int = 5,
    watch: Callable[[str], None] | None = None,
    preprocessing: Preprocessing | None = None,
) -> LoadingRecord:
    """Time a training loop whose batches are decoded by each number of workers, and one on arrays in memory.

    Args:
        workload: what a step does.
        workers: numbers of them, with 0 first.
        steps: of a run, after one that is not timed and fills the pipeline.
        rounds: runs of each number, in turn.
        watch: is called with what is measured now.
        preprocessing: how pictures are read. Default: as is right for them.

    Raises:
        ConfigurationError: no workers, or less than one step or round.
    """
    if not workers or min(workers) < 0 or min(steps, rounds) < 1:
        raise ConfigurationError(f"{len(workers)} numbers of workers, {steps} steps, {rounds} rounds: expected some")
    ranks = RankClock(device_of(workload))
    step = training_step(workload, create_model(workload))
    folder = Path(workload.data)
    own = is_own(workload.data) and folder.is_dir()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        paths, labels, how = _own_pictures(folder, workload) if own else _write_pictures(workload, Path(name))
        how = preprocessing or how
        sources = {count: StreamedImages(paths, how, workers=count) for count in workers}
        decode = []
        for path in itertools.islice(itertools.cycle(paths), _TIMED):
            start = time.perf_counter()
            how.read(Path(path))
            decode.append(time.perf_counter() - start)
        generator = np.random.default_rng(workload.seed)

        def orders() -> Iterator[NDArray[np.int64]]:
            for _ in range(steps + 1):
                yield generator.choice(len(paths), workload.batch_size, replace=len(paths) < workload.batch_size)

        def run_folder(count: int) -> FreeRun:
            with contextlib.closing(_decoded(sources[count], labels, workload, orders())) as batches:  # type: ignore[type-var]
                step(next(batches))
                return free_running(ranks, step, batches, steps)

        arrays = batch_stream(workload, ranks.rank, ranks.size)
        for batch in itertools.islice(arrays, 3):
            step(batch)
        compute = _compute(ranks, step, next(arrays), steps)
        runs: dict[int | None, list[FreeRun]] = {count: [] for count in (*workers, None)}
        for number in range(rounds):
            if watch is not None:
                watch(f"round {number + 1} of {rounds}")
            turns = list(runs)
            shift = number % len(turns)
            for turn in turns[shift:] + turns[:shift]:
                runs[turn].append(free_running(ranks, step, arrays, steps) if turn is None else run_folder(turn))
    return LoadingRecord(
        batch_size=workload.batch_size,
        threads=torch.get_num_threads(),
        cores=core_count(),
        pictures=len(paths),
        own_pictures=own,
        shape=how.shape,
        decode=summarize(decode),
        compute=compute,
        rows=tuple(
            LoadingRow(
                "arrays" if count is None else "folder",
                count or 0,
                summarize([run.data_wait for run in taken]),
                summarize([run.step for run in taken]),
            )
            for count, taken in runs.items()
        ),
    )


def _compute(ranks: RankClock, step: Callable[[Batch], None], batch: Batch, steps: int) -> float:
    """Return the median seconds of a step that has its batch."""
    times = []
    for _ in range(steps):
        start = ranks.start()
        step(batch)
        times.append(ranks.stop() - start)
    return float(np.median(times))
