"""Text of nodes without control characters. Pure."""

from __future__ import annotations

import re

#: C0 except tab and line feed, DEL, C1, and the characters that change the direction of text.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_BREAKS = re.compile("[\t\n\x0b\x0c\r\x85\u2028\u2029]+")


def one_line(text: str) -> str:
    """Return the cleaned text with one space for each run of line breaks and tabs."""
    return clean(_BREAKS.sub(" ", text))


def clean(text: str) -> str:
    """Return the text with U+FFFD for each character that can control a terminal; keep tabs and line feeds."""
    return text if text.isprintable() else _CONTROL.sub("\ufffd", text.replace("\r\n", "\n"))


def shortened(text: str, most: int) -> str:
    """Return the text cut to `most` characters; `...` ends a text that was cut."""
    return text if len(text) <= most else text[: most - 3] + "..."


def is_text(text: str) -> bool:
    """Return whether a text from the system has no surrogates, which Python puts for undecodable bytes."""
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)
