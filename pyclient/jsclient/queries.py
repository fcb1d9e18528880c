"""Queries that Redis answers without any node: nodes, series, jobs, events, the audit list, stored scripts."""

from __future__ import annotations

import re
from typing import Any, Dict, List, Sequence, Tuple

from . import keys, wire
from ._session import Session, TargetLike
from .errors import NoMatchingNodesError, RedisUnavailableError, UsageError
from .grants import Grant, load_granted_nodes, load_grants
from .keys import NodeId
from .nodes import Node, load_nodes
from .target import parse_target
from .values import load_json
from .wire import JobInfo, Record

#: The prefix of a generated id (`keys.new_id`) that may stand for it.
_ID_PREFIX = re.compile(r"[0-9a-f]{6,31}\Z")
_GENERATED_ID = re.compile(r"[0-9a-f]{32}\Z")
# Clients of 0.1.0 left out the random part.
_MEMBER_ID = re.compile(r"(?P<fleet>.+?)\.(?P<gid>[0-9]+)\.(?P<nid>[0-9]+)(\.[0-9a-f]{16})?\Z")


class Queries(Session):
    """The methods of the client that only read Redis."""

    def stats(self, gid: int, nid: int) -> Dict[str, Tuple[float, int]]:
        """Return for each series of a node its latest value and the time of it (seconds since 1970), sorted by name."""
        out: Dict[str, Tuple[float, int]] = {}
        for name, raw in wire.pairs(self.connection.read("HGETALL", keys.stats_hash(NodeId(gid, nid)))):
            try:
                value, at = load_json(raw)
                if float(at) < 2**63:
                    out[wire.text(name)] = (float(value), int(at))
            except (ValueError, TypeError, OverflowError):
                continue
        return dict(sorted(out.items()))

    def nodes(self) -> List[Node]:
        """Return every node that the controllers know, sorted by grid and node id."""
        return load_nodes(self.connection)

    def node(self, gid: int, nid: int) -> Node:
        """Return one node; raise `NoMatchingNodesError` when no controller has seen it."""
        node = NodeId(gid, nid)
        found = load_nodes(self.connection, [node])
        if not found:
            raise NoMatchingNodesError(f"node {self._explain_unknown(node)}")
        return found[0]

    def grants(self, target: TargetLike = "all") -> List[Grant]:
        """Return the grants of the nodes of a target, and their claims without a grant.

        `all` includes nodes with grants that no controller has seen.
        """
        parsed = parse_target(target)
        known = load_nodes(self.connection, parsed.nodes if parsed.explicit else None, ("roles", "claims"))
        more = load_granted_nodes(self.connection) if not parsed.explicit else parsed.nodes
        return load_grants(
            self.connection, [n for n in known if parsed.matches(n)], [n for n in more if parsed.matches(Node(*n))]
        )

    def jobs(self, limit: int = 100) -> List[JobInfo]:
        """Return the last jobs, newest first, without those whose hash has expired."""
        ids = [wire.text(raw) for raw in self.connection.read("LRANGE", keys.JOBS, 0, max(limit, 1) - 1)]
        hashes = self.connection.bulk([("HGETALL", keys.job_hash(job_id)) for job_id in ids])
        return [JobInfo.from_hash(i, dict(wire.pairs(raw))) for i, raw in zip(ids, hashes) if raw]

    def sent_commands(self, ids: Sequence[str]) -> Dict[str, Dict[str, Any]]:
        """Return by job id the command as it was sent, without jobs whose hash has expired."""
        raw = self.connection.bulk([("HMGET", keys.job_hash(job_id), "cmd") for job_id in ids])
        found = ((i, JobInfo.from_hash(i, {b"cmd": cmd}).command) for i, [cmd] in zip(ids, raw) if cmd)
        return {i: command for i, command in found if command}

    def member_ids(self, fleet_id: str) -> List[str]:
        """Return the job ids of a fleet that was sent as one job for each node, or the id itself for a single job."""
        if self.connection.read("EXISTS", keys.job_hash(keys.check_id(fleet_id))):
            return [fleet_id]
        prefix = fleet_id + "."
        ids = (wire.text(raw) for raw in self.connection.read("LRANGE", keys.JOBS, 0, -1))
        return sorted({i for i in ids if i.startswith(prefix)}, key=_node_order)

    def ids_by_node(self, fleet_id: str) -> Dict[NodeId, str]:
        """Return by node the job id of a fleet that was sent as one job for each node; empty for a single job."""
        found = {i: _MEMBER_ID.match(i) for i in self.member_ids(fleet_id) if i != fleet_id}
        return {NodeId(int(match["gid"]), int(match["nid"])): i for i, match in found.items() if match}

    def resolve_id(self, prefix: str) -> str:
        """Return the generated id of the one job or fleet that begins with `prefix`, else `prefix` itself.

        A prefix is 6 to 31 hexadecimal digits. An id that a caller chose is always complete, also when Redis does not
        know it: `nightly` never stands for `nightly-2`. Raise `UsageError` when several ids begin with the prefix.
        """
        if not _ID_PREFIX.match(keys.check_id(prefix)) or self.connection.read("EXISTS", keys.job_hash(prefix)):
            return prefix
        ids = {_fleet_id_of(wire.text(raw)) for raw in self.connection.read("LRANGE", keys.JOBS, 0, -1)}
        found = {i for i in ids if i.startswith(prefix) and _GENERATED_ID.match(i)}
        if prefix in ids or not found:
            return prefix
        if len(found) > 1:
            some = ", ".join(sorted(found)[:3]) + (", …" if len(found) > 3 else "")
            raise UsageError(f"{prefix} is ambiguous: {len(found)} jobs begin with it ({some})")
        return found.pop()

    def events(self, limit: int = 100) -> List[Dict[str, Any]]:
        """Return the last events, newest first."""
        return wire.parse_list(self.connection.read("LRANGE", keys.EVENTS, 0, max(limit, 1) - 1))

    def rejected(self, limit: int = 100) -> List[Dict[str, Any]]:
        """Return the last malformed commands with the reason, newest first."""
        return wire.parse_list(self.connection.read("LRANGE", keys.REJECTED, 0, max(limit, 1) - 1))

    def audit(self, limit: int = 100) -> List[Dict[str, Any]]:
        """Return the last commands with the name of their sender, newest first; `results` counts the final states."""
        entries = wire.parse_list(self.connection.read("LRANGE", keys.AUDIT, 0, max(limit, 1) - 1))
        states = sorted(keys.FINAL_STATES)
        fields = [f"{e.get('id')} {state}" for e in entries for state in states]
        counts = self.connection.read("HMGET", keys.AUDIT_RESULTS, *fields) if fields else []
        for i, entry in enumerate(entries):
            own = counts[i * len(states) : (i + 1) * len(states)]
            entry["results"] = {s: int(n) for s, n in zip(states, own) if n is not None}
        return entries

    def forwarded(self, domain: str, name: str, limit: int = 100) -> List[Record]:
        """Return the last records that agents forwarded for a domain and a name, newest first."""
        raws = self.connection.read("LRANGE", keys.log_list(domain, name), 0, max(limit, 1) - 1)
        return [Record.from_dict(raw) for raw in wire.parse_list(raws)]

    def scripts(self) -> List[Dict[str, Any]]:
        """Return for each stored script `hash`, `size` (bytes), `expires` (seconds), `first` (its first line of code).

        `first` is empty where this user of Redis may not read the source.
        """
        script_keys = self.connection.scan(keys.SCRIPT_PREFIX + "*")
        out = []
        answers = self.connection.bulk([c for key in script_keys for c in (("STRLEN", key), ("TTL", key))])
        try:
            heads = self.connection.bulk([("GETRANGE", key, 0, 199) for key in script_keys])
        except RedisUnavailableError as e:
            if e.transient:
                raise
            heads = [b""] * len(script_keys)
        for i, key in enumerate(script_keys):
            (size, ttl), head = answers[i * 2 : i * 2 + 2], heads[i]
            if size:
                lines = [line.strip() for line in wire.text(head).splitlines()]
                first = next((line for line in lines if line and not line.startswith(("#!", "from __future__"))), "")
                sha256 = wire.text(key)[len(keys.SCRIPT_PREFIX) :]
                out.append({"hash": sha256, "size": size, "expires": ttl, "first": first})
        return out


def _fleet_id_of(job_id: str) -> str:
    """Return the fleet id of a job `<fleet>.<gid>.<nid>.<random>`, else the id itself."""
    member = _MEMBER_ID.match(job_id)
    return member.group("fleet") if member else job_id


def _node_order(job_id: str) -> Tuple[int, ...]:
    member = _MEMBER_ID.match(job_id)
    return (int(member.group("gid")), int(member.group("nid"))) if member else (0, 0)
