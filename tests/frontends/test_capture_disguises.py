"""Operators written as others, programs and modules of every kind, and the errors about them."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import twoscale
from tests import sweep
from tests.frontends.test_capture import Forward, images, seeded
from twoscale._frontends import float_graph as capture
from twoscale._frontends.torch_export.aten.table import TRANSLATIONS
from twoscale._ir.float_graph import Softmax
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
    "sums with weights by einsum": lambda m, x: m.fc(
        torch.einsum(
            "nchw,dc->ndhw", m.conv(x), m.fc.weight[:6, :6].T @ m.fc.weight[:6, :6] + m.fc.weight.mean()
        ).flatten(1)
    ),
    "one product for each channel by einsum": lambda m, x: torch.einsum(
        "nchw,chw->nc", m.conv(x), m.fc.weight[0].view(6, 8, 8)
    ),
    "the same product for all channels by einsum": lambda m, x: torch.einsum(
        "nchw,hw->nc", m.conv(x), m.fc.weight[0, :64].view(8, 8)
    ),
    "weights times columns of features": lambda m, x: (m.fc.weight @ m.conv(x).flatten(1).T).T,
    "bmm with repeated weights": lambda m, x: m.fc(
        torch.bmm(m.fc.weight[:, :6].T[:, :5].expand(len(x), -1, -1), m.conv(x).flatten(2)[:, :5]).flatten(1)
    ),
    "smaller and larger": lambda m, x: m.fc(
        torch.minimum(torch.maximum(m.conv(x), -m.conv(x).sigmoid()), m.conv(x).cos()).flatten(1)
    ),
    "smaller and larger than constants": lambda m, x: m.fc(
        torch.fmin(torch.fmax(m.conv(x), m.fc.weight[0, :6].view(6, 1, 1)), torch.tensor(0.5)).flatten(1)
    ),
    "clamps by constants": lambda m, x: m.fc(
        m.conv(x).clamp(m.fc.weight[0, :6].view(6, 1, 1), torch.tensor(0.75)).flatten(1)
    ),
    "clamps without 0": lambda m, x: m.fc((m.conv(x).clamp(0.5, 2.0) + m.conv(x).clamp(-2.0, -0.25)).flatten(1)),
    "minima over dimensions": lambda m, x: m.conv(x).amin((2, 3)) + m.conv(x).min(1, True)[0].amin((2, 3)),
    "norms": lambda m, x: (
        m.conv(x).norm(dim=(2, 3))
        + m.conv(x).flatten(2).norm(1, dim=2)
        + torch.linalg.vector_norm(m.conv(x), torch.inf, (2, 3))
    ),
    "normalized vectors": lambda m, x: m.fc(F.normalize(m.conv(x).flatten(1))),
    "a quotient": lambda m, x: m.fc((m.conv(x) / (m.conv(x).abs().amax(1, True) + 1)).flatten(1)),
    "a sigmoid written out": lambda m, x: m.fc((1 / (1 + torch.exp(-m.conv(x)))).flatten(1)),
    "powers": lambda m, x: m.fc(((m.conv(x).abs() + 1) ** -1.5 + 2.0 ** m.conv(x)).flatten(1)),
    "an average by lerp": lambda m, x: m.fc(torch.lerp(m.conv(x), m.conv(x).relu(), 0.25).flatten(1)),
    "logarithms": lambda m, x: m.fc((torch.log2(m.conv(x).abs() + 1) - torch.log10(m.conv(x).abs() + 1)).flatten(1)),
    "exponentials": lambda m, x: m.fc((torch.exp2(m.conv(x)) - torch.expm1(m.conv(x))).flatten(1)),
    "functions of angles": lambda m, x: m.fc(torch.atan(m.conv(x)).flatten(1)),
    "hyperbolic functions": lambda m, x: m.fc(
        (torch.sinh(m.conv(x)) - torch.cosh(m.conv(x)) + torch.asinh(m.conv(x)) + torch.erfc(m.conv(x))).flatten(1)
    ),
    "rounding": lambda m, x: m.fc(
        (lambda y: torch.round(y) + torch.floor(y) * 2 + torch.ceil(y) * 4 + torch.trunc(y) * 8)(m.conv(x) * 3).flatten(
            1
        )
    ),
    "two conditions": lambda m, x: m.fc(
        (lambda y: torch.where((y > -1) & ~(y > 1) | (y > 2), y, torch.zeros_like(y)))(m.conv(x)).flatten(1)
    ),
    "equal to zero": lambda m, x: m.fc(
        (lambda y: torch.where(y == 0, 1.0, y) + (y.ne(0) & torch.logical_not(y < 1)))(m.conv(x).relu()).flatten(1)
    ),
    "a comparison of tensors": lambda m, x: m.fc(
        (lambda y: torch.where(y > y.mean(1, keepdim=True), y, -y) * (y < m.fc.weight[0, :6].view(6, 1, 1)))(
            m.conv(x)
        ).flatten(1)
    ),
    "a constant mask": lambda m, x: m.fc(
        torch.where(m.fc.weight[0].view(6, 8, 8) > 0, m.conv(x), m.conv(x).relu()).flatten(1)
    ),
    "a constant mask of numbers": lambda m, x: m.fc(
        m.conv(x).masked_fill(m.fc.weight[0].view(6, 8, 8) > 0, 0.5).masked_fill(m.conv(x) > 1, -0.5).flatten(1)
    ),
    "bilinear by a factor": lambda m, x: F.interpolate(m.conv(x), scale_factor=2, mode="bilinear").flatten(1),
    "bilinear to a size": lambda m, x: F.interpolate(
        m.conv(x), size=(5, 12), mode="bilinear", align_corners=True
    ).flatten(1),
    "bilinear with antialias": lambda m, x: F.interpolate(
        m.conv(x), size=(4, 6), mode="bilinear", antialias=True
    ).flatten(1),
    "bicubic": lambda m, x: F.interpolate(m.conv(x), scale_factor=1.5, mode="bicubic").flatten(1),
    "linear": lambda m, x: F.interpolate(m.conv(x).flatten(2), scale_factor=0.5, mode="linear").flatten(1),
    "nearest by a fraction": lambda m, x: F.interpolate(m.conv(x), size=(12, 13)).flatten(1),
    "nearest, fewer pixels": lambda m, x: F.interpolate(m.conv(x), size=(4, 5)).flatten(1),
    "nearest, exact": lambda m, x: F.interpolate(m.conv(x), size=(5, 16), mode="nearest-exact").flatten(1),
    "nearest of a sequence": lambda m, x: F.interpolate(m.conv(x).flatten(2), size=96).flatten(1),
    "nearest of a sequence, exact": lambda m, x: F.interpolate(
        m.conv(x).flatten(2), size=24, mode="nearest-exact"
    ).flatten(1),
    "an uneven adaptive maximum": lambda m, x: F.adaptive_max_pool2d(m.conv(x), (3, 5)).flatten(1),
    "windows side by side": lambda m, x: m.conv(x).unfold(2, 4, 4).unfold(3, 2, 2).mean((2, 5)).flatten(1),
    "windows that overlap": lambda m, x: m.conv(x).unfold(3, 3, 2).amax(4).flatten(1),
    "patches": lambda m, x: F.unfold(m.conv(x), (2, 4), stride=(2, 4)).mean(2),
    "patches that overlap": lambda m, x: F.unfold(m.conv(x), 3, dilation=(1, 2), padding=(1, 2), stride=2).mean(2),
    "patches put back": lambda m, x: F.fold(F.unfold(m.conv(x), 2, stride=2).relu(), 8, 2, stride=2).flatten(1),
    "patches added": lambda m, x: F.fold(
        F.unfold(m.conv(x), 3, padding=1, stride=2).relu(), 8, 3, padding=1, stride=2
    ).flatten(1),
    "a sum by einsum": lambda m, x: torch.einsum("nchw->nc", m.conv(x)),
    "autocast that is off": no_autocast,
    "autocast for another device": autocast_elsewhere,
    "a part without gradients": no_gradients,
}


OPERATORS = {
    "bmm", "min", "amin", "linalg_vector_norm", "norm", "fmax", "minimum", "fmin", "lerp", "eq", "ne", "logical_not",
    "bitwise_not", "logical_and", "bitwise_and", "__and__", "logical_or", "bitwise_or", "__or__", "masked_fill",
    "expm1", "exp2", "log2", "log10", "atan", "arctan", "sinh", "cosh", "asinh", "erfc", "reciprocal", "round",
    "floor", "ceil", "trunc", "fix", "numpy_T", "t", "upsample_linear1d", "upsample_bilinear2d",
    "_upsample_bilinear2d_aa", "upsample_bicubic2d", "upsample_nearest1d", "_upsample_nearest_exact1d", "unfold",
    "im2col", "col2im",
}  # fmt: skip
"""Operators that are tested here under this name or another of theirs."""


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
@pytest.mark.parametrize("disguise", DISGUISES)
def test_operators_in_disguise(disguise: str) -> None:
    model = seeded(Forward(DISGUISES[disguise], **parts())).eval()
    x = images()
    with torch.no_grad():
        assert torch.allclose(GraphModule(capture(model, x))(x), model(x), rtol=1e-4, atol=1e-4)


def frames(m: Any, x: torch.Tensor) -> Any:
    """Two pictures of each image, each through the same convolution and pool."""
    y = torch.cat([x, x.flip(3)], 1).reshape(-1, 3, 8, 8)
    y = F.max_pool2d(m.conv(y).relu(), 2)
    return m.fc(y.reshape(x.shape[0], 2, -1).sum(1).repeat(1, 4))


def windows(y: torch.Tensor) -> torch.Tensor:
    """Windows of 4×4 pixels, each as if it were an image: (N·4, 16, C)."""
    n, c, h, w = y.shape
    return y.view(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)


def parts_of_channels(m: Any, x: torch.Tensor) -> Any:
    """As attention takes queries, keys and values apart."""
    parts: Any = windows(m.conv(x)).reshape(-1, 16, 3, 2, 1).permute(2, 0, 3, 1, 4)
    a, b, c = parts.unbind(0)
    return (a.sigmoid() * b + c).transpose(1, 2).reshape(len(x), -1)


MERGED: dict[str, Function] = {
    "a batch norm of every pixel": lambda m, x: (
        m.norm(m.conv(x).permute(0, 2, 3, 1).flatten(0, 2)).reshape(len(x), 8, 8, 6).permute(0, 3, 1, 2).flatten(1)
    ),
    "a batch norm along rows": lambda m, x: m.rows(m.conv(x).flatten(0, 1).flatten(1)).view(-1, 384),
    "unflatten": lambda m, x: (
        m.norm(m.conv(x).flatten(2).transpose(1, 2).flatten(0, 1)).unflatten(0, (-1, 64)).flatten(1)
    ),
    "a function of one value": lambda m, x: F.softplus(m.conv(x).flatten(0, 1)).view(-1, 384),
    "constants and a residual": lambda m, x: (lambda y: y * m.rows.weight + y.sigmoid())(
        m.conv(x).reshape(-1, 64)
    ).view(-1, 384),
    "a linear layer for each pixel": lambda m, x: m.mix(m.conv(x).permute(0, 2, 3, 1).reshape(-1, 6)).reshape(
        len(x), -1
    ),
    "reductions": lambda m, x: (lambda y: y.mean(1) + y.amax(1) * y.sum(1))(m.conv(x).view(-1, 64)).view(-1, 6),
    "slices and concatenation": lambda m, x: (lambda y: torch.cat([y[:, 1:5], *y.chunk(2, 1)[::-1], y.flip(1)], 1))(
        m.conv(x).view(-1, 64)
    ).view(len(x), -1),
    "transposed pictures": lambda m, x: m.conv(x).view(-1, 8, 8).transpose(1, 2).reshape(-1, 384),
    "pictures of each channel": lambda m, x: F.avg_pool2d(m.conv(x).view(-1, 1, 8, 8), 3, 2, 1).view(len(x), -1),
    "two pictures of each image": frames,
    "a stack of results": lambda m, x: torch.stack([m.conv(x), m.conv(x).relu(), -m.conv(x)]).mean(0).flatten(1),
    "the largest of a stack": lambda m, x: torch.stack([m.conv(x), -m.conv(x)], 0).amax(0).flatten(1),
    "a batch that moves and returns": lambda m, x: (
        (m.conv(x).permute(1, 2, 0, 3) * m.rows.weight[:8].view(8, 1, 1)).permute(2, 0, 1, 3).flatten(1)
    ),
    "padding of a batch that moved": lambda m, x: (
        F.pad(m.conv(x).transpose(0, 1), (1, 0, 0, 0, 0, 0, 2, 1)).transpose(0, 1).flatten(1)
    ),
    "windows, and parts of channels": parts_of_channels,
    "constants added to parts that moved": lambda m, x: (
        (windows(m.conv(x)).permute(1, 0, 2) + m.norm.weight).mul(m.rows.weight[:16].view(16, 1, 1)).transpose(0, 1)
    ).reshape(len(x), -1),
    "parts under two dimensions": lambda m, x: (
        windows(m.conv(x)).reshape(-1, 4, 4, 6).permute(1, 2, 0, 3).flatten(0, 1).transpose(0, 1).reshape(len(x), -1)
    ),
    "copies of each image": lambda m, x: (
        m.conv(x).mean((2, 3)).repeat_interleave(4, 0).unsqueeze(1) * windows(m.conv(x))
    ).reshape(len(x), -1),
    "one copy of each image": lambda m, x: m.conv(x).repeat_interleave(1, 0).flatten(1),
    "copies of each part": lambda m, x: m.conv(x).view(-1, 64).repeat_interleave(2, 0).view(len(x), -1),
    "padding, expansion and repetition of parts": lambda m, x: (
        F.pad(windows(m.conv(x)), (1, 2, 3, 0), value=0.5)[:, :, None].expand(-1, -1, 2, -1).repeat(1, 1, 1, 2)
    ).reshape(len(x), -1),
    "a gated unit of parts": lambda m, x: F.glu(windows(m.conv(x)), 2).reshape(len(x), -1),
}


@pytest.mark.parametrize("way", MERGED)
def test_a_batch_that_merges_with_other_dimensions(way: str) -> None:
    model = Forward(MERGED[way], norm=nn.BatchNorm1d(6), rows=nn.BatchNorm1d(64), mix=nn.Linear(6, 7), **parts())
    seeded(model).eval()
    x = images(3, 3, 8, 8)
    graph = capture(model, x)
    for count in (1, 3):
        with torch.no_grad():
            assert torch.allclose(GraphModule(graph)(x[:count]), model(x[:count]), rtol=1e-4, atol=1e-4)


def test_logits_without_slopes_are_quantized() -> None:
    """Ranges are tuned by gradients, and a comparison has none."""
    model = seeded(Forward(lambda m, x: m.fc((m.conv(x) > 0).float().flatten(1)), **parts())).eval()
    network = twoscale.quantize(model, images(8, 3, 8, 8))
    assert twoscale.verify(network, images(8, 3, 8, 8)).mismatches == 0


def test_a_merged_batch_in_every_executor() -> None:
    model = seeded(Forward(frames, **parts())).eval()
    network = twoscale.quantize(model, images(8, 3, 8, 8))
    result = twoscale.verify(network, images(8, 3, 8, 8), executors=["reference", "torch", "onnxruntime"])
    assert result.mismatches == 0


EXECUTORS = ["reference", "torch", "onnxruntime", "c"]


def composed(m: Any, x: torch.Tensor) -> Any:
    """Operators that are composed of several layers, one after the other."""
    y = F.pixel_unshuffle(m.slopes(F.pixel_shuffle(m.conv(x).repeat(1, 2, 1, 1), 2)), 2)
    y = F.fold(F.unfold(F.channel_shuffle(y, 3), 3, padding=1, stride=2), 8, 3, padding=1, stride=2)
    y = torch.cat([F.interpolate(y[:, :6], size=(5, 12)), F.interpolate(y[:, 6:], size=(5, 12), mode="bilinear")], 1)
    first, _ = torch.split(F.adaptive_max_pool2d(y, (3, 8)).roll(1, 2).flip(1), [5, 7], 1)
    y = torch.stack(first.unbind(1), 1)
    return F.glu(F.avg_pool1d(y.flatten(2), 3, 2, 1).unfold(2, 4, 4), 3).flatten(1)


@pytest.mark.skipif(not sweep.whole(), reason="takes ten seconds: --sweep all runs it")
def test_composed_operators_in_every_executor() -> None:
    slopes = nn.PReLU(3)
    model = seeded(Forward(composed, slopes=slopes, **parts())).eval()
    with torch.no_grad():
        slopes.weight.copy_(torch.tensor([0.1, 0.5, -0.3]))
    network = twoscale.quantize(model, images(8, 3, 8, 8))
    result = twoscale.verify(network, images(8, 3, 8, 8), executors=EXECUTORS, model=model)
    assert result.mismatches == 0
    assert result.sqnr_db is not None
    assert result.sqnr_db > 20


MIXING: dict[str, tuple[Function, str]] = {
    "images in another order": (
        lambda m, x: m.conv(x).transpose(0, 1).reshape(-1, 64).view(len(x), -1),
        r"the captured graph of Forward does not compute what the model does",
    ),
    "an interpolation of a batch that moved": (
        lambda m, x: F.interpolate(m.conv(x).transpose(0, 1), scale_factor=2).transpose(0, 1).flatten(1),
        r"aten.transpose.* moves the batch; expected it to stay the first",
    ),
    "a mask as an index": (
        lambda m, x: m.conv(x)[:, torch.tensor([True, False] * 3)].flatten(1),
        "makes a tensor whose shape depends on values; .* a list of indices instead of a mask",
    ),
    "copies of the batch": (lambda m, x: m.fc(m.conv(x).flatten(1).repeat(2, 1)), r"aten.repeat.* mixes the images"),
    "padding between images": (
        lambda m, x: F.pad(m.conv(x).view(-1, 64), (0, 0, 0, 6))[:-6].view(len(x), -1),
        r"pads the batch; expected images to stay apart",
    ),
    "a product with computed weights": (
        lambda m, x: F.conv2d(x.reshape(1, -1, 8, 8), m.conv(x)[:, :, :3, :3].reshape(-1, 3, 3, 3), groups=len(x)).view(
            len(x), -1
        ),
        r"aten.conv2d.* a three-dimensional convolution, or one with computed weights has no integer form here",
    ),
    "a batch that stays merged": (lambda m, x: m.conv(x).view(-1, 64), r"aten.view.* mixes the images"),
}


@pytest.mark.parametrize("way", MIXING)
def test_images_that_mix_are_refused(way: str) -> None:
    forward, message = MIXING[way]
    with pytest.raises((CaptureError, UnsupportedOperatorError), match=message):
        capture(Forward(forward, norm=nn.BatchNorm1d(6), **parts()).eval(), images())


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
    for function in (
        lambda m, x: m.fc(m.conv(x).flatten(1)).softmax(1).flatten(1) * 2,
        lambda m, x: m.conv(x).view(-1, 64).softmax(1).view(len(x), -1) * 2,
    ):
        graph = capture(seeded(Forward(function, **parts())), images())
        assert sum(isinstance(node, Softmax) for node in graph) == 1


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


class Sensitive(nn.Module):
    """Right on its user's images, but chaotic on noise, where rounding in float32 is visible."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(192, 5)

    def forward(self, x: torch.Tensor) -> Any:
        y = self.fc(x.flatten(1))
        return torch.sin(y * 30000.0)


