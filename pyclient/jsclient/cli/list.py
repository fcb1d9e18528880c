"""The subcommands that only read Redis: nodes, jobs, job, events, audit, rejected, stats, script list."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from typing import Any, Callable, Dict, List, Sequence

from ..client import Client
from ..errors import NO_MATCH, OK, Error, NoControllerError
from ..job import nodes_of
from ..nodes import format_age, load_nodes
from ..target import parse_excludes, parse_target
from ..text import shortened
from ..values import dump_json, integer
from ..wire import JobInfo
from . import render, stdio
from .lookup import connect, find_jobs
from .stdio import message

_SHOWN = ("roles", "hostname", "os", "version", "addr", "stopped", "claims")


def nodes(args: argparse.Namespace) -> int:
    """Run `jsctl nodes`."""
    target, exclude = parse_target(args.target), parse_excludes(args.exclude)
    with connect(args) as client:
        # There may be ten thousand nodes, so only the fields of the table are read.
        known = client.nodes() if args.json or args.ndjson else load_nodes(client.connection, fields=_SHOWN)
        picked = [n for n in known if target.matches(n) and not any(t.matches(n) for t in exclude)]
        if args.state:
            picked = [n for n in picked if n.state == args.state]
        if args.json or args.ndjson:
            render.emit([n.to_dict() for n in picked], args.ndjson)
        elif picked:
            # The last column is shown only when a node has claims without a grant.
            claims = any(n.claims for n in picked)
            head = ("NODE", "STATE", "SEEN", "HOST", "ROLES", "OS", "VERSION", "ADDR") + ("NOT GRANTED",) * claims
            rows = ((n.id, n.state, format_age(n.age), n.hostname, n.roles, n.os, n.version, n.addr) + (n.claims,) * claims
                    for n in picked)
            stdio.rows(render.table(head, rows))
        if not picked:
            if not (known or target.nodes):
                message("jsctl: no node was ever seen")
            elif any(target.matches(n) for n in known):
                message(f"jsctl: no node matches {args.target}")
            else:
                message(f"jsctl: {client.target(target).explain_no_nodes(client.select(target))}")
        elif not (args.json or args.ndjson):
            count = Counter(n.state for n in picked)
            counts = [f"{count[s]} {s}" for s in ("live", "late", "gone", "stopped") if count[s] or s != "stopped"]
            message(", ".join(counts))
        try:
            client.check()
        except NoControllerError as e:  # the list is valid, but nothing updates it
            message(f"jsctl: {e}")
        except Error as e:
            e.json_started = True
            raise
    return OK if picked or (args.target == "all" and not known) else NO_MATCH


def jobs(args: argparse.Namespace) -> int:
    """Run `jsctl jobs`."""
    return _show(args, lambda client: client.jobs(args.limit), ("ID", "CREATED", "COMMAND", "NODES", "STATES"), _job_row, _job_dict)


def _job_row(info: JobInfo) -> Sequence[object]:
    nodes = render.join_names(nodes_of(info), 3) or "-"
    states = " ".join(f"{n} {s}" for s, n in sorted(Counter(info.states.values()).items())) or "no node"
    args = info.command.get("args")
    period = integer(args.get("recurring_period")) if isinstance(args, dict) else 0
    command = render.describe_command(info.command) + (f" (every {format_age(period)})" if period > 0 else "")
    return info.id, render.format_time(info.created), command, nodes, states


def job(args: argparse.Namespace) -> int:
    """Run `jsctl job ID`."""
    with connect(args) as client:
        args.id, members = find_jobs(client, args.id, read_only=True)
        infos = [client.job_info(i) for i in members or [args.id]]
    if args.json or args.ndjson:
        docs = [_job_dict(info) for info in infos]
        if args.json and len(docs) == 1:
            stdio.out_json(docs[0], indent=2)
        else:
            render.emit(docs, args.ndjson)
        return OK
    first = infos[0]
    command = render.describe_command(first.command)
    facts: Dict[str, Any] = {"id": args.id, "command": command, "by": first.command.get("by", "")}
    overall = JobInfo("", {}, 0, None, {}, {})
    for info in infos:
        overall.states.update(info.states)
    facts.update(created=render.format_time(first.created), state=overall.state if overall.states else first.state)
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
                render.format_time(result.starttime) if result else "", shortened(body[-1], 60) if body else "",
            ))
    if rows:
        stdio.rows("\n" + render.table(("NODE", "STATE", "CODE", "TIME", "STARTED", "LAST LINE"), rows))
    return OK


def events(args: argparse.Namespace) -> int:
    """Run `jsctl events`."""
    return _show(args, lambda client: client.events(args.limit), ("TIME", "NODE", "EVENT", "DATA"), _event_row)


def _event_row(e: Dict[str, Any]) -> Sequence[object]:
    node = f"{e.get('gid')}.{e.get('nid')}" if e.get("nid") else ""
    data = e.get("data", e.get("text", ""))
    return render.format_time(_time_of(e)), node, e.get("name", ""), data if isinstance(data, str) else dump_json(data)


def audit(args: argparse.Namespace) -> int:
    """Run `jsctl audit`."""
    head = ("TIME", "BY (SELF-DECLARED)", "COMMAND", "NODES", "RESULTS", "ID")
    return _show(args, lambda client: client.audit(args.limit), head, _audit_row)


def _audit_row(e: Dict[str, Any]) -> Sequence[object]:
    by = "/".join(str(e[k]) for k in ("by", "user") if e.get(k) not in (None, "", "default"))
    named = e.get("targets")
    targets = [str(t).replace(":", ".") for t in (named if isinstance(named, list) else [])]
    count = max(integer(e.get("count")), len(targets))
    nodes = ",".join(targets[:3]) + (f" and {count - 3} more" if count > 3 else "")
    results = " ".join(f"{n} {s}" for s, n in e.get("results", {}).items())
    return render.format_time(_time_of(e)), by, render.describe_command(e), nodes, results, e.get("id", "")


def rejected(args: argparse.Namespace) -> int:
    """Run `jsctl rejected`."""
    return _show(args, lambda client: client.rejected(args.limit), ("TIME", "REASON", "TEXT"), lambda e: (
        render.format_time(_time_of(e)), e.get("reason", ""), shortened(str(e.get("command", e.get("text", ""))), 80)
    ))


def stats(args: argparse.Namespace) -> int:
    """Run `jsctl stats`."""
    target = parse_target(args.target)
    with connect(args) as client:
        chosen = client.select(target)
        if not chosen.live and not chosen.offline:
            message(f"jsctl: {client.target(target).explain_no_nodes(chosen)}")
            return NO_MATCH
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
        message("jsctl: no series yet: nodes send them once a minute")
        return OK
    now = time.time()
    stdio.rows(render.table(("NODE", "SERIES", "VALUE", "AGE"),
                       ((n, k, f"{v:.0f}" if 1e6 <= abs(v) < 1e15 else f"{v:g}", format_age(now - at)) for n, k, v, at in rows)))
    return OK


def scripts(args: argparse.Namespace) -> int:
    """Run `jsctl script list`."""
    return _show(args, lambda client: client.scripts(), ("HASH", "SIZE", "EXPIRES", "BEGINS"), lambda s: (
        s["hash"], render.size(s["size"]), format_age(s["expires"]), shortened(s["first"], 60)
    ))


def _show(
    args: argparse.Namespace, load: Callable[[Client], List[Any]], head: Sequence[str],
    row: Callable[[Any], Sequence[object]], document: Callable[[Any], Dict[str, Any]] = dict,
) -> int:
    """Show a list that Redis has as a table, or with `--json` as documents."""
    with connect(args) as client:
        found = load(client)
    if args.json or args.ndjson:
        render.emit([document(item) for item in found], args.ndjson)
    else:
        stdio.rows(render.table(head, map(row, found)))
    return OK


def _job_dict(info: JobInfo) -> Dict[str, Any]:
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


def _time_of(entry: Dict[str, Any]) -> float:
    at = entry.get("epoch") or entry.get("time") or 0
    return float(at) if isinstance(at, (int, float)) and abs(at) < 1e15 else 0.0
