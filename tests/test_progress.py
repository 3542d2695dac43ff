"""Progress reaches a listener, and nothing else; the bar is on a terminal's standard error only."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest

import twoscale
from tests.quantization.small_models import images, small_cnn
from twoscale._cli import progress
from twoscale._cli.common import parse_memory
from twoscale._metrics import CountedBatches, number_of_images
from twoscale._progress import listening, report
from twoscale.errors import ConfigurationError


def test_quantize_and_verify_report_their_steps() -> None:
    seen: list[tuple[str, int, int | None]] = []
    pixels = images(1, 40)
    with listening(lambda step, done, total: seen.append((step, done, total))):
        network = twoscale.quantize(small_cnn(1), [pixels[:30], pixels[30:]])
        twoscale.verify(network, pixels)
    report("unheard", 1, None)
    assert list(dict.fromkeys(step for step, _, _ in seen)) == [
        "calibrating",
        "tuning ranges",
        "rounding weights",
        "correcting layers",
        "verifying",
    ]
    assert ("calibrating", 30, 40) in seen
    assert ("verifying", 40, 40) in seen
    assert all(total is not None and done <= total for _, done, total in seen)


def test_numbers_of_images() -> None:
    def stream() -> Iterator[np.ndarray]:
        yield pixels

    pixels = np.zeros((7, 3, 4, 4), np.float32)
    assert number_of_images(pixels) == 7
    assert number_of_images([(pixels, np.zeros(7)), pixels[:2]]) == 9
    assert number_of_images(CountedBatches(stream(), 5)) == 5
    assert number_of_images(stream()) is None
    assert number_of_images(["no images"]) is None


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_bar_is_drawn_on_terminals_only(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    stderr, stdout = Terminal() if is_terminal else io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(sys, "stdout", stdout)
    with progress.shown_progress():
        report("calibrating", 30, 40)
        while is_terminal and "calibrating" not in stderr.getvalue():  # it is drawn by a thread
            time.sleep(0.01)
        report("tuning ranges", 1, None)
    assert ("calibrating" in stderr.getvalue()) == is_terminal
    assert stdout.getvalue() == ""


def test_short_work_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_PATIENCE", 1e9)
    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    with progress.shown_progress():
        report("calibrating", 30, 40)
    assert stderr.getvalue() == ""


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512M", 512 << 20),
        ("2G", 2 << 30),
        ("1.5g", 3 << 29),
        ("800K", 800 << 10),
        ("1000000", 10**6),
        ("1GiB", 1 << 30),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_memory("--memory", text) == size


@pytest.mark.parametrize("text", ["", "G", "-1", "1T", "0", "1e9", "99999999999G"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="expected a size such as 512M or 2G"):
        parse_memory("--memory", text)
