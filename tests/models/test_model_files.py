import dataclasses
import io
import re
import resource
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

from twoscale import models
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
    # A plain safetensors file to everybody else.
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


def test_plain_safetensors_and_other_precisions(tmp_path: Path) -> None:
    model = models.create("net", seed=1)
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({f"module.{n}": v.double() for n, v in model.state_dict().items()}, path)
    assert_same(models.load("net", path), model)
    asked = r"does not say which model it is; name it \(--model\), one of: mobilenetv2, net,"
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
    with pytest.raises(CheckpointError, match="holds the model 'my-own', which is not one of mobilenetv2, net,"):
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
