"""What the ranks of this folder's launches run."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import _create_work_from_future  # type: ignore[attr-defined]
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from tests import sweep
from tests.scaling.slow_decoder import SlowPreprocessing
from twoscale import models
from twoscale.scaling._measure import arms, breakdown, clocks, jobs
from twoscale.scaling._measure.arms import measure_arms
from twoscale.scaling._measure.bandwidth import measure_bandwidth
from twoscale.scaling._measure.breakdown import break_down
from twoscale.scaling._measure.clocks import Loop, RankClock
from twoscale.scaling._measure.collectives import collective
from twoscale.scaling._measure.comparison import compare, compare_data_parallel
from twoscale.scaling._measure.jobs import _at_work
from twoscale.scaling._measure.launch import _LOOK
from twoscale.scaling._measure.ledger import GLOO_MESSAGE, gloo_sent, observe, predict, reconcile, write_ledger
from twoscale.scaling._measure.loading import measure_loading
from twoscale.scaling._measure.optimizers import compare_optimizers
from twoscale.scaling._measure.peak import measure_memory, measure_peak
from twoscale.scaling._measure.records import DdpOptions, EpochTime, LedgerEntry, Summary, Workload
from twoscale.scaling._measure.replicas import hash_replicas
from twoscale.scaling._measure.strategies import STRATEGIES, Strategy
from twoscale.scaling._measure.tasks import Arm, ArmsResult, ArmsTask, BatchesResult, BatchesTask, RanksTask
from twoscale.scaling._measure.variants import VARIANTS, Variant, compare_variants
from twoscale.scaling._measure.workload import Batch, batch_stream, create_model, wrap
from twoscale.scaling._questions.link_model import CollectiveSample, Link, measured_step

CPU = torch.device("cpu")


# ---------------------------------------------------------------- launching


def about(arguments: dict[str, Any]) -> dict[str, Any]:
    """What a rank knows, and whether the ranks reach each other."""
    total = torch.tensor([dist.get_rank() + 1.0])
    dist.all_reduce(total)
    print("printed by a rank")
    return {
        "arguments": arguments,
        "sum": total.item(),
        "threads": torch.get_num_threads(),
        "cores": sorted(os.sched_getaffinity(0)),
        "extra": os.environ.get("EXTRA"),
    }


def at_work(arguments: dict[str, Any]) -> None:
    """Report words, each for longer than the launcher looks away."""
    for word in arguments["words"]:
        _at_work(word)
        time.sleep(4 * _LOOK)


def fail_second(_: dict[str, Any]) -> None:
    if dist.get_rank() == 1:
        raise ValueError("planted failure\nof two lines")
    dist.barrier()


def kill_second(_: dict[str, Any]) -> None:
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def abort(_: dict[str, Any]) -> None:
    os.abort()


def fill_memory(_: dict[str, Any]) -> None:
    kept = []
    while True:
        kept.append(torch.ones(1 << 24))


def hang(arguments: dict[str, Any]) -> None:
    """Say who this is, and then refuse to end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(arguments["folder"], f"pid-{dist.get_rank()}").write_text(str(os.getpid()))
    time.sleep(600)


# ---------------------------------------------------------------- the ledger


