"""``twoscale lab``."""

from __future__ import annotations

import sys
from pathlib import Path

from twoscale.cli.common import console, print_json

__all__ = ["lab_command"]


def lab_command(
    data: str = "digits",
    out: Path = Path("lab"),
    seed: int = 0,
    calibration_images: int = 1000,
    resume: bool = False,
    json: bool = False,
) -> int:
    """Do the whole quantization lab, and write a report with every number and picture.

    Trains both networks of the lab, looks at weights and activations, quantizes weights, activations and biases
    step by step in both schemes, and verifies the integer networks in every executor. Exit code 1 if a network that
    promises equal bits does not keep it.

    Args:
        data: Data set: digits (embedded), fashion-mnist, cifar10.
        out: Folder for report.html, results.json, plots, checkpoints and integer networks.
        seed: Decides initial weights and the order of the images.
        calibration_images: Training images over which activations are profiled.
        resume: Continue training where an interrupted lab in the same folder was.
        json: Print the results as JSON instead of a table.
    """
    from twoscale.lab import LabConfig, run_lab

    def say(line: str) -> None:
        sys.stderr.write(f"{line}\n")

    config = LabConfig(data=data, out=out, seed=seed, calibration_images=calibration_images, resume=resume)
    results = run_lab(config, say=say)
    if json:
        print_json(results)
    else:
        from twoscale.report import summary_table

        printer = console()
        printer.print(summary_table(results))
        printer.print(f"{out / 'report.html'}: everything, with pictures", soft_wrap=True)
    kept = all(check.ok for network in results.networks for check in network.verify.values() if check.on_grid)
    return 0 if kept else 1
