"""Programs of torch.export.save: the model comes back without its class, and no file runs code."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests import sweep
from tests.architectures.families import FAMILIES
from twoscale import models
from twoscale._frontends.torch_export.capture import capture
from twoscale._ir.float_module import GraphModule
from twoscale._ir.weights_hash import weights_hash
from twoscale.errors import CheckpointError

ANY_BATCH: Any = ({0: torch.export.Dim.DYNAMIC},)


def save(model: nn.Module, path: Path, shape: tuple[int, ...], batch: int = 2, dynamic: Any = ANY_BATCH) -> Path:
    torch.export.save(torch.export.export(model, (torch.zeros(batch, *shape),), dynamic_shapes=dynamic), path)
    return path


@pytest.mark.skipif(not sweep.whole(), reason="exports 22 networks: --sweep all runs it")
@pytest.mark.filterwarnings("ignore:the log_softmax at")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_program_is_captured_like_the_model_that_it_was_exported_from(family: str, tmp_path: Path) -> None:
    make, size = FAMILIES[family]
    check_captured(make().eval(), size, tmp_path)


def check_captured(model: nn.Module, size: int, tmp_path: Path) -> None:
    loaded = models.load(None, save(model, tmp_path / "model.pt2", (3, size, size)))
    images = torch.randn(2, 3, size, size)
    expected, found = capture(model, images), capture(loaded, images)
    assert [(node.name, node.op, node.shape) for node in found] == [(n.name, n.op, n.shape) for n in expected]
    assert found.name == expected.name
    assert torch.equal(GraphModule(found)(images), GraphModule(expected)(images))
    assert weights_hash(loaded) == weights_hash(model)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), model(images), rtol=1e-4, atol=1e-5)


class Odd(nn.Module):
    """Shared weights, a constant, a buffer that is not saved, sizes in the program, and layers of training."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.again = nn.Conv2d(3, 4, 3)
        self.again.weight = self.conv.weight
        self.norm, self.drop = nn.BatchNorm2d(4), nn.Dropout(0.5)
        self.shift: torch.Tensor
        self.register_buffer("shift", torch.arange(4.0), persistent=False)
        self.factor = torch.tensor([1.0, 2.0, 3.0, 4.0])
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x)) + self.again(x)
        first, second = y.split(2, 1)
        y = torch.cat([second, first], 1).to(memory_format=torch.channels_last).clamp(min=-float("inf"))
        return torch.as_tensor(self.head(self.drop(y.view(x.shape[0], 4, -1).mean(2) * self.factor + self.shift)))


def odd() -> Odd:
    torch.manual_seed(0)
    model = Odd()
    nn.init.uniform_(model.norm.running_mean)  # type: ignore[arg-type]
    return model


def test_what_models_hold_besides_weights_comes_back(tmp_path: Path) -> None:
    model = odd().eval()
    check_captured(model, 8, tmp_path)
    path = save(model, tmp_path / "odd.pt2", (3, 8, 8))
    loaded, images = models.load(None, path), torch.randn(3, 3, 8, 8)
    assert torch.equal(loaded(images), model(images))
    assert {name: value.shape for name, value in loaded.state_dict().items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }
    assert not loaded.training


def test_a_program_exported_in_training_mode_is_evaluated(tmp_path: Path) -> None:
    model = odd().train()
    loaded = models.load(None, save(model, tmp_path / "odd.pt2", (3, 8, 8), batch=4))
    images = torch.randn(3, 3, 8, 8)
    assert torch.equal(loaded(images), model.eval()(images))
    assert weights_hash(loaded) == weights_hash(model)


def test_a_program_gives_its_weights_to_a_named_model(tmp_path: Path) -> None:
    model = models.create("net", seed=3)
    path = save(model, tmp_path / "net.pt2", (3, 32, 32))
    assert weights_hash(models.load("net", path)) == weights_hash(model)
    assert models.read_info(path) is None
    with pytest.raises(
        CheckpointError, match=r"is a program of torch\.export, without classes and data; use models\.load"
    ):
        models.load_checkpoint(path)


