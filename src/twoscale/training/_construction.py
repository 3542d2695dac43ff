"""A run's model, its device, and the step that trains it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from twoscale import models
from twoscale.data import Dataset
from twoscale.errors import ConfigurationError
from twoscale.training._config import TrainConfig
from twoscale.training._graphed import GraphedStep
from twoscale.training._images import DeviceImages
from twoscale.training._initialization import whiten, zero_init_residual
from twoscale.training._optimizers import create_optimizer
from twoscale.training._parallel import ParallelStep
from twoscale.training._quantized import QuantizedModel, quantized
from twoscale.training._ranks import Ranks
from twoscale.training._schedule import warmup_updates
from twoscale.training._step import Gradient, Step

__all__ = ["AnyStep", "as_expected", "create_model", "create_step"]

AnyStep = Step | GraphedStep | ParallelStep

_WORTH_RECORDING = 10_000
"""Number of mini-batches from which on recording the step, which takes 1 to 2 s, pays off."""
_WORTH_COMPILING = 250_000
"""Number of images from which on compiling the step for a GPU, which takes up to a minute, pays off."""


def create_model(
    config: TrainConfig, dataset: Dataset, model: nn.Module | None, options: dict[str, Any], ranks: Ranks
) -> tuple[nn.Module, torch.device]:
    """Return the model with its initial weights on its device, and the device.

    Args:
        config: names the model and its initialization.
        dataset: its patches determine a whitening first convolution.
        model: used instead, on its own device. With ``quantize`` it is where training begins.
        options: of the named model.
        ranks: this process.

    Raises:
        ConfigurationError: there is no GPU, there is nothing to train, or the model does not support the
        initialization.
    """
    if model is None:
        if config.start is not None:
            model = models.load(config.model, config.start, **options)
        else:
            model = models.create(config.model, seed=config.seed, **options)
        if config.device == "cuda" and not torch.cuda.is_available():
            raise ConfigurationError("device is cuda, but PyTorch finds no GPU; use --device cpu")
        if config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available()):
            model.to("cuda")
    if not any(value.requires_grad for value in model.parameters()):
        raise ConfigurationError(f"{type(model).__name__} has no parameters to train; let some require gradients")
    if config.zero_init_residual:
        zero_init_residual(model)
    if config.whiten:
        whiten(model, dataset)
    if config.quantize is not None:
        device = next(model.parameters()).device
        model = quantized(model.to("cpu"), dataset, config, ranks).to(device)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model, next((value.device for value in model.parameters()), torch.device("cpu"))


def as_expected(dataset: Dataset, config: TrainConfig) -> Dataset:
    """Return a data set whose images are normalized as a run's configuration says, or as its weights expect.

    Raises:
        ConfigurationError: not one mean and one deviation per channel.
    """
    known = None
    if config.start is not None:
        known = models.read_info(Path(config.start)) or models.published(config.model)
        known = known if known is not None and len(known.mean) == len(dataset.mean) else None
    mean = config.mean or (dataset.mean if known is None else tuple(known.mean))
    std = config.std or (dataset.std if known is None else tuple(known.std))
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != len(dataset.mean):
            raise ConfigurationError(
                f"{name} has {len(values)} numbers, and images of {dataset.name} have {len(dataset.mean)} channels; "
                "give one per channel"
            )
    return dataclasses.replace(dataset, mean=mean, std=std)


def create_step(
    config: TrainConfig, model: nn.Module, images: DeviceImages, ranks: Ranks, *, mini_batches: int
) -> AnyStep:
    """Return the step of a run, in the way that its configuration requests or that pays off. Its notes say what did not
    work.

    Args:
        config: of the run, with every default filled in.
        model: on its device.
        images: where steps of a CUDA graph take batches from.
        ranks: this process.
        mini_batches: of the run.
    """
    how, notes = config.step, list[str]()
    if config.quantize is not None:
        if how not in ("auto", "eager"):
            notes.append(f"an integer network is trained eagerly, not by {how} steps")
        how = "eager"
    warmup = warmup_updates(config, math.ceil(len(images) / config.batch_size))
    if warmup >= mini_batches:
        notes.append(
            f"the warm-up of {warmup:,} updates does not end in this run of {mini_batches:,}: the learning rate never "
            "reaches its peak"
        )
    gpu = images.labels.device.type == "cuda"
    if how == "auto":
        if gpu:
            how = "compiled" if (config.epochs or 0) * len(images) >= _WORTH_COMPILING else "cuda-graph"
        else:
            how = "captured" if mini_batches >= _WORTH_RECORDING else "eager"
    if how == "cuda-graph" and not gpu:
        notes.append("CUDA graphs need a GPU: it runs eagerly instead")
        how = "eager"
    if images.streamed and gpu and how in ("cuda-graph", "compiled"):
        if config.step != "auto":
            notes.append(
                "pictures that are decoded when they are used cannot be part of a CUDA graph: none is recorded"
            )
        how = "eager" if how == "cuda-graph" else how
    teacher = model.teacher if isinstance(model, QuantizedModel) else None
    optimizer, gradient = create_optimizer(config, model), Gradient.of(config, teacher)
    step: AnyStep
    if ranks.size > 1:
        if config.step in ("captured", "cuda-graph"):
            notes.append(f"{config.step} steps are for one process: it runs eagerly instead")
        step = ParallelStep(
            model,
            optimizer,
            gradient,
            ranks,
            lr=config.lr,
            compiled=how == "compiled",
            synchronized=config.sync_batch_norm,
        )
    elif gpu and how in ("cuda-graph", "compiled") and not images.streamed:
        step = GraphedStep(model, optimizer, images, gradient, compiled=how == "compiled", lr=config.lr)
    else:
        step = Step(model, optimizer, how, lr=config.lr, gradient=gradient)
    step.notes += notes
    return step
