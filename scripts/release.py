"""Build the sdist and the wheel, check both in fresh environments, and print the commands that publish them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from twoscale._environment import VERSION

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
CHECK = """
import importlib.metadata
import twoscale
from twoscale import data
assert twoscale.__version__ == importlib.metadata.version("twoscale") == "{version}"
assert all(getattr(twoscale, name) for name in twoscale.__all__)
assert len(data.load("digits").test.labels) == 360
"""


def run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, cwd=ROOT)


def python_of(folder: Path) -> Path:
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python"


def check(distribution: Path) -> None:
    """Install a distribution into an empty environment and use it there."""
    with tempfile.TemporaryDirectory() as folder:
        python = python_of(Path(folder))
        pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        run(*pip, "--constraint", ROOT / "constraints.txt", distribution)
        run(python, "-W", "error", "-c", CHECK.format(version=VERSION))
        run(python.with_name("twoscale"), "data", "list")


def main() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    if not re.search(rf"^## \[{re.escape(VERSION)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE):
        sys.exit(f"CHANGELOG.md has no dated section for {VERSION}, the version in src/twoscale/_environment.py")
    shutil.rmtree(DIST, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        python = python_of(Path(folder))
        run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "build", "twine")
        run(python, "-m", "build", "--outdir", DIST, ROOT)  # the wheel is built from the sdist
        distributions = sorted(DIST.iterdir())
        run(python, "-m", "twine", "check", "--strict", *distributions)
    for distribution in distributions:
        check(distribution)
        print(f"checked {distribution.name}, {distribution.stat().st_size:,} bytes")
    print(f"""
To publish version {VERSION}:

    git tag -a v{VERSION} -m "twoscale {VERSION}"
    git push origin v{VERSION}
    python -m twine upload {" ".join(str(path.relative_to(ROOT)) for path in distributions)}
""")


if __name__ == "__main__":
    main()
