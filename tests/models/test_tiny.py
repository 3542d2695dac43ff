"""The networks of MLPerf Tiny: sizes of the reference implementation, and integer networks."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import twoscale
from tests import sweep
from twoscale import models
from twoscale._codegen.c.portable.lowering import lower
from twoscale.errors import ConfigurationError

# Parameters and batch norm statistics, as Keras' summary of the reference models counts them; multiply-adds.
SIZES = {
    "dscnn": ((1, 49, 10), (12,), 24_908, 2_656_768),
    "mobilenetv1": ((3, 96, 96), (2,), 221_794, 7_489_664),
    "autoencoder": ((640,), (640,), 269_992, 264_192),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_of_the_reference(name: str) -> None:
    shape, output, parameters, _ = SIZES[name]
    model = models.create(name).eval()
    statistics = [value for key, value in model.named_buffers() if not key.endswith("num_batches_tracked")]
    assert sum(value.numel() for value in itertools.chain(model.parameters(), statistics)) == parameters
    with torch.no_grad():
        assert tuple(model(torch.zeros(2, *shape)).shape) == (2, *output)


def test_padding_is_tensorflow_s() -> None:
    """Of TensorFlow's "same", for each size: the output has ceil(size / stride) pixels, the odd one is at the end."""
    seen: list[tuple[int, ...]] = []
    first = {"dscnn": ((49, 10), (10, 4)), "mobilenetv1": ((96, 3), (96, 3))}  # size and kernel, of height and width
    for name, ((height, kernel_h), (width, kernel_w)) in first.items():
        padding = []
        for size, kernel in ((width, kernel_w), (height, kernel_h)):
            total = max((-(-size // 2) - 1) * 2 + kernel - size, 0)
            padding += [total // 2, total - total // 2]
        model = models.create(name)
        conv = model.conv
        assert isinstance(conv, nn.Conv2d)
        conv.register_forward_pre_hook(lambda module, x: seen.append(tuple(x[0].shape[2:])))
        with torch.no_grad():
            model.eval()(torch.zeros(1, SIZES[name][0][0], height, width))
        assert seen.pop() == (height + padding[2] + padding[3], width + padding[0] + padding[1])


@pytest.mark.parametrize("name", SIZES)
def test_to_integers_that_all_executors_agree_on(name: str) -> None:
    shape, output, _, macs = SIZES[name]
    model = models.create(name)
    inputs = torch.rand(8, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        model(inputs)  # running statistics of batch norm
    network = twoscale.quantize(model.eval(), inputs)
    assert network.spec(network.output).shape == output
    assert sum(step.macs for step in lower(network).steps) == macs
    executors = ("reference", "torch", "onnxruntime", "c") if sweep.whole() else ("reference", "torch", "onnxruntime")
    result = twoscale.verify(network, inputs[:2], executors=executors, model=model)
    assert result.mismatches == 0
    assert result.sqnr_db is not None
    assert result.sqnr_db > 15


def test_data_of_classes_does_not_fit_an_autoencoder() -> None:
    from twoscale.models._registry import class_options

    with pytest.raises(ConfigurationError, match="model 'autoencoder' has no classes"):
        class_options("autoencoder", 10)
