"""Launching this folder's workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from twoscale.scaling.launch import launch
from twoscale.scaling.records import Outcome

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def ranks() -> Callable[..., Outcome]:
    """Launch a function of ``workers.py``: ``ranks("name", arguments, world_size=2)``; one thread a rank."""

    def start(name: str, arguments: dict[str, Any] | None = None, **options: Any) -> Outcome:
        settings: dict[str, Any] = {"world_size": 2, "threads_per_rank": 1, "timeout": 300.0, **options}
        settings["environment"] = {"PYTHONPATH": str(ROOT), **settings.get("environment", {})}
        return launch(f"tests.scaling.workers:{name}", arguments, **settings)

    return start
