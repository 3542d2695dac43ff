"""Damaged and hostile files through every loader: refused, or right, and nothing else.

Each case is a file that was mutated (bits, bytes, lengths, protobuf fields, JSON values), read in a child process with
limits of memory and time. A foreign ONNX file that loads is run beside ONNX Runtime on the same file.

    python -m benchmarks.fuzz [CASES] [SEED]
"""

from __future__ import annotations

import json
import math
import multiprocessing
import random
import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.common import write_result
from twoscale.errors import TwoscaleError

MEMORY = 4 << 30
SECONDS = 20
LARGEST_IMAGE = 1 << 20
"""Values of an image up to which networks are run, too."""
OUTCOMES = ("refused", "loaded", "equal", "differing", "traceback", "crash", "hang", "memory")
BAD = ("differing", "traceback", "crash", "hang", "memory")

_NUMBERS = (0, 1, -1, 2, 7, 127, 128, 255, 256, 65_536, 2**31 - 1, 2**31, -(2**31), 2**40, 2**62, -(2**63))


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flip bits, overwrite, cut, repeat or swap parts."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if not data:
            break
        at, length = rng.randrange(len(data)), rng.choice((1, 2, 4, 8, 64))
        how = rng.randrange(6)
        if how == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            data[at : at + length] = rng.randbytes(length)
        elif how == 2:
            del data[at : at + length]
        elif how == 3:
            data[at:at] = data[at : at + length]
        elif how == 4:
            del data[at:]
        else:
            data[at : at + length] = rng.choice((b"\x00", b"\xff", b"\x80")) * length
    return bytes(data)


def mutate_onnx(content: bytes, rng: random.Random) -> bytes:
    """Change a node, an attribute, a constant, a type or the metadata of a model, which stays a protobuf."""
    model = onnx.load_model_from_string(content)
    graph = model.graph
    for _ in range(rng.choice((1, 1, 2, 3))):
        node = rng.choice(graph.node)
        how = rng.randrange(10)
        if how == 0 and node.attribute:
            attribute = rng.choice(node.attribute)
            if attribute.ints:
                attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(_NUMBERS)
            else:
                attribute.i = rng.choice(_NUMBERS)
        elif how == 1 and node.input:
            node.input[rng.randrange(len(node.input))] = rng.choice(
                [name for other in graph.node for name in other.input] + [""]
            )
        elif how == 2 and graph.initializer:
            tensor = rng.choice(graph.initializer)
            tensor.raw_data = mutate_bytes(tensor.raw_data, rng)[: len(tensor.raw_data)].ljust(len(tensor.raw_data))
        elif how == 3 and graph.initializer:
            tensor = rng.choice(graph.initializer)
            if tensor.dims:
                tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(_NUMBERS)
            else:
                tensor.dims.append(rng.choice((1, 2, 2**40)))
        elif how == 4 and graph.initializer:
            rng.choice(graph.initializer).data_type = rng.choice((0, 1, 2, 3, 6, 7, 10, 11, 16, 20, 99))
        elif how == 5:
            node.op_type = rng.choice([other.op_type for other in graph.node] + ["Relu", "Shape", "Loop"])
        elif how == 6:
            shape = graph.input[0].type.tensor_type.shape.dim
            if shape:
                shape[rng.randrange(len(shape))].dim_value = rng.choice((0, 1, 3, 8, 2**20, 2**40))
        elif how == 7 and model.metadata_props:
            entry = rng.choice(model.metadata_props)
            entry.value = mutate_text(entry.value, rng)
        elif how == 8:
            graph.node.append(node) if rng.random() < 0.5 else graph.node.remove(node)
        elif how == 9:
            rng.choice(model.opset_import).version = rng.choice((0, 1, 7, 10, 13, 18, 25, 99))
        if not graph.node:
            break
    return bytes(model.SerializeToString())


