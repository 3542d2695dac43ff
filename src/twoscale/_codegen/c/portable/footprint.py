"""Flash of the code and stack of a network's C: upper bounds, without a compiler.

They are sums of what each kernel takes at most on a Cortex-M0, M3, M4 and M55 with Arm's GCC 12.2 at ``-O2``. A test
compiles networks and compares. Other compilers and options need other numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

from twoscale._codegen.c.common.calls import Call, Inline, Kernel, Params, with_needs
from twoscale._codegen.c.common.sizes import Footprint
from twoscale._codegen.c.portable.kernels import FIXED_POINT, Library, Macro
from twoscale._codegen.c.portable.parameters import CopyParams

__all__ = ["KERNEL_COSTS", "footprint"]

KERNEL_COSTS = {
    "add": (160, 40),
    "add_fixed": (420, 88),
    "add_helium": (360, 120),
    "add_narrow": (160, 40),
    "average_pool2d": (410, 104),
    "average_pool2d_row": (290, 80),
    "conv2d": (80, 48),
    "conv2d_halves": (104, 56),
    "conv2d_halves_row": (1460, 340),
    "conv2d_helium": (180, 80),
    "conv2d_helium_kept": (1800, 220),
    "conv2d_helium_row": (140, 60),
    "conv2d_row": (1070, 192),
    "conv2d_tile": (610, 420),
    "conv2d_tile_2": (840, 104),
    "conv2d_tile_4": (620, 80),
    "conv2d_tiles": (104, 56),
    "conv2d_tiles_row": (1440, 280),
    "conv2d_winograd": (800, 800),
    "copy": (140, 64),
    "depthwise_halves": (80, 40),
    "depthwise_halves_row": (1320, 312),
    "depthwise_helium": (100, 60),
    "depthwise_helium_row": (700, 180),
    "dot_packed": (300, 32),
    "fixed_point": (160, 48),
    "halves_store": (1000, 100),
    "halves_tile": (480, 48),
    "halves_window": (100, 16),
    "helium_tile": (2500, 280),
    "helium_store": (1200, 200),
    "linear": (140, 48),
    "linear_2": (300, 88),
    "linear_4": (210, 56),
    "linear_halves": (410, 72),
    "linear_helium": (400, 130),
    "look_up_helium": (120, 24),
    "matmul": (260, 80),
    "max_pool2d": (440, 112),
    "max_pool2d_bytes": (460, 104),
    "max_pool2d_bytes_row": (370, 88),
    "max_pool2d_helium": (460, 120),
    "max_pool2d_helium_row": (400, 110),
    "max_pool2d_row": (320, 88),
    "multiply": (190, 56),
    "normalize": (1150, 192),
    "rescale": (100, 40),
    "softmax": (260, 48),
    "softmax_fixed": (560, 96),
    "softmax_matmul": (640, 120),
    "store": (340, 40),
    "winograd": (2760, 152),
}
"""Bytes of code and of stack, without the arrays whose sizes are macros. Other kernels are inlined where they are
called."""

_RUN = (120, 64)
"""The same of the function that calls the kernels, and of each call in it."""
_ROW = 64
"""Bytes of code of a call in a loop over rows, in addition."""
_RUN_STACK = 320
"""Bytes of stack of that function and of the compiler's own: memcpy, memset, and 64-bit products on a Cortex-M0."""

_STACK_ARRAYS = {
    "TILE_BYTES": 1,
    "TILE_ROWS": 8,
    "HALVES_WORDS": 4,
    "HALVES_ROWS": 8,
    "HALVES_EDGE_BYTES": 1,
    "WINOGRAD_WORDS": 4,
    "WINOGRAD_EDGE_BYTES": 1,
    "HALVES_TAPS": 8,
    "HALVES_CHANNELS": 1,
    "HELIUM_ROWS_BYTES": 1,
    "HELIUM_WINDOW": 4,
    "HELIUM_SUMS": 4,
    "HELIUM_PLACES": 4,
    "HELIUM_OUTPUTS": 2,
    "HELIUM_TAPS": 4,
    "HELIUM_OUTSIDE": 1,
    "HELIUM_INPUTS": 1,
}
"""Bytes on the stack for each element of the arrays whose sizes are macros."""

_ARRAYS_OF: dict[str, tuple[str, ...]] = {
    "conv2d_tiles_row": ("TILE_",),
    "conv2d_halves_row": ("HALVES_WORDS", "HALVES_ROWS", "HALVES_EDGE_BYTES"),
    "conv2d_winograd": ("WINOGRAD_WORDS", "WINOGRAD_EDGE_BYTES"),
    "linear_halves": ("HALVES_WORDS",),
    "depthwise_halves_row": ("HALVES_TAPS", "HALVES_CHANNELS"),
    "conv2d_helium_kept": ("HELIUM_ROWS_BYTES", "HELIUM_WINDOW", "HELIUM_SUMS", "HELIUM_PLACES", "HELIUM_OUTPUTS"),
    "depthwise_helium_row": ("HELIUM_TAPS", "HELIUM_OUTSIDE"),
    "linear_helium": ("HELIUM_INPUTS",),
}
"""Beginnings of the names of the macros that give the sizes of a kernel's arrays."""


def footprint(
    calls: Sequence[Call], used: Iterable[Kernel], library: Library, *, fixed_point: bool, rows: int, loops: int
) -> Footprint:
    """Return upper bounds of the code and the stack.

    Args:
        calls: all calls of the program.
        used: the kernels that the source contains, without those that they need.
        library: which they are from.
        fixed_point: whether the network has TensorFlow Lite's arithmetic.
        rows: bytes of the lists of rows.
        loops: calls in loops over rows.
    """
    order, macros = library.kernels, library.definitions(calls)
    kernels = with_needs([*used, *([FIXED_POINT] if fixed_point else [])], order)
    code = sum(_cost(kernel)[0] for kernel in kernels)
    structs = sum(_size(call.params) for call in calls if call.params is not None)
    run = _RUN[0] + _RUN[1] * len(calls) + _ROW * loops
    chains = [(kernel,) for kernel in kernels] + [call.kernels for call in calls]
    stack = max((_stack(chain, order, macros) for chain in chains), default=0) + (
        _cost(FIXED_POINT)[1] if fixed_point else 0
    )
    return Footprint(code_bytes=code + structs + rows + run, stack_bytes=_RUN_STACK + stack)


def _cost(kernel: Kernel) -> tuple[int, int]:
    return KERNEL_COSTS.get(kernel.name, (0, 0))


def _stack(chain: Sequence[Kernel], order: Sequence[Kernel], macros: Sequence[Macro]) -> int:
    """Return the stack of kernels and of all that they call, as if each were called from within the other."""
    parts = with_needs(chain, order)
    arrays = sum(
        macro.value * _STACK_ARRAYS.get(macro.name, 0)
        for part in parts
        for macro in macros
        if part.name in _ARRAYS_OF and macro.name.startswith(_ARRAYS_OF[part.name])
    )
    return arrays + sum(_cost(part)[1] for part in parts)


def _size(value: Any) -> int:
    """Return the bytes of a struct of parameters, whose members have four bytes or are arrays of such."""
    if isinstance(value, CopyParams):
        return 4 * 20
    if isinstance(value, Params):
        return sum(_size(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, tuple):
        return 4 * len(value)
    return 4 + 4 * len(value.values) if isinstance(value, Inline) else 4
