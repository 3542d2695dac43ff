"""Pictures that are decoded when they are used, by worker processes, a bounded number of batches ahead."""

from __future__ import annotations

import collections
import concurrent.futures
import os
import queue
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
from numpy.typing import NDArray

from twoscale._environment import core_count
from twoscale.data._pictures import Preprocessing
from twoscale.data._worker import Request, Worker
from twoscale.errors import DataError

__all__ = ["StreamedImages"]

_PER_REQUEST = 8
"""Pictures that a worker decodes for one request."""
_AHEAD_BYTES = 64 << 20
"""Decoded pixels that wait to be used, beyond one batch."""
_MOST_WORKERS = 32


class StreamedImages:
    """The pixels of picture files, uint8 (N, C, H, W), decoded when they are used.

    Indexing decodes nothing: ``images[10:20]`` and ``images[order]`` are again streamed. ``numpy.asarray(images)``
    decodes all of them, and :meth:`stream` decodes them batch by batch, ahead of use. Worker processes, one per core,
    start at the first use and end with the object.

    Args:
        paths: of the files.
        preprocessing: from file to pixels.
        workers: processes that decode ahead; with 0, the process that asks for a batch decodes it then. Default: one
            per core, of several processes of a host a share each.
    """

    ndim = 4
    dtype = np.dtype(np.uint8)

    def __init__(
        self, paths: Sequence[str] | NDArray[Any], preprocessing: Preprocessing, *, workers: int | None = None
    ) -> None:
        self._paths: NDArray[Any] = np.array(paths, object)
        self._how = preprocessing
        self._workers = _Workers(preprocessing, workers)

    def __len__(self) -> int:
        return len(self._paths)

    def __repr__(self) -> str:
        return f"StreamedImages({len(self)} pictures, {self._how})"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W)."""
        return len(self), *self._how.shape

    @overload
    def __getitem__(self, key: int) -> NDArray[np.uint8]: ...
    @overload
    def __getitem__(self, key: slice | NDArray[Any]) -> StreamedImages: ...
    def __getitem__(self, key: int | slice | NDArray[Any]) -> NDArray[np.uint8] | StreamedImages:
        if isinstance(key, int | np.integer):
            [only] = next(self.stream([np.array([key])]))
            return cast(NDArray[np.uint8], only)
        part = StreamedImages.__new__(StreamedImages)
        part._paths, part._how, part._workers = self._paths[key], self._how, self._workers
        return part

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("pictures are decoded when they are used, which always makes an array")
        return next(self.stream([np.arange(len(self))])).astype(dtype or np.uint8, copy=False)

    def stream(self, batches: Iterable[NDArray[Any]]) -> Iterator[NDArray[np.uint8]]:
        """Yield the pixels of batches in order, while later ones are being decoded.

        Args:
            batches: the places of the pictures of each.

        Raises:
            DataError: a picture cannot be read; the message names it.
        """
        waiting: collections.deque[_Batch] = collections.deque()
        try:
            for places in batches:
                paths = self._paths[places].tolist()
                if self._workers.count == 0:
                    yield np.stack([self._how.read(Path(path)) for path in paths])
                    continue
                waiting.append(self._workers.decode(paths))
                if len(waiting) > 1 and sum(batch.pixels.nbytes for batch in waiting) > _AHEAD_BYTES:
                    yield waiting.popleft().finished()
            while waiting:
                yield waiting.popleft().finished()
        finally:
            for batch in waiting:
                batch.cancel()

    def damaged(self) -> list[tuple[int, str]]:
        """Decode every picture, and return the place of each that cannot be read, with the reason."""
        return self._workers.check(self._paths.tolist())


class _Batch:
    """A batch that workers decode."""

    def __init__(self, pixels: NDArray[np.uint8], parts: list[concurrent.futures.Future[list[str]]]) -> None:
        self.pixels, self._parts = pixels, parts

    def finished(self) -> NDArray[np.uint8]:
        """Wait for the pixels.

        Raises:
            DataError: pictures cannot be read.
        """
        try:
            faults = [fault for part in self._parts for fault in part.result() if fault]
        except BaseException:
            self.cancel()
            raise
        if faults:
            more = f", and {len(faults) - 1} more of the same batch" if len(faults) > 1 else ""
            raise DataError(f"{faults[0]}{more}; replace it, or leave damaged pictures out (--skip-damaged)")
        return self.pixels

    def cancel(self) -> None:
        """Drop what has not begun, and wait for the rest, which writes into the array."""
        for part in self._parts:
            part.cancel()
        concurrent.futures.wait(self._parts)


class _Workers:
    """Processes that decode pictures, started when first needed."""

    def __init__(self, how: Preprocessing, count: int | None = None) -> None:
        self._how = how
        self.count = count
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        self._threads: concurrent.futures.ThreadPoolExecutor | None = None
        self._owner = os.getpid()

    def _started(self) -> concurrent.futures.ThreadPoolExecutor:
        """Return one thread per worker, which waits for its replies."""
        if self._threads is None or self._owner != os.getpid():  # a forked process has no threads of its parent's
            share = core_count() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            count = max(1, min(_MOST_WORKERS, share if self.count is None else self.count))
            self._idle, self._owner = queue.SimpleQueue(), os.getpid()
            workers = [Worker() for _ in range(count)]
            for worker in workers:
                self._idle.put(worker)
            self._threads = concurrent.futures.ThreadPoolExecutor(count, thread_name_prefix="twoscale-pictures")
            weakref.finalize(self, _end, self._owner, self._threads, workers)
        return self._threads

    def decode(self, paths: list[str]) -> _Batch:
        threads = self._started()
        pixels = np.empty((len(paths), *self._how.shape), np.uint8)
        parts = [
            threads.submit(
                _request,
                self._idle,
                Request(tuple(paths[i : i + _PER_REQUEST]), self._how),
                pixels[i : i + _PER_REQUEST],
            )
            for i in range(0, len(paths), _PER_REQUEST)
        ]
        return _Batch(pixels, parts)

    def check(self, paths: list[str]) -> list[tuple[int, str]]:
        threads = self._started()
        parts = threads.map(
            lambda i: _request(self._idle, Request(tuple(paths[i : i + _PER_REQUEST]), self._how, check=True), None),
            range(0, len(paths), _PER_REQUEST),
        )
        faults = [fault for part in parts for fault in part]
        return [(place, fault) for place, fault in enumerate(faults) if fault]


def _request(idle: queue.SimpleQueue[Worker], request: Request, into: NDArray[np.uint8] | None) -> list[str]:
    worker = idle.get()
    try:
        return worker.decode(request, into)
    finally:
        idle.put(worker)


def _end(owner: int, threads: concurrent.futures.ThreadPoolExecutor, workers: list[Worker]) -> None:
    if os.getpid() != owner:  # a forked process, in which the workers are its parent's
        return
    threads.shutdown(wait=False, cancel_futures=True)
    for worker in workers:
        worker.close()