def mutate_text(text: str, rng: random.Random) -> str:
    """Put another value in the place of a number or a bracket of JSON."""
    values = ["1e400", "-1", "null", "[]", "{}", '"x"', "[" * 3000, "NaN", "9" * 400, "0.5", r'"\ud800"', "true"]
    places = [i for i, c in enumerate(text) if c in '0123456789[]{}"']
    if not places:
        return rng.choice(values)
    at = rng.choice(places)
    return text[:at] + rng.choice(values) + text[at + rng.randrange(3) :]


def _text_bytes(content: bytes, rng: random.Random) -> bytes:
    return mutate_text(content.decode(), rng).encode() if rng.random() < 0.7 else mutate_bytes(content, rng)


def load_network(path: Path) -> str:
    """Load a network; beside ONNX Runtime where the file is another tool's."""
    import onnxruntime

    from twoscale._formats import load

    network = load(path)
    if math.prod(network.input.output.shape) > LARGEST_IMAGE:
        return "loaded"  # whatever runs it takes its time
    onnxruntime.set_default_logger_severity(4)
    images = np.random.default_rng(0).normal(0, 2, (3, *network.input.output.shape)).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        (expected,) = session.run(None, {session.get_inputs()[0].name: images})
    except Exception:  # ONNX Runtime refuses what was read here: then nothing can be compared
        network(images)
        return "loaded"
    return "equal" if np.array_equal(np.asarray(network(images)), expected, equal_nan=True) else "differing"


def load_weights(path: Path) -> str:
    """Load weights of a built-in model."""
    from twoscale import models

    models.load("net", path)
    return "loaded"


@dataclass(frozen=True)
class Record:
    """A record as the lab and the studies write them: numbers, text and nested values."""

    name: str
    values: tuple[float | None, ...]
    inner: dict[str, list[Any]]


def load_record(path: Path) -> str:
    """Load a record."""
    from twoscale._files import read_record

    read_record(path, Record)
    return "loaded"


def load_archive(path: Path) -> str:
    """Load a data set from a file."""
    from twoscale.data._cifar10 import read_path

    read_path(path)
    return "loaded"


Mutate = Callable[[bytes, random.Random], bytes]
Kind = tuple[list[bytes], str, Callable[[Path], str], list[Mutate]]


def kinds(folder: Path) -> dict[str, Kind]:
    """Make the seeds: one whole file or more of each kind."""
    import torch

    from tests.formats.test_onnx_foreign import Draft
    from tests.integer_networks import random_network
    from twoscale import models
    from twoscale._files import write_record
    from twoscale.models._files import ModelInfo, save_model

    own = []
    for seed in range(6):
        path = folder / f"own{seed}.onnx"
        random_network(np.random.default_rng(seed)).save(path)
        own.append(path.read_bytes())
    foreign = [_foreign(Draft, operator, folder) for operator in range(4)]
    model = models.create("net")
    info = ModelInfo("net", "cifar10", tuple("abcdefghij"), (0.5,) * 3, (0.5,) * 3, 0, 1, None)
    save_model(folder / "net.safetensors", model, info)
    torch.save(model.state_dict(), folder / "net.pt")
    write_record(folder / "record.json", Record("x", (1.5, 2.0, None), {"a": [True, "b"]}))
    archive = _archive(folder / "cifar.tar.gz")
    return {
        "own ONNX": (own, ".onnx", load_network, [mutate_bytes, mutate_onnx, mutate_onnx]),
        "foreign ONNX": (foreign, ".onnx", load_network, [mutate_bytes, mutate_onnx, mutate_onnx]),
        "safetensors": ([(folder / "net.safetensors").read_bytes()], ".safetensors", load_weights, [mutate_bytes]),
        "torch.save": ([(folder / "net.pt").read_bytes()], ".pt", load_weights, [mutate_bytes]),
        "record": ([(folder / "record.json").read_bytes()], ".json", load_record, [_text_bytes]),
        "archive": ([archive], ".tar.gz", load_archive, [mutate_bytes]),
    }


