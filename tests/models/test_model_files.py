import dataclasses
import io
import json
import random
import re
import resource
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from twoscale import models
from twoscale._cli.common import load_float
from twoscale.errors import CheckpointError, TwoscaleError, UnknownNameError
from twoscale.models import ModelInfo


def info_of(name: str) -> ModelInfo:
    return ModelInfo(
        model=name,
        data="digits",
        classes=tuple("0123456789"),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.25, 0.5),
        seed=7,
        epochs=2,
        test_accuracy=0.53,
        options={"classes": 10},
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "model.safetensors"
    models.save_model(path, models.create("net-with-bias", seed=7), info_of("net-with-bias"))
    return path


def assert_same(a: torch.nn.Module, b: torch.nn.Module) -> None:
    x, y = a.state_dict(), b.state_dict()
    assert x.keys() == y.keys()
    assert all(torch.equal(x[name], y[name]) for name in x)


def test_a_file_says_its_models_options_and_what_does_not_fit_is_told_briefly(tmp_path: Path) -> None:
    path = tmp_path / "thin.safetensors"
    thin = models.create("mobilenetv2", width=0.35)
    models.save_model(path, thin, dataclasses.replace(info_of("mobilenetv2"), options={"width": 0.35}))
    assert_same(models.load("mobilenetv2", path), thin)
    with pytest.raises(CheckpointError) as caught:
        models.load("mobilenetv2", path, width=1.0)
    assert len(str(caught.value)) < 800
    assert re.search(r", and \d\d+ more$", str(caught.value))


def test_what_is_saved_comes_back(saved: Path) -> None:
    model, info = models.load_checkpoint(saved)
    assert_same(model, models.create("net-with-bias", seed=7))
    assert info == info_of("net-with-bias")
    assert not model.training
    assert_same(models.load(None, saved), model)
    assert_same(models.load("net-with-bias", saved), model)
    assert [path.name for path in saved.parent.iterdir()] == ["model.safetensors"]
    # For other programs it is a plain safetensors file.
    assert safetensors.torch.load_file(saved).keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {f"module.{name}": value for name, value in state.items()}},
        lambda state: {f"_orig_mod.module.{name}": value for name, value in state.items()},
    ],
    ids=["plain", "state_dict", "model-module", "compiled-parallel"],
)
def test_torch_files_with_common_wrappers(tmp_path: Path, wrap: object) -> None:
    model = models.create("net", seed=1)
    for i, legacy in enumerate((True, False)):
        path = tmp_path / f"{i}.pth"
        torch.save(wrap(model.state_dict()), path, _use_new_zipfile_serialization=not legacy)  # type: ignore[operator]
        assert_same(models.load("net", path), model)


def averaged(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model = models.create("net")
    model.load_state_dict(state)
    return torch.optim.swa_utils.AveragedModel(model).state_dict()


FOREIGN = {
    "the DDP tutorial's snapshot": lambda state: {"MODEL_STATE": state, "EPOCHS_RUN": 3},
    "ema": lambda state: {"ema": state, "step": torch.tensor(3)},
    "params": lambda state: {"params": state},
    "network": lambda state: {"network": state, "network_opt": {"exp_avg": torch.ones(3)}},
    "weights": lambda state: {"weights": {f"backbone.{name}": value for name, value in state.items()}},
    "AveragedModel": averaged,
    "AveragedModel inside": lambda state: {"model": averaged(state)},
    "Lightning": lambda state: {
        "epoch": 3,
        "state_dict": {**{f"model.{name}": value for name, value in state.items()}, "loss.weight": torch.ones(10)},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}],
    },
    "twice the same": lambda state: {"model": state, "best": {name: value.clone() for name, value in state.items()}},
    "deep": lambda state: {"a": {"b": {"c": {"d": state}}}},
}


@pytest.mark.parametrize("wrap", FOREIGN.values(), ids=FOREIGN)
def test_the_weights_are_found_where_they_are(tmp_path: Path, wrap: Any) -> None:
    model = models.create("net", seed=1)
    torch.save(wrap(model.state_dict()), tmp_path / "x.pt")
    assert_same(models.load("net", tmp_path / "x.pt"), model)


