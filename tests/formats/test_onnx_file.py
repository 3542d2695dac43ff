"""The saved form: loading gives an equal network, the file is plain ONNX, and damaged or altered files are refused."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from onnx import numpy_helper

import twoscale
from tests.formats.onnx_running import mismatches, reference, run_model, sweep_input
from tests.integer_networks import networks, random_images, random_network
from twoscale._formats import load, save, to_model
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork
from twoscale.errors import NetworkFileError, TwoscaleError, UnknownNameError


def example(seed: int = 0, **more: Any) -> IntegerNetwork:
    return random_network(np.random.default_rng(seed), **more)


def properties(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def set_property(model: onnx.ModelProto, key: str, value: str) -> None:
    onnx.helper.set_model_props(model, properties(model) | {key: value})


# What is written.


@settings(max_examples=80)
@given(networks())
def test_the_same_network_comes_back(tmp_path_factory: pytest.TempPathFactory, network: IntegerNetwork) -> None:
    path = tmp_path_factory.getbasetemp() / "network.onnx"
    network.save(path)
    back = load(path)
    assert back == network
    assert hash(back) == hash(network)
    assert back.fingerprint == network.fingerprint
    assert (back.name, back.scheme, back.output) == (network.name, network.scheme, network.output)
    assert back.metadata == network.metadata
    for ours, theirs in zip(network, back, strict=True):
        assert type(ours) is type(theirs)
        for field in dataclasses.fields(ours):
            one, other = getattr(ours, field.name), getattr(theirs, field.name)
            if isinstance(one, np.ndarray):
                assert one.dtype == other.dtype
                assert np.array_equal(one, other)
            else:
                assert one == other, field.name
    # Saving what was loaded gives the same bytes.
    before = path.read_bytes()
    back.save(path)
    assert path.read_bytes() == before


@settings(max_examples=60)
@given(networks(dtype="mixed"))
def test_it_is_valid_onnx_of_standard_operators(network: IntegerNetwork) -> None:
    model = to_model(network)
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert {node.domain for node in model.graph.node} == {""}
    (images,), (logits,) = model.graph.input, model.graph.output
    for value, name, shape in (
        (images, "input", network.input.output.shape),
        (logits, "logits", network.spec(network.output).shape),
    ):
        kind = value.type.tensor_type
        assert value.name == name
        assert kind.elem_type == onnx.TensorProto.FLOAT
        assert kind.shape.dim[0].dim_param == "N"
        assert tuple(dimension.dim_value for dimension in kind.shape.dim[1:]) == shape
    # Every layer's integers are described, and every stored tensor has a reader.
    described = {value.name for value in model.graph.value_info}
    assert described == {f"{layer.name}/q" for layer in network}
    read = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= read


def test_logits_are_the_networks() -> None:
    for seed in range(20):
        network = example(seed)
        images = random_images(np.random.default_rng(seed), network, 3)
        expected = network(images)
        # Integers are equal; int32 · scale is rounded once in the file, not at all in the reference.
        assert np.allclose(run_model(to_model(network), images, ["logits"])["logits"], expected, rtol=3e-7, atol=0)


def test_metadata_is_readable_by_anyone(tmp_path: Path) -> None:
    network = dataclasses.replace(
        example(3, operators={"conv"}), metadata={"data": "digits", "top1": 0.98, "naïve": [1, None, {"a": True}]}
    )
    network.save(tmp_path / "a.onnx")
    found = properties(onnx.load(tmp_path / "a.onnx"))
    assert found["twoscale.format"] == "1"
    assert found["twoscale.form"] == "integer"
    assert found["twoscale.name"] == network.name
    assert found["twoscale.scheme"] == network.scheme
    assert found["twoscale.fingerprint"] == network.fingerprint
    assert json.loads(found["twoscale.metadata"]) == network.metadata
    described = json.loads(found["twoscale.layers"])
    assert [(layer["op"], layer["name"]) for layer in described] == [(layer.op, layer.name) for layer in network]
    assert described[0]["output"]["scale"] == network.input.output.scale
    assert load(tmp_path / "a.onnx").metadata == network.metadata


def test_numpy_scalars_are_plain_numbers_in_the_file(tmp_path: Path) -> None:
    network = example(4, operators={"conv"})
    layers = []
    for layer in network:
        numbers: dict[str, Any] = {
            "scale": np.float64(layer.output.scale),
            "zero_point": np.int64(layer.output.zero_point),
            "shape": tuple(np.int64(size) for size in layer.output.shape),
        }
        layers.append(dataclasses.replace(layer, output=dataclasses.replace(layer.output, **numbers)))
    strange = dataclasses.replace(network, layers=tuple(layers), metadata={"top1": np.float32(0.5)})
    strange.save(tmp_path / "a.onnx")
    back = load(tmp_path / "a.onnx")
    assert back.fingerprint == strange.fingerprint == network.fingerprint
    assert back.metadata == {"top1": 0.5}


def test_layers_may_have_any_name(tmp_path: Path) -> None:
    names = ["logits", "input", "a/q", "a", "a/weight", "unit", "a/q/unclamped", "block.0/conv", "ä b"]
    spec = n.TensorSpec((2, 2, 2), "uint8", 0.5, 2, 2, 90)
    layers: list[n.Layer] = [n.QuantizeInput(name=names[0], inputs=(), output=spec)]
    for before, name in itertools.pairwise(names):
        layers.append(
            n.Conv2d(
                name=name,
                inputs=(before,),
                output=spec,
                multiplier=n.Multiplier.on_grid(np.array([30000])),
                weight=np.array([[1, 2], [2, -1]], np.int8).reshape(2, 2, 1, 1),
                bias_o=np.array([1, 2], np.int32),
            )
        )
    flat = dataclasses.replace(spec, shape=(8,))
    layers.append(n.Reshape(name="output", inputs=(names[-1],), output=flat))
    network = IntegerNetwork("names", tuple(layers), ("output",))
    network.save(tmp_path / "a.onnx")
    assert load(tmp_path / "a.onnx").fingerprint == network.fingerprint
    onnx.checker.check_model(to_model(network), full_check=True)
    assert not mismatches(to_model(network), network, random_images(np.random.default_rng(0), network, 5))


def test_saving_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.onnx"
    save(example(1), path)
    save(example(2), str(path))
    assert load(str(path)).fingerprint == example(2).fingerprint
    assert [file.name for file in path.parent.iterdir()] == ["a.onnx"]


def test_a_failed_save_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.onnx"
    save(example(1), path)

    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(TwoscaleError, match=r"cannot write .*a\.onnx: No space left on device"):
        save(example(2), path)
    monkeypatch.undo()
    assert load(path).fingerprint == example(1).fingerprint
    assert [file.name for file in tmp_path.iterdir()] == ["a.onnx"]


def test_an_unknown_form_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown form of file 'QDQ': did you mean 'qdq'"):
        save(example(), tmp_path / "a.onnx", form="QDQ")
    assert not list(tmp_path.iterdir())


def test_importing_needs_neither_torch_nor_onnx() -> None:
    code = (
        "import sys, twoscale._ir.integer_network, twoscale._formats, twoscale._runtimes.onnxruntime as e\n"
        "print(sorted({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_loading_and_running_need_no_torch(tmp_path: Path) -> None:
    example(5).save(tmp_path / "a.onnx")
    code = (
        "import sys, numpy as np, twoscale\n"
        f"network = twoscale.load({str(tmp_path / 'a.onnx')!r})\n"
        "network(np.zeros((1, *network.input.output.shape), np.float32))\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_it_is_public() -> None:
    assert twoscale.load is load


# What is refused.


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    example(11).save(tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def refusal(path: Path) -> str:
    with pytest.raises(NetworkFileError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_a_missing_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no.onnx").startswith("there is no file")


def test_a_folder(tmp_path: Path) -> None:
    assert "cannot read" in refusal(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"hello, this is text\n", b"\x89PNG\r\n\x1a\n" + bytes(200), bytes(1000), b"PK\x03\x04" + bytes(50)],
)
def test_files_of_another_kind(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    message = refusal(path)
    assert "ONNX" in message
    assert f"({len(content):,} bytes)" in message


def test_truncated_files_at_every_tenth_of_their_length(saved: Path) -> None:
    content = saved.read_bytes()
    for end in [*range(1, len(content), max(1, len(content) // 40)), len(content) - 1]:
        saved.write_bytes(content[:end])
        assert str(saved) in refusal(saved)


def test_flipped_bits_never_give_another_network(saved: Path) -> None:
    """A damaged byte is an error, or it is in something irrelevant (a text, the producer) and changes no integer."""
    content = bytearray(saved.read_bytes())
    expected = load(saved).fingerprint
    rng = np.random.default_rng(0)
    refused = 0
    for position in rng.integers(0, len(content), 150):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(rng.integers(8))
        saved.write_bytes(damaged)
        try:
            assert load(saved).fingerprint == expected
        except NetworkFileError:
            refused += 1
    assert refused > 75


def test_a_future_format(saved: Path) -> None:
    model = onnx.load(saved)
    set_property(model, "twoscale.format", "5")
    onnx.save(model, saved)
    assert refusal(saved) == (
        f"{saved} has format 5, this twoscale reads formats 1 to 4: it was saved by a newer version; "
        "upgrade twoscale, or save it again with this one"
    )
    set_property(model, "twoscale.format", "x")
    onnx.save(model, saved)
    assert "has format 'x'" in refusal(saved)


def test_the_qdq_form(tmp_path: Path) -> None:
    save(example(), tmp_path / "a.onnx", form="qdq")
    assert "holds the network in 'qdq' form, which is written for other runtimes" in refusal(tmp_path / "a.onnx")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layers", "["),
        ("layers", "[]"),
        ("layers", "{}"),
        ("layers", '[{"op": "QuantizeInput"}]'),
        ("layers", '[{"op": "Launch", "name": "a"}]'),
        ("layers", "[7]"),
        ("metadata", "{"),
        ("output", "nowhere"),
    ],
)
def test_damaged_metadata(saved: Path, key: str, value: str) -> None:
    model = onnx.load(saved)
    set_property(model, f"twoscale.{key}", value)
    onnx.save(model, saved)
    message = refusal(saved)
    assert "is damaged: its metadata does not describe a network" in message or "cannot be right" in message


@pytest.mark.parametrize("key", ["name", "scheme", "output", "layers", "metadata", "fingerprint"])
def test_missing_metadata(saved: Path, key: str) -> None:
    model = onnx.load(saved)
    kept = {k: v for k, v in properties(model).items() if k != f"twoscale.{key}"}
    onnx.helper.set_model_props(model, kept)
    onnx.save(model, saved)
    assert str(saved) in refusal(saved)


# Planted faults: load refuses each, and running the graph against the reference shows it.


def rich_network(seed: int = 12) -> IntegerNetwork:
    """Return a network with everything that the faults below damage, on images with all 256 pixel values."""
    rng = np.random.default_rng(seed)
    x = sweep_input((1, 16, 16))
    full = n.TensorSpec((4, 16, 16), "uint8", 1.0, 100, 0, 255)
    weight = rng.integers(-127, 128, (4, 1, 3, 3)).astype(np.int8)
    bias = rng.integers(-5000, 5000, 4).astype(np.int32)
    m = n.Multiplier.on_grid(rng.integers(80, 160, 4))
    half = n.Multiplier.on_grid(np.array([2**13]), 14)
    common: dict[str, Any] = {
        "multiplier": m,
        "weight": weight,
        "bias_o": bias,
        "inputs": ("input",),
        "padding": (1, 1, 1, 1),
    }
    narrow = dataclasses.replace(full, lo=100, hi=180)
    layers: tuple[n.Layer, ...] = (
        x,
        n.Conv2d(name="conv", output=full, **common),
        n.Conv2d(name="relu6", output=narrow, **common),
        n.Add(name="add", inputs=("conv", "relu6"), output=full, multipliers=(half, half)),
        n.Pad(
            name="pad", inputs=("add",), output=dataclasses.replace(full, shape=(4, 18, 17)),
            widths=((0, 0), (1, 1), (0, 1)),
        ),
        n.Reshape(name="flat", inputs=("pad",), output=dataclasses.replace(full, shape=(4 * 18 * 17,))),
    )  # fmt: skip
    return IntegerNetwork("rich", layers, ("flat",))


def sweep_images() -> Any:
    every = np.arange(256, dtype=np.float32)
    return np.stack([np.random.default_rng(i).permutation(every) for i in range(8)]).reshape(8, 1, 16, 16)


def edit(name: str, change: Callable[[Any], Any]) -> Callable[[onnx.ModelProto], None]:
    """Return a fault that changes one initializer."""

    def fault(model: onnx.ModelProto) -> None:
        (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(array.copy()), array.dtype), name))

    return fault


def missing_clamp(model: onnx.ModelProto) -> None:
    (clip,) = (node for node in model.graph.node if node.op_type == "Clip")
    for node in model.graph.node:
        if node.output[0] == clip.input[0]:
            node.output[0] = clip.output[0]
    model.graph.node.remove(clip)


def wrong_padding(model: onnx.ModelProto) -> None:
    """Pad with 0 instead of the zero point, as a Pad without a value does."""
    (pad,) = (node for node in model.graph.node if node.op_type == "Pad")
    pad.input[2] = ""


def shifted_pads(model: onnx.ModelProto) -> None:
    (attribute,) = (a for node in model.graph.node if node.name == "conv/q" for a in node.attribute if a.name == "pads")
    attribute.ints[:] = [0, 0, 2, 2]


FAULTS: Mapping[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "multiplier +1": (edit("conv/multiplier", lambda m: m + np.array([0, 0, 2**-16, 0])), "conv"),
    "multiplier -1": (edit("conv/multiplier", lambda m: m - np.array([2**-16, 0, 0, 0])), "conv"),
    "add multiplier +1": (edit("add/multipliers.1", lambda m: m + 2**-14), "add"),
    "one weight": (edit("conv/weight", lambda w: np.where(np.arange(w.size).reshape(w.shape) == 7, w + 1, w)), "conv"),
    "one bias": (edit("relu6/bias", lambda b: b + np.array([0, 0, 0, 60])), "relu6"),
    "clamp bound": (edit("relu6/hi", lambda hi: hi + 1), "relu6"),
    "missing clamp": (missing_clamp, "relu6"),
    "padding value": (wrong_padding, "pad"),
    "padding": (shifted_pads, "conv"),
    "sides of a pad": (edit("pad/widths", lambda w: np.concatenate([w[4:], w[:4]])), "pad"),
}


def test_without_a_fault_nothing_differs() -> None:
    assert not mismatches(to_model(rich_network()), rich_network(), sweep_images())


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen_in_the_integers(fault: str) -> None:
    network = rich_network()
    model = to_model(network)
    plant, layer = FAULTS[fault]
    plant(model)
    assert next(iter(mismatches(model, network, sweep_images()))) == layer


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_refused_on_loading(fault: str, tmp_path: Path) -> None:
    model = to_model(rich_network())
    FAULTS[fault][0](model)
    path = tmp_path / "a.onnx"
    onnx.save(model, path)
    message = refusal(path)
    assert "was altered after it was saved" in message
    assert "save it again" in message


def addition(zero_point: int) -> IntegerNetwork:
    """Return the mean of two tensors of all pairs of pixels, where every other sum is a tie."""
    x = sweep_input((2, 256, 256))
    one = dataclasses.replace(x.output, shape=(1, 256, 256))
    half = n.Multiplier.on_grid(np.array([2**13]), 14)
    layers: tuple[n.Layer, ...] = (
        x,
        n.Slice(name="a", inputs=("input",), output=one, axis=0, start=0, stop=1, step=1),
        n.Slice(name="b", inputs=("input",), output=one, axis=0, start=1, stop=2, step=1),
        n.Add(
            name="add", inputs=("a", "b"), output=dataclasses.replace(one, zero_point=zero_point),
            multipliers=(half, half),
        ),
        n.Reshape(
            name="flat", inputs=("add",), output=dataclasses.replace(one, shape=(65536,), zero_point=zero_point)
        ),
    )  # fmt: skip
    return IntegerNetwork("addition", layers, ("flat",))


def test_an_addition_is_never_fused() -> None:
    """RNE(v + z) = RNE(v) + z for even z only, and ONNX Runtime's fused addition computes the former."""
    every = np.arange(256, dtype=np.float32)
    images = np.stack(np.meshgrid(every, every))[np.newaxis]
    even, odd = addition(100), addition(101)
    assert even.on_grid
    assert not odd.on_grid
    assert "zero point 101 is odd" in odd.off_grid[0]
    for level in ("none", "all"):
        for network in (even, odd):
            found = run_model(to_model(network), images, ["add/q"], level)["add/q"]
            assert np.array_equal(found, reference(network, images)["add"])


