"""Learned rounding: what it gains, that it repeats, and that it never loses."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

import twoscale
from tests.quantization.small_models import Model, accumulating, residual_model, seeded, small_cnn
from twoscale._calibration.profile import profile
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._progress import listening
from twoscale._quantization import COURSE, Scheme, float_graph, quantize_graph
from twoscale._quantization.trainable import TrainableNetwork
from twoscale._search import LearnedRounding, learned_rounding
from twoscale._search.blocks import blocks_of
from twoscale._search.learning import Reach
from twoscale._verification import verify
from twoscale.errors import CalibrationError, ConfigurationError


def correlated(seed: int, count: int) -> NDArray[np.float32]:
    """Return images made of six patterns, as (count, 3, 8, 8). Of white noise there is nothing to learn."""
    patterns = np.random.default_rng(5).standard_normal((6, 192))
    rng = np.random.default_rng(seed)
    mixed = np.abs(rng.standard_normal((count, 6))) @ patterns + 0.1 * rng.standard_normal((count, 192))
    return mixed.reshape(count, 3, 8, 8).astype(np.float32)


CALIBRATION, TEST = correlated(61, 400), correlated(62, 200)
FEW = Scheme(weight_bits=2, activation_bits=2)
BRIEF = LearnedRounding(iterations=60, distillation=100, network_reach=Reach(5.0, 0.5, 0.1))


def sqnr(network: IntegerNetwork, model: nn.Module) -> float:
    found = verify(network, [TEST], executors=("reference", "torch"), model=model)
    assert found.mismatches == 0
    assert found.sqnr_db is not None
    return found.sqnr_db


@pytest.fixture(scope="module")
def learned() -> tuple[nn.Module, IntegerNetwork, list[str]]:
    steps: list[str] = []
    model = small_cnn()
    with listening(lambda step, done, total: steps.append(f"{step} {done} {total}")):
        network = twoscale.learn_rounding(
            model, [CALIBRATION], scheme=FEW, how=BRIEF, announce=lambda s: steps.append("about")
        )
    return model, network, steps


def test_it_gains(learned: tuple[nn.Module, IntegerNetwork, list[str]]) -> None:
    model, network, _ = learned
    plain = twoscale.quantize(model, [CALIBRATION], scheme=FEW)
    assert network.on_grid
    assert network.metadata["rounding"] == dataclasses.asdict(BRIEF)
    assert sqnr(network, model) > sqnr(plain, model) + 0.5


def test_integers_keep_to_their_bits(learned: tuple[nn.Module, IntegerNetwork, list[str]]) -> None:
    _, network, _ = learned
    layers = accumulating(network)
    assert min(int(layer.weight.min()) for layer in layers) == -2
    assert {int(layer.weight.max()) for layer in layers} == {1}
    assert all(layer.output.hi == 3 for layer in layers[:-1])
    assert network["input"].output.hi == 255


def test_it_says_how_long_and_how_far(learned: tuple[nn.Module, IntegerNetwork, list[str]]) -> None:
    steps = [step for step in learned[2] if step.startswith(("about", "learning"))]
    total = int(steps[-1].split()[-1])
    assert steps[0] == "about"
    assert [int(step.split()[-2]) for step in steps[1:]] == list(range(1, total + 1))


def test_the_same_again(learned: tuple[nn.Module, IntegerNetwork, list[str]]) -> None:
    again = twoscale.learn_rounding(small_cnn(), [CALIBRATION], scheme=FEW, how=BRIEF)
    assert learned[1].fingerprint == again.fingerprint


def test_what_learning_spoils_is_not_kept() -> None:
    """With rates at which nothing can be learned, each block and the whole network stay as they were."""
    wild = LearnedRounding(iterations=2, distillation=2, block_reach=Reach(50, 50, 1), network_reach=Reach(50, 50, 1))
    model = residual_model(2)
    graph = float_graph(model, CALIBRATION, FEW)
    network = learned_rounding.learn_network(graph, profile(graph, [CALIBRATION]), CALIBRATION, FEW, wild)
    plain = quantize_graph(graph, profile(graph, [CALIBRATION]), FEW)
    assert network.fingerprint == plain.fingerprint


@pytest.mark.parametrize("gains", [False, True])
def test_it_stops_where_no_block_gains(gains: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = itertools.chain([2.0, 1.0] if gains else [], itertools.repeat(2.0))
    monkeypatch.setattr(learned_rounding._Learner, "_held_out_error", lambda *_: next(errors))
    steps: list[str] = []
    with listening(lambda step, done, total: steps.append(step)):
        how = LearnedRounding(iterations=2, distillation=2)
        twoscale.learn_rounding(small_cnn(), [CALIBRATION], scheme=FEW, how=how)
    assert steps.count("learning the network") == (2 if gains else 0)
    assert ("nothing to learn" in steps) != gains


def test_factors_moved_between_branches_are_recorded() -> None:
    """verify compares channels with the model's by them."""
    graph = float_graph(small_cnn(), CALIBRATION, FEW)
    graph = dataclasses.replace(graph, branch_factors={"conv1": 0.5})
    how = LearnedRounding(iterations=1, distillation=0)
    network = learned_rounding.learn_network(graph, profile(graph, [CALIBRATION]), CALIBRATION, FEW, how)
    assert network.metadata["branch_factors"] == dict(graph.branch_factors)


def test_blocks_are_cut_where_one_tensor_connects() -> None:
    graph = float_graph(residual_model(2), CALIBRATION)
    blocks = blocks_of(graph)
    assert [name for block in blocks for name in block.names] == [node.name for node in graph.nodes[1:]]
    for block, following in itertools.pairwise(blocks):
        assert following.source == block.names[-1]
    for block in blocks:
        inside = {block.source, *block.names}
        assert all(inside.issuperset(graph[name].inputs) for name in block.names)


