"""Every rule against torch.optim, or against the paper's formula computed one number at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from twoscale import models
from twoscale.training import TrainConfig
from twoscale.training._optimizers import LAMB, LARS, SGD, AdamW, Groups, Optimizer, clip, create_optimizer, groups_of
from twoscale.training._schedule import learning_rates

SHAPES = ((3, 4), (5,), (2, 3, 2, 2))
STEPS = 4


def tensors(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def ours(rule: Optimizer, lrs: list[Any], zero: bool = False) -> list[torch.Tensor]:
    parameters = tensors(0)
    if zero:
        parameters[0].zero_()
    state = list(rule.state_for({str(i): value for i, value in enumerate(parameters)}).values())
    for step, lr in enumerate(lrs, 1):
        rule.update(parameters, tensors(step), state, lr)
    return parameters


def torchs(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], lrs: list[float]) -> list[torch.Tensor]:
    parameters = [nn.Parameter(value) for value in tensors(0)]
    optimizer = make(parameters)
    for step, lr in enumerate(lrs, 1):
        for group in optimizer.param_groups:
            group["lr"] = lr
        for parameter, gradient in zip(parameters, tensors(step), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return [value.detach() for value in parameters]


def assert_close(a: list[torch.Tensor], b: list[torch.Tensor]) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-14)


LRS = [0.1, 0.05, 0.2, 0.1]
AS_TORCH = [
    (SGD(0.9), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)),
    (SGD(0.0), lambda p: torch.optim.SGD(p, 0.1)),
    (SGD(0.9, weight_decay=0.1), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1)),
    (SGD(0.8, True, 0.1), lambda p: torch.optim.SGD(p, 0.1, momentum=0.8, nesterov=True, weight_decay=0.1)),
    (AdamW(0.9, 0.99, 1e-6, 0.1), lambda p: torch.optim.AdamW(p, 0.1, (0.9, 0.99), 1e-6, 0.1)),
]


@pytest.mark.parametrize(("rule", "make"), AS_TORCH)
@pytest.mark.parametrize("as_tensors", [False, True])
def test_as_torch_has_it(rule: Optimizer, make: Any, as_tensors: bool) -> None:
    lrs = [torch.tensor(lr, dtype=torch.float64) for lr in LRS] if as_tensors else LRS
    assert_close(ours(rule, lrs), torchs(make, LRS))
    with pytest.raises(AssertionError):
        assert_close(ours(rule, lrs[:-1]), torchs(make, LRS))


def norm(values: list[float]) -> float:
    return math.sqrt(sum(value * value for value in values))


def lars_by_hand(mu: float, eta: float, beta: float, groups: Groups, zero: bool) -> list[torch.Tensor]:
    found = []
    for i, w0 in enumerate(tensors(0)):
        w = [0.0] * w0.numel() if zero and i == 0 else w0.flatten().tolist()
        v = [0.0] * len(w)
        b = beta if groups.decayed[i] else 0.0
        for step, lr in enumerate(LRS, 1):
            g = tensors(step)[i].flatten().tolist()
            rate = 1.0
            if groups.adapted[i] and norm(w) > 0 and norm(g) > 0:
                rate = eta * norm(w) / (norm(g) + b * norm(w))
            v = [mu * vk + lr * rate * (gk + b * wk) for vk, gk, wk in zip(v, g, w, strict=True)]
            w = [wk - vk for wk, vk in zip(w, v, strict=True)]
        found.append(torch.tensor(w, dtype=torch.float64).view(w0.shape))
    return found


def lamb_by_hand(b1: float, b2: float, eps: float, beta: float, groups: Groups, zero: bool) -> list[torch.Tensor]:
    found = []
    for i, w0 in enumerate(tensors(0)):
        w = [0.0] * w0.numel() if zero and i == 0 else w0.flatten().tolist()
        m, v = [0.0] * len(w), [0.0] * len(w)
        b = beta if groups.decayed[i] else 0.0
        for t, lr in enumerate(LRS, 1):
            g = tensors(t)[i].flatten().tolist()
            m = [b1 * mk + (1 - b1) * gk for mk, gk in zip(m, g, strict=True)]
            v = [b2 * vk + (1 - b2) * gk * gk for vk, gk in zip(v, g, strict=True)]
            r = [
                mk / (1 - b1**t) / (math.sqrt(vk / (1 - b2**t)) + eps) + b * wk
                for mk, vk, wk in zip(m, v, w, strict=True)
            ]
            ratio = norm(w) / norm(r) if groups.adapted[i] and norm(w) > 0 and norm(r) > 0 else 1.0
            w = [wk - lr * ratio * rk for wk, rk in zip(w, r, strict=True)]
        found.append(torch.tensor(w, dtype=torch.float64).view(w0.shape))
    return found


ALL = Groups((True,) * 3, (True,) * 3)
SOME = Groups((True, False, True), (False, True, True))


@pytest.mark.parametrize("groups", [ALL, SOME])
@pytest.mark.parametrize("zero", [False, True])
def test_lars_and_lamb_as_the_papers_have_them(groups: Groups, zero: bool) -> None:
    lars = ours(LARS(0.9, 0.02, 0.1, groups), LRS, zero)
    assert_close(lars, lars_by_hand(0.9, 0.02, 0.1, groups, zero))
    lamb = ours(LAMB(0.9, 0.99, 1e-6, 0.1, groups), LRS, zero)
    assert_close(lamb, lamb_by_hand(0.9, 0.99, 1e-6, 0.1, groups, zero))
    rates: list[Any] = [torch.tensor(lr, dtype=torch.float64) for lr in LRS]
    assert_close(ours(LARS(0.9, 0.02, 0.1, groups), rates, zero), lars)
    # Faults that the comparison is there to find: the flags left aside, another η, no correction of the moments.
    other = SOME if groups is ALL else ALL
    for planted in (LARS(0.9, 0.02, 0.1, other), LARS(0.9, 0.01, 0.1, groups), LARS(0.9, 0.02, 0.0, groups)):
        with pytest.raises(AssertionError):
            assert_close(ours(planted, LRS, zero), lars_by_hand(0.9, 0.02, 0.1, groups, zero))
    with pytest.raises(AssertionError):
        assert_close(ours(LAMB(0.9, 0.99, 1e-6, 0.1, other), LRS, zero), lamb)


def test_which_parameters_are_left_out() -> None:
    model = models.create("resnet20")
    names = [name for name, _ in model.named_parameters()]
    groups = groups_of(model, TrainConfig(bias_lr=64.0))
    for name, decayed, adapted, factor in zip(names, groups.decayed, groups.adapted, groups.lr_factors, strict=True):
        weight = "conv" in name or name == "linear.weight"
        assert decayed == adapted == weight
        assert factor == (64.0 if "bn" in name and name.endswith("bias") else 1.0)
    assert groups_of(model, TrainConfig(decay_norm_and_bias=True, adapt_norm_and_bias=True)) == Groups()
    for name in ("sgd", "lars", "lamb", "adamw"):
        rule = create_optimizer(TrainConfig(optimizer=name, weight_decay=0.1), model)  # type: ignore[arg-type]
        assert type(rule).__name__.lower() == name


def test_learning_rates_as_multiples() -> None:
    factors = Groups(lr_factors=(1.0, 64.0, 1.0))
    for plain, scaled in ((SGD(0.9), SGD(0.9, groups=factors)), (AdamW(), AdamW(groups=factors))):
        a, b, start = ours(plain, [0.1]), ours(scaled, [0.1]), tensors(0)
        assert_close([a[0], start[1] + 64 * (a[1] - start[1]), a[2]], b)


@pytest.mark.parametrize("largest", [0.5, 1e9])
def test_clipping_as_torch_has_it(largest: float) -> None:
    parameters = [nn.Parameter(value) for value in tensors(0)]
    for parameter, gradient in zip(parameters, tensors(1), strict=True):
        parameter.grad = gradient.clone()
    torch.nn.utils.clip_grad_norm_(parameters, largest)
    gradients = clip(tensors(1), largest)
    assert_close(gradients, [parameter.grad for parameter in parameters if parameter.grad is not None])


def rates(total: int = 10, per_epoch: int = 5, **options: Any) -> list[float] | None:
    return learning_rates(TrainConfig(**{"lr": 0.1, **options}), total, per_epoch, range(total))


def test_schedules() -> None:
    assert rates() is None
    assert rates(batch_size=256, base_batch=64) == [0.4] * 10
    assert rates(schedule="step", total=4) == pytest.approx([0.1, 0.1, 0.01, 0.001])
    assert rates(schedule="linear", total=4) == pytest.approx([0.1, 0.075, 0.05, 0.025])
    cosine = [0.05 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]
    assert rates(schedule="cosine", total=4) == pytest.approx(cosine)


def test_warm_up() -> None:
    goyal = rates(batch_size=256, base_batch=64, warmup_epochs=0.8)
    assert goyal == pytest.approx([0.1, 0.175, 0.25, 0.325, *[0.4] * 6])
    # At a very large batch an epoch is a step: a minimum of updates.
    assert rates(batch_size=256, base_batch=64, warmup_epochs=0.8, warmup_steps=6, total=8) == pytest.approx(
        [0.1 + 0.05 * k for k in range(6)] + [0.4] * 2
    )
    assert rates(warmup_steps=3, schedule="linear", total=7) == pytest.approx(
        [0.025, 0.05, 0.075, 0.1, 0.075, 0.05, 0.025]
    )
    # A step schedule's milestones are fractions of the whole run.
    assert rates(warmup_steps=2, schedule="step", total=4) == pytest.approx([0.1 / 3, 0.2 / 3, 0.01, 0.001])
