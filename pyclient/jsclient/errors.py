"""The errors of this package. Each has one sentence: what is wrong, and what to do.

`jsctl` prints the sentence and exits with the error's `exit_code`. `JobFailedError` and `FleetFailedError`, which
carry results, are in `result`.
"""

from __future__ import annotations

import sys

from .text import clean

#: Exit codes of `jsctl`.
OK, FAILED, USAGE, NO_MATCH, TIMED_OUT = 0, 1, 2, 3, 4

#: The forms of a target, for messages.
TARGETS = "1.10  1.10,1.11  1.*  @web  @web,db (nodes that have all of these roles)  all, or '*'"


class Error(Exception):
    """The base class of all errors of this package."""

    exit_code = FAILED
    #: Whether `jsctl --json` has written a part of its document.
    json_started = False

    def __str__(self) -> str:
        # A sentence may quote a node, and a traceback shows it on a terminal.
        return clean(super().__str__())


class UsageError(Error, ValueError):
    """An argument is invalid: a malformed target, a script with a syntax error, an unknown option."""

    exit_code = USAGE


def not_text_error(name: str) -> UsageError:
    """Return the error for bytes that are not text in the encoding of the locale; `name` names the argument."""
    encoding = sys.getfilesystemencoding().lower()
    advice = "write it in UTF-8" if encoding.startswith("utf") else "set a UTF-8 locale, LC_ALL=C.UTF-8 say"
    return UsageError(f"{name} is not text in this locale's encoding, {encoding}: {advice}")


class RedisUnavailableError(Error, ConnectionError):
    """Redis cannot be reached, refuses the credentials, or does not answer in time."""

    def __init__(self, message: str, transient: bool = False) -> None:
        super().__init__(message)
        #: Whether a retry may succeed: after a restart, or a broken connection.
        self.transient = transient


class NoControllerError(Error):
    """No controller serves this Redis: none has sent a heartbeat within 15 seconds."""


class NoMatchingNodesError(Error, LookupError):
    """The target matches no known node, or none that is online."""

    exit_code = NO_MATCH


class StreamBrokenError(Error):
    """Live output is not whole: bytes are missing or changed, or its end never came."""


class JobNotFoundError(Error, LookupError):
    """Redis does not know the job id: it was never sent, or is older than a day."""

    exit_code = NO_MATCH


def job_not_found_error(job_id: str) -> JobNotFoundError:
    """Return the error for a job id that Redis does not know."""
    return JobNotFoundError(f"no job {job_id}: it was never sent, or is older than a day")


class WaitTimeoutError(Error, TimeoutError):
    """The timeout is over; the job may continue."""

    exit_code = TIMED_OUT


class ResultDecodeError(Error, ValueError):
    """The data of a result is malformed for its level, or the decoder for the level is not installed."""
