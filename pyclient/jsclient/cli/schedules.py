"""The subcommand schedules."""

from __future__ import annotations

import argparse
from typing import Sequence

from .. import commands
from ..client import Client
from ..nodes import format_age
from ..result import Result
from . import render
from .send import send
from .top import commands_by_id, entries, number

HEADER = ("NODE", "JOB", "COMMAND", "DOMAIN", "NAME", "EVERY", "NEXT", "LAST START", "LAST")


def schedules(args: argparse.Namespace) -> int:
    """Run `jsctl schedules [TARGET]`."""
    return send(args, commands.schedules(), render_all=table, read_only=True)


def table(client: Client, results: Sequence[Result]) -> str:
    """Return the table of recurring jobs, sorted by their next run."""
    found = [(r.node, e) for r in results if r.ok for e in entries(r)]
    found.sort(key=lambda pair: (number(pair[1].get("next")), pair[0]))
    sent = commands_by_id(client, found)
    rows = []
    for node, e in found:
        job = str(e.get("id") or "")
        rows.append((
            node, job[:32], sent.get(job), e.get("domain"), e.get("name"),
            format_age(number(e.get("period"))), render.format_time(number(e["next"])) if e.get("next") else "now",
            render.format_time(number(e.get("last_start"))), e.get("last_state"),
        ))
    return render.table(HEADER, rows)
