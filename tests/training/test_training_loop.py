import contextlib
import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from twoscale import data, models, training
from twoscale._files import read_record
from twoscale.data import Dataset, Split
from twoscale.errors import CheckpointError, ConfigurationError, DataError, TwoscaleError
from twoscale.models import _tensorfile as tensorfile
from twoscale.training import (
    RunRecord,
    TrainConfig,
    TrainingInterrupted,
    TrainResult,
)
from twoscale.training import (
    _checkpoint as checkpoint,
)
from twoscale.training import (
    _loop as loop,
)
from twoscale.training._images import DeviceImages
from twoscale.training._progress import Reporter, create_reporter, per_second

CONFIG = TrainConfig(epochs=3, lr=0.01, log_every=10, seed=4, device="cpu")
PER_EPOCH = 23  # 90 images in mini-batches of 4


def run(dataset: Dataset, config: TrainConfig = CONFIG, **options: Any) -> TrainResult:
    return training.train(config, dataset, progress=False, **options)


def weights(result: TrainResult) -> dict[str, torch.Tensor]:
    return result.model.state_dict()


def equal(a: TrainResult, b: TrainResult) -> bool:
    x, y = weights(a), weights(b)
    same = x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)
    told = [
        (result.record.losses, [(epoch.loss, epoch.accuracy) for epoch in result.record.epochs]) for result in (a, b)
    ]
    return same and told[0] == told[1]


class Recorder:
    """A create_reporter that keeps what it is told, and may do something while it is."""

    def __init__(self, at: int | None = None, action: Any = None) -> None:
        self.lines: list[tuple[Any, ...]] = []
        self.at, self.action = at, action

    def start(self, title: str, total: int, done: int) -> None:
        self.lines.append(("start", total, done))

    def advance(self, done: int, rate: float) -> None:
        if self.at is not None and done >= self.at:
            self.at = None
            self.action()

    def loss(self, done: int, value: float) -> None:
        self.lines.append(("loss", done, value))

    def accuracy(self, epoch: int, epochs: int, value: float) -> None:
        self.lines.append(("accuracy", epoch, epochs, value))

    def say(self, line: str) -> None:
        self.lines.append(("say", line))

    def close(self) -> None:
        self.lines.append(("close",))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Any:
    def use(recorder: Recorder) -> Recorder:
        monkeypatch.setattr(loop, "create_reporter", lambda enabled: recorder)
        return recorder

    return use


def test_same_weights_and_losses_as_the_lab_s_loop(dataset: Dataset) -> None:
    model = models.create("net", seed=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (dataset.mean, dataset.std))
    losses = []
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        for epoch in range(3):
            order = data.epoch_order(90, seed=4, epoch=epoch)
            for i in range(0, 90, 4):
                pixels = dataset.train.images[order[i : i + 4]].astype(np.float32)
                images = torch.from_numpy((pixels / np.float32(255) - mean) / std)
                labels = torch.from_numpy(dataset.train.labels[order[i : i + 4]]).long()
                optimizer.zero_grad()
                loss = nn.CrossEntropyLoss()(model(images), labels)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
    finally:
        torch.backends.mkldnn.enabled = True  # type: ignore[assignment]
    result = run(dataset, replace(CONFIG, threads=torch.get_num_threads()))
    assert all(torch.equal(weights(result)[name], value) for name, value in model.state_dict().items())
    entries = [(end, losses[start:end]) for start, end in ((0, 10), (10, 20), (20, 30), (30, 40), (40, 50), (50, 60))]
    expected = [(end, sum(part) / len(part)) for end, part in [*entries, (69, losses[60:])]]
    assert [done for done, _ in result.record.losses] == [done for done, _ in expected]
    assert [mean for _, mean in result.record.losses] == pytest.approx([mean for _, mean in expected], rel=1e-12)


