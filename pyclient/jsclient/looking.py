"""What can be seen without asking a node: nodes, series, jobs, events, the audit list, stored scripts."""

from __future__ import annotations

import re
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

from . import grants as grants_
from . import nodes as nodes_
from . import target, wire
from .errors import Gone, NobodyMatched, Unavailable, UsageError
from .grants import Grant
from .link import Link
from .nodes import Node
from .target import Target
from .values import load_json
from .wire import JobInfo, NodeId, Record

#: What may stand for an id that was made here (`wire.new_id`): its beginning, long enough to mean it.
_BEGINNING = re.compile(r"[0-9a-f]{6,31}\Z")
_MADE = re.compile(r"[0-9a-f]{32}\Z")
# Clients of 0.1.0 left out the random part.
_PART = re.compile(r"(?P<fleet>.+?)\.(?P<gid>[0-9]+)\.(?P<nid>[0-9]+)(\.[0-9a-f]{16})?\Z")


class Looking:
    """The part of the client that only reads Redis."""

    link: Link

    def stats(self, gid: int, nid: int) -> Dict[str, Tuple[float, int]]:
        """The latest value of each series of a node, and when it came (seconds since 1970)."""
        out: Dict[str, Tuple[float, int]] = {}
        for name, raw in wire.pairs(self.link.read("HGETALL", wire.stats_hash(NodeId(gid, nid)))):
            try:
                value, at = load_json(raw)
                if float(at) < 2**63:
                    out[wire.text(name)] = (float(value), int(at))
            except (ValueError, TypeError, OverflowError):
                continue
        return dict(sorted(out.items()))

    def nodes(self) -> List[Node]:
        """Every node that the controllers know, ordered."""
        return nodes_.load(self.link)

    def node(self, gid: int, nid: int) -> Node:
        """One node; `NobodyMatched` when it was never seen."""
        found = nodes_.load(self.link, [NodeId(gid, nid)])
        if not found:
            node = NodeId(gid, nid)
            raise NobodyMatched(f"node {nodes_.unknown([node], nodes_.revoked(self.link, [node]))}")
        return found[0]

    def grants(self, who: Union[str, NodeId, Target] = "all") -> List[Grant]:
        """What the nodes of a target were granted, and what they claim beyond that.

        `all` includes nodes that were granted something before they were seen for the first time.
        """
        who = target.parse(who)
        known = nodes_.load(self.link, who.nodes if who.named else None, ("roles", "claims"))
        more = grants_.granted_nodes(self.link) if not who.named else who.nodes
        return grants_.load(self.link, [n for n in known if who.means(n)], [n for n in more if who.means(Node(*n))])

    def job_info(self, job_id: str) -> JobInfo:
        """What Redis knows of a job; `Gone` when that is nothing (any more)."""
        found = self._info(wire.check_id(job_id))
        if found is None:
            raise Gone(f"no job {job_id}: it was never sent, or is older than a day")
        return found

    def jobs(self, limit: int = 100) -> List[JobInfo]:
        """The last jobs, newest first; those whose hash is gone are left out."""
        ids = [wire.text(raw) for raw in self.link.read("LRANGE", wire.JOBS, 0, max(limit, 1) - 1)]
        hashes = self.link.bulk([("HGETALL", wire.job_hash(job_id)) for job_id in ids])
        return [JobInfo.from_hash(i, dict(wire.pairs(raw))) for i, raw in zip(ids, hashes) if raw]

    def asked(self, ids: Sequence[str]) -> Dict[str, Dict[str, Any]]:
        """The commands of these jobs, as they were sent; those whose hash is gone are left out."""
        raw = self.link.bulk([("HMGET", wire.job_hash(job_id), "cmd") for job_id in ids])
        found = ((i, JobInfo.from_hash(i, {b"cmd": cmd}).command) for i, [cmd] in zip(ids, raw) if cmd)
        return {i: command for i, command in found if command}

    def parts(self, fleet_id: str) -> List[str]:
        """The ids of the jobs of a fleet that was sent as many jobs, or the id itself."""
        if self.link.read("EXISTS", wire.job_hash(wire.check_id(fleet_id))):
            return [fleet_id]
        mark = fleet_id + "."
        ids = (wire.text(raw) for raw in self.link.read("LRANGE", wire.JOBS, 0, -1))
        return sorted({i for i in ids if i.startswith(mark)}, key=_by_node)

    def ids_on_nodes(self, fleet_id: str) -> Dict[NodeId, str]:
        """Of a fleet that was sent as many jobs, the id of each node's; empty for a single job."""
        found = {part: _PART.match(part) for part in self.parts(fleet_id) if part != fleet_id}
        return {NodeId(int(match["gid"]), int(match["nid"])): part for part, match in found.items() if match}

    def whole_id(self, beginning: str) -> str:
        """The id of the one job, or fleet of jobs, whose id begins so; with no such job, what was given.

        `UsageError` when several do. Only ids that were made here (32 hexadecimal digits) may be given by their
        first 6 digits or more. An id that somebody chose is whole, also when Redis does not know it (any more):
        `nightly` never stands for `nightly-2`.
        """
        if not _BEGINNING.match(wire.check_id(beginning)) or self.link.read("EXISTS", wire.job_hash(beginning)):
            return beginning
        ids = {_stem(wire.text(raw)) for raw in self.link.read("LRANGE", wire.JOBS, 0, -1)}
        found = {i for i in ids if i.startswith(beginning) and _MADE.match(i)}
        if beginning in ids or not found:
            return beginning
        if len(found) > 1:
            some = ", ".join(sorted(found)[:3])
            raise UsageError(f"{beginning} is how {len(found)} jobs begin ({some}{', …' if len(found) > 3 else ''})")
        return found.pop()

    def events(self, limit: int = 100) -> List[Dict[str, Any]]:
        """The last events, newest first."""
        return wire.parse_list(self.link.read("LRANGE", wire.EVENTS, 0, max(limit, 1) - 1))

    def rejected(self, limit: int = 100) -> List[Dict[str, Any]]:
        """What was no command, with the reason, newest first."""
        return wire.parse_list(self.link.read("LRANGE", wire.REJECTED, 0, max(limit, 1) - 1))

    def audit(self, limit: int = 100) -> List[Dict[str, Any]]:
        """Who asked for what, newest first; `results` counts how it ended."""
        entries = wire.parse_list(self.link.read("LRANGE", wire.AUDIT, 0, max(limit, 1) - 1))
        states = sorted(wire.FINAL_STATES)
        fields = [f"{e.get('id')} {state}" for e in entries for state in states]
        counts = self.link.read("HMGET", wire.AUDIT_RESULTS, *fields) if fields else []
        for i, entry in enumerate(entries):
            mine = counts[i * len(states) : (i + 1) * len(states)]
            entry["results"] = {s: int(n) for s, n in zip(states, mine) if n is not None}
        return entries

    def forwarded(self, domain: str, name: str, limit: int = 100) -> List[Record]:
        """The last records that agents forwarded for a domain and a name, newest first."""
        raws = self.link.read("LRANGE", wire.log_list(domain, name), 0, max(limit, 1) - 1)
        return [Record.from_dict(raw) for raw in wire.parse_list(raws)]

    def scripts(self) -> List[Dict[str, Any]]:
        """The stored scripts: `hash`, `size`, `expires` (seconds), `first` (its first line, where we may read it)."""
        keys = self.link.scan(wire.SCRIPT_PREFIX + "*")
        out = []
        answers = self.link.bulk([c for key in keys for c in (("STRLEN", key), ("TTL", key))])
        try:
            heads = self.link.bulk([("GETRANGE", key, 0, 199) for key in keys])
        except Unavailable as e:
            if e.passing:
                raise
            heads = [b""] * len(keys)  # the smallest rights do not reach what others have stored
        for i, key in enumerate(keys):
            (size, ttl), head = answers[i * 2 : i * 2 + 2], heads[i]
            if size:
                lines = [line.strip() for line in wire.text(head).splitlines()]
                first = next((line for line in lines if line and not line.startswith(("#!", "from __future__"))), "")
                out.append({"hash": wire.text(key)[len(wire.SCRIPT_PREFIX) :], "size": size, "expires": ttl,
                            "first": first})
        return out

    def _info(self, job_id: str) -> Optional[JobInfo]:
        pairs = dict(wire.pairs(self.link.read("HGETALL", wire.job_hash(job_id))))
        return JobInfo.from_hash(job_id, pairs) if pairs else None


def _stem(job_id: str) -> str:
    """The id of the fleet that a job `<fleet>.<gid>.<nid>.<random>` is part of, else its own."""
    part = _PART.match(job_id)
    return part.group("fleet") if part else job_id


def _by_node(job_id: str) -> Tuple[int, ...]:
    part = _PART.match(job_id)
    return (int(part.group("gid")), int(part.group("nid"))) if part else (0, 0)