class Branches(nn.Module):
    """Parameters of two dtypes' worth of buffers, one frozen, one used before it is defined to be."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)
        self.frozen = nn.Parameter(torch.zeros(7), requires_grad=False)
        self.body = nn.Linear(3 * 32 * 32, 64)
        self.register_buffer("counts", torch.zeros(3, dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(5))
        self.register_buffer("mask", torch.zeros(11, dtype=torch.uint8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(torch.relu(self.body(x.flatten(1))))
        return logits


def _options() -> list[DdpOptions]:
    return [
        DdpOptions(),
        DdpOptions(sync_buffers="at-start"),
        DdpOptions(sync_buffers="never"),
        DdpOptions(init_sync=False),
        DdpOptions(bucket_cap_mb=0.05),
        DdpOptions(find_unused_parameters=True),
        DdpOptions(find_unused_parameters=True, bucket_cap_mb=0.05),
        DdpOptions(static_graph=True),
    ]


def ledgers(_: dict[str, Any]) -> dict[str, Any]:
    """Records of resnet18, and differences of other models in many set-ups."""
    resnet18 = write_ledger(Workload(model="resnet18", batch_size=2))
    lines: dict[str, list[str]] = {}
    counted = 0
    for name in ("net", "resnet20", "branches"):
        for options in sweep.some(_options(), 3):
            for accumulation in (1, 2) if not options.static_graph else (1,):
                model = Branches() if name == "branches" else models.create(name)
                settings: dict[str, Any] = {"mini_batches": 5, "accumulation": accumulation}
                predicted = predict(model, options, **settings)
                seen = observe(model, options, **settings)
                counted += len(seen)
                lines[f"{name} {options} {accumulation}"] = list(reconcile(predicted, seen))
    # A collective of one's own that no ledger knows.
    extra = list(predict(models.create("net"), DdpOptions()))
    planted = [*observe(models.create("net"), DdpOptions())]
    planted[-1] = LedgerEntry("backward 3", "all_reduce", "", "float32", planted[-1].bytes - 4)
    return {"resnet18": resnet18, "lines": lines, "counted": counted, "planted": reconcile(extra, planted)}


def _sent(own_only: bool) -> int:
    """Payload bytes that sockets have sent once: of this process, or of this network namespace."""
    lines = subprocess.run(["ss", "-tinpHO"], capture_output=True, text=True, check=True).stdout.splitlines()
    mine = [line for line in lines if not own_only or f"pid={os.getpid()}," in line]

    def total(field: str) -> int:
        return sum(int(number) for line in mine for number in re.findall(rf"{field}:(\d+)", line))

    return total("bytes_sent") - total("bytes_retrans")


class Files:
    """A barrier that sends nothing."""

    def __init__(self, folder: str, ranks: RankClock) -> None:
        self.store = dist.FileStore(f"{folder}/barrier", ranks.size)  # type: ignore[attr-defined]
        self.size = ranks.size
        self.count = 0

    def barrier(self) -> None:
        self.count += 1
        self.store.add(str(self.count), 1)
        while self.store.add(str(self.count), 0) < self.size:
            time.sleep(0.002)

    def window(self, read: Callable[[], tuple[int, ...]], body: Callable[[], None]) -> tuple[int, ...]:
        """How much each of the numbers read grew while every rank ran ``body``, and nothing else."""
        dist.barrier()
        self.barrier()
        before = read()
        self.barrier()
        body()
        self.barrier()
        return tuple(after - start for start, after in zip(before, read(), strict=True))


def on_sockets(arguments: dict[str, Any]) -> list[list[Any]]:
    """Predicted and counted bytes of single collectives, for every rank."""
    ranks = RankClock(CPU)
    files = Files(arguments["folder"], ranks)
    rows: list[list[Any]] = []
    cases: list[tuple[Any, int]] = [("all_reduce", s) for s in (4, 20, 1000, 247_080, 3_500_004)]
    cases += [("broadcast", s) for s in (4, 1000, 2_500_000)] + [("all_gather", 8 * ranks.size)]
    for op, size in cases:
        run, _size = collective(op, size, CPU)
        run()
        (counted,) = files.window(lambda: (_sent(True),), run)
        # The ledger counts what a rank puts in: of an all_gather, its own part.
        entry = LedgerEntry("", op, "", "float32", size // ranks.size if op == "all_gather" else size)
        payload, messages = gloo_sent(entry, ranks.rank, ranks.size)
        everyone = ranks.table([counted, payload, messages])
        rows.append([op, size, everyone.tolist()])
    return rows


# ---------------------------------------------------------------- planted sleeps


class SleepyGroup(dist.ProcessGroup):
    """The default process group with all-reduces and broadcasts that take longer."""

    def __init__(self, seconds: float) -> None:
        inner: Any = dist.group.WORLD
        super().__init__(inner.rank(), inner.size())  # type: ignore[call-arg]
        self.inner = inner
        self.seconds = seconds

    def _late(self, work: Any) -> Any:
        def sleep(done: Future[Any]) -> Any:
            time.sleep(self.seconds)
            return done.value()

        return _create_work_from_future(work.get_future().then(sleep))

    def allreduce(self, tensors: Any, opts: Any = None) -> Any:  # type: ignore[override]
        return self._late(self.inner.allreduce(tensors, opts))

    def broadcast(self, tensors: Any, opts: Any = None) -> Any:  # type: ignore[override]
        return self._late(self.inner.broadcast(tensors, opts))

    def allgather(self, outputs: Any, inputs: Any, opts: Any = None) -> Any:
        return self.inner.allgather(outputs, inputs, opts)

    def size(self) -> int:
        return int(self.inner.size())

    def rank(self) -> int:
        return int(self.inner.rank())

    def getBackendName(self) -> str:
        return "sleepy"


class Sleepy(nn.Module):
    """A module that takes longer to compute."""

    def __init__(self, module: nn.Module, seconds: float) -> None:
        super().__init__()
        self.module, self.seconds = module, seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        logits: torch.Tensor = self.module(x)
        return logits


def _create_sleepy(workload: Workload, seconds: float) -> nn.Module:
    return Sleepy(create_model(workload), seconds)


def _sleepy(source: Iterator[Batch], seconds: float) -> Iterator[Batch]:
    for batch in source:
        time.sleep(seconds)
        yield batch


@contextlib.contextmanager
def _sleepy_wrapper(seconds: float) -> Iterator[None]:
    """Let DDP itself take longer, whatever it sends."""
    forward = DistributedDataParallel.forward

    def late(self: DistributedDataParallel, *args: Any, **kwargs: Any) -> Any:
        time.sleep(seconds)
        return forward(self, *args, **kwargs)  # type: ignore[no-untyped-call]

    DistributedDataParallel.forward = late  # type: ignore[method-assign]
    try:
        yield
    finally:
        DistributedDataParallel.forward = forward  # type: ignore[method-assign]


def brief_batches(task: BatchesTask) -> BatchesResult:
    """A study's batch sizes, with less time for the matrix rate."""
    brief = functools.partial(measure_peak, sizes=(64, 128), repeats=3)
    with mock.patch.object(jobs, "measure_peak", lambda device, *, precision, **_: brief(device, precision=precision)):
        return jobs.time_batches(task)