@pytest.mark.parametrize(("batch", "view"), [(1, False), (2, True)])
def test_programs_for_one_batch_size_are_taken_where_it_is_not_used(tmp_path: Path, batch: int, view: bool) -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(48, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(self.fc(x.view(x.shape[0], 48) if view else x.flatten(1)))

    path = save(Head(), tmp_path / "head.pt2", (3, 4, 4), batch=batch, dynamic=None)
    if view:
        with pytest.raises(CheckpointError, match=r"head\.pt2 does not take batches of 3 images .*Dim\.DYNAMIC"):
            models.load(None, path)
    else:
        assert models.load(None, path)(torch.zeros(7, 3, 4, 4)).shape == (7, 5)


Change = Callable[[dict[str, bytes], dict[str, Any]], None]
"""Changes the members of an archive, and the description of its program."""


def node(description: dict[str, Any], index: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = description["graph_module"]["graph"]["nodes"][index]
    return found


def calling(target: str, *arguments: dict[str, Any]) -> Change:
    def change(members: dict[str, bytes], description: dict[str, Any]) -> None:
        named = [{"name": f"a{i}", "arg": argument, "kind": 1} for i, argument in enumerate(arguments)]
        nodes = description["graph_module"]["graph"]["nodes"]
        outputs = [{"as_tensor": {"name": "new"}}]
        nodes.insert(0, {"target": target, "inputs": named, "outputs": outputs, "metadata": {}})

    return change


def describing(key: str, value: Any) -> Change:
    """Change a member of the description, found by its path."""

    def change(members: dict[str, bytes], description: dict[str, Any]) -> None:
        *path, last = key.split("/")
        found: Any = description
        for part in path:
            found = found[int(part) if part.isdecimal() else part]
        found[int(last) if last.isdecimal() else last] = value

    return change


def weights(**values: Any) -> Change:
    """Change the first weight's entry."""

    def change(members: dict[str, bytes], description: dict[str, Any]) -> None:
        name = next(name for name in members if name.endswith("_weights_config.json"))
        entry = json.loads(members[name])
        first = next(iter(entry["config"].values()))
        for key, value in values.items():
            (first if key in first else first["tensor_meta"])[key] = value
        members[name] = json.dumps(entry).encode()

    return change


class Planted:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


def pickled(members: dict[str, bytes], description: dict[str, Any]) -> None:
    weights(use_pickle=True)(members, description)
    members[next(name for name in members if name.endswith("/weight_0"))] = pickle.dumps(Planted())


RUN = "__import__('os').mkdir('ran')"
EXPRESSION = {"as_expr": {"expr_str": RUN, "hint": {"as_int": 2}}}
NODES = "graph_module/graph/nodes"
HOSTILE: dict[str, tuple[Change, str]] = {
    "a function of Python": (calling("os.mkdir", {"as_string": "ran"}), r"calls os\.mkdir, which has no integer form"),
    "a function of torch": (calling("torch.ops.aten.from_file.default", {"as_string": "ran"}), "calls .*from_file"),
    "a way out of the operators": (calling("torch.ops.aten.relu.__class__"), "does not have"),
    "a method": (calling("torch.ops.aten.relu.default.__call__"), r"calls torch\.ops\.aten\.relu\.default\.__call__"),
    "a pickled tensor": (pickled, "holds a Python object, .*never loaded"),
    "a larger tensor": (weights(sizes=[{"as_int": 10**9}] * 4), "larger than its values"),
    "a tensor beyond its values": (weights(storage_offset={"as_int": 10**6}), "larger than its values"),
    "a negative stride": (weights(strides=[{"as_int": -1}] * 4), "a size is -1"),
    "another number of strides": (weights(strides=[{"as_int": 1}]), "form that is not known"),
    "a type that is none": (weights(dtype=99), "type 99, expected real numbers"),
    "a file elsewhere": (weights(path_name="../../../../etc/passwd"), "form that is not known"),
    "a huge result": (
        calling("torch.ops.aten.zeros.default", {"as_ints": [10**6, 10**6]}), r"zeros.default .* is too large",
    ),
    "a huge size": (calling("torch.ops.aten.zeros.default", {"as_ints": [10**18, 10**18]}), "does not take batches"),
    "a name with code": (
        describing("graph_module/signature/input_specs/0/parameter/parameter_name", f"a]; {RUN} #"), "not known here",
    ),
    "a name that is taken": (
        describing("graph_module/graph/nodes/0/inputs/0/arg", {"as_tensor": {"name": "nothing"}}), "cannot be built",
    ),
    "an unknown argument": (describing(f"{NODES}/0/inputs/0/arg", {"as_operator": "os.mkdir"}), "cannot be built"),
    "another version": (describing("schema_version/major", 9), "version 9 of the form .* expected 8"),
    "two inputs": (
        describing("graph_module/signature/input_specs/0", {"user_input": {"arg": {"as_tensor": {"name": "y"}}}}),
        "takes 2 inputs; expected images alone",
    ),
    "deep nesting": (
        describing(f"{NODES}/0/inputs/0/arg", json.loads('{"as_optional_tensor":' * 200 + "{}" + "}" * 200)),
        "cannot be built",
    ),
}  # fmt: skip


def changed(content: bytes, change: Change) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in members if name.endswith("/models/model.json"))
    description = json.loads(members[name])
    change(members, description)
    members[name] = json.dumps(description).encode()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return file.getvalue()


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return save(odd().eval(), tmp_path_factory.mktemp("exported") / "odd.pt2", (3, 8, 8)).read_bytes()


@pytest.mark.parametrize("fault", HOSTILE)
def test_hostile_programs_are_refused_and_run_nothing(
    content: bytes, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    change, message = HOSTILE[fault]
    Path("hostile.pt2").write_bytes(changed(content, change))
    with pytest.raises(CheckpointError, match=message) as found:
        models.load(None, "hostile.pt2")
    assert "\n" not in str(found.value)
    assert not Path("ran").exists()


def test_expressions_and_guards_of_a_file_are_never_evaluated(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(members: dict[str, bytes], description: dict[str, Any]) -> None:
        description["guards_code"] = [RUN]
        description["range_constraints"] = {RUN: {"min_val": 0, "max_val": None}}
        graph = description["graph_module"]["graph"]
        for meta in graph["tensor_values"].values():
            meta["sizes"] = [EXPRESSION if "as_expr" in size else size for size in meta["sizes"]]
        for one in graph["nodes"]:
            one["name"] = one["metadata"]["torch_fn"] = f"x\n{RUN}"
            one["metadata"]["stack_trace"] = f'File "a.py", line 1, in f\r\n{RUN}\r{RUN}\x0c\n{RUN}'
            one["metadata"]["nn_module_stack"] = f"a\r{RUN},b,{RUN};c,{RUN},d"

    monkeypatch.chdir(tmp_path)
    Path("odd.pt2").write_bytes(changed(content, change))
    loaded, images = models.load(None, "odd.pt2"), torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded(images), odd().eval()(images))
    capture(loaded, images)
    assert not Path("ran").exists()


def test_an_altered_program_is_noticed(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "odd.pt2"
    at = content.index(b"torch.ops.aten.conv2d")
    path.write_bytes(content[:at] + b"T" + content[at + 1 :])
    with pytest.raises(CheckpointError, match=r"is damaged: the checksum of odd/models/model\.json is wrong"):
        models.load(None, path)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        models.load(None, path)


def test_older_forms_are_named(tmp_path: Path) -> None:
    path = tmp_path / "old.pt2"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("serialized_exported_program.json", "{}")
    with pytest.raises(CheckpointError, match=r"before torch 2\.9; load it with torch\.export\.load and save it"):
        models.load(None, path)
