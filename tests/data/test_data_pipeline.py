from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twoscale import data
from twoscale.errors import ConfigurationError, DataError

every_value = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3).transpose(2, 0, 1)[None]
channel_number = st.floats(0.001, 2.0, width=64)


def rounded_once_a_step(x: int, mean: float, std: float) -> np.float32:
    """The formula in float64, rounded to float32 after each step: float64 is wide enough to be exact."""
    scaled = np.float32(np.float64(x) / 255.0)
    centred = np.float32(np.float64(scaled) - np.float64(np.float32(mean)))
    return np.float32(np.float64(centred) / np.float64(np.float32(std)))


@given(st.tuples(*[channel_number] * 3), st.tuples(*[channel_number] * 3))
@settings(max_examples=50)
def test_normalize_gives_the_same_bits_in_numpy_and_torch(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    by_numpy = data.normalize(every_value, mean, std)
    by_torch = data.normalize(torch.from_numpy(every_value.copy()), mean, std)
    assert by_numpy.dtype == np.float32
    assert by_torch.dtype == torch.float32
    assert by_numpy.tobytes() == by_torch.contiguous().numpy().tobytes()


@pytest.mark.parametrize(("mean", "std"), [(data.LAB_MEAN, data.LAB_STD), (data.CIFAR10_MEAN, data.CIFAR10_STD)])
def test_normalize_is_the_formula(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    result = data.normalize(every_value, mean, std)
    for channel in range(3):
        expected = [rounded_once_a_step(x, mean[channel], std[channel]) for x in range(256)]
        assert np.array_equal(result[0, channel].ravel(), np.array(expected))


def test_pixels_stay_exact() -> None:
    mean, std = (0.0,) * 3, (1 / 255,) * 3
    assert any(rounded_once_a_step(x, 0.0, 1 / 255) != x for x in range(256))  # what three roundings would do
    assert np.array_equal(data.normalize(every_value, mean, std), every_value)
    assert np.array_equal(data.normalize(torch.from_numpy(every_value.copy()), mean, std), every_value)


def test_the_check_of_bits_sees_a_multiplication_by_the_reciprocal() -> None:
    # What CUDA computes for "tensor / 255", a fault that the tests above must detect.
    x = np.arange(256, dtype=np.float32)
    assert not np.array_equal(x / np.float32(255), x * np.float32(1 / 255))


def test_normalize_broadcasts_along_channels_whatever_the_other_lengths() -> None:
    images = np.full((3, 3, 3, 3), 255, np.uint8)
    mean, std = (0.0, 0.25, 0.5), (1.0, 0.5, 0.25)
    for result in (data.normalize(images, mean, std), data.normalize(torch.from_numpy(images), mean, std).numpy()):
        assert (result == np.array([1.0, 1.5, 2.0], np.float32)[None, :, None, None]).all()
    assert data.normalize(images[0], mean, std).shape == (3, 3, 3)
    assert data.normalize(images[:0], mean, std).shape == (0, 3, 3, 3)


def test_normalize_leaves_its_input_and_keeps_the_memory_format() -> None:
    images = torch.from_numpy(every_value.copy()).contiguous(memory_format=torch.channels_last)
    before = images.clone()
    result = data.normalize(images, data.LAB_MEAN, data.LAB_STD)
    assert torch.equal(images, before)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert result.min() == -1.0
    assert result.max() == 1.0


def test_normalize_refuses_what_it_cannot_do() -> None:
    with pytest.raises(DataError, match=r"normalize got float32\(1, 3, 2, 2\), expected uint8 \(\.\.\., C, H, W\)"):
        data.normalize(np.zeros((1, 3, 2, 2), np.float32), data.LAB_MEAN, data.LAB_STD)
    with pytest.raises(DataError, match=r"normalize got torch\.int64"):
        data.normalize(torch.zeros((1, 3, 2, 2), dtype=torch.int64), data.LAB_MEAN, data.LAB_STD)
    with pytest.raises(DataError, match="images of 1 channels with 3 means and 3 standard deviations"):
        data.normalize(np.zeros((1, 1, 2, 2), np.uint8), data.LAB_MEAN, data.LAB_STD)
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigurationError, match=r"std is \(.*\): expected positive numbers"):
            data.normalize(np.zeros((1, 1, 2, 2), np.uint8), (0.5,), (wrong,))


@given(st.integers(0, 300), st.integers(0, 2**70), st.integers(0, 2**40))
@settings(max_examples=100)
def test_epoch_order_is_a_permutation_that_repeats(n: int, seed: int, epoch: int) -> None:
    order = data.epoch_order(n, seed=seed, epoch=epoch)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))
    assert np.array_equal(order, data.epoch_order(n, seed=seed, epoch=epoch))


