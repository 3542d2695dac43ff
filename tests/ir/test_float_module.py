"""GraphModule runs a graph as torch runs the model; the table functions are torch's."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from twoscale._frontends.torch_export.capture import capture
from twoscale._ir import float_graph as g
from twoscale._ir import functions
from twoscale._ir.float_module import GraphModule, _clamp, logits
from twoscale._passes.fold import fold
from twoscale.errors import UnknownNameError
from twoscale.models import create


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3)
        self.fc = nn.Linear(48, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn(self.conv(x)) + x)
        result: torch.Tensor = self.fc(F.silu(F.max_pool2d(x, 2)).flatten(1))
        return result


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = Residual()
    made.bn.running_mean = images(3)
    made.bn.running_var = images(3, seed=1).abs() + 0.2
    return made.eval()


@pytest.fixture(scope="module")
def graph(model: nn.Module) -> g.FloatGraph:
    return capture(model, images(1, 3, 8, 8))


def test_double_precision_is_the_model_in_double(model: nn.Module, graph: g.FloatGraph) -> None:
    x = images(6, 3, 8, 8)
    double = Residual().double().eval()
    double.load_state_dict({name: value.double() for name, value in model.state_dict().items()})
    with torch.no_grad():
        expected = double(x.double())
    found = GraphModule(graph, dtype=torch.float64)(x)
    assert found.dtype == torch.float64
    # A batch norm is kept as a float32 scale and shift: one rounding of each.
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-6)
    single = GraphModule(graph)(x)
    assert single.dtype == torch.float32
    assert (found - expected).abs().max() < (single - expected).abs().max()


def test_double_precision_without_batch_norm_is_exact() -> None:
    model = create("net", seed=1)
    x = images(4, 3, 32, 32)
    found = GraphModule(fold(capture(model, x)), dtype=torch.float64)(x)
    with torch.no_grad():
        assert torch.allclose(found, model.double()(x.double()), rtol=1e-12, atol=1e-12)


def test_every_node_is_visited_in_order_and_nothing_is_kept(graph: g.FloatGraph) -> None:
    visited: list[str] = []
    kept = GraphModule(graph).run(images(2, 3, 8, 8), lambda node, value: visited.append(node.name))
    assert visited == [node.name for node in graph]
    assert list(kept) == [graph.output]


def test_outputs_can_be_replaced(graph: g.FloatGraph) -> None:
    module = GraphModule(graph)
    seen: dict[str, torch.Tensor] = {}

    def zero(node: g.Node, value: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(value) if node.name == "conv" else value

    module.run(images(2, 3, 8, 8), lambda node, value: seen.setdefault(node.name, value), zero)  # type: ignore[arg-type]
    assert not seen["conv"].any()
    bn = graph["bn"]
    assert isinstance(bn, g.ChannelAffine)
    assert torch.allclose(seen["bn"][0, :, 0, 0], torch.from_numpy(bn.shift_c))


def test_logits_of_many_images_in_batches(graph: g.FloatGraph) -> None:
    x = images(7, 3, 8, 8).numpy()
    module = GraphModule(graph)
    found = logits(module, x, batch_size=3)
    assert found.shape == (7, 5)
    assert found.dtype == np.float32
    assert np.allclose(found, module(torch.from_numpy(x)).numpy(), atol=1e-6)


def test_no_gradient_is_recorded(graph: g.FloatGraph) -> None:
    assert not GraphModule(graph)(images(1, 3, 8, 8).requires_grad_()).requires_grad


REFERENCES: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], tuple[float, ...]]] = {
    "sigmoid": (torch.sigmoid, ()),
    "tanh": (torch.tanh, ()),
    "hardsigmoid": (F.hardsigmoid, ()),
    "hardswish": (F.hardswish, ()),
    "silu": (F.silu, ()),
    "gelu": (F.gelu, ()),
    "gelu_tanh": (lambda x: F.gelu(x, approximate="tanh"), ()),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.1), (0.1,)),
    "elu": (lambda x: F.elu(x, 1.5), (1.5,)),
    "celu": (lambda x: F.celu(x, 1.5), (1.5,)),
    "selu": (F.selu, ()),
    "mish": (F.mish, ()),
    "softplus": (lambda x: F.softplus(x, 2.0, 5.0), (2.0, 5.0)),
    "log_sigmoid": (F.logsigmoid, ()),
    "abs": (torch.abs, ()),
    "exp": (torch.exp, ()),
    "greater": (lambda x: (x > 0.5).double(), (0.5,)),
    "greater_equal": (lambda x: (x >= 0.5).double(), (0.5,)),
    "less": (lambda x: (x < 0.5).double(), (0.5,)),
    "less_equal": (lambda x: (x <= 0.5).double(), (0.5,)),
    "erf": (torch.erf, ()),
    "log": (torch.log, ()),
    "log1p": (torch.log1p, ()),
    "rsqrt": (torch.rsqrt, ()),
    "sin": (torch.sin, ()),
    "cos": (torch.cos, ()),
    "reciprocal": (lambda x: 1 / torch.where(x == 0, torch.finfo(torch.float32).tiny, x), ()),
    "expm1": (torch.expm1, ()),
    "exp2": (torch.exp2, ()),
    "log2": (torch.log2, ()),
    "log10": (torch.log10, ()),
    "atan": (torch.atan, ()),
    "sinh": (torch.sinh, ()),
    "cosh": (torch.cosh, ()),
    "asinh": (torch.asinh, ()),
    "erfc": (torch.erfc, ()),
    "round": (torch.round, ()),
    "floor": (torch.floor, ()),
    "ceil": (torch.ceil, ()),
    "trunc": (torch.trunc, ()),
    "equal": (lambda x: (x == 3.0).double(), (3.0,)),
    "not_equal": (lambda x: (x != 3.0).double(), (3.0,)),
    "affine": (lambda x: x * 0.25 - 1.5, (0.25, -1.5)),
    "clamp": (lambda x: x.clamp(-0.5, 6.0), (-0.5, 6.0)),
    "sign": (torch.sign, ()),
    "power": (lambda x: x**3, (3.0,)),
    "threshold": (lambda x: F.threshold(x, 0.5, -2.0), (0.5, -2.0)),
    "hardshrink": (lambda x: F.hardshrink(x, 0.5), (0.5,)),
    "softshrink": (lambda x: F.softshrink(x, 0.5), (0.5,)),
    "constant": (lambda x: torch.full_like(x, 2.5), (2.5,)),
}


@pytest.mark.parametrize("name", sorted(functions.FUNCTIONS))
def test_table_functions_are_torchs(name: str) -> None:
    reference, parameters = REFERENCES[name]
    x = np.concatenate([np.linspace(-12, 12, 2001), [-1e3, -700.0, 700.0, 1e3, 0.0, 3.0, -3.0]])
    x = x[np.abs(x) < 700] if name in ("exp", "expm1", "exp2", "sinh", "cosh") else x
    x = x[x > (-1 if name == "log1p" else 0)] if name in ("log", "log1p", "log2", "log10", "rsqrt") else x
    expected = reference(torch.from_numpy(x)).numpy()
    with np.errstate(all="raise", under="ignore"):
        found = functions.evaluate(name, parameters, x)
    assert found.dtype == np.float64
    assert np.allclose(found, expected, rtol=1e-12, atol=1e-15)
    assert functions.evaluate(name, parameters, x.reshape(1, -1)[:, ::-1]).shape == (1, len(x))


@pytest.mark.parametrize("name", ["log", "log1p", "log2", "log10", "rsqrt", "reciprocal"])
def test_table_entries_outside_a_domain_are_finite(name: str) -> None:
    """A table has 256 entries, also for values that the tensor never has."""
    with np.errstate(all="raise"):
        found = functions.evaluate(name, (), np.array([-100.0, -1.0, 0.0, 1e-45]))
    assert np.isfinite(found).all()


def test_a_composition_is_its_steps() -> None:
    step = functions.Step
    function = functions.Composition(
        (step("affine", (0,), (1.0, 3.0)), step("clamp", (1,), (0.0, 6.0)), step("mul", (0, 2)), step("add", (3, 3)))
    )
    assert str(function) == ("add(mul(x, clamp(affine(x, 1, 3), 0, 6)), mul(x, clamp(affine(x, 1, 3), 0, 6)))")
    x = np.linspace(-5, 5, 41)
    assert np.array_equal(functions.evaluate(function, (), x), 2 * x * np.clip(x + 3, 0, 6))
    node = g.Elementwise(name="f", inputs=("input",), shape=(41,), function=function)
    graph = g.FloatGraph("test", (g.Input(name="input", inputs=(), shape=(41,)), node), ("f",))
    found = GraphModule(graph, dtype=torch.float64)(torch.from_numpy(x[None]))
    assert np.array_equal(found[0].numpy(), 2 * x * np.clip(x + 3, 0, 6))


def test_an_unknown_function_gets_the_right_name() -> None:
    with pytest.raises(UnknownNameError, match="unknown elementwise function 'hardswich': did you mean 'hardswish'"):
        functions.evaluate("hardswich", (), np.zeros(3))


def test_a_graph_knows_its_readers() -> None:
    node = g.Add(name="twice", inputs=("input", "input"), shape=(2,))
    graph = g.FloatGraph("test", (g.Input(name="input", inputs=(), shape=(2,)), node), ("twice",))
    assert graph.users == {"input": (node, node), "twice": ()}
    assert graph["twice"] is node
    assert graph.input.name == "input"
    other = g.Add(name="twice", inputs=("input", "input"), shape=(2,), bounds=(0.0, 1.0))
    assert graph.replaced({"twice": other})["twice"] is other
    assert node.op == "Add"


def test_a_clamp_may_have_an_infinite_bound_on_either_side() -> None:
    x = torch.tensor([-2.0, 0.5, 9.0])
    for bounds in ((-math.inf, 6.0), (0.0, math.inf), (math.inf, 6.0), (-math.inf, -math.inf), (-1.0, math.inf)):
        assert torch.equal(_clamp(x, bounds), x.clamp(*bounds))
