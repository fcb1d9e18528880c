"""The standard streams: closed and full ones, encodings, signals, and cleaned text for terminals."""

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

#: The prefix of each line of nodes on a terminal, between headings of jsctl.
OUTPUT_PREFIX = "| "
#: A line like a heading; some readers take a CR for the end of a line.
_HEADING = re.compile(r"(^|\r)( *==)", re.MULTILINE)


class OutputError(Error):
    """Standard output cannot be written to."""

    def __init__(self, error: BaseException) -> None:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        super().__init__(f"cannot write to standard output: {reason.lower()}")
        #: Whether its reader has closed the pipe, as `head` does; this is not reported.
        self.is_expected = isinstance(error, BrokenPipeError)


class Terminated(BaseException):
    """The process received TERM, HUP or QUIT."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Closed:
    """Replaces a standard stream that was closed before the start: reads fail, and writes unless `silent`."""

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
    """Replace closed standard streams, and make every text encodable."""
    if None in (sys.stdin, sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            # No connection may get the descriptor of a standard stream.
            while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
                pass
            os.close(fd)
        closed: Any = _Closed
        sys.stdin = closed(False) if sys.stdin is None else sys.stdin
        sys.stdout = closed(False) if sys.stdout is None else sys.stdout
        sys.stderr = closed(True) if sys.stderr is None else sys.stderr
    for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if hasattr(stream, "reconfigure"):
            # PYTHONIOENCODING may name an encoding that cannot encode text, as idna.
            stream.reconfigure(encoding=None if _can_encode(stream.encoding) else "utf-8", errors=errors)


def _can_encode(encoding: str) -> bool:
    try:
        return bool("a b\n\u20ac".encode(encoding, "replace"))
    except (ValueError, LookupError):
        return False


def rows(text: str, more: str = "    ", flush: bool = True) -> None:
    """Write lines of jsctl with text of nodes in them; on a terminal fold long ones, further lines indented by `more`.

    A terminal would continue a long line in its first column, where text of a node could look like a line of jsctl.
    """
    out(_folded(clean(text), "", more, sys.stdout) if sys.stdout.isatty() else text, flush=flush)


def prefix_lines(text: str) -> str:
    """Return the output of nodes so that no line can be taken for a heading.

    On a terminal each line begins with `OUTPUT_PREFIX`. Elsewhere a line that begins with spaces and `==` gets one more
    space, and all other lines stay unchanged.
    """
    if sys.stdout.isatty():
        return _folded(clean(text), OUTPUT_PREFIX, OUTPUT_PREFIX, sys.stdout)
    return _HEADING.sub(r"\1 \2", text)


def _folded(text: str, first: str, more: str, stream: Any) -> str:
    """Return the text with `first` before each line, and lines split so that the terminal wraps none of them."""
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
                # At least as wide as any terminal draws it.
                cells = 8 if char == "\t" else 1 if char < "\u1100" else 2
                if used + cells > width and at > begin:
                    lines.append(start + line[begin:at])
                    start, begin, used = more, at, len(more)
                used += cells
        lines.append(start + line[begin:])
    return "\n".join(lines)


def out(text: str, end: str = "\n", flush: bool = True) -> None:
    """Write to stdout, cleaned on a terminal; raise `OutputError`."""
    try:
        sys.stdout.write((clean(text) if sys.stdout.isatty() else text) + end)
        if flush:
            sys.stdout.flush()
    except (OSError, ValueError) as e:
        raise _output_error(e) from None


def out_bytes(data: bytes, stderr: bool = False) -> None:
    """Write bytes to stdout or stderr as they are; raise `OutputError` for stdout, and ignore errors of stderr."""
    stream: Any = sys.stderr if stderr else sys.stdout
    try:
        stream.flush()
        stream.buffer.write(data)
        stream.buffer.flush()
    except (OSError, ValueError) as e:
        if not stderr:
            raise _output_error(e) from None
        _discard(stream)


def out_partial(text: str, stderr: bool = False) -> None:
    """Write text that may be a part of a line, cleaned; errors as for `out_bytes`."""
    if stderr:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(clean(text))
            sys.stderr.flush()
    else:
        out(clean(text), end="")


def progress(text: str) -> None:
    """Write a line over the last one of this function on the terminal of stderr; an empty text removes it."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"\r\x1b[K{clean(text)}")
        sys.stderr.flush()


def node_line(node: str, text: str, color: int, stderr: bool = False) -> None:
    """Write a line of a node with the node before it, in color and folded on a terminal."""
    stream: Any = sys.stderr if stderr else sys.stdout
    if not stream.isatty():
        line = f"{node} {OUTPUT_PREFIX}{text}"
    else:
        start = f"{node} {OUTPUT_PREFIX}"
        line = _folded(clean(text), start, " " * len(node) + f" {OUTPUT_PREFIX}", stream)
        if "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb":
            line = f"\x1b[{color}m{node}\x1b[0m{line[len(node):]}"
    try:
        stream.write(line + "\n")
        stream.flush()
    except (OSError, ValueError) as e:
        if not stderr:
            raise _output_error(e) from None
        _discard(stream)


def out_json(value: object, indent: Optional[int] = None, start: str = "", end: str = "\n") -> None:
    """Write a value as JSON to stdout; raise `OutputError`."""
    out(start + json_text(value, indent), end)


def json_text(value: object, indent: Optional[int] = None) -> str:
    """Return a value as JSON in the encoding of stdout."""
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("-", "").replace("_", "")
    return dump_json(value, indent, ascii=encoding not in ("utf8", "utf8sig"))


def message(text: str) -> None:
    """Write a sentence to stderr, cleaned also in a pipe; further lines are indented."""
    text = clean(text).replace("\n", "\n  ")
    err(_folded(text, "", "  ", sys.stderr) if sys.stderr.isatty() else text)


def err(text: str) -> None:
    """Write to stderr, cleaned on a terminal; ignore errors."""
    try:
        sys.stderr.write((clean(text) if sys.stderr.isatty() else text) + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        _discard(sys.stderr)


def finish(code: int) -> int:
    """Flush stdout; return the exit code, which is not 0 when the flush fails."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as e:
        fault = _output_error(e)
        if not fault.is_expected:
            message(f"jsctl: {fault}")
        return code or FAILED
    return code


def _output_error(error: BaseException) -> OutputError:
    _discard(sys.stdout)
    return OutputError(error)


def _discard(stream: Any) -> None:
    # Buffered text would raise again at the exit of Python.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Block signals that raise: an exception while rich starts or stops leaves the terminal in a wrong mode."""
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
    """Raise `Terminated` for TERM, HUP and QUIT within the block, so that the terminal is restored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    taken = []

    def raise_it(number: int, _: object) -> None:
        # A second TERM or QUIT ends the process; HUP may come twice, from the shell and from the kernel.
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
