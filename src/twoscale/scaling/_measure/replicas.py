"""Are gradients alone enough? Replicas that start alike or not, hashed after every step; and the sampler's orders.

DDP averages gradients and never sends parameters again. Replicas' parameters stay equal if they start equal and
every rank updates them alike. Buffers are another matter: batch norm's running statistics come from each rank's own
images.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DistributedSampler, TensorDataset

from twoscale.errors import ConfigurationError
from twoscale.scaling._measure.clocks import RankClock
from twoscale.scaling._measure.records import (
    DdpOptions,
    ReplicaCase,
    ReplicasRecord,
    ReplicaStep,
    SamplerRecord,
    Workload,
)
from twoscale.scaling._measure.workload import batch_stream, create_model, device_of, training_step, wrap

__all__ = ["hash_replicas", "hash_tensors", "sampler_orders"]

_HASH_BYTES = 8


def hash_tensors(tensors: Iterable[torch.Tensor]) -> bytes:
    """Return the first 8 bytes of the SHA-256 of the tensors' bytes, in order; nothing for no tensors."""
    found = list(tensors)
    if not found:
        return bytes(_HASH_BYTES)
    digest = hashlib.sha256()
    for tensor in found:
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.digest()[:_HASH_BYTES]


def _of_all(mine: bytes, ranks: RankClock) -> tuple[str, ...]:
    """Return every rank's hash, as hexadecimal digits; empty where there was nothing to hash."""
    tensor = torch.frombuffer(bytearray(mine), dtype=torch.uint8)
    rows = [torch.empty_like(tensor) for _ in range(ranks.size)]
    dist.all_gather(rows, tensor)
    hashes = [bytes(row.numpy().tobytes()) for row in rows]
    return tuple(value.hex() if any(value) else "" for value in hashes)


def _flat(tensors: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    # A view as bytes needs at least one axis.
    return (tensor.reshape(-1) for tensor in tensors)


def _equal(hashes: tuple[str, ...]) -> bool:
    return len(set(hashes)) == 1


def _case(
    workload: Workload, ranks: RankClock, steps: int, same_seed: bool, initial_broadcast: bool, buffers_broadcast: bool
) -> ReplicaCase:
    model = create_model(workload, seed=workload.seed if same_seed else workload.seed + ranks.rank)
    has_buffers = any(True for _ in model.buffers())
    options = DdpOptions(init_sync=initial_broadcast, sync_buffers="every-forward" if buffers_broadcast else "never")
    in_forward = [bytes(_HASH_BYTES)]

    def note(module: nn.Module, _: object) -> None:
        in_forward[0] = hash_tensors(_flat(module.buffers()))

    model.register_forward_pre_hook(note)
    step = training_step(workload, wrap(model, options))
    source = batch_stream(workload, ranks.rank, ranks.size)
    found: list[ReplicaStep] = []

    def record(number: int) -> None:
        found.append(
            ReplicaStep(
                step=number,
                parameters=_of_all(hash_tensors(_flat(model.parameters())), ranks),
                buffers=_of_all(hash_tensors(_flat(model.buffers())), ranks),
                buffers_in_forward=_of_all(in_forward[0], ranks),
            )
        )

    record(0)
    for number, batch in enumerate(itertools.islice(source, steps), 1):
        step(batch)
        record(number)
    return ReplicaCase(
        same_seed=same_seed,
        initial_broadcast=initial_broadcast,
        buffers_broadcast=buffers_broadcast,
        steps=tuple(found),
        parameters_equal=all(_equal(s.parameters) for s in found),
        buffers_equal=all(_equal(s.buffers) for s in found) if has_buffers else None,
        buffers_equal_in_forward=all(_equal(s.buffers_in_forward) for s in found[1:]) if has_buffers else None,
    )


def hash_replicas(workload: Workload, *, steps: int = 4) -> ReplicasRecord:
    """Train replicas in the ranks of this launch in all eight ways, each rank on its own images, and compare them.

    {same seed, different seeds} × {initial broadcast, none} × {buffers broadcast in every forward pass, never}.

    Args:
        workload: its DDP options are the experiment's own.
        steps: at least 1.

    Raises:
        ConfigurationError: no steps.
    """
    if steps < 1:
        raise ConfigurationError(f"steps is {steps}; expected at least 1")
    ranks = RankClock(device_of(workload))
    cases = tuple(
        _case(workload, ranks, steps, same_seed, initial, buffers)
        for same_seed, initial, buffers in itertools.product((True, False), repeat=3)
    )
    return ReplicasRecord(workload.model, ranks.size, cases)


def sampler_orders(
    samples: int, world_size: int, *, epochs: int = 3, seed: int = 0, set_epoch: bool = True
) -> SamplerRecord:
    """Record the orders of PyTorch's DistributedSampler, with or without telling it the epoch.

    Needs no process group.

    Args:
        samples: of the data set, at least 1.
        world_size: ranks, at least 1.
        epochs: at least 1.
        seed: of the sampler.
        set_epoch: whether ``set_epoch`` is called as each epoch begins.

    Raises:
        ConfigurationError: less than one of these.
    """
    if min(samples, world_size, epochs) < 1:
        raise ConfigurationError(f"{samples} samples, {world_size} ranks, {epochs} epochs: expected at least 1 of each")
    dataset = TensorDataset(torch.arange(samples))
    shards: list[DistributedSampler[Any]] = [
        DistributedSampler(dataset, world_size, rank, seed=seed) for rank in range(world_size)
    ]
    orders = []
    for epoch in range(epochs):
        if set_epoch:
            for shard in shards:
                shard.set_epoch(epoch)
        orders.append(tuple(tuple(int(i) for i in shard) for shard in shards))
    return SamplerRecord(
        samples=samples,
        world_size=world_size,
        epochs=epochs,
        seed=seed,
        set_epoch=set_epoch,
        orders=tuple(orders),
        order_changes=len(set(orders)) == epochs,
        covers=all(set(itertools.chain(*order)) == set(range(samples)) for order in orders),
        repeated=sum(map(len, orders[0])) - samples,
    )
