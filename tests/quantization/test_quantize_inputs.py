"""Arguments of quantize: models, calibration images in all forms, and the errors about others."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import twoscale
from tests.quantization.small_models import images, residual_model, small_cnn
from twoscale._calibration.profile import KEEP_SAMPLES, profile
from twoscale._frontends.torch_export.capture import capture
from twoscale._passes.fold import fold
from twoscale._quantization import COURSE, DEFAULT, quantize, quantize_graph
from twoscale.errors import (
    CalibrationError,
    CaptureError,
    ConfigurationError,
    QuantizationError,
    TwoscaleError,
    UnknownNameError,
)

PIXELS = images(51, 24)
LABELS = np.arange(24) % 5
MODEL = small_cnn(11)
HALVES = [PIXELS[:12], PIXELS[12:]]


def tensors(*arrays: Any) -> Any:
    found = tuple(torch.from_numpy(np.asarray(array)) for array in arrays)
    return found if len(found) > 1 else found[0]


FORMS: dict[str, Callable[[], Any]] = {
    "arrays": lambda: HALVES,
    "tensors": lambda: [tensors(half) for half in HALVES],
    "tuples with labels": lambda: [(PIXELS[:12], LABELS[:12]), (PIXELS[12:], LABELS[12:])],
    "lists with labels": lambda: [[tensors(PIXELS[:12]), tensors(LABELS[:12])], [tensors(PIXELS[12:]), LABELS[12:]]],
    "a generator": lambda: (half for half in HALVES),
    "an iterator": lambda: iter(HALVES),
    "a DataLoader": lambda: DataLoader(TensorDataset(*tensors(PIXELS, LABELS)), batch_size=12),
    "empty batches between": lambda: [PIXELS[:0], HALVES[0], PIXELS[:0], HALVES[1], PIXELS[:0]],
    "float64": lambda: [half.astype(np.float64) for half in HALVES],
    "tensors that need gradients": lambda: [tensors(half).requires_grad_() for half in HALVES],
    "another memory order": lambda: [tensors(half).contiguous(memory_format=torch.channels_last) for half in HALVES],
    "negative strides": lambda: [half[:, :, ::-1].copy()[:, :, ::-1] for half in HALVES],
    "read-only arrays": lambda: [np.broadcast_to(half, half.shape) for half in HALVES],
}


@pytest.fixture(scope="module")
def fingerprint() -> str:
    return quantize(MODEL, HALVES).fingerprint


@pytest.mark.parametrize("form", FORMS)
def test_images_in_any_form_give_the_same_network(form: str, fingerprint: str) -> None:
    assert quantize(MODEL, FORMS[form]()).fingerprint == fingerprint


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_images(dtype: torch.dtype) -> None:
    rounded = tensors(PIXELS).to(dtype)
    assert quantize(MODEL, [rounded]).fingerprint == quantize(MODEL, [rounded.float()]).fingerprint


def test_batches_are_taken_once_and_one_at_a_time() -> None:
    taken: list[int] = []

    def stream() -> Iterator[Any]:
        for index, half in enumerate(HALVES):
            taken.append(index)
            batch = half.copy()
            yield batch
            batch[...] = np.nan  # a loader may reuse its buffer

    network = quantize(MODEL, stream())
    assert taken == [0, 1]
    assert network.fingerprint == quantize(MODEL, HALVES).fingerprint


def test_the_package_offers_it(fingerprint: str) -> None:
    assert twoscale.quantize is quantize
    assert twoscale.quantize(MODEL, HALVES, scheme="default").fingerprint == fingerprint
    assert quantize(MODEL, HALVES, scheme=DEFAULT, name="mine").name == "mine"
    assert quantize(MODEL, HALVES).name == "Model"
    graph = fold(capture(MODEL, tensors(PIXELS)))
    assert quantize_graph(graph, profile(graph, HALVES), "default").fingerprint == fingerprint


def test_the_course_by_name_is_its_scheme() -> None:
    assert quantize(MODEL, HALVES, scheme="course").fingerprint == quantize(MODEL, HALVES, scheme=COURSE).fingerprint


def test_the_model_is_left_as_it_was() -> None:
    model = residual_model(12).train()
    model.a.eval()  # type: ignore[union-attr]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    modes = {name: module.training for name, module in model.named_modules()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.random.get_rng_state()
    network = quantize(model, [PIXELS])
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(bool((parameter.grad == 1).all()) for parameter in model.parameters() if parameter.grad is not None)
    assert torch.equal(torch.random.get_rng_state(), random_state)
    # The network is that of the model in eval mode, with running statistics of batch norms.
    assert network.fingerprint == quantize(model.eval(), [PIXELS]).fingerprint


def test_the_network_does_not_follow_the_model() -> None:
    """The integer network shares no memory with the model, which may be trained further."""
    model = small_cnn(13)
    network = quantize(model, [PIXELS])
    before = network(PIXELS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert np.array_equal(network(PIXELS), before)


def test_memory_for_corrections_is_bounded() -> None:
    graph = fold(capture(MODEL, tensors(PIXELS)))
    found = profile(graph, (images(seed, 200) for seed in range(4)))
    assert found.images == 800
    assert found.samples_nchw.shape == (KEEP_SAMPLES, 3, 8, 8)
    assert np.array_equal(found.samples_nchw[200:400], images(1, 200))


def test_gradients_may_be_off_or_inference_mode_on(fingerprint: str) -> None:
    with torch.no_grad():
        assert quantize(MODEL, HALVES).fingerprint == fingerprint


# Inputs that are no images.

SHAPES: dict[tuple[int, ...], Callable[[], nn.Module]] = {
    (40,): lambda: nn.Sequential(nn.Linear(40, 12), nn.ReLU(), nn.BatchNorm1d(12), nn.Linear(12, 3)),
    (4, 30): lambda: nn.Sequential(
        nn.Conv1d(4, 8, 5, padding=2), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(8, 6, 3),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 3),
    ),
}  # fmt: skip


LAYERS = {
    (40,): [("0", "Linear"), ("3", "Linear")],
    (4, 30): [("0", "Conv2d"), ("3", "MaxPool2d"), ("4", "Conv2d"), ("5", "AveragePool2d"), ("7", "Linear")],
}
"""Name and kind of every layer that computes: batch norms and ReLUs have become part of others."""


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_inputs_keep_the_shape_that_the_model_takes(shape: tuple[int, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = SHAPES[shape]().eval()
    x = torch.randn(50, *shape)
    network = twoscale.quantize(model, x)
    assert network.input.output.shape == shape
    assert [(layer.name, layer.op) for layer in network if layer.op not in ("QuantizeInput", "Reshape")] == LAYERS[
        shape
    ]
    result = twoscale.verify(network, x, model=model, executors=["reference", "torch", "onnxruntime"])
    assert (result.mismatches, result.samples) == (0, 50)
    assert result.sqnr_db is not None
    assert result.sqnr_db > 30

    expected = network(x.numpy())
    assert torch.is_tensor(network(x))
    path = tmp_path / "network.onnx"
    network.save(path)
    assert twoscale.load(path) == network
    session = onnxruntime.InferenceSession(path)
    (given,) = session.get_inputs()
    assert given.shape[1:] == list(shape)
    (found,) = session.run(None, {given.name: x.numpy()})
    assert np.allclose(found, expected, rtol=1e-6)
    network.save(tmp_path / "qdq.onnx", form="qdq")
    assert onnxruntime.InferenceSession(tmp_path / "qdq.onnx").get_inputs()[0].shape[1:] == list(shape)

    wrong = f"takes images of shape (N, {', '.join(map(str, shape))}), got (50, {', '.join(map(str, shape))}, 1)"
    with pytest.raises(ConfigurationError, match=re.escape(wrong)):
        network(x[..., None])
    with pytest.raises(CalibrationError, match=re.escape(f"shape (N, {', '.join(map(str, shape))}, 1)")):
        twoscale.quantize(model, [x, x[..., None]])
    with pytest.raises(ConfigurationError, match=r"only images .* have pixels to normalize"):
        twoscale.quantize(model, x, normalization=([0.5], [0.5]))


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_c_of_inputs_that_are_no_images(shape: tuple[int, ...], tmp_path: Path) -> None:
    from twoscale._codegen.c import export_c
    from twoscale._runtimes.c import CExecutor

    torch.manual_seed(0)
    x = torch.randn(50, *shape)
    network = twoscale.quantize(SHAPES[shape]().eval(), x)
    assert np.array_equal(network.compile()(x.numpy()), network(x.numpy()))
    found = CExecutor(network, target="portable").run(x.numpy())[network.output]
    assert np.array_equal(network.logits(found), network(x.numpy()))
    for target in ("portable", "small-ram"):
        (header,) = (path for path in export_c(network, tmp_path / target, target=target).paths if path.suffix == ".h")
        sizes = "".join(f"[{size}]" for size in shape)
        assert f"image:  {np.prod(shape)} uint8_t, {sizes};" in header.read_text()


# Errors.

NAN, INFINITE = PIXELS.copy(), PIXELS.copy()
NAN[3, 1, 2, 2] = np.nan
INFINITE[5:7, 0, 0, 0] = -np.inf

BATCHES: dict[str, tuple[Any, str]] = {
    "nothing": ([], "calibration got no images; pass at least one batch (a few hundred images are good)"),
    "no images": ([PIXELS[:0]], "calibration got no images; pass at least one batch"),
    "labels first": ([(LABELS, PIXELS)], "calibration batch 0 has shape (24,); expected images (N, C, H, W)"),
    "words": (["cat.png"], "calibration batch 0 is a str; expected images (N, C, H, W) as a tensor or an array, or a"),
    "a dict": ([{"x": PIXELS}], "calibration batch 0 is a dict; expected images (N, C, H, W) as a tensor or an array"),
    "an empty tuple": ([()], "calibration batch 0 is a tuple; expected images"),
    "raw pixels": (
        [PIXELS.astype(np.uint8)],
        "calibration batch 0 holds uint8 pixels; expected the normalized float images the model takes",
    ),
    "raw pixels later": ([PIXELS, tensors(PIXELS).byte()], "calibration batch 1 holds uint8 pixels; expected the norm"),
    "complex numbers": ([PIXELS.astype(complex)], "calibration batch 0 holds complex128; expected the normalized"),
    "objects": ([PIXELS.astype(object)], "calibration batch 0 holds object; expected the normalized"),
    "another size later": (
        [PIXELS, PIXELS[:, :, :4]],
        "calibration images have shape (N, 3, 4, 8); Model takes (N, 3, 8, 8)",
    ),
    "NaN": ([NAN], "input: 1 of 4608 values are NaN or infinite, the first is nan at index (3, 1, 2, 2); calibrate"),
    "infinity": ([INFINITE], "input: 2 of 4608 values are NaN or infinite, the first is -inf at index (5, 0, 0, 0)"),
    "beyond float32": ([PIXELS.astype(np.float64) * 1e300], "input: 4608 of 4608 values are NaN or infinite"),
}


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("case", BATCHES)
def test_bad_batches(case: str) -> None:
    batches, message = BATCHES[case]
    with pytest.raises(CalibrationError, match="^" + re.escape(message)) as caught:
        quantize(MODEL, batches)
    assert "\n" not in str(caught.value)


def changed(change: Callable[[Any], object]) -> nn.Module:
    model = small_cnn(14)
    with torch.no_grad():
        change(model)
    return model


MODELS: dict[str, tuple[Any, type[TwoscaleError], str]] = {
    "a function": (lambda x: x, CaptureError, "expected a torch.nn.Module, got function; pass the model itself"),
    "a class": (nn.Linear, CaptureError, "expected a torch.nn.Module, got type; pass the model itself"),
    "another size": (small_cnn(14), CaptureError, "a and b must have same reduction dim"),
    "NaN in a weight": (
        changed(lambda m: m.conv2.weight[0, 0, 0].fill_(np.nan)),
        CaptureError,
        "conv2.weight has 3 values that are NaN or infinite; retrain, or load a checkpoint that is whole",
    ),
    "infinity in the network": (
        changed(lambda m: m.conv1.weight.fill_(3e38)),
        CalibrationError,
        "conv1: ",
    ),
    "a bias too large for its weights": (
        changed(lambda m: (m.fc2.weight.mul_(1e-15), m.fc2.bias.fill_(3.0))),
        QuantizationError,
        "layer fc2, channel 0: the bias 3 is ",
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_bad_models(case: str) -> None:
    model, kind, message = MODELS[case]
    batch = PIXELS[:, :, :6, :6] if case == "another size" else PIXELS
    with pytest.raises(kind, match=re.escape(message)) as caught:
        quantize(model, [batch])
    assert "\n" not in str(caught.value)


def test_the_name_of_a_scheme_is_checked_before_the_images_are_read() -> None:
    def never() -> Iterator[Any]:
        raise AssertionError("the images were read")
        yield

    with pytest.raises(UnknownNameError, match="unknown scheme 'corse': did you mean 'course'"):
        quantize(MODEL, never(), scheme="corse")
