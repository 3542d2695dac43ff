"""The integer network as a function with gradients: the integers of every executor, and scales that can be learned.

Gradients pass straight through roundings (``straight_through``). Scales are parameters, as in LSQ (Esser et al.,
"Learned step size quantization", 2020), and every forward pass rounds the quotients of scales to the grid of equation
(4). So the loss that is minimized is that of the network that ships, not of a simulation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from twoscale._ir import float_graph as g
from twoscale._ir import layers as n
from twoscale._ir.arithmetic import ADD_SHIFT, REQUANTIZE_SHIFT
from twoscale._ir.float_module import GraphModule
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.interpreter import interpret
from twoscale._quantization.layer_bits import with_layer_bits
from twoscale._quantization.scales import quantize_bias
from twoscale._quantization.scheme import Scheme
from twoscale._quantization.straight_through import (
    Masks,
    instead,
    multipliers,
    on_grid,
    requantized,
    rounded,
    rounded_weights,
)
from twoscale._runtimes.torch import TorchExecutor
from twoscale.errors import ConfigurationError

__all__ = ["TrainableNetwork", "TrainableWeights"]

Float = NDArray[np.float32] | NDArray[np.float64]

_SHARE_SCALES = (n.Reshape, n.Permute, n.Slice, n.Pad, n.MaxPool2d, n.Clamp)
"""Layers whose output has the scale of their input."""
_FREE = (n.Conv2d, n.Linear, n.Add, n.AveragePool2d, n.Mul, n.Concat, *_SHARE_SCALES)
"""Layers that hold no table or constant made for one scale."""

_LARGEST = 127
"""Of 8-bit weights, which are symmetric."""

_INSIDE = 0.1
"""How far, in steps, a weight may begin from the integer to which it rounds.

