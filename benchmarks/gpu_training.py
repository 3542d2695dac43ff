"""Training on one GPU: speed against the plain loop and the matrix rate, 94%, and a trained ResNet-18.

    python -m benchmarks.gpu_training --out DIR [--only epoch,small] [--tiny --device cpu] [--budget 420]

Each part runs in a process of its own with a time limit, and its result, or why there is none, is written to
DIR/PART.json as soon as it is known; one that fails does not keep the others from running. Parts, in order:

    epoch     ResNet-18: an epoch of the recipe's step against the plain loop, and the bf16 matrix rate
    small     Net at a batch of 4: CUDA graphs, compiled and not, against the plain loop
    fast      --recipe fast: accuracy and seconds of some seeds
    standard  --recipe standard through the command line; its model in pieces below 16 MiB
    torchrun  the command line under torchrun, one process, NCCL
    tests     tests that need a GPU
    search    other numbers of epochs and rates for the fast recipe

The plain loop is what ``benchmarks.training_speed`` describes, on the GPU: a DataLoader that turns one image after
the other into a PIL image and a normalized tensor, an eager fp32 step, ``loss.item()`` at every step.

"tiny" is a rehearsal of every part on few images of the embedded digits, which a processor can do too.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

LIMITS = {"epoch": 150, "small": 100, "fast": 150, "standard": 180, "torchrun": 60, "tests": 150, "search": 150}
"""Seconds, in the order of importance."""
PIECE = 15 * 2**20


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a part runs, and on how much."""

    device: str
    tiny: bool
    out: Path

    def dataset(self) -> Any:
        from twoscale import data

        dataset = data.load("digits" if self.tiny else "cifar10")
        if not self.tiny:
            return dataset
        return dataclasses.replace(dataset, train=dataset.train.head(64), test=dataset.test.head(40))

    def recipe(self, name: str, **overrides: Any) -> Any:
        from twoscale.training import recipe

        small = {"data": "digits", "batch_size": 16, "model": "resnet20", "epochs": 2, "step": "eager"}
        return recipe(name, **{**(small if self.tiny else {}), "device": self.device, **overrides})

    def now(self) -> float:
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def plain_loop(place: Place, model_name: str, batch_size: int, *, warm_up: int, steps: int, workers: int) -> float:
    """Return images per second of the loop that everybody writes."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader

    from benchmarks.training_speed import PilImages
    from twoscale import models

    dataset = place.dataset()
    torch.manual_seed(0)
    model = models.create(model_name, classes=len(dataset.classes)).to(place.device).train()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    loader = DataLoader(
        PilImages(dataset.train, dataset.mean, dataset.std), batch_size=batch_size, shuffle=True, num_workers=workers
    )
    done, images, clock = 0, 0, time.perf_counter()
    while True:
        for inputs, labels in loader:
            inputs, labels = inputs.to(place.device), labels.to(place.device)
            optimizer.zero_grad()
            loss = criterion(model(inputs), labels)
            loss.backward()
            optimizer.step()
            loss.item()
            done += 1
            images += len(labels)
            if done == warm_up:
                images, clock = 0, place.now()
            if done == warm_up + steps:
                return images / (place.now() - clock)


def ours(place: Place, config: Any) -> dict[str, Any]:
    """Train, and return what each epoch took."""
    from twoscale.training import train

    result = train(config, place.dataset(), progress=False)
    record = result.record
    return {
        "notes": record.notes,
        "prepare_seconds": record.prepare_seconds,
        "epoch_seconds": [epoch.seconds for epoch in record.epochs],
        "images_per_second": [epoch.images_per_second for epoch in record.epochs],
        "accuracy": record.epoch_accuracy,
        "training_seconds": record.seconds,
        "evaluation_seconds": [epoch.evaluation_seconds for epoch in record.epochs],
        "losses": [epoch.loss for epoch in record.epochs],
        "peak_memory_bytes": record.epochs[-1].peak_memory_bytes,
        "config": config,
    }


def epoch(place: Place) -> Any:
    import torch

    from twoscale import models
    from twoscale.scaling.peak import measure_peak, step_flops

    peak = measure_peak(
        torch.device(place.device), precision="bf16", sizes=(512,) if place.tiny else (2048, 4096, 8192)
    )
    yield {"bf16_matrix_flops_per_second": peak.flops_per_second, "sizes": [row.size for row in peak.rows]}
    images = torch.zeros(4, 3, 32, 32)
    per_image = step_flops(models.create("resnet18"), (images, torch.zeros(4, dtype=torch.int64))) / 4
    runs: dict[str, Any] = {}

    def add(name: str, **options: Any) -> dict[str, Any]:
        run = runs[name] = ours(place, place.recipe("fast", epochs=3, **({} if place.tiny else options)))
        best = min(run["epoch_seconds"][1:])
        run["fraction_of_matrix_rate"] = per_image * len(place.dataset().train) / best / peak.flops_per_second
        return {"runs": runs, "flops_per_image": per_image}

    yield add("compiled", step="compiled")
    yield add("cuda-graph", step="cuda-graph")
    # In turn: plain, ours.
    pairs = []
    for _ in range(2):
        plain = plain_loop(place, "resnet18", 16 if place.tiny else 128, warm_up=2 if place.tiny else 30,
                           steps=2 if place.tiny else 60, workers=2)  # fmt: skip
        fast = ours(place, place.recipe("fast", epochs=2, step="eager" if place.tiny else "compiled"))
        pairs.append({"plain_images_per_second": plain, "our_images_per_second": fast["images_per_second"][-1]})
        yield {"pairs": pairs, "plain": "batch 128, 2 workers, fp32, eager"}
    yield add("compiled, batch 1000", step="compiled", batch_size=1000)


def small(place: Place) -> Any:
    steps = {"warm_up": 5, "steps": 20} if place.tiny else {"warm_up": 100, "steps": 2000}
    kinds = ("cuda-graph", "plain", "compiled", "eager")
    pairs: dict[str, list[Any]] = {kind: [] for kind in kinds}
    recorded: dict[str, Any] = {}
    for turn in range(3):
        for kind in kinds:
            if kind == "plain":
                rate = plain_loop(place, "net", 4, **steps, workers=2) / 4
            elif kind == "eager" and turn:
                continue
            else:
                how = "eager" if place.tiny else kind
                epochs = 1 if kind == "eager" else 2
                config = place.recipe("lab", model="net", data="cifar10", batch_size=4, step=how, epochs=epochs)
                done = ours(place, config)
                recorded[kind] = done
                rate = done["images_per_second"][-1] / 4
            pairs[kind].append(rate)
            yield {"steps_per_second": pairs, "last_runs": recorded}
    ratios = {
        kind: [ours / plain for ours, plain in zip(pairs[kind], pairs["plain"], strict=True)]
        for kind in ("cuda-graph", "compiled")
    }
    yield {"ratios_to_plain": ratios, "median": {kind: statistics.median(found) for kind, found in ratios.items()}}


def fast(place: Place) -> Any:
    runs = []
    for seed in range(2 if place.tiny else 5):
        done = ours(place, place.recipe("fast", seed=seed))
        runs.append(done)
        accuracy = [run["accuracy"][-1] for run in runs]
        yield {
            "runs": runs,
            "accuracy": accuracy,
            "mean_accuracy": statistics.mean(accuracy),
            "training_seconds": [run["training_seconds"] for run in runs],
            "last_evaluation_seconds": [run["evaluation_seconds"][-1] for run in runs],
        }


def search(place: Place) -> Any:
    runs = []
    tried: list[dict[str, Any]] = [
        {"epochs": 8}, {"epochs": 12}, {"lr": 0.6}, {"lr": 0.25}, {"whiten": False}, {"batch_size": 1000, "lr": 0.8},
        {"bias_lr": 16.0}, {"label_smoothing": 0.2}, {"crop": 4}, {"epochs": 9}, {"momentum": 0.85},
        {"zero_init_residual": False},
    ]  # fmt: skip
    for options in tried[:1] if place.tiny else tried:
        done = ours(place, place.recipe("fast", **({} if place.tiny else options)))
        runs.append({"options": options, **{k: done[k] for k in ("accuracy", "training_seconds", "losses")}})
        yield {"runs": runs}


def standard(place: Place) -> Any:
    folder = place.out / "standard"
    command = [sys.executable, "-m", "twoscale.cli", "train", "resnet18", "--recipe", "standard", "--out", str(folder)]
    command += ["--device", place.device, "--overwrite"]
    if place.tiny:
        command += ["--data", "digits", "--batch-size", "512", "--epochs", "1", "--step", "eager"]
        command[4] = "resnet20"
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - start
    yield {"command": command[1:], "exit_code": done.returncode, "wall_seconds": wall, "said": done.stderr[-3000:]}
    yield {"printed": done.stdout[-1000:], "record": json.loads((folder / "run.json").read_text())}
    content = (folder / "model.safetensors").read_bytes()
    pieces = [content[i : i + PIECE] for i in range(0, len(content), PIECE)]
    for number, piece in enumerate(pieces):
        (place.out / f"resnet18.safetensors.{number}").write_bytes(piece)
    (folder / "model.safetensors").unlink()
    (folder / "training-state.safetensors").unlink(missing_ok=True)
    yield {"pieces": len(pieces), "join": "cat resnet18.safetensors.* > resnet18.safetensors"}


def tests(place: Place) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", "tests/training/test_graphed_steps.py",
         "tests/data/test_data_pipeline.py"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    yield {"exit_code": done.returncode, "output": done.stdout[-8000:], "errors": done.stderr[-2000:]}


def torchrun(place: Place) -> Any:
    folder = place.out / "torchrun"
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", "-m", "twoscale.cli",
         "train", "net", "--data", "digits", "--epochs", "2", "--batch-size", "64", "--device", place.device,
         "--out", str(folder), "--overwrite"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    yield {"exit_code": done.returncode, "output": done.stdout[-2000:], "errors": done.stderr[-4000:]}
    yield {"record": json.loads((folder / "run.json").read_text())}
    shutil.rmtree(folder)


PARTS: dict[str, Callable[[Place], Any]] = {
    "epoch": epoch, "small": small, "fast": fast, "standard": standard, "torchrun": torchrun, "tests": tests,
    "search": search,
}  # fmt: skip


def write(path: Path, content: dict[str, Any]) -> None:
    from twoscale.records import current_environment, write_record

    write_record(path, {**content, "environment": current_environment("triton")})


def one(name: str, place: Place) -> None:
    """Run a part in this process; what it has found is on disk after each of its steps."""
    found: dict[str, Any] = {"part": name, "status": "unfinished", "tiny": place.tiny, "device": place.device}
    path = place.out / f"{name}.json"
    if place.device == "cuda":
        import torch

        found["gpu"] = torch.cuda.get_device_name()
    start = time.perf_counter()
    try:
        for piece in PARTS[name](place):
            found |= {**piece, "seconds": time.perf_counter() - start}
            write(path, found)
        found["status"] = "ok"
    except Exception as error:
        traceback.print_exc()
        found |= {
            "status": "failed",
            "error": f"{type(error).__name__}: {error}",
            "trace": traceback.format_exc()[-4000:],
        }
    write(path, {**found, "seconds": time.perf_counter() - start})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="few images, to rehearse")
    parser.add_argument("--budget", type=float, default=420.0, help="seconds for all parts (default 420)")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.part:
        one(arguments.part, Place(arguments.device, arguments.tiny, arguments.out))
        return
    end = time.monotonic() + arguments.budget
    for name in arguments.only.split(","):
        limit = min(LIMITS[name] * (5 if arguments.device == "cpu" else 1), end - time.monotonic())
        path = arguments.out / f"{name}.json"
        start = time.monotonic()
        path.unlink(missing_ok=True)
        if limit < 15:
            write(path, {"part": name, "status": "left out", "error": "the budget was used up"})
            continue
        command = [sys.executable, "-m", "benchmarks.gpu_training", "--part", name, "--out", str(arguments.out)]
        command += ["--device", arguments.device, *(["--tiny"] if arguments.tiny else [])]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
        with (arguments.out / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            outcome = "ended"
            try:
                process.wait(limit)
            except subprocess.TimeoutExpired:
                outcome = f"ended after {limit:.0f} s, its limit"
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, 9)
                process.wait()
        status = json.loads(path.read_text())["status"] if path.exists() else "no result"
        print(f"{name:<10} {status:<10} {time.monotonic() - start:6.1f} s  {outcome}", flush=True)


if __name__ == "__main__":
    main()
