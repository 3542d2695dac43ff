"""The random numbers of a run, which are drawn by what is random in a model, such as dropout."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["put_random_state", "random_state", "seeded"]


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators of the processor and of ``device`` for the block; leave them as they were before it."""
    with torch.random.fork_rng(devices=_gpu(device)):
        torch.default_generator.manual_seed(seed)
        for gpu in _gpu(device):
            torch.cuda.default_generators[gpu].manual_seed(seed)
        yield


def random_state(device: torch.device) -> torch.Tensor:
    """Return the state of the processor's generator, and after it that of the GPU's; uint8."""
    return torch.cat([torch.get_rng_state(), *(torch.cuda.get_rng_state(gpu) for gpu in _gpu(device))])


def put_random_state(state: torch.Tensor, device: torch.device) -> None:
    """Put back what :func:`random_state` gave; a state from a processor leaves the GPU's as it is."""
    mine, gpus = state.tensor_split([len(torch.get_rng_state())])
    torch.set_rng_state(mine)
    for gpu in _gpu(device) if len(gpus) else ():
        torch.cuda.set_rng_state(gpus, gpu)


def _gpu(device: torch.device) -> list[int]:
    if device.type != "cuda":
        return []
    return [torch.cuda.current_device() if device.index is None else device.index]
