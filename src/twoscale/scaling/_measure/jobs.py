"""What the ranks of a study's cells run: the measurements of this package, several in one launch.

Several measurements share a launch because starting Python and PyTorch takes longer than most of them. They run one
after the other in an order drawn for each launch; memory is given back between them. Each cell that is repeated is
repeated in a fresh launch.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import torch
import torch.distributed as dist

from twoscale import data, training
from twoscale._files import write_bytes
from twoscale.data import Split
from twoscale.errors import ConfigurationError
from twoscale.scaling._measure.arms import measure_arms
from twoscale.scaling._measure.bandwidth import measure_bandwidth
from twoscale.scaling._measure.clocks import epoch_time
from twoscale.scaling._measure.launch import FOLDER
from twoscale.scaling._measure.ledger import write_ledger
from twoscale.scaling._measure.peak import measure_peak
from twoscale.scaling._measure.records import EpochTime, Workload, decode
from twoscale.scaling._measure.replicas import hash_replicas, sampler_orders
from twoscale.scaling._measure.workload import create_model, device_of

__all__ = ["accuracy", "arms", "batches", "ranks", "tune", "wire"]

T = TypeVar("T")

_STEPS = {"cpu": (3, 30, 3_000), "cuda": (5, 60, 30_000)}
"""Fewest and most steps of a timed run, and the images that it should reach."""
_REPEATS = 3
"""Timed runs in a launch; their median counts."""
_VALIDATION = 10
"""One in so many training images is held back to choose learning rates on."""
_SHOWN = 12
"""Images of the data set whose orders are written down."""


def _steps(device: str, batch_size: int) -> int:
    """Return how many steps a timed run has: fixed by the batch size, never by the clock."""
    least, most, images = _STEPS[device]
    return min(most, max(least, images // batch_size))


def _clear(device: torch.device) -> None:
    """Give memory back, and count its peak from here."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident set (Linux)


def _time(workload: Workload, arm: Literal["bare", "ddp"], batch_size: int) -> EpochTime:
    workload = replace(workload, batch_size=batch_size)
    _clear(device_of(workload))
    steps = _steps(workload.device, batch_size)
    # Counted once: in the bare module.
    return epoch_time(workload, arm=arm, steps=steps, warmup=min(5, steps), repeats=_REPEATS, flops=arm == "bare")


def _shuffled(items: Sequence[T], seed: int) -> list[T]:
    """Return ``items`` in another order; the same on every rank."""
    return random.Random(seed).sample(list(items), len(items))


def batches(arguments: dict[str, Any]) -> dict[str, Any]:
    """Time the bare module at several batch sizes; one that does not fit leaves the others be.

    ``{"workload": ..., "batch_sizes": ..., "order_seed": ..., "peak": whether the matrix rate is measured too}``.
    """
    workload = decode(arguments["workload"], Workload)
    device = device_of(workload)
    rows = []
    for batch_size in _shuffled(arguments["batch_sizes"], arguments["order_seed"]):
        record, message = None, ""
        try:
            record = _time(workload, "bare", batch_size)
        except torch.OutOfMemoryError as error:
            message = " ".join(str(error).split())
        rows.append({"batch_size": batch_size, "record": record, "message": message})
    _clear(device)
    found: dict[str, Any] = {"rows": sorted(rows, key=lambda row: int(row["batch_size"])), "peak": None}
    if arguments["peak"]:
        # On a GPU PyTorch runs convolutions of float32 in TF32 by default.
        precision: Any = "bf16" if workload.precision == "bf16" else "tf32" if workload.device == "cuda" else "fp32"
        found["peak"] = measure_peak(device, precision=precision, budget_seconds=3.0, repeats=5)
    return found


def ranks(arguments: dict[str, Any]) -> list[EpochTime]:
    """Time the module, bare or in DDP: ``{"workload": ..., "runs": [[arm, batch], ...], "order_seed": ...}``."""
    workload = decode(arguments["workload"], Workload)
    found = {(arm, size): _time(workload, arm, size) for arm, size in
             _shuffled([tuple(run) for run in arguments["runs"]], arguments["order_seed"])}  # fmt: skip
    return [found[arm, size] for arm, size in arguments["runs"]]


def arms(arguments: dict[str, Any]) -> dict[str, Any]:
    """Run the arms at several batch sizes, and collectives alone.

    ``{"workload": ..., "batch_sizes": ..., "bandwidth": whether collectives of all sizes are timed too}``.
    """
    workload = decode(arguments["workload"], Workload)
    device = device_of(workload)
    found: dict[str, Any] = {"arms": [], "bandwidth": None}
    for batch_size in arguments["batch_sizes"]:
        _clear(device)
        found["arms"].append(measure_arms(replace(workload, batch_size=batch_size)))
    if arguments["bandwidth"]:
        _clear(device)
        found["bandwidth"] = measure_bandwidth(device, repeats=10, budget_seconds=5.0)
    return found