def _foreign(draft_kind: Any, which: int, folder: Path) -> bytes:
    draft = draft_kind()
    draft.conv(pads=[1, 1, 1, 1])
    q = "y"
    if which == 1:
        q = draft.microsoft("QLinearGlobalAveragePool", ["y", "s", "z", "s", "z"], "p")
    elif which == 2:
        q = draft.node("MaxPool", ["y"], "p", kernel_shape=[2, 2], strides=[2, 2])
    elif which == 3:
        q = draft.microsoft("QLinearSigmoid", ["y", "s", "z", draft.constant("so", 1 / 256), "z"], "p")
    draft.finish(q, *(("so", "z") if which == 3 else ()))
    path: Path = draft.save(folder / f"foreign{which}.onnx")
    return path.read_bytes()


def _archive(path: Path) -> bytes:
    import io
    import pickle
    import tarfile

    with tarfile.open(path, "w:gz") as tar:
        for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
            content = pickle.dumps({b"data": np.zeros((10, 3072), np.uint8), b"labels": list(range(10))}, protocol=2)
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path.read_bytes()


def _serve(connection: Connection) -> None:
    """Read files for the parent until it closes the pipe."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import warnings

    warnings.simplefilter("ignore")
    while True:
        try:
            load, path = connection.recv()
        except EOFError:
            return
        try:
            outcome, detail = load(path), ""
        except TwoscaleError as error:
            outcome, detail = ("traceback", "two lines") if "\n" in str(error) else ("refused", "")
        except MemoryError as error:
            outcome, detail = "memory", str(error)
        except BaseException as error:  # this is what is looked for
            outcome, detail = "traceback", f"{type(error).__name__}: {error}"[:200]
        connection.send((outcome, detail))


class Child:
    """A process that reads files, started anew when it ended."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._start()

    def _start(self) -> None:
        self._connection, theirs = self._context.Pipe()
        self._process = self._context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self._fresh = True

    def read(self, load: Callable[[Path], str], path: Path) -> tuple[str, str]:
        """Return the outcome of one file, and what there is to say about it."""
        self._connection.send((load, path))
        limit = SECONDS + (60 if self._fresh else 0)  # imports come with the first
        self._fresh = False
        if not self._connection.poll(limit):
            self.stop()
            self._start()
            return "hang", ""
        try:
            outcome: tuple[str, str] = self._connection.recv()
            return outcome
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            self._start()
            return "crash", f"exit code {code}"

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()


def run(cases: int, seed: int = 0, keep: Path | None = None) -> dict[str, Any]:
    """Read mutated files; return the counts for each kind of file, and the first bad ones.

    Args:
        cases: number of files.
        seed: of the mutations.
        keep: folder for the files with a bad outcome.
    """
    counts: dict[str, Counter[str]] = {}
    bad: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        everything = kinds(folder)
        names = list(everything)
        child = Child()
        for case in range(cases):
            rng = random.Random(seed * 1_000_003 + case)
            kind = names[case % len(names)]
            seeds, suffix, load, mutations = everything[kind]
            content = rng.choice(mutations)(rng.choice(seeds), rng)
            path = folder / f"case{suffix}"
            path.write_bytes(content)
            outcome, detail = child.read(load, path)
            counts.setdefault(kind, Counter())[outcome] += 1
            if outcome in BAD:
                bad.append({"case": case, "kind": kind, "outcome": outcome, "detail": detail})
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{seed}-{case}{suffix}").write_bytes(content)
        child.stop()
    return {
        "cases": cases,
        "seed": seed,
        "memory_limit_bytes": MEMORY,
        "time_limit_s": SECONDS,
        "outcomes": {kind: {o: found[o] for o in OUTCOMES if found[o]} for kind, found in counts.items()},
        "bad": bad[:50],
        "bad_total": len(bad),
    }


def main() -> None:
    """Run and write benchmarks/results/fuzz.json."""
    cases = int(sys.argv[1]) if len(sys.argv) > 1 else 3_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    result = run(cases, seed, Path(tempfile.gettempdir()) / "fuzz-bad")
    print(json.dumps(result, indent=1))
    print(f"wrote {write_result('fuzz', result, 'onnx', 'onnxruntime')}")
    sys.exit(1 if result["bad_total"] else 0)


if __name__ == "__main__":
    main()
