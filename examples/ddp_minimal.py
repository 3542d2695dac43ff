"""DistributedDataParallel done right, in one file. Copy it and replace the model and the data.

    torchrun --standalone --nproc-per-node=2 examples/ddp_minimal.py --out run      # several processes
    python examples/ddp_minimal.py --out run                                        # one process, the same weights
    ... --resume                                                                    # continue from the last epoch

Each of the comments "Why:" names a mistake that is easy to make, and that no error message reports.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from twoscale import data


def create_model() -> nn.Module:
    """Return your model instead."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 5, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 5, stride=2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(16 * 5 * 5, 10)),
    )


def epoch_batches(samples: int, batch_size: int, epoch: int, rank: int, world: int) -> list[tuple[Tensor, int]]:
    """Return (indices of this rank, size of the whole batch) for each batch of an epoch.

    Why: the order depends on the epoch (with DistributedSampler: ``set_epoch``), and is the same on every rank. No
    sample is visited twice or left out; DistributedSampler repeats some so that shares are even.
    """
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(epoch))
    return [(batch[rank::world], len(batch)) for batch in order.split(batch_size)]


def train_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, split: tuple[Tensor, Tensor], batches: list[tuple[Tensor, int]]
) -> None:
    """Update the model once per batch."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    model.train()
    for mine, whole in batches:
        # Why: a rank without a sample in the last batch must still take part in the all_reduce, or the others hang.
        images, labels = (tensor[mine if len(mine) else slice(0, 1)] for tensor in split)
        total = F.cross_entropy(model(images), labels, reduction="sum") * (len(mine) > 0)
        # Why: DDP averages gradients over ranks. The mean over uneven shares needs the sum and the whole batch's size.
        optimizer.zero_grad()
        (total * world / whole).backward()
        optimizer.step()


@torch.inference_mode()
def accuracy(model: nn.Module, split: tuple[Tensor, Tensor], rank: int, world: int) -> float:
    """Return the share of right answers; each rank looks at its part of the images."""
    model.eval()
    images, labels = (tensor[rank::world] for tensor in split)
    counts = torch.tensor([(model(images).argmax(1) == labels).sum().item(), len(labels)], device=images.device)
    # Why: ranks have different shares. Sums are added; a mean of the ranks' accuracies would weigh them wrongly.
    if world > 1:
        dist.all_reduce(counts)
    return counts[0].item() / counts[1].item()


def save(file: Path, model: nn.Module, optimizer: torch.optim.Optimizer, epochs: int) -> None:
    """Why: one rank writes, into a new file that replaces the old one when it is whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epochs": epochs}, new)
    new.replace(file)


def main() -> None:
    """Train on the embedded digits, as one rank of several or alone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64, help="of all ranks together")
    parser.add_argument("--resume", action="store_true")
    chosen = parser.parse_args()

    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else "cpu"
    if world > 1:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    torch.manual_seed(0)
    digits = data.load("digits")
    parts = [[torch.from_numpy(a).to(device) for a in (one.images, one.labels)] for one in (digits.train, digits.test)]
    train, test = [(data.normalize(images, digits.mean, digits.std), labels) for images, labels in parts]
    model = create_model().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    file, begin = chosen.out / "checkpoint.pt", 0
    if chosen.resume:
        # Why: every rank loads it onto its own device; weights_only refuses a file that would run code.
        state = torch.load(file, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        begin = state["epochs"]
    wrapped = DistributedDataParallel(model) if world > 1 else model
    for epoch in range(begin, chosen.epochs):
        train_epoch(wrapped, optimizer, train, epoch_batches(len(train[1]), chosen.batch_size, epoch, rank, world))
        top1 = accuracy(model, test, rank, world)
        if rank == 0:
            save(file, model, optimizer, epoch + 1)  # Why: of ``model``, whose names have no prefix "module."
            print(f"epoch {epoch + 1} of {chosen.epochs}: test accuracy {top1:.2%}", flush=True)
    if world > 1:
        # Why: a rank that leaves early looks to the others like one that failed. Not in a ``finally``: after an
        # exception the launcher ends all ranks, and waiting for them here would hang.
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
