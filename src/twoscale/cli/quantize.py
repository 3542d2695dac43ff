"""``twoscale quantize``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from twoscale.cli.common import File, batches_of, console, load_model, print_json
from twoscale.errors import ConfigurationError

__all__ = ["quantize_command"]


def quantize_command(
    checkpoint: File,
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))],
    data: str = "digits",
    model: str | None = None,
    scheme: Literal["default", "course"] = "default",
    weight_range: str | None = None,
    activation_range: str | None = None,
    weight_bits: int | None = None,
    activation_bits: int | None = None,
    per_channel: bool | None = None,
    calibration_images: int = 1000,
    json: bool = False,
) -> None:
    """Turn a trained network into an integer-only one, and save it as ONNX.

    Ranges: minmax, 3-sigma (any number), percentile-99.99 (any number), mse, entropy.

    Args:
        checkpoint: Weights: .safetensors, .pt or .pth.
        out: The ONNX file to write.
        data: Data set whose training images calibrate the activations.
        model: Model of the checkpoint, where the checkpoint does not say it.
        scheme: default: uint8, one weight scale per channel, the same bits everywhere. course: symmetric int8, one
            scale per layer.
        weight_range: Range method of the weights, instead of the scheme's.
        activation_range: Range method of the activations, instead of the scheme's.
        weight_bits: 2 to 8, instead of the scheme's 8.
        activation_bits: 4 to 8, instead of the scheme's 8.
        per_channel: One weight scale per output channel, or one per layer.
        calibration_images: How many training images to calibrate with.
        json: Print JSON for programs instead of text.
    """
    from twoscale import data as data_room
    from twoscale import quantization

    if out.suffix != ".onnx":
        raise ConfigurationError(f"--out is {out}; expected a file name that ends in .onnx")
    if calibration_images < 1:
        raise ConfigurationError(f"--calibration-images is {calibration_images}; expected at least 1")
    chosen = {
        "weight_range": weight_range,
        "activation_range": activation_range,
        "weight_bits": weight_bits,
        "activation_bits": activation_bits,
        "per_channel": per_channel,
    }
    how = replace(
        quantization.find_scheme(scheme), **{option: value for option, value in chosen.items() if value is not None}
    )
    loaded = load_model(checkpoint, model)
    dataset = data_room.load(data)
    network = quantization.quantize(
        loaded, batches_of(dataset.train, dataset, batch_size=100, limit=calibration_images), scheme=how
    )
    network = replace(
        network, metadata={**network.metadata, "data": data, "mean": list(dataset.mean), "std": list(dataset.std)}
    )
    network.save(out)
    if json:
        print_json({"file": str(out), "name": network.name, "scheme": network.scheme, "on_grid": network.on_grid,
                    "fingerprint": network.fingerprint, "parameters": network.parameters,
                    "bounds": network.bounds})  # fmt: skip
        return
    from twoscale.report.networks import network_table

    printer = console()
    printer.print(network_table(network))
    printer.print(f"\nWrote {out}. Check it: twoscale verify {out} --data {data}", soft_wrap=True)