def brief_arms(task: ArmsTask) -> ArmsResult:
    """A study's arms, with fewer rounds and less time for bandwidth."""
    brief = functools.partial(measure_bandwidth, sizes=(1024, 1 << 16, 1 << 18, 1 << 20), repeats=3)
    with (
        mock.patch.object(jobs, "measure_arms", functools.partial(measure_arms, rounds=2)),
        mock.patch.object(jobs, "measure_bandwidth", lambda device, **_: brief(device)),
    ):
        return jobs.run_arms(task)


DATA_SECONDS = 0.004


def _slow_batches(*arguments: Any) -> Iterator[Batch]:
    """The workload's batches, each for two ranks and more four milliseconds late: a source that ranks share."""
    late = DATA_SECONDS if dist.get_world_size() > 1 else 0.0
    return _sleepy(batch_stream(*arguments), late)


def slow_data_ranks(task: RanksTask) -> tuple[EpochTime, ...]:
    """A study's steps with slow data."""
    with mock.patch.object(clocks, "batch_stream", _slow_batches):
        return jobs.time_ranks(task)


def slow_data_arms(task: ArmsTask) -> ArmsResult:
    """A study's arms with slow data."""
    with mock.patch.object(arms, "batch_stream", _slow_batches):
        return jobs.run_arms(task)


