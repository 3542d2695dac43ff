"""Rounds weights one after the other and feeds each error back into the weights not yet rounded.

The output error of a layer with weights w and rounded weights q, over inputs x with the second moments H = Σ x·xᵀ, is
(w − q)ᵀ·H·(w − q) = |R·(w − q)|², where R is the upper Cholesky factor of H, H = Rᵀ·R. Rounding from the last weight to
the first, each to the integer nearest to

    wᵢ + Σ_{j > i} Rᵢⱼ / Rᵢᵢ · (wⱼ − qⱼ),

makes the error |R·(w − q)|² = Σ Rᵢᵢ² · (distance from that value to qᵢ)². This is Babai's nearest plane algorithm, and
gives the same integers as GPTQ (Frantar et al. 2022, algorithm 1), which needs the inverse of H as well.

H is damped: λ is added to its diagonal. With fewer samples than inputs, H = λ·I + Xᵀ·X has a low rank, and R need not
be computed as a whole. For a block B of inputs, after those before it have been eliminated, with X's columns X_B,

    R_BBᵀ·R_BB = λ·I + X_Bᵀ·P·X_B  and  R_Bj = Z_B·x_j,  where Z_B = R_BB⁻ᵀ·X_Bᵀ·P,

and P, initially I, becomes P − Z_Bᵀ·Z_B. It is the matrix inversion lemma, block by block.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Curvature", "FewSamples", "SecondMoments", "blocks_of", "feed_back"]

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

_DAMPING = 0.01
"""Added to the diagonal of the second moments, relative to its mean, so that a few images do not dominate."""

_BLOCK = 64
"""Inputs in a block. The errors of all later blocks come in one matrix product."""

_STRIP = 8
"""Inputs of a block whose errors are applied one by one. Those of the later strips come in one matrix product."""

_WIDEST = 1152
"""Largest number of inputs that are rounded together: 128·3·3. The work per weight grows with it, and more inputs
hardly compensate for more; see docs/accuracy.md."""


def blocks_of(size: int) -> list[slice]:
    """Return the slices of a layer's inputs that are rounded together: all inputs, or equal parts of at most 1,152.

    Errors are fed back only within a part.
    """
    parts = -(-size // _WIDEST)
    edges = [size * part // parts for part in range(parts + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


class Curvature(Protocol):
    """The second moments of a layer's inputs, as the rounding needs them.

    Inputs with the largest second moment are rounded first. Their errors matter most, and most weights are still free
    to compensate for them.
    """

    order: NDArray[np.int64]
    """(G, K) inputs by their second moments, ascending: the last is rounded first. All that follows is in this
    order."""
    damping: Float64
    """(G,) λ."""

    def within(self, start: int, stop: int) -> Float32:
        """Return R between the inputs start..stop, (G, B, B)."""

    def later(self, start: int, stop: int) -> Float32 | None:
        """Return R·e of the inputs start..stop over the errors after them, (G, B, E); None for the last block."""

    def add(self, start: int, stop: int, errors: Float32) -> None:
        """Take the errors of the inputs start..stop, (G, B, E). Blocks come from the last to the first."""


class SecondMoments:
    """Second moments as matrices.

    Args:
        moments: (G, K, K) of the K inputs of each of G groups.
    """

    def __init__(self, moments: Float32) -> None:
        diagonal = np.diagonal(moments, axis1=1, axis2=2)
        self.order = np.argsort(diagonal, axis=1, kind="stable")
        self.damping = _damping(diagonal)
        self._upper = self._cholesky(moments)
        self._errors: Float32 | None = None

    def _cholesky(self, moments: Float32) -> Float32:
        """Return the upper Cholesky factors of the damped moments, in order."""
        rows = np.take_along_axis(moments, self.order[:, :, None], 1)
        damped = torch.from_numpy(np.take_along_axis(rows, self.order[:, None], 2))
        damped.diagonal(dim1=1, dim2=2).add_(torch.from_numpy(self.damping.astype(np.float32))[:, None])
        upper, failed = torch.linalg.cholesky_ex(damped, upper=True)
        if failed.any():  # float32 was not enough
            upper = torch.linalg.cholesky(damped.double(), upper=True).float()
        result: Float32 = upper.numpy()
        return result

    def within(self, start: int, stop: int) -> Float32:
        """See Curvature."""
        return self._upper[:, start:stop, start:stop]

    def later(self, start: int, stop: int) -> Float32 | None:
        """See Curvature."""
        if self._errors is None:
            return None
        return _product(self._upper[:, start:stop, stop:], self._errors[:, stop:])

    def add(self, start: int, stop: int, errors: Float32) -> None:
        """See Curvature."""
        if self._errors is None:
            self._errors = np.empty((*self.order.shape, errors.shape[2]), np.float32)
        self._errors[:, start:stop] = errors


class FewSamples:
    """Second moments of fewer samples than inputs, for a layer without groups.

    Args:
        x: (N, K) the samples.
    """

    def __init__(self, x: Float32) -> None:
        diagonal = np.einsum("nk,nk->k", x, x, dtype=np.float64)
        self.order = np.argsort(diagonal, kind="stable")[None]
        self.damping = _damping(diagonal[None])
        self._x = x
        self._within: dict[int, Float32] = {}
        self._z: dict[int, Float32] = {}
        self._sums: Float32 | None = None
        p = torch.eye(len(x), dtype=torch.float64)
        for start, stop in _blocks(x.shape[1]):
            columns = torch.from_numpy(self._columns(start, stop)).double()
            reached = p @ columns
            damped = columns.T @ reached
            damped.diagonal().add_(float(self.damping[0]))
            lower = torch.linalg.cholesky(damped)
            z = torch.linalg.solve_triangular(lower, reached.T, upper=False)
            p -= z.T @ z
            self._within[start], self._z[start] = lower.T.float().numpy(), z.float().numpy()

    def _columns(self, start: int, stop: int) -> Float32:
        return self._x[:, self.order[0, start:stop]]

    def within(self, start: int, stop: int) -> Float32:
        """See Curvature."""
        return self._within[start][None]

    def later(self, start: int, stop: int) -> Float32 | None:
        """See Curvature."""
        return None if self._sums is None else _product(self._z[start], self._sums)[None]

    def add(self, start: int, stop: int, errors: Float32) -> None:
        """See Curvature."""
        sums = _product(self._columns(start, stop), errors[0])
        self._sums = sums if self._sums is None else self._sums + sums


def _damping(diagonal: NDArray[np.floating]) -> Float64:
    found: Float64 = _DAMPING * diagonal.mean(1, dtype=np.float64) + 1e-9
    return found


def _blocks(size: int) -> list[tuple[int, int]]:
    """Return the blocks of inputs, first to last. The last one is whole."""
    return [(max(stop - _BLOCK, 0), stop) for stop in range(size, 0, -_BLOCK)][::-1]


def feed_back(weights: Float32, steps: Float32, curvature: Curvature, limit: int) -> NDArray[np.int8]:
    """Round weights. A channel's output error is not larger than with rounding to the nearest.

    Feedback is greedy: sometimes a channel would end with a larger error. Its weights are rounded to the nearest.

    Args:
        weights: (G, O, K) of G groups with O output channels.
        steps: (G, O) values of one integer.
        curvature: of the K inputs; it is used up.
        limit: integers are in [−limit, limit].

    Returns:
        (G, O, K) integers.
    """
    groups, channels, size = weights.shape
    rounded = np.empty(weights.shape, np.int8)
    nearest = np.zeros((groups, channels))  # |R·e|² − λ·|e|² of rounding to the nearest, and of feedback
    fed_back = np.zeros((groups, channels))
    damping = curvature.damping[:, None]
    for start, stop in reversed(_blocks(size)):
        where = curvature.order[:, None, start:stop]
        wanted = np.take_along_axis(weights, where, 2)
        wanted /= steps[:, :, None]
        wanted = np.ascontiguousarray(wanted.transpose(0, 2, 1))  # (G, B, O)
        within, later = curvature.within(start, stop), curvature.later(start, stop)
        errors = np.empty((groups, stop - start, 2 * channels), np.float32)
        mine, plain = errors[..., :channels], errors[..., channels:]
        np.subtract(wanted, _integers(wanted, limit), out=plain)
        reach = _product(within, plain)
        if later is not None:
            reach += later[..., channels:]
        nearest += _squares(reach) - damping * _squares(plain)
        pivots = np.diagonal(within, axis1=1, axis2=2)[:, :, None]
        feedback = within / pivots
        values = wanted.copy() if later is None else wanted + later[..., :channels] / pivots
        for end in range(stop - start, 0, -_STRIP):
            begin = max(end - _STRIP, 0)
            for i in range(end - 1, begin - 1, -1):
                value, error = values[:, i], mine[:, i]
                if i + 1 < end:
                    value += np.einsum("gk,gko->go", feedback[:, i, i + 1 : end], mine[:, i + 1 : end])
                integers = np.rint(value)
                np.maximum(integers, -limit, out=integers)  # less overhead than np.clip
                np.minimum(integers, limit, out=integers)
                np.subtract(wanted[:, i], integers, out=error)
                value -= integers
            if begin:
                values[:, :begin] += _product(feedback[:, :begin, begin:end], mine[:, begin:end])
        values *= pivots
        fed_back += _squares(values) - damping * _squares(mine)
        wanted -= mine
        np.put_along_axis(rounded, where, np.rint(wanted, out=wanted).transpose(0, 2, 1).astype(np.int8), 2)
        curvature.add(start, stop, errors)
    for group, channel in _channels_worse(fed_back, nearest):
        row = weights[group, channel] / steps[group, channel]
        rounded[group, channel] = _integers(row, limit)
    return rounded


def _channels_worse(fed_back: Float64, nearest: Float64) -> Iterator[tuple[int, int]]:
    """Return group and channel where the error of feedback is larger than that of rounding to the nearest."""
    return zip(*np.nonzero(fed_back > nearest), strict=True)


def _integers(values: Float32, limit: int) -> Float32:
    rounded = np.rint(values)
    return np.clip(rounded, -limit, limit, out=rounded)


def _product(a: Float32, b: Float32) -> Float32:
    """Return a·b. NumPy's BLAS would start threads of its own, which then use a core for a while to wait for more."""
    found: Float32 = torch.matmul(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    return found


def _squares(values: Float32) -> Float64:
    """Return the sums of squares over the second dimension of (G, B, O)."""
    found: Float64 = np.einsum("gbo,gbo->go", values, values, dtype=np.float64)
    return found
