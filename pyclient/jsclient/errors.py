"""Every error that this package raises: one sentence that says what is wrong and what to do.

`jsctl` prints the sentence and leaves with the error's `exit_code`.
"""

from __future__ import annotations

import sys
import typing

from .text import clean

if typing.TYPE_CHECKING:
    from .wire import Result

#: `jsctl`'s exit codes.
OK, FAILED, USAGE, NOBODY, TIMED_OUT = 0, 1, 2, 3, 4

#: How a target is written, for messages.
TARGETS = "1.10  1.10,1.11  1.*  @web  @web,db (nodes that have all of these roles)  all, or '*'"


class Error(Exception):
    """The root of them all."""

    exit_code = FAILED
    #: Whether `jsctl` has begun a JSON document before it came.
    told = False

    def __str__(self) -> str:
        # A sentence may quote a node, and a traceback shows it on a terminal.
        return clean(super().__str__())


class UsageError(Error, ValueError):
    """An argument is not what it must be: a target that cannot be read, a script with a syntax error…"""

    exit_code = USAGE


def not_text(what: str) -> UsageError:
    """The error for what is not `is_text`."""
    encoding = sys.getfilesystemencoding().lower()
    advice = "write it in UTF-8" if encoding.startswith("utf") else "set a UTF-8 locale, LC_ALL=C.UTF-8 say"
    return UsageError(f"{what} is no text in this locale's encoding, {encoding}: {advice}")


class Unavailable(Error, ConnectionError):
    """Redis cannot be reached, refuses the password, or does not answer in time."""

    def __init__(self, message: str, passing: bool = False) -> None:
        super().__init__(message)
        #: Whether it may be well again in a moment: a restart, a cut connection.
        self.passing = passing


class NoController(Error):
    """No controller serves this Redis: none has beaten lately."""


class NobodyMatched(Error, LookupError):
    """The target names no node that is known, or none that is there now."""

    exit_code = NOBODY


class Gone(Error, LookupError):
    """An id that Redis does not know: never sent, or older than a day."""

    exit_code = NOBODY


class WaitTimeout(Error, TimeoutError):
    """The time to wait is up; the job itself may go on."""

    exit_code = TIMED_OUT


class Undecodable(Error, ValueError):
    """The result is not what its level says (no JSON, say), or the decoder for it is not installed."""


class JobFailed(Error):
    """A job did not end with `OK`; `result` is what came back."""

    def __init__(self, result: Result) -> None:
        super().__init__(result.sentence())
        self.result = result


class FleetFailed(Error):
    """Some nodes of a fleet failed, or did not answer."""

    def __init__(self, message: str, failed: typing.Sequence[Result], missing: typing.Sequence[str]) -> None:
        super().__init__(message)
        #: The results that are not `OK`.
        self.failed = list(failed)
        #: The nodes (`"1.10"`) that did not answer.
        self.missing = list(missing)
