"""A network as compiled C for this CPU, called with as little overhead as possible.

``CompiledLibrary`` calls a library that is loaded already and needs only its description. ``CompiledNetwork`` compiles
a network, or finds it in the cache, and can also return the integers of every layer.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twoscale._codegen.c.common.arrange import arrange, require_grid
from twoscale._codegen.c.common.storage import memory_order
from twoscale._codegen.c.common.tensors import Tensor, outputs_layout
from twoscale._codegen.targets import VECTOR_TARGETS, InstructionSet, Target
from twoscale._ir.execution import as_images
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.memory_estimate import refuse_beyond_memory
from twoscale._runtimes import calling, compiler, processor
from twoscale._runtimes.description import Description
from twoscale.errors import ConfigurationError, ExecutorError, UnknownNameError

if TYPE_CHECKING:
    from twoscale._codegen.c.vector.source import VectorSource

__all__ = ["FLAGS", "CompiledLibrary", "CompiledNetwork", "describe", "target_named", "vector_source"]

FLAGS = ("-std=gnu99", "-fPIC", "-shared", "-pthread", "-ffp-contract=off")
"""Of the compiler, besides those of the target."""
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

/* seconds: for each layer, what it took is added. The first input's is not measured. */
int run_timing(const void *images, int form, int64_t count, OUTPUT *outputs, void *arena, double *seconds)
{
    struct timing timing = {seconds, {0, 0}};

    return network_run(images, form, count, outputs, arena, add_time, &timing);
}
"""


