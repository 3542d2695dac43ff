"""Memory is bounded, whatever the number of images."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import twoscale
from tests.quantization.small_models import conv, graph_of, images, linear, residual_model
from twoscale._calibration.memory import images_within
from twoscale._calibration.profile import KEEP_SAMPLES, profile
from twoscale._frontends.torch_export.capture import capture
from twoscale._ir import float_graph as g
from twoscale._passes.fold import fold

MEASURE = """
import resource, sys
import numpy as np, torch, twoscale
from torch import nn
torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 3, stride=2, padding=1), nn.ReLU(),
    nn.Conv2d(24, 24, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5),
).eval()
def batches():
    rng = np.random.default_rng(0)
    for _ in range(int(sys.argv[1]) // 32):
        yield rng.normal(size=(32, 3, 64, 64)).astype(np.float32)
twoscale.quantize(model, batches(), memory=32 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak(count: int) -> int:
    """Return the peak memory in KiB of a process that quantizes with this many images."""
    command = [sys.executable, "-c", MEASURE, str(count)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
def test_the_peak_does_not_grow_with_the_images() -> None:
    few, many = peak(64), peak(512)
    assert many - few < 24 << 10  # all tensors of 512 images together are over 1 GiB


def test_images_within_counts_the_widest_cut() -> None:
    weight = np.zeros((4, 3, 1, 1), np.float32)
    flat = g.Reshape(name="flat", inputs=("conv",), shape=(256,))
    graph = graph_of(
        (3, 8, 8), conv("conv", "input", weight, (4, 8, 8)), flat, linear("fc", "flat", np.zeros((5, 256)))
    )
    # At the reshape: its input, its output, and three more tensors of that size.
    assert images_within(graph, 4 * 5 * 256 * 10) == 10
    assert images_within(graph, 4 * 5 * 256 * 10, networks=2) == 5
    assert images_within(graph, 4 * (192 + 256 + 256 + 5) * 7, keep_all=True) == 7
    assert images_within(graph, 1) == 1


def test_little_memory_gives_a_network_as_good() -> None:
    model, pixels = residual_model(3), images(5, 300)
    whole, little = (twoscale.quantize(model, pixels, memory=memory) for memory in (1 << 30, 1 << 20))
    results = [twoscale.verify(network, pixels, model=model) for network in (whole, little)]
    assert all(result.mismatches == 0 and result.sqnr_db is not None for result in results)
    assert (results[1].sqnr_db or 0) > (results[0].sqnr_db or 0) - 3
    graph = fold(capture(model, pixels[:1]))
    assert len(profile(graph, pixels).samples_nchw) == 300
    assert len(profile(graph, pixels, memory=1 << 20).samples_nchw) < 300 < KEEP_SAMPLES
