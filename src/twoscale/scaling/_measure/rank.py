"""One rank of a launch: cores, threads, process group, then the function; started by torchrun, or alone.

    torchrun ... -m twoscale.scaling._measure.rank JOB_FOLDER

Reads ``job.json``; rank 0 writes what the function returned to ``result.json``; a rank that fails writes
``failure-RANK.json``.
"""

from __future__ import annotations

import faulthandler
import inspect
import os
import sys
import time
import traceback
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec

from twoscale._environment import collect_seldom
from twoscale._files import write_bytes
from twoscale._launching.processes import die_with_parent, leave, pin, wait_for_group, wait_until
from twoscale.errors import TwoscaleError
from twoscale.scaling._measure.agents import DONE, FAILURE, FOLDER, JOB, PID, RESULT, Failure, Job, function_of
from twoscale.scaling._measure.records import decode

_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "bad_alloc",
    "bad allocation",
    "could not create a memory object",  # oneDNN
    "can't start new thread",
)


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(part in text for part in _OUT_OF_MEMORY)


def _in_a_line(error: BaseException) -> str:
    """Return an error's message in one line, after the name of its type where the error is not ours."""
    text = " ".join(str(error).split())
    if isinstance(error, TwoscaleError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def task_type(function: Callable[[Any], object]) -> Any:
    """Return the type of a function's only argument."""
    (name,) = inspect.signature(function).parameters
    return typing.get_type_hints(function)[name]


def _run(job: Job) -> object:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(job.threads_per_rank)
    if job.memory_limit_bytes is not None:
        import resource

        # RLIMIT_DATA counts private writable memory: what is used, unlike RLIMIT_AS, which counts mapped libraries.
        resource.setrlimit(resource.RLIMIT_DATA, (job.memory_limit_bytes, job.memory_limit_bytes))
    if job.device == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        # gloo beside NCCL carries what is exchanged between measurements, from host memory.
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    function = function_of(job.target)
    return function(decode(job.task, task_type(function)))


def main() -> None:
    """Do the job in the folder named by the only argument."""
    die_with_parent()
    collect_seldom()
    faulthandler.enable(all_threads=False)  # where a crash came from is in the log, and so in the record
    folder = Path(sys.argv[1])
    os.environ[FOLDER] = str(folder)
    # Now: a job may take these variables away, to train in each rank alone.
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    (folder / PID.format(rank)).write_text(str(os.getpid()))
    job = msgspec.json.decode((folder / JOB).read_bytes(), type=Job)
    if job.pin:
        pin(rank - job.first_rank, job.ranks, job.threads_per_rank)
    try:
        result = _run(job)
        if rank == 0:
            write_bytes(folder / RESULT, msgspec.json.encode(result))
    except Exception as error:
        traceback.print_exc()
        kind: Literal["out-of-memory", "crash"] = "out-of-memory" if _is_out_of_memory(error) else "crash"
        failure = Failure(kind, _in_a_line(error), time.time())
        write_bytes(folder / FAILURE.format(rank), msgspec.json.encode(failure))
        leave(1)  # a rank whose peers are gone may wait for them in destructors
    (folder / DONE.format(rank)).touch()
    wait_until(lambda: len(list(folder.glob(DONE.format("*")))) >= job.ranks)
    if job.ranks < world_size:
        wait_for_group(world_size)
    leave(0)


if __name__ == "__main__":
    main()
