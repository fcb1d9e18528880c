"""Programs that read what is typed or piped: exec -i, exec -t, shell."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from .. import commands, keys
from ..client import Client
from ..commands import CommandSpec
from ..errors import FAILED, OK, Error, NoMatchingNodesError, StreamBrokenError, UsageError
from ..job import Job
from ..keys import NodeId
from ..node_commands import QUIET_EXPIRY_SECONDS
from ..result import JobFailedError
from ..shell import MAX_INPUT_BYTES, Shell, login_shell, terminal
from . import stdio
from .live import BytesWriter, explain_gap
from .lookup import connect
from .send import report_id_on_error
from .stdio import Terminated, message

#: The result comes within this time, in seconds, after the end of the output.
_RESULT_TIMEOUT_SECONDS = 10.0
#: Interval at which a changed size of the terminal is looked for, in seconds.
_RESIZE_INTERVAL_SECONDS = 0.2
#: The end of a piped input is typed again after this time, in seconds.
_REPEAT_END_SECONDS = 1.0
#: The size of a terminal when there is none here.
_DEFAULT_SIZE = (24, 80)


class Escape:
    """Finds `~.` at the start of a typed line, which ends the connection, as in ssh; `~~` there is one `~`. Pure."""

    def __init__(self) -> None:
        self._is_start = True
        self._held = False

    def take(self, data: bytes) -> Tuple[bytes, bool]:
        """Return the bytes to send on, and whether the connection ends."""
        out = bytearray()
        for byte in data:
            if self._held:
                self._held = False
                if byte == 0x2E:
                    return bytes(out), True
                out += b"~" if byte == 0x7E else bytes((0x7E, byte))
                self._is_start = byte in b"\r\n"
            elif self._is_start and byte == 0x7E:
                self._held, self._is_start = True, False
            else:
                out.append(byte)
                self._is_start = byte in b"\r\n"
        return bytes(out), False


def shell(args: argparse.Namespace) -> int:
    """Run `jsctl shell NODE`."""
    if args.json or args.ndjson:
        raise UsageError("shell prints no JSON")
    options = {"user": args.user} if args.user else {}
    size, term = _size(), os.environ.get("TERM") or "xterm"
    words: List[str] = args.program
    if words:
        spec = commands.execute(words[0], words[1:], **terminal(options, *size, term))
    else:
        spec = login_shell(options, *size, term)
    return _run(args, spec, has_terminal=True)


def interactive(args: argparse.Namespace, make: Callable[[Dict[str, Any]], CommandSpec], options: Dict[str, Any]) -> int:
    """Run `jsctl exec -i` and `-t`; `make` returns the command for the options of the process."""
    for name in ("detach", "batch", "dry_run", "json", "ndjson", "data", "recurring_period", "fold", "no_stream", "wait"):
        if getattr(args, name, None):
            flag = "every" if name == "recurring_period" else name.replace("_", "-")
            raise UsageError(f"-i and -t do not go together with --{flag}")
    if args.tty:
        options = terminal(options, *_size(), os.environ.get("TERM") or "xterm")
    else:
        options = {**options, "stream": True, "stdin": "open"}
    return _run(args, make(options), args.tty)


def _run(args: argparse.Namespace, spec: CommandSpec, has_terminal: bool) -> int:
    if has_terminal and sys.platform == "win32":
        raise UsageError("a terminal needs jsctl on Linux or macOS; -i works here")
    job_id = keys.new_id()
    with connect(args) as client, report_id_on_error(client, job_id):
        node = _node(client, args)
        job = client._start(node.gid, node.nid, spec, getattr(args, "tags", ""), QUIET_EXPIRY_SECONDS, job_id)
        is_raw = has_terminal and sys.stdin.isatty()
        with _raw_mode() if is_raw else contextlib.nullcontext():
            reader = _InputReader(Shell(job), has_terminal, is_raw)
            try:
                fault = _show(job, reader, has_terminal)
            except (KeyboardInterrupt, Terminated):
                reader.stop()
                if has_terminal:
                    reader.shell.close()
                elif not reader.disconnected:
                    message(f"\njsctl: it goes on on {node} and its input ends within a minute; "
                            f"end it with jsctl kill {job.id}")
                if reader.disconnected:
                    fault = "disconnected"
                else:
                    raise
            finally:
                reader.stop()
        if fault:
            message(f"jsctl: {fault}")
        if reader.disconnected:
            return FAILED
        result = job.wait(_RESULT_TIMEOUT_SECONDS)
        if not reader.came and (result.stdout or result.stderr):
            # Its agent sends no live output.
            stdio.out_partial(result.stdout)
            stdio.out_partial(result.stderr, True)
        if not result.ok and not (has_terminal and result.state == "ERROR" and not result.data):
            message(f"jsctl: {result.sentence(with_stderr=not reader.came)}")
        code = OK if result.ok else result.code if 0 < result.code < 256 else FAILED
        return FAILED if fault and code == OK else code


def _node(client: Client, args: argparse.Namespace) -> NodeId:
    """Return the one node of the flags; raise `UsageError` for several, `NoMatchingNodesError` for none."""
    target = client.target(args.target, exclude=getattr(args, "exclude", None), any=getattr(args, "any", False))
    client.check()
    chosen = target.select().without_stopped
    if not chosen.live:
        raise NoMatchingNodesError(target.explain_no_nodes(chosen))
    if len(chosen.live) > 1:
        raise UsageError(f"this is for one node, and {len(chosen.live)} match {args.target}; --any takes one of them")
    return chosen.live[0]


def _show(job: Job, reader: _InputReader, has_terminal: bool) -> str:
    """Show the output to its end; return what is wrong with it, or empty text."""
    writer = BytesWriter()
    fault = ""
    reader.start()
    try:
        for chunk in job.stream():
            reader.came = True
            if chunk.kind == "gap":
                fault = explain_gap(chunk)
            elif has_terminal and chunk.kind == "stdout":
                stdio.out_bytes(chunk.data)
            else:
                writer.write(chunk)
        writer.finish()
    except StreamBrokenError as e:
        return str(e)
    return fault


class _InputReader:
    """A thread that sends what is typed or piped, and the size of the terminal when it changes."""

    def __init__(self, shell: Shell, has_terminal: bool, is_raw: bool) -> None:
        self.shell = shell
        #: Whether any output came.
        self.came = False
        # Why nothing more is sent; keys are read on for `~.`.
        self._fault = ""
        #: Whether `~.` was typed.
        self.disconnected = False
        self._escape = Escape() if is_raw else None
        self._has_terminal = has_terminal
        self._size = _size()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read, name="stdin", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """Send nothing more. A read that waits for typed bytes ends with the process."""
        self._stopped.set()
        self.shell.stdin.abandon()

    def _read(self) -> None:
        try:
            while not self._stopped.is_set():
                data = self._next()
                if data is None:
                    continue
                if not data:
                    self._send(None)
                    # A shell that has not set up its terminal yet loses the character for the end.
                    while self._has_terminal and not self._stopped.wait(_REPEAT_END_SECONDS):
                        self._send(b"\x04")
                    return
                ends = False
                if self._escape:
                    data, ends = self._escape.take(data)
                if data:
                    self._send(data)
                if ends:
                    self.disconnected = True
                    import _thread

                    _thread.interrupt_main()
                    return
        except Exception as e:
            if self._stopped.is_set():
                return  # the connections are closed under this thread
            if not isinstance(e, OSError):
                raise
            message(f"jsctl: cannot read standard input: {(e.strerror or str(e)).lower()}")
            self._send(None)

    def _send(self, data: Optional[bytes]) -> None:
        """Send bytes, or the end; the first fault ends it."""
        if self._fault:
            return
        try:
            if data is None:
                self.shell.stdin.close()
            else:
                self.shell.stdin.write(data)
        except JobFailedError as e:
            self._fault = str(e)  # the job has ended or closed its stdin; its result tells
        except Error as e:
            self._fault = str(e)
            message(f"jsctl: input is not sent any more: {e}")

    def _next(self) -> Optional[bytes]:
        """Return what was read, empty at the end of input; `None` after a while without any."""
        fd = sys.stdin.fileno()
        if not self._has_terminal:
            return os.read(fd, MAX_INPUT_BYTES)
        import select

        ready, _, _ = select.select([fd], [], [], _RESIZE_INTERVAL_SECONDS)
        size = _size()
        if size != self._size:
            self._size = size
            with contextlib.suppress(Error):
                self.shell.resize(*size)
        return os.read(fd, MAX_INPUT_BYTES) if ready else None


def _size() -> Tuple[int, int]:
    """Return rows and columns of the terminal of stdout or stdin."""
    for stream in (sys.stdout, sys.stdin):
        try:
            found = os.get_terminal_size(stream.fileno())
        except (OSError, ValueError):
            continue
        if found.lines > 0 and found.columns > 0:
            return min(found.lines, 1000), min(found.columns, 1000)
    return _DEFAULT_SIZE


@contextlib.contextmanager
def _raw_mode() -> Iterator[None]:
    """Pass on each key as it is typed; restore the terminal at the end."""
    import termios
    import tty

    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        # Keys that were typed before are kept.
        tty.setraw(fd, termios.TCSADRAIN)
        yield
    finally:
        with stdio.signals_blocked():
            # The window may be gone.
            with contextlib.suppress(termios.error):
                termios.tcsetattr(fd, termios.TCSANOW, before)
