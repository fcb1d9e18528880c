"""Text for people: what nodes wrote, without what can control a terminal. Pure."""

from __future__ import annotations

import re

#: C0 except tab and line feed, DEL, C1, and the characters that change the direction of text.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_BREAKS = re.compile("[\t\n\x0b\x0c\r\x85\u2028\u2029]+")


def one_line(text: str) -> str:
    """The text cleaned, with a blank for each line break and tab."""
    return clean(_BREAKS.sub(" ", text))


def clean(text: str) -> str:
    """The text without what can control a terminal; tabs and line feeds stay."""
    return text if text.isprintable() else _CONTROL.sub("\ufffd", text.replace("\r\n", "\n"))


def is_text(text: str) -> bool:
    """Whether the system gave text: where bytes fit no character, Python has put surrogates."""
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)
