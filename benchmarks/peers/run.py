"""Runtimes with a common interface: made for a file, a batch and a number of threads, and called for the batch's
logits.

Each is set up as its documentation advises for few threads and one batch at a time, with as few copies as possible.
"""

from __future__ import annotations

import ctypes
import subprocess
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.build import Files

Logits = NDArray[np.float32]
Maker = Callable[[Path, NDArray[np.float32], int], Callable[[], Logits]]
"""Of (file, batch, threads): makes a function that runs the batch."""
STREAMS_FROM = 16
"""Images of the smallest batch that is divided among OpenVINO's streams."""
PUBLISHED_LITERT = {"resnet8": "resnet8-*int8.tflite"}


@dataclass(frozen=True)
class Side:
    """One runtime on one network."""

    name: str
    call: Callable[[], Any]
    """The timed function."""
    logits: Callable[[], Logits]
    """Computes the batch, and returns (N, classes)."""


def onnxruntime(path: Path, images: NDArray[np.float32], threads: int) -> Callable[[], Logits]:
    """Return a function that runs the batch: ``session.run`` on a NumPy array."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images}

    def call() -> Logits:
        (logits,) = session.run(None, feed)
        return np.asarray(logits)

    return call


def openvino(path: Path, images: NDArray[np.float32], threads: int) -> Callable[[], Logits]:
    """Return a function that runs the batch: one stream, shapes fixed, float32 where it is float, arrays shared."""
    import openvino as ov

    core = ov.Core()
    model = core.read_model(str(path))
    model.reshape(list(images.shape))
    compiled = core.compile_model(
        model,
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(threads),
            "INFERENCE_PRECISION_HINT": "f32",
        },
    )
    request = compiled.create_infer_request()

    def call() -> Logits:
        return np.asarray(request.infer([images], share_inputs=True, share_outputs=True)[0])

    return call


def openvino_streams(path: Path, images: NDArray[np.float32], streams: int) -> Callable[[], Logits]:
    """Return a function that divides the batch among streams of one thread each, as for throughput."""
    import openvino as ov

    core = ov.Core()
    model = core.read_model(str(path))
    parts = np.split(images, streams)
    model.reshape(list(parts[0].shape))
    compiled = core.compile_model(
        model,
        "CPU",
        {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "NUM_STREAMS": str(streams),
            "INFERENCE_NUM_THREADS": str(streams),
            "INFERENCE_PRECISION_HINT": "f32",
        },
    )
    requests = [compiled.create_infer_request() for _ in parts]
    for request, part in zip(requests, parts, strict=True):
        request.set_input_tensor(ov.Tensor(part, shared_memory=True))

    def call() -> Logits:
        for request in requests:
            request.start_async()
        for request in requests:
            request.wait()
        return np.concatenate([request.get_output_tensor().data for request in requests])

    return call


def executorch(path: Path, images: NDArray[np.float32], threads: int) -> Callable[[], Logits]:
    """Return a function that runs the batch: ``Method.execute`` on a tensor."""
    import torch
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    portable_lib._unsafe_reset_threadpool(threads)
    method = Runtime.get().load_program(path).load_method("forward")
    inputs = [torch.from_numpy(images)]

    def call() -> Logits:
        return np.asarray(method.execute(inputs)[0])

    return call


def inductor(path: Path, images: NDArray[np.float32], threads: int) -> Callable[[], Logits]:
    """Return a function that runs the batch: a program that PyTorch's compiler has written, on a tensor."""
    import torch
    from torch._inductor import aoti_load_package

    torch.set_num_threads(threads)
    program = aoti_load_package(str(path))
    batch = torch.from_numpy(images)

    def call() -> Logits:
        with torch.inference_mode():
            return np.asarray(program(batch))

    return call


def litert(path: Path, images: NDArray[np.float32], threads: int) -> tuple[Callable[[], None], Callable[[], Logits]]:
    """Return the timed function (``invoke`` alone, with the batch in place) and a function for the logits."""
    from ai_edge_litert.interpreter import Interpreter

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        interpreter = Interpreter(str(path), num_threads=threads)
    interpreter.allocate_tensors()
    (entry,) = interpreter.get_input_details()
    (leaving,) = interpreter.get_output_details()
    values = images.transpose(0, 2, 3, 1)
    if entry["dtype"] == np.int8:
        scale, zero = entry["quantization"]
        values = np.clip(np.rint(values / scale) + zero, -128, 127)
    interpreter.set_tensor(entry["index"], np.ascontiguousarray(values.astype(entry["dtype"])))

    def logits() -> Logits:
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(leaving["index"]).astype(np.float32))

    return interpreter.invoke, logits


def peers(
    network: str, files: Files, images: NDArray[np.float32], threads: int, models: Path | None, *, hides: bool
) -> list[Side]:
    """Return every peer that is installed and has a file of the network.

    PyTorch's is left out if instruction sets are hidden (``hides``): its weights were packed for all of them.
    """
    found = []
    batch = len(images)
    made: list[tuple[str, Maker, Path]] = [
        ("onnxruntime fp32", onnxruntime, files.onnx),
        ("onnxruntime int8", onnxruntime, files.onnx_int8),
        ("openvino fp32", openvino, files.onnx),
        ("openvino int8", openvino, files.openvino_int8),
        ("executorch int8", executorch, files.executorch_int8(batch)),
        ("openvino int8, streams", openvino_streams, files.openvino_int8),
    ]
    if not hides:
        made.append(("pytorch int8", inductor, files.inductor_int8(batch)))
    in_streams = threads > 1 and batch >= STREAMS_FROM and batch % threads == 0
    for name, make, path in made:
        if path.exists() and (in_streams or make is not openvino_streams):
            call = make(path, images, threads)
            found.append(Side(name, call, call))
    litert_files = [("litert fp32", files.litert("float", batch)), ("litert int8", files.litert("int8", batch))]
    published = sorted(models.glob(PUBLISHED_LITERT.get(network, "-"))) if models is not None and batch == 1 else []
    litert_files += [("litert int8, published", path) for path in published]
    found += [Side(name, *litert(path, images, threads)) for name, path in litert_files if path.exists()]
    return found


class Peak:
    """The processor's limit for products of 8-bit integers, measured by peak.c."""

    def __init__(self, folder: Path) -> None:
        library = folder / "peak.so"
        source = Path(__file__).with_name("peak.c")
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-pthread", "-o", str(library), str(source)], check=True)
        self._library = ctypes.CDLL(str(library))
        self._library.peak_gmacs.restype = ctypes.c_double
        self._library.peak_gmacs.argtypes = [ctypes.c_int, ctypes.c_double]
        self._library.peak_instruction.restype = ctypes.c_char_p

    @property
    def instruction(self) -> str:
        """The instruction that was timed."""
        return str(self._library.peak_instruction().decode())

    def gmacs(self, threads: int, seconds: float = 0.01) -> float:
        """Return the rate of that many threads together, in 10⁹ multiply-adds per second."""
        return float(self._library.peak_gmacs(threads, seconds))