def test_large_multipliers_of_an_addition_stay_exact() -> None:
    """ONNX Runtime's fused addition folds zero points into one constant that these multipliers do not leave exact."""
    every = np.arange(256, dtype=np.float32)
    images = np.stack(np.meshgrid(every, every))[np.newaxis]
    network = addition(218)
    layers = list(network.layers)
    large = tuple(n.Multiplier.on_grid(np.array([m]), 14) for m in (104176, 104803))
    layers[3] = dataclasses.replace(layers[3], multipliers=large)  # type: ignore[call-arg]
    network = IntegerNetwork("large", tuple(layers), ("flat",))
    for level in ("none", "all"):
        found = run_model(to_model(network), images, ["add/q"], level)["add/q"]
        assert np.array_equal(found, reference(network, images)["add"])


def test_the_fingerprint_is_checked(saved: Path) -> None:
    model = onnx.load(saved)
    set_property(model, "twoscale.fingerprint", "0" * 64)
    onnx.save(model, saved)
    assert "the file says 000000000000…" in refusal(saved)


def test_networks_are_equal_if_they_compute_the_same_and_say_the_same(saved: Path) -> None:
    network = load(saved)
    assert network == load(saved)
    for change in ({"name": "other"}, {"scheme": "other"}, {"metadata": {**network.metadata, "data": "other"}}):
        assert dataclasses.replace(network, **change) != network
    biased = [
        dataclasses.replace(layer, bias_o=layer.bias_o + 1) if isinstance(layer, n.Accumulating) else layer
        for layer in network
    ]
    assert dataclasses.replace(network, layers=tuple(biased)) != network
    assert network != saved


def test_real_scales_are_part_of_the_network(saved: Path) -> None:
    model = onnx.load(saved)
    layers = json.loads(properties(model)["twoscale.layers"])
    layers[0]["output"]["scale"] *= 1.0001
    set_property(model, "twoscale.layers", json.dumps(layers))
    onnx.save(model, saved)
    assert str(saved) in refusal(saved)


def test_what_does_not_compute_may_change(saved: Path) -> None:
    """Tools add descriptions, shapes and documentation; the network is still the one that was saved."""
    model = onnx.shape_inference.infer_shapes(onnx.load(saved))
    model.doc_string = "seen by a tool"
    model.graph.doc_string = "and by another"
    model.producer_name = "tool"
    onnx.save(model, saved)
    assert load(saved).fingerprint == example(11).fingerprint
