"""``twoscale lab``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import tyro

from twoscale._cli.common import at_least_one, console, print_json

__all__ = ["lab_command"]


def lab_command(
    data: Annotated[str, tyro.conf.arg(metavar="NAME")] = "digits",
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",), metavar="DIR")] = Path("lab"),
    seed: int = 0,
    calibration_images: int = 1000,
    resume: bool = False,
    json: bool = False,
) -> int:
    """Do the whole quantization lab, and write a report with every number and picture.

    Trains both networks of the lab, looks at weights and activations, quantizes weights, activations and biases
    step by step in both schemes, and verifies the integer networks in every executor. Writes DIR/report.html (open it
    in a browser), DIR/results.json, DIR/plots, and for each network its weights and integer networks. Exit code 1 if
    a network that promises the same integers everywhere does not keep it.

    Args:
        data: Data set: digits (embedded), fashion-mnist, cifar10.
        out: Folder of the results; it is made, and what an earlier lab left in it is replaced.
        seed: Decides initial weights and the order of the images.
        calibration_images: Training images over which activations are profiled.
        resume: Continue training where an interrupted lab in the same folder was.
        json: Print the results as JSON instead of a table.
    """
    from twoscale._lab import LabConfig, run_lab

    at_least_one("--calibration-images", calibration_images)

    def say(line: str) -> None:
        sys.stderr.write(f"{line}\n")

    config = LabConfig(data=data, out=out, seed=seed, calibration_images=calibration_images, resume=resume)
    try:
        results = run_lab(config, say=say)
    except KeyboardInterrupt as error:
        again = ["twoscale", "lab", "--data", data, "--out", str(out), "--seed", str(seed), "--resume"]
        raise KeyboardInterrupt(f"interrupted; what is trained is kept, go on with: {shlex.join(again)}") from error
    if json:
        print_json(results)
    else:
        from twoscale._lab.terminal import summary_table

        printer = console()
        printer.print(summary_table(results))
        printer.print(f"Everything, with pictures: {out / 'report.html'}", soft_wrap=True, markup=False)
    kept = all(check.ok for network in results.networks for check in network.verify.values() if check.on_grid)
    return 0 if kept else 1
