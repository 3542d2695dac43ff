"""A hash of a float model's weights. An integer network keeps it to identify the model that it was made from."""

from __future__ import annotations

import hashlib
from typing import Any

__all__ = ["METADATA_KEY", "weights_hash"]

METADATA_KEY = "weights_sha256"
"""Key of an integer network's metadata that holds the hash."""

_WRAPPERS = ("_orig_mod.", "module.")
"""Prefixes that torch.compile and DataParallel add to the names of the wrapped model."""


def weights_hash(model: Any) -> str | None:
    """Return SHA-256 over names, types, shapes and values of a module's parameters and buffers, in hexadecimal digits.

    It does not depend on their order or on their file. None for a model without state_dict.
    """
    state = getattr(model, "state_dict", None)
    state = state() if callable(state) else state
    if not isinstance(state, dict):
        return None
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(((_unwrapped(name), value) for name, value in state.items()), key=lambda pair: pair[0]):
        if isinstance(value, torch.Tensor) and not value.is_meta:
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            values = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def _unwrapped(name: str) -> str:
    for prefix in _WRAPPERS:
        name = name.removeprefix(prefix)
    return name
