"""Executors with one mistake each, of the kinds that real ones have made: verify finds it and names the layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.layers import TensorSpec
from twoscale._ir.reference import ReferenceExecutor
from twoscale._verification import verify

Fault = Callable[[ReferenceExecutor, Any, list[NDArray[Any]]], NDArray[Any]]


def hand_made(zero_point: int = 100) -> IntegerNetwork:
    """Convolution with a border, ReLU6, addition, average pool, table, linear layer; multipliers that make ties."""
    rng = np.random.default_rng(0)

    def spec(shape: tuple[int, ...], zero: int, lo: int = 0, hi: int = 255) -> TensorSpec:
        return TensorSpec(shape, "uint8", 0.125, zero, lo, hi)

    def weight(*shape: int) -> NDArray[np.int8]:
        return rng.integers(-127, 128, shape).astype(np.int8)

    halves = n.Multiplier.on_grid(np.array([2**9, 3 * 2**8, 2**8, 2**9]))
    layers: tuple[n.Layer, ...] = (
        n.QuantizeInput(name="input", inputs=(), output=spec((2, 6, 6), 50)),
        n.Conv2d(
            name="conv", inputs=("input",), output=spec((4, 6, 6), zero_point), multiplier=halves, padding=(1, 1, 1, 1),
            weight=weight(4, 2, 3, 3), bias_o=rng.integers(-500, 500, 4).astype(np.int32),
        ),
        n.Conv2d(
            name="relu6", inputs=("input",), output=spec((4, 6, 6), 0, 0, 48), multiplier=halves,
            weight=weight(4, 2, 1, 1), bias_o=rng.integers(-500, 500, 4).astype(np.int32),
        ),
        n.Add(
            name="add", inputs=("conv", "relu6"), output=spec((4, 6, 6), zero_point),
            multipliers=(n.Multiplier.on_grid(np.array([2**13]), 14), n.Multiplier.on_grid(np.array([2**13]), 14)),
        ),
        n.AveragePool2d(
            name="pool", inputs=("add",), output=spec((4, 3, 3), zero_point), kernel=(2, 2), stride=(2, 2),
            multiplier=n.Multiplier.on_grid(np.array([2**14])),
        ),
        n.Table(
            name="table", inputs=("pool",), output=spec((4, 3, 3), 0),
            table=np.maximum(np.arange(256) - zero_point, 0).astype(np.int16),
        ),
        n.Reshape(name="flat", inputs=("table",), output=spec((36,), 0)),
        n.Linear(
            name="fc", inputs=("flat",), output=TensorSpec((5,), "int32", 1e-3), multiplier=None,
            weight=weight(5, 36), bias_o=np.zeros(5, np.int32),
        ),
    )  # fmt: skip
    return IntegerNetwork("hand-made", layers, ("fc",), "test")


class Faulty:
    """The reference with one layer computed otherwise; what comes after it computes with what it gave."""

    name = "faulty"

    def __init__(self, network: IntegerNetwork, layer: str, fault: Fault) -> None:
        self.inner = ReferenceExecutor(network)
        self.layer = layer
        self.fault = fault

    def run(self, images_nchw: NDArray[np.float32], keep: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
        values: dict[str, NDArray[Any]] = {}
        for layer in self.inner.network:
            inputs = [values[name] for name in layer.inputs] or [images_nchw]
            compute = self.fault if layer.name == self.layer else ReferenceExecutor.compute
            values[layer.name] = compute(self.inner, layer, inputs).astype(layer.output.dtype)
        return values


def accumulators(reference: ReferenceExecutor, layer: Any, inputs: list[NDArray[Any]]) -> NDArray[np.float64]:
    """Return acc · m / 2**16 of a layer with weights or a pool, exactly."""
    whole = TensorSpec(layer.output.shape, "int32", 1.0)
    acc = reference.compute(dataclasses.replace(layer, multiplier=None, output=whole), inputs)
    factors: NDArray[np.float64] = layer.multiplier.values.astype(np.float64)
    return acc * factors.reshape(1, -1, *(1,) * (acc.ndim - 2))


def operands(reference: ReferenceExecutor, layer: n.Add, inputs: list[NDArray[Any]]) -> NDArray[np.float64]:
    """Return the sum of an addition before rounding, exactly."""
    specs = [reference.network.spec(name) for name in layer.inputs]
    parts = [
        (q.astype(np.float64) - spec.zero_point) * m.values.astype(np.float64)
        for q, spec, m in zip(inputs, specs, layer.multipliers, strict=True)
    ]
    return parts[0] + parts[1]


def saturated(layer: n.Layer, rounded: NDArray[np.float64]) -> NDArray[Any]:
    clipped: NDArray[Any] = np.clip(rounded + layer.output.zero_point, layer.output.lo, layer.output.hi)
    return clipped


def half_up(reference: ReferenceExecutor, layer: Any, inputs: list[NDArray[Any]]) -> NDArray[Any]:
    exact = (operands if isinstance(layer, n.Add) else accumulators)(reference, layer, inputs)
    return saturated(layer, np.floor(exact + 0.5))


def away_from_zero(reference: ReferenceExecutor, layer: Any, inputs: list[NDArray[Any]]) -> NDArray[Any]:
    exact = (operands if isinstance(layer, n.Add) else accumulators)(reference, layer, inputs)
    return saturated(layer, np.trunc(exact + np.copysign(0.5, exact)))


def truncated(reference: ReferenceExecutor, layer: Any, inputs: list[NDArray[Any]]) -> NDArray[Any]:
    return saturated(layer, np.trunc(accumulators(reference, layer, inputs)))


def multiplier_off_by(difference: int) -> Fault:
    def fault(reference: ReferenceExecutor, layer: Any, inputs: list[NDArray[Any]]) -> NDArray[Any]:
        changed = n.Multiplier.on_grid(layer.multiplier.integers + difference)
        return reference.compute(dataclasses.replace(layer, multiplier=changed), inputs)

    return fault


def no_relu6(reference: ReferenceExecutor, layer: Any, inputs: list[NDArray[Any]]) -> NDArray[Any]:
    clipped: NDArray[Any] = np.clip(np.rint(accumulators(reference, layer, inputs)) + layer.output.zero_point, 0, 255)
    return clipped


def no_clamp_at_all(reference: ReferenceExecutor, layer: Any, inputs: list[NDArray[Any]]) -> NDArray[Any]:
    whole: NDArray[np.int64] = np.rint(accumulators(reference, layer, inputs)).astype(np.int64)
    whole += layer.output.zero_point
    return whole % 256  # as a store of the low byte does


def border_of(value: int) -> Fault:
    """Pad with an integer that is not the input's zero point."""

    def fault(reference: ReferenceExecutor, layer: Any, inputs: list[NDArray[Any]]) -> NDArray[Any]:
        top, left, bottom, right = layer.padding
        padded = np.pad(inputs[0], ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=value)
        return reference.compute(dataclasses.replace(layer, padding=(0, 0, 0, 0)), [padded])

    return fault


