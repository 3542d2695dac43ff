"""Training steps per second: the course lab's own loop against ours, the same recipe, in one run.

    python benchmarks/training_speed.py [--steps 3000] [--repeats 5] [--full] [--compiled]

The lab's loop (``lab_loop``) is the one everybody writes: ``torch.utils.data.DataLoader`` with 2 workers that
turn one image after the other into a PIL image, a tensor, and a normalized tensor, as torchvision's CIFAR10,
ToTensor and Normalize do (written out here, torchvision is not needed); shuffled mini-batches of 4; an eager step
with ``torch.optim.SGD``; ``loss.item()`` at every step; a printed line every 2,000.

Ours is ``twoscale.training.train`` with the lab's recipe, which is its default, and its steps as they run in a
full-length run. Both sides' clocks leave out start-up and evaluation. The sides run in turn.

``--full`` runs the whole recipe on each side, 2 epochs on CIFAR-10, and gives the final test accuracies and the
times from call to result.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn, optim
from torch.utils.data import DataLoader, Dataset

from twoscale import data, models
from twoscale.training import TrainConfig, evaluate, train

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.common import paired, write_result

WARM_UP = 100
"""Steps of the lab's loop before its clock starts: workers, first allocations."""


class PilImages(Dataset[tuple[torch.Tensor, int]]):
    """As torchvision.datasets.CIFAR10 with transforms.Compose([ToTensor(), Normalize(mean, std)])."""

    def __init__(self, split: data.Split, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.images: NDArray[np.uint8] = np.ascontiguousarray(split.images.transpose(0, 2, 3, 1))
        self.labels = [int(label) for label in split.labels]
        self.mean, self.std = mean, std

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = Image.fromarray(self.images[index])
        # ToTensor
        pixels = torch.from_numpy(np.array(image, np.uint8, copy=True))
        pixels = pixels.view(image.size[1], image.size[0], len(image.getbands()))
        tensor = pixels.permute((2, 0, 1)).contiguous().to(dtype=torch.get_default_dtype()).div(255)
        # Normalize
        tensor = tensor.clone()
        mean = torch.as_tensor(self.mean, dtype=tensor.dtype, device=tensor.device)
        std = torch.as_tensor(self.std, dtype=tensor.dtype, device=tensor.device)
        if (std == 0).any():
            raise ValueError("std evaluated to zero")
        return tensor.sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1)), self.labels[index]


