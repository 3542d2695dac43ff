"""verify and accuracy: every figure against one computed from all images held at once."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, TensorDataset

import twoscale
from tests.integer_networks import random_images, random_network
from tests.quantization.small_models import images, residual_model
from twoscale._calibration.profile import profile
from twoscale._files import record_to_json
from twoscale._frontends.torch_export.capture import capture
from twoscale._ir import float_graph as g
from twoscale._ir.float_module import GraphModule
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.reference import ReferenceExecutor
from twoscale._metrics import SignalToNoise
from twoscale._passes.fold import fold
from twoscale._quantization import COURSE, quantize_graph
from twoscale._runtimes.torch import TorchExecutor
from twoscale._verification import accuracy, comparison, verify
from twoscale._verification.results import VerifyResult
from twoscale.errors import CaptureError, ConfigurationError, ExecutorError, TwoscaleError, UnknownNameError

MODEL = residual_model(1)
PIXELS = images(71, 50)
LABELS = np.random.default_rng(72).integers(0, 5, 50)


def made(model: torch.nn.Module, how: Any) -> tuple[g.FloatGraph, IntegerNetwork]:
    graph = fold(capture(model, torch.from_numpy(PIXELS[:1])), join_residuals=how != COURSE)
    return graph, quantize_graph(graph, profile(graph, [images(70, 100)]), how)


@pytest.fixture(scope="module")
def default() -> tuple[g.FloatGraph, IntegerNetwork]:
    return made(MODEL, "default")


@pytest.fixture(scope="module")
def network(default: tuple[g.FloatGraph, IntegerNetwork]) -> IntegerNetwork:
    return default[1]


@pytest.fixture(scope="module")
def graph(default: tuple[g.FloatGraph, IntegerNetwork]) -> g.FloatGraph:
    return default[0]


def cut(size: int) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    for start in range(0, len(PIXELS), size):
        yield PIXELS[start : start + size], LABELS[start : start + size]


Flips = dict[tuple[str, int, tuple[int, ...]], int]


class Flipping:
    """The reference, but for some integers that are one more or less: (layer, image, index) to the difference.

    Only what is handed out changes, not what later layers compute with, so that every difference is counted once.
    """

    name = "flipping"

    def __init__(self, network: IntegerNetwork, flips: Flips) -> None:
        self.inner = ReferenceExecutor(network)
        self.flips = flips
        self.images = 0

    def run(self, images_nchw: NDArray[np.float32], keep: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
        found = self.inner.run(images_nchw, keep)
        for (layer, image, index), difference in self.flips.items():
            if self.images <= image < self.images + len(images_nchw):
                found[layer] = found[layer].copy()
                found[layer][(image - self.images, *index)] += difference
        self.images += len(images_nchw)
        return found


# Equal bits.


def test_no_integer_differs(network: IntegerNetwork) -> None:
    result = twoscale.verify(network, [PIXELS])
    assert result.ok
    assert (result.mismatches, result.first_divergence, result.on_grid) == (0, None, True)
    assert result.executors == ("reference", "torch")
    assert result.mismatches_by_executor == {"torch": 0}
    assert (result.network, result.scheme, result.samples) == ("Model", "default", 50)
    sizes = {layer.name: 50 * math.prod(layer.output.shape) for layer in network}
    assert {check.name: check.values for check in result.layers} == sizes
    assert result.compared == sum(sizes.values())
    assert [check.op for check in result.layers] == [layer.op for layer in network]


@pytest.mark.parametrize("batch_size", [1, 7, 50, 64])
def test_every_planted_difference_is_counted_and_the_first_is_named(network: IntegerNetwork, batch_size: int) -> None:
    flips: Flips = {
        ("fc", 49, (4,)): 1,
        ("fc", 3, (0,)): -1,
        ("b", 31, (7, 7, 0)): 1,
        ("b", 31, (0, 2, 3)): 1,
        ("input", 40, (2, 0, 5)): 1,
        ("mean", 30, (11, 0, 0)): 1,
    }
    result = verify(network, cut(batch_size), executors=["reference", Flipping(network, flips)])
    assert not result.ok
    assert result.mismatches == 6
    assert result.mismatches_by_executor == {"flipping": 6}
    by_layer = {check.name: check.mismatches for check in result.layers if check.mismatches}
    assert by_layer == {"fc": 2, "b": 2, "input": 1, "mean": 1}
    # The first batch with a difference decides, and in it the first layer of the network.
    firsts = {
        1: ("fc (Linear), image 3, index (0,)", ("fc", 3, (0,))),
        7: ("fc (Linear), image 3, index (0,)", ("fc", 3, (0,))),
        50: ("input (QuantizeInput), image 40, index (2, 0, 5)", ("input", 40, (2, 0, 5))),
        64: ("input (QuantizeInput), image 40, index (2, 0, 5)", ("input", 40, (2, 0, 5))),
    }
    text, (layer, image, index) = firsts[batch_size]
    right = int(ReferenceExecutor(network).run(PIXELS, [layer])[layer][(image, *index)])
    wrong = right + flips[layer, image, index]
    assert result.first_divergence == f"layer {text}: expected {right}, flipping gave {wrong}"


def test_each_executor_has_its_count(network: IntegerNetwork) -> None:
    flipping = Flipping(network, {("a", 0, (0, 0, 0)): 1, ("a", 0, (0, 0, 1)): 1})
    result = verify(network, cut(20), executors=["reference", "torch", flipping, TorchExecutor(network)])
    assert result.executors == ("reference", "torch", "flipping", "torch")
    assert result.mismatches_by_executor == {"torch": 0, "flipping": 2}
    assert result.mismatches == 2
    assert result.compared == 3 * sum(check.values for check in result.layers)
    # The first executor is what the others are compared with, be it right or wrong.
    reversed_ = verify(network, cut(20), executors=[Flipping(network, flipping.flips), "reference", "torch"])
    assert reversed_.mismatches_by_executor == {"reference": 2, "torch": 2}
    assert reversed_.mismatches == 4
    assert list(reversed_.divergence_by_executor) == ["reference", "torch"]
    assert reversed_.first_divergence == reversed_.divergence_by_executor["reference"]


def test_one_executor_compares_nothing(network: IntegerNetwork) -> None:
    for executors in (["torch"], "torch", [TorchExecutor(network)]):
        result = verify(network, cut(30), executors=executors)
        assert (result.mismatches, result.compared, result.mismatches_by_executor) == (0, 0, {})
        assert result.top1 is not None


@pytest.mark.parametrize("seed", range(4))
def test_random_networks_and_odd_batches(seed: int) -> None:
    rng = np.random.default_rng(seed)
    network = random_network(rng, length=8)
    pixels = random_images(rng, network, 13)
    result = verify(network, [pixels[:1], pixels[1:6], pixels[6:]])
    assert result.ok
    assert result.samples == 13
    assert sum(check.outside for check in result.layers) == 0


def test_the_result_does_not_depend_on_the_batches(network: IntegerNetwork, graph: g.FloatGraph) -> None:
    whole = verify(network, cut(50), model=graph)
    for size in (1, 9, 49):
        found = verify(network, cut(size), model=graph)
        assert found.sqnr_db == pytest.approx(whole.sqnr_db, abs=1e-3)
        assert found.rms_error == pytest.approx(whole.rms_error, rel=1e-4)
        (one_output,) = found.outputs
        assert (one_output.sqnr_db, one_output.rms_error) == (found.sqnr_db, found.rms_error)
        rounded = dataclasses.replace(
            found,
            sqnr_db=whole.sqnr_db,
            rms_error=whole.rms_error,
            layers=whole.layers,
            outputs=(dataclasses.replace(one_output, sqnr_db=whole.sqnr_db, rms_error=whole.rms_error),),
        )
        assert rounded == whole
        for one, other in zip(found.layers, whole.layers, strict=True):
            assert dataclasses.replace(one, sqnr_db=other.sqnr_db) == other
            assert one.sqnr_db == pytest.approx(other.sqnr_db, abs=1e-3)


# Figures.


def decibels(reference: NDArray[Any], value: NDArray[Any]) -> float:
    signal = np.square(reference.astype(np.float64)).sum()
    return float(10 * np.log10(signal / np.square(reference.astype(np.float64) - value).sum()))


def direct(network: IntegerNetwork, graph: g.FloatGraph) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Return integers and real values of every layer, all images at once."""
    integers = ReferenceExecutor(network).run(PIXELS, [layer.name for layer in network])
    real: dict[str, NDArray[Any]] = {}
    GraphModule(graph).run(
        torch.from_numpy(PIXELS), lambda node, value: real.__setitem__(node.name, value.numpy().astype(np.float64))
    )
    return integers, real


