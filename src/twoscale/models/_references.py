"""Models of the user's own, by where their class stands: FILE.py:NAME or MODULE:NAME.

Importing a file or module runs its code. Only a reference that the user wrote is ever imported; a name that a weights
file records is not.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import msgspec

from twoscale.errors import ConfigurationError, UnknownNameError

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
        raise ConfigurationError(f"cannot create model {reference}: {_reason(error)}") from error
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
    module = _imported_file(Path(where)) if where.endswith(".py") else _imported(where)
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            raise UnknownNameError(f"model in {where}", name, _models_in(module))
        value = getattr(value, part)
    if not callable(value):
        raise ConfigurationError(f"{reference} is {type(value).__name__}; expected a class or function of a model")
    return value  # type: ignore[no-any-return]


def _of_collection(package: str, name: str) -> Callable[..., Any]:
    module = _imported("timm" if package == "timm" else "torchvision.models")
    if package == "timm":
        return lambda **options: module.create_model(name, **options)
    return lambda **options: module.get_model(name, **options)


def _models_in(module: ModuleType) -> list[str]:
    """Return the names of the classes of modules that a module defines; of everything it defines, if none."""
    import torch

    own = {name: value for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__}
    kinds = [name for name, value in own.items() if isinstance(value, type) and issubclass(value, torch.nn.Module)]
    return kinds or list(own)


def _imported_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigurationError(f"{path} does not exist; expected a Python file that defines the model")
    path = path.resolve()
    name = f"twoscale_user_{path.stem}"
    module = sys.modules.get(name)
    if module is not None and module.__file__ == str(path):
        return module
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    _search_also(path.parent)
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, Exception | SystemExit):
            raise
        raise ConfigurationError(f"{path} cannot be imported: {_reason(error)}") from error
    return module


def _imported(name: str) -> ModuleType:
    _search_also(Path.cwd())
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # the module's own code
        raise ConfigurationError(f"{name} cannot be imported: {_reason(error)}") from error


def _search_also(folder: Path) -> None:
    """Look for modules in ``folder`` last, so that a torch.py there cannot stand in for PyTorch."""
    if str(folder) not in sys.path:
        sys.path.append(os.fspath(folder))


def _reason(error: BaseException) -> str:
    """Return what went wrong, and in which line of the user's code."""
    text = (str(error).splitlines() or [""])[0]
    found = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, SyntaxError):
        return found  # names file and line already
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")]
    if not places or places[-1].filename == __file__:
        return found
    return f"{found} ({Path(places[-1].filename).name}, line {places[-1].lineno})"
