"""``twoscale --help``: every verb in one line."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from twoscale._cli.verbs import VERBS

__all__ = ["indented", "usage"]

_ABOUT = (
    "Train PyTorch image classifiers, turn them into integer-only networks that compute the same integers in every "
    "executor, and find out where the accuracy goes."
)
_STORY = (
    "twoscale lab",
    "twoscale train net --data cifar10 --out runs/net",
    "twoscale quantize runs/net/model.safetensors -o net.onnx",
    "twoscale verify net.onnx --checkpoint runs/net/model.safetensors",
    "twoscale export net.onnx --out net-c",
)
_EXIT_CODES = "Exit codes: 0 success, 1 integers differ, 2 wrong input (explained in one line), 130 interrupted."


def usage(group: str | None = None) -> str:
    """Return the help for all verbs, or for those that begin with the word ``group``."""
    shown = {name: verb for name, verb in VERBS.items() if group is None or name.startswith(f"{group} ")}
    width = max(len(verb.usage) for verb in shown.values()) + 2
    lines = [f"usage: twoscale {group or ''}{' ' if group else ''}VERB [OPTIONS]", "", *textwrap.wrap(_ABOUT, 80)]
    for title in dict.fromkeys(verb.group for verb in shown.values()):
        lines += ["", f"{title}:"]
        lines += [f"  {verb.usage:<{width}}{verb.summary}" for verb in shown.values() if verb.group == title]
    examples = _STORY if group is None else [example for verb in shown.values() for example in verb.examples]
    lines += ["", "Examples:", *indented(examples), "", "Run twoscale VERB --help for the options of a verb."]
    return "\n".join([*lines, *textwrap.wrap(_EXIT_CODES, 80), ""])


def indented(lines: Sequence[str]) -> list[str]:
    """Return ``lines`` as help shows examples."""
    return [f"  {line}" for line in lines]
