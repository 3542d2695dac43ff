"""Rounds weights one after the other and feeds each error back into the weights not yet rounded.

The output error of a layer with weights w and rounded weights q, over inputs x with the second moments H = Σ x·xᵀ, is
(w − q)ᵀ·H·(w − q) = |R·(w − q)|², where R is the upper Cholesky factor of H, H = Rᵀ·R. Rounding from the last weight to
the first, each to the integer nearest to

    wᵢ + Σ_{j > i} Rᵢⱼ / Rᵢᵢ · (wⱼ − qⱼ),

makes the error |R·(w − q)|² = Σ Rᵢᵢ² · (distance from that value to qᵢ)². This is Babai's nearest plane algorithm, and
gives the same integers as GPTQ (Frantar et al. 2022, algorithm 1), which needs the inverse of H as well.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["blocks_of", "feed_back"]

Float32 = NDArray[np.float32]

_DAMPING = 0.01
"""Added to the diagonal of the second moments, relative to its mean, so that a few images do not dominate."""

_BLOCK = 64
"""Weights whose errors are applied one by one. The errors of all later blocks come in one matrix product."""

_WIDEST = 4608
"""Largest number of inputs whose second moments are in memory at a time (81 MiB): 512·3·3 for large convolutions."""


def blocks_of(size: int) -> list[slice]:
    """Return the slices of a layer's inputs that are rounded together: all inputs, or equal parts of at most 4,608.

    Errors are fed back only within a part, so that memory is bounded by one part's second moments. For all 25,088
    inputs of VGG-16's first fully connected layer they would take 2.3 GiB.
    """
    parts = -(-size // _WIDEST)
    edges = [size * part // parts for part in range(parts + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def feed_back(weights: Float32, moments: Float32, limit: int) -> Float32:
    """Round weights. The output error is never larger than with rounding to the nearest.

    Args:
        weights: (G, O, K) of G groups with O output channels, in units of their steps.
        moments: (G, K, K) second moments of the K inputs of each group.
        limit: integers are in [−limit, limit].

    Inputs with the largest second moment are rounded first. Their errors matter most, and most weights are still free
    to compensate for them.
    """
    groups, _, size = weights.shape
    diagonal = np.diagonal(moments, axis1=1, axis2=2)
    order = np.argsort(diagonal, axis=1, kind="stable")  # the last is rounded first
    upper = _cholesky(moments, order, diagonal)
    wanted = np.ascontiguousarray(np.take_along_axis(weights, order[:, None], 2).transpose(0, 2, 1))  # (G, K, O)
    errors = np.zeros_like(wanted)
    damped = np.zeros((groups, wanted.shape[2]))
    for stop in range(size, 0, -_BLOCK):
        start = max(stop - _BLOCK, 0)
        later = np.matmul(upper[:, start:stop, stop:], errors[:, stop:]) if stop < size else None
        for i in range(stop - 1, start - 1, -1):
            pivot = upper[:, i, i, None]
            value = np.matmul(upper[:, i, None, i + 1 : stop], errors[:, i + 1 : stop])[:, 0]
            if later is not None:
                value += later[:, i - start]
            value /= pivot
            value += wanted[:, i]
            rounded = np.rint(value)
            np.clip(rounded, -limit, limit, out=rounded)
            value -= rounded
            value *= pivot
            damped += np.square(value, dtype=np.float64)
            np.subtract(wanted[:, i], rounded, out=errors[:, i])
    fed_back = np.empty_like(weights)
    np.put_along_axis(fed_back, order[:, None], (wanted - errors).transpose(0, 2, 1), 2)
    return _no_worse(weights, np.rint(fed_back), moments, damped, limit)


def _cholesky(moments: Float32, order: NDArray[np.int64], diagonal: Float32) -> Float32:
    """Return the upper Cholesky factors of the damped moments, with inputs in the given order."""
    damped = torch.from_numpy(np.take_along_axis(np.take_along_axis(moments, order[:, :, None], 1), order[:, None], 2))
    damping = _DAMPING * diagonal.mean(1) + 1e-9
    damped.diagonal(dim1=1, dim2=2).add_(torch.from_numpy(damping.astype(np.float32))[:, None])
    upper, failed = torch.linalg.cholesky_ex(damped, upper=True)
    if failed.any():  # float32 was not enough
        upper = torch.linalg.cholesky(damped.double(), upper=True).float()
    result: Float32 = upper.numpy()
    return result


def _no_worse(
    weights: Float32, fed_back: Float32, moments: Float32, damped: NDArray[np.float64], limit: int
) -> Float32:
    """Return the fed back weights, but weights rounded to the nearest for output channels that feedback made worse.

    Feedback is greedy: sometimes a channel ends with a larger error than with rounding to the nearest.

    Args:
        weights: (G, O, K), as for ``feed_back``.
        fed_back: likewise, rounded.
        moments: likewise.
        damped: (G, O) output errors by the damped moments, which are at least those by the moments.
        limit: as for ``feed_back``.
    """
    nearest = np.clip(np.rint(weights), -limit, limit)
    least = _output_errors(weights - nearest, moments)
    for group, channel in zip(*np.nonzero(damped > least), strict=True):
        error = weights[group, None, channel, None] - fed_back[group, None, channel, None]
        if _output_errors(error, moments[group, None])[0, 0] > least[group, channel]:
            fed_back[group, channel] = nearest[group, channel]
    return fed_back


def _output_errors(errors: Float32, moments: Float32) -> NDArray[np.float64]:
    """Return Σ (e·x)² over all x, (G, O), of errors (G, O, K) by the second moments of x."""
    products = torch.from_numpy(errors) @ torch.from_numpy(moments)
    total: NDArray[np.float64] = np.einsum("gok,gok->go", products.numpy(), errors, dtype=np.float64)
    return total
