"""Types of command line arguments: durations, numbers, times."""

from __future__ import annotations

import argparse
import re

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MAX_NUMBER = 10**15


def seconds(text: str) -> float:
    """Parse a duration (`90`, `1.5`, `5m`, `2h` or `1d`) to seconds, below 1e9."""
    unit = _UNITS.get(text[-1:], 0)
    try:
        value = float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds; write 90, 90s, 5m, 2h or 1d")
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
    if not re.match(r"[0-9]{1,15}\Z", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def count(text: str) -> int:
    """Parse a whole number of 1 or more."""
    if not re.match(r"[0-9]{1,15}\Z", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


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
