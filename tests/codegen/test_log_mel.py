"""Log-mel features of sound: C and Python have the same integers, near to those of floats."""

from __future__ import annotations

import ctypes
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests import sweep
from tests.codegen.compiling import SANITIZED, STRICT, build, need, run
from tests.integer_networks import random_network
from twoscale._codegen.c import export_c
from twoscale._codegen.pixels import pixel_table
from twoscale._ir.integer_network import IntegerNetwork
from twoscale.data import LogMel
from twoscale.errors import ConfigurationError


def network_for(frames: int, channels: int) -> IntegerNetwork:
    made = random_network(
        np.random.default_rng(channels), operators={"max_pool"}, length=1, dtype="int8", name="net",
        image_shape=(1, frames, channels),
    )  # fmt: skip
    return dataclasses.replace(made, metadata={"mean": [0.4], "std": [0.2]})


def clips(count: int) -> dict[str, NDArray[np.int16]]:
    """Return sounds of one second or less, by what they are."""
    rng = np.random.default_rng(1)
    time = np.arange(count)
    tone = np.sin(2 * np.pi * 1000 * time / 16_000)
    sounds = {
        "noise": 9000 * rng.standard_normal(count),
        "quiet noise": 90 * rng.standard_normal(count),
        "full-scale tone": 32767 * tone,
        "square": 32767 * np.sign(tone + 0.01),
        "lowest": np.full(count, -32768.0),
        "sweep": 20000 * np.sin(2 * np.pi * 3500 * time**2 / count / 16_000),
        "bit": np.where(time == count // 2, 1.0, 0.0),
        "silence": np.zeros(count),
    }
    return {name: sound.clip(-32768, 32767).astype(np.int16) for name, sound in sounds.items()}


def by_floats(features: LogMel, samples: NDArray[np.int16]) -> NDArray[np.float64]:
    """Return the features by definition: bands as matrices, on NumPy's transform."""
    hertz = np.arange(features.size // 2 + 1) * features.sample_rate / features.size
    mel = 2595 * np.log10(1 + hertz / 700)
    low, high = (2595 * np.log10(1 + edge / 700) for edge in (features.low_hz, features.high_hz))
    edges = np.linspace(low, high, features.channels + 2)
    rising = (mel[:, None] - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - mel[:, None]) / np.diff(edges)[1:]
    places = np.arange(features.window) + 0.5
    window = 0.5 - 0.5 * np.cos(2 * np.pi * places / features.window)
    rows = []
    for start in range(0, len(samples) - features.window + 1, features.step):
        power = np.abs(np.fft.rfft(samples[start : start + features.window] * window, features.size)) ** 2
        energy = power @ np.minimum(rising, falling).clip(min=0)
        decibels = 10 * np.log10(np.maximum(energy, 1e-9) / (2**15 * features.window / 4) ** 2)
        rows.append((decibels + features.range_db) * 255 / features.range_db)
    return np.stack(rows).clip(0, 255)


SHAPES = [(16_000, 40), (16_000, 10), (8_000, 24), (44_100, 64)]


@pytest.mark.parametrize(("rate", "channels"), SHAPES)
def test_python_is_near_to_floats(rate: int, channels: int) -> None:
    features = LogMel.for_network((1, 1, channels), rate)
    for name, samples in clips(features.window + 5 * features.step).items():
        near = by_floats(features, samples)
        found = features(samples)
        assert found.shape == (6, channels)
        loud = near > 26  # 8 dB above what is 0: below, the rounding of samples after the window shows
        assert np.abs(found - near)[loud].max(initial=0) <= 0.8, name
        assert np.abs(found - near).max() <= 3, name


def test_a_full_scale_tone_is_the_largest() -> None:
    features = LogMel()
    found = features(clips(features.window)["full-scale tone"])
    assert found.max() >= 253
    assert abs(int(found.argmax()) - 13) <= 1  # 1,000 Hz


@pytest.mark.parametrize(("rate", "channels"), SHAPES if sweep.whole() else SHAPES[1:2])
def test_c_has_the_same_integers(rate: int, channels: int, tmp_path: Path) -> None:
    need("gcc")
    features = LogMel.for_network((1, 4, channels), rate)
    network = network_for(4, channels)
    export_c(network, tmp_path, name="net", log_mel=rate)
    flags = [flag for flag in STRICT if flag != "-O2"]
    library = ctypes.CDLL(
        str(build("gcc", tmp_path, ["net.c", "net_log_mel.c"], *flags, "-fPIC", "-shared", out="a.so"))
    )
    table = pixel_table(network.input.output, network.metadata)
    assert table is not None
    for name, samples in clips(features.window + 3 * features.step).items():
        work = np.full(features.size, 7, np.int32)
        image = np.zeros((4, channels), np.int8)
        library.net_log_mel(*(ctypes.c_void_p(part.ctypes.data) for part in (samples, work, image)))
        assert np.array_equal(image, table[0][features(samples)]), name


@pytest.mark.skipif(not sweep.whole(), reason="compiles with sanitizers: --sweep all")
def test_it_reads_within_its_arrays_and_overflows_nowhere(tmp_path: Path) -> None:
    need("gcc", "g++")
    export_c(network_for(2, 40), tmp_path, name="net", log_mel=16_000)
    (tmp_path / "main.c").write_text("""
#include "net_log_mel.h"
#include <stdlib.h>
int main(void)
{
    int16_t *samples = malloc(NET_CLIP_SAMPLES * sizeof *samples);
    int32_t *work = malloc(NET_FRAME_WORK * sizeof *work);
    int8_t *image = malloc(NET_INPUT_COUNT);
    for (int form = 0; form < 3; form++) {
        for (int i = 0; i < NET_CLIP_SAMPLES; i++)
            samples[i] = (int16_t)(form == 0 ? -32768 : form == 1 ? (i & 8 ? 32767 : -32768) : i * 7919);
        net_log_mel(samples, work, image);
    }
    free(samples), free(work), free(image);
    return 0;
}
""")
    assert run(build("gcc", tmp_path, ["net.c", "net_log_mel.c", "main.c"], *SANITIZED)).returncode == 0
    build("g++", tmp_path, ["-x", "c++", "net_log_mel.c"], "-Wall", "-Wextra", "-Werror", "-c", out="a.o")


def test_what_cannot_be_computed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="200 mel bands; expected 1 to 128"):
        LogMel(channels=200)
    with pytest.raises(ConfigurationError, match="mel bands from 20 to 9000 Hz; expected a range within 0 to 8000 Hz"):
        LogMel(high_hz=9000)
    with pytest.raises(ConfigurationError, match="sound of float64, shape"):
        LogMel()(np.zeros(480))  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="3 samples in a frame and 2 to the next; expected 4"):
        export_c(network_for(2, 10), tmp_path / "out", name="net", log_mel=100)
    bare = dataclasses.replace(network_for(2, 10), metadata={})
    with pytest.raises(ConfigurationError, match="does not take log-mel features; expected a network of grey"):
        export_c(bare, tmp_path / "out", log_mel=16_000)
    with pytest.raises(ConfigurationError, match="log_mel is for microcontrollers; expected target portable"):
        export_c(network_for(2, 10), tmp_path / "out", target="native", log_mel=16_000)
    assert not (tmp_path / "out").exists()
