"""The torch executor against the reference: equal integers in all modes of torch."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.integer_networks import COMPOSED, OPERATORS, networks, random_images, random_network
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.reference import ReferenceExecutor
from twoscale._runtimes import torch as torch_executor
from twoscale._runtimes.torch import TorchExecutor
from twoscale.errors import ExecutorError

mkldnn: Any = torch.backends.mkldnn

CONVOLUTIONS = {"conv", "depthwise", "residual", "linear"}


def mismatches(network: IntegerNetwork, executor: TorchExecutor, images: NDArray[np.float32]) -> dict[str, int]:
    """Return the layers with different integers, and how many differ."""
    names = [layer.name for layer in network]
    expected, found = ReferenceExecutor(network).run(images, names), executor.run(images, names)
    for name in names:
        assert (expected[name].dtype, expected[name].shape) == (found[name].dtype, found[name].shape), network[name]
    different = {name: int((expected[name] != found[name]).sum()) for name in names}
    return {name: count for name, count in different.items() if count}


def summing_in(kind: torch.dtype, network: IntegerNetwork) -> TorchExecutor:
    """Return an executor that sums in ``kind`` regardless of the bounds."""
    executor = TorchExecutor(network)
    for layer in network:
        if isinstance(layer, n.Accumulating):
            executor._weights[layer] = (
                torch.from_numpy(layer.weight).to(kind),
                torch.from_numpy(layer.bias_o).to(kind),
            )
    return executor


def sum_types(executor: TorchExecutor) -> set[torch.dtype]:
    return {weight.dtype for weight, _ in executor._weights.values()}


@settings(max_examples=100)
@given(networks(longest=14), st.integers(0, 2**32 - 1), st.integers(0, 5))
def test_torch_equals_the_reference(network: IntegerNetwork, seed: int, count: int) -> None:
    images = random_images(np.random.default_rng(seed), network, count)
    assert mismatches(network, TorchExecutor(network), images) == {}


@settings(max_examples=25)
@given(networks(dtype="mixed"), st.integers(0, 2**32 - 1))
def test_mixed_types_of_activations(network: IntegerNetwork, seed: int) -> None:
    images = random_images(np.random.default_rng(seed), network, 2)
    assert mismatches(network, TorchExecutor(network), images) == {}


@settings(max_examples=25)
@given(networks(operators=CONVOLUTIONS), st.integers(0, 2**32 - 1))
def test_sums_in_double_give_the_same(network: IntegerNetwork, seed: int) -> None:
    images = random_images(np.random.default_rng(seed), network, 2)
    executor = summing_in(torch.float64, network)
    assert mismatches(network, executor, images) == {}
    assert sum_types(executor) == {torch.float64}


@settings(max_examples=25)
@given(networks(operators=CONVOLUTIONS), st.integers(0, 2**32 - 1))
def test_unfolded_convolutions_give_the_same(network: IntegerNetwork, seed: int) -> None:
    """The form that a CUDA device runs, here on the CPU."""
    images = random_images(np.random.default_rng(seed), network, 3)
    executor = TorchExecutor(network)
    assert not executor._unfolds
    executor._unfolds = True
    assert mismatches(network, executor, images) == {}
    executor = summing_in(torch.float64, network)
    executor._unfolds = True
    assert mismatches(network, executor, images) == {}


@pytest.mark.parametrize("operator", [*OPERATORS, *COMPOSED])
def test_every_operator(operator: str) -> None:
    for seed in range(8):
        rng = np.random.default_rng(seed)
        network = random_network(rng, operators={operator}, length=3)
        assert mismatches(network, TorchExecutor(network), random_images(rng, network, 3)) == {}, network


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_equals_the_reference() -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        network = random_network(rng)
        assert mismatches(network, TorchExecutor(network, "cuda"), random_images(rng, network, 3)) == {}


# Sums beyond 2**24.


def wide_layer(weight: int, bias: int, inputs: int) -> IntegerNetwork:
    """One linear layer whose accumulators can be large, with int32 output."""
    x = n.TensorSpec((inputs, 1, 1), "uint8", 1.0, 0, 0, 255)
    layers = (
        n.QuantizeInput(name="input", inputs=(), output=x),
        n.Reshape(name="flat", inputs=("input",), output=dataclasses.replace(x, shape=(inputs,))),
        n.Linear(
            name="logits", inputs=("flat",), output=n.TensorSpec((2,), "int32", 1.0), multiplier=None,
            weight=np.full((2, inputs), weight, np.int8), bias_o=np.array([bias, -bias], np.int32),
        ),
    )  # fmt: skip
    return IntegerNetwork("wide", layers, ("logits",))


@pytest.mark.parametrize(
    ("weight", "bias", "inputs"), [(127, 0, 2000), (-127, 0, 2000), (1, 2**30 + 1, 3), (127, 1, 518)]
)
def test_sums_beyond_2_to_24(weight: int, bias: int, inputs: int) -> None:
    network = wide_layer(weight, bias, inputs)
    images = np.random.default_rng(0).integers(0, 256, (50, inputs, 1, 1)).astype(np.float32)
    executor = TorchExecutor(network)
    assert mismatches(network, executor, images) == {}
    assert sum_types(executor) == {torch.float32 if network.bounds[0].float32_exact else torch.float64}


def test_the_bound_is_what_keeps_large_sums_exact() -> None:
    """Planted: summed in float32, such a network gives other integers."""
    network = wide_layer(127, 2**24, 2000)
    images = np.random.default_rng(0).integers(0, 256, (50, 2000, 1, 1)).astype(np.float32)
    assert mismatches(network, summing_in(torch.float32, network), images)["logits"] > 0


def test_the_largest_sum_in_float32_is_exact() -> None:
    """A bound of exactly 2**24 − 1 that is reached."""
    weight = np.array([[127] * 518 + [5]], np.int8)
    x = n.TensorSpec((519, 1, 1), "uint8", 1.0, 0, 0, 255)
    bias = 2**24 - 1 - int(weight.astype(int).sum()) * 255
    layers = (
        n.QuantizeInput(name="input", inputs=(), output=x),
        n.Conv2d(
            name="conv", inputs=("input",), output=n.TensorSpec((1, 1, 1), "int32", 1.0), multiplier=None,
            weight=weight.reshape(1, 519, 1, 1), bias_o=np.array([bias], np.int32),
        ),
        n.Reshape(name="logits", inputs=("conv",), output=n.TensorSpec((1,), "int32", 1.0)),
    )  # fmt: skip
    network = IntegerNetwork("edge", layers, ("logits",))
    assert network.bounds[0].bound == 2**24 - 1
    executor = TorchExecutor(network)
    images = np.full((1, 519, 1, 1), 255, np.float32)
    assert executor.run(images)["logits"].tolist() == [[2**24 - 1]]
    assert sum_types(executor) == {torch.float32}


# Planted faults.


@pytest.mark.parametrize("fault", ["ties up", "clamped to the type", "truncated", "padding"])
def test_a_planted_fault_shows(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def saturate(product: torch.Tensor, spec: n.TensorSpec) -> torch.Tensor:
        if fault == "ties up":
            return (product + 0.5).floor().add(spec.zero_point).clamp(spec.lo, spec.hi)
        if fault == "truncated":
            return product.trunc().add(spec.zero_point).clamp(spec.lo, spec.hi)
        return product.round().add(spec.zero_point).clamp(-128, 127)

    def pad(x: torch.Tensor, padding: n.Padding, value: float) -> torch.Tensor:
        return original(x, padding, value + 1.0)

    original = torch_executor._pad
    monkeypatch.setattr(torch_executor, *(("_pad", pad) if fault == "padding" else ("_saturate", saturate)))
    found = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        network = random_network(rng, operators={"conv", "add"}, length=4, dtype="int8")
        found += len(mismatches(network, TorchExecutor(network), random_images(rng, network, 2)))
    assert found > 0


# Modes of torch that a user may have switched on.


@contextlib.contextmanager
def without_mkldnn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of TF32 whenever this flag is set
        before = mkldnn.set_flags(False)
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mkldnn.set_flags(*before)


@pytest.fixture
def many_images() -> tuple[IntegerNetwork, NDArray[np.float32]]:
    """A 3×3 convolution over 32 images: what NNPACK computes by Winograd's transform."""
    rng = np.random.default_rng(0)
    x = n.TensorSpec((16, 12, 12), "uint8", 1.0, 128, 0, 255)
    weight = rng.integers(-127, 128, (16, 16, 3, 3)).astype(np.int8)
    out = n.TensorSpec((16, 10, 10), "int32", 1.0)
    layers = (
        n.QuantizeInput(name="input", inputs=(), output=x),
        n.Conv2d(
            name="conv", inputs=("input",), output=out, multiplier=None, weight=weight, bias_o=np.zeros(16, np.int32)
        ),
        n.Reshape(name="logits", inputs=("conv",), output=n.TensorSpec((1600,), "int32", 1.0)),
    )
    return IntegerNetwork("nnpack", layers, ("logits",)), rng.integers(-128, 128, (32, 16, 12, 12)).astype(np.float32)


