"""The command line: one file a verb, each a function whose parameters are its options.

A verb is imported when it is called; help for all of them needs none. To add one, write its function and give it
a line in ``VERBS``.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

__all__ = ["ending_at_once", "main"]

INTERRUPTED = 130
"""Exit code after Ctrl-C, 128 + SIGINT."""
BROKEN_PIPE = 141
"""Exit code when the reader of the output left, 128 + SIGPIPE."""
_KEPT = "interrupted; finished files are kept, none is half written"

_LEAVE_TIME = 5.0
"""Seconds that a process which does not speak leaves to the one that does: torchrun ends all with the first. After that
the error was its own."""


@dataclass(frozen=True)
class Verb:
    """What ``twoscale --help`` says of a verb, and where its function is."""

    group: str
    usage: str
    """Name and positional arguments."""
    summary: str
    function: str
    """module:name."""
    examples: tuple[str, ...]


VERBS = {
    "lab": Verb(
        "Everything at once",
        "lab",
        "train, look, quantize step by step, verify, report",
        "twoscale._cli.lab:lab_command",
        (
            "twoscale lab",
            "twoscale lab --data cifar10 --out lab-cifar10",
            "twoscale lab --data cifar10 --out lab-cifar10 --resume",
        ),
    ),
    "data list": Verb(
        "Step by step",
        "data list",
        "the data sets, and which are on this machine",
        "twoscale._cli.data:list_command",
        ("twoscale data list",),
    ),
    "data fetch": Verb(
        "Step by step",
        "data fetch NAME",
        "get a data set and check its pixels",
        "twoscale._cli.data:fetch_command",
        ("twoscale data fetch cifar10", "twoscale data fetch cifar10 --path cifar-10-python.tar.gz"),
    ),
    "train": Verb(
        "Step by step",
        "train MODEL",
        "train a float network",
        "twoscale._cli.train:train_command",
        (
            "twoscale train net --out runs/net",
            "twoscale train net-with-bias --data cifar10 --epochs 4 --out runs/four",
            "twoscale train net-with-bias --data cifar10 --epochs 4 --out runs/four --resume",
            "twoscale train resnet18 --data cifar10 --recipe standard --procs 2 --out runs/resnet18",
        ),
    ),
    "scale": Verb(
        "Everything at once",
        "scale [MODEL]",
        "how training scales over ranks, and why it stops",
        "twoscale._cli.scale:scale_command",
        (
            "twoscale scale",
            "twoscale scale resnet18 --data cifar10 --batch-sizes 64,256,1024 --world-sizes 1,2",
            "twoscale scale --sections batch,communication --out scale --resume",
        ),
    ),
    "eval": Verb(
        "Step by step",
        "eval FILE",
        "accuracy of a float or an integer network",
        "twoscale._cli.evaluate:eval_command",
        ("twoscale eval runs/net/model.safetensors", "twoscale eval net.onnx --json"),
    ),
    "inspect": Verb(
        "Step by step",
        "inspect FILE",
        "ranges of weights and activations, or integer layers",
        "twoscale._cli.inspect:inspect_command",
        (
            "twoscale inspect runs/net/model.safetensors",
            "twoscale inspect runs/net/model.safetensors --activations",
            "twoscale inspect net.onnx",
        ),
    ),
    "quantize": Verb(
        "Step by step",
        "quantize FILE",
        "float network to integer network (.onnx)",
        "twoscale._cli.quantize:quantize_command",
        (
            "twoscale quantize runs/net/model.safetensors -o net.onnx",
            "twoscale quantize runs/net/model.safetensors -o course.onnx --scheme course",
            "twoscale quantize runs/net/model.safetensors -o four.onnx --weight-bits 4",
            "twoscale quantize resnet20.pt --model resnet20 --data cifar10 -o resnet20.onnx",
        ),
    ),
    "sensitivity": Verb(
        "Step by step",
        "sensitivity FILE",
        "what each layer at fewer bits costs; bits for a size",
        "twoscale._cli.sensitivity:sensitivity_command",
        (
            "twoscale sensitivity runs/net/model.safetensors",
            "twoscale sensitivity runs/net/model.safetensors --budget 0.5 -o half.onnx",
            "twoscale sensitivity runs/net/model.safetensors --bits 2,4 --max-samples 200 --json",
        ),
    ),
    "verify": Verb(
        "Step by step",
        "verify FILE",
        "run it in every executor and compare all integers",
        "twoscale._cli.verify:verify_command",
        (
            "twoscale verify net.onnx",
            "twoscale verify net.onnx --checkpoint runs/net/model.safetensors",
            "twoscale verify net.onnx --against four.onnx",
            "twoscale verify net.onnx --executors reference,torch,onnxruntime,c --json",
        ),
    ),
    "export": Verb(
        "Step by step",
        "export FILE",
        "integer network to C source",
        "twoscale._cli.export:export_command",
        ("twoscale export net.onnx --out net-c", "twoscale export net.onnx --to qdq --out net-qdq.onnx"),
    ),
}

_ABOUT = (
    "Train PyTorch image classifiers; turn them into integer-only networks whose integers are the same in every "
    "executor; find out where the accuracy goes."
)
_STORY = (
    "twoscale lab",
    "twoscale train net --data cifar10 --out runs/net",
    "twoscale quantize runs/net/model.safetensors -o net.onnx",
    "twoscale verify net.onnx --checkpoint runs/net/model.safetensors",
    "twoscale export net.onnx --out net-c",
)
_EXIT_CODES = "Exit codes: 0 done, 1 integers differed, 2 the input was wrong and one line says how, 130 interrupted."


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``twoscale`` with these arguments (by default the process's).

    Raises:
        SystemExit: with 1 if verify found a difference, 2 if the user's input was wrong (one line on standard
            error says what), 130 after Ctrl-C, 141 if the reader of the output left. Returns when all is well.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    from twoscale.errors import TwoscaleError

    wrong: str | None = None
    try:
        code = _run(words)
        sys.stdout.flush()
    except TwoscaleError as error:
        # Said below, when nothing holds the error's frames any more: at the interpreter's end it would be too late for
        # the threads of a process group in them.
        wrong = " ".join(str(error).split())
    except KeyboardInterrupt as error:
        _say(str(error) or _KEPT)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        _drop_output()
        sys.exit(BROKEN_PIPE)
    except OSError as error:
        try:
            sys.stdout.flush()
        except OSError:
            _drop_output()
        _fail(f"{error.filename or 'standard output'}: {error.strerror or error}")
    if wrong is not None:
        _fail(wrong)
    if code:
        sys.exit(code)


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """Let Ctrl-C end the process in this block without an exception: importing torch loses one, or crashes of it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        _say(_KEPT)
        os._exit(INTERRUPTED)

    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _run(words: list[str]) -> int:
    if not words or words in (["--help"], ["-h"], ["help"]):
        sys.stdout.write(_help())
        return 0
    if words in (["--version"], ["-V"]):
        from twoscale._environment import VERSION

        sys.stdout.write(f"twoscale {VERSION}\n")
        return 0
    name, rest = _split(words)
    from twoscale._cli.parsing import bind

    try:
        bound = bind(_function(VERBS[name]), f"twoscale {name}", rest)
    except SystemExit as ended:
        if not ended.code:
            sys.stdout.write("".join(f"{line}\n" for line in ("Examples:", *_indented(VERBS[name].examples))))
        raise
    code = bound()
    return code if isinstance(code, int) else 0


