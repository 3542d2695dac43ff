"""Damaged and hostile files through every loader: refused, or right, and nothing else.

Each case is a file that was mutated, blindly or behind its checksums (``benchmarks.mutations``), and is read in a child
process with limits of memory and time. A network that loads is run, whatever the size of its images, and compared with
ONNX Runtime on the same file where that runs it.

    python -m benchmarks.fuzz [--cases N] [--seed N] [--processes N]
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import math
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import mutations
from benchmarks.common import write_result
from benchmarks.mutations import Load, Mutate
from twoscale.errors import TwoscaleError

MEMORY = 8 << 30
"""Address space of a child, its libraries included."""
MACHINE = 2 << 30
"""Memory that the machine is made to have, of which ``load`` refuses what needs more."""
SECONDS = 20
"""Of processor time for one file; other load on the machine does not count."""
WAIT = 600
"""Seconds on the clock after which a child counts as hanging in any case."""
LARGEST_BATCH = 1 << 20
"""Values up to which three images are run, above it one."""
OUTCOMES = ("refused", "loaded", "equal", "near", "differing", "traceback", "crash", "hang", "memory")
BAD = ("differing", "traceback", "crash", "hang", "memory")


def load_network(path: Path) -> str:
    """Load an integer network, and run it beside ONNX Runtime on the file."""
    from twoscale._formats import load
    from twoscale._ir.reference import ReferenceExecutor

    network = load(path)
    shape = network.input.output.shape
    count = 3 if math.prod(shape) <= LARGEST_BATCH else 1
    images = np.random.default_rng(0).normal(0, 2, (count, *shape)).astype(np.float32)
    integers = ReferenceExecutor(network).run(images)
    expected = _run(path, images)
    if expected is None or not (network.on_grid or network.scheme == "foreign"):
        return "loaded"  # nothing to compare with, or nothing that is promised
    outcome = "equal"
    for name, values in zip(network.outputs, expected, strict=True):
        spec = network.spec(name)
        # Integers are promised; these are the real numbers that ONNX Runtime makes of them.
        found = (integers[name].astype(np.int64) - spec.zero_point).astype(np.float32) * np.float32(spec.scale)
        if np.array_equal(found, values):
            continue
        if network.metadata.get("form") != "qdq" or np.abs(found - values).max() > 4 * spec.scale:
            return "differing"
        outcome = "near"  # ONNX Runtime computes some layers of such files in floating point
    return outcome


def _run(path: Path, images: NDArray[np.float32]) -> list[NDArray[Any]] | None:
    """Return the outputs that ONNX Runtime computes from a file, or None where it refuses it."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    try:
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        expected = session.run(None, {session.get_inputs()[0].name: images})
    except Exception:  # its errors have no common base
        return None
    return [np.asarray(values) for values in expected]


def load_float(path: Path) -> str:
    """Read a float network from ONNX, and run it beside ONNX Runtime."""
    import torch

    from twoscale import models
    from twoscale._frontends import float_graph
    from twoscale._ir.float_module import GraphModule

    images = np.random.default_rng(0).normal(0, 1, (2, 3, 16, 16)).astype(np.float32)
    module = GraphModule(float_graph(models.load(None, path), images))
    with torch.no_grad():
        computed = module.run(torch.from_numpy(images))
    expected = _run(path, images)
    if expected is None or not all(np.isfinite(values).all() for values in expected):
        return "loaded"
    for name, values in zip(module.graph.outputs, expected, strict=True):
        found = computed[name].numpy()
        if found.shape != values.shape:
            return "differing"
        if np.abs(found - values).max(initial=0) > 1e-3 * np.abs(values).max(initial=0):
            return "differing"
    return "equal"


def load_weights(path: Path) -> str:
    """Load weights of a built-in model, of a file that names it and of one that does not."""
    from twoscale import models

    try:
        models.load(None, path)
    except TwoscaleError:
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


def load_batch(path: Path) -> str:
    """Load one pickled batch of CIFAR-10."""
    from twoscale.data._pickled import PickledBatchError, read_batch

    try:
        read_batch(path.read_bytes())
    except PickledBatchError as error:  # read_path adds the name of the file
        raise TwoscaleError(str(error)) from error
    return "loaded"


@dataclass(frozen=True)
class Kind:
    """One kind of file."""

    seeds: list[bytes]
    """Whole files."""
    suffix: str
    load: Load
    mutations: tuple[Mutate, ...]
    """Chosen from at random; one that stands here twice is chosen twice as often."""
    weight: int = 1
    """How often a file of this kind comes."""


