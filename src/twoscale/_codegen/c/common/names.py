"""User-supplied names as C identifiers, as file names, and inside comments and strings."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["Identifiers", "identifier", "member_names", "network_identifier", "printable"]

_KEYWORDS = """
    auto break case char const continue default do double else enum extern float for goto if inline int long
    register restrict return short signed sizeof static struct switch typedef union unsigned void volatile while
    alignas alignof and asm bool catch class constexpr delete explicit export false friend mutable namespace new
    not nullptr operator or private protected public template this throw true try typename using virtual xor
"""
_HEADERS = """
    assert complex ctype errno fenv float inttypes iso646 limits locale math setjmp signal stdarg stdbool stddef
    stdint stdio stdlib string tgmath time wchar wctype
"""
_LONGEST_SHOWN = 200
_LONGEST = 40  # C99 promises 63 significant characters; endings are added


def identifier(name: str) -> str:
    """Return ``name`` as a C identifier: other characters become underscores; empty if none is left."""
    plain = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[:_LONGEST].rstrip("_")
    return f"n{plain}" if plain[:1].isdigit() else plain


def network_identifier(name: str) -> str:
    """Return the prefix of a network's public names, which is also the name of its files.

    It is not a keyword of C or C++, and a file of that name does not hide a standard header.
    """
    plain = identifier(name) or "network"
    return f"net_{plain}" if plain.lower() in (_KEYWORDS + _HEADERS).split() else plain


def member_names(names: Iterable[str]) -> list[str]:
    """Return names of members of a struct, one per name, each different from the others and from keywords."""
    identifiers = Identifiers(_KEYWORDS.split())
    return [identifiers.of(name) for name in names]


def printable(text: str) -> str:
    """Return ``text`` as it can stand in any comment or string of C: plain ASCII, no quotes, no comment marks.

    Names come from files, and may be long or full of control characters.
    """
    plain = re.sub(r"[^A-Za-z0-9 _.,:;()\[\]<>+=@#-]", "_", text)
    return plain if len(plain) <= _LONGEST_SHOWN else f"{plain[: _LONGEST_SHOWN - 3]}..."


class Identifiers:
    """Gives each name its own identifier, even if shortened names collide.

    Args:
        taken: identifiers that must not be used.
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)

    def of(self, name: str) -> str:
        """Return an identifier for ``name`` that was not given before."""
        return self._free(identifier(name) or "layer")

    def ending(self, base: str, end: str) -> str:
        """Return an identifier that was not given before: an identifier, an underscore and ``end``."""
        return self._free(f"{base}_{end}")

    def _free(self, base: str) -> str:
        found, number = base, 1
        while found in self._taken:
            number += 1
            found = f"{base}_{number}"
        self._taken.add(found)
        return found
