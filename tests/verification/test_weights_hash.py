"""Which float weights a network was made from is recorded, and other weights are noticed."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from torch import nn

import twoscale
from tests.quantization.small_models import images, residual_model
from twoscale._ir.weights_hash import weights_hash

PIXELS = images(61, 40)


def test_one_flipped_bit_is_noticed(tmp_path: Path) -> None:
    model = residual_model(7)
    network = twoscale.quantize(model, PIXELS)
    network.save(tmp_path / "net.onnx")
    network = twoscale.load(tmp_path / "net.onnx")
    assert network.metadata["weights_sha256"] == weights_hash(model)
    assert f"made from float weights {str(weights_hash(model))[:12]}" in network._repr_html_()
    assert twoscale.verify(network, PIXELS, model=model).same_weights
    flipped = copy.deepcopy(model)
    [weight] = [value for name, value in flipped.named_parameters() if name == "c.weight"]
    with torch.no_grad():
        weight.view(-1)[5:6].view(torch.int32).bitwise_xor_(1)
    result = twoscale.verify(network, PIXELS, model=flipped)
    assert result.same_weights is False
    assert "the float weights are not those that the network was made from" in result._repr_html_()
    assert twoscale.verify(network, PIXELS).same_weights is None


def test_the_hash_is_of_the_weights_alone() -> None:
    model = residual_model(7)
    assert weights_hash(nn.DataParallel(model)) == weights_hash(model.train()) == weights_hash(copy.deepcopy(model))
    assert weights_hash(residual_model(8)) != weights_hash(model)
    assert weights_hash(copy.deepcopy(model).half()) != weights_hash(model)
    assert weights_hash(copy.deepcopy(model).bfloat16()) is not None
    assert weights_hash(np.zeros(3)) is None


def test_a_single_value_may_have_any_stride() -> None:
    one = torch.ones(3).expand(3)[:1]
    spread = torch.as_strided(one, (1,), (0,))
    assert weights_hash({"a": spread}) == weights_hash({"a": torch.ones(1)})
