"""The NumPy reference against the definition, and the behaviour of every executor on good and bad images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.integer_networks import COMPOSED, OPERATORS, networks, random_images, random_network
from tests.scalar_executor import ScalarExecutor
from twoscale._ir import layers as n
from twoscale._ir.execution import check_images, run_logits
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.operators import accumulating, pooling, products, sums, vectorized
from twoscale._ir.reference import ReferenceExecutor
from twoscale._runtimes import EXECUTORS, create
from twoscale.errors import ConfigurationError, UnknownNameError

EXECUTOR_NAMES = ["reference", "torch", "onnxruntime"]


def all_layers(network: IntegerNetwork) -> list[str]:
    return [layer.name for layer in network]


def assert_same(expected: dict[str, NDArray[Any]], found: dict[str, NDArray[Any]], network: IntegerNetwork) -> None:
    """Check equality of every layer, with types and shapes. The message names the layer."""
    assert expected.keys() == found.keys()
    for layer in network:
        e, f = expected[layer.name], found[layer.name]
        assert (e.dtype, e.shape) == (f.dtype, f.shape), layer
        if not np.array_equal(e, f):
            index = tuple(int(i) for i in np.argwhere(e != f)[0])
            pytest.fail(f"{layer.op} {layer.name} at {index}: expected {e[index]}, found {f[index]}\n{layer}")


def count_mismatches(expected: dict[str, NDArray[Any]], found: dict[str, NDArray[Any]]) -> int:
    return sum(int((expected[name] != found[name]).sum()) for name in expected)


@settings(max_examples=100)
@given(networks(dtype=None), st.integers(0, 2**32 - 1))
def test_reference_is_the_definition(network: IntegerNetwork, seed: int) -> None:
    images = random_images(np.random.default_rng(seed), network, 2)
    found = ReferenceExecutor(network).run(images, all_layers(network))
    assert_same(ScalarExecutor(network).run(images), found, network)


@settings(max_examples=40)
@given(networks(dtype="mixed", on_grid=False, longest=6), st.integers(0, 2**32 - 1))
def test_reference_is_the_definition_off_the_grid(network: IntegerNetwork, seed: int) -> None:
    images = random_images(np.random.default_rng(seed), network, 1)
    found = ReferenceExecutor(network).run(images, all_layers(network))
    assert_same(ScalarExecutor(network).run(images), found, network)


@pytest.mark.parametrize("operator", [*OPERATORS, *COMPOSED])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_every_operator_is_its_definition(operator: str, dtype: Any) -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        network = random_network(rng, operators={operator}, length=3, dtype=dtype)
        images = random_images(rng, network, 1)
        found = ReferenceExecutor(network).run(images, all_layers(network))
        assert_same(ScalarExecutor(network).run(images), found, network)


def test_random_networks_hold_every_layer_and_spread_their_values() -> None:
    """The tests above mean little if the maker's tensors are all saturated or all constant."""
    kinds: set[type[n.Layer]] = set()
    spread = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        network = random_network(rng)
        assert network.on_grid
        kinds |= {type(layer) for layer in network}
        values = ReferenceExecutor(network).run(random_images(rng, network, 8), all_layers(network))
        for layer in network:
            q, spec = values[layer.name], layer.output
            assert q.min() >= spec.lo
            assert q.max() <= spec.hi
            if spec.dtype != "int32":
                spread.append(float(((q > spec.lo) & (q < spec.hi)).mean()))
    assert kinds == set(n.LAYERS) - {n.FixedPointSoftmax}  # of .tflite files: tests/formats/test_tflite_in.py
    assert np.mean(spread) > 0.4


