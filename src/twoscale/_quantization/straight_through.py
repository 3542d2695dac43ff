"""Roundings with gradients: the integers of equations (2) to (7), differentiated as if nothing were rounded.

A rounding passes its gradient on as if it were the identity (Bengio et al., "Estimating or propagating gradients
through stochastic neurons", 2013), and a clamp passes on that of the values inside its bounds.
"""

from __future__ import annotations

from typing import Any

import torch

from twoscale._ir.arithmetic import MULTIPLIER_LIMIT

__all__ = ["Masks", "instead", "multipliers", "on_grid", "requantized", "rounded", "rounded_weights"]


class _Requantize(torch.autograd.Function):
    """Sums of integers times multipliers, clamped and rounded.

    One function with few passes over memory: activations take more time than arithmetic. Masks are float32, since
    torch computes with them several times as fast as with booleans.
    """

    @staticmethod
    def forward(
        ctx: Any, lo: float, hi: float, zero_point: float, rounds: torch.Tensor | None, *terms: torch.Tensor
    ) -> torch.Tensor:
        value = terms[0] * terms[1]
        for x, multiplier in zip(terms[2::2], terms[3::2], strict=True):
            value.addcmul_(x, multiplier)
        ctx.bounds = lo - zero_point, hi - zero_point
        ctx.save_for_backward(value, *terms)
        clamped = value.clamp(*ctx.bounds)
        if rounds is None:
            clamped.round_()
        else:
            clamped.lerp_(clamped.round(), rounds)
        return clamped.add_(zero_point) if zero_point else clamped

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        value, *terms = ctx.saved_tensors
        gradient = torch.ops.aten.hardtanh_backward(gradients[0], value, *ctx.bounds)
        found: list[torch.Tensor | None] = [None, None, None, None]
        for index in range(0, len(terms), 2):
            x, multiplier = terms[index : index + 2]
            needs_x, needs_multiplier = ctx.needs_input_grad[4 + index : 6 + index]
            found.append(gradient * multiplier if needs_x else None)
            if needs_multiplier:
                axes = [axis for axis in range(gradient.ndim) if multiplier.shape[axis] == 1]
                found.append((gradient * x).sum(axes, keepdim=True))
            else:
                found.append(None)
        return tuple(found)


class _RoundWeights(torch.autograd.Function):
    """Weights in steps of their scales, rounded and clamped.

    A weight beyond the last step keeps its gradient, or else it could never come back; it moves no scale.
    """

    @staticmethod
    def forward(ctx: Any, real: torch.Tensor, scale: torch.Tensor, lo: int, hi: int) -> torch.Tensor:
        steps = real / scale
        ctx.bounds = lo - 0.5, hi + 0.5
        ctx.save_for_backward(steps, scale)
        return steps.round().clamp_(lo, hi)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        steps, scale = ctx.saved_tensors
        gradient = gradients[0] / scale
        inside = torch.ops.aten.hardtanh_backward(gradient, steps, *ctx.bounds)
        return gradient, -(inside * steps).sum_to_size(scale.shape), None, None


class Masks:
    """Random masks, float32: parts of one sequence of zeros and ones at random places, since drawing takes long."""

    _LENGTH = 1 << 22

    def __init__(self, share: float) -> None:
        self._pool = (torch.rand(self._LENGTH) < share).float()

    def like(self, x: torch.Tensor) -> torch.Tensor:
        """Return a mask in the shape of ``x``, in which a share of the values is 1."""
        while len(self._pool) < 2 * x.numel():
            self._pool = torch.cat([self._pool, self._pool[torch.randperm(len(self._pool))]])
        start = int(torch.randint(len(self._pool) - x.numel(), ()))
        return self._pool[start : start + x.numel()].as_strided(x.shape, x.stride())


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0]


class _Instead(torch.autograd.Function):
    """Integers whose gradient is that of the function that they approximate."""

    @staticmethod
    def forward(ctx: Any, smooth: torch.Tensor, integers: torch.Tensor) -> torch.Tensor:
        return integers.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


class _Grid(torch.autograd.Function):
    """Ratios of scales, float64, to the nearest multipliers, float32."""

    @staticmethod
    def forward(ctx: Any, ratio: torch.Tensor, shift: int) -> torch.Tensor:
        return (multipliers(ratio, shift) / 2.0**shift).float()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0].double(), None


def multipliers(ratio: torch.Tensor, shift: int) -> torch.Tensor:
    """Return the whole multipliers nearest to ratios of scales, float64."""
    return (ratio * 2.0**shift).round().clamp(1, MULTIPLIER_LIMIT - 1)


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Return the nearest integers."""
    found: torch.Tensor = _Round.apply(x)  # type: ignore[no-untyped-call]
    return found


def on_grid(ratio: torch.Tensor, shift: int, ndim: int) -> torch.Tensor:
    """Return multipliers on the grid, in the shape of the channels of a tensor with ``ndim`` dimensions."""
    values: torch.Tensor = _Grid.apply(ratio, shift)  # type: ignore[no-untyped-call]
    return values.reshape((1, -1) + (1,) * (ndim - 2))


def requantized(
    lo: float, hi: float, zero_point: float, rounds: torch.Tensor | None, *terms: torch.Tensor
) -> torch.Tensor:
    """Return sums of products, clamped and rounded.

    Args:
        lo: least integer.
        hi: largest integer.
        zero_point: of the result.
        rounds: float32, 1 where a value is rounded; None for all.
        terms: integers and their multipliers in turn.
    """
    found: torch.Tensor = _Requantize.apply(lo, hi, zero_point, rounds, *terms)  # type: ignore[no-untyped-call]
    return found


def rounded_weights(real: torch.Tensor, scale: torch.Tensor, lo: int, hi: int) -> torch.Tensor:
    """Return weights in steps of their scales, rounded and clamped."""
    found: torch.Tensor = _RoundWeights.apply(real, scale, lo, hi)  # type: ignore[no-untyped-call]
    return found


def instead(smooth: torch.Tensor, integers: torch.Tensor) -> torch.Tensor:
    """Return integers with the gradient of a function that they approximate."""
    found: torch.Tensor = _Instead.apply(smooth, integers)  # type: ignore[no-untyped-call]
    return found
