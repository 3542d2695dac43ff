"""Studies with pictures and a model of the user's own."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import sweep
from tests.cli.conftest import run_command
from twoscale import data
from twoscale.data import Preprocessing
from twoscale.scaling._measure.records import Workload
from twoscale.scaling._measure.workload import batch_stream, create_model, training_step

MODEL = """
from torch import nn

class Grey(nn.Sequential):
    def __init__(self, classes: int = 10, width: int = 2) -> None:
        super().__init__(nn.Conv2d(1, width, 3), nn.Flatten(), nn.Linear(36 * width, classes))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of grey pictures in three classes and a model of it, as the current folder."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grey.py").write_text(MODEL)
    generator = np.random.default_rng(0)
    for part, label in itertools.product(("train", "val"), "abc"):
        (tmp_path / "pictures" / part / label).mkdir(parents=True)
        for number in range(8):
            pixels = generator.integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / part / label / f"{number}.png")
    yield tmp_path
    sys.modules.pop("twoscale_user_grey", None)


def test_steps_train_on_pictures_of_the_user_s_own(here: Path) -> None:
    how = Preprocessing(size=8, channels=1)
    workload = Workload("grey.py:Grey", "pictures", batch_size=12, preprocessing=how, model_args="width=3")
    model: Any = create_model(workload)
    assert (model[2].in_features, model[2].out_features) == (108, 3)
    first, second = itertools.islice(batch_stream(workload, 0, 1), 2)
    training_step(workload, model)(first)
    train = data.load("pictures", preprocessing=how).train
    order = data.epoch_order(24, seed=0, epoch=0)
    for batch, chosen in ((first, order[:12]), (second, order[12:])):
        assert batch[1].tolist() == train.labels[chosen].tolist()
        assert np.array_equal(batch[0].numpy(), data.normalize(np.asarray(train.images)[chosen], (0.5,), (0.5,)))


def refused(*options: object) -> str:
    outcome = run_command("scale", "grey.py:Grey", *options, "--out", "study", "--sections", "wire")
    assert outcome.code == 2
    assert not Path("study").exists()
    return outcome.err


def test_what_a_study_does_not_take_is_refused_before_it_begins(here: Path) -> None:
    assert "give --channels and --size as the model takes them" in refused("--data", "pictures")
    assert "are for pictures of your own" in refused("--data", "digits", "--size", 8)
    assert "unexpected keyword argument 'depth'" in refused("--model-args", "depth=3")
    assert "--skip-damaged is not for a study" in refused("--data", "pictures", "--skip-damaged")


@pytest.mark.skipif(not sweep.whole(), reason="a launch, of all sweeps (--sweep all)")
def test_a_study_of_pictures_of_the_user_s_own(here: Path) -> None:
    words = ("--data", "pictures", "--size", 8, "--channels", 1, "--sections", "wire,sampler,replicas")
    outcome = run_command("scale", "grey.py:Grey", "--model-args", "width=3", *words, "--out", "study", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["failures"] == []
    assert {"wire", "sampler", "replicas"} <= outcome.json["sentences"].keys()