def test_the_check_compares_in_float64_if_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 the model differs by more than the check allows; in float64 the graph is seen to be right."""
    module = "twoscale._frontends.torch_export.capture._in_float64"
    model, x = seeded(Sensitive()).eval(), images()
    with monkeypatch.context() as patch:  # alike in float32: nothing is copied
        patch.setattr(module, lambda model, images: pytest.fail("there was no doubt"))
        capture(model, x)
    model, x = model.bfloat16(), x.bfloat16()
    graph = capture(model, x)
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(x.double())
        rounded = model(x)
    largest = expected.abs().max()
    assert (rounded.double() - expected).abs().max() > 0.1 * largest
    assert (GraphModule(graph, dtype=torch.float64)(x.double()) - expected).abs().max() < 1e-6 * largest
    # Planted: the model cannot run in float64.
    monkeypatch.setattr(module, lambda model, images: None)
    with pytest.raises(CaptureError, match="does not compute what the model does"):
        capture(model, x)


class Chaotic(nn.Module):
    """Amplifies the rounding of weights until even float64 shows it, as deep networks with random weights can."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32)) for _ in range(layers))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=4.0)
            elif isinstance(module, nn.BatchNorm1d) and module.running_var is not None:
                module.running_var.uniform_(0.5, 2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.sin(layer(x))
        return x


def test_rounding_that_the_model_amplifies_is_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = Chaotic(4).eval(), torch.randn(4, 32)
    graph = capture(model, x)
    with torch.no_grad():
        difference = GraphModule(graph, dtype=torch.float64)(x.double()) - copy.deepcopy(model).double()(x.double())
    assert difference.abs().max() > 1e-3, "the rule is not needed"
    # Planted: another function.
    monkeypatch.setitem(TRANSLATIONS, "sin", lambda e, node, a: e.at(node).table(e.input(a["self"]), "tanh"))
    with pytest.raises(CaptureError, match="does not compute what the model does"):
        capture(model, x)


def test_a_model_that_amplifies_everything_proves_nothing() -> None:
    torch.manual_seed(0)
    with pytest.raises(CaptureError, match="does not compute what the model does"):
        capture(Chaotic(5).eval(), torch.randn(4, 32))


class Positions(nn.Module):
    """Computes a bias from fixed coordinates by a small network with dropout, as relative positions are."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 4))
        self.register_buffer("coordinates", torch.randn(5, 2))
        self.fc = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.fc(x) + self.mlp(self.coordinates).mean(0)
        return found


def test_dropout_of_constants_is_off() -> None:
    torch.manual_seed(0)
    model, x = Positions(), torch.randn(4, 6)
    graph = capture(model, x)
    with torch.no_grad():
        assert torch.allclose(GraphModule(graph)(x), model.eval()(x), atol=1e-6)
