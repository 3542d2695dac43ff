from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from typing import Any

import docstring_parser
import pytest

import twoscale
from twoscale._cli.parsing import bind
from twoscale._cli.verbs import VERBS

Run = Any
EVERY_VERB = pytest.mark.parametrize("verb", VERBS)


def function_of(verb: str) -> Any:
    module, name = VERBS[verb].function.split(":")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("help",)])
def test_help_lists_every_verb(run: Run, words: tuple[str, ...]) -> None:
    outcome = run(*words)
    assert outcome.code == 0
    assert outcome.err == ""
    for verb in VERBS.values():
        assert f"  {verb.usage} " in outcome.out
        assert verb.summary in outcome.out
    assert max(len(line) for line in outcome.out.splitlines()) <= 80


def test_help_of_a_group_lists_its_verbs(run: Run) -> None:
    outcome = run("data", "--help")
    assert outcome.code == 0
    assert "  data fetch NAME  " in outcome.out
    assert "quantize" not in outcome.out


def test_version(run: Run) -> None:
    assert run("--version").out == f"twoscale {twoscale.__version__}\n"


@EVERY_VERB
def test_help_of_a_verb(run: Run, verb: str) -> None:
    outcome = run(*verb.split(), "--help")
    assert outcome.code == 0
    assert outcome.err == ""
    text = " ".join(outcome.out.replace("│", " ").split())
    assert text.startswith(" ".join((inspect.getdoc(function_of(verb)) or "").split("\n\n")[0].split()))
    assert f"usage: twoscale {verb} [-h]" in text
    for example in VERBS[verb].examples:
        assert f"  {example}\n" in outcome.out
    assert "None" not in text
    assert "--no-" not in text
    own = [line for line in outcome.out.splitlines() if not line.startswith("usage:")]  # written by tyro
    assert max(len(line) for line in own) <= 88  # an example may be longer than 80


@EVERY_VERB
def test_every_option_is_described(run: Run, verb: str) -> None:
    text = " ".join(run(*verb.split(), "--help").out.replace("│", " ").split())
    for entry in docstring_parser.parse(function_of(verb).__doc__).params:
        if entry.arg_name not in ("options", "pictures"):  # dataclasses, whose fields are options
            assert " ".join((entry.description or "").split()) in text


@EVERY_VERB
def test_examples_are_right(verb: str) -> None:
    """The parser accepts every example with its values and options."""
    for example in VERBS[verb].examples:
        words = example.split()
        assert words[: 1 + len(verb.split())] == ["twoscale", *verb.split()]
        bind(function_of(verb), f"twoscale {verb}", words[1 + len(verb.split()) :])


def test_every_verb_of_the_package_is_listed() -> None:
    import pkgutil

    from twoscale import _cli as cli

    functions = set()
    for module in pkgutil.iter_modules(cli.__path__):
        if module.name == "__main__":
            continue
        names = importlib.import_module(f"twoscale._cli.{module.name}").__all__
        functions |= {f"twoscale._cli.{module.name}:{name}" for name in names if name.endswith("_command")}
    assert functions == {verb.function for verb in VERBS.values()}


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from twoscale._cli import main\nfrom twoscale._cli.verbs import VERBS\n"
        "for words in [[], *([*verb.split(), '--help'] for verb in VERBS)]:\n"
        "    try:\n"
        "        main(words)\n"
        "    except SystemExit as ended:\n"
        "        assert not ended.code, words\n"
        "    assert 'torch' not in sys.modules, words\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def test_the_first_help_needs_hardly_anything() -> None:
    code = "import sys; from twoscale._cli import main; main([]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=True)
    assert {"numpy", "rich", "torch", "tyro"}.isdisjoint(done.stdout.splitlines()[-1].split())
