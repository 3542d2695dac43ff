"""Text from outside, such as names from files, made safe for terminals, logs, pages and SVG."""

from __future__ import annotations

import unicodedata

__all__ = ["json_ascii", "printable"]

_ELLIPSIS = "…"


def printable(text: str, longest: int | None = None) -> str:
    r"""Return ``text`` with every character that is not visible written as an escape, such as ``\x1b`` or ``\u202e``.

    Escaped are control characters, line breaks and tabs among them; format characters, which can reverse the direction
    of the text after them; lone surrogates; and code points without a character. Everything else, spaces included, is
    returned unchanged, so that the text stays readable in every script.

    Args:
        text: any text.
        longest: number of characters to keep. Longer text loses its middle.
    """
    if longest is not None:
        text = _shortened(text, longest)
    if text.isprintable():
        return text
    return "".join(char if _visible(char) else char.encode("unicode_escape").decode("ascii") for char in text)


def _shortened(text: str, longest: int) -> str:
    """Return ``text``, with an ellipsis for its middle if it has more than ``longest`` characters (at least 3)."""
    if len(text) <= longest:
        return text
    end = (longest - 1) // 2
    return text[: longest - 1 - end] + _ELLIPSIS + text[len(text) - end :]


def json_ascii(json: str) -> str:
    """Return an equivalent JSON document in which every invisible character is escaped.

    Line breaks between tokens are kept. Inside strings JSON has none.
    """
    if json.replace("\n", "").isprintable():
        return json
    return "".join(char if char == "\n" or _visible(char) else _json_escape(char) for char in json)


def _visible(char: str) -> bool:
    return char.isprintable() or unicodedata.category(char) == "Zs"  # spaces other than U+0020 are "not printable"


def _json_escape(char: str) -> str:
    code = ord(char)
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
