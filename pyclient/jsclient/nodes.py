"""The nodes that the controllers know, and how recently each was seen."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from . import keys, wire
from ._connection import Connection
from .errors import RedisUnavailableError
from .keys import NodeId
from .values import load_json

#: Fields of `jsacc:agent:<gid>:<nid>` that `load_nodes` reads by default.
FIELDS = ("roles", "hostname", "os", "version", "addr", "instance", "ac", "stopped", "claims")
#: Most nodes that a sentence lists one by one.
_MAX_LISTED = 10


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
    #: Claims without a grant, which controllers do not use: `role:db`, `label:site=ams`, `host:db1`.
    claims: Tuple[str, ...] = ()
    #: The time at which it was last seen, in milliseconds since 1970.
    last_seen: int = 0
    #: Seconds since then, when Redis was read.
    age: float = 0.0
    #: The time at which its agent announced its stop, in milliseconds since 1970; 0 when it was seen since.
    stopped: int = 0

    @property
    def id(self) -> NodeId:
        """Return grid id and node id."""
        return NodeId(self.gid, self.nid)

    @property
    def state(self) -> str:
        """Return `live` (seen within 90 seconds), `late` (within an hour), `gone`, or `stopped` (within an hour)."""
        if self.stopped and self.age <= keys.LATE_SECONDS:
            return "stopped"
        if self.age <= keys.LIVE_SECONDS:
            return "live"
        return "late" if self.age <= keys.LATE_SECONDS else "gone"

    @property
    def live(self) -> bool:
        """Return whether it was seen within 90 seconds, also when its agent has announced its stop."""
        return self.age <= keys.LIVE_SECONDS

    @property
    def last_contact(self) -> str:
        """Return for a sentence how long ago its agent stopped or was last seen."""
        return f"{'stopped' if self.stopped else 'last seen'} {format_duration(self.age)} ago"

    def to_dict(self) -> Dict[str, Any]:
        """Return the object that `jsctl nodes --json` prints."""
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
    """Parse a JSON list of names, or names separated by commas."""
    if not raw:
        return ()
    if raw[:1] == b"[":
        try:
            return tuple(str(role) for role in load_json(raw))
        except (ValueError, TypeError):
            pass
    return tuple(role for role in wire.text(raw).split(",") if role)


def to_milliseconds(time: Sequence[Any]) -> int:
    """Convert the answer of TIME (seconds, microseconds) to milliseconds since 1970."""
    return int(time[0]) * 1000 + int(time[1]) // 1000


def load_nodes(
    connection: Connection, only: Optional[Iterable[NodeId]] = None, fields: Sequence[str] = FIELDS
) -> List[Node]:
    """Return all known nodes, or those of `only` that are known, sorted by id; only these fields are read."""
    if only is None:
        time, scored = connection.bulk([("TIME",), ("ZRANGE", keys.AGENTS, 0, -1, "WITHSCORES")])
        pairs = [(NodeId.from_key(member), score) for member, score in wire.scored(scored)]
    else:
        wanted = list(only)
        time, *scores = connection.bulk([("TIME",)] + [("ZSCORE", keys.AGENTS, node.key) for node in wanted])
        pairs = [(node, score) for node, score in zip(wanted, scores) if score is not None]
    now = to_milliseconds(time)
    numbers = [(node, float(score)) for node, score in pairs if node is not None]
    seen = sorted((node, int(at)) for node, at in numbers if math.isfinite(at))
    requests = [("HMGET", keys.agent_hash(node), *fields) for node, _ in seen] if fields else []
    known: List[List[Optional[bytes]]] = connection.bulk(requests) or [[] for _ in seen]
    out = []
    parsed: Dict[Optional[bytes], Tuple[str, ...]] = {}  # thousands of nodes have the same few sets
    for (node, last_seen), values in zip(seen, known):
        facts: Dict[str, Any] = {}
        for name, value in zip(fields, values):
            if name == "stopped":
                stopped = wire.milliseconds(value or b"")
                facts[name] = stopped if stopped >= last_seen else 0
            elif name not in ("roles", "claims"):
                facts[name] = value.decode("utf-8", "replace") if value else ""
            elif value in parsed:
                facts[name] = parsed[value]
            else:
                facts[name] = parsed[value] = parse_names(value)
        out.append(Node(node.gid, node.nid, last_seen=last_seen, age=max(0.0, (now - last_seen) / 1000), **facts))
    return out


def load_revoked(connection: Connection, nodes: Sequence[NodeId]) -> Dict[NodeId, int]:
    """Return the nodes that were revoked and not enrolled since, with the time (ms since 1970).

    The result is empty where this user of Redis has no right to read it.
    """
    try:
        answers = connection.bulk([("GET", keys.revoked_key(node)) for node in nodes])
    except RedisUnavailableError as e:
        if e.transient:
            raise
        return {}
    return {node: wire.milliseconds(raw) for node, raw in zip(nodes, answers) if raw is not None}


def explain_unknown(nodes: Sequence[NodeId], revoked: Mapping[NodeId, int]) -> str:
    """Return one sentence that says why these nodes are unknown: never seen, or revoked (time in ms since 1970)."""
    never_seen = [node for node in nodes if node not in revoked]
    were_revoked = [node for node in nodes if node in revoked]
    parts = []
    if never_seen:
        verb = "was" if len(never_seen) == 1 else "were"
        parts.append(f"{join_names(never_seen, _MAX_LISTED)} {verb} never seen by a controller")
    for node in were_revoked[:_MAX_LISTED]:
        parts.append(
            f"{node} was revoked at {format_time(revoked[node])}: enrol it again with jsacc enroll {node.gid} {node.nid}"
        )
    if len(were_revoked) > _MAX_LISTED:
        parts.append(f"and {len(were_revoked) - _MAX_LISTED} more were revoked")
    return "; ".join(parts)


def join_names(nodes: Sequence[object], most: int = 12) -> str:
    """Return a list for a sentence, at most `most` items long: `1.10, 1.11, 1.12 and 7 more`."""
    listed = ", ".join(str(n) for n in nodes[:most])
    return listed if len(nodes) <= most else f"{listed} and {len(nodes) - most} more"


def format_time(ms: float) -> str:
    """Return milliseconds since 1970 as local date and time, `-` for 0, the number when no calendar has it."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ms / 1000)) if ms else "-"
    except (OverflowError, ValueError, OSError):
        return str(ms)


def format_duration(seconds: float) -> str:
    """Return a duration for a sentence, in its largest fitting unit: `5 s`, `3 min`, `2 h`, `4 days`."""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{int(max(seconds, 0) // unit)} {name}"
    return f"{int(seconds // 86400)} days"


def format_age(seconds: float) -> str:
    """Return a duration for a table, in its largest fitting unit: `5s`, `3m`, `2h`, `4d`."""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "m"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{int(max(seconds, 0) // unit)}{name}"
    return f"{int(seconds // 86400)}d"
