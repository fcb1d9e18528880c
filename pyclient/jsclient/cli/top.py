"""The subcommand top, and the table of ps."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import sys
import time
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Set, Tuple

from ..client import Client
from ..errors import OK, ResultDecodeError
from ..keys import NodeId, is_id
from ..nodes import format_age
from ..result import Result
from .._follow import skip_unresponsive
from ..text import clean
from . import render, stdio
from .lookup import connect
from .stdio import message

HEADER = ("NODE", "JOB", "CMD", "DOMAIN", "NAME", "PID", "STATE", "CPU%", "RSS", "PROCS", "AGE", "RESTARTS")
#: Columns that a narrow terminal drops, the least important first, after JOB and CMD were shortened.
DROP_ORDER = ("RESTARTS", "PROCS", "DOMAIN", "STATE", "PID", "NAME", "AGE", "RSS", "CMD", "JOB", "NODE")
#: Most jobs whose commands are read from Redis.
MAX_JOB_LOOKUPS = 500
#: Interval at which the keyboard is read while nodes answer, in seconds.
KEY_POLL_INTERVAL_SECONDS = 0.2
#: The command expires after this time, in seconds; each refresh sends a new one.
REQUEST_EXPIRY_SECONDS = 30

Row = Tuple[object, ...]


class _QuitKeyPressed(Exception):
    """The user pressed `q`."""


def process_table(client: Client, results: Sequence[Result]) -> str:
    """Return the table of running jobs, sorted by cpu."""
    return render.table(HEADER, _rows(client, processes(results)))


def processes(results: Sequence[Result]) -> List[Tuple[NodeId, Dict[str, Any]]]:
    """Return each running job with its node, sorted by cpu."""
    found = [(r.node, e) for r in results if r.ok for e in entries(r)]
    return sorted(found, key=lambda pair: (-number(pair[1].get("cpu")), pair[0]))


def top(args: argparse.Namespace) -> int:
    """Run `jsctl top`."""
    with connect(args) as client:
        if args.json or args.ndjson:
            items = [{"node": str(n), **e} for n, e in processes(_sample(client, args)[0])]
            render.emit(items, args.ndjson)
            return OK
        if args.once or not sys.stdout.isatty():
            results, line = _sample(client, args)
            stdio.rows(render.table(HEADER, _rows(client, processes(results)[: args.lines])))
            message(line)
            return OK
        try:
            unresponsive: Set[NodeId] = set()
            with _key_wait() as wait:
                if os.environ.get("TERM", "").lower() in ("", "dumb", "unknown"):
                    _print_rounds(client, args, wait, unresponsive)
                _refresh_screen(client, args, wait, unresponsive)
        except (KeyboardInterrupt, _QuitKeyPressed):
            pass
        return OK


def _print_rounds(
    client: Client, args: argparse.Namespace, wait: Callable[[float], None], unresponsive: Set[NodeId]
) -> None:
    """Print one table below the other, for a terminal that cannot move its cursor."""
    while True:
        results, line = _sample(client, args, wait, unresponsive)
        rows = _rows(client, processes(results)[: args.lines])
        stdio.rows(f"{line}\n{fit(rows, os.get_terminal_size(sys.stdout.fileno()).columns)}\n")
        wait(args.interval)


def _refresh_screen(
    client: Client, args: argparse.Namespace, wait: Callable[[float], None], unresponsive: Set[NodeId]
) -> None:
    """Refresh the table in place, on the alternate screen."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    live = Live(console=Console(), screen=True, auto_refresh=False)
    try:
        with stdio.signals_blocked():
            live.start()
        while True:
            results, line = _sample(client, args, wait, unresponsive)
            size = live.console.size
            rows = _rows(client, processes(results)[: min(args.lines, max(size.height - 3, 1))])
            shown = clean(f"{line}\n\n{fit(rows, size.width)}")
            live.update(Text(shown, no_wrap=True, overflow="crop"), refresh=True)
            wait(args.interval)
    finally:
        with stdio.signals_blocked():
            live.stop()