The first steps of Adam move every parameter alike, whatever its gradient. Weights that begin at the edge between two
integers would then change by thousands at once: with 0.45, the error of ResNet-8 at W2A2 rose sevenfold in the first 40
iterations, and 200 more did not make up for it.
"""


class TrainableWeights(nn.Module):
    """Weights, scales and biases of one layer.

    Parameters have about the size that they have in a float network whose tensors have unit variance and whose weights
    begin as in He et al., "Delving deep into rectifiers" (2015). So one learning rate suits all layers, whatever the
    units of their inputs: weights that take pixels 0..255 are a hundredth as large as others.

    Args:
        layer: of the network, whose integers they begin as.
        weight: the float network's. Each begins as near to it as the layer's rounding allows.
        scales: real value of one step of a weight, (O,) or (1,).
        bias: real.
        limit: largest integer; with fewer than 8 bits the smallest is ``-limit - 1``.
        reach: largest real value of the input, less its smallest.
    """

    def __init__(
        self, layer: n.Accumulating, weight: Float, scales: NDArray[np.float64], bias: Float, limit: int, reach: float
    ) -> None:
        super().__init__()
        self.source = layer.inputs[0]
        """The tensor that they are multiplied with."""
        self.lo, self.hi = (-limit if limit == _LARGEST else -limit - 1), limit
        steps = scales.reshape((-1,) + (1,) * (weight.ndim - 1))
        real = np.clip(weight / steps, layer.weight - _INSIDE, layer.weight + _INSIDE) * steps
        expected = np.sqrt(2 / weight[0].size)
        self.unit = _power_of_two(float(np.sqrt(np.square(weight, dtype=np.float64).mean())) / expected)
        """Of weights: real values are so many times the parameters."""
        self.bias_unit = self.unit * _power_of_two(reach / 4)
        self.weight = nn.Parameter(torch.from_numpy((real / self.unit).astype(np.float32)))
        self.bias_change = nn.Parameter(torch.zeros(len(bias)))
        self.log_growth = nn.Parameter(torch.zeros(len(scales)))
        # Not buffers: DistributedDataParallel would broadcast them in every step.
        self.first_bias, self.first_scale = torch.from_numpy(np.array(bias, np.float64)), torch.from_numpy(scales)

    @property
    def bias(self) -> torch.Tensor:
        """Real bias, float64, (O,)."""
        return self.first_bias.to(self.bias_change.device) + self.bias_change * self.bias_unit

    @property
    def scale(self) -> torch.Tensor:
        """Real value of one step of a weight, float64, (O,) or (1,)."""
        return self.first_scale.to(self.log_growth.device) * self.log_growth.double().exp()

    def recenter(self) -> None:
        """Move every real weight near to its integer, which changes no integer."""
        with torch.no_grad():
            scale, integers = self._scale(), self.integers()
            self.weight.copy_((self.weight / scale).clamp(integers - _INSIDE, integers + _INSIDE) * scale)

    def _scale(self) -> torch.Tensor:
        """Return the step of a weight in its unit."""
        return (self.scale / self.unit).float().reshape((-1,) + (1,) * (self.weight.ndim - 1))

    def integers(self) -> torch.Tensor:
        """Return the weights in steps of their scales, float32."""
        return rounded_weights(self.weight, self._scale(), self.lo, self.hi)


class TrainableNetwork(nn.Module):
    """An integer network whose weights, biases and scales are parameters.

    Args:
        network: where the parameters begin; on the grid.
        graph: the float network that it was made from.
        scheme: the bits of weights.

    Raises:
        ConfigurationError: the network is not on the grid of equation (4).
    """

    def __init__(self, network: IntegerNetwork, graph: g.FloatGraph, scheme: Scheme) -> None:
        super().__init__()
        if not network.on_grid or scheme.float32_scales:
            raise ConfigurationError(
                f"scheme {scheme.name} has multipliers of its own; expected one whose multipliers are any on the grid"
            )
        self.network, self.graph, self._scheme = network, graph, with_layer_bits(scheme, graph)
        self.module, self.executor = GraphModule(graph), TorchExecutor(network)
        self.group, self.fixed = _groups(network)
        self.weights = nn.ModuleDict()
        for layer in network:
            if isinstance(layer, n.Accumulating):
                self.weights[_key(layer.name)] = self._first(layer)
        groups = [group for group in dict.fromkeys(self.group.values()) if network.spec(group).dtype != "int32"]
        self.log_growths = nn.ParameterDict({_key(group): nn.Parameter(torch.zeros(())) for group in groups})
        for group in self.fixed.intersection(groups):
            self.log_growths[_key(group)].requires_grad_(False)

    def _first(self, layer: n.Accumulating) -> TrainableWeights:
        x = self.network.spec(layer.inputs[0])
        scales = np.asarray(layer.weight_scales(x), np.float64)
        node: Any = self.graph[layer.name]
        real = node.weight_oihw if isinstance(node, g.Conv2d) else node.weight_oi
        bias = layer.bias_o * (x.scale * scales)
        reach = (x.hi - x.lo) * x.scale
        return TrainableWeights(layer, real, scales, bias, self._scheme.weight_limit_of(layer.name), reach)

    def rebase(self, network: IntegerNetwork) -> None:
        """Take another network as the one where the parameters began; their values stay.

        Args:
            network: with the same layers.
        """
        self.network, self.executor = network, TorchExecutor(network, self.executor.device)
        for layer in network:
            if isinstance(layer, n.Accumulating):
                mine, first = self.of(layer.name), self._first(layer)
                mine.first_bias, mine.first_scale = first.first_bias, first.first_scale
                mine.unit, mine.bias_unit = first.unit, first.bias_unit

    def _apply(self, fn: Any, recurse: bool = True) -> TrainableNetwork:
        """Also move what is no parameter, when the module is moved to a device."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = next(self.parameters()).device
        if device != self.executor.device:
            self.module, self.executor = GraphModule(self.graph, device), TorchExecutor(self.network, device)
        return self

    def of(self, name: str) -> TrainableWeights:
        """Return the parameters of a layer with weights."""
        found = self.weights[_key(name)]
        assert isinstance(found, TrainableWeights)
        return found

    def all_weights(self) -> list[TrainableWeights]:
        """Return the parameters of every layer with weights."""
        return [one for one in self.weights.values() if isinstance(one, TrainableWeights)]

    def state(self) -> dict[str, torch.Tensor]:
        """Return copies of all parameters."""
        return {name: value.clone() for name, value in self.state_dict().items()}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Set all parameters to what ``state`` returned."""
        self.load_state_dict(dict(state))

    def scale(self, name: str) -> torch.Tensor:
        """Return the scale of a tensor, float64."""
        group = self.group[name]
        found: torch.Tensor = self.network.spec(group).scale * self.log_growths[_key(group)].double().exp()
        return found

    def scales_of(self, names: Collection[str]) -> list[nn.Parameter]:
        """Return the parameters of scales that can be learned among those of the named tensors, each once."""
        keys = dict.fromkeys(_key(self.group[name]) for name in names)
        found = [self.log_growths[key] for key in keys if key in self.log_growths]
        return [one for one in found if one.requires_grad]

    def real(self, name: str, integers: torch.Tensor) -> torch.Tensor:
        """Return the real values, float32, of a tensor's integers or accumulators."""
        spec, layer = self.network.spec(name), self.network[name]
        if spec.dtype == "int32":
            assert isinstance(layer, n.Accumulating)
            return integers.double() * (self.scale(layer.inputs[0]) * self.of(name).scale)
        return (integers - spec.zero_point) * self.scale(name).float()

    def steps(self, name: str, real: torch.Tensor) -> torch.Tensor:
        """Return real values in steps of a tensor's scale, not rounded and not clamped."""
        return real / self.scale(name).detach().float() + self.network.spec(name).zero_point

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the real values of the network's first output."""
        given = self.network.given(images)
        values = interpret(
            self.network.layers,
            lambda layer, x: self.compute(layer, x) if x else self.executor.compute(layer, [given[layer.name]]),
            [self.network.output],
        )
        return self.real(self.network.output, values[self.network.output])

    def run(
        self,
        layers: Sequence[n.Layer],
        given: Mapping[str, torch.Tensor],
        keep: Collection[str],
        rounds: Masks | None = None,
    ) -> dict[str, torch.Tensor]:
        """Compute layers from the integers that they read; arguments as for ``interpret``, and ``compute``."""
        return interpret(layers, lambda layer, x: self.compute(layer, x, rounds), keep, given)

    def compute(self, layer: n.Layer, x: list[torch.Tensor], rounds: Masks | None = None) -> torch.Tensor:
        """Compute one layer.

        Args:
            layer: of the network.
            x: integers, float32.
            rounds: draws which of the output's values are rounded; None for all (Wei et al., "QDrop", 2022).
        """
        specs = [self.network.spec(name) for name in layer.inputs]
        shifted = [value - spec.zero_point if spec.zero_point else value for value, spec in zip(x, specs, strict=True)]
        if isinstance(layer, n.Accumulating):
            return self._accumulating(layer, shifted, rounds)
        if isinstance(layer, n.Clamp):
            return x[0].clamp(layer.output.lo, layer.output.hi)
        if isinstance(layer, _SHARE_SCALES):
            return self.module.compute(self.graph[layer.name], shifted) + layer.output.zero_point
        if isinstance(layer, n.Concat):
            parts = [
                value + spec.zero_point
                if multiplier is None
                else self._requantized(layer, [(value, name, 1.0)], rounds)
                for value, spec, name, multiplier in zip(shifted, specs, layer.inputs, layer.multipliers, strict=True)
            ]
            return torch.cat(parts, layer.axis + 1)
        if isinstance(layer, n.Add):
            return self._requantized(
                layer, [(v, name, 1.0) for v, name in zip(shifted, layer.inputs, strict=True)], rounds
            )
        if isinstance(layer, n.AveragePool2d):
            top, left, bottom, right = layer.padding
            padded = F.pad(shifted[0], (left, right, top, bottom)) if any(layer.padding) else shifted[0]
            count = layer.kernel[0] * layer.kernel[1]
            total = F.avg_pool2d(padded, layer.kernel, layer.stride, divisor_override=1)
            return self._requantized(layer, [(total, layer.inputs[0], 1 / count)], rounds)
        if isinstance(layer, n.Mul):
            product = shifted[0] * shifted[1]
            ratio = self.scale(layer.inputs[0]) * self.scale(layer.inputs[1]) / self.scale(layer.name)
            return self._finished(layer.output, rounds, product, on_grid(ratio, REQUANTIZE_SHIFT, product.ndim))
        return self._by_executor(layer, x, shifted)

    def _by_executor(self, layer: n.Layer, x: list[torch.Tensor], shifted: list[torch.Tensor]) -> torch.Tensor:
        """Compute a layer of fixed scales: its integers from the executor, its gradient from the float network."""
        with torch.no_grad():
            integers = self.executor.compute(layer, [value.round() for value in x])
        reals = [value * self.scale(name).float() for value, name in zip(shifted, layer.inputs, strict=True)]
        smooth = self.module.compute(self.graph[layer.name], reals) / self.scale(layer.name).float()
        return instead(smooth, integers.float())

    def _accumulating(self, layer: n.Accumulating, shifted: list[torch.Tensor], rounds: Masks | None) -> torch.Tensor:
        weights, s_x = self.of(layer.name), self.scale(layer.inputs[0])
        integers = weights.integers()
        bias = rounded(weights.bias / (s_x * weights.scale))
        reach = self.network.spec(layer.inputs[0]).reach
        bound = float((integers.detach().abs().flatten(1).sum(1) * reach + bias.detach().abs()).max())
        kind = torch.float32 if bound < 2**24 else torch.float64
        x, integers, bias = shifted[0].to(kind), integers.to(kind), bias.to(kind)
        if isinstance(layer, n.Conv2d):
            top, left, bottom, right = layer.padding
            padding = (top, left)
            if padding != (bottom, right):
                x, padding = F.pad(x, (left, right, top, bottom)), (0, 0)
            accumulators = F.conv2d(x, integers, bias, layer.stride, padding, layer.dilation, layer.groups)
        else:
            accumulators = F.linear(x, integers, bias)
        if layer.multiplier is None:
            return accumulators
        s_y = self.scale(layer.name)
        residual = isinstance(layer, n.Conv2d) and layer.residual_multiplier is not None
        shift = ADD_SHIFT if residual else REQUANTIZE_SHIFT
        terms = [accumulators.float(), on_grid(s_x * weights.scale / s_y, shift, accumulators.ndim)]
        if residual:
            terms += [shifted[1], on_grid(self.scale(layer.inputs[1]) / s_y, ADD_SHIFT, accumulators.ndim)]
        return self._finished(layer.output, rounds, *terms)

    def _requantized(
        self, layer: n.Layer, terms: Sequence[tuple[torch.Tensor, str, float]], rounds: Masks | None
    ) -> torch.Tensor:
        """Return the sum of integers times the ratios of their scales: (tensor, name of its scale, factor)."""
        shift = ADD_SHIFT if isinstance(layer, n.Add) else REQUANTIZE_SHIFT
        factors: list[torch.Tensor] = []
        for value, name, factor in terms:
            factors += [value, on_grid(factor * self.scale(name) / self.scale(layer.name), shift, value.ndim)]
        return self._finished(layer.output, rounds, *factors)

    def _finished(self, spec: n.TensorSpec, rounds: Masks | None, *terms: torch.Tensor) -> torch.Tensor:
        """Sum products, round, add the zero point, and clamp."""
        mask = None if rounds is None else rounds.like(terms[0])
        return requantized(spec.lo, spec.hi, spec.zero_point, mask, *terms)

    def to_network(self) -> IntegerNetwork:
        """Return the integer network of the parameters as they are.

        Raises:
            QuantizationError: an accumulator or a bias would not fit int32.
        """
        with torch.no_grad():
            layers = tuple(self._layer(layer) for layer in self.network)
        return dataclasses.replace(self.network, layers=layers)

    def _layer(self, layer: n.Layer) -> n.Layer:
        if layer.output.dtype != "int32":
            layer = dataclasses.replace(
                layer, output=dataclasses.replace(layer.output, scale=float(self.scale(layer.name)))
            )
        if isinstance(layer, n.Accumulating):
            return self._integer_weights(layer)
        if isinstance(layer, n.Add):
            return dataclasses.replace(layer, multipliers=tuple(self._multiplier(x, layer.name) for x in layer.inputs))
        if isinstance(layer, n.Concat):
            multipliers = tuple(
                None if old is None else self._multiplier(x, layer.name, shift=REQUANTIZE_SHIFT)
                for x, old in zip(layer.inputs, layer.multipliers, strict=True)
            )
            return dataclasses.replace(layer, multipliers=multipliers)
        if isinstance(layer, n.AveragePool2d):
            factor = 1 / (layer.kernel[0] * layer.kernel[1])
            multiplier = self._multiplier(layer.inputs[0], layer.name, factor, REQUANTIZE_SHIFT)
            return dataclasses.replace(layer, multiplier=multiplier)
        if isinstance(layer, n.Mul):
            factor = float(self.scale(layer.inputs[1]))
            multiplier = self._multiplier(layer.inputs[0], layer.name, factor, REQUANTIZE_SHIFT)
            return dataclasses.replace(layer, multiplier=multiplier)
        return layer

    def _multiplier(self, x: str, y: str, factor: float = 1.0, shift: int = ADD_SHIFT) -> n.Multiplier:
        integers = multipliers(factor * self.scale(x) / self.scale(y), shift)
        return n.Multiplier.on_grid(integers.numpy().astype(np.int64), shift)

    def _integer_weights(self, layer: n.Accumulating) -> n.Layer:
        weights, s_x = self.of(layer.name), self.scale(layer.inputs[0])
        unit = (s_x * weights.scale).numpy()
        changes: dict[str, Any] = {
            "weight": weights.integers().numpy().astype(np.int8),
            "bias_o": quantize_bias(layer.name, weights.bias.numpy(), np.broadcast_to(unit, weights.bias.shape)),
        }
        if layer.multiplier is None:
            changes["output"] = dataclasses.replace(layer.output, scale=float(unit[0]))
            return dataclasses.replace(layer, **changes)
        residual = isinstance(layer, n.Conv2d) and layer.residual_multiplier is not None
        shift = ADD_SHIFT if residual else REQUANTIZE_SHIFT
        integers = multipliers(s_x * weights.scale / self.scale(layer.name), shift)
        changes["multiplier"] = n.Multiplier.on_grid(integers.numpy().astype(np.int64), shift)
        if residual:
            changes["residual_multiplier"] = self._multiplier(layer.inputs[1], layer.name)
        return dataclasses.replace(layer, **changes)


def _power_of_two(value: float) -> float:
    """Return the power of two nearest to a value, which scales without rounding; 1 for 0."""
    return float(2.0 ** round(math.log2(value))) if value > 0 else 1.0


def _key(name: str) -> str:
    """Return a name that nn.ModuleDict takes."""
    return name.replace("~", "~~").replace(".", "~")


def _groups(network: IntegerNetwork) -> tuple[dict[str, str], frozenset[str]]:
    """Return the tensor that gives each tensor its scale, and those of them whose scale cannot change."""
    group: dict[str, str] = {}
    fixed: set[str] = set()

    def join(a: str, b: str) -> None:
        old, new = group[a], group[b]
        for name, of in group.items():
            if of == old:
                group[name] = new
        if old in fixed:
            fixed.add(new)

    for layer in network:
        group[layer.name] = layer.name
        if isinstance(layer, _SHARE_SCALES):
            join(layer.name, layer.inputs[0])
        elif isinstance(layer, n.Concat):
            for name, multiplier in zip(layer.inputs, layer.multipliers, strict=True):
                if multiplier is None:
                    join(layer.name, name)
        if not isinstance(layer, _FREE):
            fixed.update(group[name] for name in (layer.name, *layer.inputs))
    return group, frozenset(fixed)