def test_where_several_weights_fit_the_user_is_asked(tmp_path: Path) -> None:
    a, b = models.create("net", seed=1), models.create("net", seed=2)
    path = tmp_path / "x.pt"
    torch.save({"model": a.state_dict(), "other": {"ema": b.state_dict()}, "epoch": 3}, path)
    asked = r"several sets of weights that fit Net: 'model', 'other\.ema'; name the one to take after .*x\.pt#model$"
    with pytest.raises(CheckpointError, match=asked):
        models.load("net", path)
    assert_same(models.load("net", path, part="model"), a)
    assert_same(models.load("net", path, part="other.ema"), b)
    assert_same(load_float(tmp_path / "x.pt#other.ema", "net")[0], b)
    with pytest.raises(
        CheckpointError, match=r"has no part 'best' that fits Net; those that fit: 'model', 'other\.ema'"
    ):
        models.load("net", path, part="best")
    # Two networks of one file, told apart by the prefix of their names.
    both = {
        f"{name}.{key}": value
        for name, net in (("teacher", a), ("student", b))
        for key, value in net.state_dict().items()
    }
    safetensors.torch.save_file(both, tmp_path / "y.safetensors")
    with pytest.raises(CheckpointError, match="several sets of weights that fit Net: 'student', 'teacher'"):
        models.load("net", tmp_path / "y.safetensors")
    assert_same(models.load("net", tmp_path / "y.safetensors", part="student"), b)


def strange(name: str) -> torch.Tensor:
    with warnings.catch_warnings(action="ignore"):
        return {
            "sparse": lambda: torch.ones(6, 3, 5, 5).to_sparse(),
            "csr": lambda: torch.ones(6, 75).to_sparse_csr(),
            "quantized": lambda: torch.quantize_per_tensor(torch.ones(6, 3, 5, 5), 0.1, 0, torch.qint8),
            "meta": lambda: torch.empty(6, 3, 5, 5, device="meta"),
            "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
            "complex": lambda: torch.ones(6, 3, 5, 5, dtype=torch.complex64),
            "one value a million million times": lambda: torch.zeros(1).expand(10**6, 10**6),
        }[name]()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sparse", "conv1.weight is a sparse tensor; expected dense tensors of real numbers"),
        ("csr", "conv1.weight is a sparse tensor"),
        ("quantized", "conv1.weight is a quantized tensor"),
        ("meta", "conv1.weight is a tensor without values"),
        ("nested", "conv1.weight is a nested tensor"),
        ("complex", "conv1.weight is of type complex64"),
        ("one value a million million times", r"conv1.weight is \[1000000, 1000000\], expected \[6, 3, 5, 5\]"),
    ],
)
def test_tensors_that_are_no_weights(tmp_path: Path, name: str, message: str) -> None:
    torch.save({**models.create("net").state_dict(), "conv1.weight": strange(name)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=message):
        models.load("net", tmp_path / "x.pt")


def test_every_flipped_bit_of_a_torch_file_is_noticed(tmp_path: Path) -> None:
    state = models.create("net", seed=1).state_dict()
    torch.save(state, content := io.BytesIO())
    generator = random.Random(0)
    path = tmp_path / "x.pt"
    for _ in range(60):
        flipped = bytearray(content.getvalue())
        flipped[generator.randrange(len(flipped))] ^= 1 << generator.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match="damaged"):
            models.load("net", path)


