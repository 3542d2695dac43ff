"""Mistakes in the command itself give one line, exit code 2 and the nearest valid word."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from twoscale._cli.parsing import bind

Refused = Callable[..., str]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("quantise",), "unknown verb 'quantise', did you mean quantize?; see twoscale --help"),
        (("xyzzy",), "unknown verb 'xyzzy'; see twoscale --help"),
        (("--jsn",), "--jsn is no option of twoscale itself: name a verb first; see twoscale --help"),
        (("data",), "twoscale data needs one of: list, fetch; see twoscale --help"),
        (("data", "fetsch"), "twoscale data has no 'fetsch', did you mean fetch?; see twoscale --help"),
        (("lab", "--ot", "x"), "unknown option --ot, did you mean --out?; see twoscale lab --help"),
        (("lab", "--zzz=3"), "unknown option --zzz; see twoscale lab --help"),
        (("lab", "digits"), "unexpected digits; see twoscale lab --help"),
        (("lab", "--seed"), "--seed needs a value; see twoscale lab --help"),
        (("lab", "--seed", "one"), "--seed: 'one' is not a whole number; see twoscale lab --help"),
        (("train", "net", "-o", "x", "--lr", "fast"), "--lr: 'fast' is not a number; see twoscale train --help"),
        (("train", "net", "-o=x", "--epochs=1.5"), "--epochs: '1.5' is not a whole number; see twoscale train --help"),
        (("train", "net", "--out", ""), "--out is empty; expected a value; see twoscale train --help"),
        (("train", "net", "--out="), "--out is empty; expected a value; see twoscale train --help"),
        (("train", "net", "-o", "x", "--without"), "--without needs a value; leave it out, or say at least one"),
        (("train", "-o", "x", "--milestones", "--lr", "1"), "--milestones needs a value; leave it out, or say at least "
         "one"),
        (("quantize",), "missing FILE and --out; see twoscale quantize --help"),
        (("quantize", "net.pt", "--oout", "x.onnx"), "unknown option --oout, did you mean --out?; "
         "see twoscale quantize --help"),
        (("quantize", "net.pt", "-o", "x.onnx", "--scheme", "corse"), "--scheme is corse, did you mean course? "
         "Expected default, fast, course, tflite; see twoscale quantize --help"),
        (("train", "--model", "net", "-o", "x"), "--model is no option; give its value without it: twoscale train "
         "MODEL; see twoscale train --help"),
        (("scale", "--model=net"), "--model is no option; give its value without it: twoscale scale MODEL; "
         "see twoscale scale --help"),
        (("quantize", "--oout", "x.onnx"), "unknown option --oout, did you mean --out?; see twoscale quantize --help"),
        (("verify", "--datta", "digits"), "unknown option --datta, did you mean --data?; see twoscale verify --help"),
        (("train", "net", "--foo", "3"), "unknown option --foo; see twoscale train --help"),
        (("quantize", "--foo"), "unknown option --foo; see twoscale quantize --help"),
        (("inspect", "--jsom"), "unknown option --jsom, did you mean --json?; see twoscale inspect --help"),
        (("export", "--oot", "x"), "unknown option --oot, did you mean --out?; see twoscale export --help"),
        (("eval", "--modle=x"), "unknown option --modle, did you mean --model?; see twoscale eval --help"),
        (("eval", "-x"), "unknown option -x; see twoscale eval --help"),
        (("data", "fetch", "--pth", "x"), "unknown option --pth, did you mean --path?; see twoscale data fetch --help"),
        (("train", "net", "-o", "x", "--batchsize", "4"), "unknown option --batchsize, did you mean --batch-size?; "
         "see twoscale train --help"),
    ],
)  # fmt: skip
def test_mistake(refused: Refused, words: tuple[str, ...], message: str) -> None:
    assert refused(*words) == message


def test_nothing_runs_before_everything_is_understood() -> None:
    def verb(images: int = 3) -> None:
        raise AssertionError("it ran")

    bound = bind(verb, "twoscale verb", ["--images", "4"])
    with pytest.raises(AssertionError, match="it ran"):
        bound()


def test_options_reach_the_function() -> None:
    def verb(images: int = 3, json: bool = False, name: str | None = None) -> tuple[int, bool, str | None]:
        return images, json, name

    assert bind(verb, "verb", [])() == (3, False, None)
    assert bind(verb, "verb", ["--images", "4", "--json", "--name", "None"])() == (4, True, "None")
