import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests import sweep
from twoscale import models
from twoscale.training._optimizers import SGD
from twoscale.training._step import Step, numerics


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with numerics(threads=1, batch_size=4), torch.no_grad():
        yield


def batches(count: int, size: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(size, 3, 32, 32, generator=generator),
            torch.randint(0, 10, (size,), generator=generator),
        )
        for _ in range(count)
    ]


def run(model: nn.Module, how: str, data: list[tuple[torch.Tensor, torch.Tensor]], lr: float = 0.01) -> list[float]:
    step = Step(model, SGD(0.9), how, lr=lr)
    losses = torch.zeros(len(data))
    for (images, labels), loss in zip(data, losses.unbind(), strict=True):
        step(images, labels, loss)
    assert step.notes == []
    return losses.tolist()


def plain(model: nn.Module, data: list[tuple[torch.Tensor, torch.Tensor]], lr: float = 0.01) -> list[float]:
    """The loop that everybody writes."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    losses = []
    with torch.enable_grad():
        for images, labels in data:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
    return losses


def assert_equal(a: nn.Module, b: nn.Module) -> None:
    x, y = a.state_dict(), b.state_dict()
    assert [name for name in x if not torch.equal(x[name], y[name])] == []


@pytest.mark.parametrize("how", ["eager", "captured"])
@pytest.mark.parametrize("name", ["net", "net-with-bias"])
def test_same_bits_as_the_plain_loop(name: str, how: str) -> None:
    data = [*batches(6), *batches(1, size=2), *batches(2)]
    a, b = models.create(name), models.create(name)
    assert run(a, how, data) == plain(b, data)
    assert_equal(a, b)
    # and the comparison is able to fail
    c = models.create(name)
    run(c, how, data[:-1])
    with pytest.raises(AssertionError):
        assert_equal(a, c)


@pytest.mark.parametrize("how", ["eager", "captured"])
def test_batch_norm_and_its_statistics(how: str) -> None:
    data = batches(2)
    a, b = models.create("resnet20"), models.create("resnet20")
    assert run(a, how, data) == plain(b, data)
    assert_equal(a, b)
    assert int(a.state_dict()["bn1.num_batches_tracked"]) == 2


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Parameter(torch.full((12,), 0.5), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(3))
        self.first = nn.Linear(12, 12)
        self.last = nn.Linear(12, 10)
        self.last.bias = nn.Parameter(torch.zeros(10))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        pooled = F.adaptive_avg_pool2d(x, 2).flatten(1) * self.frozen
        first: torch.Tensor = self.first(pooled)
        return first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(F.dropout(self.features(x), 0.5, self.training))
        return logits


class Branching(Small):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.features(x)
        if features.sum() > 0:
            features = features * 2
        logits: torch.Tensor = self.last(features)
        return logits


def small(kind: type[Small] = Small) -> Small:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind()


def test_frozen_and_unused_parameters_and_dropout() -> None:
    data, trained = batches(5), {}
    for how in ("plain", "eager", "captured"):
        trained[how] = model = small()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            _ = plain(model, data) if how == "plain" else run(model, how, data)
    assert_equal(trained["plain"], trained["eager"])
    assert_equal(trained["plain"], trained["captured"])
    assert torch.equal(trained["captured"].unused, torch.ones(3))


def test_preparing_changes_nothing() -> None:
    model = models.create("resnet20")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    step = Step(model, SGD(0.9), "captured", lr=0.01)
    step.prepare(*batches(1)[0])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(not value.any() for value in step.state.values())
    assert torch.equal(random, torch.get_rng_state())


def test_a_forward_that_looks_at_values_runs_eagerly_and_says_so() -> None:
    data = batches(3)
    a, b = small(Branching), small(Branching)
    step = Step(a, SGD(0.9), "captured", lr=0.01)
    for images, labels in data:
        step(images, labels, torch.zeros(()))
    plain(b, data)
    assert_equal(a, b)
    assert step.describe() == "steps run eagerly"
    assert len(step.notes) == 1
    assert step.notes[0].startswith("the model cannot be recorded (")
    assert step.notes[0].endswith("): it runs eager instead")


def test_numerics_puts_everything_back() -> None:
    onednn, threads = torch.backends.mkldnn.enabled, torch.get_num_threads()
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    with contextlib.suppress(KeyError), numerics(threads=2, batch_size=100):
        assert torch.get_num_threads() == 2
        assert torch.backends.mkldnn.enabled == available
        raise KeyError
    assert (torch.backends.mkldnn.enabled, torch.get_num_threads()) == (onednn, threads)


_COMPILED = """
import torch
from twoscale.training._optimizers import SGD
from twoscale.training._step import Step
from torch import nn
torch.set_num_threads(1)
images, labels = torch.linspace(-1, 1, 4 * 12).view(4, 3, 2, 2), torch.tensor([0, 1, 2, 3])
weights = []
for how in ("captured", "compiled"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 10))
    step = Step(model, SGD(0.9), how, lr=0.1)
    with torch.no_grad():
        for _ in range(3):
            step(images, labels, torch.zeros(()))
    weights.append(model[1].weight)
torch.testing.assert_close(*weights)
print(step.describe(), step.notes)
"""


@pytest.mark.skipif(not sweep.whole(), reason="compiling takes half a minute: --sweep all runs it")
def test_compiled_steps(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _COMPILED],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "steps are recorded once and compiled []\n"


def test_a_missing_compiler_is_stated_and_steps_are_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    class CompilerError(Exception):
        """As torch.compile's: what went wrong is inside."""

        inner_exception = RuntimeError("\nNo working C++ compiler found\nin these places")

    def no_compiler(*_: object, **__: object) -> None:
        raise CompilerError("backend='inductor' raised:")

    monkeypatch.setattr(torch, "compile", no_compiler)
    data = batches(3)
    a, b = small(), small()
    step = Step(a.eval(), SGD(0.9), "compiled", lr=0.01)
    for images, labels in data:
        step(images, labels, torch.zeros(()))
    plain(b.eval(), data)
    assert_equal(a, b)
    assert step.notes == ["torch.compile failed (No working C++ compiler found): it runs captured instead"]
    assert step.describe() == "steps are recorded once and replayed without autograd"