def test_torch_files_without_checksums_are_taken(tmp_path: Path) -> None:
    model = models.create("net", seed=1)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(model.state_dict(), tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(models.load("net", tmp_path / "x.pt"), model)


def itself() -> dict[str, Any]:
    state: dict[str, Any] = {"epoch": 3}
    state["state_dict"] = {"model": state}
    return state


def test_a_dictionary_that_holds_itself(tmp_path: Path) -> None:
    torch.save(itself(), tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="holds no named tensors"):
        models.load("net", tmp_path / "x.pt")
    model = models.create("net", seed=1)
    torch.save({**itself(), "weights": model.state_dict()}, tmp_path / "x.pt")
    assert_same(models.load("net", tmp_path / "x.pt"), model)


def test_damaged_pickles(tmp_path: Path) -> None:
    for content in (b"\x80\x02.", b"\x80\x02r\xff\xff\xff\x1f}.", b"\x80", b"\x80\x02(" + b"}" * 1000):
        (tmp_path / "x.pt").write_bytes(content)
        with pytest.raises(CheckpointError, match="truncated or damaged"):
            models.load("net", tmp_path / "x.pt")
        with zipfile.ZipFile(tmp_path / "x.pt", "w") as file:
            file.writestr("archive/data.pkl", content)
            file.writestr("archive/version", "3")
        with pytest.raises(CheckpointError, match="truncated or damaged"):
            models.load("net", tmp_path / "x.pt")


def test_an_archive_that_grows_when_it_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
        file.writestr("archive/data/0", b"\0" * 100_000_000)
    with pytest.raises(CheckpointError, match=r"is a zip archive that torch\.save did not write"):
        models.load("net", tmp_path / "x.pt")


def test_a_torch_file_named_safetensors_and_the_other_way_round(tmp_path: Path) -> None:
    model = models.create("net", seed=1)
    for legacy in (True, False):
        torch.save(model.state_dict(), tmp_path / "x.safetensors", _use_new_zipfile_serialization=not legacy)
        assert_same(models.load("net", tmp_path / "x.safetensors"), model)
    for length in range(40):  # of the header; one of them begins like a pickle
        safetensors.torch.save_file(model.state_dict(), tmp_path / "x.pt", {"comment": "x" * 8 * length})
        assert_same(models.load("net", tmp_path / "x.pt"), model)


def test_files_of_other_kinds_are_called_by_their_name(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as file:  # the names of torch.jit.save, which is deprecated
        for name in ("x/data.pkl", "x/code/__torch__.py", "x/constants.pkl", "x/version"):
            file.writestr(name, b"")
    with pytest.raises(CheckpointError, match=r"is a TorchScript file; load it with torch\.jit\.load"):
        models.load("net", path)
    for content, kind in (
        (b"\x89HDF\r\n\x1a\n" * 5, "an HDF5 file"),
        (b"\x1c\0\0\0TFL3" * 5, "a TensorFlow Lite file"),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=f"is {kind}.*neither a safetensors nor a torch file"):
            models.load("net", path)


@pytest.mark.parametrize(
    "change",
    [
        {"options": {"classes": -1}},
        {"options": {"classes": 10**12}},
        {"options": {"classes": 2**70}},
        {"options": {"classes": "ten"}},
        {"options": {"classes": 10.5}},
        {"options": {"seed": 2**70}},
        {"options": {"depth": 8}},
        {"model": "mobilenetv2", "options": {"width": 1e9}},
        {"mean": [10**400, 0, 0]},
        {"mean": [0.5]},
        {"std": [0, 1, 1]},
        {"classes": []},
        {"options": "deep"},
    ],
    ids=str,
)
@pytest.mark.parametrize("named", [True, False])
def test_metadata_that_asks_for_something_impossible(tmp_path: Path, change: dict[str, Any], named: bool) -> None:
    path = tmp_path / "x.safetensors"
    content = {**dataclasses.asdict(info_of("net")), **change}
    text = json.dumps(content)
    if content["options"] == "deep":
        text = text.replace('"deep"', '{"a":' * 50_000)
    safetensors.torch.save_file(models.create("net").state_dict(), path, {"twoscale.model": text})
    with pytest.raises(CheckpointError) as caught:
        models.load(content["model"] if named else None, path)
    assert "\n" not in str(caught.value)


def test_equal_weights_are_equal_files(tmp_path: Path) -> None:
    model = models.create("net", seed=1)
    for i in range(8):
        models.save_model(tmp_path / f"{i}.safetensors", model, info_of("net"))
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_plain_safetensors_and_other_precisions(tmp_path: Path) -> None:
    model = models.create("net", seed=1)
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({f"module.{n}": v.double() for n, v in model.state_dict().items()}, path)
    assert_same(models.load("net", path), model)
    asked = r"does not say which model it is; name it \(--model\), one of: autoencoder, dscnn, mobilenetv1, mobile"
    with pytest.raises(CheckpointError, match=asked):
        models.load(None, path)


def test_count_of_batches_may_be_missing(tmp_path: Path) -> None:
    model = models.create("resnet20", seed=1)
    path = tmp_path / "x.safetensors"
    state = {n: v for n, v in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    safetensors.torch.save_file(state, path)
    assert_same(models.load("resnet20", path), model)


def test_what_does_not_fit_names_the_tensors(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model.safetensors does not fit Net: unexpected fc3.bias$"):
        models.load("net", saved)
    path = tmp_path / "x.safetensors"
    state = models.create("net", classes=12).state_dict()
    del state["conv2.weight"]
    safetensors.torch.save_file(state, path)
    message = r"does not fit NetWithBias: missing conv2.weight, fc3.bias; fc3.weight is \[12, 84\], expected \[10, 84\]"
    with pytest.raises(CheckpointError, match=message):
        models.load("net-with-bias", path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e300])
def test_nan_and_infinity_are_named(tmp_path: Path, bad: float) -> None:
    state = {name: value.double() for name, value in models.create("net").state_dict().items()}
    state["fc2.weight"][3, 4] = bad
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"NaN or infinity in fc2.weight \(1 of 10080 values\)"):
        models.load("net", tmp_path / "x.pt")


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"cannot read checkpoint .*none.pt: No such file or directory; expected a"
    ):
        models.load("net", tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="Is a directory"):
        models.load("net", tmp_path)
    for content in (b"", b"hello", b"\x00" * 100, b'{"loss": 1.25}'):
        (tmp_path / "x.safetensors").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"neither a safetensors nor a torch file; expected a .safetensors"):
            models.load("net", tmp_path / "x.safetensors")
    torch.save({"epoch": 3}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="holds no named tensors; expected a model's state dict"):
        models.load("net", tmp_path / "x.pt")
    with pytest.raises(UnknownNameError, match="unknown model 'nett'"):
        models.load("nett", tmp_path / "x.pt")


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    torch.save(models.create("net"), tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"could run code and are never loaded; save model.state_dict\(\)"):
        models.load("net", tmp_path / "x.pt")


