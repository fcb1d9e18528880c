"""The standard input of a job, and a job on a terminal: a low-level pair of streams."""

from __future__ import annotations

import base64
import threading
import time
from typing import Any, Dict, Iterator, Optional

from . import commands
from ._session import Session
from ._timeouts import DEFAULT, Timeout
from .errors import Error, NoControllerError, UsageError, WaitTimeoutError
from .frames import Chunk
from .job import Job
from .result import JobFailedError
from .values import integer

#: Most bytes of one `input`.
MAX_INPUT_BYTES = 256 * 1024
#: An `input` that is not answered within this time, in seconds, is sent again: a node takes each byte once.
_ANSWER_TIMEOUT_SECONDS = 5.0
#: A job begins within this time, in seconds, after it was sent.
_START_SECONDS = 30.0
#: Pauses before bytes that the job had no room for are sent again, in seconds.
_FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.02, 0.5
#: Runs the login shell of the agent's user, or of `--user`.
_LOGIN_SHELL = (
    'u=$(id -u); s=$( (getent passwd "$u" || grep "^[^:]*:[^:]*:$u:" /etc/passwd) 2>/dev/null | head -n 1 | cut -d: -f7); '
    '[ -x "$s" ] || s=/bin/sh; cd "${HOME:-/}" 2>/dev/null || cd /; exec "$s" -l'
)


class JobInput:
    """The stdin of a job that was sent with `stdin="open"`. One thread at a time may write."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._session: Session = job.client
        self._offset = 0
        self._began = time.monotonic()
        self._closed = threading.Event()

    def write(self, data: bytes, timeout: Optional[float] = None) -> None:
        """Write bytes; return when the node has taken all of them, so a job that reads slowly is waited for.

        Raise `JobFailedError` when the job has ended or closed its stdin, and `WaitTimeoutError` when it took nothing
        for `timeout` seconds.
        """
        for at in range(0, len(data), MAX_INPUT_BYTES):
            self._send(data[at : at + MAX_INPUT_BYTES], False, timeout)

    def close(self, timeout: Optional[float] = None) -> None:
        """End the stdin of the job: a pipe is closed, a terminal gets the character for the end of input."""
        self._send(b"", True, timeout)

    def abandon(self) -> None:
        """Make a `write` that waits in another thread end."""
        self._closed.set()

    def _send(self, data: bytes, eof: bool, timeout: Optional[float]) -> None:
        pause = _FIRST_PAUSE_SECONDS
        since = time.monotonic()
        while not self._closed.is_set():
            have = self._ask(data, eof)
            if have is not None and have >= self._offset + len(data):
                self._offset = have
                return
            if have is not None and have > self._offset:
                # A part of it had been taken before an answer was lost.
                data, self._offset = data[have - self._offset :], have
                since = time.monotonic()
            if timeout is not None and time.monotonic() - since > timeout:
                raise WaitTimeoutError(f"job {self._job.id} took no input for {timeout:g} s")
            self._closed.wait(pause)
            pause = min(2 * pause, _MAX_PAUSE_SECONDS)

    def _ask(self, data: bytes, eof: bool) -> Optional[int]:
        spec = commands.input_(self._job.id, self._offset, base64.b64encode(data).decode(), eof)
        try:
            answer = self._session._ask(self._job.node, spec, _ANSWER_TIMEOUT_SECONDS, quiet=True).value
        except (WaitTimeoutError, NoControllerError):
            return None
        except JobFailedError as e:
            # It may overtake the command that starts the job.
            if "no job" in str(e) and self._offset == 0 and time.monotonic() - self._began < _START_SECONDS:
                return None
            raise
        except Error as e:
            if not getattr(e, "transient", False):
                raise
            return None
        return integer(answer.get("have")) if isinstance(answer, dict) else None


class Shell:
    """A job on a terminal: iterate over it for its output, and write to `stdin`."""

    def __init__(self, job: Job) -> None:
        #: The job; its result has the exit status.
        self.job = job
        #: The input: what is typed.
        self.stdin = JobInput(job)

    def __iter__(self) -> Iterator[Chunk]:
        return self.job.stream()

    def resize(self, rows: int, columns: int, timeout: Timeout = DEFAULT) -> None:
        """Tell the programs on the terminal its new size."""
        self.job.client._ask(self.job.node, commands.resize(self.job.id, rows, columns), timeout, quiet=True)

    def close(self) -> None:
        """End the job if it still runs: its terminal is hung up."""
        self.stdin.abandon()
        try:
            self.job.signal("HUP", _ANSWER_TIMEOUT_SECONDS)
        except Error:
            pass  # it has ended, or its watch lapses and the node hangs up


def login_shell(options: Dict[str, Any], rows: int, columns: int, term: str) -> commands.CommandSpec:
    """Return the command that runs the login shell of a user on a terminal of this size."""
    return commands.execute("/bin/sh", ["-c", _LOGIN_SHELL], **terminal(options, rows, columns, term))


def terminal(options: Dict[str, Any], rows: int, columns: int, term: str) -> Dict[str, Any]:
    """Return the options of a process with those of a terminal; raise `UsageError` for a size that is none."""
    if not (0 < rows <= 1000 and 0 < columns <= 1000):
        raise UsageError(f"a terminal has 1 to 1000 rows and columns, not {rows} and {columns}")
    # Interactive shells ignore TERM.
    return {"stop_signal": "HUP", **options, "stream": True, "tty": {"rows": rows, "cols": columns, "term": term}}
