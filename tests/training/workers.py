"""What the two processes of this folder's launch run."""

from __future__ import annotations

import io
import logging
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from tests import sweep
from tests.training.made_up import CONFIG, OF_THE_COMMAND, QUANTIZED, Normed, Plain, dataset_of, plain_list, seeded
from twoscale import data, training
from twoscale._verification import accuracy
from twoscale.training import TrainConfig, TrainResult
from twoscale.training import _loop as loop
from twoscale.training import _parallel as parallel
from twoscale.training._images import DeviceImages
from twoscale.training._quantized import QuantizedModel
from twoscale.training._ranks import Ranks, share_of


def train(config: TrainConfig, kind: type[nn.Module] = Plain, **options: Any) -> TrainResult:
    return training.train(config, dataset_of(90, 37), model=seeded(kind).double(), progress=False, **options)


def weights(result: TrainResult) -> dict[str, list[float]]:
    return plain_list(result.model)


def replicas_agree(result: TrainResult) -> bool:
    flat = torch.cat([value.flatten() for value in result.model.parameters()]).detach()
    other = flat.clone()
    dist.broadcast(other, 0)
    same = torch.tensor(int(torch.equal(flat, other)))
    dist.all_reduce(same, dist.ReduceOp.MIN)
    return bool(same)


def planted(name: str, value: Any, owner: Any, run: Callable[[], TrainResult]) -> TrainResult:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        return run()
    finally:
        setattr(owner, name, before)


def no_compiler(*_: object, **__: object) -> None:
    raise RuntimeError("no working C++ compiler")


def shares(_: dict[str, Any]) -> dict[str, Any]:
    """Everything that needs two processes and can be compared with one."""
    rank = dist.get_rank()
    found: dict[str, Any] = {}
    for name, config in CONFIG.items():
        result = train(config)
        found[name] = {"weights": weights(result), "losses": result.record.losses, "agree": replicas_agree(result)}
        found[name]["accuracy"] = result.record.epoch_accuracy
    for sync in (False, True):
        config = replace(CONFIG["even"], sync_batch_norm=sync)
        result = train(config, Normed)
        found[f"batch norm {sync}"] = {
            "weights": weights(result),
            "kinds": [type(m).__name__ for m in result.model.modules()],
        }

    synchronized = replace(CONFIG["one left"], sync_batch_norm=True)
    found["one left, synchronized"] = weights(train(synchronized, Normed))
    # Shares of 4 and 3 in as many parts.
    synchronized = replace(CONFIG["uneven"], sync_batch_norm=True, epochs=1)
    found["parts, synchronized"] = replicas_agree(train(replace(synchronized, accumulation=4), Normed))
    # A model of float32, as bf16 needs it.
    runs = [
        training.train(replace(synchronized, precision=kind), dataset_of(90, 37), model=seeded(Normed), progress=False)
        for kind in ("fp32", "bf16")
    ]
    found["bf16, synchronized"] = [weights(result)["norm.weight"] for result in runs]

    undisturbed = training.train(OF_THE_COMMAND, data.load("digits"), progress=False)
    found["undisturbed"] = {"weights": weights(undisturbed), "losses": undisturbed.record.losses}

    # Faults that the comparison is there to find.
    summed = planted("weight_of", lambda share, batch, size: float(size), parallel, lambda: train(CONFIG["uneven"]))
    begin = DeviceImages.begin_epoch
    other_epochs = planted(
        "begin_epoch", lambda self, epoch: begin(self, epoch + rank), DeviceImages, lambda: train(CONFIG["uneven"])
    )
    local = planted(
        "weight_of", lambda share, batch, size: 1 / max(share, 1), parallel, lambda: train(CONFIG["uneven"])
    )
    found["planted"] = {"summed": weights(summed), "other epochs": weights(other_epochs), "local means": weights(local)}

    quantized = training.train(QUANTIZED, dataset_of(90, 37), model=seeded(Normed).eval(), progress=False)
    assert isinstance(quantized.model, QuantizedModel)
    test = dataset_of(90, 37).test
    measured = accuracy(quantized.model.to_network(), [(test.images.astype("float32"), test.labels)])[0]
    found["quantized"] = {
        "agree": replicas_agree(quantized),
        "accuracy": [quantized.record.test_accuracy, measured],
        "losses": quantized.record.losses,
    }

    record = result.record
    found["record"] = {"world_size": record.world_size, "backend": record.backend, "notes": record.notes}
    if sweep.whole():
        found.update(_compiled())
    captured = train(replace(CONFIG["even"], step="captured"))
    found["captured"] = captured.record.notes
    try:
        train(replace(CONFIG["even"], batch_size=1))
    except Exception as error:
        found["batch of one"] = f"{type(error).__name__}: {error}"
    return found


