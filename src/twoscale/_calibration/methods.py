"""The range methods by name."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

from twoscale.errors import ConfigurationError, UnknownNameError

__all__ = ["RangeMethod"]

_Kind = Literal["minmax", "sigma", "percentile", "mse", "entropy"]
_FORMS = ("minmax", "mse", "entropy", "3-sigma", "percentile-99.99")


@dataclass(frozen=True)
class RangeMethod:
    """How the range of real values that the integers represent is chosen.

    ======================  ===================================================================================
    ``minmax``              everything that was seen
    ``3-sigma``             mean - 3 std to mean + 3 std, within what was seen; any number for the 3
    ``percentile-99.99``    the 99.99th percentile of magnitudes; for an affine quantizer, from the 0.01th to
                            the 99.99th percentile of the values
    ``mse``                 the range with the least expected squared error, rounding and clipping together
    ``entropy``             the range that loses the least information (Kullback-Leibler divergence), after
                            Migacz, "8-bit inference with TensorRT" (GTC 2017)
    ======================  ===================================================================================

    Raises:
        UnknownNameError: no such kind.
        ConfigurationError: the value is out of range, missing, or given for a method that takes none.
    """

    kind: _Kind
    value: float | None = None
    """k > 0 for sigma, percent in (50, 100] for percentile, None for the others."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(_Kind):
            raise UnknownNameError("range method", self.kind, get_args(_Kind))
        if self.kind == "sigma":
            if self.value is None or not 0 < self.value < math.inf:
                raise ConfigurationError(
                    f"range method sigma needs a positive number of standard deviations, such as '3-sigma', "
                    f"not {self.value}"
                )
        elif self.kind == "percentile":
            if self.value is None or not 50 < self.value <= 100:
                raise ConfigurationError(
                    f"range method percentile needs a percentage above 50 and up to 100, such as "
                    f"'percentile-99.99', not {self.value}"
                )
        elif self.value is not None:
            raise ConfigurationError(f"range method {self.kind} takes no number, but was given {self.value}")

    @staticmethod
    def parse(text: str) -> RangeMethod:
        """Return the method named ``text``. k-sigma may also be written sigma-k.

        Raises:
            UnknownNameError: there is no such method.
            ConfigurationError: its number is outside its range.
        """
        word = text.strip().lower()
        for kind in ("minmax", "mse", "entropy"):
            if word == kind:
                return RangeMethod(kind)
        number = r"((?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)"
        if match := re.fullmatch(rf"{number}-sigma|sigma-{number}", word):
            return RangeMethod("sigma", float(match[1] or match[2]))
        if match := re.fullmatch(rf"percentile-{number}", word):
            return RangeMethod("percentile", float(match[1]))
        raise UnknownNameError("range method", text, _FORMS)

    def __str__(self) -> str:
        """The name that ``parse`` reads back."""
        if self.value is None:
            return self.kind
        number = repr(self.value).removesuffix(".0")
        return f"{number}-sigma" if self.kind == "sigma" else f"{self.kind}-{number}"
