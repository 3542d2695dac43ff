"""A lab record as a real run on 10,000 images would leave it, from seeded synthetic tensors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from twoscale._calibration.summaries import Histogram, TensorSummary
from twoscale._environment import Environment
from twoscale._lab.records import (
    BiasIntegers,
    BitsResult,
    ClipCurve,
    ClipPoint,
    LabNetwork,
    LabResults,
    LayerScales,
    RangeMethodResult,
    StageResult,
    WeightNoise,
    WorkedOutput,
)
from twoscale._quantization.records import RangeRecord
from twoscale._verification.results import LayerCheck, VerifyResult

SAMPLES = 10_000
WEIGHTS = {"conv1": 450, "conv2": 2400, "fc1": 48_000, "fc2": 10_080, "fc3": 840}
CHANNELS = {"conv1": 6, "conv2": 16, "fc1": 120, "fc2": 84, "fc3": 10}
OUTPUTS = {"input": 3072, "conv1": 4704, "conv2": 1600, "fc1": 120, "fc2": 84, "fc3": 10}
TOP1 = {  # of 10,000 images
    "Net": {
        "float": 5421,
        "course": {"weights": 5414, "activations": 5391, "integer": 5391},
        "default": {"weights": 5423, "activations": 5419, "integer": 5419},
    },
    "NetWithBias": {
        "float": 5468,
        "course": {"weights": 5460, "activations": 5446, "integer": 5445},
        "default": {"weights": 5470, "activations": 5466, "integer": 5466},
    },
}
BIASES = {  # of NetWithBias: key, title, right among 10,000 images
    "course": (
        ("weights-unscaled", "integer weights only, bias unscaled", 4970),
        ("weights-without", "integer weights only, no bias", 4970),
        ("weights-scaled", "integer weights only, bias scaled", 5461),
        ("unscaled", "all integer, bias unscaled", 5302),
        ("stretched", "all integer, bias stretched to int32", 1000),
    ),
    "default": (
        ("unscaled", "all integer, bias unscaled", 5318),
        ("stretched", "all integer, bias stretched to int32", 1000),
    ),
}
TITLES = {
    "weights": "weights int8, activations float",
    "activations": "weights and activations 8 bit, bias float",
    "integer": "all integer",
}


def _summary(name: str, kind: str, values: NDArray[np.float32]) -> TensorSummary:
    lo, hi = float(values.min()), float(values.max())
    width = 2.0 ** math.ceil(math.log2((hi - lo) / 126))
    first, last = math.floor(lo / width), math.floor(hi / width) + 1
    counts, _ = np.histogram(values, bins=last - first, range=(first * width, last * width))
    return TensorSummary(
        name=name,
        kind=kind,
        count=values.size,
        mean=float(values.mean(dtype=np.float64)),
        std=float(values.std(dtype=np.float64)),
        min=lo,
        max=hi,
        zeros=int((values == 0).sum()),
        histogram=Histogram(first * width, last * width, tuple(int(count) for count in counts)),
    )


def _range(one: TensorSummary, values: NDArray[np.float32], scheme: str) -> RangeRecord:
    signed = one.kind == "weight" or scheme == "course"
    lo, hi = (-127, 127) if signed else (0, 255)
    if signed:
        scale, zero_point = max(-one.min, one.max) / 127, 0
    else:
        scale = (max(one.max, 0.0) - min(one.min, 0.0)) / 253
        zero_point = 2 * round(-min(one.min, 0.0) / scale / 2)
    integers = np.clip(np.rint(values / scale) + zero_point, lo, hi).astype(np.int64)
    counts = np.bincount(integers - lo, minlength=hi - lo + 1)
    noise = values - scale * (integers - zero_point)
    power = float(np.mean(values.astype(np.float64) ** 2)) / float(np.mean(noise.astype(np.float64) ** 2))
    per_channel = one.kind == "weight" and scheme == "default"
    spread = np.linspace(0.55, 1.0, CHANNELS[one.name]) if per_channel else np.ones(1)
    return RangeRecord(
        name=one.name,
        kind=one.kind,
        scales=tuple(float(scale * factor) for factor in spread),
        zero_point=zero_point,
        lo=lo,
        hi=hi,
        method="mse" if scheme == "default" else "minmax",
        seen_lo=int(integers.min()),
        seen_hi=int(integers.max()),
        sqnr_db=10 * math.log10(power),
        histogram=Histogram(lo - 0.5, hi + 0.5, tuple(int(count) for count in counts)),
    )


def _stages(network: str) -> tuple[StageResult, ...]:
    numbers = TOP1[network]
    base = numbers["float"]
    assert isinstance(base, int)
    stages = [StageResult(network, "float", "float", "float32", SAMPLES, base / SAMPLES)]
    for scheme, agreement, sqnr in (("course", 0.9795, 28.4), ("default", 0.9903, 37.0)):
        by_stage = numbers[scheme]
        assert isinstance(by_stage, dict)
        for index, (stage, correct) in enumerate(by_stage.items()):
            index += network == "NetWithBias" and stage == "integer"
            stages.append(
                StageResult(
                    network,
                    scheme,
                    stage,
                    TITLES[stage],
                    SAMPLES,
                    correct / SAMPLES,
                    agreement=agreement - 0.001 * index,
                    sqnr_db=sqnr - 0.8 * index,
                    mismatches=(0 if scheme == "default" else 14) if stage == "integer" else None,
                )
            )
    return tuple(stages)


def _bias_stages() -> tuple[StageResult, ...]:
    return tuple(
        StageResult("NetWithBias", scheme, key, title, SAMPLES, right / SAMPLES, agreement=right / 6000)
        for scheme, rows in BIASES.items()
        for key, title, right in rows
    )


def _clips(name: str, weights: NDArray[np.float32]) -> ClipCurve:
    widest = float(np.abs(weights).max())
    points = []
    for part in (1.0, 0.9, 0.5, 0.1):
        outside = float((np.abs(weights) > part * widest * 127.5 / 127).mean())
        sqnr = 40.0 - 30 * outside + (2.5 if part == 0.9 else 0)
        points.append(ClipPoint(widest * part, outside, sqnr, 0.54 - 0.4 * outside))
    return ClipCurve(name, 1000, tuple(points))


def _scales(scheme: str) -> tuple[LayerScales, ...]:
    found = []
    for index, layer in enumerate(("conv1", "conv2", "fc1", "fc2")):
        numerators = (100 + index, 203, 301) if scheme == "default" else ()
        multipliers = tuple(value / 65536 for value in numerators) or (0.00213 + index / 1000,)
        x, y = 0.0078 + index / 1000, 0.0312
        found.append(LayerScales(layer, x, tuple(m * y / x for m in multipliers), y, multipliers, numerators))
    return tuple(found)


def _worked(scheme: str) -> WorkedOutput:
    numerator = 203 if scheme == "default" else None
    return WorkedOutput(
        layer="conv2",
        image=0,
        index=(1, 2, 3),
        x_scale=0.0088,
        weight_scale=0.011,
        y_scale=0.03125,
        multiplier=203 / 65536,
        numerator=numerator,
        bias=-17,
        accumulator=12_345,
        zero_point=0,
        lo=0,
        hi=255 if scheme == "default" else 127,
        output=38,
        real=1.19,
    )


def _verify(network: str, scheme: str) -> VerifyResult:
    on_grid = scheme == "default"
    bounds = {"conv1": 1_212_000, "conv2": 2_350_411, "fc1": 9_800_123, "fc2": 2_101_007, "fc3": 1_404_310}
    sqnr = {"input": 52.1, "conv1": 41.2, "conv2": 37.8, "fc1": 36.2, "fc2": 36.4, "fc3": 37.0}
    layers = tuple(
        LayerCheck(
            name=name,
            op="quantize" if name == "input" else "conv + relu" if "conv" in name else "linear + relu",
            mismatches=14 if not on_grid and name == "fc1" else 0,
            values=OUTPUTS[name] * SAMPLES,
            sqnr_db=sqnr[name] - (0 if on_grid else 8.3),
            accumulator_bound=None if name == "input" else bounds[name] * (1 if on_grid else 2),
            float32_exact=None if name == "input" else bounds[name] * (1 if on_grid else 2) < 2**24,
            pair_saturation_safe=None if name == "input" else name != "fc1",
            saturated=None if name in ("input", "fc3") else 0.00012,
        )
        for name in OUTPUTS
    )
    last = next(one for one in _stages(network) if (one.scheme, one.stage) == (scheme, "integer"))
    return VerifyResult(
        network=network,
        scheme=scheme,
        on_grid=on_grid,
        executors=("reference", "torch"),
        samples=SAMPLES,
        mismatches=sum(layer.mismatches for layer in layers),
        compared=sum(layer.values for layer in layers),
        top1=last.top1,
        agreement=last.agreement,
        sqnr_db=last.sqnr_db,
        layers=layers,
        mismatches_by_executor={"torch": sum(layer.mismatches for layer in layers)},
        first_divergence=None if on_grid else "fc1, image 713, index (64,): expected 37, found 38",
    )


def _network(name: str, seed: int) -> LabNetwork:
    rng = np.random.default_rng(seed)
    weights, activations = {}, {}
    for layer, size in WEIGHTS.items():
        weights[layer] = (rng.standard_t(6, size) * 0.8 / math.sqrt(size / CHANNELS[layer])).astype(np.float32)
    for layer, size in OUTPUTS.items():
        if layer == "input":
            values = rng.integers(0, 256, size * 20) / 127.5 - 1
        else:
            values = rng.gamma(1.3, 1.1, size * 20) * rng.choice([1.0, -0.6], size * 20, p=[0.45, 0.55])
            if layer != "fc3":
                values = np.maximum(values, 0)
        activations[layer] = values.astype(np.float32)
    summaries = {key: _summary(key, "weight", values) for key, values in weights.items()}
    outputs = {
        key: _summary(key, "input" if key == "input" else "activation", values) for key, values in activations.items()
    }
    steps = np.arange(2000, 25_001, 2000)
    loss = 1.18 + 1.1 * np.exp(-steps / 5200) + rng.normal(0, 0.012, steps.size)
    return LabNetwork(
        name=name,
        parameters=61_770 + (10 if name == "NetWithBias" else 0),
        train_loss=tuple((int(step), float(value)) for step, value in zip(steps, loss, strict=True)),
        weights=tuple(summaries.values()),
        activations=tuple(outputs.values()),
        ranges={
            scheme: (
                *(_range(summaries[key], values, scheme) for key, values in weights.items()),
                *(_range(outputs[key], values, scheme) for key, values in activations.items()),
            )
            for scheme in ("course", "default")
        },
        stages=_stages(name),
        verify={scheme: _verify(name, scheme) for scheme in ("course", "default")},
        files={
            "checkpoint": f"{name}/model.safetensors",
            "default": f"{name}/default.onnx",
            "course": f"{name}/course.onnx",
        },
        pooled=tuple(
            _summary(layer, "activation", np.maximum(activations[layer][0::2], activations[layer][1::2]))
            for layer in ("conv1", "conv2")
        ),
        methods=tuple(
            RangeMethodResult(method, clipped, sqnr, SAMPLES, right / SAMPLES, 0.97, sqnr - 5)
            for method, clipped, sqnr, right in (
                ("minmax", 0.0, 40.1, 5412),
                ("3-sigma", 0.004, 33.2, 5398),
                ("percentile-99.9", 0.001, 38.0, 5410),
                ("mse", 0.0002, 41.5, 5415),
                ("entropy", 0.0009, 36.6, 5402),
            )
        ),
        clips=tuple(_clips(layer, values) for layer, values in weights.items()),
        noise={
            "course": tuple(WeightNoise(layer, 40.0, 38.5) for layer in WEIGHTS),
            "default": tuple(WeightNoise(layer, 41.4, 48.1, 43.9, 42.6) for layer in WEIGHTS),
        },
        scales={scheme: _scales(scheme) for scheme in ("course", "default")},
        worked={scheme: _worked(scheme) for scheme in ("course", "default")},
        biases={
            scheme: tuple(
                BiasIntegers(
                    layer,
                    (0.00031, 0.00042) if scheme == "default" else (0.0005,),
                    tuple(0.1 * i - 0.4 if last and name == "NetWithBias" else 0.0 for i in range(CHANNELS[layer])),
                    tuple(
                        7 * i - 20 if scheme == "default" or (last and name == "NetWithBias") else 0
                        for i in range(CHANNELS[layer])
                    ),
                )
                for layer, last in ((layer, layer == "fc3") for layer in WEIGHTS)
            )
            for scheme in ("course", "default")
        },
        bias_stages=_bias_stages() if name == "NetWithBias" else (),
        product_of_scales=3.7e-13 if name == "NetWithBias" else None,
        bits=tuple(
            BitsResult(scheme, bits, SAMPLES, right / SAMPLES, agreement, 5.5 * bits)
            for scheme, rows in (
                ("course", ((2, 1000, 0.15), (4, 5200, 0.8), (8, 5391, 0.97))),
                ("default", ((2, 4800, 0.7), (4, 5400, 0.95), (8, 5419, 0.99))),
            )
            for bits, right, agreement in rows
        ),
    )


def sample_results(seed: int = 0) -> LabResults:
    return LabResults(
        data="cifar10",
        seed=seed,
        train_samples=50_000,
        test_samples=SAMPLES,
        calibration_samples=1000,
        recipe={"epochs": 2, "batch_size": 4, "lr": 0.001, "momentum": 0.9, "compile": None},
        networks=(_network("Net", seed), _network("NetWithBias", seed + 1)),
        environment=Environment(
            date="2026-01-31T12:34:56+00:00",
            machine="AMD EPYC 9B14",
            cores=2,
            python="3.12.4",
            versions={"twoscale": "0.1.0", "torch": "2.9.1", "numpy": "2.4.6"},
        ),
        seconds={"data": 1.204, "train": 61.75, "calibrate": 0.83, "quantize": 0.41, "verify": 9.06},
    )


@pytest.fixture(scope="session")
def results() -> LabResults:
    return sample_results()
