"""The wire ledger: every collective that DistributedDataParallel starts, predicted to the byte, and observed.

The prediction follows PyTorch 2.13 (``nn/parallel/distributed.py``, ``reducer.cpp``, ``comm.cpp``):

    construction      the number of parameters gathered from all, shapes and strides broadcast and compared, then
                      parameters and buffers broadcast from rank 0, tensors of one dtype flattened into one
    every forward     buffers broadcast from rank 0, by dtype
    first backward    one all-reduce of all gradients: the order in which they get ready is not known yet
    next forward      that order is known: buckets are rebuilt, and rank 0's are broadcast, indices then sizes
    every backward    one all-reduce per bucket

Observation takes the collectives from PyTorch's own dispatcher, through which every one passes, whatever starts it.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from twoscale.errors import ConfigurationError
from twoscale.scaling._measure.own_step import OwnStep, batch_length
from twoscale.scaling._measure.records import DdpOptions, LedgerEntry, LedgerRecord, Op, Workload
from twoscale.scaling._measure.workload import batch_stream, create_model, device_of, loss_of, training_images, wrap

__all__ = [
    "CollectiveLog",
    "buffer_broadcasts",
    "gloo_sent",
    "observe",
    "predict",
    "ready_order",
    "reconcile",
    "write_ledger",
]

_MIB = 1 << 20
_FIRST_BUCKET = 1 * _MIB
_BUCKET = 25 * _MIB
_BROADCAST = 250 * _MIB
"""Largest flattened broadcast."""


# ---------------------------------------------------------------- prediction


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _fill(tensors: Iterable[torch.Tensor], limits: Sequence[float]) -> list[tuple[torch.dtype, int]]:
    """Put tensors into buckets of one dtype each; a bucket is closed once it holds its limit or more.

    Args:
        tensors: in order.
        limits: bytes; the first bucket of a dtype takes the first, the next the second, and so on; the last stays.

    Returns:
        (dtype, bytes) of each bucket, in the order in which they were closed, those left open at the end.
    """
    closed: list[tuple[torch.dtype, int]] = []
    filling: dict[torch.dtype, int] = {}
    which: dict[torch.dtype, int] = {}
    for tensor in tensors:
        dtype = tensor.dtype
        filling[dtype] = filling.get(dtype, 0) + _bytes(tensor)
        if filling[dtype] >= limits[which.get(dtype, 0)]:
            closed.append((dtype, filling.pop(dtype)))
            which[dtype] = min(which.get(dtype, 0) + 1, len(limits) - 1)
    return closed + list(filling.items())


def _flattened(tensors: Iterable[torch.Tensor]) -> list[tuple[torch.dtype, int]]:
    """Return the broadcasts of a coalesced broadcast of tensors: dtypes in the order of their first tensor."""
    by_dtype: dict[torch.dtype, list[torch.Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    return [bucket for same in by_dtype.values() for bucket in _fill(same, [_BROADCAST])]


def buffer_broadcasts(model: nn.Module) -> tuple[int, ...]:
    """Return the bytes of each broadcast that DDP's forward pass begins with, where it broadcasts buffers."""
    return tuple(size for _, size in _flattened(model.buffers()))


def ready_order(model: nn.Module, images_nchw: Any) -> list[nn.Parameter]:
    """Return the parameters of ``model`` in the order in which a backward pass finishes their gradients.

    Args:
        model: left as it is; a copy is run.
        images_nchw: a batch, or whatever it takes.
    """
    trial = copy.deepcopy(model)
    names: list[str] = []
    for name, parameter in trial.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                lambda _, name=name: names.append(name)
            )
    trial(images_nchw).sum().backward()
    parameters = dict(model.named_parameters())
    return [parameters[name] for name in names]


def _example(model: nn.Module) -> torch.Tensor:
    return torch.zeros(2, 3, 32, 32, device=next(model.parameters()).device)


def _check(options: DdpOptions, mini_batches: int, accumulation: int) -> None:
    if min(mini_batches, accumulation) < 1:
        raise ConfigurationError(f"{mini_batches} mini-batches, accumulation {accumulation}: expected at least 1")
    if options.static_graph and accumulation > 1:
        raise ConfigurationError("static_graph with accumulation: PyTorch cannot start one under no_sync")