def test_equal_seeds_make_equal_networks() -> None:
    first, second, other = (random_network(np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint != other.fingerprint


# Planted faults: the comparison above must detect each of them.


def some_networks(operators: set[str]) -> list[tuple[IntegerNetwork, NDArray[np.float32]]]:
    made = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        network = random_network(rng, operators=operators, length=4, extreme=False)
        made.append((network, random_images(rng, network, 1)))
    return made


def halves_up(value: Any, shift: int) -> Any:
    return (value + (1 << (shift - 1))) >> shift


def halves_away(value: Any, shift: int) -> Any:
    return np.sign(value) * ((np.abs(value) + (1 << (shift - 1))) >> shift)


def padded_with_integer_zero(q: Any, spec: n.TensorSpec, padding: Any, value: int) -> Any:
    return original_padded(q, spec, padding, value if value else -spec.zero_point)


original_padded = vectorized.padded

FAULTS: dict[str, tuple[str, Callable[..., Any], set[str]]] = {
    "ties up": ("rne_shift", halves_up, {"add", "conv"}),
    "ties away from zero": ("rne_shift", halves_away, {"add", "conv"}),
    "rounding down": ("rne_shift", lambda value, shift: value >> shift, {"conv"}),
    "no clamp": ("saturate", lambda rounded, spec: rounded + spec.zero_point, {"conv"}),
    "clamp to the type": (
        "saturate",
        lambda rounded, spec: np.clip(rounded + spec.zero_point, *(0, 255) if spec.dtype == "uint8" else (-128, 127)),
        {"conv"},
    ),
    "no zero point": ("saturate", lambda rounded, spec: np.clip(rounded, spec.lo, spec.hi), {"conv"}),
    "padding with 0, not z": ("padded", padded_with_integer_zero, {"conv", "average_pool"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_shows(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, wrong, operators = FAULTS[fault]
    cases = some_networks(operators)
    right = [ReferenceExecutor(network).run(images, all_layers(network)) for network, images in cases]
    for module in (accumulating, pooling, products, sums, vectorized):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, wrong)
    found = [ReferenceExecutor(network).run(images, all_layers(network)) for network, images in cases]
    assert sum(count_mismatches(e, f) for e, f in zip(right, found, strict=True)) > 0


def other_multiplier(layer: n.Layer, by: int) -> n.Layer:
    if not isinstance(layer, n.Conv2d) or layer.multiplier is None:
        return layer
    changed = n.Multiplier.on_grid(np.maximum(layer.multiplier.integers + by, 1), layer.multiplier.shift or 16)
    return dataclasses.replace(layer, multiplier=changed)


def other_bias(layer: n.Layer) -> n.Layer:
    return dataclasses.replace(layer, bias_o=layer.bias_o + np.int32(1)) if isinstance(layer, n.Conv2d) else layer


def other_weight(layer: n.Layer) -> n.Layer:
    if not isinstance(layer, n.Conv2d):
        return layer
    weight = layer.weight.copy()
    weight.flat[0] ^= 1
    return dataclasses.replace(layer, weight=weight)


@pytest.mark.parametrize(
    "change",
    [lambda layer: other_multiplier(layer, 1), lambda layer: other_multiplier(layer, -1), other_bias, other_weight],
    ids=["multiplier + 1", "multiplier - 1", "bias + 1", "lowest bit of a weight"],
)
def test_a_number_off_by_one_shows(change: Callable[[n.Layer], n.Layer]) -> None:
    mismatches = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        network = random_network(
            rng, operators={"conv"}, length=1, bits=8, image_shape=(4, 8, 8), output="accumulators"
        )
        images = random_images(rng, network, 8)
        changed = dataclasses.replace(network, layers=tuple(change(layer) for layer in network))
        kept = all_layers(network)
        mismatches += count_mismatches(
            ReferenceExecutor(network).run(images, kept), ReferenceExecutor(changed).run(images, kept)
        )
    assert mismatches > 0


# What is the same for every executor.


@pytest.fixture(scope="module")
def network() -> IntegerNetwork:
    return random_network(np.random.default_rng(11), length=12, image_shape=(3, 6, 5))


@pytest.mark.parametrize("name", EXECUTOR_NAMES)
@pytest.mark.parametrize("count", [0, 1, 2, 33])
def test_an_image_does_not_depend_on_its_batch(name: str, count: int, network: IntegerNetwork) -> None:
    images = random_images(np.random.default_rng(count), network, count)
    executor = create(name, network)
    together = executor.run(images, all_layers(network))
    for layer in network:
        assert together[layer.name].shape == (count, *layer.output.shape)
        assert together[layer.name].dtype == layer.output.dtype
    for i in range(count):
        alone = executor.run(images[i : i + 1], all_layers(network))
        assert_same({k: v[i : i + 1] for k, v in together.items()}, alone, network)


@pytest.mark.parametrize("name", EXECUTOR_NAMES)
def test_only_what_is_asked_for_comes_back(name: str, network: IntegerNetwork) -> None:
    images = random_images(np.random.default_rng(0), network, 2)
    executor = create(name, network)
    everything = executor.run(images, all_layers(network))
    output = executor.run(images)
    assert list(output) == [network.output]
    assert np.array_equal(output[network.output], everything[network.output])
    two = executor.run(images, ["input", network.layers[3].name])
    assert sorted(two) == sorted(["input", network.layers[3].name])
    with pytest.raises(UnknownNameError, match="unknown layer 'inputt': did you mean 'input'"):
        executor.run(images, ["inputt"])


@pytest.mark.parametrize("name", EXECUTOR_NAMES)
def test_images_in_any_memory_layout_and_float_type(name: str, network: IntegerNetwork) -> None:
    images = random_images(np.random.default_rng(1), network, 6)
    executor = create(name, network)
    expected = executor.run(images)[network.output]
    channels_last = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    every_other = np.repeat(images, 2, axis=0)[::2]
    backwards = np.ascontiguousarray(images[::-1, :, ::-1])[::-1, :, ::-1]
    big_endian = images.astype(">f4")
    read_only = images.copy()
    read_only.flags.writeable = False
    others: list[Any] = [channels_last, every_other, backwards, images.astype(np.float64), big_endian, read_only]
    for other in others:
        assert np.array_equal(executor.run(other)[network.output], expected)


@pytest.mark.parametrize("name", EXECUTOR_NAMES)
def test_images_are_left_alone(name: str, network: IntegerNetwork) -> None:
    images = random_images(np.random.default_rng(2), network, 3)
    before = images.copy()
    create(name, network).run(images, all_layers(network))
    assert np.array_equal(images, before)


@pytest.mark.parametrize("name", EXECUTOR_NAMES)
@pytest.mark.parametrize("shape", [(3, 6, 5), (2, 3, 5, 6), (2, 1, 6, 5), (2, 3, 6), (2, 90), ()])
def test_images_of_a_wrong_shape(name: str, shape: tuple[int, ...], network: IntegerNetwork) -> None:
    with pytest.raises(ConfigurationError, match=r"random takes images of shape \(N, 3, 6, 5\), got \("):
        create(name, network).run(np.zeros(shape, np.float32))


@pytest.mark.parametrize("name", EXECUTOR_NAMES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_images_that_are_not_finite(name: str, value: float, network: IntegerNetwork) -> None:
    images = random_images(np.random.default_rng(3), network, 5)
    images[3, 1, 2, 2] = images[4, 0, 0, 0] = value
    message = "the images hold 2 values that are NaN or infinite, the first in image 3"
    with pytest.raises(ConfigurationError, match=message):
        create(name, network).run(images)
    with pytest.raises(ConfigurationError, match=message):
        network(torch.from_numpy(images))


def test_images_that_float32_cannot_hold(network: IntegerNetwork) -> None:
    images = np.zeros((1, 3, 6, 5))
    images[0, 0, 0, 0] = 1e39
    with pytest.raises(ConfigurationError, match="1 values that are NaN or infinite"):
        check_images(network, images)


@pytest.mark.parametrize("images", [[["a"]], np.zeros((1, 3, 6, 5), complex), None])
def test_images_that_are_no_numbers(images: Any, network: IntegerNetwork) -> None:
    with pytest.raises(ConfigurationError, match="images are arrays of numbers"):
        check_images(network, images)


def test_every_executor_has_a_name_and_a_wrong_name_gets_the_right_one(network: IntegerNetwork) -> None:
    assert set(EXECUTOR_NAMES) <= set(EXECUTORS)
    for name in EXECUTOR_NAMES:
        assert create(name, network).name == name
    with pytest.raises(UnknownNameError, match="unknown executor 'refrence': did you mean 'reference'"):
        create("refrence", network)


# Logits.


def test_logits_are_scaled_integers(network: IntegerNetwork) -> None:
    images = random_images(np.random.default_rng(4), network, 5)
    spec = network.spec(network.output)
    integers = ReferenceExecutor(network).run(images)[network.output]
    expected = ((integers.astype(np.float64) - spec.zero_point) * spec.scale).astype(np.float32)
    logits = network(images)
    assert logits.dtype == np.float32
    assert logits.shape == (5, network.classes)
    assert np.array_equal(logits, expected)


def test_a_tensor_gives_a_tensor(network: IntegerNetwork) -> None:
    images = random_images(np.random.default_rng(5), network, 4)
    expected = network(images)
    logits = network(torch.from_numpy(images).requires_grad_())
    assert isinstance(logits, torch.Tensor)
    assert np.array_equal(logits.numpy(), expected)
    assert np.array_equal(run_logits(create("torch", network), network, images), expected)
    half = torch.from_numpy(np.round(images)).to(torch.bfloat16)
    assert np.array_equal(network(half).numpy(), network(half.float().numpy()))


def test_free_multipliers_saturate_on_the_right_side() -> None:
    """Products far beyond int64 keep their sign, as in float32, instead of becoming the smallest int64."""
    x = n.TensorSpec((4, 1, 1), "uint8", 1.0, 128, 0, 255)
    free = n.Multiplier(np.array([2.0**60], np.float32), None)
    layers = (
        n.QuantizeInput(name="input", inputs=(), output=x),
        n.Mul(name="mul", inputs=("input", "input"), output=x, multiplier=free),
        n.Add(name="add", inputs=("input", "mul"), output=x, multipliers=(free, free)),
        n.Reshape(name="flat", inputs=("add",), output=dataclasses.replace(x, shape=(4,))),
    )
    network = IntegerNetwork("free", layers, ("flat",))
    images = np.array([-128.0, -1.0, 0.0, 1.0], np.float32).reshape(1, 4, 1, 1)
    for name in EXECUTOR_NAMES:
        found = create(name, network).run(images, ["mul", "add"])
        assert found["mul"].ravel().tolist() == [255, 255, 128, 255], name
        assert found["add"].ravel().tolist() == [0, 255, 128, 255], name


# Memory: batches are split into chunks, which must not change the result.


@pytest.mark.parametrize("chunk_bytes", [1, 5_000, 100_000])
def test_chunks_do_not_show(chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(6):
        rng = np.random.default_rng(seed)
        network = random_network(rng, operators={"conv", "depthwise", "residual"}, length=3)
        images = random_images(rng, network, 23)
        whole = ReferenceExecutor(network).run(images, all_layers(network))
        with monkeypatch.context() as patch:
            patch.setattr(accumulating, "_CHUNK_BYTES", chunk_bytes)
            assert_same(whole, ReferenceExecutor(network).run(images, all_layers(network)), network)


def test_a_large_batch_is_really_cut() -> None:
    weight = np.ones((8, 8, 3, 3), np.int8)
    x = n.TensorSpec((8, 16, 16), "uint8", 1.0, 0, 0, 255)
    layers = (
        n.QuantizeInput(name="input", inputs=(), output=x),
        n.Conv2d(
            name="conv", inputs=("input",), output=dataclasses.replace(x, shape=(8, 14, 14)), weight=weight,
            bias_o=np.zeros(8, np.int32), multiplier=n.Multiplier.on_grid(np.array([910])),
        ),
        n.Reshape(name="flat", inputs=("conv",), output=dataclasses.replace(x, shape=(8 * 14 * 14,))),
    )  # fmt: skip
    network = IntegerNetwork("large", layers, ("flat",))
    per_image = 8 * 14 * 14 * 8 * 3 * 3
    count = 2 * (accumulating._CHUNK_BYTES // per_image) + 1
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 16, 16)).astype(np.float32)
    together = ReferenceExecutor(network).run(images)["flat"]
    for i in (0, count // 2, count - 1):
        assert np.array_equal(together[i], ReferenceExecutor(network).run(images[i : i + 1])["flat"][0])
    assert len(np.unique(together)) > 20


@pytest.mark.parametrize(("inputs", "kind"), [(518, np.float32), (519, np.float64)])
def test_sums_beyond_24_bits_are_exact(inputs: int, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 cannot hold the odd sum of 519 products 127·255."""
    head = n.Linear(
        name="fc", inputs=("flat",), output=n.TensorSpec((1,), "int32", 1.0), multiplier=None,
        weight=np.full((1, inputs), 127, np.int8), bias_o=np.zeros(1, np.int32),
    )  # fmt: skip
    x = n.TensorSpec((inputs,), "uint8", 1.0, 0, 0, 255)
    q = np.full((1, inputs), 255, np.uint8)
    assert head.exact_type(x) is kind
    assert head.compute([x], [q]).item() == inputs * 127 * 255
    monkeypatch.setattr(n.Linear, "exact_type", lambda self, spec: np.float32)
    assert (head.compute([x], [q]).item() == inputs * 127 * 255) == (kind is np.float32)