def _split(words: list[str]) -> tuple[str, list[str]]:
    """Return the verb that the words begin with, and the words after it."""
    from twoscale._cli.parsing import UsageError, nearest

    for length in (2, 1):
        name = " ".join(words[:length])
        if name in VERBS and len(words) >= length:
            return name, words[length:]
    groups = sorted({name.split()[0] for name in VERBS if " " in name})
    if words[0] in groups:
        inner = [name.split()[1] for name in VERBS if name.startswith(f"{words[0]} ")]
        found = words[1] if len(words) > 1 else None
        if found in ("-h", "--help"):
            sys.stdout.write(_help(words[0]))
            raise SystemExit(0)
        wrong = f"needs one of: {', '.join(inner)}" if found is None else f"has no '{found}'{nearest(found, inner)}"
        raise UsageError(f"twoscale {words[0]} {wrong}; see twoscale --help")
    if words[0].startswith("-"):
        raise UsageError(f"{words[0]} is no option of twoscale itself: name a verb first; see twoscale --help")
    verbs = list(dict.fromkeys(name.split()[0] for name in VERBS))
    raise UsageError(f"unknown verb '{words[0]}'{nearest(words[0], verbs)}; see twoscale --help")


def _function(verb: Verb) -> Callable[..., Any]:
    module, name = verb.function.split(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def _help(group: str | None = None) -> str:
    """Return the help of all verbs, or of those that begin with the same word."""
    shown = {name: verb for name, verb in VERBS.items() if group is None or name.startswith(f"{group} ")}
    width = max(len(verb.usage) for verb in shown.values()) + 2
    lines = [f"usage: twoscale {group or ''}{' ' if group else ''}VERB [OPTIONS]", "", *textwrap.wrap(_ABOUT, 80)]
    for title in dict.fromkeys(verb.group for verb in shown.values()):
        lines += ["", f"{title}:"]
        lines += [f"  {verb.usage:<{width}}{verb.summary}" for verb in shown.values() if verb.group == title]
    examples = _STORY if group is None else [example for verb in shown.values() for example in verb.examples]
    lines += ["", "Examples:", *_indented(examples), "", "twoscale VERB --help says more of a verb."]
    return "\n".join([*lines, *textwrap.wrap(_EXIT_CODES, 80), ""])


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _drop_output() -> None:
    """Send to nowhere what is left for an output that takes no more, so that Python does not try again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(message: str) -> None:
    from twoscale._launching.torchrun import speaks

    if speaks():
        sys.stderr.write(f"twoscale: {message}\n")


def _fail(message: str) -> NoReturn:
    from twoscale._launching.torchrun import speaks

    if not speaks():
        time.sleep(_LEAVE_TIME)
        message = f"process {os.environ['RANK']}: {message}"
    sys.stderr.write(f"twoscale: error: {message}\n")
    sys.exit(2)
