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
from twoscale.errors import ConfigurationError, UnknownNameError

if TYPE_CHECKING:
    import onnx

    from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["FORMS", "Form", "is_tflite", "load", "save", "to_model"]


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

    io_types: tuple[str, ...] = ()
    """Types that input and output may have, the default first; empty if there is no choice."""

    def to_bytes(self, network: IntegerNetwork, io: str | None = None, *, int4: bool = False) -> bytes:
        """Return a network as a file; see the package's ``save``."""
        write: Callable[..., bytes] = self._module().to_bytes
        if int4 and self.suffix != ".onnx":
            raise ConfigurationError(
                f"int4 is for ONNX files, got the form {self.name}: LiteRT rounds twice where weights have 4 bits, so "
                "its integers would not be the network's"
            )
        if io is None:
            return write(network, int4=True) if int4 else write(network)
        if io not in self.io_types:
            raise UnknownNameError(f"type of input and output of the form {self.name}", io, self.io_types)
        return write(network, io=io)

    def load(self, path: Path) -> IntegerNetwork:
        """Read a network; see the package's ``load``."""
        read: Callable[[Path], IntegerNetwork] = self._module().load
        return read(path)

    def _module(self) -> Any:
        return importlib.import_module(f"twoscale._formats.{self.module}")


_ALL = (
    Form("integer", "integer", ".onnx", "an ONNX file of integer operators with the network's integers", is_read=True),
    Form("qdq", "qdq", ".onnx", "an ONNX file in QDQ form for OpenVINO and TensorRT, whose integers may differ"),
    Form(
        "tflite",
        "tflite",
        ".tflite",
        "a TensorFlow Lite file, with which LiteRT computes the network's integers",
        io_types=("int8", "uint8", "float32"),
    ),
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

    if _form(form).suffix != ".onnx":
        raise UnknownNameError("form of ONNX file", form, [f.name for f in _ALL if f.suffix == ".onnx"])
    return onnx.load_model_from_string(_form(form).to_bytes(network))


def save(
    network: IntegerNetwork,
    path: str | Path,
    form: str = "integer",
    io: str | None = None,
    *,
    int4: bool = False,
) -> None:
    """Write the network to a file, completely or not at all.

    Args:
        network: what to save.
        path: the file, usually with the suffix ".onnx"; missing folders are created.
        form: a name in ``FORMS``; only the integer form is read back.
        io: type of input and output, where the form has a choice.
        int4: whether weights that fit 4 bits take half a byte each, in ONNX files.

    Raises:
        ConfigurationError: the form has no operators with the network's integers.
        UnknownNameError: there is no such form or type.
        TwoscaleError: the file cannot be written; what was there before is unchanged.
    """
    write_bytes(Path(path), _form(form).to_bytes(network, io, int4=int4))


def load(path: str | Path) -> IntegerNetwork:
    """Read an integer network.

    A file that ``save`` wrote gives back a network of the same fingerprint, with its metadata. Other tools' files of
    QLinear operators are read if they fit. Their networks have the scheme "foreign" and are off the grid. So are those
    of `.tflite` files, whose layers have TensorFlow Lite's own arithmetic.

    Raises:
        NetworkFileError: the file is missing, damaged, altered, or not an integer network.
    """
    path = Path(path)
    if is_tflite(path):
        from twoscale._formats.tflite import reading

        return reading.load(path)
    return FORMS["integer"].load(path)


def is_tflite(path: Path) -> bool:
    """Whether a file is named .tflite, or begins as one."""
    try:
        with path.open("rb") as file:
            return file.read(8)[4:] == b"TFL3" or path.suffix == ".tflite"
    except OSError:
        return path.suffix == ".tflite"


def _form(name: str) -> Form:
    if name not in FORMS:
        raise UnknownNameError("form of file", name, FORMS)
    return FORMS[name]
