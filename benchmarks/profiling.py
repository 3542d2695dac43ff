"""Profiling activations: time and peak memory of the streaming pass, against the course lab's method.

    python -m benchmarks.profiling [--counts 400 4000 40000] [--repeats 3] [--limit 120]

Both sides profile the same uint8 images through the same network, each run in a fresh process, the sides in
turn. Both use one thread: on a machine that does other work too, two would wait for each other, on the lab's
small batches most of all. Peak memory is the process's largest resident set less what it held when the clock
started (imports, images and network loaded, one batch of 4 through). Left out on both sides: reading images
from disk.

The lab's way (``lab_hooks``): batch size 4, a forward hook on each layer that appends what comes in to one
growing array with ``np.append``. Every append copies the whole array, so time grows with the square of the
number of images, and the arrays (float64) hold every value ever seen. Its last hook keeps the output of the
first image of each batch only. A run stops after ``--limit`` seconds of processor time, and says how many
images it got through; nothing is extrapolated.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.common import Pair, paired, write_result
from twoscale._calibration.profile import profile
from twoscale._environment import load_average
from twoscale._frontends.torch_export import capture
from twoscale.data import LAB_MEAN, LAB_STD, load, normalize
from twoscale.errors import TwoscaleError
from twoscale.models import Net

LAB_BATCH = 4
BATCH = 500


@dataclass(frozen=True)
class Run:
    """The results of one process."""

    side: str
    """"lab" or "streaming"."""
    images: int
    """Images requested."""
    images_done: int
    """Images done; fewer if the time limit ended the run."""
    finished: bool
    seconds: float
    """Wall clock."""
    cpu_seconds: float
    peak_bytes: int
    """Largest resident set less that at the start."""
    tensors: dict[str, dict[str, float]]
    """From tensor to count, mean, std, min and max of the values kept."""


@dataclass(frozen=True)
class Comparison:
    """The lab's method (a) and the streaming pass (b) over this many images."""

    images: int
    lab_finished: bool
    lab_images_done: tuple[int, ...]
    """Images the lab's way got through before the limit, each run."""
    seconds: Pair
    """Wall clock. The ratio is that of whole passes only where the lab's way finished; else it is a lower bound."""
    cpu_seconds: Pair
    """Processor time, which other work on the machine disturbs less. Likewise."""
    peak_bytes: Pair
    """Likewise."""
    lab_values_kept: dict[str, float]
    streaming_values_seen: dict[str, float]
    largest_difference: float
    """Of mean, std, min and max of the input between the sides, in standard deviations (0 if not finished)."""


@dataclass(frozen=True)
class Results:
    """benchmarks/results/profiling.json."""

    network: str
    images: str
    lab_batch: int
    streaming_batch: int
    limit_cpu_seconds: float
    comparisons: tuple[Comparison, ...]
    load_average_at_start: tuple[float, ...] | None
    """Of 1, 5 and 15 minutes; other work on the machine would show here."""


def lab_hooks(model: nn.Module) -> dict[str, NDArray[np.float64]]:
    """Register the lab's hooks; the arrays in what is returned grow as images go through."""
    kept: dict[str, NDArray[np.float64]] = {
        name: np.empty(0) for name in ("input", "conv1", "conv2", "fc1", "fc2", "fc3")
    }

    def keeps_input(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def hook(_: nn.Module, x: tuple[torch.Tensor, ...], __: torch.Tensor) -> None:
            kept[name] = np.append(kept[name], x[0].cpu().view(-1))

        return hook

    def last_hook(_: nn.Module, x: tuple[torch.Tensor, ...], y: torch.Tensor) -> None:
        kept["fc2"] = np.append(kept["fc2"], x[0].cpu().view(-1))
        kept["fc3"] = np.append(kept["fc3"], y[0].cpu().view(-1))  # y is no tuple: y[0] is the first image's

    layers = {name: getattr(model, name) for name in ("conv1", "conv2", "fc1", "fc2", "fc3")}
    # What comes into a layer is the output of the one before, after ReLU and pooling.
    for layer, tensor in (("conv1", "input"), ("conv2", "conv1"), ("fc1", "conv2"), ("fc2", "fc1")):
        layers[layer].register_forward_hook(keeps_input(tensor))
    layers["fc3"].register_forward_hook(last_hook)
    return kept


def float_batches(images: NDArray[np.uint8], size: int) -> Iterator[torch.Tensor]:
    for start in range(0, len(images), size):
        yield torch.from_numpy(normalize(images[start : start + size], LAB_MEAN, LAB_STD))


def reset_peak() -> int:
    """Forget the largest resident set so far; return the present one. Linux only.

    Not ru_maxrss: a process inherits that of the one that started it, and its imports' passing peak counts.
    """
    Path("/proc/self/clear_refs").write_text("5")
    return _status_bytes("VmRSS")


def peak() -> int:
    return _status_bytes("VmHWM")


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


class Clock:
    """Wall-clock and processor seconds since it was made."""

    def __init__(self) -> None:
        self._start, self._cpu_start = time.perf_counter(), time.process_time()

    def cpu_seconds(self) -> float:
        return time.process_time() - self._cpu_start

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self._start, self.cpu_seconds()


def run_lab(images: NDArray[np.uint8], limit: float) -> Run:
    model = network()
    with torch.no_grad():
        for batch in float_batches(images[:LAB_BATCH], LAB_BATCH):
            model(batch)
        kept = lab_hooks(model)
        before, clock, done = reset_peak(), Clock(), 0
        for batch in float_batches(images, LAB_BATCH):
            model(batch)
            done += len(batch)
            if clock.cpu_seconds() > limit:
                break
    # The lab takes these of the arrays afterwards, so they are part of its work.
    tensors = {
        name: _entry(values.size, values.mean(), values.std(), values.min(), values.max())
        for name, values in kept.items()
    }
    finished = done == len(images)
    return Run("lab", len(images), done, finished, *clock.read(), peak() - before, tensors)


def run_streaming(images: NDArray[np.uint8], _: float) -> Run:
    graph = capture.capture(network(), torch.zeros(1, 3, 32, 32))
    profile(graph, float_batches(images[:LAB_BATCH], LAB_BATCH))
    before, clock = reset_peak(), Clock()
    found = profile(graph, float_batches(images, BATCH))
    taken = clock.read()
    tensors = {name: _entry(s.count, s.mean, s.std, s.min, s.max) for name, s in found.statistics.items()}
    return Run("streaming", len(images), found.images, True, *taken, peak() - before, tensors)


def _entry(count: int, mean: float, std: float, lo: float, hi: float) -> dict[str, float]:
    return {"count": count, "mean": float(mean), "std": float(std), "min": float(lo), "max": float(hi)}


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().eval()


SIDES: dict[str, Callable[[NDArray[np.uint8], float], Run]] = {"lab": run_lab, "streaming": run_streaming}


def fresh(side: str, images: Path, count: int, limit: float) -> Run:
    """Run one side in a process of its own."""
    arguments = ["--side", side, "--images", str(images), "--limit", str(limit), "--counts", str(count)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.profiling", *arguments],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        timeout=10 * limit + 600,
    )
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Run)