def target_named(name: str) -> Target:
    """Return the vector target of that name.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in VECTOR_TARGETS:
        raise UnknownNameError("target", name, VECTOR_TARGETS)
    return VECTOR_TARGETS[name]


def vector_source(network: IntegerNetwork, name: str, target: Target, sets: Sequence[InstructionSet]) -> VectorSource:
    """Return the C of a network for some of a target's instruction sets, with the constants in a file of their own.

    Raises:
        ConfigurationError: integers alone cannot compute it; names the layer and what to do.
    """
    from twoscale._codegen.c.vector.source import source_of

    return source_of(network, name, replace(target, instruction_sets=tuple(sets)), binary=True)


def describe(source: VectorSource) -> Description:
    """Return the description of the library that is compiled from a source."""
    program, target = source.program, source.target
    network = program.network
    assert all(np.array_equal(output.order, memory_order(output.spec.shape)) for output in program.outputs)
    one_set = len(target.instruction_sets) == 1
    return Description(
        name=network.name,
        prefix=source.prefix,
        fingerprint=network.fingerprint,
        target=target.name,
        features=target.instruction_sets[0].features if one_set else (),
        inputs=tuple(tensor.spec for tensor in program.inputs),
        outputs=tuple(output.spec for output in program.outputs),
        arena_bytes=program.arena_bytes,
        shares_images=source.shares_images,
        metadata=network.metadata,
    )


class CompiledLibrary:
    """A compiled network whose library is loaded. It may be called from any number of threads at once.

    Args:
        handle: the library.
        description: its description.
        threads: number of threads that compute a batch.
        logits: whether ``quick_logits`` is needed.

    Raises:
        ConfigurationError: ``threads`` is below 1.
        ExecutorError: there is no memory for the arenas, or this CPU has none of the library's instruction sets.
    """

    def __init__(self, handle: ctypes.CDLL, description: Description, *, threads: int, logits: bool) -> None:
        self.description = description
        self.threads = _checked(threads)
        self._handle = handle
        self._function("kernels").restype = ctypes.c_char_p
        kernels = self._function("kernels")()
        if kernels is None:
            raise ExecutorError(f"this CPU cannot run {description.name}, which needs {_needed(description)}")
        self.kernels = str(kernels.decode())
        """The instruction set in use."""
        run, new, free = (self._function(f"pool_{name}") for name in ("run", "new", "free"))
        run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_void_p]
        new.restype = ctypes.c_void_p
        free.argtypes = [ctypes.c_void_p]
        self._layout = description.input_layout
        self._shape = self._layout.shape
        output = description.outputs[0]
        self._several = len(description.outputs) > 1
        """Whether the outputs of an image are the bytes of a struct."""
        self._output_shape = (outputs_layout(description.outputs).size,) if self._several else output.shape
        self._output_type = np.dtype(np.uint8 if self._several else output.dtype)
        orders = [memory_order(spec.shape) for spec in description.outputs]
        self._orders = [None if (order == np.arange(len(order))).all() else order for order in orders]
        self._run = run
        self._pools = _Pools(new, free, self._output_of_one(), threads)
        self.quick_logits: calling.Call = (self._quick_call() if logits else None) or _no_logits
        """Returns the logits of a batch that needs no preparation, (N, classes); None if it needs some.

        No preparation means: float32 images (N, C, H, W) in C order, all finite; an int32 output with zero point 0;
        compiled with ``logits`` where Python's headers are installed; a pool that no other thread uses.
        """
        weakref.finalize(self, self._pools.end)

    def _function(self, name: str) -> Any:
        return getattr(self._handle, f"{self.description.prefix}_{name}")

    def __call__(self, images: NDArray[Any]) -> NDArray[Any]:
        """Return the integers of the first output for a batch, (N, ...); see ``outputs``."""
        return self.outputs(images)[0]

    def outputs(self, images: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """Compute a batch.

        Args:
            images: normalized float32 pixels (N, C, H, W), or their integers (N, H, W, C) in the type of the network's
                input.

        Returns:
            The integers of each output, (N, ...).

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
            self._checked(images)
        if not self._several:
            (order,) = self._orders
            return (outputs if order is None else self._reordered(outputs, order),)
        return tuple(self._members(outputs))

    def _members(self, structs: NDArray[np.uint8]) -> Iterator[NDArray[Any]]:
        """Yield each output's integers from the bytes of structs, (N, bytes)."""
        specs = self.description.outputs
        for spec, order, offset in zip(specs, self._orders, outputs_layout(specs).offsets, strict=True):
            dtype = np.dtype(spec.dtype)
            part = np.ascontiguousarray(structs[:, offset : offset + math.prod(spec.shape) * dtype.itemsize])
            integers = part.view(dtype).reshape(len(structs), *spec.shape)
            yield integers if order is None else self._reordered(integers, order)

    def _quick_call(self) -> calling.Call | None:
        """Return a function from images to logits; None if it cannot be compiled or does not support the network."""
        spec, make = self.description.outputs[0], calling.maker()
        if make is None or spec.dtype != "int32" or spec.zero_point or len(spec.shape) != 1 or self._several:
            return None
        if len(self._shape) > calling.LARGEST_RANK:
            return None
        return make(ctypes.cast(self._run, ctypes.c_void_p), self._pools.free, self._shape, spec.shape[0], spec.scale)

    def _output_of_one(self) -> Callable[[], NDArray[Any]]:
        shape, dtype = (1, *self._output_shape), self._output_type
        return lambda: np.empty(shape, dtype)

    def _prepared(self, images: NDArray[Any]) -> tuple[NDArray[Any], int]:
        """Return images in the form that the C expects."""
        spec = self.description.inputs[0]
        if images.dtype == spec.dtype and len(self._shape) == 3:
            channels, *size = self._shape
            if images.shape[1:] == (*size, channels):
                return np.ascontiguousarray(images), _INTEGERS
        return np.ascontiguousarray(self._checked(images)), _FLOATS

    def _checked(self, images: NDArray[Any]) -> NDArray[np.float32]:
        return as_images(self.description.name, self._layout, images)

    @staticmethod
    def _reordered(outputs: NDArray[Any], order: NDArray[np.int64]) -> NDArray[Any]:
        flat = outputs.reshape(len(outputs), -1)
        result = np.empty_like(flat)
        result[:, order] = flat
        return result.reshape(outputs.shape)