def predict(
    model: nn.Module,
    options: DdpOptions,
    *,
    mini_batches: int = 3,
    accumulation: int = 1,
    images_nchw: Any = None,
) -> tuple[LedgerEntry, ...]:
    """Predict the collectives of DDP; they are the same on every rank, at any number of ranks.

    Args:
        model: not yet wrapped; left as it is.
        options: how it will be wrapped.
        mini_batches: forward and backward passes after construction.
        accumulation: mini-batches of an optimizer step; all but the last of them run under ``no_sync``.
        images_nchw: images, or whatever the model takes, for the order of its gradients. Default: two black 32×32
            images.

    Raises:
        ConfigurationError: fewer mini-batches or less accumulation than 1, or accumulation with a static graph.
    """
    _check(options, mini_batches, accumulation)
    entries: list[LedgerEntry] = []

    def add(phase: str, op: Op, what: str, buckets: Iterable[tuple[torch.dtype, int]]) -> None:
        entries.extend(LedgerEntry(phase, op, what, str(d).removeprefix("torch."), size) for d, size in buckets)

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    buffers = list(model.buffers())
    if options.init_sync:
        add("construction", "all_gather", "number of parameters", [(torch.int64, 8)])
        # For each dimension its size and its stride.
        add("construction", "broadcast", "shapes and strides", [(torch.int64, 16 * sum(p.dim() for p in trained))])
        kept = [] if options.sync_buffers == "never" else buffers
        add(
            "construction",
            "broadcast",
            "parameters and buffers" if kept else "parameters",
            _flattened([*model.parameters(), *kept]),
        )
    cap = _BUCKET if options.bucket_cap_mb is None else int(options.bucket_cap_mb * _MIB)
    first = _FIRST_BUCKET if options.bucket_cap_mb is None else cap
    rebuilds = options.static_graph or not options.find_unused_parameters
    # Buckets that are never made anew follow the order of registration, and are reduced in the opposite one.
    buckets = _fill(trained, [math.inf] if rebuilds else [first, cap])[::-1]
    used = [(torch.int32, 4 * len(trained))]
    rebuilt = False
    reduced, forward_sync = 0, True
    for i in range(1, mini_batches + 1):
        # A static graph's first backward pass only counts uses; the order is noted in the second.
        if rebuilds and reduced > options.static_graph and not rebuilt:
            order = ready_order(model, _example(model) if images_nchw is None else images_nchw)
            buckets = _fill(order, [first, cap])
            rebuilt = True
            add(f"forward {i}", "broadcast", "bucket indices", [(torch.int32, 4 * (len(order) + 1))])
            add(f"forward {i}", "broadcast", "bucket sizes", [(torch.int32, 4 * len(buckets))])
        if forward_sync and options.sync_buffers == "every-forward":
            add(f"forward {i}", "broadcast", "buffers", _flattened(buffers))
        # Under no_sync the next forward pass leaves buffers alone.
        forward_sync = i % accumulation == 0
        if forward_sync:
            if options.static_graph and not reduced:
                add(f"backward {i}", "all_reduce", "used parameters", used)
            add(f"backward {i}", "all_reduce", "gradients", buckets)
            if options.find_unused_parameters and not options.static_graph:
                add(f"backward {i}", "all_reduce", "used parameters", used)
            reduced += 1
    return tuple(entries)


# ---------------------------------------------------------------- observation

_OPS: dict[str, Op] = {
    "allreduce_": "all_reduce",
    "broadcast_": "broadcast",
    "allgather_": "all_gather",
    "_allgather_base_": "all_gather",
    "reduce_scatter_": "reduce_scatter",
    "_reduce_scatter_base_": "reduce_scatter",
}


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, (list, tuple)) else []


