import os

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
        ({"epochs": 0}, "epochs is 0; expected at least 1"),
        ({"batch_size": 0}, "batch_size is 0; expected at least 1"),
        ({"seed": -1}, "seed is -1; expected at least 0"),
        ({"seed": 2**63}, r"expected less than 2\*\*63"),
        ({"log_every": 0}, "log_every is 0; expected at least 1"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0; expected at least 1"),
        ({"threads": 0}, "threads is 0; expected at least 1"),
        ({"lr": 0.0}, "lr is 0.0; expected a positive number"),
        ({"lr": float("nan")}, "lr is nan; expected a positive number"),
        ({"momentum": 1.0}, "momentum is 1.0; expected at least 0 and less than 1"),
    ],
)
def test_numbers_outside_their_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        TrainConfig(**options)  # type: ignore[arg-type]