class CompiledNetwork(CompiledLibrary):
    """A network compiled for this CPU.

    Args:
        network: what to run; on the grid.
        threads: number of threads that compute a batch.
        target: a name in VECTOR_TARGETS; the library has only the best of its instruction sets for this CPU.
        logits: also compile what ``quick_logits`` needs.

    Raises:
        ConfigurationError: the network has free float multipliers (names the layer), or ``threads`` is below 1.
        ExecutorError: there is no C compiler here, or it fails; the message says what is missing.
        UnknownNameError: there is no such target.
    """

    def __init__(
        self, network: IntegerNetwork, *, threads: int = 1, target: str = "native", logits: bool = False
    ) -> None:
        _checked(threads)
        chosen = target_named(target)
        require_grid(network)
        refuse_beyond_memory(network.name, network.layers, ExecutorError)
        self.network = network
        self.target = target
        library = _compiled(network, chosen, processor.instruction_sets(chosen))
        description = replace(Description.from_note(library.note), name=network.name, metadata=network.metadata)
        super().__init__(library.handle, description, threads=threads, logits=logits)

    @cached_property
    def _tensors(self) -> Mapping[str, Tensor]:
        return arrange(self.network).tensors

    def keep(self, images_nchw: NDArray[np.float32], names: Collection[str]) -> dict[str, NDArray[Any]]:
        """Compute a batch on the calling thread, and return the integers of the named layers.

        Args:
            images_nchw: normalized float32 pixels (N, C, H, W), all finite.
            names: layers.
        """
        images = np.ascontiguousarray(images_nchw)
        tensors = self._tensors
        kept = {
            name: np.empty((len(images), len(tensors[name].order)), np.int32 if tensors[name].item == 4 else np.uint8)
            for name in (layer.name for layer in self.network)
            if name in names
        }
        places = [kept[layer.name].ctypes.data if layer.name in kept else None for layer in self.network]
        self._hooked("run_keeping", images, self._arena(), (ctypes.c_void_p * len(places))(*places))
        return {name: tensors[name].from_memory(values) for name, values in kept.items()}

    def layer_times(self, images_nchw: NDArray[np.float32], repeats: int = 10) -> dict[str, float]:
        """Return the median seconds that each layer but the inputs takes for the batch, on one thread."""
        images = np.ascontiguousarray(images_nchw)
        seconds = np.zeros((repeats, len(self.network.layers)))
        arena = self._arena()
        for row in seconds:
            self._hooked("run_timing", images, arena, ctypes.c_void_p(row.ctypes.data))
        medians = np.median(seconds, axis=0)
        return {layer.name: float(medians[i]) for i, layer in enumerate(self.network) if layer.inputs}

    def _arena(self) -> NDArray[np.uint8]:
        return np.zeros(self.description.arena_bytes, np.uint8)

    def _hooked(self, function: str, images: NDArray[np.float32], arena: NDArray[np.uint8], context: Any) -> None:
        outputs = np.empty((len(images), *self._output_shape), self._output_type)
        addresses = [ctypes.c_void_p(array.ctypes.data) for array in (images, outputs, arena)]
        getattr(self._handle, function)(
            addresses[0], _FLOATS, ctypes.c_int64(len(images)), addresses[1], addresses[2], context
        )


def _compiled(network: IntegerNetwork, target: Target, sets: Sequence[InstructionSet]) -> compiler.Library:
    """Return the library with the hooks of ``keep`` and ``layer_times``."""

    def sources() -> compiler.Sources:
        source = vector_source(network, _NAME, target, sets)
        hooks = _HOOKS_C.replace("OUTPUT *", f"{source.output_type} *")
        files: dict[str, str | bytes] = {**source.texts(), source.data_file: source.data(), "hooks.c": hooks}
        return compiler.Sources(files, describe(source).to_note())

    key = [network.fingerprint, target.name, *(isa.name for isa in sets), _HOOKS_C]
    return compiler.load(network.name, key, sources, (target.cflags, *FLAGS))


def _checked(threads: int) -> int:
    if threads < 1:
        raise ConfigurationError(f"threads is {threads}; expected at least 1")
    return threads


def _needed(description: Description) -> str:
    """Return the CPU features that a library needs, and those that this CPU lacks if the system lists them."""
    known = processor.features()
    lacking = [] if known is None else [name for name in description.features if name not in known]
    needed = ", ".join(description.features)
    return f"{needed} (missing here: {', '.join(lacking)})" if lacking else needed


def _address(array: Any) -> Any:
    """Return the address of an array's bytes, if possible in a third of the time of ``array.ctypes.data``."""
    try:
        return ctypes.byref(ctypes.c_char.from_buffer(array))
    except (TypeError, ValueError):  # an array that is read-only or empty
        return array.ctypes.data


class _Pool:
    """A pool of threads, and the output of one image. ``handle`` is the pointer in C, ``number`` its address."""

    __slots__ = ("address", "handle", "number", "output")

    def __init__(self, number: int, output: NDArray[Any]) -> None:
        self.number = number
        self.handle = ctypes.c_void_p(number)
        self.output = output
        self.address = _address(output)


class _Pools:
    """Pools not in use. Simultaneous callers get one each, so that none waits for another's batch."""

    def __init__(self, new: Any, free: Any, output_of_one: Callable[[], NDArray[Any]], threads: int) -> None:
        self._create = new
        self._destroy = free
        self._output_of_one = output_of_one
        self._threads = threads
        self._all = [self._new()]
        self.free = list(self._all)
        """Those not in use; the last is taken first."""

    def _new(self) -> _Pool:
        number = self._create(self._threads)
        if number is None:
            raise ExecutorError("there is no memory for the network's arenas")
        return _Pool(number, self._output_of_one())

    def take(self) -> _Pool:
        try:
            return self.free.pop()
        except IndexError:
            pool = self._new()
            self._all.append(pool)
            return pool

    def give(self, pool: _Pool) -> None:
        self.free.append(pool)

    def end(self) -> None:
        for pool in self._all:
            self._destroy(pool.handle)


def _no_logits(images: Any) -> None:
    """Leave images to ``outputs``."""
