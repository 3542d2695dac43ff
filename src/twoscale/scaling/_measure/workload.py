"""A training step to measure, built from a Workload record: model, optimizer, batches.

Everything is made here, without the training loop, so that the arms of a measurement differ in nothing but what
they are about.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from twoscale import data, models
from twoscale.data import Dataset, Preprocessing, Split
from twoscale.errors import ConfigurationError, UnknownNameError
from twoscale.models._registry import model_options
from twoscale.scaling._measure.collectives import BucketClock
from twoscale.scaling._measure.own_step import OwnStep, endless, make_step
from twoscale.scaling._measure.records import DdpOptions, Workload, is_own
from twoscale.scaling._measure.waits import WaitClock

__all__ = [
    "Batch",
    "Step",
    "batch_stream",
    "create_model",
    "device_of",
    "epoch_samples",
    "load_images",
    "loss_of",
    "silent_ddp",
    "training_images",
    "training_step",
    "without_buffers_sent",
    "wrap",
]

Batch = tuple[torch.Tensor, torch.Tensor]
"""Images (N, C, H, W), float32, normalized, and labels (N,), int64, on the rank's device."""
Step = Callable[[Batch], None]
"""One optimizer step."""

_SYNTHETIC_IMAGES = 2048


def device_of(workload: Workload) -> torch.device:
    """Return the device of this rank.

    Raises:
        ConfigurationError: there is no GPU.
    """
    if workload.device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigurationError("device is cuda, but PyTorch finds no GPU; use --device cpu")
    return torch.device("cuda", torch.cuda.current_device())


def create_model(workload: Workload, *, seed: int | None = None) -> nn.Module:
    """Make the workload's model on this rank's device, in training mode.

    Args:
        workload: names it.
        seed: of the initial weights. Default: the workload's.

    Raises:
        UnknownNameError: there is no such model, or no such data set.
    """
    if workload.own_step:
        return make_step(workload.model, workload.model_args, device_of(workload))
    classes = 10
    if workload.data != "synthetic":
        known = {description.name: description.classes for description in data.describe()}
        if workload.data in known:
            classes = known[workload.data]
        else:
            try:
                classes = len(load_images(workload.data, workload.preprocessing).classes)
            except UnknownNameError as error:
                raise UnknownNameError("data set", workload.data, ["synthetic", *known]) from error
    options = model_options(workload.model, classes, workload.model_args)
    model = models.create(workload.model, seed=workload.seed if seed is None else seed, **options)
    model = model.to(device_of(workload)).train()
    return model.to(memory_format=torch.channels_last) if workload.channels_last else model  # type: ignore[call-overload]


def wrap(
    model: nn.Module, options: DdpOptions, group: dist.ProcessGroup | None = None, **others: Any
) -> DistributedDataParallel:
    """Wrap ``model`` in DistributedDataParallel.

    Args:
        model: on this rank's device.
        options: as the measurement asks.
        group: whose ranks share gradients. Default: all.
        others: further arguments of DistributedDataParallel.

    Raises:
        ConfigurationError: this PyTorch has no such option.
    """
    arguments: dict[str, Any] = {
        "bucket_cap_mb": options.bucket_cap_mb,
        "init_sync": options.init_sync,
        "find_unused_parameters": options.find_unused_parameters,
        "static_graph": options.static_graph,
        "process_group": group,
    }
    if options.sync_buffers == "at-start":
        if "forward_sync_buffers" not in inspect.signature(DistributedDataParallel.__init__).parameters:
            raise ConfigurationError('sync_buffers="at-start" needs PyTorch 2.13 or later; use "never"')
        arguments["forward_sync_buffers"] = False
    elif options.sync_buffers == "never":
        # Deprecated since 2.13, but the only way that leaves buffers alone at construction too.
        arguments["broadcast_buffers"] = False
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        return DistributedDataParallel(model, **{**arguments, **others})


def without_buffers_sent(options: DdpOptions) -> DdpOptions:
    """Return the same options with buffers left alone."""
    return replace(options, sync_buffers="never")


def silent_ddp(
    model: nn.Module, options: DdpOptions, clock: BucketClock, group: dist.ProcessGroup | None = None
) -> DistributedDataParallel:
    """Wrap ``model`` in DistributedDataParallel that sends nothing: the replicas diverge, for timing only.

    Args:
        model: on this rank's device.
        options: as the measurement asks; buffers are left alone.
        clock: that does not communicate; it notes when each bucket is ready.
        group: whose ranks share gradients. Default: all.
    """
    wrapped = wrap(model, without_buffers_sent(options), group)
    wrapped.register_comm_hook(None, clock.hook)
    return wrapped


