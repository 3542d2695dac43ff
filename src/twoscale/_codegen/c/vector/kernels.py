"""The vector kernels: their C and what it needs. They compute a block of images; block_calls.py has their calls.

The texts are in the folder kernels/vector. A kernel NAME has NAME.c, compiled once for each instruction set, and
NAME.h with its struct of parameters, unless it uses another kernel's. An instruction set has a header of its name.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

from twoscale._codegen.c.common.calls import Kernel
from twoscale._codegen.c.portable.kernels import NEXT_PLACE

__all__ = [
    "ADD_FIXED_ROWS",
    "ADD_ROWS",
    "AVERAGE_POOL",
    "CONV",
    "COPY_ROWS",
    "DEPTHWISE",
    "FILL_BORDER",
    "FIXED_NUMBERS",
    "GIVE_OUTPUTS",
    "HEADER_NAMES",
    "KERNELS",
    "LINEAR",
    "LOOK_UP_ROWS",
    "MAX_POOL",
    "MOVE",
    "MULTIPLY_ROWS",
    "READ_IMAGES",
    "RESCALE_RUNS",
    "TILE_NAMES",
    "VectorKernel",
    "text_of",
]

HEADER_NAMES = (
    "add_i", "any_beyond", "clamp_f", "divide", "load_b", "load_f", "load_i", "load_u8", "max_b", "mul", "mul_add",
    "not_finite", "put_byte", "round_f", "set_b", "set_f", "set_i", "store_b", "store_i", "store_threes", "store_u8",
    "to_f", "v16b", "v16f", "v16i",
)  # fmt: skip
"""The functions and types that the header of every instruction set defines."""
TILE_NAMES = (
    "clamp_64", "dot", "dot_lanes", "load_taps", "load_weights", "load_word", "round_64", "round_taps", "set_64",
    "store_64", "store_few", "store_first", "store_half", "store_quarter", "summed", "taps", "unpacked", "v64b",
    "weights", "word",
)  # fmt: skip
"""Those that only instruction sets with ``tiles`` define."""


@dataclass(frozen=True)
class VectorKernel(Kernel):
    """A C function for a block of images."""

    needs: tuple[VectorKernel, ...] = ()
    portable: tuple[Kernel, ...] = ()
    """Portable kernels that it calls, or whose struct of parameters it uses."""
    has_params: bool = True
    """Whether it has a file with a struct of parameters."""
    defines: tuple[str, ...] = ()
    """The functions and types of its file; empty if it has none."""
    narrow: tuple[str, ...] = ()
    """The functions and types of NAME_narrow.c, which replaces NAME.c where NARROW is defined; empty if there is
    none."""
    is_shared: bool = False
    """Whether threads can share it: the C function then takes a part as its last argument."""


READ_IMAGES = VectorKernel(
    "read_images",
    defines=("quantize", "quantize_pixels", "quantize_row", "read_images"),
    is_shared=True,
)
GIVE_OUTPUTS = VectorKernel("give_outputs", has_params=False, defines=("give_outputs",))
FILL_BORDER = VectorKernel(
    "fill_border",
    defines=("fill_border",),
    is_shared=True,
)
COPY_ROWS = VectorKernel(
    "copy_rows",
    defines=("copy_rows",),
    is_shared=True,
)
LOOK_UP_ROWS = VectorKernel(
    "look_up_rows",
    defines=("load_table", "look_up", "look_up_rows", "table256"),
    is_shared=True,
)
MOVE = VectorKernel("move", portable=(NEXT_PLACE,), has_params=False, defines=("move", "move_runs"))
RESCALE_RUNS = VectorKernel("rescale_runs", defines=("rescale_runs",))
FIXED_NUMBERS = VectorKernel("fixed_point", has_params=False, defines=("fixed_16", "fixed_8", "fixed_by"))
"""Used by networks of TensorFlow Lite's arithmetic."""
_CONV_ROWS = VectorKernel(
    "conv_rows", has_params=False, defines=("conv_part", "conv_row", "conv_rows_of", "conv_start")
)
CONV = VectorKernel(
    "conv",
    (_CONV_ROWS,),
    defines=(
        "conv_ahead_lines",
        "conv_band",
        "conv_band_from",
        "conv_band_pixels",
        "conv_by_matrices",
        "conv_bytes",
        "conv_end",
        "conv_finish",
        "conv_images",
        "conv_matrices",
        "conv_multiply",
        "conv_next_pixels",
        "conv_pixels",
        "conv_pixels_at",
        "conv_product",
        "conv_requantize",
        "conv_rows",
        "conv_store",
        "conv_store_pixels",
        "conv_tile",
    ),
    narrow=("conv_images", "conv_next", "conv_place", "conv_results", "conv_tile", "conv_tile_rows", "conv_window"),
    is_shared=True,
)
LINEAR = VectorKernel(
    "linear",
    (CONV,),
    has_params=False,
    defines=("linear_images",),
    narrow=("linear_images",),
    is_shared=True,
)
DEPTHWISE = VectorKernel(
    "depthwise",
    defines=("depthwise_column", "depthwise_end", "depthwise_images", "depthwise_results"),
    narrow=("depthwise_column", "depthwise_end", "depthwise_images", "depthwise_results", "load_taps", "taps"),
    is_shared=True,
)
_POOL = VectorKernel("pool")
MAX_POOL = VectorKernel(
    "max_pool",
    (_POOL,),
    has_params=False,
    defines=("max_pool_images", "max_pool_row", "window_max"),
    is_shared=True,
)
AVERAGE_POOL = VectorKernel("average_pool", (_POOL,), has_params=False, defines=("average_pool",))
_JOIN = VectorKernel("join")
ADD_ROWS = VectorKernel(
    "add_rows",
    (_JOIN,),
    has_params=False,
    defines=("add_rows",),
    is_shared=True,
)
ADD_FIXED_ROWS = VectorKernel(
    "add_fixed_rows",
    (FIXED_NUMBERS,),
    defines=("add_fixed_rows",),
    is_shared=True,
)
MULTIPLY_ROWS = VectorKernel(
    "multiply_rows",
    (_JOIN,),
    has_params=False,
    defines=("multiply_rows",),
    is_shared=True,
)

KERNELS = (
    READ_IMAGES,
    GIVE_OUTPUTS,
    FILL_BORDER,
    COPY_ROWS,
    LOOK_UP_ROWS,
    MOVE,
    RESCALE_RUNS,
    FIXED_NUMBERS,
    _CONV_ROWS,
    CONV,
    LINEAR,
    DEPTHWISE,
    _POOL,
    MAX_POOL,
    AVERAGE_POOL,
    _JOIN,
    ADD_ROWS,
    ADD_FIXED_ROWS,
    MULTIPLY_ROWS,
)
"""In the order of the C file: each kernel comes after those that it needs."""


def text_of(file: str) -> str:
    """Return the text of a file in the folder of vector kernels."""
    return (resources.files("twoscale._codegen.c") / "kernels" / "vector" / file).read_text()
