"""The whole lab: train, look, quantize step by step, verify, and write everything down.

    data → train → capture → profile → compare weight ranges → quantize (each scheme) → accuracy of each step, of wrong
    biases and of fewer bits → verify → results

Each stage calls the library; this module only runs them in order.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twoscale import data as data_room
from twoscale._environment import current_environment
from twoscale._files import write_record, write_text
from twoscale._lab.records import BitsResult, LabNetwork, LabResults, StageResult
from twoscale._quantization.scheme import COURSE, DEFAULT, Scheme, find_scheme
from twoscale.errors import ConfigurationError, ExecutorError, QuantizationError

if TYPE_CHECKING:
    from twoscale._calibration.profile import Profile
    from twoscale._ir.float_graph import FloatGraph
    from twoscale._ir.integer_network import IntegerNetwork
    from twoscale._lab.judge import Judge
    from twoscale._quantization.records import RangeRecord
    from twoscale._verification.results import VerifyResult

__all__ = ["LabConfig", "run_lab"]

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
    models: tuple[str, ...] = ("net", "net-with-bias")
    """Networks to train and quantize."""
    schemes: tuple[str, ...] = (DEFAULT.name, COURSE.name)
    """Schemes to quantize them by."""
    bits: tuple[int, ...] = (2, 3, 4, 5, 6, 8)
    """Bits of the weights whose accuracies are compared."""

    def __post_init__(self) -> None:
        for scheme in self.schemes:
            find_scheme(scheme)
        if not all(2 <= bits <= 8 for bits in self.bits):
            raise ConfigurationError(f"bits is {', '.join(map(str, self.bits))}; expected 2 to 8")
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
    """Run the lab for each network and write its folder.

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
    for name in config.models:
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
    from twoscale._ir.recorded_accuracy import RecordedAccuracy, with_accuracy
    from twoscale._lab.judge import Judge
    from twoscale._lab.observed import pooled_summaries
    from twoscale._lab.weight_ranges import clip_curves, compare_methods
    from twoscale._passes.fold import fold

    images = _Images(dataset)
    folder = config.out / name
    with clock.stage("train", name):
        recipe = training.TrainConfig(model=name, data=config.data, seed=config.seed, device="cpu")
        trained = training.train(recipe, dataset, out=folder, resume=config.resume)
    with clock.stage("profile activations", name):
        first, _ = next(images.batches(dataset.train, 1))
        captured = float_graph(trained.model, first)
        graph = fold(captured)
        found = profile(graph, images.batches(dataset.train, 100, config.calibration_images))
        pooled = pooled_summaries(graph, (x for x, _ in images.batches(dataset.train, 100, config.calibration_images)))
    with clock.stage("evaluate the float network", name):
        judge = Judge(graph, list(images.batches(dataset.test, 500)))
        float_row = judge.stage("float", "float", "float32", judge.float_logits)
    with clock.stage("compare ranges of the weights", name):
        methods, clips = compare_methods(graph, judge), clip_curves(graph, judge)
    made, explained = [], {}
    files = {"checkpoint": f"{name}/model.safetensors"}
    for scheme in map(find_scheme, config.schemes):
        mine, its_profile, its_judge = graph, found, judge
        if not scheme.join_residuals and any(len(node.inputs) > 1 for node in graph):
            mine = fold(captured, join_residuals=False)
            its_profile = profile(mine, images.batches(dataset.train, 100, config.calibration_images))
            its_judge = Judge(mine, judge.batches)
        one = _one_scheme(scheme, mine, its_profile, its_judge, clock, name, config.bits)
        network = dataclasses.replace(
            one.network,
            metadata={"data": config.data, "mean": list(dataset.mean), "std": list(dataset.std), "seed": config.seed},
        )
        last = one.rows[-1]
        network = with_accuracy(network, RecordedAccuracy(config.data, last.samples, last.top1, float_row.top1))
        network.save(folder / f"{scheme.name}.onnx")
        files[scheme.name] = f"{name}/{scheme.name}.onnx"
        if one.check.on_grid:
            with clock.stage(f"explain one picture ({scheme.name})", name):
                page = _explained(network, mine, dataset, clock.say)
                write_text(folder / f"{scheme.name}.html", page)
            explained[scheme.name] = f"{name}/{scheme.name}.html"
        made.append(one)
    record = _record(
        made,
        name=graph.name,
        parameters=sum(parameter.numel() for parameter in trained.model.parameters()),
        train_loss=trained.record.losses,
        weights=weight_summaries(graph),
        activations=found.summaries(),
        pooled=pooled,
        methods=methods,
        clips=clips,
        files=files,
        explained=explained,
        float_row=float_row,
    )
    return record, {name: getattr(trained.record.config, name) for name in _RECIPE}


def _explained(
    network: IntegerNetwork, graph: FloatGraph, dataset: data_room.Dataset, say: Callable[[str], None]
) -> str:
    """Return the page of every integer for the first test image, beside the values of the float network."""
    from twoscale._display.explanation import compiled_for_page, explanation_page, normalized
    from twoscale._verification.comparison import float_values

    pixels = dataset.test.images[0]
    real = float_values(network, graph, normalized(network, pixels)[None])
    modules = None
    try:
        modules = compiled_for_page(network)
    except ExecutorError as error:
        say(f"the page of {network.name} shows one picture only: {error}")
    return explanation_page(
        network,
        pixels,
        modules=modules,
        real={layer: values[0] for layer, values in real.items()},
        classes=dataset.classes,
    )


