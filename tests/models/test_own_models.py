"""Models of the user's own, named by file or module."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from twoscale import models
from twoscale.errors import CheckpointError, ConfigurationError, UnknownNameError
from twoscale.models._references import options_of

MODEL = """
import torch
from torch import nn
from {helper} import activation

class Own(nn.Module):
    def __init__(self, width: int = 4, num_classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, stride=4)
        self.fc = nn.Linear(width * 64, num_classes)

    def forward(self, x):
        return self.fc(activation(self.conv(x)).flatten(1))

def made(width=4):
    return Own(width)

def broken():
    raise KeyError("nothing")

own = Own()
number = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a model and what it imports, as the current one; modules and search path as before afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    helper = f"helper_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{helper}.py").write_text("import torch\nactivation = torch.relu\n")
    (tmp_path / "mymodel.py").write_text(MODEL.format(helper=helper))
    (tmp_path / f"package_{helper}.py").write_text(MODEL.format(helper=helper))
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if helper in name or name.startswith("twoscale_user_"):
            del sys.modules[name]


def test_a_class_a_function_and_a_module_are_taken(folder: Path) -> None:
    assert models.create("mymodel.py:Own", width=6).conv.weight.shape == (6, 3, 3, 3)  # type: ignore[union-attr]
    assert models.create(f"{folder}/mymodel.py:made", width=2).fc.weight.shape == (10, 128)  # type: ignore[union-attr]
    assert torch.equal(models.create("mymodel.py:own").fc.bias, models.create("mymodel.py:own").fc.bias)  # type: ignore[union-attr, arg-type]
    name = next(folder.glob("package_*.py")).stem
    assert type(models.create(f"{name}:Own")).__module__ == name


def test_the_seed_decides_the_weights(folder: Path) -> None:
    before = torch.get_rng_state()
    first, again, other = (models.create("mymodel.py:Own", seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["fc.weight"], other["fc.weight"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nofile.py:Own", r"nofile\.py does not exist; expected a Python file"),
        ("mymodel.py:", r"expected FILE\.py:NAME or MODULE:NAME"),
        (":Own", r"expected FILE\.py:NAME or MODULE:NAME"),
        ("mymodel.py:number", r"mymodel\.py:number is int; expected a class or function"),
        ("mymodel.py:broken", r"cannot create model mymodel\.py:broken: KeyError: 'nothing' \(mymodel\.py, line 19\)"),
        ("mymodel.py:Path", r"unknown model in mymodel\.py 'Path'.*Own"),
        ("no_such.module:Own", r"no_such\.module cannot be imported: ModuleNotFoundError"),
        ("raises.py:Own", r"raises\.py cannot be imported: ZeroDivisionError: division by zero \(raises\.py, line 2\)"),
        ("exits.py:Own", r"exits\.py cannot be imported: SystemExit: 0"),
        ("wrong.py:Own", r"wrong\.py cannot be imported: SyntaxError: .*wrong\.py, line 1"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(folder: Path, name: str, message: str) -> None:
    (folder / "raises.py").write_text("x = 1\ny = x / 0\n")
    (folder / "exits.py").write_text("raise SystemExit(0)\n")
    (folder / "wrong.py").write_text("def\n")
    with pytest.raises((ConfigurationError, UnknownNameError), match=message) as found:
        models.create(name)
    assert "\n" not in str(found.value)


def test_a_file_beside_the_model_does_not_stand_in_for_a_library(folder: Path) -> None:
    (folder / "json.py").write_text("raise SystemExit('the wrong one')\n")
    (folder / "colorsys.py").write_text("raise SystemExit('the wrong one')\n")
    sys.modules.pop("colorsys", None)
    (folder / "mymodel.py").write_text("import colorsys\n" + (folder / "mymodel.py").read_text())
    models.create("mymodel.py:Own")


def test_weights_never_make_their_model_s_code_run(folder: Path) -> None:
    model = models.create("mymodel.py:Own", width=5)
    info = models.ModelInfo("mymodel.py:Own", "digits", ("a",) * 10, (0.5,) * 3, (0.5,) * 3, 0, 1, None, {"width": 5})
    models.save_model(folder / "own.safetensors", model, info)
    (folder / "mymodel.py").write_text(
        "import pathlib\npathlib.Path('ran').touch()\n" + (folder / "mymodel.py").read_text()
    )
    for name in list(sys.modules):
        if name.startswith("twoscale_user_"):
            del sys.modules[name]
    with pytest.raises(CheckpointError, match=r"code runs only if you name it \(--model mymodel\.py:Own\)"):
        models.load_checkpoint(folder / "own.safetensors")
    assert not (folder / "ran").exists()
    with pytest.raises(CheckpointError, match=r"it was trained with width=5 \(--model-args width=5\)"):
        models.load("mymodel.py:Own", folder / "own.safetensors")
    loaded = models.load("mymodel.py:Own", folder / "own.safetensors", width=5)
    assert torch.equal(loaded.fc.weight, model.fc.weight)  # type: ignore[union-attr, arg-type]


def test_a_folder_and_a_lightning_checkpoint_are_read(folder: Path) -> None:
    model = models.create("mymodel.py:Own", seed=3)
    (folder / "saved").mkdir()
    (folder / "saved" / "config.json").write_text("{}")
    save_file(model.state_dict(), folder / "saved" / "model.safetensors")
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3, "pytorch-lightning_version": "2.5"}, folder / "last.ckpt")
    for origin in ("saved", "last.ckpt"):
        loaded = models.load("mymodel.py:Own", origin)
        assert torch.equal(loaded.fc.weight, model.fc.weight)  # type: ignore[union-attr, arg-type]


def test_options_are_written_as_names_and_values() -> None:
    text = "a=1,b=0.5, c = true,d=None,e=text,f=False"
    assert options_of(text) == {"a": 1, "b": 0.5, "c": True, "d": None, "e": "text", "f": False}
    for wrong in ("a", "a=1,a=2", "=3", "a b=1", ""):
        with pytest.raises(ConfigurationError, match="expected name=value"):
            options_of(wrong)