def lab_loop(dataset: data.Dataset, *, epochs: int, steps: int | None, seed: int) -> tuple[nn.Module, float]:
    """Train as the lab does; return the model, and steps per second after the warm-up."""
    torch.manual_seed(seed)
    net = models.Net()
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    trainloader = DataLoader(
        PilImages(dataset.train, dataset.mean, dataset.std), batch_size=4, shuffle=True, num_workers=2
    )
    done, clock = 0, time.perf_counter()
    for epoch in range(epochs):
        running_loss = 0.0
        for i, (inputs, labels) in enumerate(trainloader, 0):
            optimizer.zero_grad()
            outputs = net(inputs)
            loss = criterion(outputs, labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            if i % 2000 == 1999:
                print(f"  [{epoch + 1}, {i + 1:5d}] loss: {running_loss / 2000:.3f}", flush=True)
                running_loss = 0.0
            done += 1
            if done == WARM_UP:
                clock = time.perf_counter()
            if done == steps:
                break
    return net, (done - WARM_UP) / (time.perf_counter() - clock)


def lab_rate(dataset: data.Dataset, steps: int) -> float:
    rate = lab_loop(dataset, epochs=1, steps=steps + WARM_UP, seed=0)[1]
    print(f"lab's loop        {rate:8.1f} steps/s", flush=True)
    return rate


def our_record(dataset: data.Dataset, steps: int, step: Any) -> Any:
    short = dataclasses.replace(dataset, train=dataset.train.head(4 * steps), test=dataset.test.head(100))
    record = train(TrainConfig(data=dataset.name, epochs=1, step=step), short, progress=False).record
    print(f"ours, {step:<9}   {record.steps_per_second:8.1f} steps/s", flush=True)
    return record


def our_rate(dataset: data.Dataset, steps: int) -> float:
    return float(our_record(dataset, steps, "captured").steps_per_second)


def full(dataset: data.Dataset, seeds: int) -> dict[str, list[dict[str, float]]]:
    """Run the whole recipe on each side, once a seed."""
    found: dict[str, list[dict[str, float]]] = {"lab": [], "ours": []}
    for seed in range(seeds):
        start = time.perf_counter()
        model, rate = lab_loop(dataset, epochs=2, steps=None, seed=seed)
        accuracy = evaluate(model, dataset.test, dataset.mean, dataset.std)
        seconds = time.perf_counter() - start
        found["lab"].append({"seed": seed, "accuracy": accuracy, "steps_per_second": rate, "seconds": seconds})
        start = time.perf_counter()
        record = train(TrainConfig(data=dataset.name, seed=seed), dataset, progress=False).record
        seconds = time.perf_counter() - start
        assert record.test_accuracy is not None
        assert record.steps_per_second is not None
        ours = {"seed": seed, "accuracy": record.test_accuracy, "steps_per_second": record.steps_per_second}
        found["ours"].append({**ours, "seconds": seconds})
        for side, runs in found.items():
            print(f"{side:<5} seed {seed}: {runs[-1]['accuracy']:.2%} in {runs[-1]['seconds']:.1f} s", flush=True)
    return found


def priority() -> str | None:
    """Say how the scheduler weighs this session against others, where they compete (Linux's autogroups)."""
    try:
        return Path("/proc/self/autogroup").read_text().strip()
    except OSError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="data set (default cifar10)")
    parser.add_argument("--steps", type=int, default=3000, help="steps of a run (default 3000)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each side (default 5)")
    parser.add_argument("--full", type=int, nargs="?", const=1, default=0, metavar="SEEDS", help="the whole recipe too")
    parser.add_argument("--compiled", action="store_true", help="also compiled steps, which take tens of seconds")
    arguments = parser.parse_args()
    if arguments.compiled:  # so that the first compilation finds nothing made before
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="training-speed-")
    dataset = data.load(arguments.data)
    load_average = os.getloadavg()
    pair = paired(
        lambda: our_rate(dataset, arguments.steps), lambda: lab_rate(dataset, arguments.steps), arguments.repeats
    )
    kinds = ["eager", "captured", *(["compiled"] if arguments.compiled else [])]
    variants: dict[str, Any] = {kind: [] for kind in kinds}
    for _ in range(arguments.repeats):
        for kind in kinds:
            variants[kind].append(our_record(dataset, arguments.steps, kind))
    result = {
        "recipe": f"Net, {arguments.data}, mini-batches of 4, SGD lr 0.001 momentum 0.9",
        "steps_of_a_run": arguments.steps,
        "ours_steps_per_second": pair.a,
        "lab_steps_per_second": pair.b,
        "ours_median": pair.median_a,
        "lab_median": pair.median_b,
        "ratio_of_medians": pair.ratio,
        "ratio_smallest_and_largest_pair": pair.ratio_spread,
        "variants": {
            kind: {
                "steps_per_second": [record.steps_per_second for record in records],
                "median": statistics.median(record.steps_per_second for record in records),
                "prepare_seconds": [record.prepare_seconds for record in records],
                "notes": records[0].notes,
            }
            for kind, records in variants.items()
        },
        "load_average_at_start": [round(value, 2) for value in load_average],
        "priority": priority(),
        "cores_of_this_process": len(os.sched_getaffinity(0)),
        "threads_of_the_lab_s_loop": torch.get_num_threads(),
        "full_recipe": full(dataset, arguments.full) if arguments.full else None,
    }
    low, high = pair.ratio_spread
    print(
        f"ours {pair.median_a:.0f} steps/s, the lab's loop {pair.median_b:.0f} steps/s: "
        f"{pair.ratio:.2f} times (pairs from {low:.2f} to {high:.2f})"
    )
    print(f"wrote {write_result('training_speed', result, 'pillow')}")


if __name__ == "__main__":
    main()
