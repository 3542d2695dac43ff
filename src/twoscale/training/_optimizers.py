"""Optimizers as pure rules: their state and their update in place.

They work on tensors only, so that the update can be part of a recorded step. A learning rate is passed to each update:
a number, which a recording keeps, or a 0-dimensional tensor, which it reads again each time.

w is a parameter, g its gradient, lr the learning rate, β the weight decay. Weight decay and layer-wise rates leave
out BatchNorm's weights and biases unless asked otherwise (Goyal et al. 2017; You et al. 2017).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from twoscale.training._config import TrainConfig

__all__ = [
    "LAMB",
    "LARS",
    "SGD",
    "AdamW",
    "Groups",
    "Muon",
    "Optimizer",
    "Rate",
    "clip",
    "create_optimizer",
    "groups_of",
    "orthogonalized",
]

Rate = float | torch.Tensor
Tensors = list[torch.Tensor]

_NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)
_NEWTON_SCHULZ_STEPS = 5
_MUON_EPSILON = 1e-7
"""Added to norms that are divided by."""


@dataclass(frozen=True)
class Groups:
    """Differences between parameters: one entry per parameter, in the model's order, or () if all are alike."""

    decayed: tuple[bool, ...] = ()
    """Whether weight decay applies; () means to all."""
    adapted: tuple[bool, ...] = ()
    """Whether LARS and LAMB give a layer-wise rate, and Muon makes the update orthogonal; () means to all."""
    lr_factors: tuple[float, ...] = ()
    """Multiples of the learning rate; () means 1 for all."""


