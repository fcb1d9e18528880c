"""The standard streams: closed or full ones, encodings, signals, and text that is cleaned for terminals."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import sys
import threading
from typing import Any, Iterator, List, NoReturn, Optional

from ..errors import FAILED, Error
from ..text import clean
from ..values import dump_json

#: Stands on a terminal before each line that nodes wrote, where headings stand between them.
MARK = "| "
#: A line that looks like a heading; some readers take a CR for the end of a line.
_HEADING = re.compile(r"(^|\r)( *==)", re.MULTILINE)


class WriteFault(Error):
    """Standard output cannot be written."""

    def __init__(self, error: BaseException) -> None:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        super().__init__(f"cannot write to standard output: {reason.lower()}")
        #: Whether its reader went away, as `head` does; that is no news.
        self.expected = isinstance(error, BrokenPipeError)


class Terminated(BaseException):
    """TERM, HUP or QUIT came."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Closed:
    """Stands for a standard stream that was closed before the start: nothing can be read or written."""

    encoding = "utf-8"

    def __init__(self, silent: bool) -> None:
        self._silent = silent
        self.buffer = self

    def write(self, text: str) -> int:
        if not self._silent:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return len(text)

    def read(self, *_: int) -> NoReturn:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return False

    def fileno(self) -> NoReturn:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def prepare() -> None:
    """Makes the streams safe to use: closed ones raise `OSError` or are silent, and every text can be encoded."""
    if None in (sys.stdin, sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            # No connection may be given the number of a standard stream.
            while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
                pass
            os.close(fd)
        closed: Any = _Closed
        sys.stdin = closed(False) if sys.stdin is None else sys.stdin
        sys.stdout = closed(False) if sys.stdout is None else sys.stdout
        sys.stderr = closed(True) if sys.stderr is None else sys.stderr
    for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if hasattr(stream, "reconfigure"):
            # An encoding that PYTHONIOENCODING names may encode nothing, as idna does.
            stream.reconfigure(encoding=None if _can_encode(stream.encoding) else "utf-8", errors=errors)


def _can_encode(encoding: str) -> bool:
    try:
        return bool("a b\n\u20ac".encode(encoding, "replace"))
    except (ValueError, LookupError):
        return False


def rows(text: str, more: str = "    ", flush: bool = True) -> None:
    """Writes lines of jsctl's own with text of nodes in them: on a terminal a long one goes on indented by `more`.

    The terminal itself would go on at its first column, where a node could make it look like a line of jsctl.
    """
    out(_folded(clean(text), "", more, sys.stdout) if sys.stdout.isatty() else text, flush=flush)


def marked(text: str) -> str:
    """Returns the output of nodes for the place below a heading: no line of it can be taken for a heading.

    On a terminal each line begins with `MARK`. Elsewhere a line that begins with `==`, or with blanks and `==`,
    gets one more blank in front, and all others stay as they are.
    """
    if sys.stdout.isatty():
        return _folded(clean(text), MARK, MARK, sys.stdout)
    return _HEADING.sub(r"\1 \2", text)


def _folded(text: str, first: str, more: str, stream: Any) -> str:
    """The text with `first` before each line, and lines split so that the terminal wraps none of them."""
    try:
        width = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        width = 0
    width = width or 80
    more = more[: width // 2]
    lines: List[str] = []
    for line in text.split("\n"):
        start, begin, used = first, 0, len(first)
        if used + len(line) > width or not line.isascii() or "\t" in line:
            for at, char in enumerate(line):
                # As wide as any terminal may draw it, or wider.
                cells = 8 if char == "\t" else 1 if char < "\u1100" else 2
                if used + cells > width and at > begin:
                    lines.append(start + line[begin:at])
                    start, begin, used = more, at, len(more)
                used += cells
        lines.append(start + line[begin:])
    return "\n".join(lines)


def out(text: str, end: str = "\n", flush: bool = True) -> None:
    """Writes to standard output: as it is into a file or a pipe, cleaned on a terminal."""
    try:
        sys.stdout.write((clean(text) if sys.stdout.isatty() else text) + end)
        if flush:
            sys.stdout.flush()
    except (OSError, ValueError) as e:
        raise _lost(e) from None


def out_json(value: object, indent: Optional[int] = None, start: str = "", end: str = "\n") -> None:
    """Writes a value as JSON to standard output."""
    out(start + json_text(value, indent), end)


def json_text(value: object, indent: Optional[int] = None) -> str:
    """A value as JSON that standard output can hold."""
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("-", "").replace("_", "")
    return dump_json(value, indent, ascii=encoding not in ("utf8", "utf8sig"))


def say(text: str) -> None:
    """Writes a sentence for people to standard error, always cleaned; further lines of it are indented."""
    text = clean(text).replace("\n", "\n  ")
    err(_folded(text, "", "  ", sys.stderr) if sys.stderr.isatty() else text)


def err(text: str) -> None:
    """Writes to standard error: as it is into a file or a pipe, cleaned on a terminal."""
    try:
        sys.stderr.write((clean(text) if sys.stderr.isatty() else text) + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        _discard(sys.stderr)


def finish(code: int) -> int:
    """Writes what is still buffered; the exit code, which is not 0 when that fails."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as e:
        fault = _lost(e)
        if not fault.expected:
            say(f"jsctl: {fault}")
        return code or FAILED
    return code


def _lost(error: BaseException) -> WriteFault:
    _discard(sys.stdout)
    return WriteFault(error)


def _discard(stream: Any) -> None:
    # What is still in the buffer would raise once more when Python ends.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Holds back signals that raise: rich, interrupted while it starts or stops, leaves the terminal half set."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(
        signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
    )
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def signals() -> Iterator[None]:
    """Within it TERM, HUP and QUIT raise `Terminated`, so that a terminal is left as it was found."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    taken = []

    def raise_it(number: int, _: object) -> None:
        # A second TERM or QUIT ends it at once; HUP comes from the shell and from the kernel.
        signal.signal(number, signal.SIG_IGN if number == getattr(signal, "SIGHUP", None) else signal.SIG_DFL)
        raise Terminated(number)

    for name in ("SIGTERM", "SIGHUP", "SIGQUIT"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, raise_it)
            taken.append(number)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
