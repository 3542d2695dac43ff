"""Models of the user's own, by where their class stands: FILE.py:NAME or MODULE:NAME.

Importing a file or module runs its code. Only a reference that the user wrote is ever imported; a name that a weights
file records is not.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, cast

import msgspec

from twoscale._user_code import attribute, imported, imported_file, reason
from twoscale.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["class_options", "find", "is_reference", "make", "options_of", "same"]

_COLLECTIONS = ("timm", "torchvision")
"""Packages whose models have names of their own: timm:resnet50d, torchvision:resnet50."""
_SPELLINGS = {"True": "true", "False": "false", "None": "null"}
"""Python's constants in JSON."""


def is_reference(name: str) -> bool:
    """Whether ``name`` says where a model stands, instead of being a name in the registry."""
    return ":" in name


def same(a: str, b: str) -> bool:
    """Whether two references may mean the same model: the folder of a file is not compared."""
    return [Path(_parts(a)[0]).name, _parts(a)[1]] == [Path(_parts(b)[0]).name, _parts(b)[1]]


def make(reference: str, made: Callable[..., Any], options: dict[str, Any]) -> nn.Module:
    """Return what :func:`find` found, called with ``options``; of an ``nn.Module`` that exists already, a copy.

    Raises:
        ConfigurationError: the call fails, or gives no module.
    """
    import torch

    if isinstance(made, torch.nn.Module):
        if options:
            raise ConfigurationError(f"{reference} is a model already, which takes no options")
        return copy.deepcopy(made)
    try:
        model = made(**options)
    except Exception as error:  # the user's code
        raise ConfigurationError(f"cannot create model {reference}: {reason(error)}") from error
    if not isinstance(model, torch.nn.Module):
        raise ConfigurationError(f"{reference} returns {type(model).__name__}; expected a torch.nn.Module")
    return model


def class_options(reference: str, classes: int) -> dict[str, int]:
    """Return the option that gives the model ``classes`` outputs; none where it has no such parameter."""
    if _parts(reference)[0] in _COLLECTIONS:
        return {"num_classes": classes}
    try:
        parameters = inspect.signature(find(reference)).parameters
    except (TypeError, ValueError):
        return {}
    return next(({name: classes} for name in ("classes", "num_classes") if name in parameters), {})


def options_of(text: str) -> dict[str, Any]:
    """Return a model's options written as ``name=value,name=value``; a value is JSON, or else a string.

    Raises:
        ConfigurationError: it has another form, or names an option twice.
    """
    options: dict[str, Any] = {}
    for word in text.split(","):
        name, found, value = (part.strip() for part in word.partition("="))
        if not found or not name.isidentifier() or name in options:
            raise ConfigurationError(f"the model's options are {text}; expected name=value,... with each name once")
        try:
            options[name] = msgspec.json.decode(_SPELLINGS.get(value, value))
        except (msgspec.DecodeError, RecursionError):
            options[name] = value
    return options


def _parts(reference: str) -> tuple[str, str]:
    where, _, name = reference.rpartition(":")
    return where, name


def find(reference: str) -> Callable[..., Any]:
    """Import a model's file or module, and return its class or function, or the module that stands there.

    Raises:
        ConfigurationError: there is no such file or module, or its import fails.
        UnknownNameError: the file or module has no such name.
    """
    where, name = _parts(reference)
    if not where or not name:
        raise ConfigurationError(f"the model is {reference}; expected FILE.py:NAME or MODULE:NAME")
    if where in _COLLECTIONS:
        return _of_collection(where, name)
    module = imported_file(Path(where), "the model") if where.endswith(".py") else imported(where)
    return cast(Callable[..., Any], attribute(module, name, reference, "model", _models_in(module)))


def _of_collection(package: str, name: str) -> Callable[..., Any]:
    module = imported("timm" if package == "timm" else "torchvision.models")
    if package == "timm":
        return lambda **options: module.create_model(name, **options)
    return lambda **options: module.get_model(name, **options)


def _models_in(module: ModuleType) -> list[str]:
    """Return the names of what a module defines that may be, or return, a model: classes of modules, and functions."""
    import torch

    own = {name: value for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__}
    kinds = [name for name, value in own.items() if isinstance(value, type) and issubclass(value, torch.nn.Module)]
    functions = [name for name, value in own.items() if isinstance(value, FunctionType) and not name.startswith("_")]
    return kinds + functions or list(own)
