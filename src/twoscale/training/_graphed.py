"""Steps on a GPU as CUDA graphs: gather, shift, normalize, forward, backward, update; many steps in one graph.

With small batches a GPU waits for the processor that launches its kernels. A graph launches them all at once; the
smaller the batch, the more steps it has. All its inputs and outputs have fixed addresses: the indices of its images,
the learning rates, and the losses.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from twoscale.training._freezing import part_of
from twoscale.training._images import DeviceImages
from twoscale.training._optimizers import Optimizer
from twoscale.training._step import Gradient, reason_of, unchanged

__all__ = ["GraphedStep"]

_IMAGES_PER_GRAPH = 256
"""The steps of one graph have about this many images together."""
_WARM_UP = 3
"""Runs before recording, for compilation, choice of convolutions and first allocations."""


@dataclass(frozen=True)
class _Graph:
    """Recorded steps, and the tensors that they read and write."""

    replay: Callable[[], None]
    where: torch.Tensor
    """(steps, batch), int64."""
    rates: torch.Tensor
    """(steps,)."""
    losses: torch.Tensor
    """(steps,)."""


class GraphedStep:
    """Steps of training ``model`` in place, on its GPU.

    Args:
        model: as for :class:`~twoscale.training._step.Step`.
        optimizer: the update rule.
        images: where batches come from.
        gradient: how gradients are computed.
        compiled: compile forward and backward of full batches first.
        lr: learning rate of steps without one of their own.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: Optimizer,
        images: DeviceImages,
        gradient: Gradient,
        *,
        compiled: bool,
        lr: float,
    ) -> None:
        self.parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self.state = optimizer.state_for(self.parameters)
        self.notes: list[str] = []
        """How it runs, and the reason if that is not as requested."""
        self._model, self._optimizer, self._images, self._gradient = model, optimizer, images, gradient
        self._compiled, self._lr = compiled, lr
        self._frozen = frozenset[str]()
        self._part = part_of(optimizer, tuple(self.parameters), self._frozen)
        self._graphs: dict[tuple[int, int, frozenset[str]], _Graph] = {}
        self._dtype = next(iter(self.parameters.values())).dtype
        self._pool: Any = None
        self._recorded = True
        self._chunk = 1

    def freeze(self, names: frozenset[str]) -> None:
        """Train all parameters from now on but the named ones. Its steps must be prepared before they run."""
        self._frozen = names
        self._part = part_of(self._optimizer, tuple(self.parameters), names)
        for name, value in self.parameters.items():  # torch.compile leaves out the gradients of those
            value.requires_grad_(name not in names)

    def prepare(self, full: int, last: int, batches: int, scheduled: bool) -> None:
        """Record steps. No tensor of the model is changed.

        Args:
            full: images of a batch.
            last: images of an epoch's last batch, less than ``full``; 0: there is none.
            batches: full batches of an epoch.
            scheduled: whether steps get learning rates.
        """
        self._chunk = max(1, min(batches, _IMAGES_PER_GRAPH // full))
        loss = self._loss
        if self._compiled:
            try:
                fast = torch.compile(self._loss, dynamic=False)
                with self._unchanged():
                    self._warm_up(fast, full)
                loss = fast
            except Exception as error:  # a missing compiler, or a bug in it
                self.notes.append(f"torch.compile failed ({reason_of(error)}): steps run eagerly in the graph instead")
                self._compiled = False
        for size, count in {(full, 1), (full, self._chunk)} if batches else ():
            self._record(loss, size, count, scheduled)
        if last:
            self._record(self._loss, last, 1, scheduled)
            if self._compiled and batches:
                self.notes.append(f"the last batch of an epoch, of {last} images, is not compiled")

    def run(self, where: torch.Tensor, size: int, losses: torch.Tensor, rates: torch.Tensor | None) -> None:
        """Take some steps.

        Args:
            where: indices of all their images, one batch after the other; (steps · size,), the last may have fewer.
            size: images of a batch.
            losses: (steps,); each batch's mean loss before its update is written here.
            rates: (steps,), learning rates. Default: the one of all steps.
        """
        done = 0
        while done < len(losses):
            left = where[done * size :]
            count = self._chunk if len(left) >= self._chunk * size and len(losses) - done >= self._chunk else 1
            batch = min(size, len(left))
            graph = self._graphs[batch, count, self._frozen]
            graph.where.copy_(left[: count * batch].view(count, batch))
            if rates is not None:
                graph.rates.copy_(rates[done : done + count])
            graph.replay()
            losses[done : done + count] = graph.losses
            done += count

    def describe(self) -> str:
        """Return one line on how steps run."""
        how = "compiled, and " if self._compiled else ""
        many = "" if self._chunk == 1 else f", {self._chunk} in one"
        return f"steps are {how}replayed as CUDA graphs{many}" if self._recorded else f"steps run {how}eagerly"

    def _loss(self, where: torch.Tensor) -> torch.Tensor:
        return self._gradient.loss(self._model, self._images.take(where), self._images.labels[where])

    def _step(
        self,
        loss: Callable[[torch.Tensor], torch.Tensor],
        where: torch.Tensor,
        rate: torch.Tensor | float,
        out: torch.Tensor,
    ) -> None:
        parameters = self._part.parameters(self.parameters)
        with torch.enable_grad():
            value, gradients = self._gradient.compute(loss, parameters, where)
        with torch.no_grad():
            self._part.optimizer.update([p.detach() for p in parameters], gradients, self._part.state(self.state), rate)
            out.copy_(value)

    def _warm_up(self, loss: Callable[[torch.Tensor], torch.Tensor], size: int) -> None:
        where = torch.arange(size, device=self._images.labels.device)
        out = torch.zeros((), device=where.device, dtype=self._dtype)
        for _ in range(_WARM_UP):
            self._step(loss, where, self._lr, out)

    def _unchanged(self) -> contextlib.AbstractContextManager[None]:
        """Restore everything that steps change."""
        return unchanged([*self._model.state_dict(keep_vars=True).values(), *self.state.values()])

    def _record(self, loss: Callable[[torch.Tensor], torch.Tensor], size: int, count: int, scheduled: bool) -> None:
        device = self._images.labels.device
        where = torch.arange(size, device=device).repeat(count, 1)
        rates = torch.full((count,), self._lr, device=device, dtype=self._dtype)
        losses = torch.zeros(count, device=device, dtype=self._dtype)

        def steps() -> None:
            for i in range(count):
                self._step(loss, where[i], rates[i] if scheduled else self._lr, losses[i])

        replay: Callable[[], None] = steps
        if self._recorded:
            with self._unchanged():
                try:
                    replay = self._capture(loss, size, steps)
                except Exception as error:  # code in the module that cannot be part of a graph
                    self.notes.append(f"no CUDA graph could be recorded ({reason_of(error)})")
                    self._recorded = False
        self._graphs[size, count, self._frozen] = _Graph(replay, where, rates, losses)

    def _capture(
        self, loss: Callable[[torch.Tensor], torch.Tensor], size: int, steps: Callable[[], None]
    ) -> Callable[[], None]:
        """Return a function that replays ``steps``, with the same input and output tensors each time."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._warm_up(loss, size)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            steps()
        self._pool = graph.pool()
        replay: Callable[[], None] = graph.replay
        return replay
