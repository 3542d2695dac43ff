"""Data sets of uint8 images: named ones, checked by content hash, and pictures of your own; batches, normalization.

Nothing here needs torch. Functions on arrays also take tensors.
"""

from twoscale._codegen.log_mel import LogMel
from twoscale._files import cache_dir
from twoscale.data._dataset import CIFAR10_MEAN, CIFAR10_STD, LAB_MEAN, LAB_STD, Dataset, Split
from twoscale.data._folder import image_folder
from twoscale.data._pictures import Preprocessing
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
from twoscale.data._streamed import StreamedImages

__all__ = [
    "CIFAR10_MEAN",
    "CIFAR10_STD",
    "LAB_MEAN",
    "LAB_STD",
    "Dataset",
    "Description",
    "LogMel",
    "Preprocessing",
    "Split",
    "StreamedImages",
    "augmentation",
    "batches",
    "cache_dir",
    "crop_flip",
    "describe",
    "epoch_order",
    "fetch",
    "image_folder",
    "load",
    "names",
    "normalize",
    "normalizer",
    "random_crop_flip",
]
