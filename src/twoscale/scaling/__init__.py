"""Where the time of data-parallel training goes: measurements whose truth can be checked.

    launch        fresh processes for one measurement; failures are recorded outcomes
    workload      model, optimizer step and batches of a measurement, without the training loop
    clocks        steps timed over ranks; an epoch's time, throughput and memory
    arms          compute, wrapper, exposed communication, overlap, skew, data wait
    ledger        what DDP puts on the wire, predicted and observed to the byte
    bandwidth     algbw and busbw of collectives
    replicas      would gradients alone do; the sampler's orders
    peak          the device's measured matrix rate; a step's floating-point operations
    capacity      the largest batch that fits
    forecast      steps on more ranks or at other rates, and what may not be forecast
    records       what all of these return
    study         all of it in cells: config, cells, jobs (in the ranks), analysis, verdict, results; sentences, tables,
                  figures and page show them, progress tells how it goes
    statistics    medians, and intervals that state their coverage

Each measurement is a function that runs inside ranks that exist already, and, named "module:run", the target of a
launch. Importing this package, ``launch``, ``capacity``, ``forecast`` and ``records`` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twoscale.scaling._measure.records import Link
    from twoscale.scaling._reading import Study, load_study
    from twoscale.scaling._study.config import StudyConfig
    from twoscale.scaling._study.run import run_study

__all__ = ["Link", "Study", "StudyConfig", "load_study", "run_study"]

_HOMES = {
    "Link": "twoscale.scaling._measure.records",
    "Study": "twoscale.scaling._reading",
    "StudyConfig": "twoscale.scaling._study.config",
    "load_study": "twoscale.scaling._reading",
    "run_study": "twoscale.scaling._study.run",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'twoscale.scaling' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
