"""Schemes: allowed options, and the errors about others."""

from __future__ import annotations

import dataclasses
import re

import pytest

from twoscale._quantization import COURSE, DEFAULT, FAST, SCHEMES, Scheme, find_scheme
from twoscale.errors import ConfigurationError, TwoscaleError, UnknownNameError


def test_named_schemes() -> None:
    assert list(SCHEMES) == [scheme.name for scheme in SCHEMES.values()] == ["default", "fast", "course", "tflite"]
    assert find_scheme("default") is DEFAULT
    assert find_scheme("course") is COURSE
    assert Scheme() == DEFAULT


def test_fast_is_the_default_without_tuned_ranges_and_error_feedback() -> None:
    fast = dataclasses.replace(DEFAULT, name="fast", tune_ranges=False, error_feedback=False)
    assert find_scheme("fast") is FAST == fast


def test_the_course_is_symmetric_per_layer_off_the_grid_and_uncorrected() -> None:
    assert COURSE.symmetric
    for option in ("per_channel", "on_grid", "error_feedback", "bias_correction", "join_residuals"):
        assert getattr(COURSE, option) is False
    assert (COURSE.weight_range, COURSE.activation_range) == ("minmax", "minmax")


def test_an_unknown_scheme_names_the_nearest() -> None:
    message = "unknown scheme 'defualt': did you mean 'default'? known names: course, default, fast, tflite"
    with pytest.raises(UnknownNameError, match=re.escape(message)):
        find_scheme("defualt")


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"weight_bits": 1}, ConfigurationError, "weight_bits is 1; expected 2 to 8"),
        ({"weight_bits": 9}, ConfigurationError, "weight_bits is 9; expected 2 to 8"),
        ({"activation_bits": 1}, ConfigurationError, "activation_bits is 1; expected 2 to 8"),
        ({"activation_bits": 9}, ConfigurationError, "activation_bits is 9; expected 2 to 8"),
        ({"edge_bits": 9}, ConfigurationError, "edge_bits is 9; expected 2 to 8"),
        ({"weight_range": "minmaxx"}, UnknownNameError, "unknown range method 'minmaxx': did you mean 'minmax'?"),
        ({"activation_range": "0-sigma"}, ConfigurationError, "needs a positive number of standard deviations"),
        ({"activation_range": "percentile-20"}, ConfigurationError, "needs a percentage above 50 and up to 100"),
    ],
)
def test_bad_options(options: dict[str, object], kind: type[TwoscaleError], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        Scheme(**options)  # type: ignore[arg-type]
    with pytest.raises(kind, match=re.escape(message)):
        dataclasses.replace(COURSE, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("bits", "limit"), [(2, 1), (3, 3), (4, 7), (5, 15), (6, 31), (7, 63), (8, 127)])
def test_weight_limits_are_symmetric(bits: int, limit: int) -> None:
    assert Scheme(weight_bits=bits).weight_limit == limit


@pytest.mark.parametrize(("bits", "unsigned", "signed"), [(4, (0, 15), (-8, 7)), (8, (0, 255), (-128, 127))])
def test_activation_limits(bits: int, unsigned: tuple[int, int], signed: tuple[int, int]) -> None:
    plain, symmetric = Scheme(activation_bits=bits), Scheme(activation_bits=bits, activations="symmetric")
    assert (plain.activation_limits, plain.activation_dtype) == (unsigned, "uint8")
    assert (symmetric.activation_limits, symmetric.activation_dtype) == (signed, "int8")


def test_schemes_are_values() -> None:
    assert Scheme(weight_bits=4) == Scheme(weight_bits=4)
    assert len({Scheme(weight_bits=4), Scheme(weight_bits=4), Scheme()}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        DEFAULT.weight_bits = 4  # type: ignore[misc]
