"""An integer network as compiled C for this CPU, called with as little overhead as possible."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twoscale._codegen.c.vector.source import source_of
from twoscale._codegen.targets import VECTOR_TARGETS
from twoscale._ir.execution import check_images
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._runtimes import calling, compiler
from twoscale.errors import ConfigurationError, ExecutorError, UnknownNameError

__all__ = ["CompiledNetwork"]

_FLAGS = ("-std=gnu99", "-fPIC", "-shared", "-pthread", "-ffp-contract=off")
_NAME = "network"
_INTEGERS, _FLOATS = 0, 1
_FLOAT32 = np.dtype(np.float32)

_HOOKS_C = """
#define _POSIX_C_SOURCE 200809L
#include "network.h"

#include <string.h>
#include <time.h>

static void keep(void *context, int32_t layer, int64_t first, int64_t count, const network_tensor *tensor)
{
    uint8_t *const *kept = (uint8_t *const *)context;

    if (kept[layer] == NULL)
        return;
    for (int64_t n = 0; n < count; n++)
        for (int32_t row = 0; row < tensor->rows; row++)
            memcpy(kept[layer] + ((size_t)(first + n) * (size_t)tensor->rows + (size_t)row) * tensor->row_bytes,
                   tensor->data + (size_t)n * tensor->image_stride + (size_t)row * tensor->row_stride,
                   tensor->row_bytes);
}

/* kept: for each layer, where its bytes for all images go, or NULL. */
int run_keeping(const void *images, int form, int64_t count, OUTPUT *outputs, void *arena, uint8_t **kept)
{
    return network_run(images, form, count, outputs, arena, keep, kept);
}

struct timing {
    double *seconds;
    struct timespec last;
};

static void add_time(void *context, int32_t layer, int64_t first, int64_t count, const network_tensor *tensor)
{
    struct timing *timing = (struct timing *)context;
    struct timespec now;

    (void)first, (void)count, (void)tensor;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (layer == 0) /* what comes between blocks belongs to no layer */
        timing->last = now;
    timing->seconds[layer] += (double)(now.tv_sec - timing->last.tv_sec);
    timing->seconds[layer] += (double)(now.tv_nsec - timing->last.tv_nsec) * 1e-9;
    timing->last = now;
}

