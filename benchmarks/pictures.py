"""Pictures per second and peak memory of reading a folder of JPEGs, against torch's DataLoader and ``datasets``.

    python -m benchmarks.pictures [--counts 1000,100000] [--repeats N] [--folder DIR] [--step decode|commands|both]

Generates 1,000 JPEGs of 256 x 200 to 400 pixels in two classes, and links them under as many names as are asked for;
with --folder they are kept there for another run. Each side reads one epoch in shuffled order, in batches of 64,
resized to 224 x 224, in a fresh process: twoscale streams them; DataLoader decodes with Pillow and the same resize and
crop in as many workers as there are cores; ``datasets`` (``pip install datasets``) does it in one process. Sides
alternate. Peak memory is that of the process and its children together, in proportional set size, which counts a shared
page once, sampled 20 times a second. 100,000 pictures take minutes per side and command: run the steps one by one.

The step "commands" runs the command line on the same folder and records its peak memory: one epoch of a small network,
calibration, both with the four fifths of the pictures that are for training, and evaluation of the integer network on
the rest.

What is not measured again stays in the record, so that the steps can be run one by one.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil  # type: ignore[import-untyped]
from PIL import Image

from benchmarks.common import RESULTS, write_result
from twoscale._environment import Environment, core_count
from twoscale._files import read_record

SIZE = 224
BATCH = 64
DISTINCT = 1000
"""Number of different pictures."""
MODEL = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 7, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.classifier = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))
"""


@dataclass(frozen=True)
class Run:
    """One side in one process."""

    side: str
    pictures: int
    seconds: float
    """From the first request to the last picture, without the start of the interpreter and its imports."""
    pictures_per_second: float
    peak_bytes: int
    """Of the process and its children together."""


@dataclass(frozen=True)
class Results:
    """benchmarks/results/pictures.json."""

    size: int
    batch: int
    runs: tuple[Run, ...]
    load_average_at_end: tuple[float, ...] | None = None
    environment: Environment | None = None


def generate(folder: Path, count: int) -> None:
    """Make a folder of ``count`` JPEGs in two classes: smooth noise. Files that are there stay."""
    generator = np.random.default_rng(0)
    sources = [generator.normal(128, 60, (16, 16 + 2 * i, 3)).clip(0, 255).astype(np.uint8) for i in range(5)]
    made: list[Path] = []
    for i in range(count):
        file = folder / ("even", "odd")[i % 2] / f"{i // 1000:03}" / f"{i:06}.jpg"
        if i < DISTINCT:
            made.append(file)
        if file.exists():
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        if i >= DISTINCT:
            file.hardlink_to(made[i % DISTINCT])
            continue
        pixels = np.roll(sources[i % 5], i % 13, axis=1)
        Image.fromarray(pixels).resize((200 + 50 * (i % 5), 256), Image.Resampling.BICUBIC).save(file, quality=85)


def read_with_twoscale(folder: Path) -> Iterator[int]:
    from twoscale import data
    from twoscale.data import _assembly as assembly

    assembly._IN_MEMORY = 0  # small sets too, so that both counts measure the same
    found = data.image_folder(folder, data.Preprocessing(SIZE), test_fraction=0.01)
    order = data.epoch_order(len(found.train), seed=0, epoch=0)
    for images, _ in data.batches(found.train.images, found.train.labels, BATCH, order):
        yield len(images)


