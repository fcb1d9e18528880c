"""The nodes that the controllers know, and how fresh each is."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from . import wire
from .errors import Unavailable
from .link import Link
from .values import load_json
from .wire import NodeId

#: Fields of `jsacc:agent:<gid>:<nid>`, in the order in which they are asked for.
FIELDS = ("roles", "hostname", "os", "version", "addr", "instance", "ac", "stopped", "claims")


@dataclass(frozen=True)
class Node:
    """A node as the controllers saw it last."""

    gid: int
    nid: int
    roles: Tuple[str, ...] = ()
    hostname: str = ""
    os: str = ""
    version: str = ""
    addr: str = ""
    instance: str = ""
    ac: str = ""
    #: What it claims and was not granted, so that controllers do not use it: `role:db`, `label:site=ams`, `host:db1`.
    claims: Tuple[str, ...] = ()
    #: When it was seen last, in milliseconds since 1970.
    last_seen: int = 0
    #: Seconds since then, when it was asked.
    age: float = 0.0
    #: When its agent said that it stops, in milliseconds since 1970, and was not seen since; else 0.
    stopped: int = 0

    @property
    def id(self) -> NodeId:
        """Grid and number."""
        return NodeId(self.gid, self.nid)

    @property
    def state(self) -> str:
        """`live` (seen within 90 seconds), `late` (within an hour) or `gone`; `stopped` within that hour
        where its agent said so."""
        if self.stopped and self.age <= wire.LATE_SECONDS:
            return "stopped"
        if self.age <= wire.LIVE_SECONDS:
            return "live"
        return "late" if self.age <= wire.LATE_SECONDS else "gone"

    @property
    def live(self) -> bool:
        """Whether it was seen within 90 seconds, and so takes commands, be it only stopped to start again."""
        return self.age <= wire.LIVE_SECONDS

    def to_dict(self) -> Dict[str, Any]:
        """As `jsctl nodes --json` prints it."""
        return {
            "gid": self.gid,
            "nid": self.nid,
            "node": str(self.id),
            "state": self.state,
            "roles": list(self.roles),
            "claims": list(self.claims),
            "hostname": self.hostname,
            "os": self.os,
            "version": self.version,
            "addr": self.addr,
            "instance": self.instance,
            "ac": self.ac,
            "last_seen": self.last_seen,
            "stopped": self.stopped,
        }


def parse_names(raw: Optional[bytes]) -> Tuple[str, ...]:
    """A JSON list of names; also takes names with commas between them."""
    if not raw:
        return ()
    if raw[:1] == b"[":
        try:
            return tuple(str(role) for role in load_json(raw))
        except (ValueError, TypeError):
            pass
    return tuple(role for role in wire.text(raw).split(",") if role)


def now_ms(time: Sequence[Any]) -> int:
    """Redis' answer to TIME, in milliseconds."""
    return int(time[0]) * 1000 + int(time[1]) // 1000


def load(link: Link, only: Optional[Iterable[NodeId]] = None, fields: Sequence[str] = FIELDS) -> List[Node]:
    """All known nodes, or those of `only` that are known, ordered by grid and number."""
    if only is None:
        time, scored = link.bulk([("TIME",), ("ZRANGE", wire.AGENTS, 0, -1, "WITHSCORES")])
        pairs = [(NodeId.from_key(member), score) for member, score in wire.scored(scored)]
    else:
        wanted = list(only)
        time, *scores = link.bulk([("TIME",)] + [("ZSCORE", wire.AGENTS, node.key) for node in wanted])
        pairs = [(node, score) for node, score in zip(wanted, scores) if score is not None]
    now = now_ms(time)
    # No controller writes a time that is no number.
    scores_of = [(node, float(score)) for node, score in pairs if node is not None]
    seen = sorted((node, int(at)) for node, at in scores_of if math.isfinite(at))
    asked = [("HMGET", wire.agent_hash(node), *fields) for node, _ in seen] if fields else []
    known: List[List[Optional[bytes]]] = link.bulk(asked) or [[] for _ in seen]
    out = []
    names: Dict[Optional[bytes], Tuple[str, ...]] = {}  # thousands of nodes have the same few sets
    for (node, last_seen), values in zip(seen, known):
        facts: Dict[str, Any] = {}
        for name, value in zip(fields, values):
            if name == "stopped":
                stopped = wire.milliseconds(value or b"")
                facts[name] = stopped if stopped >= last_seen else 0
            elif name not in ("roles", "claims"):
                facts[name] = value.decode("utf-8", "replace") if value else ""
            elif value in names:
                facts[name] = names[value]
            else:
                facts[name] = names[value] = parse_names(value)
        out.append(Node(node.gid, node.nid, last_seen=last_seen, age=max(0.0, (now - last_seen) / 1000), **facts))
    return out


def revoked(link: Link, nodes: Sequence[NodeId]) -> Dict[NodeId, int]:
    """Those of the nodes that were revoked and not enrolled since, and when that was (ms)."""
    try:
        answers = link.bulk([("GET", wire.revoked_key(node)) for node in nodes])
    except Unavailable as e:
        if e.passing:
            raise
        return {}  # the rights of a client of 0.1.0 do not reach it
    return {node: wire.milliseconds(raw) for node, raw in zip(nodes, answers) if raw is not None}


def unknown(nodes: Sequence[NodeId], revoked: Mapping[NodeId, int]) -> str:
    """Why nothing is known of these nodes, in one sentence."""
    strange = [node for node in nodes if node not in revoked]
    gone = [node for node in nodes if node in revoked]
    parts = []
    if strange:
        parts.append(f"{names(strange, 10)} {'was' if len(strange) == 1 else 'were'} never seen by a controller")
    for node in gone[:10]:
        parts.append(f"{node} was revoked at {moment(revoked[node])}: enrol it again with jsacc enroll {node.gid} {node.nid}")
    if len(gone) > 10:
        parts.append(f"and {len(gone) - 10} more were revoked")
    return "; ".join(parts)


def names(nodes: Sequence[object], most: int = 12) -> str:
    """`1.10, 1.11, 1.12 and 7 more`."""
    listed = ", ".join(str(n) for n in nodes[:most])
    return listed if len(nodes) <= most else f"{listed} and {len(nodes) - most} more"


def moment(ms: float) -> str:
    """A time of day and date, local."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ms / 1000)) if ms else "-"
    except (OverflowError, ValueError, OSError):
        return str(ms)  # a time that no calendar has


def ago(seconds: float) -> str:
    """A span of time for people: `5s`, `3m`, `2h`, `4d`."""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "m"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{int(max(seconds, 0) // unit)}{name}"
    return f"{int(seconds // 86400)}d"
