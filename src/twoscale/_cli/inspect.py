"""``twoscale inspect``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from twoscale._cli.common import (
    AS_RECORDED,
    Channels,
    DataName,
    File,
    ModelArgs,
    ModelName,
    Pictures,
    at_least_one,
    batches_of,
    check_takes_pictures,
    console,
    dataset_for,
    is_integer_file,
    load_float,
    print_json,
    recorded,
    require_weights,
)

if TYPE_CHECKING:
    from twoscale._ir.accumulators import AccumulatorBits
    from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["inspect_command"]


def inspect_command(
    file: File,
    activations: bool = False,
    data: DataName = None,
    images: int = 1000,
    model: ModelName = None,
    model_args: ModelArgs = None,
    mean: Channels = None,
    std: Channels = None,
    pictures: Pictures = AS_RECORDED,
    json: bool = False,
) -> None:
    """Show the weights of a float network, its activations over images, or the layers of an integer network.

    For each tensor: mean, standard deviation, smallest and largest value, total range, mean ± 3 standard deviations.

    Args:
        file: Weights (.safetensors, .pt, .pth, .pt2), or a float or integer network (.onnx, .tflite).
        activations: Also show the input and the output of every layer over training images. For an integer network:
            the bits that each layer's accumulators need, proved and over these images.
        data: Data set of these images. Default: the one recorded in the file, or else digits.
        images: Number of training images.
        model: Model of the weights, where the file does not record it: a name, or FILE.py:CLASS for your own, whose
            code then runs.
        model_args: Options of that model.
        mean: Mean of pixels / 255, for normalizing the images. Default: the mean recorded in the file, or else 0.5.
        std: Standard deviation of pixels / 255, with the same defaults.
        pictures: How pictures of your own become pixels. Default: as the file records.
        json: Print JSON with histograms instead of tables.
    """
    at_least_one("--images", images)
    require_weights(file, "weights (.safetensors, .pt, .pth, .pt2) or a network (.onnx, .tflite)", tflite=True)
    if is_integer_file(file):
        from twoscale._formats import load

        integer = load(file)
        accumulators: tuple[AccumulatorBits, ...] = ()
        if activations:
            from twoscale._ir.accumulators import accumulator_bits

            dataset = dataset_for(data, recorded(integer), mean, std, pictures)
            check_takes_pictures(integer, dataset)
            batches = batches_of(dataset.train, dataset, batch_size=100, limit=min(images, len(dataset.train)))
            accumulators = accumulator_bits(integer, (batch for batch, _ in batches))
        _integer(integer, accumulators, json=json)
        return
    from twoscale._calibration.inspection import inspect
    from twoscale._display.statistics import inspection_tables
    from twoscale._page.terminal import rich_table

    network, info = load_float(file, model, model_args)
    dataset = dataset_for(data, recorded(info), mean, std, pictures)
    check_takes_pictures(network, dataset)
    seen = min(images, len(dataset.train)) if activations else 1
    found = inspect(network, batches_of(dataset.train, dataset, batch_size=100, limit=seen))
    if json:
        shown = found.activations if activations else ()
        print_json({"name": found.network, "weights": found.weights, "activations": shown})
        return
    printer = console()
    of_weights, of_activations = inspection_tables(found, f"training images of {dataset.name}")
    printer.print(rich_table(of_weights))
    if activations:
        printer.print()
        printer.print(rich_table(of_activations))


def _integer(network: IntegerNetwork, accumulators: Sequence[AccumulatorBits], *, json: bool) -> None:
    from twoscale._display.layers import bit_widths
    from twoscale._display.networks import accumulator_table, network_table
    from twoscale._ir.recorded_accuracy import recorded_accuracy
    from twoscale._page.terminal import rich_table

    if not json:
        printer = console()
        printer.print(network_table(network))
        if accumulators:
            printer.print()
            printer.print(rich_table(accumulator_table(network.name, accumulators)))
        return
    layers = [{"name": layer.name, "op": layer.op, "inputs": layer.inputs, "output": layer.output} for layer in network]
    print_json(
        {
            "name": network.name,
            "scheme": network.scheme,
            "on_grid": network.on_grid,
            "fingerprint": network.fingerprint,
            "parameters": network.parameters,
            "layers": layers,
            "bits": tuple(map(bit_widths, network)),
            "bounds": network.bounds,
            "accumulators": accumulators,
            "ties": network.ties,
            "accuracy": recorded_accuracy(network),
            "metadata": dict(network.metadata),
        }
    )
