"""Types of command line arguments: durations, numbers, times."""

from __future__ import annotations

import argparse
import re

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MAX_NUMBER = 10**15
_MAX_SECONDS = 10**9


def seconds(text: str) -> float:
    """Parse a duration (`90`, `1.5`, `5m`, `2h` or `1d`) to seconds, below 1e9."""
    unit = _UNITS.get(text[-1:], 0)
    try:
        value = float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds; write 90, 90s, 5m, 2h or 1d")
    if value >= _MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is too long; the most is {_MAX_SECONDS - 1} seconds")
    return value


def duration(text: str) -> int:
    """Parse a duration to whole seconds."""
    value = seconds(text)
    if value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of seconds; write 90, 90s, 5m, 2h or 1d")
    return int(value)


def max_time(text: str) -> int:
    """Parse a duration to whole seconds, or `-1` for no end."""
    return -1 if text == "-1" else duration(text)


def number(text: str) -> int:
    """Parse a whole number of 0 or more."""
    return _whole(text, 0)


def count(text: str) -> int:
    """Parse a whole number of 1 or more."""
    return _whole(text, 1)


def _whole(text: str, least: int) -> int:
    value = int(text) if re.match(r"[0-9]{1,4000}\Z", text) else -1
    if value < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {least} or more")
    if value >= _MAX_NUMBER:
        raise argparse.ArgumentTypeError(f"{text!r} is too large; the most is {_MAX_NUMBER - 1}")
    return value


def signed(text: str) -> int:
    """Parse a whole number, also below 0."""
    try:
        if abs(int(text)) > _MAX_NUMBER:
            raise ValueError
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def moment(text: str) -> int:
    """Parse `10m` (ago) or a local date to milliseconds since 1970."""
    import time

    if re.match(r"[0-9]{1,9}[smhd]\Z", text):
        return int((time.time() - int(text[:-1]) * _UNITS[text[-1]]) * 1000)
    from datetime import datetime

    try:
        return int(datetime.fromisoformat(text).timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time: write 10m, 2h, 1d or 2026-01-31T12:00") from None
