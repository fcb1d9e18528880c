"""The subcommand logs."""

from __future__ import annotations

import argparse
import heapq
import time
from typing import Dict, Iterator, List, Mapping, Sequence

from .. import commands, keys
from ..client import Client
from ..errors import FAILED, NO_MATCH, OK, Error, NoMatchingNodesError, UsageError
from ..keys import NodeId
from ..nodes import explain_unknown
from ..result import Result
from ..target_commands import TargetCommands
from ..values import load_json
from ..wire import Record
from . import render, stdio
from .lookup import connect
from .stdio import message


def logs(args: argparse.Namespace) -> int:
    """Run `jsctl logs`: show, follow or delete records."""
    if args.json and args.follow:
        raise UsageError("--follow has no end, so it prints no document: take --ndjson")
    if args.levels:
        commands.check_levels(args.levels)
    if args.job:
        keys.check_id(args.job)
    with connect(args) as client:
        if args.timeout:
            client.timeout = args.timeout
        target = client.target(args.target, exclude=args.exclude)
        client.check()
        if args.job:
            args.job = client.resolve_id(args.job)
        ids = client.ids_by_node(args.job) if args.job else {}
        chosen = target.select().without_stopped
        if not chosen.live:
            raise NoMatchingNodesError(target.explain_no_nodes(chosen))
        # When each node has its own job, only its nodes have records.
        reasons = {node: explain_unknown([node], chosen.revoked) for node in chosen.unknown}
        reasons.update((node.id, f"node {node.id} is offline ({node.last_contact})") for node in chosen.offline)
        for reason in [reason for node, reason in reasons.items() if node in ids or not ids]:
            message(f"jsctl: {reason}; its records are left out")
        nodes = [node for node in chosen.live if node in ids] or chosen.live
        if args.delete:
            return _delete(client, args, nodes, ids)
        is_many = len(nodes) > 1
        if args.follow:
            return _follow(client, args, target, is_many, ids)
        failed: List[NodeId] = []
        streams = [_stream(client, node, ids.get(node, args.job), args, failed) for node in nodes]
        items = []
        count = 0
        for record in heapq.merge(*streams, key=lambda r: r.epoch) if is_many else streams[0]:
            count += 1
            if args.json:
                items.append(_dict(record))
            else:
                _print(record, args, is_many)
        if args.json:
            render.emit(items, False)
        if failed:
            return FAILED
        if not count:
            message(f"jsctl: no records of job {args.job} match" if args.job else "jsctl: no records match")
        return NO_MATCH if args.job and not count else OK


def _stream(
    client: Client, node: NodeId, job: str, args: argparse.Namespace, failed: List[NodeId]
) -> Iterator[Record]:
    try:
        yield from client.logs(
            node, job=job, levels=args.levels, since=args.since, until_ms=args.until, limit=args.limit
        )
    except Error as e:
        failed.append(node)
        message(f"jsctl: {node}: {e}")


def _follow(
    client: Client, args: argparse.Namespace, target: TargetCommands, is_many: bool, ids: Mapping[NodeId, str]
) -> int:
    until = (lambda: _have_ended(client, [*ids.values()] or [args.job])) if args.job else None
    records = target.follow(
        job=ids or args.job, levels=args.levels, since=args.since, until=until,
        on_error=lambda result: message(f"jsctl: {result.sentence()}"),
    )
    try:
        for record in records:
            _print(record, args, is_many)
    except KeyboardInterrupt:
        pass
    return OK


def _have_ended(client: Client, ids: Sequence[str]) -> bool:
    return all(info is not None and info.state in keys.FINAL_STATES for info in map(client._info, ids))


def _delete(client: Client, args: argparse.Namespace, nodes: List[NodeId], ids: Mapping[NodeId, str]) -> int:
    failed, total = False, 0
    for node in nodes:
        try:
            count = client.del_msgs(*node, ids.get(node, args.job), since=args.since, until=args.until, levels=args.levels,
                                    limit=args.limit)
            total += count
            stdio.out(f"{node}: {count} deleted")
        except Error as e:
            failed = True
            message(f"jsctl: {node}: {e}")
    if args.job and not total and not failed:
        message(f"jsctl: no record of job {args.job}")
        return NO_MATCH
    return FAILED if failed else OK


def _dict(record: Record) -> Dict[str, object]:
    return {"node": str(record.node), **record.__dict__}


def _print(record: Record, args: argparse.Namespace, is_many: bool) -> None:
    if args.ndjson:
        stdio.out_json(_dict(record))
        return
    try:
        at = time.strftime("%m-%d %H:%M:%S", time.localtime(record.epoch / 1000)) + f".{record.epoch % 1000:03d}"
    except (OverflowError, ValueError, OSError):
        at = str(record.epoch)
    node = f"{record.node} " if is_many else ""
    job = render.cell(record.jobid[:12]) if record.jobid and not args.job else ""
    text = (_ending(record) if record.level == 30 else record.data).replace("\n", "\n" + " " * 24)
    stdio.rows(f"{at} {node}{job + ' ' if job else ''}{record.level:>2} {text}", " " * 24, flush=args.follow)


def _ending(record: Record) -> str:
    """Return a short text for the end of a job; a record of level 30 holds the whole result."""
    try:
        result = Result.from_dict(load_json(record.data))
    except (ValueError, AttributeError):
        return record.data
    return f"{result.cmd} ended {render.status(result)} after {result.time / 1000:.3f} s"
