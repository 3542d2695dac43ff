"""Operators written as others, programs and modules of every kind, and the errors about them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import twoscale
from tests.frontends.test_capture import Forward, images, seeded
from twoscale._frontends import float_graph as capture
from twoscale._ir.float_module import GraphModule
from twoscale.errors import CaptureError, UnsupportedOperatorError

Function = Callable[..., Any]


def parts() -> dict[str, Any]:
    return {"conv": nn.Conv2d(3, 6, 3, padding=1), "fc": nn.Linear(384, 5), "wide": nn.Linear(768, 5)}


def no_autocast(m: Any, x: torch.Tensor) -> Any:
    with torch.autocast("cpu", enabled=False):
        y = m.conv(x).relu()
    return m.fc(y.flatten(1))


def autocast_elsewhere(m: Any, x: torch.Tensor) -> Any:
    with torch.autocast("cuda", dtype=torch.float16):
        y = m.conv(x).relu()
    return m.fc(y.flatten(1))


def no_gradients(m: Any, x: torch.Tensor) -> Any:
    with torch.no_grad():
        y = m.conv(x).relu()
    return m.fc(y.flatten(1))


DISGUISES: dict[str, Function] = {
    "a leaky ReLU by where": lambda m, x: m.fc((lambda y: torch.where(y > 0, y, 0.1 * y))(m.conv(x)).flatten(1)),
    "a choice of two functions": lambda m, x: m.fc(
        (lambda y: torch.where(y > 0.5, y * y, torch.tanh(y)))(m.conv(x)).flatten(1)
    ),
    "a choice of a number": lambda m, x: m.fc((lambda y: torch.where(y <= 0.5, y, 0.25))(m.conv(x)).flatten(1)),
    "a choice of numbers": lambda m, x: m.fc((lambda y: torch.where(y < 0.5, 0.0, 2.0))(m.conv(x)).flatten(1)),
    "a mask": lambda m, x: m.fc((lambda y: y * (y > 0))(m.conv(x)).flatten(1)),
    "a mask of floats": lambda m, x: m.fc((lambda y: y * (y >= 0.25).float())(m.conv(x)).flatten(1)),
    "log1p and sin": lambda m, x: m.fc(torch.sin(torch.log1p(m.conv(x).abs())).flatten(1)),
    "log and cos": lambda m, x: m.fc(torch.cos(torch.log(m.conv(x).abs() + 1)).flatten(1)),
    "rsqrt": lambda m, x: m.fc(torch.rsqrt(m.conv(x).abs() + 1).flatten(1)),
    "weights times features": lambda m, x: m.fc((m.fc.weight[:, :6].T[:, :5] @ m.conv(x).flatten(2)[:, :5]).flatten(1)),
    "a concatenated constant": lambda m, x: m.wide(
        torch.cat([m.fc.weight[:1].reshape(1, 6, 8, 8).expand(len(x), -1, -1, -1), m.conv(x)], 1).flatten(1)
    ),
    "a constant between": lambda m, x: m.wide(
        torch.cat([m.conv(x), torch.ones(len(x), 6, 8, 8) * 0.5, m.conv(x)], 1)[:, :12].flatten(1)
    ),
    "ones at the end": lambda m, x: m.wide(torch.cat([m.conv(x), torch.ones_like(m.conv(x))], 1).flatten(1)),
    "hstack": lambda m, x: m.wide(torch.hstack([m.conv(x), m.conv(x).relu()]).flatten(1)),
    "dstack": lambda m, x: m.wide(torch.dstack([m.conv(x), m.conv(x).relu()]).flatten(1)),
    "avg_pool1d": lambda m, x: m.fc(F.avg_pool1d(m.conv(x).flatten(2), 4).flatten(1).repeat(1, 4)),
    "max_pool1d": lambda m, x: m.fc(F.max_pool1d(m.conv(x).flatten(2), 4).flatten(1).repeat(1, 4)),
    "addcmul": lambda m, x: m.fc(torch.addcmul(m.conv(x), m.conv(x).relu(), m.conv(x).sigmoid()).flatten(1)),
    "rot90": lambda m, x: m.fc(torch.rot90(m.conv(x), 1, (2, 3)).flatten(1)),
    "a sum by einsum": lambda m, x: torch.einsum("nchw->nc", m.conv(x)),
    "autocast that is off": no_autocast,
    "autocast for another device": autocast_elsewhere,
    "a part without gradients": no_gradients,
}


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize("disguise", DISGUISES)
def test_operators_in_disguise(disguise: str) -> None:
    model = seeded(Forward(DISGUISES[disguise], **parts())).eval()
    x = images()
    with torch.no_grad():
        assert torch.allclose(GraphModule(capture(model, x))(x), model(x), rtol=1e-4, atol=1e-4)


ENDS: dict[str, Function] = {
    "view": lambda m, x: m.fc(m.conv(x).flatten(1)).softmax(1).view(-1, 5),
    "squeeze": lambda m, x: F.adaptive_avg_pool2d(m.conv(x), 1).softmax(1).squeeze(-1).squeeze(-1),
    "flatten": lambda m, x: F.adaptive_avg_pool2d(m.conv(x), 1).log_softmax(1).flatten(1),
    "clone and dropout": lambda m, x: F.dropout(m.fc(m.conv(x).flatten(1)).softmax(-1).clone(), training=False),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_softmax_before_a_change_of_shape(end: str) -> None:
    model = seeded(Forward(ENDS[end], **parts())).eval()
    with pytest.warns(UserWarning, match=r"softmax at .* is left out of Forward"):
        capture(model, images())


def test_a_softmax_inside() -> None:
    model = seeded(Forward(lambda m, x: m.fc(m.conv(x).flatten(1)).softmax(1).flatten(1) * 2, **parts()))
    with pytest.raises(UnsupportedOperatorError, match="a softmax before the end has no integer form here"):
        capture(model, images())


class WithOwnLoops(nn.Module):
    """A model with its own train and eval methods, which are loops."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Linear(384, 5)

    def forward(self, x: torch.Tensor) -> Any:
        return self.fc(F.dropout(self.norm(self.conv(x)), training=self.training).flatten(1))

    def train(self, mode: bool = True) -> Any:
        raise AssertionError("a training loop starts")

    def eval(self, loader: Any = None) -> Any:
        raise AssertionError("an evaluation starts")


