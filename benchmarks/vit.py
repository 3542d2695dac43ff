"""A small vision transformer: trained on CIFAR-10, quantized, and compared with other tools on the same float network.

    python -m benchmarks.vit train FILE --minutes 20
    python -m benchmarks.vit measure FILE

Training takes as many steps as fit the processor time, on one thread. Measuring quantizes the network with twoscale,
verifies the integers in every executor, and compares the logits with those of the float network: signal to noise, top-1
accuracy and agreement. NNCF and ONNX Runtime's quantizer quantize the same network and are measured on the same images.
"""

from __future__ import annotations

import argparse
import copy
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.common import write_result
from twoscale import data
from twoscale._environment import Environment

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOOLS = ("twoscale", "nncf", "onnxruntime")
CALIBRATION = 400
"""Images to quantize with."""


class Block(nn.Module):
    """Attention and a multilayer perceptron, each after a layer norm, added to the tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.reduce = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width)
        x = x + self.project(mixed)
        added: torch.Tensor = self.reduce(F.gelu(self.expand(self.norm2(x))))
        return x + added


class SmallViT(nn.Module):
    """A vision transformer for 32x32 images in patches of 4x4: a class token and 64 patches."""

    def __init__(self, width: int = 64, depth: int = 4, heads: int = 4, classes: int = 10) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.class_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, 65, width) * 0.02)
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        logits: torch.Tensor = self.head(self.norm(self.blocks(x)[:, 0]))
        return logits


def train(path: Path, minutes: float) -> None:
    """Train for about ``minutes`` of processor time on one thread, and save the weights."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dataset = data.load("cifar10")
    model = SmallViT()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.05)
    batch, begin, limit, step = 128, time.process_time(), 60 * minutes, 0
    images, labels = (torch.from_numpy(part) for part in (dataset.train.images, dataset.train.labels))
    while (share := (time.process_time() - begin) / limit) < 1:
        for group in optimizer.param_groups:  # a warm-up, then half a cosine over the time
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * share))
        chosen = torch.randint(len(images), (batch,))
        x = normalized(images[chosen])
        left, top = (int(v) for v in torch.randint(0, 9, (2,)))
        x = F.pad(x, (4, 4, 4, 4))[:, :, top : top + 32, left : left + 32]
        x = torch.where(torch.rand(batch, 1, 1, 1) < 0.5, x, x.flip(3))
        loss = F.cross_entropy(model(x), labels[chosen].long(), label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        step += 1
        if step % 200 == 0:
            print(
                f"{step} steps, {time.process_time() - begin:.0f} s of processor time, loss {loss.item():.3f}",
                flush=True,
            )
            torch.save(model.state_dict(), path)
    torch.save(model.state_dict(), path)


def normalized(pixels: torch.Tensor) -> torch.Tensor:
    """Return pixels (N, 3, 32, 32) as the network takes them."""
    mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in (data.CIFAR10_MEAN, data.CIFAR10_STD))
    return (pixels.float() / 255 - mean) / std


@dataclass(frozen=True)
class Quality:
    """Logits of an integer network, or another tool's, beside those of the float network."""

    tool: str
    sqnr_db: float
    top1: float
    agreement: float
    """Share of images with the same class as the float network's."""
    cpu_seconds: float
    """To quantize, verify and run the images."""


@dataclass(frozen=True)
class Results:
    """benchmarks/results/vit.json."""

    images: int
    calibration_images: int
    float_top1: float
    rows: tuple[Quality, ...]
    differing: dict[str, int]
    """By executor, the integers that differ from the reference's, over 20 images and every layer."""
    compared: int
    """Integers of those images."""
    load_average_at_end: tuple[float, ...] | None = None
    environment: Environment | None = None


def quality(
    tool: str, logits: NDArray[np.float32], expected: NDArray[np.float32], labels: NDArray[Any], seconds: float
) -> Quality:
    noise = float(np.square(logits - expected).sum() / np.square(expected).sum())
    chosen = logits.argmax(1)
    same = float((chosen == expected.argmax(1)).mean())
    return Quality(tool, -10 * math.log10(noise), float((chosen == labels).mean()), same, seconds)


def batched(run: Callable[[torch.Tensor], Any], images: torch.Tensor) -> NDArray[np.float32]:
    return np.concatenate([np.asarray(run(images[i : i + 100])) for i in range(0, len(images), 100)])


