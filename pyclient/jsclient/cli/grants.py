"""`jsctl grant` and `jsctl grants`."""

from __future__ import annotations

import argparse
from typing import List, Mapping, Sequence

from .. import target
from ..errors import NOBODY, OK, Unavailable
from ..grants import HOW_TO_CLAIM, Grant, claimed
from ..wire import NodeId
from . import render, stdio
from .order import connect
from .start import say


def grant(args: argparse.Namespace) -> int:
    """`jsctl grant TARGET`."""
    with connect(args) as client:
        changed = client.grant(args.target, roles=args.role, labels=args.label, hosts=args.host, remove=args.remove)
        _show_changed(args, changed)
        try:
            claims = {} if args.remove else claimed(client.link, list(changed))
        except Unavailable as e:
            claims = {}
            say(f"jsctl: whether it is claimed is not known: {e}")
    for field in _asked(args):
        silent = [node for node, fields in claims.items() if field not in fields]
        if silent:
            how = f"; {HOW_TO_CLAIM}" if field.startswith("role:") else ""
            say(f"jsctl: {render.names(silent)}: {field} is granted and not claimed, so it is no target yet{how}")
    if args.remove and not any(changed.values()):
        return NOBODY
    return OK


def _asked(args: argparse.Namespace) -> List[str]:
    return [f"{kind}:{name}" for kind in ("role", "label", "host") for name in getattr(args, kind)]


def _show_changed(args: argparse.Namespace, changed: Mapping[NodeId, List[str]]) -> None:
    verb = "removed" if args.remove else "granted"
    if args.json or args.ndjson:
        render.emit([{"node": str(n), "gid": n.gid, "nid": n.nid, verb: what} for n, what in changed.items()], args.ndjson)
    else:
        same = "was not granted" if args.remove else "was granted before"
        for node, what in changed.items():
            if what:
                stdio.out(f"{node}: {verb} {', '.join(what)}")
            old = [field for field in dict.fromkeys(_asked(args)) if field not in what]
            if old:
                stdio.out(f"{node}: {', '.join(old)} {same}")


def grants(args: argparse.Namespace) -> int:
    """`jsctl grants [TARGET]`."""
    with connect(args) as client:
        found = client.grants(args.target)
    if args.json or args.ndjson:
        render.emit([it.to_dict() for it in found], args.ndjson)
        return OK
    if not found:
        say(f"jsctl: no grant and no claim matches {args.target}")
        return OK if target.parse(args.target).everyone else NOBODY
    rows = ((it.node, it.field, "yes" if it.granted else "no, claimed", it.by, render.moment(it.at)) for it in found)
    stdio.rows(render.table(("NODE", "NAME", "GRANTED", "BY (SELF-DECLARED)", "SINCE"), rows))
    claimed = [it for it in found if not it.granted]
    if claimed:
        say(f"{len(claimed)} claimed and not granted; to grant them: {_advice(claimed)}")
    return OK


def _advice(claimed: Sequence[Grant]) -> str:
    """The command that grants what the first of these nodes claims."""
    first: List[Grant] = [it for it in claimed if it.node == claimed[0].node]
    flags = " ".join(f"--{it.kind} {it.name}" for it in first[:5])
    return f"jsctl grant {first[0].node} {flags}"
