"""Models by name. A model's module, and with it torch, is imported when the model is created."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twoscale._extras import requires_extras
from twoscale.errors import ConfigurationError, UnknownNameError
from twoscale.models import _references

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Published", "class_options", "create", "model_options", "names", "normalization", "published"]

# To add a model: write its class in a file of this folder and name it here.
_MODELS = {
    "autoencoder": ("_tiny", "Autoencoder"),
    "dscnn": ("_tiny", "DSCNN"),
    "mobilenetv1": ("_tiny", "MobileNetV1"),
    "mobilenetv2": ("_mobilenet", "MobileNetV2"),
    "net": ("_net", "Net"),
    "net-with-bias": ("_net", "NetWithBias"),
    "resnet18": ("_resnet", "ResNet18"),
    "resnet8": ("_resnet", "ResNet8"),
    "resnet20": ("_resnet", "resnet20"),
    "resnet32": ("_resnet", "resnet32"),
    "resnet44": ("_resnet", "resnet44"),
    "resnet56": ("_resnet", "resnet56"),
    "speednet": ("_speednet", "SpeedNet"),
}
_WITHOUT_CLASSES = ("autoencoder",)


@dataclass(frozen=True)
class Published:
    """How the published weights of a model were trained. Their files do not contain it."""

    data: str
    """Name of the data set."""
    mean: tuple[float, ...]
    """Per channel, of pixels / 255."""
    std: tuple[float, ...]
    """Per channel, of pixels / 255."""


# akamaster/pytorch_resnet_cifar10 normalizes CIFAR-10 as ImageNet; MLPerf Tiny's ResNet-8 takes pixels 0..255.
_CIFAR_RESNET = Published("cifar10", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_PUBLISHED = {
    "resnet8": Published("cifar10", (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
    "resnet20": _CIFAR_RESNET,
    "resnet32": _CIFAR_RESNET,
    "resnet44": _CIFAR_RESNET,
    "resnet56": _CIFAR_RESNET,
}


def published(name: str) -> Published | None:
    """Return how the published weights of model ``name`` were trained; None if there are none."""
    return _PUBLISHED.get(name)


def normalization(name: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return (mean, std) of pixels / 255, per channel, that the published weights of ``name`` expect, or None."""
    found = published(name)
    return None if found is None else (found.mean, found.std)


def names() -> tuple[str, ...]:
    """Every name that :func:`create` takes, sorted."""
    return tuple(sorted(_MODELS))


def class_options(name: str, classes: int) -> dict[str, int]:
    """Return the option of :func:`create` that gives model ``name`` as many outputs as there are classes.

    Empty for a model of the user's own without a parameter ``classes`` or ``num_classes``.

    Raises:
        ConfigurationError: the model has no classes, or the user's file or module cannot be imported.
    """
    if name in _WITHOUT_CLASSES:
        raise ConfigurationError(
            f"model '{name}' has no classes, so data with {classes} classes does not fit it; choose a classifier, or "
            "create the model with twoscale.models.create and train it in a loop of your own"
        )
    return _references.class_options(name, classes) if _references.is_reference(name) else {"classes": classes}


def model_options(name: str, classes: int, model_args: str | None = None) -> dict[str, Any]:
    """Return the options of :func:`create` for a model of ``classes`` classes, with those that the user wrote.

    Args:
        name: of the model.
        classes: outputs that it needs.
        model_args: name=value,name=value; these take precedence.

    Raises:
        ConfigurationError: model_args has another form, the model has no classes, or the user's file cannot be
            imported.
    """
    given = {} if model_args is None else _references.options_of(model_args)
    return {**class_options(name, classes), **given}


@requires_extras("twoscale.models.create")
def create(name: str, *, seed: int = 0, **options: Any) -> nn.Module:
    """Make the model ``name``, on the CPU, in training mode.

    Args:
        name: one of :func:`names`; or a class or function of the user's own that gives a module, as FILE.py:NAME or
            MODULE:NAME, which imports that file or module; or timm:NAME or torchvision:NAME, where they are installed.
        seed: decides the initial weights, wholly; torch's global random state is neither read nor changed.
        options: the model's own, such as ``classes=100``.

    Raises:
        UnknownNameError: there is no such model.
        ConfigurationError: the model has no such option, or the user's own cannot be imported or created.
    """
    if not _references.is_reference(name) and name not in _MODELS:
        if name.endswith((".onnx", ".pt2", ".tflite")):
            raise ConfigurationError(
                f"{name} is a trained network, which is not trained further; expected a model's name, or FILE.py:CLASS"
            )
        raise UnknownNameError("model", name, _MODELS)
    import torch

    # devices=[] and default_generator: the generators of accelerators stay out of it.
    with torch.random.fork_rng(devices=[]):
        if _references.is_reference(name):
            found = _references.find(name)  # the import may draw random numbers too
            torch.default_generator.manual_seed(seed)
            return _references.make(name, found, options)
        torch.default_generator.manual_seed(seed)
        module, attribute = _MODELS[name]
        kind = getattr(importlib.import_module(f"twoscale.models.{module}"), attribute)
        try:
            model: nn.Module = kind(**options)
        except TypeError as error:
            raise ConfigurationError(f"cannot create model '{name}': {error}") from error
    return model