def test_a_long_skip_is_one_block() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(m.a(x))
        y = F.relu(m.b(x))
        return torch.as_tensor(m.fc((m.c(y) + x + y).flatten(1)))

    with seeded(1):
        layers = {name: nn.Conv2d(3, 3, 3, padding=1) for name in "abc"}
        model = Model(forward, **layers, fc=nn.Linear(192, 4)).eval()
    graph = float_graph(model, CALIBRATION)
    assert any({"b", "c"} <= set(block.names) for block in blocks_of(graph))
    assert not any({"a", "c"} <= set(block.names) for block in blocks_of(graph))


@pytest.mark.parametrize(
    ("scheme", "count", "message"),
    [(COURSE, 64, "course has multipliers of its own"), (FEW, 15, "15 images; expected at least 16")],
)
def test_what_it_cannot_do_is_refused(scheme: Scheme, count: int, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        twoscale.learn_rounding(small_cnn(), [CALIBRATION[:count]], scheme=scheme, how=BRIEF)


@pytest.mark.parametrize(
    ("given", "message"), [({"iterations": 0}, "iterations is 0"), ({"drop": 1.0}, "drop is 1.0")], ids=str
)
def test_options_out_of_range(given: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        LearnedRounding(**given)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="effort is 0"):
        LearnedRounding().scaled(0)
    whole = LearnedRounding(iterations=10, distillation=6, network_reach=Reach(8, 4, 2))
    assert whole.scaled(0.5) == LearnedRounding(iterations=5, distillation=3, network_reach=Reach(4, 2, 1))


def test_more_images_make_up_for_few(learned: tuple[nn.Module, IntegerNetwork, list[str]]) -> None:
    few, more = CALIBRATION[:24], [CALIBRATION[24:224], CALIBRATION[224:]]
    how = dataclasses.replace(BRIEF, distillation=300, network_reach=Reach(20, 1, 0.2))
    networks = [
        twoscale.learn_rounding(small_cnn(), [few], scheme=FEW, how=how, further=further) for further in ([], more)
    ]
    assert sqnr(networks[1], learned[0]) > sqnr(networks[0], learned[0]) + 0.5
    # Beyond the memory, they are left.
    size = sum(one.nbytes for one in more)
    kept = learned_rounding.within([*more, TEST], size + 1, few.shape[1:])
    assert kept is not None
    assert len(kept) == len(CALIBRATION) - 24
    assert learned_rounding.within([], 1, few.shape[1:]) is None
    for wrong in (CALIBRATION[:, :, :4], np.full_like(few, np.nan)):
        with pytest.raises(CalibrationError, match="expected finite values"):
            twoscale.learn_rounding(small_cnn(), [few], scheme=FEW, how=how, further=[wrong])


def test_images_are_mirrored_and_shifted() -> None:
    """Each pixel says in which row and column it was."""
    image = (torch.arange(16.0) + 100 * torch.arange(24.0)[:, None]).expand(64, 1, 24, 16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mirrored, shifted = learned_rounding._mirrored(image), learned_rounding._shifted(image)
    flips = [torch.equal(one, image[0].flip(2)) for one in mirrored]
    assert 16 <= sum(flips) <= 48
    assert all(flip or torch.equal(one, image[0]) for one, flip in zip(mirrored, flips, strict=True))
    moved = shifted[:, 0, 12, 7]
    assert set((moved % 100 - 7).tolist()) == set(range(-2, 3))
    assert set((moved // 100 - 12).tolist()) == set(range(-3, 4))
    assert torch.equal(shifted[:, 0, 4:20, 9] - shifted[:, 0, 4:20, 8], torch.ones(64, 16))


def _learner(forward: Any, images: NDArray[np.float32]) -> learned_rounding._Learner:
    with seeded(0):
        model = Model(forward, conv=nn.Conv2d(3, 4, 3), fc=nn.Linear(4, 4)).eval()
    graph = float_graph(model, images, FEW)
    trainable = TrainableNetwork(quantize_graph(graph, profile(graph, [images]), FEW), graph, FEW)
    return learned_rounding._Learner(trainable, LearnedRounding(), images, images[:0])


def _corner(m: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(m.fc(F.relu(m.conv(x))[:, :, 0, 0]))


def test_images_are_varied_where_the_float_network_sees_the_same() -> None:
    def blind(m: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(m.fc(F.relu(m.conv(x)).mean((2, 3)) + torch.tensor([9.0, 0, 0, 0])))

    assert _learner(_corner, CALIBRATION)._variations() == []
    assert _learner(blind, CALIBRATION)._variations() == [learned_rounding._mirrored, learned_rounding._shifted]


def test_an_image_in_seven_that_changes_is_too_many() -> None:
    """Where half of the images are mirrored, it would be one in fourteen."""
    float_network = _learner(_corner, CALIBRATION).float
    images, mirrored = torch.from_numpy(CALIBRATION), torch.from_numpy(CALIBRATION).flip(3)
    changed = (float_network(images).argmax(1) != float_network(mirrored).argmax(1)).numpy()
    made = (CALIBRATION[:168] + CALIBRATION[:168, ..., ::-1]) / np.float32(2)
    made[::56] = CALIBRATION[changed][:3]  # of 21 that are held out
    learner = _learner(_corner, made)
    with torch.random.fork_rng():
        for seed in range(4):
            torch.manual_seed(seed)
            assert learned_rounding._mirrored not in learner._variations()
