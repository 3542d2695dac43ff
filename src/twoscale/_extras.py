"""Packages that only some parts of twoscale need, and what to install if one is missing."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator

from twoscale.errors import MissingPackageError

__all__ = ["EXTRAS", "require", "requires_extras"]

EXTRAS = {
    "onnxruntime": "onnxruntime",
    "PIL": "torch",
    "ai_edge_litert": "litert",
    "flatbuffers": "litert",
    "pooch": "torch",
    "pyarrow": "parquet",
    "requests": "torch",
    "safetensors": "torch",
    "torch": "torch",
}
"""From an importable package to the extra of twoscale that installs it."""

_DISTRIBUTIONS = {"PIL": "pillow"}


@contextlib.contextmanager
def requires_extras(what: str) -> Iterator[None]:
    """Turn the failed import of a package into an error that says what to install.

    Use it as a context manager around an import, or as a decorator of a function that imports.

    Args:
        what: the user's name of what needs the package, such as "twoscale.quantize".

    Raises:
        MissingPackageError: a package of an extra is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        raise _missing(what, package) from error


def require(what: str, package: str) -> None:
    """Check that a package of an extra is installed, without importing it.

    Raises:
        MissingPackageError: it is not.
    """
    if importlib.util.find_spec(package) is None:
        raise _missing(what, package)


def _missing(what: str, package: str) -> MissingPackageError:
    return MissingPackageError(
        f"{what} needs {_DISTRIBUTIONS.get(package, package)}, which is not installed; "
        f"install it with: pip install 'twoscale[{EXTRAS[package]}]'"
    )
