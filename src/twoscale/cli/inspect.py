"""``twoscale inspect``."""

from __future__ import annotations

from pathlib import Path

from twoscale.cli.common import File, batches_of, console, load_model, print_json, require_file

__all__ = ["inspect_command"]


def inspect_command(
    file: File,
    data: str | None = None,
    model: str | None = None,
    images: int = 1000,
    json: bool = False,
) -> None:
    """Show a network's weights, its activations over images, or the layers of an integer network.

    Args:
        file: A checkpoint (.safetensors, .pt, .pth) or an integer network (.onnx).
        data: Data set whose training images the activations are profiled over; without it only weights are shown.
        model: Model of the checkpoint, where the checkpoint does not say it.
        images: How many images to profile.
        json: Print JSON for programs, histograms included, instead of tables.
    """
    from twoscale.report import networks

    require_file(file, "a checkpoint (.safetensors, .pt, .pth) or an integer network (.onnx)")
    if file.suffix == ".onnx":
        from twoscale import network as network_room

        network = network_room.load(Path(file))
        if json:
            print_json({"name": network.name, "scheme": network.scheme, "on_grid": network.on_grid,
                        "fingerprint": network.fingerprint, "parameters": network.parameters,
                        "layers": [{"name": layer.name, "op": layer.op, "inputs": layer.inputs, "output": layer.output}
                                   for layer in network],
                        "bounds": network.bounds, "metadata": dict(network.metadata)})  # fmt: skip
        else:
            console().print(networks.network_table(network))
        return
    from twoscale import data as data_room
    from twoscale.calibration.profile import profile, weight_summaries
    from twoscale.graph.capture import capture
    from twoscale.graph.folding import fold

    loaded = load_model(file, model)
    dataset = data_room.load(data or "digits", fetch=data is not None)
    first, _ = next(iter(batches_of(dataset.train, dataset, limit=1)))
    import torch

    graph = fold(capture(loaded, torch.from_numpy(first)))
    weights = weight_summaries(graph)
    activations = (
        ()
        if data is None
        else profile(graph, batches_of(dataset.train, dataset, batch_size=100, limit=max(1, images))).summaries()
    )
    if json:
        print_json({"name": graph.name, "weights": weights, "activations": activations})
        return
    printer = console()
    printer.print(networks.statistics_table("Weights", weights))
    if activations:
        printer.print(networks.statistics_table(f"Activations over {images} images of {data}", activations))