def zero_point_before_rounding(reference: ReferenceExecutor, layer: Any, inputs: list[NDArray[Any]]) -> NDArray[Any]:
    exact = (operands if isinstance(layer, n.Add) else accumulators)(reference, layer, inputs)
    clipped: NDArray[Any] = np.clip(np.rint(exact + layer.output.zero_point), layer.output.lo, layer.output.hi)
    return clipped


def no_zero_point(reference: ReferenceExecutor, layer: Any, inputs: list[NDArray[Any]]) -> NDArray[Any]:
    shifts = [reference.network.spec(name).zero_point for name in layer.inputs]  # taken off again by compute
    return reference.compute(layer, [q.astype(np.int64) + z for q, z in zip(inputs, shifts, strict=True)])


def transposed_weights(reference: ReferenceExecutor, layer: n.Conv2d, inputs: list[NDArray[Any]]) -> NDArray[Any]:
    return reference.compute(dataclasses.replace(layer, weight=layer.weight.transpose(0, 1, 3, 2)), inputs)


FAULTS: dict[str, tuple[str, Fault]] = {
    "ties go up in a convolution": ("conv", half_up),
    "ties go away from zero in a convolution": ("conv", away_from_zero),
    "ties go up in an addition": ("add", half_up),
    "ties go away from zero in an addition": ("add", away_from_zero),
    "ties go up in a pool": ("pool", half_up),
    "truncation": ("conv", truncated),
    "multiplier one more": ("conv", multiplier_off_by(1)),
    "multiplier one less": ("conv", multiplier_off_by(-1)),
    "pool's multiplier one more": ("pool", multiplier_off_by(1)),
    "a forgotten ReLU6": ("relu6", no_relu6),
    "a forgotten clamp": ("conv", no_clamp_at_all),
    "a border of 0": ("conv", border_of(0)),
    "a border of the output's zero point": ("conv", border_of(100)),
    "a border one off": ("conv", border_of(51)),
    "a forgotten input zero point": ("conv", no_zero_point),
    "a forgotten zero point in an addition": ("add", no_zero_point),
    "kernels transposed": ("conv", transposed_weights),
}


