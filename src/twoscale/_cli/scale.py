"""``twoscale scale``."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import tyro

from twoscale import data as datasets
from twoscale._cli.common import AS_RECORDED, ModelArgs, PictureOptions, Pictures, console, print_json
from twoscale._cli.ending import INTERRUPTED, write_error
from twoscale._environment import gpu_names
from twoscale._launching.hosts import find_place
from twoscale._launching.processes import die_with_parent
from twoscale.data import Preprocessing
from twoscale.errors import ConfigurationError

if TYPE_CHECKING:
    from twoscale._launching.hosts import Place
    from twoscale.scaling import GivenLink
    from twoscale.scaling._measure.hosts import Team

__all__ = ["scale_command"]

Numbers = Annotated[str | None, tyro.conf.arg(metavar="N,N,...")]


def scale_command(
    model: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")] = None,
    model_args: ModelArgs = None,
    data: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None,
    pictures: Pictures = AS_RECORDED,
    batch_sizes: Numbers = None,
    world_sizes: Numbers = None,
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",), metavar="DIR")] = Path("scale"),
    device: Literal["cpu", "cuda"] | None = None,
    sections: Annotated[str | None, tyro.conf.arg(aliases=("--questions",), metavar="NAME,NAME,...")] = None,
    full: bool = False,
    base_batch: Numbers = None,
    steps: int | None = None,
    repeats: int | None = None,
    seeds: int | None = None,
    epochs: int | None = None,
    accuracy_batches: Numbers = None,
    untuned: bool = False,
    precision: Literal["fp32", "bf16"] | None = None,
    separate: bool = False,
    link: Annotated[str | None, tyro.conf.arg(metavar="LATENCY,RATE")] = None,
    minutes: float | None = None,
    timeout: float | None = None,
    seed: int = 0,
    resume: bool = False,
    hosts: int | None = None,
    host: int | None = None,
    address: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS:PORT")] = None,
    json: bool = False,
) -> None:
    """Measure how training scales over processes or GPUs of one or several machines, and say why it stops where it
    does.

    Answers eight questions: epoch time by batch size; speed-up by ranks; computing against communication; accuracy at
    large batch; the epoch in the sampler; what crosses the wire; whether gradients alone would do; what more devices
    would bring. With --full it answers the others too: DDP's options, communication hooks and sharding; workers that
    load data; the parts and layers of a step; compiling, precision and memory layout; optimizers and BatchNorm. Writes
    DIR/report.html (open it in a browser), DIR/study.json, and a file for each cell in DIR/cells. A cell that fails is
    a result like any other. After Ctrl-C or a crash, the same command with --resume continues.

    On several machines, start the same command on each: with torchrun --nproc-per-node=1 -m twoscale scale, with srun
    --ntasks-per-node=1, or with --hosts, --host and --address. Host 0 leads and writes the study; the others serve it.

    Args:
        model: Name of the model, or FILE.py:CLASS for your own, whose code then runs; or FILE.py:FUNCTION for a
            training step of your own, a function that returns (module, loss, optimizer, loader). Default: net on a
            processor, resnet18 on a GPU.
        model_args: Options of the model, as name=value,name=value.
        data: Data set, or synthetic, or pictures of your own, which have to fit into memory. Default: digits on a
            processor, cifar10 on a GPU.
        pictures: How pictures of your own become pixels.
        batch_sizes: Batch sizes on one device, ascending. Default: 32,128,512, on a GPU 32 to 8192 by doubling.
        world_sizes: Numbers of ranks on one host; 1 is always among them. On several hosts, so many run on each.
            Default: 1,2, on GPUs as many of 1,2,4 as there are.
        out: Folder of the study; it is made.
        device: Default: cuda where there is a GPU.
        sections: Questions to answer: batch, speedup, communication, accuracy, sampler, wire, replicas, forecast,
            strategies, loading, step, variants, optimizers, noise, or their numbers 1 to 14. Default: 1 to 8.
        full: Answer all of them.
        base_batch: Batches of a rank at which numbers of ranks are compared; the verdict is given for the first.
            Default: 64,32,128, on a GPU 128,32,512.
        steps: Steps of a timed run; fewer take less time. Default: as many as the batch size asks for.
        repeats: Launches of each timed cell. Default: 3.
        seeds: Runs of each way to train at a large batch. Default: 5, on a GPU 3.
        epochs: Epochs of these runs. Default: 3, on a GPU 8.
        accuracy_batches: The small and the large batch of these runs. Default: 16 and 64, on a GPU 128 and 1024.
        untuned: Take the first learning rate of each way instead of the best of several.
        precision: Default: fp32, on a GPU bf16.
        separate: Give every batch size, and every training run, a launch of its own.
        link: Forecast steps over a link of this latency and rate too, such as 50us,10Gbit. It is not measured.
        minutes: Begin no cell that is expected to end later. What the verdict needs comes first, and what is left out
            can be resumed.
        timeout: Seconds after which a launch is ended and recorded as such. Default: 900.
        seed: Decides initial weights and the order of the cells.
        resume: Continue the study in the folder.
        hosts: Number of hosts. Default: what torchrun or srun says, else 1. Measured are 1, 2, 4, ... and all of them.
        host: Index of this host, from 0.
        address: Of host 0, as the others reach it, with a free port, such as 10.0.0.1:29400.
        json: Print the answers as JSON instead of sentences.
    """
    from twoscale.scaling._measure.hosts import Team
    from twoscale.scaling._questions.answers import plain
    from twoscale.scaling._questions.registry import SECTIONS, VERDICT
    from twoscale.scaling._questions.verdict import VerdictAnswer, link_line
    from twoscale.scaling._run import CELLS, REPORT, run_study, study_config
    from twoscale.scaling._study.progress import study_progress

    place = find_place(hosts, host, address)
    if place is not None and place.host > 0:
        _serve(place, device)
    bases = _numbers("--base-batch", base_batch)
    config = study_config(
        device,
        model=model,
        model_args=model_args,
        data=data,
        preprocessing=_preprocessing(data, pictures),
        batch_sizes=_numbers("--batch-sizes", batch_sizes),
        world_sizes=_numbers("--world-sizes", world_sizes),
        sections=_sections(sections, full, SECTIONS),
        base_batch=bases[0] if bases else None,
        grid_batches=bases[1:] if bases else None,
        steps=steps,
        repeats=repeats,
        seeds=seeds,
        epochs=epochs,
        accuracy_batches=_numbers("--accuracy-batches", accuracy_batches),
        tune=not untuned,
        precision=precision,
        separate=separate,
        tolerance=None if minutes is None else 0.25,
        timeout=timeout,
        seed=seed,
        link=None if link is None else _link(link),
        hosts=None if place is None else _host_counts(place.hosts),
    )
    try:
        with _interrupted_by_sigterm(), contextlib.nullcontext(Team()) if place is None else _led(place) as team:
            results = run_study(config, out, resume=resume, minutes=minutes, progress=study_progress(), team=team)
    except KeyboardInterrupt as error:
        words = [word for word in sys.argv[1:] if word != "--resume"]
        again = shlex.join(["twoscale", *words, "--resume"]) if words[:1] == ["scale"] else "the same with --resume"
        raise KeyboardInterrupt(f"interrupted; finished cells are kept; continue with: {again}") from error
    if json:
        print_json(plain(results))
        return
    printer = console()
    asked = not {"speedup", "communication"}.isdisjoint(results.config.sections)
    lines = [VERDICT.sentence(results) or ""] if results.of(VerdictAnswer).verdict is not None or asked else []
    verdict = results.of(VerdictAnswer).verdict
    if verdict is not None:
        lines += [f"left out: {one}" for one in verdict.left_out]
        lines += [] if verdict.link is None else [link_line(verdict.link)]
    lines += [f"{SECTIONS.index(name) + 1} {sentence}" for name, sentence in results.sentences.items()]
    lines += [f"failed: {one.what}: {one.status}: {one.message}" for one in results.failures]
    if results.failures:
        lines.append(f"To measure a failed cell again, remove its file in {out / CELLS} and continue with --resume.")
    lines += [f"no time for: {what}" for what in results.left_out]
    for line in lines:
        printer.print(line, markup=False)
    printer.print(f"Everything, with pictures: {out / REPORT}", soft_wrap=True, markup=False)


def _host_counts(hosts: int) -> tuple[int, ...]:
    """Return the numbers of hosts that a study measures: 1, 2, 4, ..., and all."""
    return tuple(sorted({hosts, *(1 << i for i in range(hosts.bit_length()))}))


def _led(place: Place) -> contextlib.AbstractContextManager[Team]:
    """Gather the hosts of a study that this one leads."""
    from twoscale.scaling._measure.hosts import lead

    others = "host 1" if place.hosts == 2 else f"hosts 1 to {place.hosts - 1}"
    port = f":{place.port}" if place.port else ""
    write_error(f"twoscale: host 0 of {place.hosts} waits for {others} at {place.address}{port}")
    return lead(place)


def _serve(place: Place, device: Literal["cpu", "cuda"] | None) -> NoReturn:
    """Serve the study of host 0 until its end, and exit as it does."""
    import msgspec

    from twoscale._launching.hosts import ConnectionLost
    from twoscale.scaling._measure.hosts import join_study, serve
    from twoscale.scaling._study.machine import Machine

    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent()  # torchrun may be killed
    about = msgspec.json.encode(Machine.here(device or ("cuda" if gpu_names() else "cpu")))
    with _interrupted_by_sigterm():
        connection = join_study(place, about)
        title = f"host {place.host} of {place.hosts}"
        write_error(f"twoscale: {title} serves the study of host 0 at {place.address}:{place.port}")
        try:
            code = serve(connection)
        except ConnectionLost as error:
            write_error(f"twoscale: error: {title} lost host 0 before the end of the study: {error}")
            code = 1
        except KeyboardInterrupt:
            write_error(f"twoscale: {title} was interrupted, and takes no more part in the study")
            code = INTERRUPTED
        finally:
            connection.close()
    sys.exit(code)


def _preprocessing(name: str | None, pictures: PictureOptions) -> Preprocessing | None:
    """Return the preprocessing that options ask for.

    Raises:
        ConfigurationError: options for a named data set, or one that a study does not have.
    """
    given = pictures.given()
    if pictures.skip_damaged:
        raise ConfigurationError("--skip-damaged is not for a study; remove the damaged pictures first")
    if not given:
        return None
    if name is None or name == "synthetic" or name in datasets.names():
        raise ConfigurationError("--size, --resize and --channels are for pictures of your own; give --data FOLDER")
    return Preprocessing(**given)


@contextlib.contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end a study as Ctrl-C does: the terminal and the folders of its launches are left in order."""
    try:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:  # not the main thread, which alone receives signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise ConfigurationError(f"{option} is {text}; expected whole numbers with commas between, such as 1,2")
    return tuple(int(number) for number in text.split(","))


_SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
_BITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


def _link(text: str) -> GivenLink:
    from twoscale.scaling import GivenLink

    found = re.fullmatch(r"(\d+\.?\d*)(us|µs|ms|s),(\d+\.?\d*)(kbit|mbit|gbit)(?:/s)?", text, re.IGNORECASE)
    if found is None:
        raise ConfigurationError(f"--link is {text}; expected a latency and a rate, such as 50us,10Gbit")
    return GivenLink(float(found[1]) * _SECONDS[found[2].lower()], float(found[3]) * _BITS[found[4].lower()] / 8)


def _sections(text: str | None, full: bool, known: tuple[str, ...]) -> tuple[str, ...] | None:
    if text is None:
        return known if full else None
    if full:
        raise ConfigurationError("--full answers all questions, and --sections chooses some; give one of them")
    named = [word.strip() for word in text.split(",")]
    return tuple(known[int(word) - 1] if word.isdecimal() and 1 <= int(word) <= len(known) else word for word in named)
