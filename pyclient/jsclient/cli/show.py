"""The commands that only look: nodes, jobs, job, events, audit, rejected, stats, script list."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from typing import Any, Dict, List

from .. import target
from ..errors import NOBODY, OK, Error, NoController
from ..job import nodes_of
from ..nodes import ago, load
from ..values import dump_json
from ..wire import JobInfo, integer
from . import render, stdio
from .order import connect, parts_of
from .start import say

_SHOWN = ("roles", "hostname", "os", "version", "addr", "stopped", "claims")


def nodes(args: argparse.Namespace) -> int:
    """`jsctl nodes`."""
    who, but = target.parse(args.target), target.parse_except(args.but)
    with connect(args) as client:
        # Of ten thousand nodes only what the table shows is fetched.
        known = client.nodes() if args.json or args.ndjson else load(client.link, fields=_SHOWN)
        picked = [n for n in known if who.means(n) and not any(t.means(n) for t in but)]
        if args.state:
            picked = [n for n in picked if n.state == args.state]
        if args.json or args.ndjson:
            render.emit([n.to_dict() for n in picked], args.ndjson)
        elif picked:
            # The last column is there only where there is something in it.
            claims = any(n.claims for n in picked)
            head = ("NODE", "STATE", "SEEN", "HOST", "ROLES", "OS", "VERSION", "ADDR") + ("NOT GRANTED",) * claims
            rows = ((n.id, n.state, ago(n.age), n.hostname, n.roles, n.os, n.version, n.addr) + (n.claims,) * claims
                    for n in picked)
            stdio.rows(render.table(head, rows))
        if not picked:
            if not (known or who.nodes):
                say("jsctl: no node was ever seen")
            elif any(who.means(n) for n in known):
                say(f"jsctl: no node matches {args.target}")
            else:
                say(f"jsctl: {client.target(who).nobody(client.select(who))}")
        elif not (args.json or args.ndjson):
            count = Counter(n.state for n in picked)
            counts = [f"{count[s]} {s}" for s in ("live", "late", "gone", "stopped") if count[s] or s != "stopped"]
            say(", ".join(counts))
        try:
            client.check()
        except NoController as e:  # the list is good all the same; nobody refreshes it
            say(f"jsctl: {e}")
        except Error as e:
            e.told = True
            raise
    return OK if picked or (args.target == "all" and not known) else NOBODY


def jobs(args: argparse.Namespace) -> int:
    """`jsctl jobs`."""
    with connect(args) as client:
        found = client.jobs(args.limit)
    if args.json or args.ndjson:
        render.emit([_job_dict(info) for info in found], args.ndjson)
        return OK
    rows = []
    for info in found:
        counts: Dict[str, int] = {}
        for state in info.states.values():
            counts[state] = counts.get(state, 0) + 1
        who = render.names(nodes_of(info), 3) or "-"
        ends = " ".join(f"{n} {s}" for s, n in sorted(counts.items())) or "nobody"
        args_ = info.command.get("args")
        period = integer(args_.get("recurring_period")) if isinstance(args_, dict) else 0
        what = render.asked(info.command) + (f" (every {ago(period)})" if period > 0 else "")
        rows.append((info.id, render.moment(info.created), what, who, ends))
    stdio.rows(render.table(("ID", "CREATED", "COMMAND", "NODES", "STATES"), rows))
    return OK


def job(args: argparse.Namespace) -> int:
    """`jsctl job ID`."""
    with connect(args) as client:
        args.id, parts = parts_of(client, args.id, looking=True)
        infos = [client.job_info(i) for i in parts or [args.id]]
    if args.json or args.ndjson:
        docs = [_job_dict(info) for info in infos]
        if args.json and len(docs) == 1:
            stdio.out_json(docs[0], indent=2)
        else:
            render.emit(docs, args.ndjson)
        return OK
    first = infos[0]
    facts: Dict[str, Any] = {"id": args.id, "command": render.asked(first.command), "by": first.command.get("by", "")}
    overall = JobInfo("", {}, 0, None, {}, {})
    for info in infos:
        overall.states.update(info.states)
    facts.update(created=render.moment(first.created), state=overall.state if overall.states else first.state)
    if first.command.get("args"):
        facts["args"] = dump_json(first.command["args"])
    stdio.rows(render.value_text(facts))
    rows = []
    for info in infos:
        for node, state in sorted(info.states.items()):
            result = info.results.get(node)
            body = render.body(result).splitlines() if result else []
            rows.append((
                node, state, result.code if result else "", f"{result.time} ms" if result else "",
                render.moment(result.starttime) if result else "", body[-1][:60] if body else "",
            ))
    if rows:
        stdio.rows("\n" + render.table(("NODE", "STATE", "CODE", "TIME", "STARTED", "LAST LINE"), rows))
    return OK


def events(args: argparse.Namespace) -> int:
    """`jsctl events`."""
    with connect(args) as client:
        found = client.events(args.limit)
    if _json(args, found):
        return OK
    rows = []
    for e in found:
        who = f"{e.get('gid')}.{e.get('nid')}" if e.get("nid") else ""
        rest = e.get("data", e.get("text", ""))
        told = rest if isinstance(rest, str) else dump_json(rest)
        rows.append((render.moment(_when(e)), who, e.get("name", ""), told))
    stdio.rows(render.table(("TIME", "NODE", "EVENT", "DATA"), rows))
    return OK


def audit(args: argparse.Namespace) -> int:
    """`jsctl audit`."""
    with connect(args) as client:
        found = client.audit(args.limit)
    if _json(args, found):
        return OK
    rows = []
    for e in found:
        by = "/".join(str(e[k]) for k in ("by", "user") if e.get(k) not in (None, "", "default"))
        what = render.asked(e)
        named = e.get("targets")
        targets = [str(t).replace(":", ".") for t in (named if isinstance(named, list) else [])]
        count = max(integer(e.get("count")), len(targets))
        who = ",".join(targets[:3]) + (f" and {count - 3} more" if count > 3 else "")
        ends = " ".join(f"{n} {s}" for s, n in e.get("results", {}).items())
        rows.append((render.moment(_when(e)), by, what, who, ends, e.get("id", "")))
    stdio.rows(render.table(("TIME", "BY (SELF-DECLARED)", "COMMAND", "NODES", "RESULTS", "ID"), rows))
    return OK


def rejected(args: argparse.Namespace) -> int:
    """`jsctl rejected`."""
    with connect(args) as client:
        found = client.rejected(args.limit)
    if _json(args, found):
        return OK
    rows = [(render.moment(_when(e)), e.get("reason", ""), str(e.get("command", e.get("text", "")))[:80]) for e in found]
    stdio.rows(render.table(("TIME", "REASON", "TEXT"), rows))
    return OK


def stats(args: argparse.Namespace) -> int:
    """`jsctl stats`."""
    who = target.parse(args.target)
    with connect(args) as client:
        chosen = client.select(who)
        if not chosen.live and not chosen.offline:
            say(f"jsctl: {client.target(who).nobody(chosen)}")
            return NOBODY
        rows = []
        for node in sorted([*chosen.live, *(n.id for n in chosen.offline)]):
            for key, (value, at) in client.stats(node.gid, node.nid).items():
                prefix = f"{node.gid}.{node.nid}."
                short = key[len(prefix) :] if key.startswith(prefix) else key
                if args.series and short != args.series and not short.startswith(args.series + "."):
                    continue
                rows.append((node, short, value, at))
    if args.json or args.ndjson:
        items = [{"node": str(n), "series": k, "value": v, "time": at} for n, k, v, at in rows]
        render.emit(items, args.ndjson)
        return OK
    if not rows:
        say("jsctl: no series yet: nodes send them once a minute")
        return OK
    now = time.time()
    stdio.rows(render.table(("NODE", "SERIES", "VALUE", "AGE"),
                       ((n, k, f"{v:g}" if abs(v) < 1e6 else f"{v:.0f}", ago(now - at)) for n, k, v, at in rows)))
    return OK


def scripts(args: argparse.Namespace) -> int:
    """`jsctl script list`."""
    with connect(args) as client:
        found = client.scripts()
    if _json(args, found):
        return OK
    rows = ((s["hash"], render.size(s["size"]), ago(s["expires"]), s["first"][:60]) for s in found)
    stdio.rows(render.table(("HASH", "SIZE", "EXPIRES", "BEGINS"), rows))
    return OK


def _job_dict(info: Any) -> Dict[str, Any]:
    return {
        "id": info.id,
        "created": info.created,
        "state": info.state,
        "command": info.command,
        "targets": None if info.targets is None else [str(n) for n in info.targets],
        "nodes": {
            str(node): render.document(info.results[node]) if node in info.results else {"state": state}
            for node, state in sorted(info.states.items())
        },
    }


def _when(entry: Dict[str, Any]) -> float:
    at = entry.get("epoch") or entry.get("time") or 0
    return float(at) if isinstance(at, (int, float)) and abs(at) < 1e15 else 0.0


def _json(args: argparse.Namespace, found: List[Dict[str, Any]]) -> bool:
    if args.json or args.ndjson:
        render.emit(found, args.ndjson)
        return True
    return False