/* seconds: for each layer, what it took is added. The input's is not measured. */
int run_timing(const void *images, int form, int64_t count, OUTPUT *outputs, void *arena, double *seconds)
{
    struct timing timing = {seconds, {0, 0}};

    return network_run(images, form, count, outputs, arena, add_time, &timing);
}
"""


class CompiledNetwork:
    """A network compiled for this CPU. It may be called from any number of threads at once.

    Args:
        network: what to run; on the grid.
        threads: number of threads that compute a batch.
        target: a name in VECTOR_TARGETS; "native" compiles all instruction sets and chooses at run time.
        logits: also compile what ``quick_logits`` needs.

    Raises:
        ConfigurationError: the network has free float multipliers (names the layer), or ``threads`` is below 1.
        ExecutorError: there is no C compiler here, or it fails; the message says what is missing.
        UnknownNameError: there is no such target.
    """

    def __init__(
        self, network: IntegerNetwork, *, threads: int = 1, target: str = "native", logits: bool = False
    ) -> None:
        if threads < 1:
            raise ConfigurationError(f"threads is {threads}; expected at least 1")
        if target not in VECTOR_TARGETS:
            raise UnknownNameError("target", target, VECTOR_TARGETS)
        self.network = network
        self.threads = threads
        self.target = target
        source = source_of(network, _NAME, VECTOR_TARGETS[target], compact=True)
        self._program = source.program
        library = compiler.load(
            network.name,
            [network.fingerprint, target, _HOOKS_C],
            {**source.texts(), "hooks.c": _HOOKS_C.replace("OUTPUT *", f"{source.output_type} *")},
            (source.target.cflags, *_FLAGS),
        )
        library.network_kernels.restype = ctypes.c_char_p
        library.network_pool_new.restype = ctypes.c_void_p
        library.network_pool_free.argtypes = [ctypes.c_void_p]
        run = library.network_pool_run
        run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_void_p]
        output = self._program.output
        self._shape = network.input.output.shape
        self._output_shape = output.spec.shape
        self._output_type = np.dtype(output.spec.dtype)
        self._in_order = bool((output.order == np.arange(len(output.order))).all())
        self._library = library
        self._run = run
        self._make_call = self._call_maker() if logits else None
        self._pools = _Pools(library, self._new_pool(), threads)
        weakref.finalize(self, self._pools.free)

    @property
    def kernels(self) -> str:
        """The instruction set in use: one of the target's, or "generic" if this CPU supports none of them."""
        return str(self._library.network_kernels().decode())

    def __call__(self, images: NDArray[Any]) -> NDArray[Any]:
        """Compute a batch.

        Args:
            images: normalized float32 pixels (N, C, H, W), or their integers (N, H, W, C) in the type of the network's
                input.

        Returns:
            The output's integers, (N, ...).

        Raises:
            ConfigurationError: images of another shape, or NaN or infinity among them.
        """
        form = _FLOATS
        if images.dtype is not _FLOAT32 or images.shape[1:] != self._shape or not images.flags.c_contiguous:
            images, form = self._prepared(images)
        count = len(images)
        pool = self._pools.take()
        if count == 1:  # copying the pool's own output is faster than asking for the address of a new one
            bad = self._run(pool.handle, _address(images), form, 1, pool.address)
            outputs = pool.output.copy()
        else:
            outputs = np.empty((count, *self._output_shape), self._output_type)
            bad = self._run(pool.handle, _address(images), form, count, _address(outputs))
        self._pools.give(pool)
        if bad:
            check_images(self.network, images)
        return outputs if self._in_order else self._reordered(outputs)

    def quick_logits(self, images: NDArray[Any]) -> NDArray[np.float32] | None:
        """Return the logits of a batch that needs no preparation, (N, classes); None if it needs some.

        No preparation means: float32 images in C order, all finite; an int32 output with zero point 0; compiled with
        ``logits`` where Python's headers are installed.

        Args:
            images: normalized float32 pixels (N, C, H, W).
        """
        if self._make_call is None or not images.ndim:
            return None
        logits = np.empty((len(images), *self._output_shape), _FLOAT32)
        pool = self._pools.take()
        done = pool.call(images, logits)  # type: ignore[misc]
        self._pools.give(pool)
        return logits if done else None

    def _call_maker(self) -> Callable[[ctypes.c_void_p], calling.Call] | None:
        """Return a factory of functions from images to logits, one function per pool; None if it cannot be
        compiled."""
        spec = self._program.output.spec
        make = calling.maker()
        shape, run = self._shape, ctypes.cast(self._run, ctypes.c_void_p)
        if make is None or spec.dtype != "int32" or spec.zero_point or not self._in_order or len(spec.shape) != 1:
            return None
        return lambda handle: make(run, handle, shape, spec.shape[0], spec.scale)

    def _new_pool(self) -> Callable[[ctypes.c_void_p], _Pool]:
        shape, dtype, make_call = (1, *self._output_shape), self._output_type, self._make_call
        return lambda handle: _Pool(handle, np.empty(shape, dtype), None if make_call is None else make_call(handle))

    def _prepared(self, images: NDArray[Any]) -> tuple[NDArray[Any], int]:
        """Return images in the form that the C expects."""
        spec = self._program.input.spec
        if images.dtype == spec.dtype and len(self._shape) == 3:
            channels, *size = self._shape
            if images.shape[1:] == (*size, channels):
                return np.ascontiguousarray(images), _INTEGERS
        return np.ascontiguousarray(check_images(self.network, images)), _FLOATS

    def _reordered(self, outputs: NDArray[Any]) -> NDArray[Any]:
        flat = outputs.reshape(len(outputs), -1)
        result = np.empty_like(flat)
        result[:, self._program.output.order] = flat
        return result.reshape(outputs.shape)

    def keep(self, images_nchw: NDArray[np.float32], names: Collection[str]) -> dict[str, NDArray[Any]]:
        """Compute a batch on the calling thread, and return the integers of the named layers.

        Args:
            images_nchw: normalized float32 pixels (N, C, H, W), all finite.
            names: layers.
        """
        images = np.ascontiguousarray(images_nchw)
        tensors = self._program.tensors
        kept = {
            name: np.empty((len(images), len(tensors[name].order)), np.int32 if tensors[name].item == 4 else np.uint8)
            for name in (layer.name for layer in self.network)
            if name in names
        }
        places = [kept[layer.name].ctypes.data if layer.name in kept else None for layer in self.network]
        self._hooked("run_keeping", images, self._arena(), (ctypes.c_void_p * len(places))(*places))
        return {name: tensors[name].from_memory(values) for name, values in kept.items()}

    def layer_times(self, images_nchw: NDArray[np.float32], repeats: int = 10) -> dict[str, float]:
        """Return the median seconds that each layer but the input takes for the batch, on one thread."""
        images = np.ascontiguousarray(images_nchw)
        seconds = np.zeros((repeats, len(self.network.layers)))
        arena = self._arena()
        for row in seconds:
            self._hooked("run_timing", images, arena, ctypes.c_void_p(row.ctypes.data))
        medians = np.median(seconds, axis=0)
        return {layer.name: float(medians[i]) for i, layer in enumerate(self.network) if i}

    def _arena(self) -> NDArray[np.uint8]:
        return np.zeros(self._program.arena_bytes, np.uint8)

    def _hooked(self, function: str, images: NDArray[np.float32], arena: NDArray[np.uint8], context: Any) -> None:
        outputs = np.empty((len(images), *self._output_shape), self._output_type)
        addresses = [ctypes.c_void_p(array.ctypes.data) for array in (images, outputs, arena)]
        getattr(self._library, function)(
            addresses[0], _FLOATS, ctypes.c_int64(len(images)), addresses[1], addresses[2], context
        )


