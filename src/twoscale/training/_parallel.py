"""A step of several processes: DistributedDataParallel averages the gradients of their shares of a batch."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from twoscale.training._freezing import part_of
from twoscale.training._optimizers import Optimizer, clip
from twoscale.training._ranks import Ranks
from twoscale.training._step import Gradient, reason_of, unchanged

__all__ = ["ParallelStep", "weight_of"]


def weight_of(share: int, batch: int, size: int) -> float:
    """Return the factor by which a process multiplies the sum of its images' losses.

    DistributedDataParallel averages gradients over processes. With a factor of size/batch for each loss, that is the
    gradient of the mean over the batch, also if shares are uneven.

    Args:
        share: images of this process's share that count.
        batch: images of the batch, of all processes together.
        size: number of processes.
    """
    return size / batch if share else 0.0


@contextlib.contextmanager
def _profiler_unmentioned() -> Iterator[None]:
    """Suppress dynamo's warning that it leaves out DistributedDataParallel's mark for the profiler."""
    logger = logging.getLogger("torch._dynamo.variables.ctx_manager")

    def other(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("Profiler record function")

    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


class ParallelStep:
    """A step of training ``model`` in place, the same in every process.

    Args:
        model: the same in all processes; every parameter takes part in the loss.
        optimizer: the update rule.
        gradient: how gradients are computed.
        ranks: this process.
        lr: learning rate of steps without one of their own.
        compiled: compile forward and backward.
        synchronized: processes also communicate in the forward pass, so that all need the same number of parts.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        gradient: Gradient,
        ranks: Ranks,
        *,
        lr: float,
        compiled: bool,
        synchronized: bool = False,
    ) -> None:
        self.parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self.state = optimizer.state_for(self.parameters)
        self.notes: list[str] = []
        """How it runs, and the reason if that is not as requested."""
        self._optimizer, self._gradient, self._ranks, self._lr = optimizer, gradient, ranks, lr
        self._compiled, self._synchronized = compiled, synchronized
        self._part = part_of(optimizer, tuple(self.parameters), frozenset())
        self._model = self._wrapped(model)
        self._forward: Callable[[torch.Tensor], torch.Tensor] = self._model

    def _wrapped(self, model: nn.Module) -> DistributedDataParallel:
        device = next(iter(self.parameters.values())).device
        return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)

    def freeze(self, names: frozenset[str]) -> None:
        """Train all parameters from now on but the named ones. Every process makes the same call.

        Compiled steps must be prepared again.
        """
        if {name for name in self.parameters if name not in names} == set(self._part.names):
            return
        self._part = part_of(self._optimizer, tuple(self.parameters), names)
        for name, value in self.parameters.items():
            value.requires_grad_(name not in names)
        # DistributedDataParallel waits for the gradients that it was constructed with.
        model = self._model.module
        del self._forward, self._model
        gc.collect()
        self._model = self._wrapped(model)
        self._forward = self._model

    def prepare(self, images: torch.Tensor, labels: torch.Tensor, batches: Iterable[tuple[int, int]]) -> None:
        """Compile forward and backward if requested. No tensor of the model is changed.

        If it fails in any process, all run eagerly, and ``notes`` says so.

        Args:
            images: this process's share of a batch.
            labels: theirs.
            batches: sizes of the batches to come, as (this process's share, all images).
        """
        if not self._compiled:
            return
        failure: str | None = None
        module = self._model.module
        with unchanged(module.state_dict(keep_vars=True).values()), torch.random.fork_rng(devices=[]):
            try:
                compiled = torch.compile(self._model, dynamic=False)
                # Without communication, since a process that cannot compile would keep the others waiting. no_sync
                # alone does not
                # prevent the first forward pass's broadcast of buffers.
                self._model.require_forward_param_sync = False
                quiet = warnings.catch_warnings(action="ignore")
                with self._model.no_sync(), torch.enable_grad(), quiet, _profiler_unmentioned():
                    for share, batch in batches:
                        mine = max(share, 1)
                        for part, their in self._parts(images[:mine], labels[:mine], share, batch):
                            value = self._gradient.loss(compiled, part, their, reduction="sum")
                            value.backward()  # type: ignore[no-untyped-call]
                self._forward = compiled
            except Exception as error:  # a missing compiler, or a bug in it
                failure = reason_of(error)
        self._model.require_forward_param_sync = True
        for parameter in self.parameters.values():
            parameter.grad = None
        failures = [reason.decode() for reason in self._ranks.gathered((failure or "").encode()) if reason]
        if failures:
            self.notes.append(f"torch.compile failed ({failures[0]}): it runs eagerly instead")
            self._forward, self._compiled = self._model, False

    def describe(self) -> str:
        """Return one line on how steps run."""
        how = "compiled" if self._compiled else "eagerly"
        return f"steps run {how} in {self._ranks.size} processes, gradients averaged over {self._ranks.backend}"

    def __call__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        loss: torch.Tensor,
        lr: torch.Tensor | None,
        *,
        share: int,
        batch: int,
    ) -> None:
        """Take one step.

        Args:
            images: this process's share, (n, C, H, W), n at least 1.
            labels: (n,), int64.
            loss: 0-dimensional; this process's part of the batch's mean loss, before the update, is written here.
            lr: 0-dimensional: the learning rate. Default: the one of all steps.
            share: number of images that count: n, or 0 for a process without images in this batch.
            batch: images of the batch, of all processes together.
        """
        weight = weight_of(share, batch, self._ranks.size)
        parts = self._parts(images, labels, share, batch)
        loss.zero_()
        for number, (some, their) in enumerate(parts, 1):
            alone = self._model.no_sync() if number < len(parts) else contextlib.nullcontext()
            with alone, torch.enable_grad(), warnings.catch_warnings():
                # "Grad strides do not match bucket view strides", which costs a copy.
                warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
                value = self._gradient.loss(self._forward, some, their, reduction="sum") * weight
                value.backward()  # type: ignore[no-untyped-call]
            loss += value.detach() / self._ranks.size
        parameters = self._part.parameters(self.parameters)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        with torch.no_grad():
            if self._gradient.clip_norm is not None:
                gradients = clip(gradients, self._gradient.clip_norm)
            rate = self._lr if lr is None else lr
            self._part.optimizer.update([p.detach() for p in parameters], gradients, self._part.state(self.state), rate)
        for parameter in parameters:
            parameter.grad = None

    def _parts(
        self, images: torch.Tensor, labels: torch.Tensor, share: int, batch: int
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return the parts of this process's share.

        If processes communicate in the forward pass, all have as many parts as the largest share, and some parts are
        empty. The image of a process without a share is left out, since it would count in the statistics.
        """
        if self._synchronized:
            images, labels = images[:share], labels[:share]
        split = zip(*(tensor.tensor_split(self._gradient.accumulation) for tensor in (images, labels)), strict=True)
        largest = math.ceil(batch / self._ranks.size)
        return [part for i, part in enumerate(split) if len(part[0]) or (self._synchronized and i < largest)]