def test_any_truncation_is_noticed(saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    cut = tmp_path / "cut"
    for size in (9, 20, 1000, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="truncated or damaged"):
            models.load_checkpoint(cut)
    buffer = io.BytesIO()
    torch.save(models.create("net").state_dict(), buffer)
    for size in (10, 1000, len(buffer.getvalue()) - 10):
        cut.write_bytes(buffer.getvalue()[:size])
        with pytest.raises(CheckpointError, match="truncated or damaged"):
            models.load("net", cut)
    torch.save(models.create("net").state_dict(), buffer := io.BytesIO(), _use_new_zipfile_serialization=False)
    for size in (2, 10, 1000, len(buffer.getvalue()) - 10):
        cut.write_bytes(buffer.getvalue()[:size])
        with pytest.raises(CheckpointError, match=r"truncated or damaged|holds Python objects"):
            models.load("net", cut)


def test_one_flipped_bit_is_noticed(saved: Path) -> None:
    content = bytearray(saved.read_bytes())
    content[-1000] ^= 1
    saved.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged: its tensors changed since it was written"):
        models.load_checkpoint(saved)


def test_a_zip_that_is_no_torch_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as file:
        file.writestr("readme", "hello")
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        models.load("net", tmp_path / "x.pt")


def test_a_model_of_elsewhere_and_a_later_form(saved: Path) -> None:
    models.save_model(saved, models.create("net"), info_of("my-own"))
    with pytest.raises(
        CheckpointError,
        match="holds the model 'my-own', which is not one of autoencoder, dscnn, mobilenetv1, mobilenetv2, net,",
    ):
        models.load_checkpoint(saved)
    safetensors.torch.save_file(models.create("net").state_dict(), saved, {"twoscale.model": '{"model": 3}'})
    with pytest.raises(CheckpointError, match="in a form that is not known here"):
        models.load_checkpoint(saved)


def test_a_full_disk_leaves_the_old_file(saved: Path) -> None:
    before = saved.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))  # Python ignores SIGXFSZ
    try:
        with pytest.raises(TwoscaleError, match=r"cannot write .*: File too large; what was there before is unchanged"):
            models.save_model(saved, models.create("net-with-bias", seed=8), info_of("net-with-bias"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["model.safetensors"]