def _address(array: Any) -> Any:
    """Return the address of an array's bytes, if possible in a third of the time of ``array.ctypes.data``."""
    try:
        return ctypes.byref(ctypes.c_char.from_buffer(array))
    except (TypeError, ValueError):  # an array that is read-only or empty
        return array.ctypes.data


class _Pool:
    """A pool of threads, and the output of one image. ``handle`` is the pointer in C."""

    __slots__ = ("address", "call", "handle", "output")

    def __init__(self, handle: ctypes.c_void_p, output: NDArray[Any], call: calling.Call | None) -> None:
        self.handle = handle
        self.output = output
        self.address = _address(output)
        self.call = call


class _Pools:
    """Pools not in use. Simultaneous callers get one each, so that none waits for another's batch."""

    def __init__(self, library: ctypes.CDLL, new: Callable[[ctypes.c_void_p], _Pool], threads: int) -> None:
        self._library = library
        self._new_pool = new
        self._threads = threads
        self._all = [self._new()]
        self._free = list(self._all)

    def _new(self) -> _Pool:
        handle = self._library.network_pool_new(self._threads)
        if handle is None:
            raise ExecutorError("there is no memory for the network's arenas")
        return self._new_pool(ctypes.c_void_p(handle))

    def take(self) -> _Pool:
        try:
            return self._free.pop()
        except IndexError:
            pool = self._new()
            self._all.append(pool)
            return pool

    def give(self, pool: _Pool) -> None:
        self._free.append(pool)

    def free(self) -> None:
        for pool in self._all:
            self._library.network_pool_free(pool.handle)
