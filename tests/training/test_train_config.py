import os
from typing import Any

import pytest

from twoscale.errors import ConfigurationError
from twoscale.training import TrainConfig


def test_defaults_are_the_lab_s_recipe() -> None:
    config = TrainConfig(data="cifar10").resolved()
    assert (config.epochs, config.batch_size, config.lr, config.momentum) == (2, 4, 0.001, 0.9)
    assert config.log_every == 2000
    assert config.threads == 1
    assert TrainConfig(data="digits").resolved().epochs == 12
    assert TrainConfig(data="digits", epochs=3, threads=2).resolved() == TrainConfig(epochs=3, threads=2)
    assert TrainConfig(batch_size=16).resolved().threads == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 10**12}, "epochs is 1000000000000; expected at most 1000000000"),
        ({"batch_size": 10**400}, "expected at most 9223372036854775807"),
        ({"warmup_epochs": float("inf")}, "warmup_epochs is inf; expected at most 1000000000"),
        ({"epochs": 0}, "epochs is 0; expected at least 1"),
        ({"batch_size": 0}, "batch_size is 0; expected at least 1"),
        ({"seed": -1}, "seed is -1; expected at least 0"),
        ({"seed": 2**63}, "expected at most 9223372036854775807"),
        ({"log_every": 0}, "log_every is 0; expected at least 1"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0; expected at least 1"),
        ({"threads": 0}, "threads is 0; expected at least 1"),
        ({"threads": 100_000}, "threads is 100000; expected at most 1024"),
        ({"crop": 128}, "crop is 128; expected at most 127"),
        ({"accumulation": 5}, "accumulation is 5; expected at most the batch size, 4"),
        ({"lr": 0.0}, "lr is 0.0; expected a positive number"),
        ({"lr": float("nan")}, "lr is nan; expected a positive number"),
        ({"momentum": 1.0}, "momentum is 1.0; expected at least 0 and less than 1"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1; expected at least 0"),
        ({"warmup_epochs": float("nan")}, "warmup_epochs is nan; expected at least 0"),
        ({"base_batch": 0}, "base_batch is 0; expected at least 1"),
        ({"accumulation": 0}, "accumulation is 0; expected at least 1"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0; expected a positive number"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0; expected at least 0 and less than 1"),
        ({"milestones": (0.7, 0.5)}, r"milestones is \(0.7, 0.5\); expected increasing fractions between 0 and 1"),
        ({"nesterov": True, "optimizer": "lars"}, "nesterov is for sgd with momentum"),
    ],
)
def test_numbers_outside_their_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        TrainConfig(**options)