class CollectiveLog(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every collective that is started while it is entered, from Python or C++, with its bytes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phase = ""
        self.entries: list[LedgerEntry] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Note the operator if it is a collective, and run it."""
        if func.namespace == "c10d":
            name = func._schema.name.removeprefix("c10d::")
            # (outputs, inputs) where there are both; the others work on one list of tensors, in place.
            found = _tensors(args[1 if "gather" in name or "scatter" in name else 0])
            dtype = str(found[0].dtype).removeprefix("torch.") if found else ""
            size = sum(map(_bytes, found))
            self.entries.append(LedgerEntry(self.phase, _OPS.get(name, name), "", dtype, size))
        return func(*args, **(kwargs or {}))


def observe(
    model: nn.Module,
    options: DdpOptions,
    *,
    mini_batches: int = 3,
    accumulation: int = 1,
    images_nchw: Any = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[LedgerEntry, ...]:
    """Wrap ``model``, train it a few steps, and return the collectives that were really started.

    Args:
        model: on this rank's device; changed.
        options: as for :func:`predict`.
        mini_batches: as for :func:`predict`.
        accumulation: as for :func:`predict`.
        images_nchw: as for :func:`predict`.
        group: whose ranks take part. Default: all.
    """
    _check(options, mini_batches, accumulation)
    images = _example(model) if images_nchw is None else images_nchw
    labels = torch.zeros(batch_length(images), dtype=torch.int64, device=next(model.parameters()).device)
    log = CollectiveLog()
    with log:
        log.phase = "construction"
        ddp = wrap(model, options, group)
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.01)
        for i in range(1, mini_batches + 1):
            ddp.require_backward_grad_sync = i % accumulation == 0  # what no_sync() sets
            log.phase = f"forward {i}"
            batch: Any = images if isinstance(model, OwnStep) else (images, labels)
            loss = loss_of(ddp, batch)
            log.phase = f"backward {i}"
            loss.backward()  # type: ignore[no-untyped-call]
            if i % accumulation == 0:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
    return tuple(log.entries)


def reconcile(predicted: Sequence[LedgerEntry], observed: Sequence[LedgerEntry]) -> tuple[str, ...]:
    """Compare entry by entry, in order within each phase; return one line for each difference."""

    def text(entry: LedgerEntry) -> str:
        return f"{entry.op} of {entry.bytes} bytes {entry.dtype}"

    lines = []
    phases = dict.fromkeys([entry.phase for entry in (*predicted, *observed)])
    for phase in phases:
        expected = [entry for entry in predicted if entry.phase == phase]
        seen = [entry for entry in observed if entry.phase == phase]
        for i in range(max(len(expected), len(seen))):
            if i >= len(seen):
                lines.append(f"{phase}: {expected[i].what} ({text(expected[i])}) predicted, nothing observed")
            elif i >= len(expected):
                lines.append(f"{phase}: {text(seen[i])} observed, nothing predicted")
            elif text(expected[i]) != text(seen[i]):
                lines.append(f"{phase}: {expected[i].what} predicted as {text(expected[i])}, observed {text(seen[i])}")
    return tuple(lines)


# ---------------------------------------------------------------- gloo's share of it

GLOO_MESSAGE = 48
"""Bytes of the header of each message of gloo's TCP transport (``gloo/transport/tcp/pair.h``, struct Op::preamble)."""
_GLOO_SEGMENT = 1 << 20
"""Largest piece of an all-reduce (``gloo/allreduce.h``, maxSegmentSize)."""
_ITEM_BYTES = {"int64": 8, "float64": 8, "int32": 4, "float32": 4, "float16": 2, "bfloat16": 2, "uint8": 1}


def gloo_sent(entry: LedgerEntry, rank: int, world_size: int) -> tuple[int, int]:
    """Return the payload bytes and messages that gloo's TCP transport sends from one rank for a collective.

    Each message has a header of :data:`GLOO_MESSAGE` bytes. For every piece of payload, the sender sends
    two messages (the announcement and the payload) and the receiver one (the request).

    - all_reduce: a ring in two passes over pieces of at most 1 MiB, at least two per rank (``gloo/allreduce.cc``).
    - broadcast: a binomial tree from rank 0 (``gloo/broadcast.cc``).
    - all_gather: a ring, each rank's part in two pieces (``gloo/allgather.cc``).

    Args:
        entry: of a ledger.
        rank: 0..world_size - 1.
        world_size: at least 1.

    Raises:
        ConfigurationError: an operation without a formula here (reduce_scatter).
    """
    if world_size == 1:
        return 0, 0
    if entry.op == "broadcast":
        # In round k, ranks below 2**k send to the rank 2**k above them.
        sends = sum(rank < 1 << k and rank + (1 << k) < world_size for k in range(world_size.bit_length()))
        return sends * entry.bytes, 2 * sends + (rank != 0)
    if entry.op == "all_gather":
        pieces = 2 * (world_size - 1)
        return (world_size - 1) * entry.bytes, 3 * pieces
    if entry.op != "all_reduce":
        raise ConfigurationError(f"no wire bytes are known for {entry.op} on gloo")
    item = _ITEM_BYTES[entry.dtype]
    pieces = max(math.ceil(entry.bytes / _GLOO_SEGMENT), 2 * world_size)
    pieces = math.ceil(pieces / world_size) * world_size
    piece = math.ceil(math.ceil(entry.bytes / pieces) / item) * item
    sizes = [max(0, min(piece, entry.bytes - i * piece)) for i in range(pieces)]
    share = pieces // world_size

    def block(number: int) -> list[int]:
        start = number * share
        return [size for size in sizes[start : start + share] if size]

    def passes(of: int) -> list[int]:
        # In the first pass a rank sends all blocks but its own, in the second all but the one before.
        return [
            size
            for skipped in (of % world_size, (of - 1) % world_size)
            for number in range(world_size)
            if number != skipped
            for size in block(number)
        ]

    # The ring runs downwards: a rank receives from the one above.
    sent, received = passes(rank), passes(rank + 1)
    return sum(sent), 2 * len(sent) + len(received)


def gloo_crossing(entry: LedgerEntry, host: int, hosts: int, world_size: int) -> int:
    """Return the payload bytes of :func:`gloo_sent` that one host's ranks send to other hosts.

    Rings send between neighbours, so that one rank of each host sends to another host.

    Args:
        entry: of a ledger.
        host: 0..hosts - 1.
        hosts: with an equal number of ranks on each, in order.
        world_size: of all hosts together.
    """
    each = world_size // hosts
    mine = range(host * each, (host + 1) * each)
    if hosts == 1:
        return 0
    if entry.op == "broadcast":
        sends = [
            (rank, rank + (1 << k))
            for rank in mine
            for k in range(world_size.bit_length())
            if rank < 1 << k and rank + (1 << k) < world_size
        ]
        return sum(to not in mine for _, to in sends) * entry.bytes
    # An all-reduce's ring runs downwards, an all-gather's too: each rank gets what the one above has.
    return gloo_sent(entry, mine[0], world_size)[0]


# ---------------------------------------------------------------- the whole


def _example_of(workload: Workload, rank: int, world_size: int) -> Any:
    """Return a batch that the workload's model takes."""
    if workload.own_step:
        return next(batch_stream(workload, rank, world_size))
    shape = training_images(workload)[0].images.shape[1:]
    return torch.zeros(2, *shape, device=device_of(workload))


def write_ledger(
    workload: Workload, *, mini_batches: int = 3, accumulation: int = 1, observed: bool = True
) -> LedgerRecord:
    """Predict, and observe in the ranks of this launch, what DDP puts on the wire for a workload's model.

    Args:
        workload: gives model and options.
        mini_batches: forward and backward passes, at least 1; the third is like all later ones.
        accumulation: mini-batches of an optimizer step.
        observed: False: predict only.
    """
    model = create_model(workload)
    world_size, rank = dist.get_world_size(), dist.get_rank()
    hosts = int(os.environ.get("GROUP_WORLD_SIZE", "1"))  # set by torchrun
    settings: dict[str, Any] = {
        "mini_batches": mini_batches,
        "accumulation": accumulation,
        "images_nchw": _example_of(workload, rank, world_size),
    }
    predicted = predict(model, workload.ddp, **settings)
    parameters = list(model.parameters())
    seen = None
    if observed:
        seen = observe(create_model(workload, seed=workload.seed + rank), workload.ddp, **settings)
    backend = "nccl" if device_of(workload).type == "cuda" else "gloo"
    return LedgerRecord(
        model=workload.model,
        world_size=world_size,
        options=workload.ddp,
        mini_batches=mini_batches,
        accumulation=accumulation,
        parameters=sum(p.numel() for p in parameters),
        parameter_tensors=len(parameters),
        parameter_bytes=sum(map(_bytes, parameters)),
        buffer_bytes=sum(map(_bytes, model.buffers())),
        predicted=predicted,
        observed=seen,
        differences=() if seen is None else reconcile(predicted, seen),
        sent_bytes=tuple(sum(gloo_sent(e, r, world_size)[0] for e in predicted) for r in range(world_size))
        if backend == "gloo"
        else None,
        hosts=hosts,
        crossing_bytes=tuple(sum(gloo_crossing(e, h, hosts, world_size) for e in predicted) for h in range(hosts))
        if backend == "gloo"
        else None,
    )
