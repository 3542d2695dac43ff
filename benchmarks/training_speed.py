"""Training steps per second: the plain loop, which the course lab also uses, against ours, in one run.

    python -m benchmarks.training_speed [--steps 3000] [--repeats 5] [--deep-steps 6] [--full] [--compiled]

The plain loop is described in ``benchmarks.plain_loop``. Ours is ``twoscale.training.train`` with the lab's recipe,
which is its default (Net, mini-batches of 4), and its steps as they run in a full-length run; then ResNet-18, on a
slice of an epoch. Both sides' clocks leave out start-up and evaluation. The sides run in turn.

``--full`` runs the whole recipe on each side, 2 epochs on CIFAR-10, and gives the final test accuracies and the
times from call to result. ``--deep-steps 0`` leaves ResNet-18 out.
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

import torch

from twoscale import data
from twoscale._environment import core_count, load_average
from twoscale.training import TrainConfig, evaluate, train

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.common import paired, write_result
from benchmarks.plain_loop import plain_loop

WARM_UP = 100
"""Steps of the plain loop before its clock starts."""
DEEP_BATCH, DEEP_WARM_UP = 32, 2
"""Of ResNet-18."""


def plain_rate(dataset: data.Dataset, steps: int) -> float:
    rate = plain_loop(dataset, warm_up=WARM_UP, steps=steps)[1]
    print(f"plain loop        {rate:8.1f} steps/s", flush=True)
    return rate


def our_record(dataset: data.Dataset, steps: int, step: Any) -> Any:
    short = dataclasses.replace(dataset, train=dataset.train.head(4 * steps), test=dataset.test.head(100))
    record = train(TrainConfig(data=dataset.name, epochs=1, step=step), short, progress=False).record
    print(f"ours, {step:<9}   {record.steps_per_second:8.1f} steps/s", flush=True)
    return record


def our_rate(dataset: data.Dataset, steps: int) -> float:
    return float(our_record(dataset, steps, "captured").steps_per_second)


def deep_pair(dataset: data.Dataset, steps: int, repeats: int) -> dict[str, Any]:
    """Time ResNet-18, both sides in fp32 and with all cores: steps of a slice of an epoch, in turn."""

    def ours() -> float:
        n = DEEP_BATCH * (DEEP_WARM_UP + steps)
        short = dataclasses.replace(dataset, train=dataset.train.head(n), test=dataset.test.head(8))
        config = TrainConfig(model="resnet18", data=dataset.name, epochs=1, batch_size=DEEP_BATCH, step="captured",
                             channels_last=True)  # fmt: skip
        record = train(config, short, progress=False).record
        assert record.steps_per_second is not None
        print(f"ResNet-18, ours       {record.steps_per_second:8.3f} steps/s", flush=True)
        return record.steps_per_second

    def plain() -> float:
        rate = plain_loop(dataset, "resnet18", batch_size=DEEP_BATCH, warm_up=DEEP_WARM_UP, steps=steps)[1]
        print(f"ResNet-18, plain loop {rate:8.3f} steps/s", flush=True)
        return rate

    pair = paired(ours, plain, repeats)
    per_epoch = -(-len(dataset.train) // DEEP_BATCH)
    return {
        "recipe": f"ResNet-18, {dataset.name}, mini-batches of {DEEP_BATCH}, fp32; ours captured, channels_last",
        "timed_steps": steps,
        "ours_steps_per_second": pair.a,
        "plain_steps_per_second": pair.b,
        "ours_epoch_seconds": per_epoch / pair.median_a,
        "plain_epoch_seconds": per_epoch / pair.median_b,
        "ratio_of_medians": pair.ratio,
        "ratio_smallest_and_largest_pair": pair.ratio_spread,
    }


def full(dataset: data.Dataset, seeds: int) -> dict[str, list[dict[str, float]]]:
    """Run the whole recipe on each side, once per seed."""
    found: dict[str, list[dict[str, float]]] = {"lab": [], "ours": []}
    for seed in range(seeds):
        start = time.perf_counter()
        model, rate = plain_loop(dataset, warm_up=WARM_UP, epochs=2, seed=seed)
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
    """Return the scheduler's weight of this session against others (Linux's autogroups)."""
    try:
        return Path("/proc/self/autogroup").read_text().strip()
    except OSError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="data set (default cifar10)")
    parser.add_argument("--steps", type=int, default=3000, help="steps of a run (default 3000)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each side (default 5)")
    parser.add_argument("--deep-steps", type=int, default=6, help="timed steps of a run of ResNet-18 (default 6)")
    parser.add_argument("--deep-repeats", type=int, default=3, help="runs of each side of it (default 3)")
    parser.add_argument("--full", type=int, nargs="?", const=1, default=0, metavar="SEEDS", help="the whole recipe too")
    parser.add_argument("--compiled", action="store_true", help="also compiled steps, which take tens of seconds")
    arguments = parser.parse_args()
    if arguments.compiled:  # so that the first compilation finds an empty cache
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="training-speed-")
    dataset = data.load(arguments.data)
    load = load_average()
    pair = paired(
        lambda: our_rate(dataset, arguments.steps), lambda: plain_rate(dataset, arguments.steps), arguments.repeats
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
        "load_average_at_start": load,
        "priority": priority(),
        "cores_of_this_process": core_count(),
        "threads_of_the_lab_s_loop": torch.get_num_threads(),
        "resnet18": deep_pair(dataset, arguments.deep_steps, arguments.deep_repeats) if arguments.deep_steps else None,
        "full_recipe": full(dataset, arguments.full) if arguments.full else None,
    }
    low, high = pair.ratio_spread
    print(
        f"ours {pair.median_a:.0f} steps/s, the lab's loop {pair.median_b:.0f} steps/s: "
        f"{pair.ratio:.2f} times (pairs from {low:.2f} to {high:.2f})"
    )
    if deep := result["resnet18"]:
        low, high = deep["ratio_smallest_and_largest_pair"]
        print(
            f"ResNet-18: an epoch in {deep['ours_epoch_seconds']:.0f} s, with the plain loop "
            f"{deep['plain_epoch_seconds']:.0f} s: {deep['ratio_of_medians']:.2f} times "
            f"(pairs from {low:.2f} to {high:.2f})"
        )
    print(f"wrote {write_result('training_speed', result, 'pillow')}")


if __name__ == "__main__":
    main()
