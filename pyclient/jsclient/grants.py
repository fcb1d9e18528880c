"""Grants of nodes (roles, labels, host names), and their claims without a grant.

A node claims roles, labels and a host name. Controllers use only those that were granted at its enrolment and first
start, or by `Client.grant` since.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Mapping, Sequence, Set, Tuple, Union

from . import keys, wire
from ._connection import Connection
from ._session import Session
from .errors import UsageError
from .keys import NodeId
from .nodes import Node, parse_names, to_milliseconds
from .values import integer, load_json

_NAME = r"[A-Za-z0-9._:/-]{1,64}"
_HOST = r"[A-Za-z0-9._-]{1,253}"
#: A field of `jsacc:grant:<gid>:<nid>`.
_FIELD = re.compile(rf"(?:role:{_NAME}|label:{_NAME}={_NAME}|host:{_HOST})\Z")
_KINDS = ("role", "label", "host")
_FORMS = {"role": "1 to 64 of A-Z a-z 0-9 . _ : / -", "label": "KEY=VALUE, each 1 to 64 of A-Z a-z 0-9 . _ : / -",
          "host": "1 to 253 of A-Z a-z 0-9 . _ -"}
HOW_TO_CLAIM = "name it in roles of the node's agent.toml and restart the agent"
#: Most fields of one call.
MAX_GRANTS = 100
#: Most nodes that an entry of the audit list names.
MAX_AUDIT_TARGETS = 100


@dataclass(frozen=True)
class Grant:
    """One role, label or host name that a node was granted, or claims without a grant."""

    node: NodeId
    #: `role`, `label` or `host`.
    kind: str
    #: `web`, `site=ams`, `web1.example`.
    name: str
    #: False for a claim without a grant, which controllers do not use.
    granted: bool
    #: The self-declared name of the user who granted it; empty for a claim.
    by: str = ""
    #: The time of the grant, in milliseconds since 1970; 0 for a claim.
    at: int = 0

    @property
    def field(self) -> str:
        """Return the field in Redis: `role:web`, `label:site=ams`, `host:web1.example`."""
        return f"{self.kind}:{self.name}"

    def to_dict(self) -> Dict[str, Any]:
        """Return the object that `jsctl grants --json` prints."""
        return {
            "node": str(self.node), "gid": self.node.gid, "nid": self.node.nid, "kind": self.kind, "name": self.name,
            "granted": self.granted, "by": self.by, "at": self.at,
        }


def grant_fields(
    roles: Iterable[str] = (), labels: Union[Mapping[str, str], Iterable[str]] = (), hosts: Iterable[str] = ()
) -> List[str]:
    """Return the fields of a grant, each once; raise `UsageError` for none, more than 100, or an invalid name."""
    if isinstance(roles, str) or isinstance(labels, str) or isinstance(hosts, str):
        raise UsageError("roles, labels and hosts are lists, not one text")
    pairs = [f"{key}={value}" for key, value in labels.items()] if isinstance(labels, Mapping) else list(labels)
    found = [f"{kind}:{name}" for kind, names in (("role", roles), ("label", pairs), ("host", hosts)) for name in names]
    for field in found:
        if not _FIELD.match(field):
            kind, _, name = field.partition(":")
            raise UsageError(f"a {kind} is {_FORMS[kind]}, not {name!r}")
    found = list(dict.fromkeys(found))
    if not found:
        raise UsageError("say what is granted: a role, a label or a host")
    if len(found) > MAX_GRANTS:
        raise UsageError(f"{len(found)} are too many at a time; the most is {MAX_GRANTS}")
    return found


def parse_grants(node: NodeId, hash_: Iterable[Tuple[bytes, bytes]], claims: Iterable[str] = ()) -> List[Grant]:
    """Return the grants of a node from its hash, then its claims without a grant."""
    granted: Dict[str, Dict[str, Any]] = {}
    for name, raw in hash_:
        try:
            value = load_json(raw)
        except ValueError:
            value = None
        granted[wire.text(name)] = value if isinstance(value, dict) else {}
    out = []
    for field in filter(_FIELD.match, dict.fromkeys([*granted, *claims])):
        kind, _, what = field.partition(":")
        value = granted.get(field, {})
        out.append(Grant(node, kind, what, field in granted, str(value.get("by", "")), integer(value.get("at"))))
    return sorted(out, key=lambda grant: (not grant.granted, _KINDS.index(grant.kind), grant.name))


def load_grants(connection: Connection, known: Sequence[Node], more: Iterable[NodeId] = ()) -> List[Grant]:
    """Return the grants and the other claims of these nodes, and the grants of `more`, sorted by node."""
    claims = {node.id: node.claims for node in known}
    ids = sorted({*claims, *more})
    hashes = connection.bulk([("HGETALL", keys.grant_hash(node)) for node in ids])
    return [grant for node, raw in zip(ids, hashes) for grant in parse_grants(node, wire.pairs(raw), claims.get(node, ()))]


def load_claims(connection: Connection, nodes: Sequence[NodeId]) -> Dict[NodeId, Set[str]]:
    """Return by node the claims, granted or not, without nodes that were never seen."""
    out = {}
    for node, raw in zip(nodes, connection.bulk([("HGETALL", keys.agent_hash(node)) for node in nodes])):
        facts = {wire.text(name): value for name, value in wire.pairs(raw)}
        if facts:
            fields = {*parse_names(facts.get("claims")), *(f"role:{r}" for r in parse_names(facts.get("roles")))}
            fields.add(f"host:{wire.text(facts.get('hostname'))}")
            fields.update(f"label:{name[6:]}={wire.text(v)}" for name, v in facts.items() if name.startswith("label."))
            out[node] = fields
    return out


def load_granted_nodes(connection: Connection) -> List[NodeId]:
    """Return all nodes with grants, including those that were never seen."""
    found = (NodeId.from_key(wire.text(key)[len(keys.GRANT_PREFIX) :]) for key in connection.scan(keys.GRANT_PREFIX + "*"))
    return [node for node in found if node is not None]


def write_grants(
    client: Session, nodes: Sequence[NodeId], changes: Sequence[str], remove: bool
) -> Dict[NodeId, List[str]]:
    """Grant these fields to nodes, or take them back; return for each node the fields that this changed."""
    connection, by = client.connection, client.by
    now = to_milliseconds(connection.call("TIME"))
    requests: List[Tuple[object, ...]]
    if remove:
        requests = [("HDEL", keys.grant_hash(node), field) for node in nodes for field in changes]
    else:
        value = wire.dumps({"by": by, "at": now})
        # An existing grant keeps the name of its first user.
        requests = [("HSETNX", keys.grant_hash(node), field, value) for node in nodes for field in changes]
    entry = {
        "time": now, "id": keys.new_id(), "by": by, "user": client.user, "cmd": "grant",
        "args": {"remove": list(changes)} if remove else {"add": list(changes)},
        "targets": [node.key for node in nodes[:MAX_AUDIT_TARGETS]], "count": len(nodes),
    }
    # Before the grants, so that a user without the right to write the audit list changes nothing.
    connection.call("LPUSH", keys.AUDIT, wire.dumps(entry))
    answers = iter(connection.bulk(requests))
    return {node: [field for field in changes if next(answers)] for node in nodes}