def test_record_and_files(dataset: Dataset, tmp_path: Path) -> None:
    result = run(dataset, out=tmp_path / "a" / "b")
    record = result.record
    assert record.config == CONFIG.resolved()
    assert record.finished
    assert record.mini_batches == 3 * PER_EPOCH
    assert len(record.epoch_accuracy) == 3
    assert record.parameters == 61_770
    assert record.seconds > 0
    assert record.steps_per_second == record.mini_batches / record.seconds
    assert record.notes == ("steps run eagerly",)
    assert record.test_accuracy == record.epoch_accuracy[-1]
    accuracy = training.evaluate(result.model, dataset.test, dataset.mean, dataset.std)
    assert record.test_accuracy == accuracy
    assert not result.model.training
    folder = tmp_path / "a" / "b"
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "run.json", "training-state.safetensors"}
    assert read_record(folder / "run.json", RunRecord) == record
    model, info = training.load_checkpoint(folder / "model.safetensors")
    assert all(torch.equal(value, weights(result)[name]) for name, value in model.state_dict().items())
    assert (info.model, info.data, info.epochs, info.seed) == ("net", "digits", 3, 4)
    assert (info.mean, info.std, info.test_accuracy) == (dataset.mean, dataset.std, record.test_accuracy)


def test_drawing_an_epoch_is_waiting_for_data(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    # By a clock that advances in no other way.
    clock = [0.0]
    begin = DeviceImages.begin_epoch

    def slow(self: DeviceImages, epoch: int) -> torch.Tensor:
        clock[0] += 8
        return begin(self, epoch)

    monkeypatch.setattr(DeviceImages, "begin_epoch", slow)
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    [epoch] = run(dataset, replace(CONFIG, epochs=1)).record.epochs
    assert epoch.data_wait_seconds == epoch.seconds == 8


def test_it_learns() -> None:
    record = run(data.load("digits"), TrainConfig(epochs=3)).record
    assert record.test_accuracy is not None
    assert record.test_accuracy > 0.85


def test_one_seed_decides_everything(dataset: Dataset) -> None:
    before = torch.get_rng_state()
    numbers = np.random.default_rng(0)
    a = run(dataset)
    torch.rand(3)
    numbers.random()
    b = run(dataset)
    torch.set_rng_state(before)
    assert equal(a, b)
    assert not equal(a, run(dataset, replace(CONFIG, seed=5)))
    large = replace(CONFIG, batch_size=32, threads=2)
    assert equal(run(dataset, large), run(dataset, large))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("how", ["eager", "captured"])
def test_every_way_of_stepping_gives_the_same_bits(dataset: Dataset, how: Any) -> None:
    assert equal(run(dataset), run(dataset, replace(CONFIG, step=how)))


def test_larger_batches_than_gathers_and_images(dataset: Dataset) -> None:
    assert run(dataset, replace(CONFIG, log_every=10**15)).record.losses  # room for no more entries than there can be
    for size in (45, 90, 1000):
        record = run(dataset, replace(CONFIG, batch_size=size, epochs=2, threads=1)).record
        assert record.mini_batches == 2 * -(-90 // size)
        assert len(record.losses) == 1


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3 * 16, 10)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = F.adaptive_avg_pool2d(self.norm(x), 4).flatten(1)
        logits: torch.Tensor = self.last(F.dropout(features, 0.3, self.training))
        return logits


@contextlib.contextmanager
def interrupted_at(recorded: Any, done: int) -> Iterator[Recorder]:
    recorder = recorded(Recorder(done, lambda: signal.raise_signal(signal.SIGINT)))
    yield recorder
    recorded(Recorder())


@pytest.mark.parametrize("how", ["eager", "captured"])
def test_ctrl_c_saves_and_resumes_to_the_same_bits(
    dataset: Dataset, tmp_path: Path, recorded: Any, monkeypatch: pytest.MonkeyPatch, how: Any
) -> None:
    monkeypatch.setattr(loop, "_LOOK_EVERY", 1)
    config = replace(CONFIG, step=how)
    for model in (None, Dropping):
        whole = run(dataset, config, model=model() if model else None)
        out = tmp_path / str(model)
        for stop in (7, 23, 51):
            with interrupted_at(recorded, stop), pytest.raises(TrainingInterrupted) as caught:
                run(dataset, config, model=model() if model else None, out=out, resume=True)
            assert str(caught.value) == (
                f"interrupted: saved after mini-batch {stop} of 69; continue with the same command and --resume"
            )
            assert not read_record(out / "run.json", RunRecord).finished
        assert equal(whole, run(dataset, config, model=model() if model else None, out=out, resume=True))
        assert read_record(out / "run.json", RunRecord).finished


def test_ctrl_c_without_a_folder(dataset: Dataset, recorded: Any) -> None:
    with interrupted_at(recorded, 1), pytest.raises(TrainingInterrupted, match="nothing is saved, since no folder"):
        run(dataset)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_checkpoints_every_so_often_and_a_lost_run(dataset: Dataset, tmp_path: Path, recorded: Any) -> None:
    """An exception out of nowhere: the run continues from the last checkpoint, not from where it stopped."""

    class Lost(Exception):
        pass

    def lose() -> None:
        raise Lost

    whole = run(dataset)
    config = replace(CONFIG, checkpoint_every=9)
    recorded(Recorder(40, lose))
    with pytest.raises(Lost):
        run(dataset, config, out=tmp_path)
    assert read_record(tmp_path / "run.json", RunRecord).mini_batches == 36
    recorder = recorded(Recorder())
    assert equal(whole, run(dataset, config, out=tmp_path, resume=True))
    assert recorder.lines[0] == ("start", 69, 36)


_KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.training.made_up import dataset_of
from twoscale import training
config = training.TrainConfig(epochs=4000, lr=0.01, log_every=10, seed=4, device="cpu", checkpoint_every=7, threads=1)
training.train(config, dataset_of(90, 37), out=Path(sys.argv[2]), progress=False)
"""


def test_killed_in_mid_epoch_it_resumes_to_the_same_bits(dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", _KILLED, str(Path(__file__).parents[2]), str(out)])
    state = out / "training-state.safetensors"
    done = 0
    deadline = time.monotonic() + 600
    try:
        while done < 2 * PER_EPOCH or done % PER_EPOCH == 0:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
            with contextlib.suppress(OSError, ValueError):
                done = json.loads((out / "run.json").read_bytes())["mini_batches"]
    finally:
        process.kill()
        process.wait()
    assert state.exists()
    record = read_record(out / "run.json", RunRecord)
    assert not record.finished
    epochs = record.mini_batches // PER_EPOCH + 2
    config = replace(CONFIG, epochs=epochs, checkpoint_every=7, threads=1)
    # Only the number of epochs differs, which a run may change.
    resumed = run(dataset, config, out=out, resume=True)
    assert equal(resumed, run(dataset, config))


def test_more_epochs_extend_a_finished_run(dataset: Dataset, tmp_path: Path, recorded: Any) -> None:
    first = run(dataset, replace(CONFIG, epochs=2), out=tmp_path)
    assert first.record.losses[-1][0] == 46
    longer = run(dataset, out=tmp_path, resume=True)
    assert equal(longer, run(dataset))
    recorder = recorded(Recorder())
    again = run(dataset, out=tmp_path, resume=True)
    assert equal(longer, again)
    assert recorder.lines == [("start", 69, 69), ("close",)]
    with pytest.raises(ConfigurationError, match="holds a run of 3 epochs; expected at most 2: ask for more epochs"):
        run(dataset, replace(CONFIG, epochs=2), out=tmp_path, resume=True)


def test_without_resume_a_folder_begins_anew(dataset: Dataset, tmp_path: Path, recorded: Any) -> None:
    run(dataset, out=tmp_path)
    other = replace(CONFIG, seed=5, epochs=1)
    with interrupted_at(recorded, 1), pytest.raises(TrainingInterrupted):
        run(dataset, other, out=tmp_path)
    # Nothing of the earlier run is left to be taken for this one's.
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", "training-state.safetensors"}
    assert equal(run(dataset, other, out=tmp_path, resume=True), run(dataset, other))


def test_resume_where_there_is_nothing_begins(dataset: Dataset, tmp_path: Path, recorded: Any) -> None:
    recorder = recorded(Recorder())
    assert equal(run(dataset, out=tmp_path / "new", resume=True), run(dataset))
    assert recorder.lines[0] == ("say", f"nothing to resume in {tmp_path / 'new'}; starting from the beginning")
    with pytest.raises(ConfigurationError, match=r"resume needs the folder \(out\)"):
        run(dataset, resume=True)


def test_resume_of_another_run(dataset: Dataset, tmp_path: Path) -> None:
    one = replace(CONFIG, epochs=1)
    run(dataset, one, out=tmp_path)
    with pytest.raises(
        ConfigurationError, match=r"holds another run: lr was 0.01, is 0.02; seed was 4, is 5; continue"
    ):
        run(dataset, replace(one, lr=0.02, seed=5), out=tmp_path, resume=True)
    swapped = replace(dataset, train=Split(dataset.train.images, dataset.train.labels[::-1].copy()))
    with pytest.raises(ConfigurationError, match="holds another run: the training labels are others"):
        run(swapped, one, out=tmp_path, resume=True)
    for change in ({"model": "net-with-bias"}, {"optimizer": "lamb"}, {"momentum": 0.0}, {"crop": 1}):
        with pytest.raises(ConfigurationError, match=f"holds another run: {next(iter(change))} was "):
            run(dataset, replace(one, **change), out=tmp_path, resume=True)
    cosine = replace(one, schedule="cosine", epochs=1)
    run(dataset, cosine, out=tmp_path / "cosine")
    message = (
        r"epochs was 1, is 2; the cosine schedule ends with the run, which therefore cannot get more or fewer epochs; "
    )
    with pytest.raises(ConfigurationError, match=message):
        run(dataset, replace(cosine, epochs=2), out=tmp_path / "cosine", resume=True)
    with pytest.raises(CheckpointError, match=r"does not fit the optimizer: missing momentum.1.weight; unexpected"):
        run(dataset, one, out=tmp_path, resume=True, model=nn.Sequential(nn.Flatten(), nn.Linear(3072, 10, bias=False)))


def test_what_resumes_change_is_said_and_stays_in_the_record(dataset: Dataset, tmp_path: Path, recorded: Any) -> None:
    run(dataset, replace(CONFIG, epochs=1, threads=1), out=tmp_path)
    run(dataset, replace(CONFIG, epochs=2, threads=2), out=tmp_path, resume=True)
    recorder = recorded(Recorder())
    record = run(
        dataset, replace(CONFIG, threads=2, step="captured", test_views="mirrored"), out=tmp_path, resume=True
    ).record
    threads, *others = record.notes[1:]
    assert threads == "resumed with 2 threads after 1: the last bits may differ"
    assert others == [
        "resumed with captured steps after auto: the last bits may differ",
        "resumed with test_views mirrored after one: accuracies from here on do not compare with those before",
    ]
    assert [line for kind, *line in recorder.lines if kind == "say"] == [[note] for note in others]


def test_resume_of_a_damaged_state(dataset: Dataset, tmp_path: Path) -> None:
    run(dataset, out=tmp_path)
    state = tmp_path / "training-state.safetensors"
    whole = state.read_bytes()
    state.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"training-state.safetensors is truncated or damaged"):
        run(dataset, out=tmp_path, resume=True)
    state.write_bytes((tmp_path / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="is not the state of a training run"):
        run(dataset, out=tmp_path, resume=True)
    state.write_bytes(whole)
    with pytest.raises(
        CheckpointError, match="is a checkpoint of a training run; once the run has finished, its weights"
    ):
        models.load_checkpoint(state)


@pytest.mark.parametrize("lost", ["momentum", "random_state", "recent_losses"])
def test_a_checkpoint_that_loses_something_is_noticed(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: Any, lost: str
) -> None:
    """The comparison by which resuming is judged sees each part of the state."""
    write = tensorfile.write_tensors

    def forgetful(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        kept = {n: torch.zeros_like(v) if lost in n else v for n, v in tensors.items()}
        if lost == "random_state":
            kept["random_state.0"] = torch.Generator().manual_seed(99).get_state()
        write(path, kept, metadata)

    monkeypatch.setattr(checkpoint, "write_tensors", forgetful)
    monkeypatch.setattr(loop, "_LOOK_EVERY", 1)
    whole = run(dataset, model=Dropping())
    with interrupted_at(recorded, 25), pytest.raises(TrainingInterrupted):
        run(dataset, model=Dropping(), out=tmp_path)
    assert not equal(whole, run(dataset, model=Dropping(), out=tmp_path, resume=True))


def test_a_loss_that_is_not_finite_names_its_mini_batch(dataset: Dataset, tmp_path: Path) -> None:
    config = replace(CONFIG, lr=1e18, checkpoint_every=1)
    with pytest.raises(ConfigurationError) as caught:
        run(dataset, config, out=tmp_path)
    record = read_record(tmp_path / "run.json", RunRecord)
    first = record.mini_batches + 1
    assert f"in mini-batch {first} (epoch 1): lower the learning rate, which is 1e+18" in str(caught.value)
    assert f"the last checkpoint (mini-batch {record.mini_batches}) is kept" in str(caught.value)
    with pytest.raises(ConfigurationError, match=rf"in mini-batch {first} \(epoch 1\): lower the learning rate"):
        run(dataset, config, out=tmp_path, resume=True)
    # Looking less often does not change which one is named.
    with pytest.raises(ConfigurationError, match=rf"in mini-batch {first} \(epoch 1\).*no checkpoint had been written"):
        run(dataset, replace(config, checkpoint_every=None))


def test_a_full_disk_keeps_the_last_checkpoint(dataset: Dataset, tmp_path: Path, recorded: Any) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))

    recorded(Recorder(50, fill))
    try:
        with pytest.raises(TwoscaleError, match=r"cannot write .*: File too large; what was there before is unchanged"):
            run(dataset, out=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_record(tmp_path / "run.json", RunRecord).mini_batches == 46
    recorded(Recorder())
    assert equal(run(dataset, out=tmp_path, resume=True), run(dataset))


def test_a_folder_is_for_one_run_at_a_time(dataset: Dataset, tmp_path: Path, recorded: Any) -> None:
    (tmp_path / ".training-state.twoscale-killed00.safetensors").touch()  # of a process that was killed while it wrote

    def second() -> None:
        with pytest.raises(ConfigurationError, match=r"another process is training in .* at this moment"):
            run(dataset, replace(CONFIG, seed=1), out=tmp_path)

    recorded(Recorder(10, second))
    assert equal(run(dataset, out=tmp_path), run(dataset))
    assert len(list(tmp_path.iterdir())) == 3
    run(dataset, out=tmp_path)


def test_a_folder_that_cannot_be_written_fails_before_training(dataset: Dataset, recorded: Any) -> None:
    recorder = recorded(Recorder())
    with pytest.raises(TwoscaleError, match="cannot write /proc/run"):
        run(dataset, out=Path("/proc/run"))
    assert recorder.lines == [("close",)]


def test_images_that_do_not_fit(dataset: Dataset) -> None:
    small = Split(dataset.train.images[:, :, :28, :28].copy(), dataset.train.labels)
    with pytest.raises(DataError, match=r"Net does not take images of 3 x 28 x 28 \(shape '\[-1, 400\]' is invalid"):
        run(replace(dataset, train=small))
    with pytest.raises(DataError, match="there are no images: expected at least 1"):
        run(replace(dataset, train=Split(dataset.train.images[:0], dataset.train.labels[:0])))


class Pooled(nn.Module):
    """Its BatchNorm gets one value per channel from each image."""

    def __init__(self, norm: type[nn.Module], maps: int) -> None:
        super().__init__()
        self.maps, self.norm = maps, norm(3)
        self.last = nn.Linear(3 * maps * maps, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = F.adaptive_avg_pool2d(x, self.maps)
        pooled = pooled.flatten(1) if isinstance(self.norm, nn.BatchNorm1d) else pooled
        logits: torch.Tensor = self.last(self.norm(pooled).flatten(1))
        return logits


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.BatchNorm2d])
def test_batch_norm_of_single_images_is_said_before_training(
    dataset: Dataset, norm: type[nn.Module], tmp_path: Path
) -> None:
    def message(model: nn.Module, **options: Any) -> str:
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(ConfigurationError) as refused:
            training.train(TrainConfig(epochs=1, **options), dataset, model=model, progress=False, out=tmp_path / "run")
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert not (tmp_path / "run").exists()
        return str(refused.value)

    said = "Pooled has a BatchNorm that one image gives a single value a channel, which is without variance; "
    at_the_end = "the last update of an epoch (90 images in batches of 89) comes down to one image"
    assert message(Pooled(norm, 1), batch_size=89) == f"{said}{at_the_end}: choose another batch size"
    assert message(Pooled(norm, 1), batch_size=5, accumulation=3) == (
        f"{said}an update of 5 images comes down to one image: choose another batch size or fewer parts (accumulation)"
    )
    for size, parts in ((88, 1), (6, 3)):
        config = TrainConfig(epochs=1, batch_size=size, accumulation=parts)
        assert training.train(config, dataset, model=Pooled(norm, 1), progress=False).record.finished


def test_batch_norm_of_several_values_trains_on_single_images(dataset: Dataset) -> None:
    config = TrainConfig(epochs=1, batch_size=89)
    assert training.train(config, dataset, model=Pooled(nn.BatchNorm2d, 2), progress=False).record.finished


def test_what_is_told(dataset: Dataset, recorded: Any) -> None:
    recorder = recorded(Recorder())
    record = run(dataset, replace(CONFIG, epochs=2)).record
    losses = [("loss", *entry) for entry in record.losses]
    accuracy = [("accuracy", i + 1, 2, value) for i, value in enumerate(record.epoch_accuracy)]
    assert recorder.lines == [
        ("start", 46, 0), *losses[:2], accuracy[0], *losses[2:], accuracy[1], ("close",),
    ]  # fmt: skip


def test_lines_where_standard_error_is_no_terminal(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    training.train(replace(CONFIG, epochs=1, log_every=20), dataset)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == (
        "net on digits: 1 epoch of 23 mini-batches of 4, SGD, lr 0.01, momentum 0.9, seed 4; "
        "steps run eagerly, 1 thread"
    )
    assert lines[1].startswith("mini-batch 20 of 23: loss 2.")
    assert lines[1].endswith(" mini-batches/s")
    assert not lines[1].endswith(" 0 mini-batches/s")
    assert lines[-1].startswith("epoch 1 of 1: test accuracy ")


def test_a_bar_in_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    telling: Reporter = create_reporter()
    telling.start("net on digits", 1000, 0)
    telling.advance(250, 1234.5)
    telling.loss(250, 1.2345)
    telling.accuracy(1, 2, 0.5)
    assert (per_second(0.3456), per_second(9.96), per_second(10)) == ("0.35", "10", "10")
    telling.close()
    err = capsys.readouterr().err
    for text in ("net on digits", "250/1,000", "loss 1.234", "accuracy 50.0%", "1,234/s"):
        assert text in err
