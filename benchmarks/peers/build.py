"""Networks in the files of other runtimes, each converted and quantized by its own tools on the same images.

    python -m benchmarks.peers.build NETWORK --out FOLDER [--models DIR] [--batches 1,100]

ExecuTorch, torchao and LiteRT's converter are optional: files of what is not installed are not written.

It is a separate process, since converters start threads and use memory that would affect a measurement.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn

CALIBRATION_IMAGES = 100
LARGE = {"resnet50": "resnet50", "mobilenetv2-224": "mobilenetv2"}
"""Networks for 224×224 images, and their names in benchmarks.large_networks."""
LARGE_IMAGES = 16
NETWORKS = ("net", "resnet8", "resnet20", "resnet18", "mobilenetv2", *LARGE)


@dataclass(frozen=True)
class Files:
    """The files of one network, in one folder."""

    folder: Path

    @property
    def twoscale(self) -> Path:
        """The integer network."""
        return self.folder / "twoscale.onnx"

    @property
    def onnx(self) -> Path:
        """The float network."""
        return self.folder / "float.onnx"

    @property
    def onnx_int8(self) -> Path:
        """Quantized by ONNX Runtime."""
        return self.folder / "int8.onnx"

    @property
    def openvino_int8(self) -> Path:
        """Quantized by NNCF."""
        return self.folder / "openvino-int8.xml"

    @property
    def images(self) -> Path:
        """Normalized images, float32 (N, 3, 32, 32) or (N, 3, 224, 224)."""
        return self.folder / "images.npy"

    def litert(self, kind: str, batch: int) -> Path:
        """Return the file for a batch. LiteRT's shapes are fixed. ``kind``: "float" or "int8"."""
        return self.folder / f"{kind}-batch-{batch}.tflite"

    def executorch_int8(self, batch: int) -> Path:
        """Return ExecuTorch's program for a batch, with XNNPACK's kernels."""
        return self.folder / f"int8-batch-{batch}.pte"

    def inductor_int8(self, batch: int) -> Path:
        """Return the package for a batch that PyTorch's compiler writes."""
        return self.folder / f"int8-batch-{batch}.pt2"


def make_model(name: str, models_folder: Path | None, images: NDArray[np.float32]) -> nn.Module:
    """Return the network with published weights, ``DIR/NAME*.safetensors``, if there are any.

    Otherwise weights are random, which does not change the speed of any runtime. Batch norms then take their statistics
    from the images, so that activations have the magnitude of a trained network's.
    """
    import torch

    from benchmarks import large_networks
    from twoscale import models

    if name in LARGE:
        return large_networks.make_network(LARGE[name])
    found = sorted(models_folder.glob(f"{name}-*.safetensors")) if models_folder is not None else []
    if found:
        return models.load(name, found[0])
    model = models.create(name)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # a plain average
    with torch.no_grad():
        model.train()(torch.from_numpy(images))
    return model.eval()


def make_images(name: str) -> NDArray[np.float32]:
    """Return images of the embedded data set, normalized as the network takes them; for large networks random
    shapes."""
    from benchmarks import large_networks
    from twoscale import data, models

    if name in LARGE:
        return large_networks.make_images(LARGE_IMAGES)
    digits = data.load("digits")
    mean, std = models.normalization(name) or (digits.mean, digits.std)
    images: NDArray[np.uint8] = digits.train.images[:CALIBRATION_IMAGES]
    return data.normalize(images, mean, std)


def build(name: str, files: Files, models_folder: Path | None, batches: tuple[int, ...]) -> None:
    """Write all files of a network. Those of LiteRT are written only if its converter is installed."""
    import torch

    import twoscale

    files.folder.mkdir(parents=True, exist_ok=True)
    images = make_images(name)
    np.save(files.images, images)
    model = make_model(name, models_folder, images)
    scheme, calibration = twoscale.Scheme(), images
    if name in LARGE:  # without what takes minutes: weights are random, and the time of a run depends on none of it
        scheme = twoscale.Scheme(name="quick", tune_ranges=False, error_feedback=False, bias_correction=False)
        calibration = images[:2]
    twoscale.quantize(model, [torch.from_numpy(calibration)], name=name, scheme=scheme).save(files.twoscale)
    build_onnxruntime(model, files, images)
    _openvino_int8(files, images)
    for write in (_executorch, _inductor, _litert):
        with contextlib.suppress(ImportError):
            for batch in batches:
                write(model, files, images, batch)


