"""Steps of CUDA graphs: on a processor their logic, run op by op; on a GPU the graphs themselves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from tests.training.made_up import Normed, seeded
from twoscale import training
from twoscale.data import Dataset
from twoscale.training import TrainConfig, TrainResult
from twoscale.training import _construction as construction
from twoscale.training import _loop as loop
from twoscale.training._graphed import GraphedStep

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CONFIG = TrainConfig(
    epochs=2, batch_size=20, lr=0.02, nesterov=True, weight_decay=5e-4, label_smoothing=0.1, crop=2, flip="alternating",
    schedule="linear", warmup_steps=3, log_every=10, checkpoint_every=3, threads=1,
)  # fmt: skip


def run(dataset: Dataset, config: TrainConfig, **options: Any) -> TrainResult:
    return training.train(config, dataset, progress=False, **options)


def largest_difference(a: TrainResult, b: TrainResult) -> float:
    x, y = a.model.state_dict(), b.model.state_dict()
    assert x.keys() == y.keys()
    return max(float((x[name].double() - y[name].double()).abs().max()) for name in x)


@pytest.fixture
def on_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run take the way of CUDA graphs, but run the steps that they would hold."""
    create = construction.create_step

    def graphed(config: TrainConfig, model: Any, images: Any, ranks: Any, *, mini_batches: int) -> GraphedStep:
        plain = create(config, model, images, ranks, mini_batches=mini_batches)
        assert not isinstance(plain, GraphedStep)
        compiled = config.step == "compiled"
        return GraphedStep(model, plain._optimizer, images, plain._gradient, compiled=compiled, lr=config.lr)

    monkeypatch.setattr(loop, "create_step", graphed)
    monkeypatch.setattr(GraphedStep, "_capture", lambda self, loss, size, steps: steps)


@pytest.mark.parametrize("batch_size", [4, 20, 45, 200])
def test_same_weights_as_eager_steps(
    dataset: Dataset, on_a_processor: None, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    config = replace(CONFIG, batch_size=batch_size, device="cpu")
    graphed = run(dataset, config)
    assert graphed.record.notes[0].startswith("steps are replayed as CUDA graphs")
    monkeypatch.undo()
    eager = run(dataset, config)
    assert largest_difference(graphed, eager) == 0
    assert graphed.record.losses == eager.record.losses
    assert [epoch.loss for epoch in graphed.record.epochs] == [epoch.loss for epoch in eager.record.epochs]
    assert largest_difference(graphed, run(dataset, replace(config, seed=1))) > 0


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "lamb", "adamw"])
def test_every_rule_and_model_of_float64(
    dataset: Dataset, on_a_processor: None, monkeypatch: pytest.MonkeyPatch, optimizer: Any
) -> None:
    """Rates and losses pass through the graph's own memory, and lose no bit there."""
    config = replace(
        CONFIG, optimizer=optimizer, nesterov=False, lr=0.01, clip_norm=1.0, accumulation=2, bias_lr=3, batch_size=20,
        device="cpu", base_batch=15,
    )  # fmt: skip
    graphed = run(dataset, config, model=seeded(Normed).double())
    assert graphed.record.notes[0].startswith("steps are replayed as CUDA graphs")
    monkeypatch.undo()
    eager = run(dataset, config, model=seeded(Normed).double())
    assert largest_difference(graphed, eager) == 0
    assert graphed.record.losses == eager.record.losses


def test_constant_rates_and_resuming(
    dataset: Dataset, on_a_processor: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    config = replace(CONFIG, schedule="constant", warmup_steps=0, device="cpu")
    run(dataset, replace(config, epochs=1), out=tmp_path)
    graphed = run(dataset, config, out=tmp_path, resume=True)
    monkeypatch.undo()
    assert largest_difference(graphed, run(dataset, config)) == 0


@GPU
@pytest.mark.parametrize("model", ["net", "resnet18"])
@pytest.mark.parametrize("how", ["cuda-graph", "compiled"])
def test_on_a_gpu_as_eager_steps(dataset: Dataset, model: str, how: Any) -> None:
    config = replace(CONFIG, model=model, batch_size=16, lr=0.001)
    eager = run(dataset, replace(config, step="eager"))
    graphed = run(dataset, replace(config, step=how))
    assert "replayed as CUDA graphs" in graphed.record.notes[0], graphed.record.notes
    assert not any("failed" in note or "could" in note for note in graphed.record.notes), graphed.record.notes
    for (_, a), (_, b) in zip(eager.record.losses, graphed.record.losses, strict=True):
        assert a == pytest.approx(b, rel=0.02)
    # From the same start both go the same way; TF32 and sums in another order set them a little apart.
    assert largest_difference(eager, graphed) < 0.02


@GPU
@pytest.mark.parametrize("how", ["eager", "cuda-graph", "compiled"])
def test_bf16_and_channels_last_on_a_gpu(dataset: Dataset, how: Any) -> None:
    options: dict[str, Any] = {"precision": "bf16", "channels_last": True, "zero_init_residual": True, "whiten": True}
    record = run(dataset, replace(CONFIG, model="resnet18", batch_size=30, step=how, **options)).record
    assert record.losses[-1][1] < 2.6
    assert record.device == torch.cuda.get_device_name()
    assert len(record.epochs) == 2


@GPU
@pytest.mark.parametrize("optimizer", ["lars", "lamb", "adamw"])
def test_every_rule_in_a_graph(dataset: Dataset, optimizer: Any) -> None:
    config = replace(CONFIG, optimizer=optimizer, nesterov=False, lr=0.001, clip_norm=1.0, accumulation=2)
    eager, graphed = (run(dataset, replace(config, step=how)) for how in ("eager", "cuda-graph"))
    assert "replayed as CUDA graphs" in graphed.record.notes[0], graphed.record.notes
    assert largest_difference(eager, graphed) < 0.01


@GPU
@pytest.mark.parametrize("how", ["eager", "cuda-graph"])
def test_dropout_on_a_gpu_is_the_seed_s_and_goes_on(dataset: Dataset, how: Any, tmp_path: Any) -> None:
    """Other masks change the losses by far more than sums in another order."""

    def dropping(config: TrainConfig, **options: Any) -> list[float]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3072, 10)).cuda()
        return [loss for _, loss in run(dataset, config, model=model, **options).record.losses]

    config = replace(CONFIG, step=how, schedule="constant", warmup_steps=0, lr=0.001, log_every=1)
    state = torch.cuda.get_rng_state()
    whole = dropping(config)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    torch.cuda.manual_seed(5)
    dropping(replace(config, epochs=1), out=tmp_path)
    torch.cuda.manual_seed(6)
    assert dropping(config, out=tmp_path, resume=True) == pytest.approx(whole, rel=1e-3)
