"""The configuration of a training run."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from typing import Literal

from twoscale._environment import core_count
from twoscale.data import Preprocessing
from twoscale.errors import ConfigurationError

__all__ = ["TrainConfig", "Views"]

Views = Literal["one", "mirrored", "shifted", "selective"]
"""Of test images."""

_EPOCHS = 2
_EPOCHS_OF_SMALL_SETS = {"digits": 12}
"""Epochs of digits, whose 1,437 images need more than 2 passes at the lab's learning rate."""
_SMALL_BATCH = 16
"""For smaller batches, a second thread costs more than it gains."""

_AT_LEAST = {
    "epochs": 1, "batch_size": 1, "seed": 0, "log_every": 1, "checkpoint_every": 1, "threads": 1, "base_batch": 1,
    "accumulation": 1, "evaluate_every": 1,
    "crop": 0, "warmup_epochs": 0, "warmup_steps": 0, "weight_decay": 0,
}  # fmt: skip
_AT_MOST = dict.fromkeys(_AT_LEAST, 2**63 - 1) | {
    "epochs": 10**9,
    "warmup_epochs": 10**9,
    "threads": 1024,
    "crop": 127,
}
_POSITIVE = ("lr", "trust_coefficient", "epsilon", "decay", "clip_norm", "bias_lr", "head_lr")
_OF_QUANTIZE = {"rounding": "feedback", "distillation": 0.0}
"""Options that need quantize, with their defaults."""
_BELOW_ONE = ("momentum", "beta2", "label_smoothing")


