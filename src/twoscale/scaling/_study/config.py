"""What a scaling study measures: names, numbers and the defaults of this machine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from twoscale._environment import core_count, gpu_names
from twoscale.data import Preprocessing
from twoscale.errors import ConfigurationError
from twoscale.scaling._measure.records import RankGroup

__all__ = ["GivenLink", "StudyConfig"]

_RANKS_PER_CORE = 16
"""More would measure how a machine runs out of memory."""
_LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class GivenLink:
    """A link that is not measured: its latency and bandwidth are given.

    Raises:
        ConfigurationError: a number outside its range.
    """

    latency: float
    """Seconds that a message takes besides its bytes."""
    bytes_per_second: float
    """Of each direction."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.latency) and self.latency >= 0):
            raise ConfigurationError(f"the link's latency is {self.latency} s; expected at least 0")
        if not (math.isfinite(self.bytes_per_second) and self.bytes_per_second > 0):
            raise ConfigurationError(f"the link's rate is {self.bytes_per_second} bytes/s; expected a positive number")


@dataclass(frozen=True)
class StudyConfig:
    """A scaling study; :meth:`for_this_machine` has the defaults.

    Raises:
        ConfigurationError: a number outside its range.
    """

    model: str
    data: str
    device: Literal["cpu", "cuda"]
    batch_sizes: tuple[int, ...]
    """Images per step on one device, ascending."""
    base_batch: int
    """Images per device and step where numbers of ranks are compared and the verdict is given."""
    world_sizes: tuple[int, ...]
    """Ranks on one host, ascending; the first is 1, which all others are compared with."""
    epochs: int
    """Of the runs whose accuracy is compared."""
    accuracy_batches: tuple[int, int]
    """The small and the large batch of these runs."""
    precision: Literal["fp32", "bf16"]
    channels_last: bool
    threads_per_rank: int
    """Of the processor, where numbers of ranks are compared; a single device otherwise has all cores."""
    cores: int
    """Of the processor, all together."""
    sections: tuple[str, ...]
    """The questions that are asked, by name."""
    repeats: int = 3
    """Launches of each timed cell."""
    seeds: int = 3
    """Runs of each way to train at a large batch."""
    tune: bool = True
    """Whether learning rates are chosen on a part of the training images before these runs."""
    separate: bool = False
    """Whether every batch size, and every training run, has a launch of its own; on GPUs a training run always has."""
    tolerance: float = 0.05
    """The largest batch is found to within this share."""
    timeout: float = 900.0
    """Seconds after which a launch is ended."""
    seed: int = 0
    """Decides initial weights, synthetic images, and the order of the cells."""
    grid_batches: tuple[int, ...] = ()
    """Further batches per device at which numbers of ranks are compared."""
    steps: int | None = None
    """Steps of a timed run, and at most so many in each turn of an arm. Default: by the batch size, and 5."""
    link: GivenLink | None = None
    """Another link than the measured one, to forecast steps over."""
    preprocessing: Preprocessing | None = None
    """From picture files to pixels, of pictures of your own."""
    model_args: str | None = None
    """Options of the model, as name=value,name=value."""
    own_step: bool = False
    """Whether the model is a step of the user's own; the base batch is then its loader's."""
    hosts: tuple[int, ...] = (1,)
    """Numbers of hosts, ascending; the first is 1. Each number of ranks runs on each host of each number."""

    def __post_init__(self) -> None:
        for name in ("repeats", "seeds", "epochs", "base_batch", "threads_per_rank"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("batch_sizes", "world_sizes", "accuracy_batches", "hosts"):
            value = getattr(self, name)
            if not value or min(value) < 1 or list(value) != sorted(set(value)):
                shown = ", ".join(map(str, value)) or "empty"
                raise ConfigurationError(f"{name} is {shown}; expected ascending numbers of at least 1")
        if min(self.grid_batches, default=1) < 1 or len({self.base_batch, *self.grid_batches}) <= len(
            self.grid_batches
        ):
            shown = ", ".join(map(str, (self.base_batch, *self.grid_batches)))
            raise ConfigurationError(f"base_batch is {shown}; expected different numbers of at least 1")
        if self.steps is not None and self.steps < 1:
            raise ConfigurationError(f"steps is {self.steps}; expected at least 1")
        if len(self.accuracy_batches) != 2:
            raise ConfigurationError(f"accuracy_batches has {len(self.accuracy_batches)} numbers; expected 2")
        if self.world_sizes[0] != 1:
            raise ConfigurationError(f"world_sizes begins with {self.world_sizes[0]}; expected 1, to compare with")
        if self.hosts[0] != 1:
            raise ConfigurationError(f"hosts begins with {self.hosts[0]}; expected 1, to compare with")
        if self.world_sizes[-1] > _RANKS_PER_CORE * self.cores:
            raise ConfigurationError(
                f"{self.world_sizes[-1]} ranks on {self.cores} core(s); expected at most {_RANKS_PER_CORE} per core"
            )
        if not 0 <= self.seed <= _LARGEST_SEED:
            raise ConfigurationError(f"seed is {self.seed}; expected 0 to {_LARGEST_SEED}")
        if not self.tolerance >= 0:
            raise ConfigurationError(f"tolerance is {self.tolerance}; expected at least 0")
        if not self.timeout > 0:
            raise ConfigurationError(f"timeout is {self.timeout}; expected a positive number of seconds")

    @property
    def rank_batches(self) -> tuple[int, ...]:
        """Batches per device at which numbers of ranks are compared, ascending."""
        return tuple(sorted({self.base_batch, *self.grid_batches}))

    @property
    def groups(self) -> tuple[RankGroup, ...]:
        """All numbers of ranks, on one host and on several, ascending."""
        return tuple(sorted({RankGroup(n * hosts, hosts) for n in self.world_sizes for hosts in self.hosts}))

    @classmethod
    def for_this_machine(
        cls, device: Literal["cpu", "cuda"] | None = None, *, sections: tuple[str, ...], **given: Any
    ) -> StudyConfig:
        """Return the study that this machine can do, where nothing else is given.

        On GPUs the lab's: ResNet-18, CIFAR-10, batches of 32 to 8,192, 1, 2 and 4 ranks as far as there are GPUs. On a
        processor one that two cores finish in a few minutes: the small CNN, digits, 1 and 2 ranks.

        Args:
            device: Default: cuda where there is a GPU.
            sections: the questions that are asked.
            given: other fields; None is as if not given.

        Raises:
            ConfigurationError: a GPU is asked for where there is none, more ranks than GPUs, or a number outside its
                range.
        """
        gpus = 0 if device == "cpu" else len(gpu_names())
        if device == "cuda" and not gpus:
            raise ConfigurationError("device is cuda, but PyTorch finds no GPU; use --device cpu")
        values: dict[str, Any]
        if gpus:
            values = {
                "model": "resnet18", "data": "cifar10", "device": "cuda",
                "batch_sizes": tuple(32 << i for i in range(9)),
                "base_batch": 128, "grid_batches": (32, 512), "epochs": 8,
                "world_sizes": tuple(n for n in (1, 2, 4) if n <= gpus),
                "accuracy_batches": (128, 1024), "precision": "bf16", "channels_last": True,
            }  # fmt: skip
        else:
            values = {
                "model": "net", "data": "digits", "device": "cpu", "batch_sizes": (32, 128, 512), "base_batch": 64,
                "grid_batches": (32, 128), "world_sizes": (1, 2), "epochs": 3, "accuracy_batches": (16, 64),
                "precision": "fp32", "channels_last": False, "seeds": 5,
            }  # fmt: skip
        if given.get("base_batch") is not None:
            values["grid_batches"] = ()  # those of another base batch
        values |= {name: value for name, value in given.items() if value is not None}
        if min(values["world_sizes"], default=0) > 1:
            values["world_sizes"] = (1, *values["world_sizes"])
        cores = core_count()
        most = max(values["world_sizes"], default=1)
        if gpus and most > gpus:
            raise ConfigurationError(f"{most} ranks on {gpus} GPU(s): NCCL needs one GPU per rank; choose fewer")
        threads = max(1, cores // max(1, most))
        return cls(sections=sections, **{"threads_per_rank": threads, "cores": cores, **values})
