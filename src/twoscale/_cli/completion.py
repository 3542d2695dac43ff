"""``twoscale completion``."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import io
import operator
import sys
from collections.abc import Callable
from typing import Annotated, Any, Literal

import tyro

from twoscale._cli.parsing import as_constructor
from twoscale._cli.verbs import VERBS

__all__ = ["completion_command"]

_FILES = {
    # tyro completes file names after options only; these lines do for FILE too, where nothing else fits.
    "bash": "complete -o default -F _tyro_twoscale twoscale\n",
    "zsh": "(( compstate[nmatches] )) || _files\n",
    "fish": "complete --force-files --command twoscale\n",
}


def completion_command(
    shell: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional, tyro.conf.arg(metavar="SHELL")],
) -> None:
    """Print the script that completes verbs, options and their values in a shell.

    bash: eval "$(twoscale completion bash)", in ~/.bashrc. fish: twoscale completion fish | source, in
    ~/.config/fish/config.fish. zsh: twoscale completion zsh > DIR/_twoscale, with DIR in fpath before compinit. The
    script runs python3, and needs nothing of twoscale.

    Args:
        shell: bash, zsh or fish.
    """
    groups: dict[str, list[Any]] = {}
    verbs: list[Any] = []
    for name, verb in VERBS.items():
        module, _, function = verb.function.partition(":")
        made = as_constructor(getattr(importlib.import_module(module), function))
        first, _, second = name.partition(" ")
        found = groups.setdefault(first, []) if second else verbs
        found.append(_subcommand(second or first, verb.summary, made))
    for name, inner in groups.items():
        verbs.append(_subcommand(name, "", _group(inner)))
    script = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(script):
        tyro.cli(
            _one_of(verbs),
            prog="twoscale",
            args=["--tyro-print-completion", shell],
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone, tyro.conf.OmitArgPrefixes),
        )
    sys.stdout.write(f"{script.getvalue().rstrip()}\n{_FILES[shell]}")


def _subcommand(name: str, summary: str, made: Callable[..., Any]) -> Any:
    """Return the type of a verb, as tyro takes it."""
    return Annotated[Any, tyro.conf.subcommand(name, description=summary, constructor=made, prefix_name=False)]


def _one_of(verbs: list[Any]) -> Any:
    """Return the type of a choice of verbs."""
    return functools.reduce(operator.or_, verbs)


def _group(verbs: list[Any]) -> Callable[..., Any]:
    """Return a verb whose first word names another, such as data."""

    def chosen(**given: Any) -> Any:
        return given

    parameter = inspect.Parameter("verb", inspect.Parameter.KEYWORD_ONLY, annotation=_one_of(verbs))
    chosen.__signature__ = inspect.Signature([parameter])  # type: ignore[attr-defined]
    chosen.__annotations__ = {"verb": parameter.annotation}
    return chosen