@dataclass(frozen=True)
class TrainConfig:
    """A training run; the defaults are the quantization lab's recipe.

    Raises:
        ConfigurationError: a number outside its range.
    """

    model: str = "net"
    """Name of the model, or where the user's own stands: FILE.py:NAME or MODULE:NAME, whose code then runs."""
    model_args: str | None = None
    """Options of the model, as name=value,name=value."""
    data: str = "digits"
    """Name of the data set; or pictures of your own: a folder with a folder per class, a .npz, .npy or .parquet file,
    or FILE.py:FUNCTION, whose code then runs."""
    preprocessing: Preprocessing | None = None
    """From picture files to pixels; train takes it from the data set."""
    epochs: int | None = None
    """Passes over the training images. Default: 12 for digits, which are few; else 2."""
    batch_size: int = 4
    """Images of one update, over all processes and accumulated parts together; the last update of an epoch may have
    fewer."""
    lr: float = 0.001
    """Learning rate, of batches of base-batch images where that is given."""
    momentum: float = 0.9
    """Momentum of SGD, LARS and Muon, β₁ of AdamW and LAMB; 0 up to but not including 1."""
    seed: int = 0
    """Decides initial weights, the order of the images, and crops and flips."""
    log_every: int = 2000
    """Mini-batches between two entries of the loss."""
    checkpoint_every: int | None = None
    """Mini-batches between checkpoints, besides those at the end of each epoch."""
    step: Literal["auto", "captured", "compiled", "cuda-graph", "eager"] = "auto"
    """How steps run. eager: op by op, through module and autograd. captured: the ops recorded once, then replayed
    alone, the same bits. compiled: compiled, which takes tens of seconds, and on a GPU then replayed as a CUDA graph.
    cuda-graph: many eager steps recorded in one graph, GPUs only. auto: what pays in runs of this length."""
    threads: int | None = None
    """Threads of each operation in each process. Default: 1 for batches below 16; else all cores, shared by the
    processes of this machine."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it runs. auto: a GPU where there is one."""
    optimizer: Literal["sgd", "lars", "lamb", "adamw", "muon"] = "sgd"
    """The update rule: SGD with momentum, LARS (You et al. 2017), LAMB (You et al. 2019), AdamW, or Muon (Jordan et
    al. 2024) for filters and matrices with SGD for biases and the last layer."""
    nesterov: bool = False
    """Nesterov's momentum, SGD only."""
    weight_decay: float = 0.0
    """Weight decay: added to the gradient by SGD and LARS, apart from it by AdamW, LAMB and Muon."""
    decay_norm_and_bias: bool = False
    """Decay the weights of BatchNorm and biases too, as torch.optim does."""
    adapt_norm_and_bias: bool = False
    """Give BatchNorm's weights and biases a layer-wise rate in LARS and LAMB too; else their ratio is 1."""
    trust_coefficient: float = 0.001
    """η of LARS."""
    beta2: float = 0.999
    """β₂ of AdamW and LAMB."""
    epsilon: float = 1e-8
    """ε of AdamW and LAMB."""
    bias_lr: float = 1.0
    """Learning rate of BatchNorm's biases as a multiple of the others'."""
    head_lr: float = 1.0
    """Learning rate of the last layer as a multiple of the others'."""
    normalize_filters: bool = False
    """With Muon, keep the norm of each layer's weights at the square root of its outputs, for layers whose scale
    BatchNorm takes out."""
    freeze: tuple[float, ...] = ()
    """Where the first layer, the second and so on stop training, in fractions of the run. Default: none does."""
    schedule: Literal["constant", "step", "cosine", "linear"] = "constant"
    """The learning rate after the warm-up: constant; step: times decay at each milestone; cosine or linear: down to
    0 at the end."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Where step lowers the learning rate, in fractions of the run."""
    decay: float = 0.1
    """What step multiplies the learning rate with."""
    base_batch: int | None = None
    """Linear scaling (Goyal et al. 2017): lr is meant for this batch size, and is multiplied by batch-size over it; a
    warm-up then starts from lr. Default: lr is used as it is, and a warm-up starts near 0."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises, update by update."""
    warmup_steps: int = 0
    """Updates over which it rises at least."""
    clip_norm: float | None = None
    """Largest norm of all gradients together; larger ones are scaled down to it. Default: as they are."""
    accumulation: int = 1
    """Parts in which each process computes its share of a batch, one after the other: less memory, the same update
    but for BatchNorm."""
    label_smoothing: float = 0.0
    """Label smoothing, 0 up to but not including 1."""
    crop: int = 0
    """Pixels by which images are shifted at most: padded on every side and cropped at random."""
    fill: Literal["black", "reflect"] = "black"
    """What comes in at the borders of shifted images: black, or the image mirrored there."""
    flip: Literal["none", "random", "alternating"] = "none"
    """Mirroring: random: half of the images of every epoch; alternating: each image every other epoch."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: autocast to bfloat16; weights, optimizer and BatchNorm stay float32."""
    channels_last: bool = False
    """Keep channels innermost in memory."""
    sync_batch_norm: bool = False
    """BatchNorm over the batch of all processes instead of each process's share."""
    zero_init_residual: bool = False
    """Let each residual block begin as its shortcut: the last BatchNorm's weights start at 0."""
    whiten: bool = False
    """Begin with a first convolution that whitens the patches of the training images."""
    start: str | None = None
    """Weights to begin with, of the same model: .safetensors, .pt or .pth. Default: random ones."""
    mean: tuple[float, ...] = ()
    """Mean per channel, of pixels / 255, that images are normalized with. Default: what the weights of --from expect,
    if they are twoscale's or the model's published ones; else 0.5."""
    std: tuple[float, ...] = ()
    """Standard deviation likewise."""
    quantize: str | None = None
    """Train the integer-only network of so many bits, such as W4A4: its weights, biases and scales, so that
    network.onnx has the accuracy that training measures. Begin with trained weights."""
    edge_bits: int | None = None
    """With quantize, bits of the weights of the first and the last layer, and of what the last one reads; papers keep
    8. Default: those of the other layers."""
    rounding: Literal["feedback", "learned"] = "feedback"
    """With quantize, how the network that training begins with is rounded: as by default, or learned from up to 10,000
    training images, which takes minutes and matters below 4 bits."""
    distillation: float = 0.0
    """With quantize, share of the loss that compares with the float network's predictions instead of the labels: the
    divergence at temperature 4 (Hinton et al. 2015), 0 to 1."""
    evaluate_every: int = 1
    """Epochs between two measurements of the test accuracy; the last epoch has one in any case."""
    test_views: Views = "one"
    """What test images are judged by: their logits; mirrored: the mean of those of each image and its mirror image;
    shifted: of both, and of both shifted by a pixel either way along the diagonal; selective: mirrored, and shifted
    only for images whose two likeliest classes are less than 0.5 apart in probability."""

    def __post_init__(self) -> None:
        def reject(name: str, expected: str) -> None:
            raise ConfigurationError(f"{name} is {getattr(self, name)}; expected {expected}")

        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                reject(name, f"at least {least}")
            if value is not None and value > _AT_MOST[name]:
                reject(name, f"at most {_AT_MOST[name]}")
        if self.accumulation > self.batch_size:
            reject("accumulation", f"at most the batch size, {self.batch_size}")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                reject(name, "a positive number")
        for name in _BELOW_ONE:
            if not 0 <= getattr(self, name) < 1:
                reject(name, "at least 0 and less than 1")
        if not all(0 < place < 1 for place in self.milestones) or list(self.milestones) != sorted(set(self.milestones)):
            reject("milestones", "increasing fractions between 0 and 1")
        if not all(0 < place < 1 for place in self.freeze) or list(self.freeze) != sorted(self.freeze):
            reject("freeze", "fractions between 0 and 1 that do not decrease")
        if not 0 <= self.distillation <= 1:
            reject("distillation", "0 to 1")
        if self.quantize is None:
            for name, default in _OF_QUANTIZE.items():
                if getattr(self, name) != default:
                    raise ConfigurationError(f"{name} is for integer networks; leave it out, or give quantize too")
        if not all(map(math.isfinite, self.mean)):
            reject("mean", "finite numbers")
        if not all(math.isfinite(value) and value > 0 for value in self.std):
            reject("std", "positive numbers")
        if self.normalize_filters and self.optimizer != "muon":
            raise ConfigurationError("normalize_filters is for muon; leave it out, or choose that optimizer")
        if self.nesterov and (self.optimizer != "sgd" or not self.momentum):
            raise ConfigurationError("nesterov is for sgd with momentum; leave it out, or choose another optimizer")

    def resolved(self) -> TrainConfig:
        """Return the configuration with every default that depends on others, or on the machine, filled in."""
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return dataclasses.replace(
            self,
            epochs=self.epochs or _EPOCHS_OF_SMALL_SETS.get(self.data, _EPOCHS),
            threads=self.threads or (1 if self.batch_size < _SMALL_BATCH else max(1, core_count() // ranks_here)),
        )