@pytest.mark.parametrize("scheme", ["default", "course"])
def test_noise_agreement_and_accuracy(scheme: str) -> None:
    graph, network = made(MODEL, "default" if scheme == "default" else COURSE)
    integers, real = direct(network, graph)
    result = verify(network, cut(8), model=graph)
    logits = integers["fc"] * network.spec("fc").scale
    with torch.no_grad():
        expected = MODEL(torch.from_numpy(PIXELS)).numpy()
    assert result.sqnr_db == pytest.approx(decibels(expected, logits), abs=1e-3)
    assert result.agreement == np.mean(expected.argmax(1) == logits.argmax(1))
    assert result.top1 == np.mean(logits.argmax(1) == LABELS)
    for check in result.layers:
        spec = network.spec(check.name)
        value = (integers[check.name].astype(np.float64) - spec.zero_point) * spec.scale
        assert check.sqnr_db == pytest.approx(decibels(real[check.name], value), abs=1e-3)


def test_the_model_itself_or_its_graph(network: IntegerNetwork, graph: g.FloatGraph) -> None:
    by_graph, by_model = verify(network, [PIXELS], model=graph), verify(network, [PIXELS], model=MODEL)
    assert by_model == by_graph
    unjoined, course = made(MODEL, COURSE)
    assert verify(course, [PIXELS], model=MODEL) == verify(course, [PIXELS], model=unjoined)


