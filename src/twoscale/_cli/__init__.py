"""The command line: one file per verb, each a function whose parameters are its options."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from twoscale._cli.ending import BROKEN_PIPE, INTERRUPTED, KEPT, drop_output, fail, open_standard_streams, say
from twoscale._cli.usage import indented, usage
from twoscale._cli.verbs import VERBS, Verb
from twoscale._environment import collect_seldom

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``twoscale`` with these arguments (by default the process's).

    Raises:
        SystemExit: with 1 if verify found a difference, 2 if the user's input was wrong (one line on standard
            error explains it), 130 after Ctrl-C, 141 if the reader of the output closed it. Returns on success.
    """
    open_standard_streams()
    if arguments is None:
        collect_seldom()
    words = list(sys.argv[1:] if arguments is None else arguments)
    from twoscale.errors import TwoscaleError

    wrong: str | None = None
    try:
        code = _run(words)
        sys.stdout.flush()
    except TwoscaleError as error:
        # Reported below, when nothing holds the error's frames any more: the threads of a process group in them have to
        # end before the interpreter does.
        wrong = str(error)
    except KeyboardInterrupt as error:
        say(str(error) or KEPT)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        drop_output()
        sys.exit(BROKEN_PIPE)
    except OSError as error:
        try:
            sys.stdout.flush()
        except OSError:
            drop_output()
        fail(f"{error.filename or 'standard output'}: {error.strerror or error}")
    if wrong is not None:
        fail(wrong)
    if code:
        sys.exit(code)


def _run(words: list[str]) -> int:
    if not words or words in (["--help"], ["-h"], ["help"]):
        sys.stdout.write(usage())
        return 0
    if words in (["--version"], ["-V"]):
        from twoscale._environment import VERSION

        sys.stdout.write(f"twoscale {VERSION}\n")
        return 0
    name, rest = _split(words)
    from twoscale._extras import require, requires_extras

    if VERBS[name].needs_torch and not {"-h", "--help"} & {*rest}:
        require(f"twoscale {name}", "torch")
    with requires_extras(f"twoscale {name}"):
        return _run_verb(name, rest)


def _run_verb(name: str, rest: list[str]) -> int:
    from twoscale._cli.parsing import bind

    try:
        bound = bind(_function(VERBS[name]), f"twoscale {name}", rest)
    except SystemExit as ended:
        if not ended.code:
            sys.stdout.write("".join(f"{line}\n" for line in ("Examples:", *indented(VERBS[name].examples))))
        raise
    if VERBS[name].shows_progress:
        from twoscale._cli.progress import shown_progress

        with shown_progress():
            code = bound()
    else:
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
            sys.stdout.write(usage(words[0]))
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
