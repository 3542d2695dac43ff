"""The saved forms of an integer network: one registry, which the command line and the library read.

A form is a module of this package, with ``to_bytes(network)`` and, if it is read back, ``load(path)``, and an entry of
``FORMS``. Its module, and what that imports, such as ``onnx``, is imported only when a file is read or written.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twoscale._files import write_bytes
from twoscale.errors import UnknownNameError

if TYPE_CHECKING:
    import onnx

    from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["FORMS", "Form", "load", "save", "to_model"]


@dataclass(frozen=True)
class Form:
    """A kind of file that holds an integer network."""

    name: str
    module: str
    """Name of its module in this package."""
    suffix: str
    """Usual file name suffix."""
    promise: str
    """What the file is, and whether its integers equal the network's, as part of a sentence."""
    is_read: bool = False
    """Whether ``load`` reads it back."""

    def to_bytes(self, network: IntegerNetwork) -> bytes:
        """Return a network as a file."""
        write: Callable[[IntegerNetwork], bytes] = self._module().to_bytes
        return write(network)

    def load(self, path: Path) -> IntegerNetwork:
        """Read a network; see the package's ``load``."""
        read: Callable[[Path], IntegerNetwork] = self._module().load
        return read(path)

    def _module(self) -> Any:
        return importlib.import_module(f"twoscale._formats.{self.module}")


_ALL = (
    Form("integer", "integer", ".onnx", "an ONNX file of integer operators with the network's integers", is_read=True),
    Form("qdq", "qdq", ".onnx", "an ONNX file in QDQ form for OpenVINO and TensorRT, whose integers may differ"),
)
FORMS = {form.name: form for form in _ALL}
"""By name."""


def to_model(network: IntegerNetwork, form: str = "integer") -> onnx.ModelProto:
    """Return the network as an ONNX model with its metadata: standard operators, opset 18, dynamic batch "N".

    Args:
        network: what to write.
        form: a name in ``FORMS``: "integer", which is read back and gives the reference's integers, or "qdq" for
            runtimes that fuse that form into their own kernels.

    Raises:
        UnknownNameError: there is no such form.
    """
    import onnx

    return onnx.load_model_from_string(_form(form).to_bytes(network))


def save(network: IntegerNetwork, path: str | Path, form: str = "integer") -> None:
    """Write the network to a file, completely or not at all.

    Args:
        network: what to save.
        path: the file, usually with the suffix ".onnx"; missing folders are created.
        form: a name in ``FORMS``; only the integer form is read back.

    Raises:
        UnknownNameError: there is no such form.
        TwoscaleError: the file cannot be written; what was there before is unchanged.
    """
    write_bytes(Path(path), _form(form).to_bytes(network))


def load(path: str | Path) -> IntegerNetwork:
    """Read an integer network.

    A file that ``save`` wrote gives back a network of the same fingerprint, with its metadata. Other tools' files of
    QLinear operators are read if they fit. Their networks have the scheme "foreign" and are off the grid.

    Raises:
        NetworkFileError: the file is missing, damaged, altered, or not an integer network.
    """
    return FORMS["integer"].load(Path(path))


def _form(name: str) -> Form:
    if name not in FORMS:
        raise UnknownNameError("form of ONNX file", name, FORMS)
    return FORMS[name]