class Optimizer(Protocol):
    """The interface of an optimizer."""

    @property
    def groups(self) -> Groups:
        """Differences between the parameters that it updates."""

    def state_for(self, parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the initial state. Names are unique, and the same for the same parameters."""

    def update(self, parameters: Tensors, gradients: Tensors, state: Tensors, lr: Rate) -> None:
        """Change parameters and state in place."""


@dataclass(frozen=True)
class SGD:
    """g ← g + βw; v ← μv + g; w ← w − lr·v, or with Nesterov's momentum w ← w − lr·(g + μv).

    Sutskever et al. 2013, as in torch.optim.SGD.
    """

    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    groups: Groups = Groups()

    def state_for(self, parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return v = 0 for every parameter; nothing without momentum."""
        return _zeros("momentum", parameters) if self.momentum else {}

    def update(self, parameters: Tensors, gradients: Tensors, state: Tensors, lr: Rate) -> None:
        """Update every parameter with the kernels of ``torch.optim.SGD(foreach=True)``."""
        gradients = _decayed(gradients, parameters, self.weight_decay, self.groups.decayed)
        if not self.momentum:
            _descend(parameters, gradients, lr, self.groups.lr_factors)
            return
        torch._foreach_mul_(state, self.momentum)
        torch._foreach_add_(state, gradients)
        steps = list(torch._foreach_add(gradients, state, alpha=self.momentum)) if self.nesterov else state
        _descend(parameters, steps, lr, self.groups.lr_factors)


@dataclass(frozen=True)
class LARS:
    """λ = η‖w‖/(‖g‖ + β‖w‖); v ← μv + lr·λ(g + βw); w ← w − v; λ = 1 if either norm is 0.

    You et al. 2017, algorithm 1: the learning rate is inside the momentum.
    """

    momentum: float = 0.9
    trust_coefficient: float = 0.001
    weight_decay: float = 0.0
    groups: Groups = Groups()

    def state_for(self, parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return v = 0 for every parameter."""
        return _zeros("momentum", parameters)

    def update(self, parameters: Tensors, gradients: Tensors, state: Tensors, lr: Rate) -> None:
        """Update every parameter."""
        w, g = _norms(parameters), _norms(gradients)
        adapted = _mask(self.groups.adapted, w) & (w > 0) & (g > 0)
        decay = self.weight_decay * _mask(self.groups.decayed, w).to(w.dtype)
        ratio = torch.where(adapted, self.trust_coefficient * w / (g + decay * w), 1.0)
        gradients = _decayed(gradients, parameters, self.weight_decay, self.groups.decayed)
        torch._foreach_mul_(state, self.momentum)
        torch._foreach_add_(state, _scaled(gradients, ratio * lr * _factors(self.groups, w)))
        torch._foreach_sub_(parameters, state)


@dataclass(frozen=True)
class _Adaptive:
    """Common to AdamW and LAMB: the moments m and v, and the number of updates t."""

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    groups: Groups = Groups()

    def state_for(self, parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return m = v = 0 for every parameter, and t = 0."""
        one = next(iter(parameters.values()))
        return {
            **_zeros("first", parameters),
            **_zeros("second", parameters),
            "updates": torch.zeros((), dtype=one.dtype, device=one.device),
        }

    def _steps(self, gradients: Tensors, state: Tensors) -> Tensors:
        """Update the moments; return m̂/(√v̂ + ε)."""
        count = len(gradients)
        first, second, updates = state[:count], state[count : 2 * count], state[-1]
        updates.add_(1)
        torch._foreach_lerp_(first, gradients, 1 - self.beta1)
        torch._foreach_mul_(second, self.beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - self.beta2)
        divisors = list(torch._foreach_div(second, 1 - self.beta2**updates))
        torch._foreach_sqrt_(divisors)
        torch._foreach_add_(divisors, self.epsilon)
        steps = list(torch._foreach_div(first, 1 - self.beta1**updates))
        torch._foreach_div_(steps, divisors)
        return steps


@dataclass(frozen=True)
class AdamW(_Adaptive):
    """w ← w − lr·βw; m ← β₁m + (1−β₁)g; v ← β₂v + (1−β₂)g²; w ← w − lr·m̂/(√v̂ + ε).

    m̂ = m/(1−β₁ᵗ) and v̂ = v/(1−β₂ᵗ). Loshchilov and Hutter 2019, as in torch.optim.AdamW.
    """

    def update(self, parameters: Tensors, gradients: Tensors, state: Tensors, lr: Rate) -> None:
        """Update every parameter."""
        steps = self._steps(gradients, state)
        if self.weight_decay:
            chosen = _chosen(self.groups.decayed, parameters)
            torch._foreach_mul_([parameters[i] for i in chosen], 1 - lr * self.weight_decay)
        _descend(parameters, steps, lr, self.groups.lr_factors)


@dataclass(frozen=True)
class LAMB(_Adaptive):
    """m, v as in AdamW; r = m̂/(√v̂ + ε) + βw; w ← w − lr·(‖w‖/‖r‖)·r; the ratio is 1 if either norm is 0.

    You et al. 2019, algorithm 2, with φ(z) = z.
    """

    epsilon: float = 1e-6

    def update(self, parameters: Tensors, gradients: Tensors, state: Tensors, lr: Rate) -> None:
        """Update every parameter."""
        steps = self._steps(gradients, state)
        steps = _decayed(steps, parameters, self.weight_decay, self.groups.decayed)
        w, r = _norms(parameters), _norms(steps)
        ratio = torch.where(_mask(self.groups.adapted, w) & (w > 0) & (r > 0), w / r, 1.0)
        torch._foreach_sub_(parameters, _scaled(steps, ratio * lr * _factors(self.groups, w)))


@dataclass(frozen=True)
class Muon:
    """v ← μv + g; w ← w − lr·(βw + √max(1, m/n)·O(g + μv)) for matrices (m, n); filters are flattened to such.

    O multiplies all singular values towards 1, by five Newton-Schulz iterations X ← aX + (b·XXᵀ + c·(XXᵀ)²)X from
    X = M/‖M‖. Jordan et al. 2024 ("Muon: an optimizer for hidden layers in neural networks"), as in torch.optim.Muon,
    whose momentum (an average instead of a sum) gives the same O. Parameters that are not adapted are updated by SGD
    with Nesterov's momentum.
    """

    momentum: float = 0.95
    weight_decay: float = 0.0
    normalize: bool = False
    """Scale w to ‖w‖ = √m before the update, instead of weight decay."""
    groups: Groups = Groups()

    def state_for(self, parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return v = 0 for every parameter."""
        return _zeros("momentum", parameters)

    def update(self, parameters: Tensors, gradients: Tensors, state: Tensors, lr: Rate) -> None:
        """Update every parameter."""
        adapted = self.groups.adapted or (True,) * len(parameters)
        decayed = self.groups.decayed or (True,) * len(parameters)
        by_sgd = tuple(flag and not matrix for flag, matrix in zip(decayed, adapted, strict=True))
        gradients = _decayed(gradients, parameters, self.weight_decay, by_sgd)
        torch._foreach_mul_(state, self.momentum)
        torch._foreach_add_(state, gradients)
        steps = list(torch._foreach_add(gradients, state, alpha=self.momentum))
        for i, w in enumerate(parameters):
            if not adapted[i]:
                continue
            rows = len(w)
            if self.normalize:
                w.mul_(math.sqrt(rows) / (torch.linalg.vector_norm(w) + _MUON_EPSILON))
            elif self.weight_decay and decayed[i]:
                w.mul_(1 - lr * self.weight_decay)
            flat = steps[i].reshape(rows, -1)
            steps[i] = orthogonalized(flat).view_as(w) * math.sqrt(max(1.0, rows / flat.shape[1]))
        _descend(parameters, steps, lr, self.groups.lr_factors)


def orthogonalized(matrix: torch.Tensor) -> torch.Tensor:
    """Return (m, n) with its singular values brought near 1. On GPUs it is computed in bfloat16, as in the papers."""
    x = matrix.bfloat16() if matrix.is_cuda and matrix.dtype == torch.float32 else matrix
    x = x / (torch.linalg.vector_norm(x) + _MUON_EPSILON)
    wide = x if x.shape[0] <= x.shape[1] else x.T
    a, b, c = _NEWTON_SCHULZ
    for _ in range(_NEWTON_SCHULZ_STEPS):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    found: torch.Tensor = wide if x.shape[0] <= x.shape[1] else wide.T
    return found.to(matrix.dtype)


def create_optimizer(config: TrainConfig, model: nn.Module) -> Optimizer:
    """Return a configuration's optimizer."""
    groups = groups_of(model, config)
    decay = config.weight_decay
    if config.optimizer == "sgd":
        return SGD(config.momentum, config.nesterov, decay, groups)
    if config.optimizer == "lars":
        return LARS(config.momentum, config.trust_coefficient, decay, groups)
    if config.optimizer == "muon":
        return Muon(config.momentum, decay, config.normalize_filters, groups)
    kind = AdamW if config.optimizer == "adamw" else LAMB
    return kind(config.momentum, config.beta2, config.epsilon, decay, groups)


def groups_of(model: nn.Module, config: TrainConfig) -> Groups:
    """Return a configuration's differences for BatchNorm's parameters, biases (tensors of at most one dimension), and
    the last layer."""
    norm_biases = {
        id(module.bias)
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.bias is not None
    }
    trained = [value for value in model.parameters() if value.requires_grad]
    large = tuple(value.ndim > 1 for value in trained)
    owners = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    head = {id(value) for value in owners[-1].parameters()} if owners else set()
    if config.optimizer == "muon":
        adapted = tuple(value.ndim > 1 and id(value) not in head for value in trained)
    else:
        adapted = () if config.adapt_norm_and_bias else large

    def lr_factor(value: torch.Tensor) -> float:
        return (config.bias_lr if id(value) in norm_biases else 1.0) * (config.head_lr if id(value) in head else 1.0)

    return Groups(
        decayed=() if config.decay_norm_and_bias else large,
        adapted=adapted,
        lr_factors=() if config.bias_lr == config.head_lr == 1 else tuple(map(lr_factor, trained)),
    )


def clip(gradients: Tensors, largest: float) -> Tensors:
    """Return gradients scaled to a common norm of at most ``largest``, like torch's clip_grad_norm_."""
    total = torch.linalg.vector_norm(_norms(gradients))
    return list(torch._foreach_mul(gradients, torch.clamp(largest / (total + 1e-6), max=1.0)))


def _zeros(name: str, parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": torch.zeros_like(value) for key, value in parameters.items()}


def _chosen(mask: tuple[bool, ...], tensors: Sequence[torch.Tensor]) -> list[int]:
    return [i for i in range(len(tensors)) if not mask or mask[i]]


def _decayed(gradients: Tensors, parameters: Tensors, decay: float, mask: tuple[bool, ...]) -> Tensors:
    """Return g + βw as a new list. Gradients may share memory."""
    found = list(gradients)
    chosen = _chosen(mask, parameters) if decay else []
    if chosen:
        sums = torch._foreach_add([gradients[i] for i in chosen], [parameters[i] for i in chosen], alpha=decay)
        for i, value in zip(chosen, sums, strict=True):
            found[i] = value
    return found


def _descend(parameters: Tensors, steps: Tensors, lr: Rate, factors: tuple[float, ...]) -> None:
    """w ← w − lr·step."""
    for factor in sorted(set(factors)) or [1.0]:
        chosen = [i for i in range(len(parameters)) if not factors or factors[i] == factor]
        own, their = [parameters[i] for i in chosen], [steps[i] for i in chosen]
        if isinstance(lr, torch.Tensor):
            torch._foreach_add_(own, torch._foreach_mul(their, -factor * lr))
        else:
            torch._foreach_add_(own, their, alpha=-factor * lr)


def _norms(tensors: Tensors) -> torch.Tensor:
    """Return the Euclidean norm of each tensor, (n,)."""
    return torch.stack(list(torch._foreach_norm(tensors)))


def _mask(mask: tuple[bool, ...], like: torch.Tensor) -> torch.Tensor:
    """Return (n,), bool. It is built by filling, because a copy from the host cannot be part of a CUDA graph."""
    return torch.stack([torch.full((), not mask or mask[i], device=like.device) for i in range(len(like))])


def _factors(groups: Groups, like: torch.Tensor) -> torch.Tensor | float:
    if not groups.lr_factors:
        return 1.0
    return torch.stack([torch.full((), factor, dtype=like.dtype, device=like.device) for factor in groups.lr_factors])


def _scaled(tensors: Tensors, factors: torch.Tensor) -> Tensors:
    """Return each tensor times its entry of (n,)."""
    return list(torch._foreach_mul(tensors, [f.to(t.dtype) for f, t in zip(factors.unbind(), tensors, strict=True)]))
