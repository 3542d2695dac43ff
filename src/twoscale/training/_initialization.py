"""Initial weights that a recipe asks for."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from twoscale.data import Dataset, normalize
from twoscale.errors import ConfigurationError

__all__ = ["whiten", "zero_init_residual"]

_IMAGES = 5000
_EPSILON = 5e-4
"""Added to the variances, as in airbench. Patches of photographs hardly vary in some directions."""


def zero_init_residual(model: nn.Module) -> int:
    """Set the last BatchNorm's weights of each residual block to 0 (Goyal et al. 2017, section 5.1).

    Returns:
        The number of blocks.

    Raises:
        ConfigurationError: the model has no such blocks.
    """
    blocks = [module for module in model.modules() if hasattr(module, "shortcut_of")]
    for block in blocks:
        norms = [child for name, child in block.named_children() if name.startswith("bn")]
        nn.init.zeros_(norms[-1].weight)  # type: ignore[arg-type]
    if not blocks:
        raise ConfigurationError(f"zero_init_residual: {type(model).__name__} has no residual blocks; leave it out")
    return len(blocks)


def whiten(model: nn.Module, dataset: Dataset) -> None:
    """Initialize the first convolution so that it maps patches of training images to uncorrelated values of variance
    1.

    Its filters become the eigenvectors of the patches' covariance, each over its standard deviation, and their
    negatives, the largest variance first. Remaining filters are not changed. After Page 2018 ("How to train your
    ResNet"), but the convolution stays trainable.

    Raises:
        ConfigurationError: the model does not begin with a plain convolution over the images' channels.
    """
    channels = dataset.train.images.shape[1]
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or first.in_channels != channels or first.groups != 1:
        raise ConfigurationError(f"whiten: {type(model).__name__} does not begin with a convolution; leave it out")
    images = normalize(torch.from_numpy(np.asarray(dataset.train.images[:_IMAGES])), dataset.mean, dataset.std)
    patches = nn.functional.unfold(images, first.kernel_size)  # (n, channels · height · width, places)
    flat = patches.transpose(0, 1).flatten(1).double()
    variances, vectors = torch.linalg.eigh(flat @ flat.T / flat.shape[1])
    rows = (vectors / (variances + _EPSILON).sqrt()).T.flip(0)
    filters = torch.cat([rows, -rows])[: first.out_channels]
    with torch.no_grad():
        first.weight[: len(filters)] = filters.view(-1, *first.weight.shape[1:]).to(first.weight)
