"""Where the time of data-parallel training goes, and why.

>>> config = study_config(model="net", data="digits")     # what this machine can do
>>> run_study(config, Path("scale"))                       # measures, and writes study.json and report.html
>>> study = load_study("scale/study.json")
>>> study.sentence("summary"), study.tables("speedup"), study.charts("communication"), study.forecast(8)

The package has three layers: ``_measure`` times steps, collectives and memory in the ranks of a launch; ``_study``
plans the launches of a study and keeps what they returned; ``_questions`` answers, one module per question. Importing
this package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twoscale.scaling._questions.link_model import Link
    from twoscale.scaling._reading import Study, load_study
    from twoscale.scaling._run import run_study, study_config
    from twoscale.scaling._study.config import GivenLink, StudyConfig

__all__ = ["GivenLink", "Link", "Study", "StudyConfig", "load_study", "run_study", "study_config"]

_HOMES = {
    "GivenLink": "twoscale.scaling._study.config",
    "Link": "twoscale.scaling._questions.link_model",
    "Study": "twoscale.scaling._reading",
    "StudyConfig": "twoscale.scaling._study.config",
    "load_study": "twoscale.scaling._reading",
    "run_study": "twoscale.scaling._run",
    "study_config": "twoscale.scaling._run",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'twoscale.scaling' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
