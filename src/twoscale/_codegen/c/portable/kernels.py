"""The portable kernels: their C, which computes one image in plain C99. parameters.py has their calls.

The texts are in the folder kernels/portable, one file for each kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources

from twoscale._codegen.c.common.calls import Call, Kernel, with_needs

__all__ = [
    "ADD",
    "ADD_FIXED",
    "ADD_NARROW",
    "ADD_PARAMS",
    "ALONE",
    "AVERAGE_POOL2D",
    "AVERAGE_POOL2D_ROW",
    "CLAMP",
    "CONV2D",
    "CONV2D_PARAMS",
    "CONV2D_ROW",
    "CONV2D_TILE",
    "CONV2D_TILES",
    "CONV2D_TILES_ROW",
    "CONV2D_TILE_2",
    "CONV2D_TILE_4",
    "CONV2D_TILE_PACKED",
    "COPY",
    "DOT",
    "DOT_PACKED",
    "FIXED_POINT",
    "FROM_INT8",
    "INLINED",
    "KERNELS",
    "LINEAR",
    "LINEAR_2",
    "LINEAR_4",
    "LINEAR_PARAMS",
    "LOOK_UP",
    "MATMUL",
    "MAX_POOL2D",
    "MAX_POOL2D_PARAMS",
    "MAX_POOL2D_ROW",
    "MULTIPLIER_OF",
    "MULTIPLY",
    "NEXT_PLACE",
    "NORMALIZE",
    "PACKED",
    "REQUANTIZE",
    "REQUANTIZE_NARROW",
    "RESCALE",
    "RNE_RATIO",
    "ROWS",
    "SOFTMAX",
    "SOFTMAX_FIXED",
    "SOFTMAX_MATMUL",
    "STORE",
    "TO_INT8",
    "Library",
    "Macro",
    "chosen_parts",
    "kernel_texts",
]

REQUANTIZE = Kernel("requantize")
REQUANTIZE_NARROW = Kernel("requantize_narrow", (REQUANTIZE,))
MULTIPLIER_OF = Kernel("multiplier_of", (REQUANTIZE,))
FIXED_POINT = Kernel("fixed_point", (REQUANTIZE,))
"""Used by networks of TensorFlow Lite's arithmetic. Without it, the parts of other kernels for it are left out."""
STORE = Kernel("store", (REQUANTIZE, REQUANTIZE_NARROW, MULTIPLIER_OF), fixed_point=True)
DOT = Kernel("dot")
PACKED = Kernel("packed")
DOT_PACKED = Kernel("dot_packed", (PACKED,))
ALONE = Kernel("alone")
INLINED = Kernel("inlined")
ROWS = Kernel("rows")
CONV2D_PARAMS = Kernel("conv2d_params")
CONV2D_ROW = Kernel("conv2d_row", (STORE, DOT, ROWS, CONV2D_PARAMS))
CONV2D = Kernel("conv2d", (CONV2D_ROW,))
CONV2D_TILE = Kernel("conv2d_tile", (ALONE,))
CONV2D_TILE_PACKED = Kernel("conv2d_tile_packed", (INLINED, PACKED))
CONV2D_TILE_4 = Kernel("conv2d_tile_4", (ALONE, CONV2D_TILE_PACKED))
CONV2D_TILE_2 = Kernel("conv2d_tile_2", (ALONE, CONV2D_TILE_PACKED))
CONV2D_TILES_ROW = Kernel("conv2d_tiles_row", (REQUANTIZE, MULTIPLIER_OF, ROWS, CONV2D_PARAMS), fixed_point=True)
CONV2D_TILES = Kernel("conv2d_tiles", (CONV2D_TILES_ROW,))
LINEAR_PARAMS = Kernel("linear_params", (REQUANTIZE,))
LINEAR = Kernel("linear", (STORE, DOT, LINEAR_PARAMS))
LINEAR_4 = Kernel("linear_4", (STORE, PACKED, LINEAR_PARAMS))
LINEAR_2 = Kernel("linear_2", (STORE, PACKED, LINEAR_PARAMS))
ADD_PARAMS = Kernel("add_params", (REQUANTIZE,))
ADD = Kernel("add", (ADD_PARAMS,))
ADD_NARROW = Kernel("add_narrow", (ADD_PARAMS, REQUANTIZE_NARROW))
MULTIPLY = Kernel("multiply", (STORE,))
AVERAGE_POOL2D_ROW = Kernel("average_pool2d_row", (STORE, ROWS))
AVERAGE_POOL2D = Kernel("average_pool2d", (AVERAGE_POOL2D_ROW,))
MAX_POOL2D_PARAMS = Kernel("max_pool2d_params")
MAX_POOL2D_ROW = Kernel("max_pool2d_row", (ROWS, MAX_POOL2D_PARAMS))
MAX_POOL2D = Kernel("max_pool2d", (MAX_POOL2D_ROW,))
NEXT_PLACE = Kernel("next_place")
COPY = Kernel("copy", (NEXT_PLACE,))
RESCALE = Kernel("rescale", (STORE,))
CLAMP = Kernel("clamp")
LOOK_UP = Kernel("look_up")
MATMUL = Kernel("matmul", (STORE,))
ADD_FIXED = Kernel("add_fixed", (FIXED_POINT,))
SOFTMAX_FIXED = Kernel("softmax_fixed")
SOFTMAX = Kernel("softmax")
RNE_RATIO = Kernel("rne_ratio")
SOFTMAX_MATMUL = Kernel("softmax_matmul", (RNE_RATIO,))
NORMALIZE = Kernel("normalize", (REQUANTIZE,))
FROM_INT8 = Kernel("from_int8")
TO_INT8 = Kernel("to_int8")