def test_transforms_that_are_not_exact_are_off(many_images: tuple[IntegerNetwork, NDArray[np.float32]]) -> None:
    network, images = many_images
    with without_mkldnn():
        assert mismatches(network, TorchExecutor(network), images) == {}


def test_autocast_does_not_reach_the_executor(many_images: tuple[IntegerNetwork, NDArray[np.float32]]) -> None:
    network, images = many_images
    with torch.autocast("cpu", torch.bfloat16):
        assert mismatches(network, TorchExecutor(network), images) == {}


@pytest.mark.filterwarnings("ignore:Please use the new API settings:UserWarning")  # torch 2.9, of its own function
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_reduced_precision_is_off_while_a_network_runs_and_back_after(
    precision: str, many_images: tuple[IntegerNetwork, NDArray[np.float32]], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, images = many_images
    seen: list[str] = []
    original = torch_executor._RUN[n.Conv2d]

    def spy(e: TorchExecutor, layer: n.Conv2d, x: list[torch.Tensor]) -> torch.Tensor:
        seen.extend(place.fp32_precision for place in torch_executor._PRECISIONS)
        return original(e, layer, x)

    monkeypatch.setattr(torch_executor, "_RUN", torch_executor._RUN | {n.Conv2d: spy})
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        places = [place.fp32_precision for place in torch_executor._PRECISIONS]
        assert mismatches(network, TorchExecutor(network), images) == {}
        assert set(seen) == {"ieee"}
        assert [place.fp32_precision for place in torch_executor._PRECISIONS] == places
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


def test_modes_come_back_after_an_error(many_images: tuple[IntegerNetwork, NDArray[np.float32]]) -> None:
    network, _ = many_images
    before = [place.fp32_precision for place in torch_executor._PRECISIONS]
    with pytest.raises(RuntimeError):
        TorchExecutor(network).run_tensors(torch.zeros(1, 3, 3, 3))
    assert [place.fp32_precision for place in torch_executor._PRECISIONS] == before
    assert torch.is_grad_enabled()


def test_the_default_type_does_not_matter(many_images: tuple[IntegerNetwork, NDArray[np.float32]]) -> None:
    network = random_network(np.random.default_rng(1), length=10)
    images = random_images(np.random.default_rng(2), network, 3)
    torch.set_default_dtype(torch.float64)
    try:
        assert mismatches(network, TorchExecutor(network), images) == {}
    finally:
        torch.set_default_dtype(torch.float32)


def test_tensors_stay_tensors() -> None:
    network = random_network(np.random.default_rng(3), length=6)
    images = random_images(np.random.default_rng(4), network, 3)
    found = TorchExecutor(network).run_tensors(torch.from_numpy(images).requires_grad_(), ["input", network.output])
    assert set(found) == {"input", network.output}
    expected = ReferenceExecutor(network).run(images, ["input", network.output])
    for name, value in found.items():
        assert not value.requires_grad
        assert value.is_floating_point()
        assert np.array_equal(value.numpy(), expected[name])


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there(device: str) -> None:
    network = random_network(np.random.default_rng(5), length=1)
    with pytest.raises(ExecutorError, match=rf"cannot use device '{device}': .*; use device='cpu'"):
        TorchExecutor(network, device)