@contextlib.contextmanager
def _key_wait() -> Iterator[Callable[[float], None]]:
    """Yield a function that waits some seconds and raises `_QuitKeyPressed` when `q` is typed."""
    import termios
    import tty

    if not sys.stdin.isatty():
        yield time.sleep
        return
    terminal = sys.stdin.fileno()
    try:
        before = termios.tcgetattr(terminal)
        tty.setcbreak(terminal)
    except (termios.error, OSError):  # another process group has the terminal
        yield time.sleep
        return

    def wait(seconds: float) -> None:
        end = time.monotonic() + seconds
        while True:
            left = max(end - time.monotonic(), 0)
            if not select.select([terminal], [], [], left)[0]:
                return
            typed = os.read(terminal, 64)
            if not typed or b"q" in typed or b"Q" in typed:
                raise _QuitKeyPressed

    try:
        yield wait
    finally:
        with contextlib.suppress(termios.error, OSError):
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _sample(
    client: Client, args: argparse.Namespace, wait: Optional[Callable[[float], None]] = None,
    unresponsive: Optional[Set[NodeId]] = None,
) -> Tuple[List[Result], str]:
    """Return the results of one round, without nodes that do not answer soon, and its summary."""
    target = client.target(args.target, exclude=args.exclude)
    fleet = target.processes(target_nodes=target.select().without_stopped, expires=REQUEST_EXPIRY_SECONDS, quiet=True)
    results, faults = [], []
    unresponsive = set() if unresponsive is None else unresponsive
    for result in skip_unresponsive(fleet, max(args.interval, 5.0), unresponsive, KEY_POLL_INTERVAL_SECONDS):
        if result is None:
            if wait:
                wait(0)
            continue
        try:
            entries(result)
            results.append(result)
        except ResultDecodeError:
            faults.append(result.node)
    more = f", no answer from {render.join_names(fleet.missing)}" if fleet.missing else ""
    more += f", unreadable answers from {render.join_names(sorted(faults))}" if faults else ""
    more += f", {len(fleet.offline)} offline" if fleet.offline else ""
    jobs = sum(len(entries(r)) for r in results)
    return results, f"{time.strftime('%H:%M:%S')}  {len(results)} nodes, {jobs} jobs{more}"


def entries(result: Result) -> List[Dict[str, Any]]:
    """Return the objects of the list that a node answered; none of a failed result."""
    value = result.value if result.ok else []
    return [e for e in value if isinstance(e, dict)] if isinstance(value, list) else []


def commands_by_id(client: Client, found: Sequence[Tuple[NodeId, Dict[str, Any]]]) -> Dict[str, str]:
    """Return by job id the command of the first `MAX_JOB_LOOKUPS` entries, while Redis has it."""
    # A node answers `execute`; the hash of the job has the program. An invalid id has no hash.
    ids = [e.get("id") for _, e in found[:MAX_JOB_LOOKUPS]]
    known = client.sent_commands(list(dict.fromkeys(i for i in ids if isinstance(i, str) and is_id(i))))
    return {job_id: render.describe_command(command, 30) for job_id, command in known.items()}


def _rows(client: Client, found: Sequence[Tuple[NodeId, Dict[str, Any]]]) -> List[Row]:
    sent = commands_by_id(client, found)
    return [_row(node, e, sent.get(str(e.get("id")))) for node, e in found]


def fit(rows: Sequence[Row], width: int) -> str:
    """Return the table in `width` columns: columns are dropped in `DROP_ORDER`, the sort column stays."""
    cut = [(node, str(job)[:12], render.cell(cmd, 20), *more) for node, job, cmd, *more in rows]
    kept = list(range(len(HEADER)))
    text = render.table(HEADER, rows)
    for drop in ("", *DROP_ORDER):
        if max(map(len, text.splitlines())) <= width:
            return text
        kept = [at for at in kept if HEADER[at] != drop]
        text = render.table([HEADER[at] for at in kept], [[row[at] for at in kept] for row in cut])
    return text


def _row(node: NodeId, e: Dict[str, Any], sent: Optional[str]) -> Row:
    started = number(e.get("starttime"))
    return (
        node, str(e.get("id", ""))[:32], sent or e.get("cmd"),
        e.get("domain"), e.get("name"), e.get("pid"), e.get("state"),
        f"{number(e.get('cpu')):.1f}", render.size(number(e.get("rss"))), e.get("processes"),
        format_age(time.time() - started / 1000) if started else "", e.get("restarts"),
    )


def number(value: object) -> float:
    """Return a number below 1e24; 0 for any other value."""
    return float(value) if isinstance(value, (int, float)) and abs(value) < 1e24 else 0.0
