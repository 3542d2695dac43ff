"""The accuracy that ``quantize`` measures and records."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import twoscale
from twoscale import data
from twoscale._cli.quantize import _accuracy
from twoscale.data import Split


@pytest.mark.parametrize("outputs", [1, 2])
def test_networks_of_two_classes(outputs: int) -> None:
    """One logit chooses by its sign, as two choose by the larger."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(3 * 8 * 8, outputs)).eval()
    digits = data.load("digits")
    labels = (digits.test.labels % 2).astype(digits.test.labels.dtype)
    digits = dataclasses.replace(digits, test=Split(digits.test.images, labels))
    x = torch.from_numpy(data.normalize(digits.test.images, digits.mean, digits.std))
    network = twoscale.quantize(model, x[:100])
    found = _accuracy(network, digits, model, digits)
    assert found is not None
    with torch.no_grad():
        logits = model(x).numpy()
    chosen = [np.where(out[:, 0] > 0, 1, 0) if outputs == 1 else out.argmax(1) for out in (logits, network(x).numpy())]
    assert [found.float_top1, found.top1] == [float((classes == labels).mean()) for classes in chosen]
    assert found.samples == len(labels)
    three = dataclasses.replace(digits, test=Split(digits.test.images, labels + np.uint8(1).astype(labels.dtype)))
    assert _accuracy(network, three, model, three) is None