def compare(images: Path, count: int, repeats: int, limit: float) -> Comparison:
    """Run both sides in turn."""
    runs: dict[str, list[Run]] = {side: [] for side in SIDES}

    def run(side: str) -> float:
        done = fresh(side, images, count, limit)
        runs[side].append(done)
        print(
            f"{count:>6} images  {side:<10} {done.seconds:8.2f} s  {done.cpu_seconds:8.2f} s processor"
            f"  {done.peak_bytes / 2**20:6.0f} MiB"
            + ("" if done.finished else f"  stopped at the limit, {done.images_done} images done"),
            flush=True,
        )
        return done.seconds

    def again(field: str) -> Pair:
        figures = {side: iter([float(getattr(done, field)) for done in runs[side]]) for side in SIDES}
        return paired(lambda: next(figures["lab"]), lambda: next(figures["streaming"]), repeats)

    times = paired(lambda: run("lab"), lambda: run("streaming"), repeats)
    lab, streaming = runs["lab"], runs["streaming"]
    finished = all(run.finished for run in lab)
    # Of the other tensors the lab sees the pooled form, or a part.
    a, b = lab[0].tensors["input"], streaming[0].tensors["input"]
    apart = [abs(a[key] - b[key]) / b["std"] for key in ("mean", "std", "min", "max")] if finished else [0.0]
    return Comparison(
        images=count,
        lab_finished=finished,
        lab_images_done=tuple(run.images_done for run in lab),
        seconds=times,
        cpu_seconds=again("cpu_seconds"),
        peak_bytes=again("peak_bytes"),
        lab_values_kept={name: t["count"] for name, t in lab[0].tensors.items()},
        streaming_values_seen={name: t["count"] for name, t in streaming[0].tensors.items()},
        largest_difference=max(apart),
    )


def training_images(count: int) -> tuple[NDArray[np.uint8], str]:
    """CIFAR-10's training images if they are in the cache, else random pixels."""
    try:
        images = load("cifar10", fetch=False).train.images
        return np.ascontiguousarray(images[:count]), "CIFAR-10 training images"
    except TwoscaleError:
        rng = np.random.default_rng(0)
        return rng.integers(0, 256, (count, 3, 32, 32), np.uint8), "random pixels (no CIFAR-10 at hand)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[400, 4_000, 40_000], help="numbers of images")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side (default 3)")
    parser.add_argument(
        "--limit", type=float, default=120.0, help="processor seconds after which the lab's way is stopped"
    )
    parser.add_argument("--name", default="profiling", help="of the file in benchmarks/results")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--images", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        torch.set_num_threads(1)
        images = np.fromfile(arguments.images, np.uint8, arguments.counts[0] * 3 * 32 * 32)
        run = SIDES[arguments.side](images.reshape(-1, 3, 32, 32), arguments.limit)
        print(msgspec.json.encode(run).decode())
        return
    load = load_average()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.u8"
        images, origin = training_images(max(arguments.counts))
        images.tofile(path)
        comparisons = tuple(compare(path, count, arguments.repeats, arguments.limit) for count in arguments.counts)
    results = Results(
        network="Net, random weights (seed 0)",
        images=origin,
        lab_batch=LAB_BATCH,
        streaming_batch=BATCH,
        limit_cpu_seconds=arguments.limit,
        comparisons=comparisons,
        load_average_at_start=load,
    )
    print(f"wrote {write_result(arguments.name, results)}")


if __name__ == "__main__":
    main()
