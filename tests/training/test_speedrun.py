"""The parts of --recipe speedrun: Muon, freezing, floating-point operations, selective views, and its network."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import twoscale
from tests import sweep
from tests.training.made_up import Normed, Plain, dataset_of, seeded
from twoscale import data, models, training
from twoscale._cli.train import _summary
from twoscale._verification import verify
from twoscale.data import Dataset
from twoscale.errors import ConfigurationError
from twoscale.training import TrainConfig, TrainResult, recipe
from twoscale.training import _construction as construction
from twoscale.training import _loop as loop
from twoscale.training._freezing import trained_layers
from twoscale.training._graphed import GraphedStep
from twoscale.training._optimizers import Groups, Muon, groups_of, orthogonalized
from twoscale.training._step import Step

CONFIG = TrainConfig(
    epochs=3, batch_size=35, lr=0.02, optimizer="muon", momentum=0.6, normalize_filters=True, freeze=(0.4,),
    schedule="linear", log_every=2, threads=1, device="cpu", head_lr=0.1, weight_decay=0.01, bias_lr=2,
)  # fmt: skip
"""90 images: 3 updates per epoch, the last of 20 images. The first layer trains in 4 of 9 updates."""


def run(dataset: Dataset, config: TrainConfig = CONFIG, **options: Any) -> TrainResult:
    return training.train(config, dataset, **{"model": seeded(Normed), "progress": False, **options})


def equal(a: TrainResult, b: TrainResult) -> bool:
    x, y = a.model.state_dict(), b.model.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


def by_singular_values(matrix: np.ndarray[Any, Any], a: float = 3.4445) -> np.ndarray[Any, Any]:
    """A Newton-Schulz iteration is an odd polynomial of each singular value."""
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    s = s / np.sqrt((s**2).sum())
    for _ in range(5):
        s = a * s - 4.775 * s**3 + 2.0315 * s**5
    found: np.ndarray[Any, Any] = u * s @ v
    return found


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5)])
def test_orthogonal_updates_by_singular_values(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(0).normal(size=shape)
    found = orthogonalized(torch.from_numpy(matrix)).numpy()
    np.testing.assert_allclose(found, by_singular_values(matrix), atol=1e-6)
    assert np.abs(found - by_singular_values(matrix, 3.44)).max() > 1e-3
    values = np.linalg.svd(found)[1]
    assert values.min() > 0.5 or shape[0] == shape[1]
    assert values.max() < 1.3


@pytest.mark.parametrize("normalize", [False, True])
def test_muon_by_its_formula(normalize: bool) -> None:
    rng = np.random.default_rng(1)
    shapes, rates = ((6, 2, 2, 2), (8, 3), (5,), (3, 4)), (0.1, 0.05, 0.2)
    rule = Muon(0.6, 0.1, normalize, Groups((True, True, False, True), (True, True, False, False), (1, 1, 2, 0.5)))
    start = [rng.normal(size=shape) for shape in shapes]
    gradients = [[rng.normal(size=shape) for shape in shapes] for _ in rates]
    tensors = [torch.from_numpy(value.copy()) for value in start]
    state = list(rule.state_for({str(i): value for i, value in enumerate(tensors)}).values())
    for rate, some in zip(rates, gradients, strict=True):
        rule.update(tensors, [torch.from_numpy(g) for g in some], state, torch.tensor(rate, dtype=torch.float64))
    for i, w in enumerate(start):
        v = np.zeros_like(w)
        for rate, some in zip(rates, gradients, strict=True):
            g, matrix = some[i], i < 2
            if i == 3:
                g = g + 0.1 * w
            v = 0.6 * v + g
            step = g + 0.6 * v
            if matrix:
                rows = len(w)
                w = w * math.sqrt(rows) / np.linalg.norm(w) if normalize else w * (1 - rate * 0.1)
                flat = step.reshape(rows, -1)
                step = by_singular_values(flat).reshape(w.shape) * max(1, rows / flat.shape[1]) ** 0.5
            w = w - rate * (1, 1, 2, 0.5)[i] * step
        np.testing.assert_allclose(tensors[i].numpy(), w, atol=1e-6)


@pytest.mark.skipif(not sweep.whole(), reason="importing torch's compiler takes seconds: --sweep all")
def test_muon_as_torch_has_it() -> None:
    """PyTorch computes in bfloat16, which has 8 bits."""
    torch.manual_seed(0)
    ours = torch.randn(12, 5)
    theirs = nn.Parameter(ours.clone())
    muon = torch.optim.Muon([theirs], lr=0.1, momentum=0.95, weight_decay=0.1)
    state = [torch.zeros_like(ours)]
    start = ours.clone()
    for _ in range(3):
        theirs.grad = torch.randn(12, 5)
        Muon(0.95, 0.1).update([ours], [theirs.grad], state, 0.1)
        muon.step()  # type: ignore[no-untyped-call]
    assert float((ours - theirs.detach()).abs().max()) < 0.03 * float((ours - start).abs().max())


def test_which_parameters_muon_takes() -> None:
    model = models.create("speednet", width=4)
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    groups = groups_of(model, recipe("speedrun"))
    for name, adapted, factor in zip(trained, groups.adapted, groups.lr_factors, strict=True):
        assert adapted == ("conv" in name)
        assert factor == (0.09 if name == "head.weight" else 0.6 if "norm" in name else 1)
    assert "whiten.weight" not in trained
    assert not any("norm" in name and name.endswith("weight") for name in trained)


def test_layers_of_models() -> None:
    names = trained_layers(seeded(Normed))
    assert names == [["conv.weight", "conv.bias"], ["last.weight", "last.bias", "norm.weight", "norm.bias"]]
    first, second, *_, last = trained_layers(models.create("speednet", width=4))
    assert (first, last) == (["whiten.bias"], ["head.weight"])
    assert second == ["group1.conv1.weight", "group1.norm1.bias"]


def test_frozen_layers_keep_their_weights(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    step = Step.__call__

    def watched(self: Step, *arguments: Any) -> None:
        step(self, *arguments)
        seen.append({name: value.detach().clone() for name, value in self.parameters.items()})

    monkeypatch.setattr(Step, "__call__", watched)
    result = run(dataset)
    for name in seen[0]:
        changed = [not torch.equal(a[name], b[name]) for a, b in pairwise(seen)]
        if name == "conv.bias":  # which BatchNorm takes out: its gradient is 0 but for rounding
            assert not any(changed[3:])
        else:
            assert changed == ([True] * 3 + [False] * 5 if "conv" in name else [True] * 8), name
    assert all(value.requires_grad for value in result.model.parameters())


def test_frozen_layers_in_every_kind_of_step_and_resumed(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager = run(dataset, replace(CONFIG, step="eager"))
    assert equal(eager, run(dataset, replace(CONFIG, step="captured")))
    assert not equal(eager, run(dataset, replace(CONFIG, freeze=(0.5,))))
    monkeypatch.setattr(loop, "_LOOK_EVERY", 1)
    for stop in (2, 5):  # before and after the first layer is frozen
        out = tmp_path / str(stop)
        look = loop._Run._look

        def interrupting(self: Any, interrupted: Any, stop: int = stop, look: Any = look) -> None:
            if self.position.done == stop:
                interrupted.set()
            look(self, interrupted)

        with monkeypatch.context() as patch:
            patch.setattr(loop._Run, "_look", interrupting)
            with pytest.raises(training.TrainingInterrupted):
                run(dataset, out=out)
        resumed = run(dataset, out=out, resume=True)
        assert equal(eager, resumed)
        assert resumed.record.training_flops == eager.record.training_flops

    def graphed(config: TrainConfig, model: Any, images: Any, ranks: Any, *, mini_batches: int) -> GraphedStep:
        plain = construction.create_step(config, model, images, ranks, mini_batches=mini_batches)
        assert isinstance(plain, Step)
        return GraphedStep(model, plain._optimizer, images, plain._gradient, compiled=False, lr=config.lr)

    monkeypatch.setattr(loop, "create_step", graphed)
    monkeypatch.setattr(GraphedStep, "_capture", lambda self, loss, size, steps: steps)
    found = run(dataset)
    for a, b in zip(eager.model.parameters(), found.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert all(value.requires_grad for value in found.model.parameters())


def test_operations_are_those_that_pytorch_counts(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    step = Step.__call__

    def watched(self: Step, *arguments: Any) -> None:
        with FlopCounterMode(display=False) as counter:
            step(self, *arguments)
        counted.append(counter.get_total_flops())

    monkeypatch.setattr(Step, "__call__", watched)
    config = replace(CONFIG, optimizer="sgd", normalize_filters=False, lr=1e-3, step="eager")
    record = run(dataset, config, model=seeded(Plain)).record
    assert record.training_flops == sum(counted)
    assert [epoch.training_flops for epoch in record.epochs] == [sum(counted[: 3 * k]) for k in (1, 2, 3)]
    assert counted[3] > counted[4] > counted[8] > 0
    forward = 2 * (4 * 49 * 75 + 10 * 196)
    assert counted[4] == 35 * (forward + 2 * 10 * 196)  # no more than the last layer's weights


def test_the_command_names_updates_and_operations_to_94_percent(dataset: Dataset, tmp_path: Path) -> None:
    record = run(dataset).record
    assert "94%" not in _summary(record, 37, tmp_path)
    epochs = tuple(
        replace(epoch, accuracy=accuracy) for epoch, accuracy in zip(record.epochs, (0.93, 0.94, 0.95), strict=True)
    )
    good = replace(record, config=replace(record.config, data="cifar10"), epochs=epochs)
    expected = f"94% first measured after epoch 2: 6 mini-batches, {epochs[1].training_flops:.3g} floating-point"
    assert expected in _summary(good, 37, tmp_path)
    assert "94%" not in _summary(replace(good, epochs=epochs[:1]), 37, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze": (0.5, 0.5)}, "freeze has 2 fractions; expected fewer than the 2 layers of Normed that train"),
        ({"freeze": (0.5, 0.4)}, r"freeze is \(0.5, 0.4\); expected fractions between 0 and 1 that do not decrease"),
        ({"optimizer": "sgd"}, "normalize_filters is for muon"),
        ({"head_lr": 0}, "head_lr is 0; expected a positive number"),
    ],
)
def test_what_does_not_fit_is_refused(dataset: Dataset, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        run(dataset, replace(CONFIG, **options))


def test_selective_views(dataset: Dataset) -> None:
    """Images that are judged with certainty get two views, others six. The labels are what those say."""
    torch.manual_seed(0)
    noise = np.random.default_rng(0).integers(0, 256, (300, 3, 32, 32), np.uint8)
    last = nn.Linear(noise[0].size, 10)
    with torch.no_grad():
        last.weight.mul_(12)
    model = nn.Sequential(nn.Flatten(), last).double()
    x = torch.from_numpy(data.normalize(noise, dataset.mean, dataset.std)).double()
    with torch.inference_mode():
        both = (model(x) + model(x.flip(-1))) / 2
        padded = nn.functional.pad(x, (1, 1, 1, 1), mode="reflect")
        moved = [padded[:, :, i : i + 32, i : i + 32] for i in (0, 2)]
        all_six = both / 2 + sum(model(view) + model(view.flip(-1)) for view in moved) / 8
        sorted_ = both.softmax(1).sort(1).values
    sure = (sorted_[:, -1] - sorted_[:, -2] >= 0.5).numpy()
    assert 50 < sure.sum() < 250
    by_two, by_six = both.argmax(1).numpy(), all_six.argmax(1).numpy()
    assert (by_two != by_six)[sure].any()
    assert (by_two != by_six)[~sure].any()
    split = data.Split(noise, np.where(sure, by_two, by_six).astype(np.uint8))
    for batch_size in (7, 100):
        found = training.evaluate(model, split, dataset.mean, dataset.std, views="selective", batch_size=batch_size)
        assert found == 1
    assert training.evaluate(model, split, dataset.mean, dataset.std, views="shifted") < 1
    assert training.evaluate(model, split, dataset.mean, dataset.std, views="mirrored") < 1


def test_the_recipe_trains_its_network_and_quantizes_it(tmp_path: Path) -> None:
    small = dataset_of(120, 40)
    config = recipe(
        "speedrun", model_args="width=4", batch_size=20, epochs=4, precision="fp32", device="cpu", threads=1,
        evaluate_every=4,
    )  # fmt: skip
    result = training.train(config, small, out=tmp_path, progress=False)
    assert result.record.epochs[-1].loss < result.record.epochs[0].loss
    filters = result.model.get_parameter("group1.conv1.weight")
    assert float(torch.linalg.vector_norm(filters.detach())) == pytest.approx(2, rel=0.2)  # √4
    pixels = [small.train.images[:40].astype(np.float32)]
    network = twoscale.quantize(result.model, pixels, normalization=(small.mean, small.std))
    test = [small.test.images[:8].astype(np.float32)]
    assert verify(network, test, executors=("reference", "torch", "onnxruntime")).mismatches == 0


def test_the_size_of_speednet() -> None:
    model = models.create("speednet")
    assert sum(value.numel() for value in model.parameters()) == 1_972_792
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert round(counter.get_total_flops() / 2e6) == 118
    with pytest.raises(ConfigurationError, match="width is 0; expected at least 1"):
        models.create("speednet", width=0)
