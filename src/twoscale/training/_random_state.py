"""The random state of a run, for random parts of a model such as dropout."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["put_random_state", "random_state", "seeded"]


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators of the processor and of ``device`` for the block, and restore them afterwards."""
    with torch.random.fork_rng(devices=_gpu(device)):
        torch.default_generator.manual_seed(seed)
        for gpu in _gpu(device):
            torch.cuda.default_generators[gpu].manual_seed(seed)
        yield


def random_state(device: torch.device) -> torch.Tensor:
    """Return the state of the processor's generator, followed by that of the GPU's, as uint8."""
    return torch.cat([torch.get_rng_state(), *(torch.cuda.get_rng_state(gpu) for gpu in _gpu(device))])


def put_random_state(state: torch.Tensor, device: torch.device) -> None:
    """Restore a state from :func:`random_state`. A state without a GPU's does not change the GPU's."""
    mine, gpus = state.tensor_split([len(torch.get_rng_state())])
    torch.set_rng_state(mine)
    for gpu in _gpu(device) if len(gpus) else ():
        torch.cuda.set_rng_state(gpus, gpu)


def _gpu(device: torch.device) -> list[int]:
    if device.type != "cuda":
        return []
    return [torch.cuda.current_device() if device.index is None else device.index]