def wire(arguments: dict[str, Any]) -> dict[str, Any]:
    """Write the ledger, hash replicas and record the sampler's orders; nothing is timed.

    ``{"workload": ..., "companion": model, "parts": some of sampler, wire, replicas, "data": its name}``. A model
    without buffers has the companion beside it, which has some.
    """
    workload = decode(arguments["workload"], Workload)
    world_size = dist.get_world_size()
    names = [workload.model]
    if not any(True for _ in create_model(workload).buffers()):
        names.append(arguments["companion"])
    workloads = [replace(workload, model=name) for name in names]
    found: dict[str, Any] = {"ledgers": [], "replicas": [], "orders": [], "shown": []}
    if "wire" in arguments["parts"]:
        found["ledgers"] = [write_ledger(one) for one in workloads]
    if "replicas" in arguments["parts"]:
        found["replicas"] = [hash_replicas(one, steps=4) for one in workloads]
    if "sampler" in arguments["parts"]:
        samples = 2048 if arguments["data"] == "synthetic" else len(data.load(arguments["data"]).train)
        for told in (False, True):
            whole = sampler_orders(samples, world_size, epochs=3, set_epoch=told)
            first = whole.orders[0]
            same = [
                sum(a == b for mine, then in zip(order, first, strict=True) for a, b in zip(mine, then, strict=True))
                / sum(map(len, first))
                for order in whole.orders
            ]
            # The orders of a whole data set are long; what is kept is what they show.
            found["orders"].append({"set_epoch": told, "same_place": same, "record": replace(whole, orders=())})
            found["shown"].append(sampler_orders(_SHOWN, world_size, epochs=3, set_epoch=told))
    return found


# ---------------------------------------------------------------- accuracy


_PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def _leave_group() -> None:
    """Let this rank train by itself: without the process group, and without the variables that speak of one."""
    dist.destroy_process_group()
    for name in _PLACE:
        os.environ.pop(name, None)


def _train(values: dict[str, Any], dataset: data.Dataset) -> dict[str, Any]:
    """Train once; a run whose loss became infinite has no accuracy, and says so."""
    config = replace(msgspec.convert(values, training.TrainConfig), threads=torch.get_num_threads())
    try:
        record = training.train(config, dataset, progress=False).record
    except ConfigurationError as error:
        return {"accuracy": None, "steps": None, "seconds": None, "loss": None, "message": str(error)}
    return {
        "accuracy": record.test_accuracy,
        "steps": record.mini_batches,
        "seconds": record.seconds,
        "loss": record.losses[-1][1] if record.losses else None,
        "message": "",
    }


def _train_all(runs: Sequence[dict[str, Any]], dataset: data.Dataset) -> list[dict[str, Any]]:
    """Train every run, dealt to the ranks of this launch by their length; each trains alone."""
    rank, size = dist.get_rank(), dist.get_world_size()
    order = sorted(range(len(runs)), key=lambda i: -int(runs[i]["config"]["epochs"]))
    # Ranks end minutes apart, longer than a process group waits: they meet in the job's folder.
    folder = Path(os.environ[FOLDER])
    _leave_group()
    mine = {i: {**runs[i], **_train(runs[i]["config"], dataset)} for i in order[rank::size]}
    write_bytes(folder / f"runs-{rank}.json", msgspec.json.encode(mine))
    if rank != 0:
        return []
    while len(files := list(folder.glob("runs-*.json"))) < size:
        time.sleep(0.05)  # a rank that fails has all ended by the launcher
    parts = [msgspec.json.decode(file.read_bytes(), type=dict[int, Any]) for file in files]
    found = {i: run for part in parts for i, run in part.items()}
    return [found[i] for i in range(len(runs))]


def accuracy(arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """Train every run: ``{"runs": [{"way": ..., "equal": ..., "config": ...}, ...]}``."""
    return _train_all(arguments["runs"], data.load(arguments["runs"][0]["config"]["data"]))


def tune(arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """Train on most of the training images and test on the rest: as :func:`accuracy`, but the test set stays unseen."""
    dataset = data.load(arguments["runs"][0]["config"]["data"])
    whole = dataset.train
    kept = torch.arange(len(whole)) % _VALIDATION != 0
    part = replace(
        dataset,
        train=Split(whole.images[kept.numpy()], whole.labels[kept.numpy()]),
        test=Split(whole.images[~kept.numpy()], whole.labels[~kept.numpy()]),
    )
    return _train_all(arguments["runs"], part)
