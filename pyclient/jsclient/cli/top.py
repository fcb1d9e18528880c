"""`jsctl top`, and the table of `jsctl ps`."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import sys
import time
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Set, Tuple

from ..client import Client
from ..errors import OK, Undecodable
from ..nodes import ago
from ..targeted import without_the_silent
from ..text import clean
from ..wire import NodeId, Result, is_id
from . import render, stdio
from .order import connect
from .start import say

HEAD = ("NODE", "JOB", "CMD", "DOMAIN", "NAME", "PID", "STATE", "CPU%", "RSS", "PROCS", "AGE", "RESTARTS")
#: What a narrow terminal does without, the least important first; JOB and CMD are shortened before.
DROPPED = ("RESTARTS", "PROCS", "DOMAIN", "STATE", "PID", "NAME", "AGE", "RSS", "CMD", "JOB", "NODE")
#: Of so many jobs Redis is asked what they were sent as.
MOST_ASKED = 500
#: A key is looked for so often while nodes are asked (seconds).
KEY_SECONDS = 0.2
#: Nodes are asked anew each round, so a question that was not answered soon is given up (seconds).
EXPIRES = 30

Row = Tuple[object, ...]


class _Quit(Exception):
    """`q` was typed."""


def process_table(client: Client, results: Sequence[Result]) -> str:
    """The jobs of all nodes that answered, by cpu."""
    return render.table(HEAD, _rows(client, processes(results)))


def processes(results: Sequence[Result]) -> List[Tuple[NodeId, Dict[str, Any]]]:
    """Each job with its node, the busiest first."""
    found = [(r.node, e) for r in results if r.ok for e in entries(r)]
    return sorted(found, key=lambda pair: (-number(pair[1].get("cpu")), pair[0]))


def top(args: argparse.Namespace) -> int:
    """`jsctl top`."""
    with connect(args) as client:
        if args.json or args.ndjson:
            items = [{"node": str(n), **e} for n, e in processes(_sample(client, args)[0])]
            render.emit(items, args.ndjson)
            return OK
        if args.once or not sys.stdout.isatty():
            results, line = _sample(client, args)
            stdio.rows(render.table(HEAD, _rows(client, processes(results)[: args.lines])))
            say(line)
            return OK
        try:
            silent: Set[NodeId] = set()
            with _keys() as key:
                if os.environ.get("TERM", "").lower() in ("", "dumb", "unknown"):
                    _rounds(client, args, key, silent)
                _screen(client, args, key, silent)
        except (KeyboardInterrupt, _Quit):
            pass
        return OK


def _rounds(client: Client, args: argparse.Namespace, key: Callable[[float], None], silent: Set[NodeId]) -> None:
    """One table below the other, for a terminal that cannot move its cursor."""
    while True:
        results, line = _sample(client, args, key, silent)
        rows = _rows(client, processes(results)[: args.lines])
        stdio.rows(f"{line}\n{fit(rows, os.get_terminal_size(sys.stdout.fileno()).columns)}\n")
        key(args.interval)


def _screen(client: Client, args: argparse.Namespace, key: Callable[[float], None], silent: Set[NodeId]) -> None:
    """The table in place, on a screen of its own."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    live = Live(console=Console(), screen=True, auto_refresh=False)
    try:
        with stdio.undisturbed():
            live.start()
        while True:
            results, line = _sample(client, args, key, silent)
            size = live.console.size
            rows = _rows(client, processes(results)[: min(args.lines, max(size.height - 3, 1))])
            shown = clean(f"{line}\n\n{fit(rows, size.width)}")
            live.update(Text(shown, no_wrap=True, overflow="crop"), refresh=True)
            key(args.interval)
    finally:
        with stdio.undisturbed():
            live.stop()


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], None]]:
    """A function that waits for so many seconds, and raises `_Quit` when `q` is typed meanwhile."""
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
                raise _Quit

    try:
        yield wait
    finally:
        with contextlib.suppress(termios.error, OSError):
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _sample(
    client: Client, args: argparse.Namespace, key: Optional[Callable[[float], None]] = None,
    silent: Optional[Set[NodeId]] = None,
) -> Tuple[List[Result], str]:
    # A node that does not answer at once is left out of this round.
    targeted = client.target(args.target, but=args.but)
    fleet = targeted.processes(selection=targeted.select().present, expires=EXPIRES, quiet=True)
    results, faults = [], []
    silent = set() if silent is None else silent
    for result in without_the_silent(fleet, max(args.interval, 5.0), silent, KEY_SECONDS):
        if result is None:
            if key:
                key(0)
            continue
        try:
            entries(result)
            results.append(result)
        except Undecodable:
            faults.append(result.node)
    more = f", no answer from {render.names(fleet.missing)}" if fleet.missing else ""
    more += f", unreadable answers from {render.names(sorted(faults))}" if faults else ""
    more += f", {len(fleet.offline)} offline" if fleet.offline else ""
    jobs = sum(len(entries(r)) for r in results)
    return results, f"{time.strftime('%H:%M:%S')}  {len(results)} nodes, {jobs} jobs{more}"


def entries(result: Result) -> List[Dict[str, Any]]:
    value = result.value if result.ok else []
    return [e for e in value if isinstance(e, dict)] if isinstance(value, list) else []


def sent_as(client: Client, found: Sequence[Tuple[NodeId, Dict[str, Any]]]) -> Dict[str, str]:
    """Of the first of these entries, by the id of the job, what it was sent as, while Redis has that."""
    # A node says `execute`; which program that is stands in the job's hash. An id that is none cannot have one.
    ids = [e.get("id") for _, e in found[:MOST_ASKED]]
    known = client.asked(list(dict.fromkeys(i for i in ids if isinstance(i, str) and is_id(i))))
    return {job_id: render.asked(command, 30) for job_id, command in known.items()}


def _rows(client: Client, found: Sequence[Tuple[NodeId, Dict[str, Any]]]) -> List[Row]:
    asked = sent_as(client, found)
    return [_row(node, e, asked.get(str(e.get("id")))) for node, e in found]


def fit(rows: Sequence[Row], width: int) -> str:
    """The table in `width` columns: the sort column stays, what matters least goes. Pure."""
    cut = [
        tuple(render.shortened(value, {"JOB": 12, "CMD": 20}.get(name, 1000)) for name, value in zip(HEAD, row))
        for row in rows
    ]
    kept = list(range(len(HEAD)))
    text = render.table(HEAD, rows)
    for drop in ("", *DROPPED):
        if max(map(len, text.splitlines())) <= width:
            return text
        kept = [at for at in kept if HEAD[at] != drop]
        text = render.table([HEAD[at] for at in kept], [[row[at] for at in kept] for row in cut])
    return text


def _row(node: NodeId, e: Dict[str, Any], asked: Optional[str]) -> Row:
    started = number(e.get("starttime"))
    return (
        node, str(e.get("id", ""))[:32], asked or e.get("cmd"),
        e.get("domain"), e.get("name"), e.get("pid"), e.get("state"),
        f"{number(e.get('cpu')):.1f}", render.size(number(e.get("rss"))), e.get("processes"),
        ago(time.time() - started / 1000) if started else "", e.get("restarts"),
    )


def number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and abs(value) < 1e24 else 0.0