def _compiled() -> dict[str, Any]:
    """Compiled steps in two processes."""
    rank, found = dist.get_rank(), dict[str, Any]()
    compiled = replace(CONFIG["rest"], step="compiled")
    # Dynamo and DDP's own splitting of the graph, but no C++ compiler, which takes tens of seconds.
    through = partial(torch.compile, backend="aot_eager")
    graphs, prepared = list[int](), list[int]()

    def counting(graph: Any, inputs: Any) -> Any:
        graphs.append(len(graphs))
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    prepare = parallel.ParallelStep.prepare

    def counted(*arguments: Any) -> None:
        prepare(*arguments)
        prepared.append(len(graphs))

    def run() -> TrainResult:
        counts = partial(torch.compile, backend=counting)
        return planted("compile", counts, torch, lambda: train(compiled, Normed))

    with torch.no_grad():
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        logging.getLogger("torch._dynamo").addHandler(handler)
        result = planted("prepare", counted, parallel.ParallelStep, run)
        logging.getLogger("torch._dynamo").removeHandler(handler)
        found["dynamo says"] = stream.getvalue()
        found["graphs"] = [*prepared, len(graphs)]
        found["compiled"] = {"weights": weights(result), "notes": result.record.notes, "agree": replicas_agree(result)}
        found["not compiled"] = {"weights": weights(train(CONFIG["rest"], Normed))}
        # One process that cannot compile, and the other would wait for it.
        broken = through if rank == 0 else no_compiler
        result = planted("compile", broken, torch, lambda: train(compiled, Normed))
        found["one cannot compile"] = {"weights": weights(result), "notes": result.record.notes}
    return found


def resumes(arguments: dict[str, Any]) -> dict[str, Any]:
    """One process is interrupted in mid-epoch, and all save and go on later; a disk that is full in the leader."""
    folder = Path(arguments["folder"])
    config = CONFIG["uneven"]
    found: dict[str, Any] = {"whole": weights(train(config, Normed))}
    look = loop._Run._look
    rank = dist.get_rank()

    def interrupting(self: Any, interrupted: Any) -> None:
        if rank == 1 and self.position.done == 9:
            signal.raise_signal(signal.SIGINT)
        look(self, interrupted)

    loop._LOOK_EVERY = 1
    try:
        planted("_look", interrupting, loop._Run, lambda: train(config, Normed, out=folder / "run"))
        found["interrupted"] = None
    except training.TrainingInterrupted as error:
        found["interrupted"] = str(error)
    found["resumed"] = weights(train(config, Normed, out=folder / "run", resume=True))
    # For one process to continue.
    train(replace(config, epochs=1), out=folder / "two")
    try:
        train(config, out=Path("/proc/run"))
    except Exception as error:
        found["cannot write"] = f"{type(error).__name__}: {error}"
    return found


def orders(_: dict[str, Any]) -> list[list[int]]:
    """What each rank visits: without any process, the arithmetic of shares."""
    order = torch.arange(10)
    return [share_of(order, 4, Ranks(rank, 3)).tolist() for rank in range(3)]