def kinds(folder: Path) -> dict[str, Kind]:
    """Make the seeds: one whole file or more of each kind."""
    import torch

    from tests.formats.test_onnx_foreign import float_classifier
    from tests.integer_networks import random_network
    from twoscale import models
    from twoscale._files import write_record
    from twoscale.models._files import ModelInfo, save_model

    own = []
    for seed in range(8):
        path = folder / f"own{seed}.onnx"
        random_network(np.random.default_rng(seed)).save(path)
        own.append(path.read_bytes())
    torch.manual_seed(0)
    model = models.create("net")
    info = ModelInfo("net", "cifar10", tuple("abcdefghij"), (0.5,) * 3, (0.5,) * 3, 0, 1, None)
    save_model(folder / "net.safetensors", model, info)
    weights = (folder / "net.safetensors").read_bytes()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    write_record(folder / "record.json", Record("x", (1.5, 2.0, None), {"a": [True, "b"]}))
    m = mutations
    return {
        "own ONNX": Kind(
            own, ".onnx", load_network, (m.mutate_bytes, m.mutate_onnx, *(m.mutate_network,) * 3), weight=4
        ),
        "foreign ONNX": Kind(
            foreign_files(folder), ".onnx", load_network, (m.mutate_bytes, *(m.mutate_onnx,) * 4), weight=4
        ),
        "float ONNX": Kind(
            [float_classifier().SerializeToString()],
            ".onnx",
            load_float,
            (m.mutate_bytes, *(m.mutate_onnx,) * 4),
            weight=2,
        ),
        "safetensors": Kind(
            [weights],
            ".safetensors",
            load_weights,
            (m.mutate_bytes, *(m.mutate_safetensors_header,) * 2, *(m.mutate_weights,) * 2),
            weight=3,
        ),
        "torch.save": Kind(
            [file.getvalue()],
            ".pt",
            load_weights,
            (m.mutate_bytes, *(m.mutate_state,) * 2, *(m.mutate_torch_zip,) * 2),
            weight=3,
        ),
        "record": Kind([(folder / "record.json").read_bytes()], ".json", load_record, (m.mutate_text_bytes,)),
        "batch": Kind(pickled_batches(), "", load_batch, (m.mutate_member,), weight=2),
        "archive": Kind([archive(pickled_batches()[0])], ".tar.gz", load_archive, (m.mutate_archive,)),
    }


def foreign_files(folder: Path) -> list[bytes]:
    """Return integer files of other tools: made by hand, and by ONNX Runtime's quantizer."""
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    from tests.formats.test_onnx_foreign import Calibration, Draft, float_classifier

    found = []
    for which in range(5):
        draft = Draft()
        draft.conv(pads=[1, 1, 1, 1])
        q = "y"
        if which == 1:
            q = draft.microsoft("QLinearGlobalAveragePool", ["y", "s", "z", "s", "z"], "p")
        elif which == 2:
            q = draft.node("MaxPool", ["y"], "p", kernel_shape=[2, 2], strides=[2, 2])
        elif which == 3:
            q = draft.microsoft("QLinearSigmoid", ["y", "s", "z", draft.constant("so", 1 / 256), "z"], "p")
        elif which == 4:
            names = ["y", "s", "z", "s", "z"]
            q = draft.microsoft("QLinearAveragePool", names, "p", kernel_shape=[2, 2], strides=[1, 2])
        draft.finish(q, *(("so", "z") if which == 3 else ()))
        found.append(draft.save(folder / f"foreign{which}.onnx").read_bytes())
    onnx.save(float_classifier(), folder / "float.onnx")
    logging.disable(logging.WARNING)  # "please consider pre-processing before quantization"
    try:
        for form in (QuantFormat.QOperator, QuantFormat.QDQ):
            quantize_static(
                folder / "float.onnx",
                folder / "quantized.onnx",
                Calibration(),
                quant_format=form,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
            )
            found.append((folder / "quantized.onnx").read_bytes())
    finally:
        logging.disable(logging.NOTSET)
    return found


def pickled_batches() -> list[bytes]:
    """Return small batches of CIFAR-10, as Python 2 and 3 pickle them."""
    import pickle

    batch = {b"data": np.zeros((10, 3072), np.uint8), b"labels": list(range(10)), b"batch_label": b"x"}
    return [pickle.dumps(batch, protocol=protocol) for protocol in (2, 3, 4)]