@dataclass(frozen=True)
class _Quantized:
    """A network in one scheme, and everything that was measured of it."""

    scheme: Scheme
    graph: FloatGraph
    network: IntegerNetwork
    found: Profile
    judge: Judge
    rows: tuple[StageResult, ...]
    bias_rows: tuple[StageResult, ...]
    check: VerifyResult
    bits: tuple[BitsResult, ...]
    nearest: IntegerNetwork | None
    """The same with each weight rounded to the nearest integer, where the scheme has error feedback."""


def _record(made: Iterable[_Quantized], *, float_row: StageResult, **values: Any) -> LabNetwork:
    from twoscale._lab.biases import bias_integers, units_without_requantization
    from twoscale._lab.observed import weight_noise
    from twoscale._lab.worked import layer_scales, worked_output

    by_scheme = {one.scheme.name: one for one in made}
    worked, products = {}, []
    for name, one in by_scheme.items():
        found = worked_output(one.graph, one.network, one.judge.batches[0][0][0])
        if found is not None:
            worked[name] = found
        units = units_without_requantization(one.graph, one.network)
        if units and any(row.stage.startswith("weights") for row in one.bias_rows):
            products.append(units[one.network.output])
    return LabNetwork(
        **values,
        ranges={name: _ranges(one) for name, one in by_scheme.items()},
        stages=(float_row, *(row for one in by_scheme.values() for row in one.rows)),
        verify={name: one.check for name, one in by_scheme.items()},
        noise={
            name: weight_noise(one.graph, one.network, one.judge.batches[0][0], one.nearest)
            for name, one in by_scheme.items()
        },
        scales={name: layer_scales(one.network) for name, one in by_scheme.items()},
        worked=worked,
        biases={name: bias_integers(one.graph, one.network) for name, one in by_scheme.items()},
        bias_stages=tuple(row for one in by_scheme.values() for row in one.bias_rows),
        product_of_scales=products[0] if products else None,
        bits=tuple(row for one in by_scheme.values() for row in one.bits),
    )


def _one_scheme(
    scheme: Scheme,
    graph: FloatGraph,
    found: Profile,
    judge: Judge,
    clock: _Clock,
    name: str,
    bits: Iterable[int],
) -> _Quantized:
    from twoscale._ir.float_module import GraphModule
    from twoscale._lab.biases import half_way_stages, wrong_bias_stages
    from twoscale._quantization import quantize_graph, simulate
    from twoscale._verification import verify

    with clock.stage(f"quantize ({scheme.name})", name):
        network = quantize_graph(graph, found, scheme)
        nearest = None
        if scheme.error_feedback:
            nearest = quantize_graph(graph, found, dataclasses.replace(scheme, error_feedback=False))
    rows = []
    with clock.stage(f"evaluate each step ({scheme.name})", name):
        weights = judge.run(GraphModule(simulate.with_weights_quantized(graph, network)))
        rows.append(judge.stage(scheme.name, "weights", "weights int8", weights))
        activations = judge.run(simulate.with_activations_quantized(graph, network))
        title = f"weights int8, activations {scheme.activation_dtype}"
        rows.append(judge.stage(scheme.name, "activations", title, activations))
    with clock.stage(f"evaluate wrong biases ({scheme.name})", name):
        bias_rows = (*half_way_stages(graph, network, judge), *wrong_bias_stages(graph, network, judge))
    with clock.stage(f"verify ({scheme.name})", name):
        check = verify(network, judge.batches, model=graph)
    last = StageResult(
        network=graph.name,
        scheme=scheme.name,
        stage="integer",
        title="all integer, biases int32" if simulate.has_bias(graph) else "all integer",
        samples=check.samples,
        top1=check.top1 or 0.0,
        agreement=check.agreement,
        sqnr_db=check.sqnr_db,
        mismatches=check.mismatches,
    )
    with clock.stage(f"evaluate other bits ({scheme.name})", name):
        by_bits = tuple(_bits_results(scheme, graph, found, judge, last, clock, bits))
    return _Quantized(scheme, graph, network, found, judge, (*rows, last), bias_rows, check, by_bits, nearest)


def _bits_results(
    scheme: Scheme,
    graph: FloatGraph,
    found: Profile,
    judge: Judge,
    made: StageResult,
    clock: _Clock,
    bits: Iterable[int],
) -> Iterator[BitsResult]:
    from twoscale._quantization import quantize_graph

    for one in sorted({*bits, scheme.weight_bits}):
        if one == scheme.weight_bits:
            yield BitsResult(scheme.name, one, made.samples, made.top1, made.agreement or 0.0, made.sqnr_db)
            continue
        try:
            network = quantize_graph(graph, found, dataclasses.replace(scheme, weight_bits=one))
        except QuantizationError as error:
            clock.say(f"no network with {one}-bit weights ({scheme.name}): {error}")
            continue
        score = judge.score(judge.run_integers(network))
        yield BitsResult(scheme.name, one, score.samples, score.top1, score.agreement, score.sqnr_db)


def _ranges(one: _Quantized) -> tuple[RangeRecord, ...]:
    from twoscale._quantization.simulate import range_records

    return range_records(one.graph, one.network, one.found.samples_nchw, one.scheme)
