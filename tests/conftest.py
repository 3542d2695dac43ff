"""Settings for every test."""

from __future__ import annotations

import os

# Tests run side by side, one process a core: with more threads than cores OpenMP's waiting threads starve each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
