from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.forked import forked_ranks
from tests.once import once_in
from tests.training.made_up import dataset_of
from twoscale.data import Dataset
from twoscale.scaling._measure.launch import launch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def dataset() -> Dataset:
    """90 training and 37 test images: the last mini-batch of 4 has 2, the last of 100 is not full."""
    return dataset_of(90, 37)


@pytest.fixture(scope="session")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Run a function of ``workers.py`` in two processes, once a session; return what it gave on the first."""

    def run(name: str, arguments: dict[str, Any] | None = None) -> Any:
        def measure() -> Any:
            with forked_ranks():
                outcome = launch(
                    f"tests.training.workers:{name}", arguments, world_size=2, threads_per_rank=1, timeout=300.0,
                    environment={"PYTHONPATH": str(ROOT)},
                )  # fmt: skip
            assert outcome.ok, f"{outcome.message}\n{outcome.log_tail}"
            return outcome.result

        return once_in(tmp_path_factory, f"training-{name}", measure)

    return run