def test_the_model_is_left_as_it_was(network: IntegerNetwork) -> None:
    model = residual_model(1).train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert verify(network, [PIXELS], model=model).agreement is not None
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_what_saturates_and_what_was_seen(network: IntegerNetwork, graph: g.FloatGraph) -> None:
    pixels = PIXELS * 1.5  # beyond what was calibrated
    integers = ReferenceExecutor(network).run(pixels, [layer.name for layer in network])
    result = verify(network, [pixels[:20], pixels[20:]])
    seen = set()
    for check in result.layers:
        q, spec = integers[check.name].astype(np.int64), network.spec(check.name)
        assert (check.seen_lo, check.seen_hi) == (q.min(), q.max())
        assert check.outside == 0
        if spec.dtype == "int32":
            assert check.saturated is None
            continue
        assert check.saturated is not None
        lost = (q == spec.hi) | ((q == spec.lo) & (spec.lo != spec.zero_point))
        assert check.saturated == pytest.approx(lost.mean())
        seen.add(check.saturated > 0)
        if spec.lo == spec.zero_point:
            assert (q == spec.lo).mean() > check.saturated  # a ReLU's zeros are no loss
    assert True in seen


def test_bounds_are_the_networks(network: IntegerNetwork) -> None:
    bounds = {bound.layer: bound for bound in network.bounds}
    result = verify(network, [PIXELS])
    for check in result.layers:
        bound = bounds.get(check.name)
        assert check.accumulator_bound == (bound.bound if bound else None)
        assert check.float32_exact == (bound.float32_exact if bound else None)
        assert check.pair_saturation_safe == (bound.pair_saturation_safe if bound else None)
    logits = next(check for check in result.layers if check.name == "fc")
    assert logits.seen_hi is not None
    assert logits.accumulator_bound is not None
    assert logits.seen_hi <= logits.accumulator_bound


def test_integers_out_of_range_are_counted() -> None:
    """A 5-bit bound that an executor forgets."""
    narrow = random_network(np.random.default_rng(5), operators={"conv"}, length=2, bits=5, dtype="uint8")
    pixels = random_images(np.random.default_rng(6), narrow, 10)
    flips: Flips = {("input", 0, (0, 0, 0)): 100, ("input", 9, (0, 1, 1)): 60}
    result = verify(narrow, [pixels], executors=[Flipping(narrow, flips), "reference"])
    assert {check.name: check.outside for check in result.layers if check.outside} == {"input": 2}
    assert result.mismatches == 2


def test_without_labels_or_model(network: IntegerNetwork) -> None:
    for batches in ([PIXELS], [(PIXELS,)], [(PIXELS, None)], [torch.from_numpy(PIXELS)]):
        result = verify(network, batches)
        assert (result.top1, result.agreement, result.sqnr_db) == (None, None, None)
        assert all(check.sqnr_db is None for check in result.layers)


