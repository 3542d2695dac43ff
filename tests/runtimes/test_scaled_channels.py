"""A convolution that only multiplies channels, which the torch executor and the float graph compute as a product."""

from __future__ import annotations

import torch
from torch import nn

import twoscale
from twoscale._frontends import float_graph
from twoscale._ir.float_module import GraphModule


def test_a_number_per_channel() -> None:
    torch.manual_seed(0)
    scale = nn.Conv2d(6, 6, 1, groups=6)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), scale, nn.ReLU(), nn.Flatten(), nn.Linear(96, 5)).eval()
    images = torch.randn(8, 3, 6, 6)
    graph = float_graph(model, images[:1])
    (logits,) = (GraphModule(graph).run(images)[name] for name in graph.outputs)
    assert torch.allclose(logits, model(images), atol=1e-5)
    result = twoscale.verify(twoscale.quantize(model, [images]), images, executors=["reference", "torch"])
    assert result.mismatches == 0
