"""Pictures that take long to decode, in whatever process."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twoscale.data import Preprocessing

SECONDS = 0.02
"""Per picture."""


class SlowPreprocessing(Preprocessing):
    """Sleeps before it decodes a picture."""

    def read_in_thread(self, picture: Path | bytes) -> NDArray[np.uint8]:
        """Do what the usual one does, later."""
        time.sleep(SECONDS)
        return super().read_in_thread(picture)
