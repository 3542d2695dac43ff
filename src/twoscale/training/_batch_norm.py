"""BatchNorm over the batch of all processes: PyTorch's own on GPUs, and our own on processors.

Also checks whether BatchNorm can train on the batches of a run.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from twoscale.errors import ConfigurationError
from twoscale.training._step import unchanged

__all__ = ["alone", "check_batches", "synchronized"]


class _SumOverRanks(torch.autograd.Function):
    """A sum over processes, through which gradients flow back to all of them."""

    @staticmethod
    def forward(_: Any, x: torch.Tensor) -> torch.Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def _sum_over_ranks(x: torch.Tensor) -> torch.Tensor:
    total: torch.Tensor = _SumOverRanks.apply(x)  # type: ignore[no-untyped-call]
    return total


class _SynchronizedBatchNorm(nn.BatchNorm2d):
    """BatchNorm2d whose mean and variance are over the images of all processes, which may have different numbers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to the same shape."""
        if not self.training or not dist.is_initialized():
            return super().forward(x)
        given, axes = x.dtype, (0, 2, 3)
        x = x.to(torch.promote_types(given, torch.float32))  # bfloat16 cannot represent the number of values
        count = x.new_tensor([x.numel() // x.shape[1]])
        total = _sum_over_ranks(torch.cat([x.sum(axes), count]))
        number = total[-1].detach()
        mean = (total[:-1] / number)[:, None, None]
        centred = x - mean
        variance = _sum_over_ranks((centred * centred).sum(axes)) / number
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.flatten(), self.momentum)
            self.running_var.lerp_(variance * (number / (number - 1)), self.momentum)
        scaled = centred * torch.rsqrt(variance + self.eps)[:, None, None]
        return (scaled * self.weight[:, None, None] + self.bias[:, None, None]).to(given)


def synchronized(model: nn.Module, device: torch.device) -> nn.Module:
    """Return ``model`` with each BatchNorm2d replaced by one over all processes. Parameters and names do not change.

    On GPUs this is torch.nn.SyncBatchNorm, which does not support processors; for them there is an implementation
    here.
    """
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = _SynchronizedBatchNorm
    return model


def alone(model: nn.Module) -> None:
    """Undo :func:`synchronized`, in place."""
    for module in model.modules():
        if isinstance(module, nn.SyncBatchNorm | _SynchronizedBatchNorm):
            module.__class__ = nn.BatchNorm2d  # type: ignore[assignment]


def check_batches(
    model: nn.Module, image: torch.Tensor, *, images: int, batch: int, processes: int, accumulation: int
) -> None:
    """Check that no BatchNorm of ``model`` gets a single value per channel, which has no variance.

    Args:
        model: run on ``image`` in training mode if the run has such batches; it is not changed.
        image: (1, C, H, W), normalized.
        images: of an epoch.
        batch: images of an update.
        processes: that share it.
        accumulation: parts in which each computes its share.

    Raises:
        ConfigurationError: one does; the message names the updates and what to change.
    """

    def has_single(size: int) -> bool:
        # A process without a share computes with an image that does not count.
        return max(1, size // processes) < 2 * accumulation

    last = images % batch
    if has_single(batch):
        which = f"an update of {batch} images"
    elif last and has_single(last):
        which = f"the last update of an epoch ({images:,} images in batches of {batch})"
    else:
        return
    ways = [*["fewer processes"] * (processes > 1), *["fewer parts (accumulation)"] * (accumulation > 1)]
    was_training = model.training
    model.train()
    gpus = [image.device] if image.device.type == "cuda" else []
    try:
        with unchanged(model.state_dict(keep_vars=True).values()), torch.random.fork_rng(gpus), torch.no_grad():
            model(image)
    except ValueError as error:
        if not str(error).startswith("Expected more than 1 value per channel when training"):
            raise
        raise ConfigurationError(
            f"{type(model).__name__} has a BatchNorm that one image gives a single value a channel, which is without "
            f"variance; {which} comes down to one image: choose "
            f"{' or '.join(['another batch size', *ways])}"
        ) from error
    finally:
        model.train(was_training)
