"""Print pip constraints for the oldest versions of twoscale's dependencies that pyproject.toml allows.

Packages that only the tests need keep the versions of constraints.txt.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def oldest() -> dict[str, str]:
    """Return the lower bound of each dependency, in the core and in the extras that users install."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    requirements = [*project["dependencies"], *extras["torch"], *extras["onnxruntime"]]
    found = (re.match(r"([\w.-]+)>=([\d.]+)", requirement) for requirement in requirements)
    return {match[1]: match[2] for match in found if match}


def constraints() -> list[str]:
    """Return the lines of a constraints file."""
    bounds = oldest()
    kept = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and line.partition("==")[0].lower() not in bounds
    ]
    return [f"{name}=={version}" for name, version in sorted(bounds.items())] + kept


if __name__ == "__main__":
    print(*constraints(), sep="\n")
