"""Python files and modules of the user's own, which are imported only when the user names them.

Importing a file or module runs its code.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from twoscale.errors import ConfigurationError, UnknownNameError

__all__ = ["attribute", "imported", "imported_file", "reason"]


def attribute(module: ModuleType, name: str, reference: str, what: str, known: list[str] | None = None) -> Any:
    """Return what a module calls ``name``, which may have dots.

    Args:
        module: of the user.
        name: what is looked up in it.
        reference: as the user wrote it, for messages.
        what: what is expected, such as "model".
        known: names to suggest; by default what the module defines.

    Raises:
        UnknownNameError: there is no such name.
        ConfigurationError: it cannot be called.
    """
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            own = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
            raise UnknownNameError(f"{what} in {reference.rpartition(':')[0]}", name, known or own)
        value = getattr(value, part)
    if not callable(value):
        expected = "a class or function of a model" if what == "model" else f"a {what}"
        raise ConfigurationError(f"{reference} is {type(value).__name__}; expected {expected}")
    return value


def imported_file(path: Path, what: str) -> ModuleType:
    """Import a Python file.

    Args:
        path: of the file.
        what: what it defines, for messages, such as "the model".

    Raises:
        ConfigurationError: there is no such file, or its import fails.
    """
    if not path.is_file():
        raise ConfigurationError(f"{path} does not exist; expected a Python file that defines {what}")
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
        raise ConfigurationError(f"{path} cannot be imported: {reason(error)}") from error
    return module


def imported(name: str) -> ModuleType:
    """Import a module, also from the current folder.

    Raises:
        ConfigurationError: the import fails.
    """
    _search_also(Path.cwd())
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # the module's own code
        raise ConfigurationError(f"{name} cannot be imported: {reason(error)}") from error


def _search_also(folder: Path) -> None:
    """Look for modules in ``folder`` last, so that a torch.py there cannot stand in for PyTorch."""
    if str(folder) not in sys.path:
        sys.path.append(os.fspath(folder))


def reason(error: BaseException) -> str:
    """Return what went wrong, and in which line of the user's code."""
    text = (str(error).splitlines() or [""])[0]
    found = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, SyntaxError):
        return found  # names file and line already
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")]
    if not places or Path(__file__).parent in Path(places[-1].filename).parents:  # the call itself failed
        return found
    return f"{found} ({Path(places[-1].filename).name}, line {places[-1].lineno})"
