"""Launching this folder's workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.forked import forked_ranks
from tests.once import once_in
from tests.scaling.plants import real_time
from twoscale.scaling._measure.launch import Host, launch
from twoscale.scaling._measure.records import Outcome

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def ahead() -> tuple[str, ...]:
    """The command that puts a process ahead of whatever else this machine does, where that is allowed."""
    return real_time()


@pytest.fixture(scope="session")
def ranks(ahead: tuple[str, ...]) -> Callable[..., Outcome[Any]]:
    """Launch a function of ``workers.py``: ``ranks("name", arguments, world_size=2)``; one thread a rank."""

    def start(name: str, arguments: dict[str, Any] | None = None, **options: Any) -> Outcome[Any]:
        settings: dict[str, Any] = {"world_size": 2, "threads_per_rank": 1, "timeout": 300.0, "hosts": (Host(ahead),)}
        settings |= options
        settings["environment"] = {"PYTHONPATH": str(ROOT), **options.get("environment", {})}
        return launch(f"tests.scaling.workers:{name}", arguments, **settings)

    return start


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[], Any]], Any]:
    """Run a measurement once, however many test processes want it, and one at a time: ``once(name, measure)``.

    Returns its result as plain JSON values.
    """

    def run(name: str, measure: Callable[[], Any]) -> Any:
        return once_in(tmp_path_factory, name, measure)

    return run


@pytest.fixture(scope="session")
def measured(ranks: Callable[..., Outcome[Any]], once: Callable[[str, Callable[[], Any]], Any]) -> Callable[..., Any]:
    """Launch a function of ``workers.py`` once, and return its result: ``measured("name", arguments, ...)``."""

    def result(name: str, arguments: dict[str, Any] | None = None, **options: Any) -> Any:
        def measure() -> Any:
            with forked_ranks():
                outcome = ranks(name, arguments, **options)
            assert outcome.ok, f"{outcome.message}\n{outcome.log_tail}"
            return outcome.result

        return once(name, measure)

    return result
