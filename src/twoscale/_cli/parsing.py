"""Options of one verb, parsed by tyro: short help, and one line for every mistake."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import inspect
import re
import shutil
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import docstring_parser
import tyro

from twoscale.errors import ConfigurationError

__all__ = ["UsageError", "as_constructor", "bind", "nearest"]


class UsageError(ConfigurationError):
    """Arguments that the verb does not accept; the message names them and what is accepted instead."""


def bind(function: Callable[..., Any], prog: str, arguments: Sequence[str]) -> Callable[[], Any]:
    """Return ``function`` with its options bound to ``arguments``; it has not run yet.

    Raises:
        UsageError: the arguments are wrong.
        SystemExit: help was requested, and has been printed.
    """
    if not {"-h", "--help"}.isdisjoint(arguments):
        sys.stdout.write(f"{_description(function)}\n\n")
    options = _options(function)
    for before, word in zip((None, *arguments), arguments, strict=False):
        option = before if word == "" else word.removesuffix("=")
        if word == "" or (word.startswith("--") and word.endswith("=")):  # as a path it would be the current folder
            raise UsageError(f"{option or 'the first argument'} is empty; expected a value; see {prog} --help")
    _check_names(prog, options, arguments)
    with _one_line_errors(prog):
        bound: Callable[[], Any] = tyro.cli(
            _binder(function, options),
            prog=prog,
            args=list(arguments),
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone),
        )
    return bound


def as_constructor(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a verb's function with its options as tyro takes them, for scripts of completion."""
    return _binder(function, _options(function))


def _check_names(prog: str, options: dict[str, inspect.Parameter], arguments: Sequence[str]) -> None:
    """Raise UsageError for the first word that looks like an option and is none, before tyro misses something else."""
    known = {"-h", "--help"}
    positional = {}
    for name, option in options.items():
        named = next(filter(None, (getattr(extra, "name", None) for extra in option.annotation.__metadata__)), name)
        flag = f"--{named.replace('_', '-')}"
        if tyro.conf.Positional in option.annotation.__metadata__:
            positional[flag] = option
            continue
        known.add(flag)
        for extra in option.annotation.__metadata__:
            known.update(getattr(extra, "aliases", None) or ())
    for word in arguments:
        if not re.match(r"--[A-Za-z]|-[A-Za-z]$", word):
            continue
        flag = word.split("=")[0]
        if flag.startswith("--"):
            flag = flag.replace("_", "-")
        if flag in positional:
            example = f"{prog} {flag.removeprefix('--').upper()}"
            raise UsageError(f"{flag} is no option; give its value without it: {example}; see {prog} --help")
        if flag not in known:
            candidates = sorted(name for name in known if name.startswith("--"))
            raise UsageError(f"unknown option {flag}{nearest(flag, candidates)}; see {prog} --help")


def nearest(word: str, known: Sequence[str]) -> str:
    """Return a question that suggests the known word nearest to ``word``, or an empty string."""
    bare = {one.lstrip("-"): one for one in known}  # the dashes are in all of them, and would make all of them near
    near = difflib.get_close_matches(word.lstrip("-"), bare, n=1, cutoff=0.6)
    return f", did you mean {bare[near[0]]}?" if near else ""


def _binder(function: Callable[..., Any], options: dict[str, inspect.Parameter]) -> Callable[..., Any]:
    """Return a function of the options that returns ``function`` with them bound, without calling it."""

    def binder(**given: Any) -> Any:
        bound = {}
        for name, (_, kind) in _parameters(function).items():
            if dataclasses.is_dataclass(kind) and isinstance(kind, type):
                bound[name] = kind(**{field.name: given.pop(field.name) for field in dataclasses.fields(kind)})
        return functools.partial(function, **given, **bound)

    binder.__signature__ = inspect.Signature(list(options.values()))  # type: ignore[attr-defined]
    binder.__annotations__ = {name: option.annotation for name, option in options.items()}
    return binder


def _parameters(function: Callable[..., Any]) -> dict[str, tuple[inspect.Parameter, Any]]:
    """Return each parameter of a function and its type."""
    kinds = typing.get_type_hints(function)
    return {name: (parameter, kinds[name]) for name, parameter in inspect.signature(function).parameters.items()}


