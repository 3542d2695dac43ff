"""Reads pickles of CIFAR-10 batches, and no others, opcode by opcode. Nothing is imported or called.

``pickle.Unpickler`` with a restricted ``find_class`` runs nothing either, but nine bytes can make it allocate gigabytes
(the memo is an array as long as its largest index), and keys of nested tuples take forever to hash. Here every opcode
adds a bounded amount, and keys are text.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["PickledBatchError", "read_batch"]

_MOST_OPCODES = 500_000
"""The published batches, of 10,000 labels and file names, have at most 50,045."""
_MOST_BYTES = 64 << 20
"""Largest size of strings made of others."""

_PUSHED = frozenset({
    "BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "BINFLOAT", "FLOAT", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "UNICODE", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
})  # fmt: skip
_STRINGS = frozenset({"STRING", "BINSTRING", "SHORT_BINSTRING"})
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class PickledBatchError(Exception):
    """A pickle that is no CIFAR-10 batch."""


@dataclass
class _Object:
    """An object of NumPy with its arguments and its state."""

    kind: str
    arguments: tuple[object, ...] = ()
    state: object = None


@dataclass(frozen=True)
class _Name:
    kind: str


_NAMES = {
    ("_codecs", "encode"): "encode",
    ("numpy", "dtype"): "dtype",
    ("numpy", "ndarray"): "ndarray",
    ("numpy._core.multiarray", "_reconstruct"): "array",
    ("numpy.core.multiarray", "_reconstruct"): "array",
}


@dataclass
class _Machine:
    """The part of a pickle machine that a batch needs."""

    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    encoded: int = 0

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        found, self.stack[start:] = self.stack[start:], []
        return found

    def set_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise PickledBatchError("it sets items of something that is no dictionary")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, str | bytes):
                raise PickledBatchError(f"a key is {type(key).__name__}, expected text")
            target[key] = value

    def extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise PickledBatchError("it appends to something that is no list")
        target.extend(values)

    def name(self, module: object, name: object) -> None:
        kind = _NAMES.get((module, name))  # type: ignore[arg-type]
        if kind is None:
            asked = ascii(f"{module}.{name}"[:80]).strip("'")
            raise PickledBatchError(f"it asks for {asked}, which no CIFAR-10 batch needs")
        self.stack.append(_Name(kind))

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise PickledBatchError("it calls something that no CIFAR-10 batch calls")
        if function.kind != "encode":
            self.stack.append(_Object(function.kind, arguments))
            return
        match arguments:  # what Python 3 writes for bytes in protocol 2
            case (str(text), "latin1"):
                self.encoded += len(text)
                if self.encoded > _MOST_BYTES:
                    raise PickledBatchError("its strings are larger than any batch")
                self.stack.append(text.encode("latin1"))
            case _:
                raise PickledBatchError("it encodes something that is no text")

    def build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if not isinstance(target, _Object):
            raise PickledBatchError("it gives a state to something that has none")
        target.state = state

    def run(self, content: bytes) -> object:
        """Run to the end; return the top of the stack."""
        stack = self.stack
        for number, (opcode, given, _) in enumerate(pickletools.genops(content)):
            argument: Any = given
            if number >= _MOST_OPCODES:
                raise PickledBatchError(f"it has more than {_MOST_OPCODES:,} opcodes")
            name = opcode.name
            if name in _PUSHED:
                stack.append(argument)
            elif name in _STRINGS:
                stack.append(argument.encode("latin1"))
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
                self.memo[argument] = stack[-1]
            elif name == "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                stack.append(self.memo[argument])
            elif name == "MARK":
                self.marks.append(len(stack))
            elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
                stack.append({} if name == "EMPTY_DICT" else [] if name == "EMPTY_LIST" else ())
            elif name == "DICT":
                values = self.since_mark()
                stack.append({})
                self.set_items(values)
            elif name == "LIST":
                stack.append(self.since_mark())
            elif name == "TUPLE":
                stack.append(tuple(self.since_mark()))
            elif name in _TUPLES:
                stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
            elif name == "APPEND":
                self.extend([stack.pop()])
            elif name == "APPENDS":
                self.extend(self.since_mark())
            elif name == "SETITEM":
                values = stack[-2:]
                del stack[-2:]
                self.set_items(values)
            elif name == "SETITEMS":
                self.set_items(self.since_mark())
            elif name == "GLOBAL":
                self.name(*argument.split(" ", 1))
            elif name == "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                self.name(
                    module if isinstance(module, str) else None, attribute if isinstance(attribute, str) else None
                )
            elif name == "REDUCE":
                self.call()
            elif name == "BUILD":
                self.build()
            elif name == "STOP":
                return stack.pop()
            elif name not in ("PROTO", "FRAME"):
                raise PickledBatchError(f"it has the opcode {name}, which no CIFAR-10 batch has")
        raise PickledBatchError("it has no end")


def read_batch(content: bytes) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the images (N, 3, 32, 32) and labels (N,) of a pickled batch, by Python 2 or 3 in protocol 0 to 4.

    Raises:
        PickledBatchError: it is not a batch; the message gives the reason.
    """
    try:
        batch = _Machine().run(content)
    except PickledBatchError:
        raise
    except Exception as error:  # a damaged pickle can raise almost anything
        raise PickledBatchError(f"it is no CIFAR-10 batch ({type(error).__name__}: {error})") from error
    if not isinstance(batch, dict):
        raise PickledBatchError(f"it is no CIFAR-10 batch ({type(batch).__name__}, expected a dictionary)")
    images = _uint8(batch.get("data", batch.get(b"data")))
    labels = batch.get("labels", batch.get(b"labels"))
    if images.shape[1] != 3 * 32 * 32:
        raise PickledBatchError(f"its rows have {images.shape[1]} values, expected 3,072")
    if not isinstance(labels, list) or len(labels) != len(images):
        found = f"{len(labels):,} labels" if isinstance(labels, list) else "no list of labels"
        raise PickledBatchError(f"it has {len(images):,} images and {found}")
    if not all(type(label) is int and 0 <= label <= 255 for label in labels):
        raise PickledBatchError("a label is no number from 0 to 255")
    return images.reshape(-1, 3, 32, 32), np.array(labels, np.uint8)


def _uint8(value: object) -> NDArray[np.uint8]:
    """Return a pickled array, if it is a uint8 array of rows."""
    match value:
        case _Object(
            "array" | "ndarray",
            state=(_, (int(rows), int(columns)), _Object("dtype", ("u1" | b"u1", *_)), bool(fortran), bytes(raw)),
        ) if rows >= 0 and columns >= 0 and len(raw) == rows * columns:
            return np.frombuffer(raw, np.uint8).reshape((rows, columns), order="F" if fortran else "C")
    raise PickledBatchError("its data is not a uint8 array of rows")