def test_accuracy_counts_what_has_labels(network: IntegerNetwork) -> None:
    result = verify(network, [(PIXELS[:30], LABELS[:30]), PIXELS[30:]])
    assert result.samples == 50
    assert result.top1 == np.mean(network(PIXELS[:30]).argmax(1) == LABELS[:30])


def test_an_exact_network_has_no_noise() -> None:
    """None, not infinity: JSON has none."""
    noise = SignalToNoise()
    assert noise.db is None
    noise.update(np.array([1.0, 2.0]), np.array([1.0, 2.0]))
    assert noise.db is None
    noise.update(np.array([2.0], np.float32), np.array([1.0]))
    assert noise.db == pytest.approx(10 * math.log10(9))
    silent = SignalToNoise()
    silent.update(np.zeros(3), np.ones(3))
    assert silent.db is None


FORMS: dict[str, Callable[[], Any]] = {
    "arrays": lambda: cut(20),
    "tensors": lambda: [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in cut(20)],
    "lists": lambda: [[x, list(y)] for x, y in cut(20)],
    "more than two": lambda: [(x, y, "names") for x, y in cut(20)],
    "small labels": lambda: [(x, y.astype(np.uint8)) for x, y in cut(20)],
    "a DataLoader": lambda: DataLoader(TensorDataset(torch.from_numpy(PIXELS), torch.from_numpy(LABELS)), 20),
    "empty batches": lambda: [(PIXELS[:0], LABELS[:0]), *cut(20), (PIXELS[:0], LABELS[:0])],
    "float64": lambda: [(x.astype(np.float64), y) for x, y in cut(20)],
    "gradients": lambda: [(torch.from_numpy(x).requires_grad_(), y) for x, y in cut(20)],
    "read-only": lambda: [(np.broadcast_to(x, x.shape), y) for x, y in cut(20)],
}


@pytest.mark.parametrize("form", FORMS)
def test_batches_in_any_form(network: IntegerNetwork, graph: g.FloatGraph, form: str) -> None:
    assert verify(network, FORMS[form](), model=graph) == verify(network, cut(20), model=graph)
    expected = np.mean(network(PIXELS).argmax(1) == LABELS), 50
    assert accuracy(network, FORMS[form]()) == expected


def test_accuracy(network: IntegerNetwork) -> None:
    right = network(PIXELS).argmax(1) == LABELS
    for limit in (1, 19, 20, 21, 49, 50, 51, None):
        used = min(limit or 50, 50)
        for executor in ("torch", "reference"):
            found = accuracy(network, cut(20), executor=executor, max_samples=limit)
            assert found == (np.mean(right[:used]), used)


def test_the_record_survives_json(network: IntegerNetwork, graph: g.FloatGraph) -> None:
    result = verify(network, cut(25), model=graph, executors=["reference", Flipping(network, {("a", 1, (0, 0, 0)): 1})])
    assert msgspec.json.decode(record_to_json(result), type=VerifyResult) == result


# Errors.

NAN = PIXELS.copy()
NAN[7, 0, 0, 0] = np.nan

BATCHES: dict[str, tuple[Any, str]] = {
    "nothing": ([], " got no images; pass at least one batch"),
    "no images": ([(PIXELS[:0], LABELS[:0])], " got no images; pass at least one batch"),
    "another shape": ([(PIXELS[:, :2], LABELS)], "Model takes images of shape (N, 3, 8, 8), got (50, 2, 8, 8)"),
    "single images": (zip(PIXELS, LABELS, strict=True), "batch 0 has images (3, 8, 8) with labels int64(); expected"),
    "NaN": (
        [(NAN, LABELS)],
        "the images hold 1 values that are NaN or infinite, the first in image 7; expected finite",
    ),
    "raw pixels": ([(PIXELS.astype(np.uint8), LABELS)], "batch 0 holds uint8 pixels; expected the normalized float"),
    "words": ([(np.full(PIXELS.shape, "a"), LABELS)], "images are arrays of numbers, got ndarray of <U1"),
    "too few labels": (
        [(PIXELS, LABELS[:-1])],
        "batch 0 has images (50, 3, 8, 8) with labels int64(49,); expected one class index for each image",
    ),
    "a column of labels": ([(PIXELS, LABELS[:, None])], "with labels int64(50, 1); expected one class index for each"),
    "one-hot labels": ([(PIXELS, np.eye(5)[LABELS])], "with labels float64(50, 5); expected one class index for each"),
    "labels as fractions": ([(PIXELS, LABELS / 2)], "with labels float64(50,); expected one class index for each"),
    "labels as words": ([(PIXELS, ["cat"] * 50)], "with labels <U3(50,); expected one class index for each image"),
    "two batches in one": ([[PIXELS, PIXELS]], "with labels float32(50, 3, 8, 8); expected one class index for each"),
}