def planted(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arms and loops of the small CNN with a sleep somewhere."""
    seconds = arguments["seconds"]
    workload = Workload(batch_size=4)
    rank, size = dist.get_rank(), dist.get_world_size()
    found = {}
    for where in ("nowhere", "compute", "wrapper", "communication", "data", "one rank"):
        compute = seconds if where == "compute" or (where == "one rank" and rank == 1) else 0.0
        with _sleepy_wrapper(seconds) if where == "wrapper" else contextlib.nullcontext():
            found[where] = measure_arms(
                workload,
                rounds=arguments["rounds"],
                steps=arguments["steps"],
                group=SleepyGroup(seconds if where == "communication" else 0.0),
                create=functools.partial(_create_sleepy, workload, compute),
                source=_sleepy(batch_stream(workload, rank, size), seconds if where == "data" else 0.0),
            )
    return {"arms": found, "loops": _sleepy_loops(seconds)}


def _sleepy_loops(seconds: float) -> dict[str, EpochTime]:
    """Loops with a sleep somewhere; "buffers" in a model that has some, with a sleep in every collective."""
    loops: dict[str, tuple[Arm, str, float, float]] = {
        "nowhere": ("ddp", "net", 0.0, 0.0),
        "communication": ("ddp", "net", seconds, 0.0),
        "one rank": ("ddp", "net", 0.0, seconds if dist.get_rank() == 1 else 0.0),
        "silent": ("silent", "net", seconds, seconds if dist.get_rank() == 1 else 0.0),
        "buffers": ("ddp", "resnet20", seconds, 0.0),
    }
    found = {}
    for where, (arm, model, communication, compute) in loops.items():
        group = SleepyGroup(communication)
        with (
            mock.patch.object(clocks, "wrap", lambda module, options, group=group: wrap(module, options, group)),
            mock.patch.object(clocks, "create_model", functools.partial(_create_sleepy, seconds=compute)),
        ):
            found[where] = _loop(Workload(model, batch_size=4), arm, steps=2, repeats=1, flops=False)
    return found


# ---------------------------------------------------------------- the rest of the core


def _loop(
    workload: Workload, arm: Arm, *, steps: int, warmup: int = 2, repeats: int = 2, flops: bool = True
) -> EpochTime:
    loop = Loop(workload, arm, steps=steps, warmup=warmup)
    for _ in range(repeats):
        loop.run()
    return loop.time(flops=flops)


def _planted_strategies() -> list[Strategy]:
    """A strategy that sends a number nobody predicted, and one whose prediction is a byte short."""
    flat, zero = (next(one for one in STRATEGIES if name in one.name) for name in ("flat", "ZeRO"))

    def share(model: nn.Module, workload: Workload, log: Any) -> Any:
        shared = flat.share(model, workload, log)
        token = torch.zeros(1)

        def after_update(step: int) -> None:
            if step == 2:
                dist.all_reduce(token)

        shared.after_update = after_update
        return shared

    def short(case: Any) -> list[LedgerEntry]:
        entries = list(zero.predict(case))
        entries[-1] = dataclasses.replace(entries[-1], bytes=entries[-1].bytes - 1)
        return entries

    return [
        dataclasses.replace(flat, name="one more", share=share),
        dataclasses.replace(zero, name="a byte short", predict=short),
    ]


def _strategies() -> dict[str, Any]:
    """Every strategy once, and those with planted faults."""
    fast = {"DDP", "DDP, fp16 gradients", "DDP, PowerSGD of rank 2", "ZeRO-1", "FSDP2"}
    chosen = [one for one in STRATEGIES if sweep.whole() or one.name in fast]
    brief: dict[str, Any] = {"rounds": 1, "steps": 1}
    small = Workload(batch_size=4, data="digits")
    found = compare(small, strategies=chosen, trained_steps=4, seeds=2, **brief)
    return {
        "strategies": found,
        "data parallel": compare_data_parallel(small, found[0], **brief),
        "strategies with buffers": compare(Workload("resnet20", batch_size=2), strategies=STRATEGIES, **brief)
        if sweep.whole()
        else (),
        "planted strategies": compare(Workload(batch_size=2), strategies=_planted_strategies(), **brief),
    }


OWN = Path(__file__).with_name("own_steps.py")


def _own(name: str) -> Workload:
    return Workload(model=f"{OWN}:{name}", data="its loader", batch_size=5, own_step=True)


def core(_: dict[str, Any]) -> dict[str, Any]:
    """Each measurement once, small."""
    small = Workload(batch_size=4, data="digits")
    return {
        "own step": write_ledger(_own("make")),
        "parts": break_down(small, steps=3, warmup=2),
        **_strategies(),
        "bare": _loop(small, "bare", steps=4),
        "ddp": _loop(small, "ddp", steps=4),
        "arms": measure_arms(Workload(model="resnet20", batch_size=2), rounds=2, steps=2),
        "bandwidth": measure_bandwidth(
            CPU,
            ops=("all_reduce", "all_gather", "reduce_scatter", "broadcast"),
            sizes=(1024, 65536, 1 << 20),
            repeats=5,
        ),
        "budget": measure_bandwidth(CPU, sizes=(1024, 2048), budget_seconds=0),
        "replicas": hash_replicas(Workload(model="resnet20", batch_size=2), steps=2),
        "replicas without buffers": hash_replicas(Workload(batch_size=2), steps=2),
        "peak": measure_peak(CPU, sizes=(64, 128), repeats=3),
        "half peak": measure_peak(CPU, sizes=(64,), repeats=3, precision="bf16"),
        "bf16": _loop(
            Workload("resnet20", batch_size=2, precision="bf16", channels_last=True),
            "ddp",
            steps=1,
            warmup=1,
            repeats=1,
            flops=False,
        ),
    }


def _variants() -> list[Variant]:
    """Some ways to run a step that do not compile, one that is slow, and one that fails."""
    eager, *others = VARIANTS

    def slow(workload: Workload) -> Any:
        model, step = eager.make(workload)

        def late(batch: Any) -> None:
            time.sleep(0.1)
            step(batch)

        return model, late

    def fail(workload: Workload) -> Any:
        raise RuntimeError("planted failure")

    chosen = [one for one in others if sweep.whole() or "compile" not in one.name]
    return [eager, *chosen, Variant("slow", slow), Variant("failing", fail)]


def _brief_layers() -> dict[str, Any]:
    """Layers of the small CNN, and of a step that sleeps in a layer; with less time for the roofline."""
    with (
        mock.patch.object(breakdown, "measure_peak", lambda device, **_: measure_peak(device, sizes=(64,), repeats=3)),
        mock.patch.object(breakdown, "measure_memory", functools.partial(measure_memory, size=1 << 16)),
    ):
        slow = dataclasses.replace(_own("sleepy"), model_args="part=forward and backward")
        return {
            "layers": break_down(Workload(batch_size=4, data="digits"), steps=2, warmup=2),
            "sleepy layer": break_down(slow, steps=1, warmup=2),
        }


def alone(_: dict[str, Any]) -> dict[str, Any]:
    """What there is to measure at one rank."""
    return {
        "arms": measure_arms(Workload(batch_size=2), rounds=1, steps=1),
        "bandwidth": measure_bandwidth(CPU, sizes=(1024,), repeats=3),
        "ledger": write_ledger(Workload(batch_size=2)),
        "parts": {
            part: break_down(
                dataclasses.replace(_own("sleepy"), model_args=f"part={part}"), steps=2, warmup=2, layers=False
            )
            for part in ("nowhere", "data", "forward", "backward", "update")
        },
        **_brief_layers(),
        "variants": compare_variants(Workload(batch_size=4, data="digits"), variants=_variants(), rounds=2, steps=1),
        "optimizers": compare_optimizers(
            Workload(batch_size=512, data="digits"),
            "resnet20",
            epochs=1,
            seeds=1,
            names=None if sweep.whole() else ("Adam",),
        ),
        "loading": measure_loading(
            Workload(batch_size=8, data="digits"),
            workers=(0, 2),
            steps=3,
            rounds=2,
            preprocessing=SlowPreprocessing(size=(32, 32), resize="stretch"),
        ),
        "own": {name: _loop(_own(name), "bare", steps=3, repeats=1) for name in ("make", "slow")},
    }


# ---------------------------------------------------------------- a link of known rate


class Wide(nn.Module):
    """Many parameters and little to compute: three gradient buckets of 1 to 2 MiB at the usual first limit."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(3072, 128), nn.ReLU(), nn.Linear(128, 2500), nn.ReLU(), nn.Linear(2500, 128)
        )
        self.head = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.layers(x))
        return logits


