"""Models with attention, softmax inside and norms of single images: captured, quantized, computed by every executor.

Every capture compares the graph with the model itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import twoscale
from twoscale._frontends.torch_export.capture import capture
from twoscale._ir.float_graph import FloatGraph
from twoscale._passes.fold import fold
from twoscale._runtimes import create
from twoscale.errors import CaptureError, UnsupportedOperatorError

OPERATORS = {
    "scaled_dot_product_attention", "layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm", "group_norm",
    "native_group_norm", "instance_norm", "bmm", "einsum",
}  # fmt: skip
"""ATen operators that are reached here, and their decomposed names."""

T, WIDTH, HEADS = 4, 8, 2


class Tokens(nn.Module):
    """Four tokens of eight features from an image of 8x8, a function of them, and five classes."""

    def __init__(self, function: Callable[[Any, torch.Tensor], torch.Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.head = nn.Linear(WIDTH, 5)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.scale = nn.Parameter(torch.rand(WIDTH) + 0.5)
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def heads(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        n, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.function(self, self.patches(x).flatten(2).transpose(1, 2))
        logits: torch.Tensor = self.head(x.mean(1))
        return logits


def merged(x: torch.Tensor) -> Any:
    return x.transpose(1, 2).flatten(2)


def fused(m: Any, x: torch.Tensor) -> Any:
    return x + merged(F.scaled_dot_product_attention(*m.heads(x)))


def written_out(m: Any, x: torch.Tensor) -> Any:
    q, k, v = m.heads(x)
    return x + merged(((q * 0.5) @ k.transpose(-2, -1)).softmax(-1) @ v)


def scaled_after(m: Any, x: torch.Tensor) -> Any:
    q, k, v = m.heads(x)
    return x + merged(F.softmax(torch.einsum("bhid,bhjd->bhij", q, k) * 0.5, -1) @ v)


def masked(m: Any, x: torch.Tensor) -> Any:
    q, k, v = m.heads(x)
    return merged(F.scaled_dot_product_attention(q, k, v, is_causal=True))


def with_mask(m: Any, x: torch.Tensor) -> Any:
    mask = torch.tensor([[True, True, False, True]]).expand(T, T)
    q, k, v = m.heads(x)
    return merged(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


def by_batches(m: Any, x: torch.Tensor) -> Any:
    return torch.bmm(torch.bmm(x, x.transpose(1, 2)), x)


def with_token(m: Any, x: torch.Tensor) -> Any:
    x = torch.cat([m.token.expand(len(x), -1, -1), x], 1)
    return (x + m.scale * fused(m, m.norm(x)))[:, :1]


def of_channels(m: Any, x: torch.Tensor) -> Any:
    image = m.norm(x.transpose(1, 2).reshape(len(x), WIDTH, 2, 2))
    return image.flatten(2).transpose(1, 2)


def channels_last(m: Any, x: torch.Tensor) -> Any:
    image = x.transpose(1, 2).reshape(len(x), WIDTH, 2, 2).permute(0, 2, 3, 1)
    return m.norm(image).permute(0, 3, 1, 2).flatten(2).transpose(1, 2)


def norm(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0.5)
    return module


def layer_norm() -> nn.Module:
    return norm(nn.LayerNorm(WIDTH))


ATTENTION = {"MatMul": 1, "SoftmaxMatMul": 1}
FORMS: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "attention": (lambda: Tokens(fused), ATTENTION),
    "attention written out": (lambda: Tokens(written_out), ATTENTION),
    "scores scaled afterwards": (lambda: Tokens(scaled_after), ATTENTION),
    "a causal mask": (lambda: Tokens(masked), ATTENTION),
    "a mask of some keys": (lambda: Tokens(with_mask), ATTENTION),
    "products of batches": (lambda: Tokens(by_batches), {"MatMul": 2}),
    "a class token and layer scale": (lambda: Tokens(with_token, norm=layer_norm()), {**ATTENTION, "Normalize": 1}),
    "torch's own attention": (
        lambda: Tokens(
            lambda m, x: m.inner(x, x, x, need_weights=False)[0],
            inner=nn.MultiheadAttention(WIDTH, HEADS, batch_first=True),
        ),
        ATTENTION,
    ),
    "torch's own encoder": (
        lambda: Tokens(
            lambda m, x: m.inner(x),
            inner=nn.TransformerEncoderLayer(WIDTH, HEADS, 16, batch_first=True, norm_first=True),
        ),
        {**ATTENTION, "Normalize": 2},
    ),
    "a softmax over tokens": (lambda: Tokens(lambda m, x: x * m.qkv(x)[..., :WIDTH].softmax(1)), {"Softmax": 1}),
    "a layer norm": (lambda: Tokens(lambda m, x: m.norm(x), norm=layer_norm()), {"Normalize": 1}),
    "a layer norm of two dimensions": (
        lambda: Tokens(lambda m, x: m.norm(x), norm=nn.LayerNorm((T, WIDTH), elementwise_affine=False)),
        {"Normalize": 1},
    ),
    "a layer norm of channels": (
        lambda: Tokens(channels_last, norm=layer_norm()), {"Normalize": 1}
    ),
    "a root mean square": (lambda: Tokens(lambda m, x: m.norm(x), norm=norm(nn.RMSNorm(WIDTH))), {"Normalize": 1}),
    "groups": (lambda: Tokens(of_channels, norm=norm(nn.GroupNorm(2, WIDTH))), {"Normalize": 1}),
    "one group": (lambda: Tokens(of_channels, norm=norm(nn.GroupNorm(1, WIDTH))), {"Normalize": 1}),
    "an instance norm": (lambda: Tokens(of_channels, norm=nn.InstanceNorm2d(WIDTH, affine=True)), {"Normalize": 1}),
}  # fmt: skip


def images(count: int = 16) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def made(form: str) -> nn.Module:
    torch.manual_seed(0)
    return FORMS[form][0]().eval()


def kinds(graph: FloatGraph) -> dict[str, int]:
    found = Counter(node.op for node in graph)
    return {kind: found[kind] for kind in ("MatMul", "SoftmaxMatMul", "Softmax", "Normalize") if found[kind]}


@pytest.mark.sweep(6)
@pytest.mark.parametrize("form", FORMS)
def test_the_graph_is_the_model(form: str) -> None:
    assert kinds(fold(capture(made(form), images(4)))) == FORMS[form][1]


@pytest.mark.sweep(2)
@pytest.mark.parametrize("form", ["a class token and layer scale", "a softmax over tokens", "groups", "a causal mask"])
def test_executors_give_the_same_integers_close_to_the_model(form: str) -> None:
    model = made(form)
    network = twoscale.quantize(model, images())
    names = [layer.name for layer in network]
    expected = create("reference", network).run(images().numpy(), names)
    for executor in ("torch", "onnxruntime"):
        found = create(executor, network).run(images().numpy(), names)
        assert all(np.array_equal(expected[name], found[name]) for name in names)
    with torch.no_grad():
        logits = model(images()).numpy()
    assert np.square(network(images().numpy()) - logits).sum() < 0.01 * np.square(logits).sum()


def dropping(m: Any, x: torch.Tensor) -> Any:
    q, k, v = m.heads(x)
    return F.scaled_dot_product_attention(q, k, v, dropout_p=0.5)


REFUSED: dict[str, tuple[Callable[[Any, torch.Tensor], torch.Tensor], str]] = {
    "a product over the batch": (lambda m, x: x.transpose(0, 1) @ x.permute(1, 2, 0) @ x.transpose(0, 1), "the batch"),
    "dropout of weights": (lambda m, x: merged(dropping(m, x)), "dropout"),
    "a log_softmax": (lambda m, x: x.log_softmax(-1), "a log_softmax before the end"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_is_refused(form: str) -> None:
    function, message = REFUSED[form]
    with pytest.raises((CaptureError, UnsupportedOperatorError), match=message):
        capture(Tokens(function).eval(), images(2))
