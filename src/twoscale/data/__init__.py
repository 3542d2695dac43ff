"""Named data sets as uint8 arrays in memory, checked by content hash; shuffling, batches, normalization.

Nothing here needs torch, except that tensors may be given where arrays may.
"""

from twoscale._files import cache_dir
from twoscale.data._dataset import CIFAR10_MEAN, CIFAR10_STD, LAB_MEAN, LAB_STD, Dataset, Split
from twoscale.data._pipeline import (
    augmentation,
    batches,
    crop_flip,
    epoch_order,
    normalize,
    normalizer,
    random_crop_flip,
)
from twoscale.data._registry import Description, describe, fetch, load, names

__all__ = [
    "CIFAR10_MEAN",
    "CIFAR10_STD",
    "LAB_MEAN",
    "LAB_STD",
    "Dataset",
    "Description",
    "Split",
    "augmentation",
    "batches",
    "cache_dir",
    "crop_flip",
    "describe",
    "epoch_order",
    "fetch",
    "load",
    "names",
    "normalize",
    "normalizer",
    "random_crop_flip",
]