def build_onnxruntime(model: nn.Module, files: Files, images: NDArray[np.float32]) -> None:
    """Write the float network, and the one that ONNX Runtime quantizes."""
    import torch

    torch.onnx.export(
        model, (torch.from_numpy(images[:2]),), str(files.onnx), input_names=["images"], output_names=["logits"],
        dynamic_axes={"images": {0: "N"}, "logits": {0: "N"}}, opset_version=17, dynamo=False,
    )  # fmt: skip
    _onnxruntime_int8(files, images)


def _onnxruntime_int8(files: Files, images: NDArray[np.float32]) -> None:
    """uint8 activations, int8 weights per channel, ranges by min and max, as its documentation advises for CPUs."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(np.split(images, 2))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch}

    prepared = files.folder / "prepared.onnx"
    quant_pre_process(str(files.onnx), str(prepared))
    quantize_static(
        str(prepared), str(files.onnx_int8), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    prepared.unlink()


def _openvino_int8(files: Files, images: NDArray[np.float32]) -> None:
    import nncf
    import openvino as ov

    model = ov.Core().read_model(str(files.onnx))
    dataset = nncf.Dataset([image[None] for image in images])
    ov.save_model(nncf.quantize(model, dataset, subset_size=len(images)), str(files.openvino_int8))


def _batches(images: NDArray[np.float32], batch: int) -> list[NDArray[np.float32]]:
    """Return the images as whole batches."""
    return [images[start : start + batch] for start in range(0, len(images) - batch + 1, batch)]


def _calibrated(model: nn.Module, quantizer: Any, images: NDArray[np.float32], batch: int) -> Any:
    """Return a model quantized by torchao's PT2E, as an exported program whose inputs have a fixed shape."""
    import torch
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    example = (torch.from_numpy(images[:batch]),)
    with torch.no_grad():
        prepared = prepare_pt2e(torch.export.export(model, example).module(), quantizer)
        for each in _batches(images, batch):
            prepared(torch.from_numpy(each))
        return torch.export.export(convert_pt2e(prepared), example)


def _executorch(model: nn.Module, files: Files, images: NDArray[np.float32], batch: int) -> None:
    """int8 activations, int8 weights per channel, all layers on XNNPACK, as its documentation advises for CPUs."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower

    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    lowered = to_edge_transform_and_lower(
        _calibrated(model, quantizer, images, batch), partitioner=[XnnpackPartitioner()]
    )
    files.executorch_int8(batch).write_bytes(lowered.to_executorch().buffer)


def _inductor(model: nn.Module, files: Files, images: NDArray[np.float32], batch: int) -> None:
    """uint8 activations, int8 weights per channel, oneDNN's kernels, as torchao's documentation advises for x86.

    The program is compiled ahead of time, and its weights are packed for all instruction sets of this processor.
    """
    import torch
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
    from torch._inductor import aoti_compile_and_package

    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    program = _calibrated(model, quantizer, images, batch)
    with torch.no_grad():
        aoti_compile_and_package(
            program,
            package_path=str(files.inductor_int8(batch)),
            inductor_configs={"freezing": True, "cpp.dynamic_threads": True},
        )


def _litert(model: nn.Module, files: Files, images: NDArray[np.float32], batch: int) -> None:
    """Channels last, as LiteRT computes, so that no data is moved."""
    import litert_torch
    import torch
    from ai_edge_quantizer import quantizer, recipe

    class ChannelsLast(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return model(x.permute(0, 3, 1, 2).contiguous())

    inputs = torch.from_numpy(np.ascontiguousarray(images[:batch].transpose(0, 2, 3, 1)))
    float_file = files.litert("float", batch)
    litert_torch.convert(ChannelsLast().eval(), (inputs,)).export(str(float_file))
    made = quantizer.Quantizer(str(float_file), recipe.static_wi8_ai8())

    channels_last = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    batches = [{"args_0": each} for each in _batches(channels_last, batch)]
    found = made.calibrate({"serving_default": batches}, num_threads=2)
    target = files.litert("int8", batch)
    target.unlink(missing_ok=True)
    made.quantize(found).export_model(str(target))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", type=Path, help="folder of published weights, NAME-*.safetensors")
    parser.add_argument("--batches", default="1")
    arguments = parser.parse_args()
    os.environ.setdefault("NNCF_DISABLE_TELEMETRY", "1")
    warnings.simplefilter("ignore")
    batches = tuple(int(batch) for batch in arguments.batches.split(","))
    with contextlib.redirect_stdout(io.StringIO()):
        build(arguments.network, Files(arguments.out), arguments.models, batches)


if __name__ == "__main__":
    main()
