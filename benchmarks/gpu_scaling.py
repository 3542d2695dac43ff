"""A scaling study of ResNet-18 on CIFAR-10 on the GPUs of this machine, in a few minutes.

    python -m benchmarks.gpu_scaling --out DIR [--minutes 4] [--sections batch,accuracy,...] [--resume] [--record]

`twoscale scale resnet18 --data cifar10 --device cuda` with one launch of each timed cell, bf16 and channels_last. At
one GPU: the largest batch that fits; epoch time, memory and share of the measured matrix rate by batch size; DDP's own
cost; accuracy at a large batch. Timed cells come first, training runs last, one launch each: what there is no time for
is left out, and --resume goes on. Where CIFAR-10 is not in the cache, times are taken on random images, without
accuracy.

Writes DIR/report.html, DIR/study.json and DIR/cells; with --record also benchmarks/results/gpu_scaling.json. --tiny is
a rehearsal that a processor can do too.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.common import write_result
from twoscale import data
from twoscale.errors import TwoscaleError
from twoscale.scaling._questions.answers import plain
from twoscale.scaling._questions.registry import DEFAULT_SECTIONS
from twoscale.scaling._run import run_study, study_config
from twoscale.scaling._study.progress import study_progress

TINY = {
    "device": "cpu", "model": "net", "data": "digits", "batch_sizes": (16, 32), "world_sizes": (1,), "base_batch": 16,
    "accuracy_batches": (32, 64),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=1, help="launches of each timed cell")
    parser.add_argument("--epochs", type=int, default=2, help="of the training runs")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--sections", default=",".join(DEFAULT_SECTIONS))
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    sections = tuple(arguments.sections.split(","))
    options: dict[str, Any] = {"device": "cuda", "accuracy_batches": (128, 512)}
    if arguments.tiny:
        options = TINY
    else:
        try:
            data.load("cifar10", fetch=False)
        except TwoscaleError as error:
            print(f"{error}; random images instead, without accuracy")
            sections = tuple(name for name in sections if name != "accuracy")
            options["data"] = "synthetic"
    config = study_config(
        **options,
        sections=sections,
        repeats=arguments.repeats,
        seeds=arguments.seeds,
        epochs=arguments.epochs,
        tune=False,
        tolerance=0.25,
        timeout=60 * arguments.minutes,
    )
    results = run_study(
        config, arguments.out, resume=arguments.resume, minutes=arguments.minutes, progress=study_progress()
    )
    for sentence in results.sentences.values():
        print(sentence)
    if arguments.record:
        print(f"written to {write_result('gpu_scaling', plain(results))}")


if __name__ == "__main__":
    main()
