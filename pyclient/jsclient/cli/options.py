"""The options of a process, its environment and its input, from the flags of a command line."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, Dict, Mapping, Optional, Sequence

from .. import commands, scripts
from ..errors import UsageError, not_text_error
from ..text import is_text

_PLAIN = (
    "workingdir secret max_time max_restart recurring_period domain name queue user nice umask stop_signal"
    " oom_score_adj stop_timeout loglevels loglevels_db loglevels_ac stats_interval"
).split()


def process_options(args: argparse.Namespace) -> Dict[str, Any]:
    """Return the arguments of a process for the flags that were given; raise `UsageError`."""
    out: Dict[str, Any] = {}
    for name in _PLAIN:
        value = getattr(args, name, None)
        if value is not None:
            out[name] = value
    for name in ("loglevels", "loglevels_db", "loglevels_ac"):
        if name in out:
            commands.check_levels(out[name])
    if args.env:
        out["env"] = _environment(args.env)
    if args.rlimit:
        limits: Mapping[str, str] = _pairs(args.rlimit, "--rlimit")
        try:
            out["rlimits"] = {k: int(v) for k, v in limits.items()}
        except ValueError:
            raise UsageError("--rlimit takes NAME=NUMBER") from None
    return out


def _environment(words: Sequence[str]) -> Dict[str, str]:
    """Return the variables for `NAME=VALUE`, or `NAME` for the value in the environment of jsctl."""
    out = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            if key not in os.environ:
                raise UsageError(f"--env takes NAME=VALUE, or the NAME of a variable that is set here, not {word!r}")
            value = os.environ[key]
            if not is_text(value):
                raise not_text_error(f"the variable {key}")
        if not key:
            raise UsageError(f"--env takes NAME=VALUE, not {word!r}")
        out[key] = value
    return out


def _pairs(words: Sequence[str], flag: str) -> Dict[str, str]:
    out = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise UsageError(f"{flag} takes NAME=VALUE, not {word!r}")
        out[key] = value
    return out


def read_data(data: Optional[str]) -> str:
    """Return the text for `--data`: the argument itself, the content of `@FILE`, or standard input for `-`."""
    if data is None:
        return ""
    try:
        if data == "-":
            return read_stdin().decode("utf-8")
        if data.startswith("@"):
            return scripts.read_file(data[1:]).decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError("--data must be UTF-8 text; send other bytes with jsctl put") from None
    return data


def read_stdin() -> bytes:
    """Return standard input to its end; raise `UsageError` when it has more than 16 MiB."""
    try:
        return scripts.read_all(sys.stdin.buffer, "standard input")
    except OSError as e:
        raise UsageError(f"cannot read standard input: {(e.strerror or str(e)).lower()}") from None
