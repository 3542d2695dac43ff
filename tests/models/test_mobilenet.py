"""MobileNetV2: its published size, and an integer network on which all executors agree."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import twoscale
from twoscale import models
from twoscale._ir import layers as n
from twoscale.errors import ConfigurationError


def test_parameters_are_as_published() -> None:
    model = models.create("mobilenetv2")
    # torchvision's mobilenet_v2 with 10 classes; strides have no parameters.
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_236_682
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 52
    assert [c.stride for c in convolutions].count((2, 2)) == 3


def test_width_rounds_channels_to_eights() -> None:
    model = models.create("mobilenetv2", width=0.35, classes=7)
    # The paper's model at 0.35 begins with these widths (torchvision and the original code agree).
    projections = [block.branch[-2].out_channels for block in model.blocks]  # type: ignore[union-attr]
    assert projections == [8, 8, 8, 16, 16, 16, 24, 24, 24, 24, 32, 32, 32, 56, 56, 56, 112]
    assert model.head[0].out_channels == 1280  # type: ignore[index, union-attr]
    with torch.no_grad():
        assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("width", [0.0, -1.0, float("nan")])
def test_impossible_widths(width: float) -> None:
    with pytest.raises(ConfigurationError, match=r"width is .*; expected a factor above 0"):
        models.create("mobilenetv2", width=width)


def test_to_integers_that_all_executors_agree_on() -> None:
    model = models.create("mobilenetv2", width=0.1)
    images = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        model(images)  # running statistics of batch norm
    network = twoscale.quantize(model.eval(), [images])
    depthwise = [layer for layer in network if isinstance(layer, n.Conv2d) and layer.groups > 1]
    assert len(depthwise) == 17
    assert all(layer.output.lo == layer.output.zero_point for layer in depthwise)  # ReLU6 became bounds
    assert "Clamp" not in {layer.op for layer in network}
    result = twoscale.verify(network, [images[:4]], executors=("reference", "torch", "onnxruntime", "c"))
    assert result.mismatches == 0
    assert result.compared > 0