@pytest.mark.parametrize("case", BATCHES)
def test_bad_batches(network: IntegerNetwork, case: str) -> None:
    batches, message = BATCHES[case]
    batches = list(batches)
    for function in (verify, accuracy):
        with pytest.raises(ConfigurationError, match=re.escape(message)) as caught:
            function(network, batches)
        assert "\n" not in str(caught.value)


def test_accuracy_needs_labels(network: IntegerNetwork) -> None:
    with pytest.raises(ConfigurationError, match=r"accuracy needs labels; pass batches of \(images, labels\)"):
        accuracy(network, [PIXELS])


def test_executors_that_do_not_exist(network: IntegerNetwork) -> None:
    with pytest.raises(ConfigurationError, match=r"verify needs at least one executor, e\.g\. reference"):
        verify(network, [PIXELS], executors=[])
    with pytest.raises(UnknownNameError, match="unknown executor 'troch': did you mean 'torch'"):
        verify(network, [PIXELS], executors=["reference", "troch"])


MODELS: dict[str, tuple[Any, type[TwoscaleError], str]] = {
    "no module": (3, CaptureError, "expected a torch.nn.Module, got int; pass the model itself"),
    "other classes": (
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 7)),
        ConfigurationError,
        "the model has 7 classes and the network 5; pass the model that the network was made from",
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_another_model(network: IntegerNetwork, case: str) -> None:
    model, kind, message = MODELS[case]
    with pytest.raises(kind, match=re.escape(message)):
        verify(network, [PIXELS], model=model)


def test_a_graph_that_is_folded_otherwise(network: IntegerNetwork) -> None:
    """Its layers have the right names and shapes, and other values: noise per layer would be nonsense."""
    message = "b makes (8, 8, 8) of a in the model, but (8, 8, 8) of a, stem in the network; pass the model that the"
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        verify(network, [PIXELS], model=made(MODEL, COURSE)[0])


class Wrong:
    """An executor that gives something else than the network's tensors."""

    name = "wrong"

    def __init__(self, network: IntegerNetwork, change: Callable[[dict[str, NDArray[Any]]], object]) -> None:
        self.inner = ReferenceExecutor(network)
        self.change = change

    def run(self, images_nchw: NDArray[np.float32], keep: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
        found = self.inner.run(images_nchw, keep)
        self.change(found)
        return found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.pop("a"), "executor wrong gave nothing for layer a; expected (50, 8, 8, 8)"),
        (
            lambda found: found.update(fc=found["fc"][:1]),
            "executor wrong gave (1, 5) for layer fc; expected (50, 5)",
        ),
    ],
)
def test_an_executor_that_gives_other_tensors(network: IntegerNetwork, change: Any, message: str) -> None:
    """One image less would broadcast, and compare with all others."""
    with pytest.raises(ExecutorError, match=re.escape(message)):
        verify(network, [PIXELS], executors=["reference", Wrong(network, change)])


def test_images_are_compared_in_parts_of_bounded_memory(
    network: IntegerNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    class Watched(TorchExecutor):
        def run(self, images_nchw: NDArray[np.float32], keep: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
            sizes.append(len(images_nchw))
            return super().run(images_nchw, keep)

    def found() -> VerifyResult:
        sizes.clear()
        return verify(network, [(PIXELS, LABELS)], executors=["reference", Watched(network)], model=MODEL)

    whole = found()
    assert sizes == [50]
    values = sum(math.prod(layer.output.shape) for layer in network)
    monkeypatch.setattr(comparison, "_MEMORY", 8 * 8 * values)
    parts = found()
    assert sizes == [8] * 6 + [2]
    assert parts.sqnr_db == pytest.approx(whole.sqnr_db)
    same = {"sqnr_db": None, "rms_error": None, "layers": (), "outputs": ()}
    assert dataclasses.replace(parts, **same) == dataclasses.replace(whole, **same)  # type: ignore[arg-type]