class FolderOfPictures:
    """What a user of DataLoader writes."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.glob("*/*/*.jpg"))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> tuple[Any, int]:
        import torch

        file = self.files[place]
        with Image.open(file) as opened:
            image = opened.convert("RGB")
        width, height = image.size
        short = min(width, height)
        image = image.resize((SIZE * width // short, SIZE * height // short), Image.Resampling.BILINEAR)
        left, top = (image.width - SIZE) // 2, (image.height - SIZE) // 2
        pixels = np.array(image.crop((left, top, left + SIZE, top + SIZE)))
        return torch.from_numpy(pixels).permute(2, 0, 1), int("odd" in file.parts)


def read_with_dataloader(folder: Path) -> Iterator[int]:
    from torch.utils.data import DataLoader

    pictures: Any = FolderOfPictures(folder)
    for images, _ in DataLoader(pictures, BATCH, shuffle=True, num_workers=core_count()):
        yield len(images)


def read_with_datasets(folder: Path) -> Iterator[int]:
    import datasets  # type: ignore[import-not-found]

    found = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train").shuffle(seed=0)
    for batch in found.iter(batch_size=BATCH):
        for image in batch["image"]:
            np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR))
        yield len(batch["image"])


SIDES: dict[str, Callable[[Path], Iterator[int]]] = {
    "twoscale": read_with_twoscale,
    "DataLoader": read_with_dataloader,
    "datasets": read_with_datasets,
}


def peak_of(process: subprocess.Popen[bytes]) -> int:
    """Return the largest sum of proportional set sizes of a process and its children until it ends."""
    largest, watched = 0, psutil.Process(process.pid)
    while process.poll() is None:
        total = 0
        try:
            for one in (watched, *watched.children(recursive=True)):
                try:
                    total += one.memory_full_info().pss
                except psutil.Error:
                    continue
        except psutil.Error:
            break
        largest = max(largest, total)
        time.sleep(0.05)
    return largest


def measured(words: list[str]) -> tuple[str, float, int]:
    """Run a command; return its output, its seconds, and its peak memory."""
    begun = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(words, stdout=output)
        peak = peak_of(process)
        if process.wait():
            raise SystemExit(f"{' '.join(words)} failed with exit code {process.returncode}")
        output.seek(0)
        return output.read().decode(), time.perf_counter() - begun, peak


def run_side(side: str, folder: Path) -> Run:
    text, _, peak = measured([sys.executable, "-m", "benchmarks.pictures", "--read", side, "--folder", str(folder)])
    pictures, seconds = msgspec.json.decode(text, type=tuple[int, float])
    return Run(side, pictures, seconds, pictures / seconds, peak)


def run_commands(folder: Path, count: int) -> list[Run]:
    """Train a small network on the folder, calibrate and evaluate it; return the peak memory of each command."""
    runs = []
    with tempfile.TemporaryDirectory() as name:
        model, run, network = Path(name, "mymodel.py"), Path(name, "run"), Path(name, "net.onnx")
        model.write_text(MODEL)
        own = ["--model", f"{model}:Net"]
        train = count - count // 5
        commands = {
            "train": [
                *("train", f"{model}:Net", "--data", str(folder), "--size", str(SIZE)),
                *("--epochs", "1", "--batch-size", str(BATCH), "--out", str(run)),
            ],
            "quantize": ["quantize", str(run), *own, "-o", str(network), "--calibration-images", str(train)],
            "eval": ["eval", str(network)],
        }
        for side, words in commands.items():
            _, seconds, peak = measured([sys.executable, "-m", "twoscale", *words])
            pictures = count - train if side == "eval" else train
            runs.append(Run(f"twoscale {side}", pictures, seconds, pictures / seconds, peak))
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--counts", default="1000,100000", help="pictures (default: %(default)s)")
    parser.add_argument(
        "--repeats", type=int, help="runs of each side (default: 3, and 1 for more than 10,000 pictures)"
    )
    parser.add_argument("--folder", type=Path, help="where to keep the pictures; by default they are removed")
    parser.add_argument("--step", choices=("decode", "commands", "both"), default="both", help="(default: %(default)s)")
    parser.add_argument("--no-record", action="store_true", help="print only")
    parser.add_argument("--read", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.read:
        begun = time.perf_counter()
        pictures = sum(SIDES[chosen.read](chosen.folder))
        sys.stdout.write(msgspec.json.encode((pictures, time.perf_counter() - begun)).decode())
        return
    try:
        import datasets  # noqa: F401
    except ImportError:
        SIDES.pop("datasets")
    runs: list[Run] = []

    def record() -> None:
        if chosen.no_record:
            return
        again = {(run.side, run.pictures) for run in runs}
        path = RESULTS / "pictures.json"
        earlier = read_record(path, Results).runs if path.exists() else ()
        kept = tuple(run for run in earlier if (run.side, run.pictures) not in again)
        print(write_result("pictures", Results(SIZE, BATCH, (*kept, *runs)), "pillow", "datasets"))

    with tempfile.TemporaryDirectory() as temporary:
        for count in map(int, chosen.counts.split(",")):
            folder = (chosen.folder or Path(temporary)) / str(count)
            generate(folder, count)
            repeats = chosen.repeats or (3 if count <= 10_000 else 1)
            for repeat in range(repeats if chosen.step != "commands" else 0):
                for side in list(SIDES)[:: 1 if repeat % 2 == 0 else -1]:
                    runs.append(run_side(side, folder))
                    print(runs[-1], flush=True)
            if chosen.step != "decode":
                for run in run_commands(folder, count):
                    runs.append(run)
                    print(run, flush=True)
            record()  # after each count, since the larger ones take long


if __name__ == "__main__":
    main()
