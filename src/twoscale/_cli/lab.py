"""``twoscale lab``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from twoscale._cli.common import ModelName, at_least_one, command, console, parse_bits, print_json, print_line
from twoscale._cli.ending import write_error

__all__ = ["lab_command"]


def lab_command(
    data: Annotated[str, tyro.conf.arg(metavar="NAME")] = "digits",
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",), metavar="DIR")] = Path("lab"),
    seed: int = 0,
    calibration_images: int = 1000,
    model: ModelName = None,
    scheme: Literal["both", "default", "course"] = "both",
    bits: Annotated[str, tyro.conf.arg(metavar="BITS,BITS,...")] = "2,3,4,5,6,8",
    resume: bool = False,
    json: bool = False,
) -> int:
    """Run the whole quantization lab and write a report with all numbers and pictures.

    Trains the lab's two networks, measures their weights and activations, quantizes weights, activations and biases
    step by step under both schemes, compares range methods and bits of the weights, and verifies the integer networks
    in several executors. Writes DIR/report.html
    (open it in a browser), DIR/results.json, DIR/plots, and the weights and integer networks of each network. Exits
    with 1 if executors disagree about a network on the grid, where all integers must be equal.

    Args:
        data: Data set: digits (embedded), fashion-mnist, cifar10.
        out: Folder for the results. It is created if needed; results of an earlier lab are replaced.
        seed: Seed of the initial weights and of the order of the images.
        calibration_images: Number of training images over which activations are profiled.
        model: Model to train instead of the lab's two networks, net and net-with-bias.
        scheme: Scheme of the quantization; see twoscale quantize.
        bits: Weight bits whose accuracies are compared, each from 2 to 8.
        resume: Continue the training of an interrupted lab in the same folder.
        json: Print the results as JSON instead of a table.
    """
    from twoscale._lab import LabConfig, run_lab

    at_least_one("--calibration-images", calibration_images)
    chosen: dict[str, Any] = {"bits": parse_bits("--bits", bits)}
    if model is not None:
        chosen["models"] = (model,)
    if scheme != "both":
        chosen["schemes"] = (scheme,)
    config = LabConfig(data=data, out=out, seed=seed, calibration_images=calibration_images, resume=resume, **chosen)
    try:
        results = run_lab(config, say=write_error)
    except KeyboardInterrupt as error:
        options = ["--calibration-images", str(calibration_images), "--seed", str(seed)]
        options += [] if model is None else ["--model", model]
        options += ["--scheme", scheme, "--bits", bits, "--resume"]
        again = command("lab", "--data", data, "--out", out, *options)
        raise KeyboardInterrupt(f"interrupted; finished training is kept; continue with: {again}") from error
    if json:
        print_json(results)
    else:
        from twoscale._lab.terminal import summary_table

        console().print(summary_table(results))
        print_line(f"Report with pictures: {out / 'report.html'}")
    kept = all(check.ok for network in results.networks for check in network.verify.values() if check.on_grid)
    return 0 if kept else 1
