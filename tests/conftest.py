"""Settings for every test."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

# Tests run in parallel, one process per core. With more threads than cores, OpenMP's waiting threads starve each
# other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Tests of the C itself choose how to compile it. Others only need it to be right.
if shutil.which("cc") is not None:
    os.environ["CC"] = str(Path(__file__).with_name("quick_cc"))
