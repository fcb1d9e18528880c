"""`jsctl top`, and the table of `jsctl ps`."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any, Dict, List, Optional, Sequence, Tuple

from ..client import Client
from ..errors import OK
from ..nodes import ago
from ..wire import NodeId, Result
from . import render
from .order import connect
from .start import say

HEAD = ("NODE", "JOB", "CMD", "DOMAIN", "NAME", "PID", "STATE", "CPU%", "RSS", "PROCS", "AGE", "RESTARTS")
#: Of so many jobs Redis is asked what they were sent as.
MOST_ASKED = 500


def process_table(client: Client, results: Sequence[Result]) -> str:
    """The jobs of all nodes that answered, by cpu."""
    return _table(client, processes(results))


def processes(results: Sequence[Result]) -> List[Tuple[NodeId, Dict[str, Any]]]:
    """Each job with its node, the busiest first."""
    found = [(r.node, e) for r in results if r.ok for e in _entries(r)]
    return sorted(found, key=lambda pair: (-_float(pair[1].get("cpu")), pair[0]))


def top(args: argparse.Namespace) -> int:
    """`jsctl top`."""
    with connect(args) as client:
        if args.json or args.ndjson:
            items = [{"node": str(n), **e} for n, e in processes(_sample(client, args)[0])]
            render.emit(items, args.ndjson)
            return OK
        if args.once or not sys.stdout.isatty():
            results, line = _sample(client, args)
            print(_table(client, processes(results)[: args.lines]))
            say(line)
            return OK
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        with Live(console=Console(), screen=True, auto_refresh=False) as live:
            try:
                while True:
                    results, line = _sample(client, args)
                    room = max(live.console.size.height - 3, 1)
                    shown = _table(client, processes(results)[: min(args.lines, room)])
                    live.update(Text(f"{line}\n\n{shown}", no_wrap=True), refresh=True)
                    time.sleep(args.interval)
            except KeyboardInterrupt:
                return OK


def _sample(client: Client, args: argparse.Namespace) -> Tuple[List[Result], str]:
    # A node that does not answer at once is left out of this round.
    fleet = client.target(args.target, but=args.but).processes(expires=30)
    results = list(fleet.stream(max(args.interval, 5.0)))
    silent = f", no answer from {render.names(fleet.missing)}" if fleet.missing else ""
    jobs = sum(len(_entries(r)) for r in results)
    return results, f"{time.strftime('%H:%M:%S')}  {len(results)} nodes, {jobs} jobs{silent}"


def _entries(result: Result) -> List[Dict[str, Any]]:
    value = result.value if result.ok else []
    return [e for e in value if isinstance(e, dict)] if isinstance(value, list) else []


def _table(client: Client, rows: Sequence[Tuple[NodeId, Dict[str, Any]]]) -> str:
    # A node says `execute`; which program that is stands in the job's hash, while there is one.
    ids = list(dict.fromkeys(str(e.get("id", "")) for _, e in rows[:MOST_ASKED]))
    asked = client.asked([job_id for job_id in ids if job_id])
    return render.table(HEAD, [_row(node, e, asked.get(str(e.get("id", "")))) for node, e in rows])


def _row(node: NodeId, e: Dict[str, Any], asked: Optional[Dict[str, Any]]) -> Tuple[object, ...]:
    started = _float(e.get("starttime"))
    return (
        node, str(e.get("id", ""))[:32], render.asked(asked, 30) if asked else e.get("cmd"),
        e.get("domain"), e.get("name"), e.get("pid"), e.get("state"),
        f"{_float(e.get('cpu')):.1f}", render.size(_float(e.get("rss"))), e.get("processes"),
        ago(time.time() - started / 1000) if started else "", e.get("restarts"),
    )


def _float(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0
