"""Named configurations; options on the command line override their values."""

from __future__ import annotations

import dataclasses
from typing import Any

from twoscale.errors import UnknownNameError
from twoscale.training._config import TrainConfig

__all__ = ["RECIPES", "recipe"]

_PHOTOGRAPHS = TrainConfig(
    model="resnet18",
    data="cifar10",
    nesterov=True,
    channels_last=True,
    precision="bf16",
    log_every=100,
)
"""Common to the recipes for ResNets. Batch sizes divide 50,000, so that no image is left over."""

_STANDARD = dataclasses.replace(
    _PHOTOGRAPHS,
    epochs=50,
    batch_size=500,
    lr=0.1,
    base_batch=125,
    warmup_epochs=5,
    weight_decay=5e-4,
    schedule="cosine",
    label_smoothing=0.1,
    crop=4,
    flip="random",
    zero_init_residual=True,
)

RECIPES = {
    "lab": TrainConfig(),
    "standard": _STANDARD,
    "large-batch": dataclasses.replace(_STANDARD, batch_size=5000, warmup_steps=100),
    "fast": dataclasses.replace(
        _PHOTOGRAPHS,
        epochs=20,
        batch_size=500,
        lr=0.6,
        warmup_epochs=5,
        weight_decay=8e-4,
        schedule="linear",
        label_smoothing=0.2,
        bias_lr=8,
        crop=2,
        fill="reflect",
        flip="alternating",
        whiten=True,
        test_views="shifted",
    ),
    "quantized": TrainConfig(
        model="resnet20",
        data="cifar10",
        epochs=10,
        batch_size=125,
        lr=5e-4,
        optimizer="adamw",
        schedule="cosine",
        crop=4,
        flip="random",
        log_every=100,
    ),
    "speedrun": dataclasses.replace(
        _PHOTOGRAPHS,
        model="speednet",
        epochs=8,
        batch_size=2000,
        optimizer="muon",
        nesterov=False,
        lr=0.24,
        momentum=0.6,
        weight_decay=0.4,
        normalize_filters=True,
        bias_lr=0.6,
        head_lr=0.09,
        warmup_epochs=0.5,
        schedule="linear",
        label_smoothing=0.2,
        crop=2,
        fill="reflect",
        flip="alternating",
        whiten=True,
        freeze=(0.4, 0.8, 0.8),
        test_views="selective",
        log_every=25,
    ),
}
"""lab: the quantization lab's, for small networks. standard: ResNet-18 on CIFAR-10. large-batch: the same with 5,000
images per update, by linear scaling and warm-up. fast: ResNet-18 to 93.9% in 12.6 s with mirrored tests, on an
H200. quantized: for quantize, from trained weights. speedrun: SpeedNet, made for 94% in little time; it
has not run on all of CIFAR-10 yet."""


def recipe(name: str, **overrides: Any) -> TrainConfig:
    """Return a recipe's configuration with other values for some fields.

    Raises:
        UnknownNameError: there is no such recipe.
        ConfigurationError: a value outside its range.
    """
    if name not in RECIPES:
        raise UnknownNameError("recipe", name, RECIPES)
    return dataclasses.replace(RECIPES[name], **overrides)