def pixels(network: IntegerNetwork, count: int = 20) -> NDArray[np.float32]:
    rng = np.random.default_rng(1)
    return rng.uniform(-7, 26, (count, *network.input.output.shape)).astype(np.float32)


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_found_where_it_is(name: str) -> None:
    layer, fault = FAULTS[name]
    network = hand_made()
    assert network.on_grid
    result = verify(network, [pixels(network)], executors=["reference", Faulty(network, layer, fault)])
    assert not result.ok
    assert result.first_divergence is not None
    assert result.first_divergence.startswith(f"layer {layer} ({network[layer].op}), image ")
    before = [check.mismatches for check in result.layers[: list(network.layers).index(network[layer])]]
    assert not any(before)


def test_without_a_fault_nothing_is_found() -> None:
    """The way in which the faults compute is right but for the fault."""
    network = hand_made()

    def right(reference: ReferenceExecutor, layer: Any, inputs: list[NDArray[Any]]) -> NDArray[Any]:
        exact = (operands if isinstance(layer, n.Add) else accumulators)(reference, layer, inputs)
        return saturated(layer, np.rint(exact))

    for layer in ("conv", "relu6", "add", "pool"):
        assert verify(network, [pixels(network)], executors=["reference", Faulty(network, layer, right)]).ok
    assert verify(network, [pixels(network)], executors=["reference", Faulty(network, "conv", border_of(50))]).ok
    assert verify(network, [pixels(network)]).ok


@pytest.mark.parametrize("layer", ["conv", "add", "pool"])
def test_adding_the_zero_point_before_rounding_matters_only_where_it_is_odd(layer: str) -> None:
    """Why zero points are even: some runtimes round first and some add first."""
    even, odd = hand_made(100), hand_made(101)
    assert verify(even, [pixels(even)], executors=["reference", Faulty(even, layer, zero_point_before_rounding)]).ok
    result = verify(odd, [pixels(odd)], executors=["reference", Faulty(odd, layer, zero_point_before_rounding)])
    assert not odd.on_grid
    assert not result.on_grid
    assert result.mismatches
    assert result.first_divergence is not None
    assert result.first_divergence.startswith(f"layer {layer} ")


def test_a_fault_in_the_last_layer_only() -> None:
    network = hand_made()

    def fault(reference: ReferenceExecutor, layer: Any, inputs: list[NDArray[Any]]) -> NDArray[Any]:
        logits = reference.compute(layer, inputs)
        logits[:, 4] += 1
        return logits

    result = verify(network, [pixels(network)], executors=["reference", Faulty(network, "fc", fault)])
    assert result.mismatches == 20
    assert result.first_divergence is not None
    assert result.first_divergence.startswith("layer fc (Linear), image 0, index (4,): expected ")
