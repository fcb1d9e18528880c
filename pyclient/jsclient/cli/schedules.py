"""`jsctl schedules`."""

from __future__ import annotations

import argparse
from typing import Sequence

from .. import verbs
from ..client import Client
from ..nodes import ago
from ..wire import Result
from . import render
from .order import order
from .top import entries, number, sent_as

HEAD = ("NODE", "JOB", "COMMAND", "DOMAIN", "NAME", "EVERY", "NEXT", "LAST START", "LAST")


def schedules(args: argparse.Namespace) -> int:
    """`jsctl schedules [TARGET]`."""
    return order(args, verbs.schedules(), render_all=table, looking=True)


def table(client: Client, results: Sequence[Result]) -> str:
    """The recurring jobs of all nodes that answered, first those that run next."""
    found = [(r.node, e) for r in results if r.ok for e in entries(r)]
    found.sort(key=lambda pair: (number(pair[1].get("next")), pair[0]))
    asked = sent_as(client, found)
    rows = []
    for node, e in found:
        job = str(e.get("id") or "")
        rows.append((
            node, job[:32], asked.get(job), e.get("domain"), e.get("name"),
            ago(number(e.get("period"))), render.moment(number(e["next"])) if e.get("next") else "now",
            render.moment(number(e.get("last_start"))), e.get("last_state"),
        ))
    return render.table(HEAD, rows)
