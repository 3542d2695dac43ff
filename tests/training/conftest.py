import numpy as np
import pytest

from twoscale.data import Dataset, Split


def dataset_of(train: int, test: int, *, seed: int = 0, classes: int = 10) -> Dataset:
    """Random pixels, each class brighter than the one before so that there is something to learn."""
    rng = np.random.default_rng(seed)

    def split(n: int) -> Split:
        labels = rng.integers(0, classes, n).astype(np.uint8)
        noise = rng.integers(0, 60, (n, 3, 32, 32))
        return Split((noise + 20 * labels[:, None, None, None]).astype(np.uint8), labels)

    return Dataset(
        name="digits",
        classes=tuple(str(i) for i in range(classes)),
        train=split(train),
        test=split(test),
        mean=(0.5, 0.4, 0.5),
        std=(0.5, 0.25, 0.5),
        source="made up",
    )


@pytest.fixture
def dataset() -> Dataset:
    """90 training and 37 test images: the last mini-batch of 4 has 2, the last of 100 is not full."""
    return dataset_of(90, 37)