def _options(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return a verb's options as tyro takes them, with the fields of dataclasses as options of their own.

    Options that are off or unset by default do not show "(default: False)" or "(default: None)"; their texts say it.
    """
    found: dict[str, inspect.Parameter] = {}

    def add(name: str, hint: Any, default: Any, text: str) -> None:
        quiet = "" if default is None or default is False else None
        hint = Annotated[hint, tyro.conf.arg(help=" ".join(text.split()) or None, help_behavior_hint=quiet)]
        found[name] = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)

    hints = typing.get_type_hints(function, include_extras=True)
    texts = _texts(docstring_parser.parse(function.__doc__ or ""))
    for name, (parameter, kind) in _parameters(function).items():
        if not (dataclasses.is_dataclass(kind) and isinstance(kind, type)):
            add(name, hints[name], parameter.default, texts.get(name, ""))
            continue
        inner = typing.get_type_hints(kind, include_extras=True)
        about: dict[str, str] = {}
        for base in reversed(kind.__mro__[:-1]):
            about |= _texts(docstring_parser.parse_from_object(base))
        for field in dataclasses.fields(kind):
            default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
            text = f"{about.get(field.name, '')} {field.metadata.get('note', '')}"
            add(field.name, inner[field.name], default, text)
    return found


def _texts(docstring: docstring_parser.Docstring) -> dict[str, str]:
    return {entry.arg_name: entry.description or "" for entry in docstring.params}


def _description(function: Callable[..., Any]) -> str:
    """Return the docstring up to its sections, wrapped to the width of the terminal."""
    text = (inspect.getdoc(function) or "").split("\n\nArgs:")[0]
    width = min(shutil.get_terminal_size().columns, 100)
    return "\n\n".join(textwrap.fill(" ".join(paragraph.split()), width) for paragraph in text.split("\n\n"))


@contextlib.contextmanager
def _one_line_errors(prog: str) -> Iterator[None]:
    """Raise UsageError where tyro would draw a box.

    The hook is not part of tyro's public interface; a tyro without it draws its box and exits with the same code.
    """
    try:
        from tyro import _errors as hooks
    except ImportError:  # pragma: no cover
        yield
        return

    def reject(event: hooks.ParseErrorEvent) -> None:
        message = " ".join(_message(event).split())
        raise UsageError(f"{message}; see {prog} --help")

    with hooks.on_parse_error(reject):
        yield


def _message(event: Any) -> str:
    kind = type(event).__name__
    if kind == "UnrecognizedArgs":
        return f"unexpected {' '.join(event.tokens)}"
    if kind == "MissingArgs":
        missing = [_display(context.arg) for context in event.missing_arguments]
        return f"missing {' and '.join(missing)}"
    if kind == "InvalidChoice":
        choices = [str(choice) for choice in event.choices if str(choice) != "None"]  # unset, not a word to type
        near = nearest(event.value, choices)
        expected = " Expected" if near else "; expected"
        return f"{_display(event.argument)} is {event.value}{near}{expected} {', '.join(choices)}"
    if kind == "BadValue":
        return f"{_display(event.argument)} needs a value"
    if kind == "InstantiationFailure" and event.argument is not None:
        return f"{_display(event.argument)}: {_plain(event.message)}"
    return getattr(event, "message", "") or "the arguments do not fit together"


def _plain(message: str) -> str:
    """Return Python's message about a wrong number in plain words; for optional options tyro quotes that message."""
    for pattern, expected in ((r"invalid literal for int.*: ('.*')", "a whole number"),
                              (r"could not convert string to float: ('.*')", "a number")):  # fmt: skip
        if match := re.search(pattern, message):
            return f"{match[1]} is not {expected}"
    return message


def _display(argument: Any) -> str:
    """Return an argument as the user writes it: FILE, or its longest option."""
    if argument.is_positional():
        return str(argument.lowered.metavar)
    return max((str(flag) for flag in argument.lowered.name_or_flags), key=len)