def archive(batch: bytes) -> bytes:
    """Return an archive of CIFAR-10 with the same batch six times."""
    import tarfile

    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(batch)
            tar.addfile(member, io.BytesIO(batch))
    return file.getvalue()


def _serve(connection: Connection) -> None:
    """Read files for the parent until it closes the pipe."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import warnings

    import onnxruntime  # noqa: F401 - the limits count from here
    import torch

    import twoscale._formats.integer
    import twoscale.models._tensorfile  # noqa: F401
    from twoscale._ir import memory_estimate

    torch.set_num_threads(1)
    vars(memory_estimate)["memory_bytes"] = lambda: MACHINE
    warnings.simplefilter("ignore")
    connection.send("ready")
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
        self._connection.recv()

    def _processor_seconds(self) -> float:
        """Return the processor time that the child has used."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def read(self, load: Callable[[Path], str], path: Path) -> tuple[str, str]:
        """Return the outcome of one file, and what there is to say about it."""
        before, begun = self._processor_seconds(), time.monotonic()
        self._connection.send((load, path))
        while not self._connection.poll(1):
            if self._processor_seconds() - before > SECONDS or time.monotonic() - begun > WAIT:
                self.stop()
                self._start()
                return "hang", ""
        try:
            outcome: tuple[str, str] = self._connection.recv()
            return outcome
        except (EOFError, ConnectionError):
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
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        everything = kinds(folder)
        order = [name for name, kind in everything.items() for _ in range(kind.weight)]
        child = Child()
        for case in range(cases):
            rng = random.Random(seed * 1_000_003 + case)
            chosen = order[case % len(order)]
            kind = everything[chosen]
            content = rng.choice(kind.mutations)(rng.choice(kind.seeds), rng)
            path = folder / f"case{kind.suffix}"
            path.write_bytes(content)
            outcome, detail = child.read(kind.load, path)
            counts.setdefault(chosen, Counter())[outcome] += 1
            if outcome in BAD:
                bad.append({"case": case, "kind": chosen, "outcome": outcome, "detail": detail})
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{seed}-{case}{kind.suffix}").write_bytes(content)
                    print(bad[-1], flush=True)
            if keep is not None and case % 1000 == 999:
                print(f"{case + 1} of {cases} files, {len(bad)} bad, {time.monotonic() - begun:.0f} s", flush=True)
        child.stop()
    return {
        "cases": cases,
        "seeds": [seed],
        "memory_limit_bytes": MEMORY,
        "machine_memory_bytes": MACHINE,
        "processor_time_limit_s": SECONDS,
        "duration_s": round(time.monotonic() - begun, 1),
        "outcomes": {kind: {o: found[o] for o in OUTCOMES if found[o]} for kind, found in counts.items()},
        "bad": bad[:50],
        "bad_total": len(bad),
    }


def _part(cases: int, seed: int, keep: Path) -> dict[str, Any]:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))  # making a mutation can take any amount too
    return run(cases, seed, keep)


def run_in_parts(cases: int, seed: int, jobs: int, keep: Path) -> dict[str, Any]:
    """Share the files among processes, each with a child of its own and the next seed, and add the counts."""
    begun = time.monotonic()
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        parts = list(pool.map(_part, [cases // jobs] * jobs, range(seed, seed + jobs), [keep] * jobs))
    outcomes: dict[str, Counter[str]] = {}
    for part in parts:
        for kind, found in part["outcomes"].items():
            outcomes.setdefault(kind, Counter()).update(found)
    return {
        **parts[0],
        "cases": sum(part["cases"] for part in parts),
        "seeds": list(range(seed, seed + jobs)),
        "duration_s": round(time.monotonic() - begun, 1),
        "outcomes": {kind: {o: found[o] for o in OUTCOMES if found[o]} for kind, found in outcomes.items()},
        "bad": [entry for part in parts for entry in part["bad"]][:50],
        "bad_total": sum(part["bad_total"] for part in parts),
    }


def main() -> None:
    """Run and write benchmarks/results/fuzz.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first process; the others take the next ones")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    result = run_in_parts(given.cases, given.seed, given.processes, Path(tempfile.gettempdir()) / "fuzz-bad")
    print(json.dumps(result, indent=1))
    print(f"wrote {write_result('fuzz', result, 'onnx', 'onnxruntime')}")
    sys.exit(1 if result["bad_total"] else 0)


if __name__ == "__main__":
    main()
