"""The subcommands grant and grants."""

from __future__ import annotations

import argparse
from typing import List, Mapping, Sequence

from ..errors import NO_MATCH, OK, RedisUnavailableError
from ..grants import HOW_TO_CLAIM, Grant, load_claims
from ..keys import NodeId
from ..target import parse_target
from . import render, stdio
from .lookup import connect
from .stdio import message


def grant(args: argparse.Namespace) -> int:
    """Run `jsctl grant TARGET`."""
    with connect(args) as client:
        changed = client.grant(args.target, roles=args.role, labels=args.label, hosts=args.host, remove=args.remove)
        _show_changed(args, changed)
        try:
            claims = {} if args.remove else load_claims(client.connection, list(changed))
        except RedisUnavailableError as e:
            claims = {}
            message(f"jsctl: whether it is claimed is not known: {e}")
    for field in _fields(args):
        unclaimed = [node for node, fields in claims.items() if field not in fields]
        if unclaimed:
            how = f"; {HOW_TO_CLAIM}" if field.startswith("role:") else ""
            names = render.join_names(unclaimed)
            message(f"jsctl: {names}: {field} is granted and not claimed, so it is not a target yet{how}")
    if args.remove and not any(changed.values()):
        return NO_MATCH
    return OK


def _fields(args: argparse.Namespace) -> List[str]:
    return [f"{kind}:{name}" for kind in ("role", "label", "host") for name in getattr(args, kind)]


def _show_changed(args: argparse.Namespace, changed: Mapping[NodeId, List[str]]) -> None:
    verb = "removed" if args.remove else "granted"
    if args.json or args.ndjson:
        items = [{"node": str(n), "gid": n.gid, "nid": n.nid, verb: fields} for n, fields in changed.items()]
        render.emit(items, args.ndjson)
    else:
        same = "was not granted" if args.remove else "was granted before"
        for node, fields in changed.items():
            if fields:
                stdio.out(f"{node}: {verb} {', '.join(fields)}")
            unchanged = [field for field in dict.fromkeys(_fields(args)) if field not in fields]
            if unchanged:
                stdio.out(f"{node}: {', '.join(unchanged)} {same}")


def grants(args: argparse.Namespace) -> int:
    """Run `jsctl grants [TARGET]`."""
    with connect(args) as client:
        found = client.grants(args.target)
    if args.json or args.ndjson:
        render.emit([it.to_dict() for it in found], args.ndjson)
        return OK
    if not found:
        message(f"jsctl: no grant and no claim matches {args.target}")
        return OK if parse_target(args.target).all_nodes else NO_MATCH
    rows = ((it.node, it.field, "yes" if it.granted else "no, claimed", it.by, render.format_time(it.at)) for it in found)
    stdio.rows(render.table(("NODE", "NAME", "GRANTED", "BY (SELF-DECLARED)", "SINCE"), rows))
    claimed = [it for it in found if not it.granted]
    if claimed:
        message(f"{len(claimed)} claimed and not granted; grant them with {_advice(claimed)}")
    return OK


def _advice(claimed: Sequence[Grant]) -> str:
    """Return the command that grants the claims of the first of these nodes."""
    first: List[Grant] = [it for it in claimed if it.node == claimed[0].node]
    flags = " ".join(f"--{it.kind} {it.name}" for it in first[:5])
    return f"jsctl grant {first[0].node} {flags}"