def test_epoch_order_changes_with_seed_and_epoch_and_nothing_else() -> None:
    orders = {tuple(data.epoch_order(50, seed=seed, epoch=epoch).tolist()) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100
    # As words of one seed, these two would be equal.
    assert not np.array_equal(data.epoch_order(50, seed=5 + 7 * 2**32, epoch=0), data.epoch_order(50, seed=5, epoch=7))


def test_epoch_order_is_the_same_on_every_machine() -> None:
    assert data.epoch_order(10, seed=0, epoch=0).tolist() == [6, 3, 8, 1, 4, 5, 9, 2, 7, 0]
    assert data.epoch_order(10, seed=1, epoch=2).tolist() == [1, 6, 0, 2, 5, 8, 7, 3, 4, 9]


def test_epoch_order_puts_every_sample_everywhere() -> None:
    n, epochs = 8, 4000
    counts = np.zeros((n, n))
    for epoch in range(epochs):
        counts[np.arange(n), data.epoch_order(n, seed=3, epoch=epoch)] += 1
    # Chi-squared with 49 degrees of freedom: above 100 has probability 2e-5, and the seed is fixed.
    assert ((counts - epochs / n) ** 2 / (epochs / n)).sum() < 100


def global_random_state() -> str:
    return repr((random.getstate(), np.random.get_state(), torch.get_rng_state().tolist()))  # noqa: NPY002


def test_epoch_order_without_shuffle_and_global_state() -> None:
    assert data.epoch_order(4, seed=0, epoch=9, shuffle=False).tolist() == [0, 1, 2, 3]
    before = global_random_state()
    data.epoch_order(100, seed=0, epoch=0)
    data.random_crop_flip(torch.zeros((9, 3, 8, 8)), torch.Generator().manual_seed(0))
    assert global_random_state() == before
    with pytest.raises(ConfigurationError, match="epoch_order got n=3, seed=-1, epoch=0: none may be negative"):
        data.epoch_order(3, seed=-1, epoch=0)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(("n", "batch_size"), [(0, 3), (1, 3), (6, 3), (7, 3), (2, 5)])
def test_batches_cover_the_order(kind: str, drop_last: bool, ordered: bool, n: int, batch_size: int) -> None:
    images = np.arange(n * 4, dtype=np.uint8).reshape(n, 1, 2, 2)
    labels = np.arange(n, dtype=np.uint8)
    order = data.epoch_order(n, seed=0, epoch=0) if ordered else None
    if kind == "numpy":
        found = list(data.batches(images, labels, batch_size, order, drop_last))
    else:
        pairs = data.batches(torch.from_numpy(images), torch.from_numpy(labels), batch_size, order, drop_last)
        found = [(x.numpy(), y.numpy()) for x, y in pairs]
    expected = list(range(n)) if order is None else order.tolist()
    if drop_last:
        expected = expected[: n // batch_size * batch_size]
    assert [len(y) for _, y in found[:-1]] == [batch_size] * (len(found) - 1)
    assert [int(label) for _, y in found for label in y] == expected
    for x, y in found:
        assert np.array_equal(x, images[y.astype(np.int64)])


def test_batches_without_order_do_not_copy() -> None:
    images, labels = np.zeros((4, 1, 2, 2), np.uint8), np.zeros(4, np.uint8)
    assert all(np.shares_memory(x, images) for x, _ in data.batches(images, labels, 2))


def test_batches_of_part_of_the_data() -> None:
    images, labels = np.zeros((4, 1, 2, 2), np.uint8), np.arange(4, dtype=np.uint8)
    found = [y.tolist() for _, y in data.batches(images, labels, 2, np.array([3, 3, 1]))]
    assert found == [[3, 3], [1]]


def test_batches_refuse_at_once_not_at_the_first_batch() -> None:
    images, labels = np.zeros((4, 1, 2, 2), np.uint8), np.zeros(4, np.uint8)
    with pytest.raises(ConfigurationError, match="batch size 0: expected at least 1"):
        data.batches(images, labels, 0)
    with pytest.raises(DataError, match="4 images with 3 labels"):
        data.batches(images, labels[:3], 2)
    with pytest.raises(DataError, match=r"the order points at -1\.\.3, expected 0\.\.3"):
        data.batches(images, labels, 2, np.array([3, -1]))
    with pytest.raises(DataError, match=r"the order points at 0\.\.4, expected 0\.\.3"):
        data.batches(images, labels, 2, np.array([4, 0]))


def crop_flip_one_by_one(images: np.ndarray, seed: int, padding: int) -> np.ndarray:
    """The same with slices, one image at a time, and the same random numbers."""
    generator = torch.Generator().manual_seed(seed)
    n, _, height, width = images.shape
    tops = torch.randint(2 * padding + 1, (n,), generator=generator).tolist()
    lefts = torch.randint(2 * padding + 1, (n,), generator=generator).tolist()
    flips = torch.randint(2, (n,), generator=generator).tolist()
    result = np.empty_like(images)
    for i, (top, left, flip) in enumerate(zip(tops, lefts, flips, strict=True)):
        padded = np.pad(images[i], ((0, 0), (padding, padding), (padding, padding)))
        cropped = padded[:, top : top + height, left : left + width]
        result[i] = cropped[:, :, ::-1] if flip else cropped
    return result


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("padding", [0, 1, 4])
def test_random_crop_flip_is_pad_crop_flip(dtype: type, padding: int) -> None:
    rng = np.random.default_rng(0)
    images: np.ndarray = rng.integers(1, 256, (200, 3, 6, 9)).astype(dtype)
    result = data.random_crop_flip(torch.from_numpy(images), torch.Generator().manual_seed(5), padding)
    assert result.dtype == torch.from_numpy(images).dtype
    assert np.array_equal(result.numpy(), crop_flip_one_by_one(images, 5, padding))


def test_random_crop_flip_reaches_every_place_both_ways() -> None:
    # One bright pixel in a dark image shows the shift and, if off centre, the mirroring.
    images = torch.zeros((2000, 1, 12, 12), dtype=torch.uint8)
    images[:, 0, 6, 5] = 1
    images[:, 0, 6, 6] = 2
    result = data.random_crop_flip(images, torch.Generator().manual_seed(0))
    seen = {
        (int((image == 1).nonzero()[0, 0]), int((image == 1).nonzero()[0, 1]), int((image == 2).nonzero()[0, 1]))
        for image in result[:, 0]
    }
    assert len(seen) == 9 * 9 * 2


def test_random_crop_flip_repeats_and_leaves_its_input() -> None:
    images = torch.arange(2 * 3 * 8 * 8, dtype=torch.uint8).reshape(2, 3, 8, 8)
    before = images.clone()
    first = data.random_crop_flip(images, torch.Generator().manual_seed(1))
    assert torch.equal(first, data.random_crop_flip(images, torch.Generator().manual_seed(1)))
    assert torch.equal(images, before)
    assert data.random_crop_flip(images[:0], torch.Generator()).shape == (0, 3, 8, 8)
    with pytest.raises(ConfigurationError, match="padding -1: expected at least 0"):
        data.random_crop_flip(images, torch.Generator(), -1)
    with pytest.raises(DataError, match=r"got a shape of \(3, 8, 8\), expected \(N, C, H, W\)"):
        data.random_crop_flip(images[0], torch.Generator())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_device_gives_the_same_bits() -> None:
    images = torch.from_numpy(every_value.copy())
    for mean, std in ((data.LAB_MEAN, data.LAB_STD), (data.CIFAR10_MEAN, data.CIFAR10_STD)):
        on_device = data.normalize(images.cuda(), mean, std)
        assert on_device.is_cuda
        assert torch.equal(on_device.cpu(), data.normalize(images, mean, std))
    many = images.repeat(64, 1, 1, 1)
    on_device = data.random_crop_flip(many.cuda(), torch.Generator().manual_seed(2))
    assert torch.equal(on_device.cpu(), data.random_crop_flip(many, torch.Generator().manual_seed(2)))
    order = data.epoch_order(64, seed=0, epoch=0)
    for x, y in data.batches(many.cuda(), torch.arange(64).cuda(), 10, order):
        assert x.is_cuda
        assert y.is_cuda


def test_augmentation_depends_on_image_seed_and_epoch_only() -> None:
    n = 4000
    drawn = data.augmentation(n, seed=1, epoch=0, padding=2, flip="random")
    assert np.array_equal(drawn, data.augmentation(n, seed=1, epoch=0, padding=2, flip="random"))
    assert np.array_equal(drawn[:10], data.augmentation(10, seed=1, epoch=0, padding=2, flip="random"))
    for other in ({"seed": 2, "epoch": 0}, {"seed": 1, "epoch": 1}):
        assert not np.array_equal(drawn, data.augmentation(n, padding=2, flip="random", **other))
    # All shifts are equally frequent within six standard deviations, and so is mirroring.
    for column, places in ((0, 5), (1, 5)):
        counts = np.bincount(drawn[:, column] + 2, minlength=5)
        assert len(counts) == places
        assert np.abs(counts - n / places).max() < 6 * (n / places) ** 0.5
    assert abs(drawn[:, 2].sum() - n / 2) < 3 * n**0.5
    assert np.abs(np.corrcoef(drawn.T) - np.eye(3)).max() < 0.1
    assert not data.augmentation(n, seed=1, epoch=0).any()


def test_alternating_flips_mirror_every_image_every_other_epoch() -> None:
    epochs = [data.augmentation(50, seed=3, epoch=epoch, flip="alternating")[:, 2] for epoch in range(4)]
    assert np.array_equal(epochs[0], epochs[2])
    assert np.array_equal(epochs[0] + epochs[1], np.ones(50))
    assert 10 < epochs[0].sum() < 40


@pytest.mark.parametrize("fill", ["black", "reflect"])
def test_crop_flip_as_numpy_pads(fill: Any) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 3, 6, 8), dtype=np.uint8)
    how = np.stack([rng.integers(-3, 4, 30), rng.integers(-3, 4, 30), rng.integers(0, 2, 30)], axis=1)
    found = data.crop_flip(torch.from_numpy(images), torch.from_numpy(how), fill).numpy()
    mode: Any = {"black": "constant", "reflect": "reflect"}[fill]
    padded = np.pad(images, ((0, 0), (0, 0), (3, 3), (3, 3)), mode=mode)
    for image, (up, left, mirrored), result in zip(padded, how, found, strict=True):
        cropped = image[:, 3 + up : 9 + up, 3 + left : 11 + left]
        assert np.array_equal(result, cropped[:, :, ::-1] if mirrored else cropped)


def test_augmentation_outside_its_range() -> None:
    with pytest.raises(ConfigurationError, match="padding must be below 128"):
        data.augmentation(3, seed=0, epoch=0, padding=128)