KERNELS = (
    REQUANTIZE,
    REQUANTIZE_NARROW,
    MULTIPLIER_OF,
    FIXED_POINT,
    STORE,
    DOT,
    PACKED,
    DOT_PACKED,
    ROWS,
    CONV2D_PARAMS,
    CONV2D_ROW,
    CONV2D,
    ALONE,
    INLINED,
    CONV2D_TILE,
    CONV2D_TILE_PACKED,
    CONV2D_TILE_4,
    CONV2D_TILE_2,
    CONV2D_TILES_ROW,
    CONV2D_TILES,
    LINEAR_PARAMS,
    LINEAR,
    LINEAR_4,
    LINEAR_2,
    ADD_PARAMS,
    ADD,
    ADD_NARROW,
    ADD_FIXED,
    MULTIPLY,
    AVERAGE_POOL2D_ROW,
    AVERAGE_POOL2D,
    MAX_POOL2D_PARAMS,
    MAX_POOL2D_ROW,
    MAX_POOL2D,
    NEXT_PLACE,
    COPY,
    RESCALE,
    CLAMP,
    LOOK_UP,
    MATMUL,
    SOFTMAX,
    SOFTMAX_FIXED,
    RNE_RATIO,
    SOFTMAX_MATMUL,
    NORMALIZE,
    FROM_INT8,
    TO_INT8,
)
"""In the order of the C file: each kernel comes after those that it calls."""


_OPTIONAL = {
    kernel.name.upper() for kernel in (FIXED_POINT, PACKED, DOT_PACKED, CONV2D_TILE, CONV2D_TILE_4, CONV2D_TILE_2)
}
"""Names of kernels, in capitals, without which parts of others are left out."""


def kernel_texts(used: Iterable[Kernel], *, fixed_point: bool = False, order: Sequence[Kernel] = KERNELS) -> list[str]:
    """Return the texts of the kernels of ``order`` that are among ``used``, and of those that they call.

    Args:
        used: kernels.
        fixed_point: whether the network has TensorFlow Lite's arithmetic.
        order: all kernels, each after those that it calls.
    """
    folder = resources.files("twoscale._codegen.c") / "kernels"
    needed = with_needs(used, order)
    if fixed_point and any(kernel.fixed_point for kernel in needed):
        needed = with_needs([*needed, FIXED_POINT], order)
    return [chosen_parts((folder / kernel.folder / f"{kernel.name}.c").read_text(), needed) for kernel in needed]


def chosen_parts(text: str, kernels: Iterable[Kernel]) -> str:
    """Return the text of a kernel with or without its optional parts.

    A part between the lines "#ifdef NAME" and "#endif", where NAME is that of an optional kernel in capitals, is
    for sources with that kernel, and one after "#ifndef NAME" for all others. These lines are left out themselves.

    Args:
        text: of the kernel.
        kernels: the kernels of the source.
    """
    present = {kernel.name.upper() for kernel in kernels}
    lines: list[str] = []
    wanted: bool | None = None
    for line in text.splitlines(keepends=True):
        directive, _, name = line.strip().partition(" ")
        if directive in ("#ifdef", "#ifndef") and name in _OPTIONAL:
            wanted = (name in present) == (directive == "#ifdef")
        elif wanted is not None and line.rstrip() == "#endif":
            wanted = None
        elif wanted is not False:
            lines.append(line)
    return "".join(lines)


@dataclass(frozen=True)
class Library:
    """The kernels that a back end chooses from."""

    kernels: tuple[Kernel, ...]
    """In the order of the C file: each kernel comes after those that it calls."""
    definitions: Callable[[Sequence[Call]], list[Macro]]
    """Returns the macros that the kernels of a program's calls need."""


@dataclass(frozen=True)
class Macro:
    """A number that kernels need when they are compiled."""

    name: str
    value: int
    about: str

    @property
    def text(self) -> str:
        """Its definition in C."""
        return f"#define {self.name} {self.value} /* {self.about} */"