def test_a_model_with_its_own_train_and_eval() -> None:
    model = seeded(WithOwnLoops())
    capture(model, images())
    assert model.training
    for module in model.modules():
        module.training = False
    x = images()
    assert torch.allclose(GraphModule(capture(model, x))(x), model(x), rtol=1e-4, atol=1e-4)


def exported(batch: int = 2, dynamic: bool = True) -> Any:
    model = seeded(Forward(lambda m, x: m.fc(m.conv(x).relu().flatten(1)), **parts())).eval()
    shapes: Any = ({0: torch.export.Dim.DYNAMIC},) if dynamic else None
    return torch.export.export(model, (images()[:batch],), dynamic_shapes=shapes)


def test_an_exported_program_is_taken_as_it_is() -> None:
    program, x = exported(), images()
    network = twoscale.quantize(program, [x])
    assert network.fingerprint == twoscale.quantize(program.module(), [x]).fingerprint
    result = twoscale.verify(network, [x], model=program)
    assert result.mismatches == 0
    assert result.sqnr_db is not None
    assert result.sqnr_db > 25


def test_an_exported_program_of_one_batch_size() -> None:
    with pytest.raises(CaptureError, match="takes batches of 1 only, expected any; export it with dynamic_shapes"):
        capture(exported(1, dynamic=False), images())
    with pytest.raises(CaptureError, match=re.escape("takes images of shape (3, 8, 8), got (3, 9, 9)")):
        capture(exported(), images(2, 3, 9, 9))


def test_lazy_modules_that_never_ran() -> None:
    with pytest.raises(CaptureError, match=r"0\.weight has no shape yet: it is of a lazy module that never ran; call"):
        capture(nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(3)), images())


def test_models_of_torchs_own_quantization() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), torch.ao.quantization.HistogramObserver(), nn.Flatten())
    with pytest.raises(CaptureError, match=r"module 1 \(HistogramObserver\) is of torch's own quantization; pass the"):
        capture(model, images())


def test_what_errors_name() -> None:
    with pytest.raises(CaptureError, match=r"aten.flatten.* mixes the images of a batch .*, e\.g\. flatten\(1\)"):
        capture(Forward(lambda m, x: torch.flatten(m.conv(x)), **parts()), images())
    linear = nn.Sequential(nn.Flatten(0), nn.Linear(192, 5))
    with pytest.raises(CaptureError, match=r"it mixes the images of a batch \(.*\); keep the first .*flatten\(x, 1\)"):
        capture(linear, images())
    with pytest.raises(UnsupportedOperatorError, match="shrinking 8x8 to 4x4 has no integer form here; use a pool"):
        capture(Forward(lambda m, x: F.interpolate(m.conv(x), size=4).flatten(1), **parts()), images())


class Sensitive(nn.Module):
    """Right on its user's images, but chaotic on noise, where rounding in float32 is visible."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(192, 5)

    def forward(self, x: torch.Tensor) -> Any:
        y = self.fc(x.flatten(1))
        return (y - 1000.0) + 1000.0 + torch.sin(y * 3000.0)


def test_the_check_compares_in_float64() -> None:
    capture(seeded(Sensitive()), images())
