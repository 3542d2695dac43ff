"""A small vision transformer: trained on CIFAR-10, quantized, and compared with other tools on the same float network.

    python -m benchmarks.vit train FILE --minutes 20
    python -m benchmarks.vit measure FILE

Training takes as many epochs as fit the time, on one core. Measuring quantizes the network with twoscale, verifies the
integers in every executor, and compares the logits with those of the float network: signal to noise, top-1 accuracy
and agreement. If NNCF or ONNX Runtime's quantizer is installed, they quantize the same network and are measured on the
same images.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from twoscale import data


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
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1) + self.positions
        logits: torch.Tensor = self.head(self.norm(self.blocks(x)[:, 0]))
        return logits


def train(path: Path, minutes: float) -> None:
    """Train for about ``minutes`` on one thread, and save the weights."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dataset = data.load("cifar10")
    model = SmallViT()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.05)
    batch, begin, limit, step = 128, time.monotonic(), 60 * minutes, 0
    images, labels = (torch.from_numpy(part) for part in (dataset.train.images, dataset.train.labels))
    mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in (data.CIFAR10_MEAN, data.CIFAR10_STD))
    print(tuple(images.shape), images.dtype, flush=True)
    while (share := (time.monotonic() - begin) / limit) < 1:
        for group in optimizer.param_groups:  # a warm-up, then half a cosine over the time
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * share))
        chosen = torch.randint(len(images), (batch,))
        x = (images[chosen].float() / 255 - mean) / std
        left, top = (int(v) for v in torch.randint(0, 9, (2,)))
        x = F.pad(x, (4, 4, 4, 4))[:, :, top : top + 32, left : left + 32]
        x = torch.where(torch.rand(batch, 1, 1, 1) < 0.5, x, x.flip(3))
        loss = F.cross_entropy(model(x), labels[chosen].long(), label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        step += 1
        if step % 200 == 0:
            print(f"{step} steps, {time.monotonic() - begin:.0f} s, loss {loss.item():.3f}", flush=True)
            torch.save(model.state_dict(), path)
    torch.save(model.state_dict(), path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and measure a small vision transformer.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("train", "measure"):
        command = commands.add_parser(name)
        command.add_argument("file", type=Path)
        if name == "train":
            command.add_argument("--minutes", type=float, default=20)
    arguments = parser.parse_args()
    if arguments.command == "train":
        train(arguments.file, arguments.minutes)


if __name__ == "__main__":
    main()
