"""A hash of a float model's weights. An integer network keeps it to identify the model that it was made from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

__all__ = ["METADATA_KEY", "has_same_weights", "weights_hash", "weights_metadata"]

METADATA_KEY = "weights_sha256"
"""Key of an integer network's metadata that holds the hash."""

_FORM_KEY = "weights_form"
"""Key of the form of those weights, where their names are not those of a torch model."""

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
            values = value.detach().cpu().contiguous()
            flat = values.as_strided((values.numel(),), (1,))  # a single value may have the stride 0, also contiguous
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weights_metadata(model: Any) -> dict[str, str]:
    """Return what an integer network records of the model that it is made from; empty without state_dict."""
    found = weights_hash(model)
    form = getattr(model, _FORM_KEY, None)
    if found is None:
        return {}
    return {METADATA_KEY: found} | ({} if form is None else {_FORM_KEY: form})


def has_same_weights(metadata: Mapping[str, Any], model: Any) -> bool | None:
    """Return whether a model has the weights that metadata records.

    None if nothing is recorded, for a model without state_dict, and for weights in another form, such as an ONNX file
    that was exported from the recorded model.
    """
    if METADATA_KEY not in metadata or metadata.get(_FORM_KEY) != getattr(model, _FORM_KEY, None):
        return None
    found = weights_hash(model)
    return None if found is None else found == metadata[METADATA_KEY]


def _unwrapped(name: str) -> str:
    for prefix in _WRAPPERS:
        name = name.removeprefix(prefix)
    return name
