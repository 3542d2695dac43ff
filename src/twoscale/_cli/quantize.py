"""``twoscale quantize``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from twoscale import data as datasets
from twoscale._cli.common import (
    AS_RECORDED,
    Channels,
    DataName,
    File,
    ModelArgs,
    ModelName,
    Pictures,
    Size,
    as_pixels,
    at_least_one,
    batches_of,
    budget_of,
    check_takes_pictures,
    console,
    dataset_for,
    load_float,
    origin_of,
    parse_memory,
    print_json,
    print_line,
    recorded,
    verify_with,
)
from twoscale._cli.export import require_on_grid
from twoscale._cli.learning import announce, further_batches
from twoscale.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import nn

    from twoscale._display.layers import BitWidths
    from twoscale._ir.integer_network import IntegerNetwork
    from twoscale._ir.recorded_accuracy import RecordedAccuracy

__all__ = ["QuantizeRecord", "quantize_command"]

_TEST_IMAGES = 1000
"""Most test images over which accuracy is measured."""

LayerBits = Annotated[str | None, tyro.conf.arg(metavar="LAYER=BITS,...")]
Method = Annotated[str | None, tyro.conf.arg(metavar="METHOD")]


@dataclass(frozen=True)
class QuantizeRecord:
    """What ``twoscale quantize --json`` prints."""

    file: str
    name: str
    scheme: str
    on_grid: bool
    """Whether every executor provably computes the same integers."""
    fingerprint: str
    """SHA-256 over everything that decides the integers."""
    parameters: int
    data: str
    calibration_samples: int
    bits: tuple[BitWidths, ...]
    """For each layer: layer, bits of its weights (None without), bits of its output."""
    bounds: tuple[Any, ...]
    """For each layer with weights: layer, bound, float32_exact, pair_saturation_safe."""
    target: str | None
    """Target of export that fits into --max-ram and --max-flash; None without them."""
    accuracy: RecordedAccuracy | None
    """On test images; None where the data set has none, or other classes than the network."""


def quantize_command(
    file: File,
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",), metavar="FILE.onnx")],
    data: DataName = None,
    calibration_images: int = 1000,
    model: ModelName = None,
    model_args: ModelArgs = None,
    mean: Channels = None,
    std: Channels = None,
    pictures: Pictures = AS_RECORDED,
    images: Literal["pixels", "normalized"] | None = None,
    scheme: Literal["default", "fast", "course", "tflite"] = "default",
    activations: Literal["asymmetric", "symmetric"] | None = None,
    weight_range: Method = None,
    activation_range: Method = None,
    weight_bits: int | None = None,
    activation_bits: int | None = None,
    weight_scales: Literal["per-channel", "per-layer"] | None = None,
    edge_bits: int | None = None,
    layer_weight_bits: LayerBits = None,
    layer_activation_bits: LayerBits = None,
    equalization: Literal["none", "weights", "activations"] | None = None,
    rounding: Literal["nearest", "feedback", "learned"] | None = None,
    effort: float = 1.0,
    memory: Size = None,
    max_ram: Size = None,
    max_flash: Size = None,
    json: bool = False,
) -> None:
    """Turn a trained network into an integer-only one, and save it as ONNX.

    Also measures the accuracy of both networks over the first 1,000 test images, and records it in the file.

    A range METHOD decides which real values the integers of a tensor cover: minmax (all values seen), 3-sigma (mean ± 3
    standard deviations; any number works), percentile-99.99 (any number works), mse (least squared error) or entropy.

    Args:
        file: Weights: .safetensors, .pt, .pth, a program of torch.export (.pt2), or a float network (.onnx, .tflite).
        out: The file to write.
        data: Data set whose training images calibrate the activations. Default: the one recorded in the file, or else
            digits.
        calibration_images: Number of training images for calibration.
        model: Model of the weights, where the file does not record it: a name, or FILE.py:CLASS for your own, whose
            code then runs.
        model_args: Options of that model.
        mean: Mean of pixels / 255, for normalizing the images. Default: the mean recorded in the file, or else 0.5.
        std: Standard deviation of pixels / 255, with the same defaults.
        pictures: How pictures of your own become pixels. Default: as the file records.
        images: Input of the integer network. pixels: integers 0..255, with the normalization folded into the first
            layer. normalized: normalized images as the float network takes them, rounded to 8 bits first. Default:
            pixels for asymmetric activations, normalized for symmetric ones, which have no integers for 128 to 255.
        scheme: default: uint8 activations, one weight scale per channel, mse ranges, error feedback, and the same
            integers in every executor. fast: the same without error feedback and tuned ranges, in less time and with a
            larger error. course: symmetric int8, one weight scale per layer, minmax ranges. tflite: default with the
            scales and the 8-bit output that a .tflite file needs.
        activations: asymmetric: uint8 with a zero point. symmetric: int8 with zero point 0. Default: the scheme's.
        weight_range: Range method of the weights. Default: the scheme's.
        activation_range: Range method of the activations. Default: the scheme's.
        weight_bits: Bits of the weights, 2 to 8. Default: the scheme's 8.
        activation_bits: Bits of the activations, 2 to 8. Default: the scheme's 8. Images keep 8.
        weight_scales: One weight scale per output channel, or one per layer. Default: the scheme's.
        edge_bits: Bits of the weights of the first and the last layer, and of what the last one reads. Papers on few
            bits keep 8 there. Default: those of the other layers.
        layer_weight_bits: Weight bits of single layers, e.g. conv1=4,fc3=6; twoscale sensitivity finds good ones.
        layer_activation_bits: Output bits of single layers, in the same form; "input" stands for the images.
        equalization: Move factors between layers so that the ranges of channels become similar: by weights (Nagel et
            al. 2019) or by activations. Default: the scheme's.
        rounding: nearest: each weight to the nearest integer. feedback: errors of weights cancel over the calibration
            images (GPTQ). learned: weights, biases and scales are learned so that the network computes what the float
            network computes, from the calibration images and up to 10,000 more, without labels; for few bits, in
            minutes. Default: the scheme's, feedback for default.
        effort: How long learned rounding learns: 2 for twice the iterations, 0.1 for a tenth.
        memory: Memory for the tensors between layers, e.g. 512M or 2G. Weights and the first calibration images need
            more. With less memory, biases and weights are corrected over fewer images. Default: a quarter of the memory
            that is free at the start, at most 1G, so that the integers are the same on every machine with 4G free.
        max_ram: Most RAM of the network's C on a microcontroller, e.g. 64K: arena, image, output and stack. If no
            target of plain C fits, nothing is written, and the message says what is over.
        max_flash: The same for flash: constants and code.
        json: Print JSON instead of a table.
    """
    from twoscale import _quantization as quantization
    from twoscale._display.layers import bit_widths
    from twoscale._ir.recorded_accuracy import with_accuracy
    from twoscale._search.learning import LearnedRounding

    if out.suffix != ".onnx":
        raise ConfigurationError(f"--out is {out}; expected a file name that ends in .onnx")
    at_least_one("--calibration-images", calibration_images)
    learning = LearnedRounding().scaled(effort)
    budget = _default_memory() if memory is None else parse_memory("--memory", memory)
    limits = budget_of(max_ram, max_flash)
    chosen = {
        "activations": activations,
        "weight_range": weight_range,
        "activation_range": activation_range,
        "weight_bits": weight_bits,
        "activation_bits": activation_bits,
        "edge_bits": edge_bits,
        "layer_weight_bits": _layer_bits("--layer-weight-bits", layer_weight_bits),
        "layer_activation_bits": _layer_bits("--layer-activation-bits", layer_activation_bits),
        "equalization": equalization,
        "per_channel": None if weight_scales is None else weight_scales == "per-channel",
        "error_feedback": None if rounding is None else rounding != "nearest",
    }
    given: dict[str, Any] = {option: value for option, value in chosen.items() if value is not None}
    how = replace(quantization.SCHEMES[scheme], **given)
    network_float, info = load_float(file, model, model_args)
    dataset = dataset_for(data, recorded(info), mean, std, pictures)
    check_takes_pictures(network_float, dataset)
    takes_pixels = not how.symmetric if images is None else images == "pixels"
    normalization = (dataset.mean, dataset.std) if takes_pixels else None
    inputs = dataset if normalization is None else as_pixels(dataset)
    batches = batches_of(dataset.train, inputs, batch_size=100, limit=calibration_images)
    if rounding == "learned":
        from twoscale._search import learn_rounding

        network = learn_rounding(
            network_float,
            batches,
            scheme=how,
            how=learning,
            normalization=normalization,
            further=further_batches(dataset, inputs, calibration_images),
            memory=budget,
            announce=announce,
        )
    else:
        network = quantization.quantize(network_float, batches, scheme=how, normalization=normalization, memory=budget)
    target = None
    if max_ram is not None or max_flash is not None:
        from twoscale._codegen.c import fitting_target

        require_on_grid(network, out)
        target = fitting_target(network, limits)
    samples = min(calibration_images, len(dataset.train))
    origin = {**origin_of(inputs), "options": given}
    network = replace(network, metadata={**network.metadata, **origin, "calibration_samples": samples})
    accuracy = _accuracy(network, inputs, network_float, dataset)
    network = network if accuracy is None else with_accuracy(network, accuracy)
    network.save(out)
    if json:
        print_json(
            QuantizeRecord(
                file=str(out),
                name=network.name,
                scheme=network.scheme,
                on_grid=network.on_grid,
                fingerprint=network.fingerprint,
                parameters=network.parameters,
                data=dataset.name,
                calibration_samples=samples,
                bits=tuple(map(bit_widths, network)),
                bounds=network.bounds,
                target=target,
                accuracy=accuracy,
            )
        )
        return
    from twoscale._display.networks import network_table

    console().print(network_table(network))
    print_line("")
    if target is not None:
        print_line(f"It fits with twoscale export --target {target}")
    print_line(f"Wrote {out}. Check it: {verify_with(out, file, model, model_args, pictures)}")


def _accuracy(
    network: IntegerNetwork, inputs: datasets.Dataset, network_float: nn.Module, dataset: datasets.Dataset
) -> RecordedAccuracy | None:
    """Measure both networks on the same test images.

    Args:
        network: the integer network.
        inputs: the data set as it takes it.
        network_float: the network that it was made from.
        dataset: the data set as that one takes it.
    """
    from twoscale._ir.recorded_accuracy import RecordedAccuracy
    from twoscale._verification import accuracy
    from twoscale.training import evaluate

    test = dataset.test.head(_TEST_IMAGES)
    classes = network.classes
    if not len(test) or classes is None or not test.labels.max() < max(classes, 2):  # one separates two classes
        return None
    top1, samples = accuracy(network, batches_of(test, inputs))
    float_top1 = evaluate(network_float, test, dataset.mean, dataset.std)
    return RecordedAccuracy(dataset.name, samples, top1, float_top1)


def _default_memory() -> int:
    from twoscale._calibration.memory import DEFAULT_MEMORY
    from twoscale._environment import available_memory_bytes

    free = available_memory_bytes()
    return DEFAULT_MEMORY if free is None else min(DEFAULT_MEMORY, free // 4)


def _layer_bits(option: str, text: str | None) -> tuple[tuple[str, int], ...] | None:
    if text is None:
        return None
    pairs = [word.rpartition("=") for word in text.split(",")]
    if not all(layer.strip() and bits.strip().isdecimal() for layer, _, bits in pairs):
        raise ConfigurationError(f"{option} is {text}; expected layers and bits, e.g. conv1=4,fc3=6")
    return tuple((layer.strip(), int(bits)) for layer, _, bits in pairs)
