"""The whole lab: train, look, quantize step by step, verify, and write everything down.

    data → train → capture → profile → quantize (both schemes) → each step's accuracy → verify → results

Each stage calls the library; this module only runs them in order.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twoscale import data as data_room
from twoscale._environment import current_environment
from twoscale._files import write_record
from twoscale._lab.records import LabNetwork, LabResults, StageResult
from twoscale._quantization.scheme import SCHEMES, Scheme
from twoscale._verification.results import VerifyResult
from twoscale.errors import ConfigurationError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from twoscale._calibration.profile import Profile
    from twoscale._ir.float_graph import FloatGraph
    from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["LabConfig", "run_lab"]

_NETWORKS = ("net", "net-with-bias")
_RECIPE = (
    "model", "data", "epochs", "batch_size", "optimizer", "lr", "momentum", "seed", "log_every", "checkpoint_every",
    "step", "threads", "device",
)  # fmt: skip
"""What results say of the training; everything else is off."""


@dataclass(frozen=True)
class LabConfig:
    """What the lab does.

    Raises:
        ConfigurationError: a number that makes no sense.
    """

    data: str = "digits"
    """Data set."""
    out: Path = Path("lab")
    """Folder of the results; it is made."""
    seed: int = 0
    """Decides initial weights and the order of the images."""
    calibration_images: int = 1000
    """Training images over which activations are profiled."""
    resume: bool = False
    """Continue training from checkpoints in the folder."""

    def __post_init__(self) -> None:
        if self.calibration_images < 1:
            raise ConfigurationError(f"calibration_images is {self.calibration_images}; expected at least 1")
        if self.seed < 0:
            raise ConfigurationError(f"seed is {self.seed}; expected 0 or more")


@dataclass
class _Clock:
    """Seconds per stage, summed over networks."""

    say: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str, network: str) -> Iterator[None]:
        self.say(f"{network}: {name}")
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def run_lab(config: LabConfig, *, say: Callable[[str], None] = lambda line: None) -> LabResults:
    """Run the lab for both networks and write its folder.

    Args:
        config: what to do.
        say: called with one line as each stage begins.

    Returns:
        What is also in ``results.json``. Beside it: ``report.html``, ``plots/``, and for each network a folder with
        its checkpoint and its integer networks.

    Raises:
        DataError: the data set cannot be loaded.
        TwoscaleError: the folder cannot be written.
    """
    from twoscale._lab.page import write_report

    start = time.perf_counter()
    dataset = data_room.load(config.data)
    clock = _Clock(say)
    networks, recipe = [], {}
    for name in _NETWORKS:
        network, recipe[name] = _one_network(name, config, dataset, clock)
        networks.append(network)
    results = LabResults(
        data=config.data,
        seed=config.seed,
        train_samples=len(dataset.train),
        test_samples=len(dataset.test),
        calibration_samples=min(config.calibration_images, len(dataset.train)),
        recipe=recipe,
        networks=tuple(networks),
        environment=current_environment("onnx"),
        seconds={**clock.seconds, "total": time.perf_counter() - start},
    )
    write_record(config.out / "results.json", results)
    say("report")
    write_report(results, config.out)
    return results


class _Images:
    """The images of a data set as the networks take them, batch by batch."""

    def __init__(self, dataset: data_room.Dataset) -> None:
        self.dataset = dataset

    def batches(
        self, split: data_room.Split, batch_size: int, limit: int | None = None
    ) -> Iterator[tuple[NDArray[Any], NDArray[np.uint8]]]:
        part = split if limit is None else split.head(limit)
        for images, labels in data_room.batches(part.images, part.labels, batch_size):
            yield data_room.normalize(images, self.dataset.mean, self.dataset.std), labels


def _one_network(
    name: str, config: LabConfig, dataset: data_room.Dataset, clock: _Clock
) -> tuple[LabNetwork, dict[str, Any]]:

    from twoscale import training
    from twoscale._calibration.profile import profile, weight_summaries
    from twoscale._frontends import float_graph
    from twoscale._passes.fold import fold

    images = _Images(dataset)
    folder = config.out / name
    with clock.stage("train", name):
        recipe = training.TrainConfig(model=name, data=config.data, seed=config.seed, device="cpu")
        trained = training.train(recipe, dataset, out=folder, resume=config.resume)
    with clock.stage("profile activations", name):
        first, _ = next(images.batches(dataset.train, 1))
        graph = fold(float_graph(trained.model, first))
        found = profile(graph, images.batches(dataset.train, 100, config.calibration_images))
    with clock.stage("evaluate the float network", name):
        judge = _Judge(graph, list(images.batches(dataset.test, 500)))
        stages = [judge.stage("float", "float", "float32", judge.float_logits)]
    ranges, checks, files = {}, {}, {"checkpoint": f"{name}/model.safetensors"}
    for scheme in SCHEMES.values():
        network, rows, check = _one_scheme(scheme, graph, found, judge, trained.model, clock, name)
        network = dataclasses.replace(
            network,
            metadata={"data": config.data, "mean": list(dataset.mean), "std": list(dataset.std), "seed": config.seed},
        )
        network.save(folder / f"{scheme.name}.onnx")
        files[scheme.name] = f"{name}/{scheme.name}.onnx"
        stages += rows
        checks[scheme.name] = check
        ranges[scheme.name] = _ranges(scheme, graph, network, found)
    record = LabNetwork(
        name=graph.name,
        parameters=sum(parameter.numel() for parameter in trained.model.parameters()),
        train_loss=trained.record.losses,
        weights=weight_summaries(graph),
        activations=found.summaries(),
        ranges=ranges,
        stages=tuple(stages),
        verify=checks,
        files=files,
    )
    return record, {name: getattr(trained.record.config, name) for name in _RECIPE}


class _Judge:
    """Scores logits on the test set against labels and against the float network."""

    def __init__(self, graph: FloatGraph, batches: list[tuple[NDArray[Any], NDArray[np.uint8]]]) -> None:
        from twoscale._ir.float_module import GraphModule

        self.network = graph.name
        self.batches = batches
        self.labels = np.concatenate([labels for _, labels in batches])
        self.float_logits = self.run(GraphModule(graph))

    def run(self, function: Callable[[torch.Tensor], torch.Tensor]) -> NDArray[np.float32]:
        """Return the logits of all test images."""
        import torch

        with torch.no_grad():
            return np.concatenate([function(torch.from_numpy(images)).numpy() for images, _ in self.batches])

    def stage(self, scheme: str, key: str, title: str, logits: NDArray[np.float32], note: str = "") -> StageResult:
        """Return the row of a step whose logits these are."""
        from twoscale._metrics import SignalToNoise

        is_float = key == "float"
        noise = SignalToNoise()
        # Logits in integer units are compared for their class only: their scale is not that of the float ones.
        if not is_float and key != "bias-real":
            noise.update(self.float_logits, logits)
        predicted = logits.argmax(1)
        return StageResult(
            network=self.network,
            scheme=scheme,
            stage=key,
            title=title,
            samples=len(self.labels),
            top1=float((predicted == self.labels).mean()),
            agreement=None if is_float else float((predicted == self.float_logits.argmax(1)).mean()),
            sqnr_db=noise.db,
            note=note,
        )


def _one_scheme(
    scheme: Scheme,
    graph: FloatGraph,
    found: Profile,
    judge: _Judge,
    model: nn.Module,
    clock: _Clock,
    name: str,
) -> tuple[IntegerNetwork, list[StageResult], VerifyResult]:
    from twoscale._ir.float_module import GraphModule
    from twoscale._quantization import quantize_graph, simulate
    from twoscale._verification import verify

    with clock.stage(f"quantize ({scheme.name})", name):
        network = quantize_graph(graph, found, scheme)
    has_bias = any(parameter.ndim == 1 for parameter in model.parameters())
    kind = "uint8" if scheme.activation_dtype == "uint8" else "int8"
    rows = []
    with clock.stage(f"evaluate each step ({scheme.name})", name):
        weights = judge.run(GraphModule(simulate.with_weights_quantized(graph, network)))
        rows.append(judge.stage(scheme.name, "weights", "weights int8", weights))
        activations = judge.run(simulate.with_activations_quantized(graph, network))
        rows.append(judge.stage(scheme.name, "activations", f"weights int8, activations {kind}", activations))
        if has_bias and not scheme.per_channel:
            unscaled = judge.run(GraphModule(simulate.with_bias_in_real_units(graph, network)))
            note = "Integer weights with the bias left in real units: it should have been divided by s_x·s_w."
            rows.append(judge.stage(scheme.name, "bias-real", "weights int8, bias unscaled", unscaled, note))
    with clock.stage(f"verify ({scheme.name})", name):
        check = verify(network, judge.batches, model=graph)
    rows.append(
        StageResult(
            network=graph.name,
            scheme=scheme.name,
            stage="integer",
            title="all integer, biases int32" if has_bias else "all integer",
            samples=check.samples,
            top1=check.top1 or 0.0,
            agreement=check.agreement,
            sqnr_db=check.sqnr_db,
            mismatches=check.mismatches,
        )
    )
    return network, rows, check


def _ranges(scheme: Scheme, graph: FloatGraph, network: IntegerNetwork, found: Profile) -> Any:
    from twoscale._quantization.simulate import range_records

    return range_records(graph, network, found.samples_nchw, scheme)