def loss_of(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the loss of a batch: the mean cross-entropy, or that of the user's own step."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    if isinstance(inner, OwnStep):
        loss: torch.Tensor = model(batch)
        return loss
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def training_step(
    workload: Workload,
    model: nn.Module,
    waits: WaitClock | None = None,
    *,
    at: Callable[[str], None] | None = None,
) -> Step:
    """Return one step of SGD with momentum on the mean cross-entropy of a batch; or the user's own step.

    Args:
        workload: gives learning rate, momentum and precision.
        model: bare or wrapped.
        waits: notes what each step waits for inside DDP. Default: nothing does.
        at: is called as "forward", "backward" and "update" begin.
    """
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    optimizer = (
        inner.optimizer
        if isinstance(inner, OwnStep)
        else torch.optim.SGD(model.parameters(), lr=workload.lr, momentum=workload.momentum)
    )
    precision = (
        torch.autocast(workload.device, torch.bfloat16) if workload.precision == "bf16" else contextlib.nullcontext()
    )

    def step(batch: Batch) -> None:
        if waits is not None:
            waits.begin()
        if at is not None:
            at("forward")
        with precision:
            loss = loss_of(model, batch)
        if at is not None:
            at("backward")
        loss.backward()  # type: ignore[no-untyped-call]
        if waits is not None:
            waits.end()
        if at is not None:
            at("update")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def load_images(name: str, preprocessing: Preprocessing | None) -> Dataset:
    """Load a data set. Pictures of the user's own are decoded once in a process."""
    return _decoded(name, preprocessing) if is_own(name) else data.load(name)


@functools.lru_cache(maxsize=1)
def _decoded(name: str, preprocessing: Preprocessing | None) -> Dataset:
    return data.load(name, preprocessing=preprocessing)


def _synthetic(seed: int) -> Split:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (_SYNTHETIC_IMAGES, 3, 32, 32), dtype=np.uint8)
    return Split(images, generator.integers(0, 10, _SYNTHETIC_IMAGES, dtype=np.uint8))


def training_images(workload: Workload) -> tuple[Split, tuple[float, ...], tuple[float, ...]]:
    """Return the workload's training images and labels, and the mean and standard deviation to normalize with."""
    if workload.data == "synthetic":
        return _synthetic(workload.seed), data.LAB_MEAN, data.LAB_STD
    dataset = load_images(workload.data, workload.preprocessing)
    return dataset.train, dataset.mean, dataset.std


def epoch_samples(workload: Workload, world_size: int) -> int:
    """Return the training images of an epoch of all ranks; of the user's own step, as its loader says."""
    if not workload.own_step:
        return len(training_images(workload)[0])
    loader: Any = make_step(workload.model, workload.model_args, device_of(workload)).loader
    if hasattr(loader, "dataset") and hasattr(loader.dataset, "__len__"):
        return len(loader.dataset)
    return len(loader) * workload.batch_size * world_size if hasattr(loader, "__len__") else 0


def batch_stream(workload: Workload, rank: int, world_size: int) -> Iterator[Batch]:
    """Give full batches without end: rank's share of the images, reshuffled every epoch, from memory.

    The images stay on the device as uint8; each batch is gathered and normalized when it is asked for.

    Of the user's own step, they are what its loader gives in this rank.

    Args:
        workload: names the data.
        rank: 0..world_size - 1.
        world_size: shares an epoch's order is dealt into.
    """
    device = device_of(workload)
    if workload.own_step:
        yield from endless(make_step(workload.model, workload.model_args, device).loader, device)
    split, mean, std = training_images(workload)
    images = torch.from_numpy(np.asarray(split.images)).to(device)
    labels = torch.from_numpy(split.labels.astype(np.int64)).to(device)
    layout = torch.channels_last if workload.channels_last else torch.contiguous_format

    epochs = (data.epoch_order(len(labels), seed=workload.seed, epoch=epoch) for epoch in itertools.count())
    order = np.empty(0, np.int64)
    while True:
        while len(order) < workload.batch_size:
            order = np.concatenate([order, next(epochs)[rank::world_size]])
        chosen = torch.from_numpy(order[: workload.batch_size]).to(device)
        order = order[workload.batch_size :]
        yield data.normalize(images[chosen], mean, std).contiguous(memory_format=layout), labels[chosen]
