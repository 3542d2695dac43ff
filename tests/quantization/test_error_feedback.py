"""Error feedback against the published GPTQ, in float64 with the inverse of the second moments."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from twoscale._quantization import error_feedback
from twoscale._quantization.error_feedback import Curvature, FewSamples, SecondMoments, blocks_of, feed_back

Float64 = NDArray[np.float64]


def gptq(weights: Float64, moments: Float64, limit: int) -> Float64:
    """Round (O, K) weights by algorithm 1 of Frantar et al. 2022. Channels that end worse are rounded to the
    nearest."""
    size = weights.shape[1]
    order = np.argsort(-np.diag(moments), kind="stable")
    damped = moments[np.ix_(order, order)] + np.eye(size) * (0.01 * np.diag(moments).mean() + 1e-9)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    work, rounded = weights[:, order].copy(), np.empty_like(weights)
    for i in range(size):
        rounded[:, i] = np.clip(np.rint(work[:, i]), -limit, limit)
        error = (work[:, i] - rounded[:, i]) / upper[i, i]
        work[:, i + 1 :] -= error[:, None] * upper[i, i + 1 :]
    back = np.empty_like(rounded)
    back[:, order] = rounded
    nearest = np.clip(np.rint(weights), -limit, limit)
    return np.where((errors(weights - back, moments) <= errors(weights - nearest, moments))[:, None], back, nearest)


def errors(differences: Float64, moments: Float64) -> Float64:
    found: Float64 = np.einsum("oi,ij,oj->o", differences, moments, differences)
    return found


def example(seed: int, groups: int, channels: int, size: int, samples: int) -> tuple[Float64, Float64]:
    """Return weights (G, O, K) and moments (G, K, K) of correlated inputs that are never negative."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(groups, size, size)) / np.sqrt(size) + np.eye(size)
    x = np.maximum(mixing @ rng.normal(size=(groups, size, samples)) + 0.5, 0) * rng.uniform(0.1, 3, (groups, size, 1))
    return rng.normal(size=(groups, channels, size)) * 20, x @ x.swapaxes(1, 2)


def fed_back(weights: Float64, moments: Float64, limit: int) -> Float64:
    return rounded_by(SecondMoments(moments.astype(np.float32)), weights, limit)


def rounded_by(curvature: Curvature, weights: Float64, limit: int) -> Float64:
    """Round weights in units of their steps. The steps given differ, so that a mix-up of them is seen."""
    steps = np.random.default_rng(0).uniform(0.5, 2, weights.shape[:2]).astype(np.float32)
    scaled = (weights * steps[:, :, None]).astype(np.float32)
    return feed_back(scaled, steps, curvature, limit).astype(np.float64)


@pytest.mark.parametrize(("groups", "channels", "size"), [(1, 6, 7), (1, 5, 64), (1, 8, 150), (9, 1, 9), (3, 4, 70)])
@pytest.mark.parametrize("limit", [1, 7, 127])
def test_the_integers_are_those_of_gptq(groups: int, channels: int, size: int, limit: int) -> None:
    weights, moments = example(size + limit, groups, channels, size, 40 * size)
    found = fed_back(weights, moments, limit)
    for group in range(groups):
        expected = gptq(weights[group], moments[group], limit)
        # float32 decides some ties otherwise; the errors are then the same.
        assert np.mean(found[group] != expected) < 0.01
        np.testing.assert_allclose(
            errors(weights[group] - found[group], moments[group]).sum(),
            errors(weights[group] - expected, moments[group]).sum(),
            rtol=2e-3,
        )


def test_no_channel_ends_worse_than_rounded_to_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, moments = example(1, 1, 400, 6, 30)
    nearest = np.clip(np.rint(weights), -3, 3)
    before = errors(weights[0] - nearest[0], moments[0])
    assert (errors(weights[0] - fed_back(weights, moments, 3)[0], moments[0]) <= before * (1 + 1e-5)).all()
    # The check is needed: without it some channels are worse.
    monkeypatch.setattr(error_feedback, "_channels_worse", lambda fed_back, nearest: iter(()))
    assert (errors(weights[0] - fed_back(weights, moments, 3)[0], moments[0]) > before).any()


@pytest.mark.parametrize(("channels", "size", "samples"), [(5, 70, 3), (4, 200, 20), (6, 131, 131)])
@pytest.mark.parametrize("limit", [7, 127])
def test_few_samples_give_the_integers_of_their_second_moments(
    channels: int, size: int, samples: int, limit: int
) -> None:
    rng = np.random.default_rng(size + samples)
    x = np.maximum(rng.normal(size=(samples, size)) + 0.5, 0) * rng.uniform(0.1, 3, size)
    weights = rng.normal(size=(1, channels, size)) * 20
    moments = (x.T @ x)[None]
    few, dense = rounded_by(FewSamples(x.astype(np.float32)), weights, limit), fed_back(weights, moments, limit)
    assert np.mean(few != dense) < 0.02  # float32 decides some ties otherwise
    expected = gptq(weights[0], moments[0], limit)
    assert np.mean(few[0] != expected) < 0.02
    before = errors(weights[0] - np.clip(np.rint(weights[0]), -limit, limit), moments[0])
    assert (errors(weights[0] - few[0], moments[0]) <= before * (1 + 1e-5)).all()


def test_inputs_without_second_moments_are_rounded_to_the_nearest() -> None:
    weights, moments = example(2, 1, 5, 12, 200)
    moments[:, 3] = moments[:, :, 3] = 0.0
    found = fed_back(weights, moments, 127)
    assert np.array_equal(found[..., 3], np.rint(weights[..., 3]))
    assert np.array_equal(fed_back(weights, np.zeros_like(moments), 127), np.rint(weights))


def test_wide_layers_are_rounded_in_parts() -> None:
    assert blocks_of(1152) == [slice(0, 1152)]
    parts = blocks_of(25_088)
    assert (parts[0].start, parts[-1].stop) == (0, 25_088)
    assert all(a.stop == b.start for a, b in itertools.pairwise(parts))
    assert max(part.stop - part.start for part in parts) <= 1152
