"""One training step: forward, loss, backward, update. It runs eagerly, or is recorded once and replayed.

With a mini-batch of 4, most of an eager step is not arithmetic but overhead of Python modules, autograd and the
optimizer. A recorded step is only the sequence of ATen operations, so it gives the same bits.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx

from twoscale.training._config import TrainConfig
from twoscale.training._freezing import part_of
from twoscale.training._optimizers import Optimizer, Rate, clip

__all__ = ["Gradient", "Step", "numerics", "reason_of", "unchanged"]

_NATIVE_CONVOLUTION_BATCH = 8
_TEMPERATURE = 4.0
"""Of the predictions that are compared in distillation. Its square keeps the size of gradients (Hinton et al.,
"Distilling the knowledge in a neural network", 2015)."""


@contextlib.contextmanager
def numerics(*, threads: int, batch_size: int) -> Iterator[None]:
    """Set the options of kernels that determine the last bits, for the time of the block.

    Up to a batch of 8, oneDNN's convolutions are slower than torch's own, since they reorder weights and gradients in
    every call. Whole steps of Net, captured, one thread, oneDNN against torch's own: 1.27 and 0.95 ms at a batch of 4,
    1.63 and 1.43 at 8, 2.58 and 4.11 at 16. cuDNN benchmarks its convolutions.
    """
    before = torch.get_num_threads(), bool(torch.backends.mkldnn.enabled), bool(torch.backends.cudnn.benchmark)

    def put(threads: int, onednn: bool, benchmark: bool) -> None:
        torch.set_num_threads(threads)
        torch.backends.mkldnn.enabled = onednn  # type: ignore[assignment]
        torch.backends.cudnn.benchmark = benchmark

    available = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    put(threads, available and batch_size > _NATIVE_CONVOLUTION_BATCH, True)
    try:
        yield
    finally:
        put(*before)


@contextlib.contextmanager
def unchanged(tensors: Iterable[torch.Tensor]) -> Iterator[None]:
    """Restore the values of tensors, in place, after the block."""
    kept = [(value.detach(), value.detach().clone()) for value in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for value, old in kept:
                value.copy_(old)


def reason_of(error: BaseException) -> str:
    """Return the first line of an exception, or of the cause of torch.compile's exception; or else its type's name."""
    inner = getattr(error, "inner_exception", error)
    return next((line.strip() for line in str(inner).splitlines() if line.strip()), type(inner).__name__)


@dataclass(frozen=True)
class Gradient:
    """Computes gradients of a batch's mean cross-entropy, on request in parts one after the other."""

    label_smoothing: float = 0.0
    accumulation: int = 1
    clip_norm: float | None = None
    bf16: bool = False
    distillation: float = 0.0
    """Share of the loss that is the divergence from the teacher's predictions."""
    teacher: Callable[[torch.Tensor], torch.Tensor] | None = None
    """Maps images to logits."""

    @classmethod
    def of(cls, config: TrainConfig, teacher: Callable[[torch.Tensor], torch.Tensor] | None = None) -> Gradient:
        """Return the one of a configuration."""
        return cls(
            config.label_smoothing, config.accumulation, config.clip_norm, config.precision == "bf16",
            config.distillation, teacher if config.distillation else None,
        )  # fmt: skip

    def loss(
        self,
        forward: Callable[[torch.Tensor], torch.Tensor],
        images: torch.Tensor,
        labels: torch.Tensor,
        reduction: str = "mean",
    ) -> torch.Tensor:
        """Return the cross-entropy of a batch, its logits in float32 or wider; with a teacher the mixture of losses."""
        # Without the cache of cast weights, which would outlive the recording of a step.
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False):
            logits = forward(images)
        logits = logits.float() if self.bf16 else logits
        own = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing, reduction=reduction)
        if self.teacher is None:
            return own
        with torch.no_grad():
            wanted = F.log_softmax(self.teacher(images).double() / _TEMPERATURE, 1)
        found, how = F.log_softmax(logits / _TEMPERATURE, 1), "batchmean" if reduction == "mean" else reduction
        distance = _TEMPERATURE**2 * F.kl_div(found, wanted.to(found.dtype), reduction=how, log_target=True)
        return (1 - self.distillation) * own + self.distillation * distance

    def compute(
        self,
        loss: Callable[..., torch.Tensor],
        parameters: Sequence[torch.Tensor],
        *batch: torch.Tensor,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the mean loss of a batch, and its gradients.

        Args:
            loss: of the tensors of a batch, or of a part of it.
            parameters: those that the forward does not use get zero gradients.
            batch: tensors of one length.
        """
        count = len(batch[0])
        value, gradients = torch.zeros(()), list[torch.Tensor]()
        for i, part in enumerate(zip(*(tensor.tensor_split(self.accumulation) for tensor in batch), strict=True)):
            if not len(part[0]):
                continue
            share = loss(*part)
            if len(part[0]) < count:
                share = share * (len(part[0]) / count)
            own = torch.autograd.grad(share, parameters, materialize_grads=True)
            value = value + share.detach() if i else share.detach()
            gradients = list(torch._foreach_add(gradients, own)) if i else list(own)
        return value, gradients if self.clip_norm is None else clip(gradients, self.clip_norm)


class Step:
    """A step of training ``model`` in place.

    Args:
        model: any module that maps images to logits. Recording it assumes that its forward does the same
            operations for every batch of one size; Python side effects are not repeated.
        optimizer: the update rule.
        how: "eager", "captured" or "compiled". The gain of compiling depends on the network: on 2 cores ResNet-20
            at a batch of 32 went from 94 to 72 ms, Net at a batch of 4 from 0.95 to 1.5.
        lr: learning rate of steps without one of their own.
        gradient: how gradients are computed.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: Optimizer,
        how: str,
        *,
        lr: float,
        gradient: Gradient = Gradient(),
    ) -> None:
        self.parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self.state = optimizer.state_for(self.parameters)
        self.notes: list[str] = []
        """How it runs, and the reason if that is not as requested."""
        self._model = model
        self._optimizer = optimizer
        self._how = how
        self._lr, self._gradient = lr, gradient
        self._frozen = frozenset[str]()
        self._part = part_of(optimizer, tuple(self.parameters), self._frozen)
        self._graphs: dict[tuple[int, frozenset[str]], Callable[..., Any]] = {}
        fixed = {name: value for name, value in model.named_parameters() if not value.requires_grad}
        self._other = {**fixed, **dict(model.named_buffers())}
        self._tensors = tuple(
            value.detach() for value in (*self.parameters.values(), *self._other.values(), *self.state.values())
        )

    def freeze(self, names: frozenset[str]) -> None:
        """Train all parameters from now on but the named ones."""
        self._frozen = names
        self._part = part_of(self._optimizer, tuple(self.parameters), names)

    def prepare(self, images: torch.Tensor, labels: torch.Tensor, lr: torch.Tensor | None = None) -> None:
        """Record the step for batches of this size. No tensor of the model is changed.

        If steps get learning rates, one must be given here too.

        A step that cannot be recorded or compiled runs in the next simpler way, and ``notes`` says so.
        """
        if self._how == "eager":
            return
        loss = torch.zeros((), device=images.device)
        rates = [] if lr is None else [lr]
        arguments = [value.clone() for value in (*self._tensors, *rates, images, labels, loss)]
        # Recording runs the step once, which draws its random numbers.
        with torch.random.fork_rng(devices=[]):
            try:
                graph = _without_detach(make_fx(self._functional)(*arguments))
            except Exception as error:  # any error of the module's code under tracing
                self._fall_back("eager", "the model cannot be recorded", error)
                return
            if self._how == "compiled":
                try:
                    compiled = torch.compile(graph, fullgraph=True, dynamic=False)
                    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
                        compiled(*arguments)
                    self._graphs[len(images), self._frozen] = compiled
                    return
                except Exception as error:  # a missing C++ compiler, or a bug in it
                    self._fall_back("captured", "torch.compile failed", error)
        self._graphs[len(images), self._frozen] = graph.forward

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, loss: torch.Tensor, lr: torch.Tensor | None = None
    ) -> None:
        """Take one step.

        Args:
            images: (N, C, H, W), normalized float32.
            labels: (N,), int64.
            loss: 0-dimensional; the mean loss of the batch, before the update, is written here.
            lr: 0-dimensional, on the model's device: the learning rate. Default: the one of all steps.
        """
        if self._how == "eager":
            rate = self._lr if lr is None else lr
            with torch.enable_grad():
                self._run(self._model, self.parameters, self.state, rate, images, labels, loss)
            return
        graph = self._graphs.get((len(images), self._frozen))
        if graph is None:
            self.prepare(images, labels, lr)
            self(images, labels, loss, lr)
            return
        with torch.no_grad():
            graph(*self._tensors, *([] if lr is None else [lr]), images, labels, loss)

    def describe(self) -> str:
        """Return one line on how steps run."""
        return {
            "eager": "steps run eagerly",
            "captured": "steps are recorded once and replayed without autograd",
            "compiled": "steps are recorded once and compiled",
        }[self._how]

    def _fall_back(self, how: str, what: str, error: Exception) -> None:
        self.notes.append(f"{what} ({reason_of(error)}): it runs {how} instead")
        self._how = how
        self._graphs.clear()

    def _functional(self, *tensors: torch.Tensor) -> None:
        """The step as a function of every tensor in it."""
        count, others, kept = len(self.parameters), len(self._other), len(self._tensors)
        parameters = [value.detach().requires_grad_() for value in tensors[:count]]
        named = dict(zip((*self.parameters, *self._other), (*parameters, *tensors[count:]), strict=False))
        rate = self._lr if len(tensors) == kept + 3 else tensors[kept]

        def forward(images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = torch.func.functional_call(self._model, named, (images,))
            return logits

        with torch.enable_grad():
            state = dict(zip(self.state, tensors[count + others : kept], strict=True))
            self._run(forward, named, state, rate, *tensors[-3:])

    def _run(
        self,
        forward: Callable[[torch.Tensor], torch.Tensor],
        parameters: Mapping[str, torch.Tensor],
        state: Mapping[str, torch.Tensor],
        lr: Rate,
        images: torch.Tensor,
        labels: torch.Tensor,
        loss: torch.Tensor,
    ) -> None:
        def mean_loss(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return self._gradient.loss(forward, images, labels)

        trained = self._part.parameters(parameters)
        value, gradients = self._gradient.compute(mean_loss, trained, images, labels)
        with torch.no_grad():
            self._part.optimizer.update([p.detach() for p in trained], gradients, self._part.state(state), lr)
            loss.copy_(value)


def _without_detach(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Remove aliases that only autograd needed."""
    for node in list(graph.graph.nodes):
        if node.target is torch.ops.aten.detach.default:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.graph.lint()
    graph.recompile()
    return graph