def _create_wide() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return Wide()


def _counters(interface: str) -> tuple[int, int]:
    """Bytes and packets that an interface has sent, once nothing more is on its way."""

    def read() -> tuple[int, ...]:
        folder = Path("/sys/class/net", interface, "statistics")
        return tuple(int((folder / name).read_text()) for name in ("tx_bytes", "tx_packets"))

    before, after = None, read()
    while before != after:
        time.sleep(0.05)
        before, after = after, read()
    return after[0], after[1]


QUIET = 0.05
"""Largest spread of repeated times, of their smallest, for a machine that does nothing else."""


def _spread(times: Summary) -> float:
    return times.max / times.min - 1


def shaped_link(arguments: dict[str, Any]) -> dict[str, Any]:
    """Bandwidth, arms and wire bytes over a link whose rate is set here, by rank 0, from rate to rate.

    Other programs' use of the processor only adds time: what does not repeat is measured again, a few times.
    """
    interface, script, name = arguments["interface"], arguments["script"], arguments["name"]
    options = DdpOptions(bucket_cap_mb=1)
    workload = Workload(batch_size=16, ddp=options)
    ranks = RankClock(CPU)
    found: dict[str, Any] = {"rates": []}
    for mbit in arguments["mbits"]:
        if ranks.rank == 0:
            subprocess.run([script, "rate", name, str(mbit)], check=True)
        ranks.barrier()
        link = Link("veth", mbit * 1e6 / 8)
        for _ in range(arguments["attempts"]):
            bandwidth = measure_bandwidth(CPU, sizes=(1 << 17, 1 << 19, 1 << 23), repeats=3, budget_seconds=60)
            arms = measure_arms(workload, rounds=arguments["rounds"], steps=1, create=_create_wide)
            assert arms.isolated is not None
            spread = max(map(_spread, (bandwidth.rows[-1].seconds, arms.ddp, arms.isolated)))
            if ranks.agree(spread < QUIET):
                break
        more = [CollectiveSample(row.op, row.bytes, row.seconds.median) for row in bandwidth.rows]
        step = measured_step(arms, workload.batch_size, link, more)
        found["rates"].append({"mbit": mbit, "spread": spread, "bandwidth": bandwidth, "arms": arms, "step": step})
    found["wire"] = _on_the_wire(interface, options, ranks, Files(arguments["folder"], ranks))
    return found


def _on_the_wire(interface: str, options: DdpOptions, ranks: RankClock, files: Files) -> list[dict[str, Any]]:
    """What construction and each of three steps of DDP send, as predicted, by the sockets and by the interface."""
    model = models.create("resnet20")
    predicted = predict(model, options)
    holder: dict[str, Any] = {}
    images, labels = torch.zeros(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64)

    def construct() -> None:
        holder["ddp"] = wrap(model, options)

    def step() -> None:
        nn.functional.cross_entropy(holder["ddp"](images), labels).backward()  # type: ignore[no-untyped-call]

    rows = []
    for phases, body in (
        (("construction",), construct),
        (("forward 1", "backward 1"), step),
        (("forward 2", "backward 2"), step),
        (("forward 3", "backward 3"), step),
    ):
        sockets, counted, packets = files.window(lambda: (_sent(False), *_counters(interface)), body)
        shares = [gloo_sent(entry, ranks.rank, ranks.size) for entry in predicted if entry.phase in phases]
        payload, messages = (sum(column) for column in zip(*shares, strict=True))
        table = ranks.table([payload, messages * GLOO_MESSAGE, sockets, counted, packets])
        rows.append({"phases": phases, "ranks": table.tolist()})
    return rows
