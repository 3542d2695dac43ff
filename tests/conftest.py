"""Settings for every test."""

from __future__ import annotations

import gc
import os
import shutil
from pathlib import Path

import hypothesis
import pytest

from tests import sweep
from twoscale._environment import collect_seldom

# Other programs decide how long an example takes.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

# Tests run in parallel, one process per core. With more threads than cores, OpenMP's waiting threads starve each
# other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Tests of the C itself choose how to compile it. Others only need it to be right.
if shutil.which("cc") is not None:
    os.environ["CC"] = str(Path(__file__).with_name("quick_cc"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--sweep``."""
    parser.addoption(
        "--sweep",
        choices=["sample", "all"],
        default="sample",
        help="cases of long sweeps: a fixed sample, or all",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Let test modules know before they are imported."""
    collect_seldom()
    os.environ[sweep.VARIABLE] = config.getoption("--sweep")


def pytest_collection_finish() -> None:
    """Leave out what lives until the end, torch and the tests, when Python looks for unreachable cycles."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out cases of tests with the mark ``sweep``, unless a case is asked for by its name."""
    if sweep.whole():
        return
    cases: dict[tuple[Path, str], list[pytest.Function]] = {}
    named = {argument for argument in config.args if "[" in argument}
    for item in items:
        if (
            isinstance(item, pytest.Function)
            and item.get_closest_marker("sweep") is not None
            and hasattr(item, "callspec")
            and not any(item.nodeid.endswith(Path(one).name) for one in named)
        ):
            cases.setdefault((item.path, item.originalname), []).append(item)
    out: set[pytest.Item] = set()
    for found in cases.values():
        mark = found[0].get_closest_marker("sweep")
        assert mark is not None
        if mark.args:
            kept = set(sweep.some(range(len(found)), *mark.args))
        else:
            # Cases share the objects that they are parametrized with, and not all of these can be hashed.
            kept = sweep.covering([frozenset((n, id(v)) for n, v in item.callspec.params.items()) for item in found])
        out.update(item for number, item in enumerate(found) if number not in kept)
    config.hook.pytest_deselected(items=[item for item in items if item in out])
    items[:] = [item for item in items if item not in out]