def ours(
    model: nn.Module, samples: torch.Tensor, images: torch.Tensor
) -> tuple[NDArray[np.float32], dict[str, int], int]:
    """Return twoscale's logits, how many integers of 20 images differ in each executor, and how many there are."""
    import twoscale
    from twoscale._runtimes import create

    network = twoscale.quantize(model, samples)
    names = [layer.name for layer in network]
    few = images[:20].numpy()
    expected = create("reference", network).run(few, names)
    differing = {}
    for executor in ("torch", "onnxruntime", "c"):
        found = create(executor, network).run(few, names)
        differing[executor] = sum(int((expected[name] != found[name]).sum()) for name in names)
    runner = create("torch", network)
    (output,) = network.outputs
    logits = network.logits(batched(lambda x: runner.run(x.numpy())[output], images))
    return logits, differing, sum(value.size for value in expected.values())


def nncf_logits(model: nn.Module, samples: torch.Tensor, images: torch.Tensor) -> NDArray[np.float32]:
    """Return the logits of NNCF's simulation, with its settings for transformers."""
    import nncf

    calibration = nncf.Dataset([samples[i : i + 1] for i in range(len(samples))])
    quantized = nncf.quantize(
        copy.deepcopy(model), calibration, subset_size=len(samples), model_type=nncf.ModelType.TRANSFORMER
    )
    with torch.no_grad():
        return batched(lambda x: quantized(x).numpy(), images)


def onnxruntime_logits(model: nn.Module, samples: torch.Tensor, images: torch.Tensor) -> NDArray[np.float32]:
    """Return the logits of ONNX Runtime on its own ``quantize_static``, QDQ with a scale per output channel."""
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [{"x": samples[i : i + 1].numpy()} for i in range(len(samples))]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "quantized.onnx"
        torch.onnx.export(
            model, (samples[:2],), str(source), input_names=["x"], dynamic_axes={"x": {0: "n"}}, dynamo=False,
            opset_version=17,
        )  # fmt: skip
        quantize_static(
            str(source), str(target), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
        session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
        return batched(lambda x: session.run(None, {"x": x.numpy()})[0], images)


def measure(path: Path, count: int) -> None:
    """Print and record how close each tool's network is to the float network."""
    torch.set_num_threads(1)
    dataset = data.load("cifar10")
    model = SmallViT().eval()
    model.load_state_dict(torch.load(path, weights_only=True))
    samples = normalized(torch.from_numpy(dataset.train.images[:CALIBRATION]))
    images = normalized(torch.from_numpy(dataset.test.images[:count]))
    labels = dataset.test.labels[:count]
    with torch.no_grad():
        expected = batched(lambda x: model(x).numpy(), images)
    float_top1 = float((expected.argmax(1) == labels).mean())
    print(f"float: top-1 {float_top1:.2%} of {count} images", flush=True)
    rows = []
    for tool in TOOLS:
        begin = time.process_time()
        if tool == "twoscale":
            logits, differing, compared = ours(model, samples, images)
            print(f"of {compared:,} integers of 20 images differ from the reference: {differing}")
        else:
            logits = {"nncf": nncf_logits, "onnxruntime": onnxruntime_logits}[tool](model, samples, images)
        rows.append(found := quality(tool, logits, expected, labels, time.process_time() - begin))
        print(
            f"{tool}: SQNR {found.sqnr_db:.1f} dB, top-1 {found.top1:.2%}, agreement {found.agreement:.2%}, "
            f"{found.cpu_seconds:.0f} s of processor time",
            flush=True,
        )
    results = Results(count, CALIBRATION, float_top1, tuple(rows), differing, compared)
    print(f"written to {write_result('vit', results, 'nncf', 'onnxruntime')}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and measure a small vision transformer.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("train", "measure"):
        command = commands.add_parser(name)
        command.add_argument("file", type=Path)
        if name == "train":
            command.add_argument("--minutes", type=float, default=20)
        else:
            command.add_argument("--images", type=int, default=10_000)
    arguments = parser.parse_args()
    if arguments.command == "train":
        train(arguments.file, arguments.minutes)
    else:
        measure(arguments.file, arguments.images)


if __name__ == "__main__":
    main()
