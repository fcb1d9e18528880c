"""What nodes were granted: roles, labels and host names, and what they claim beyond that.

A node says of itself which roles, labels and host name it has. Controllers use only those that were granted when it
was enrolled and first started, or by `Client.grant` since.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Mapping, Sequence, Set, Tuple, Union

from . import wire
from .errors import UsageError
from .link import Link
from .nodes import Node, now_ms, parse_names
from .values import load_json
from .wire import NodeId

if TYPE_CHECKING:
    from .client import Client

_NAME = r"[A-Za-z0-9._:/-]{1,64}"
_HOST = r"[A-Za-z0-9._-]{1,253}"
#: A field of `jsacc:grant:<gid>:<nid>`.
_FIELD = re.compile(rf"(?:role:{_NAME}|label:{_NAME}={_NAME}|host:{_HOST})\Z")
_KINDS = ("role", "label", "host")
_FORMS = {"role": "1 to 64 of A-Z a-z 0-9 . _ : / -", "label": "KEY=VALUE, each 1 to 64 of A-Z a-z 0-9 . _ : / -",
          "host": "1 to 253 of A-Z a-z 0-9 . _ -"}
HOW_TO_CLAIM = "name it in roles of the node's agent.toml and restart the agent"
#: Most grants of one call for one node.
MOST = 100
#: The audit list names so many nodes of a command, as the controllers do.
MOST_LISTED = 100


@dataclass(frozen=True)
class Grant:
    """One role, label or host name of a node: granted, or only claimed."""

    node: NodeId
    #: `role`, `label` or `host`.
    kind: str
    #: `web`, `site=ams`, `web1.example`.
    name: str
    #: False: the node claims it, and controllers do not use it.
    granted: bool
    #: Who granted it; self-declared: nothing checks it. Empty for a claim.
    by: str = ""
    #: When it was granted, in milliseconds since 1970; 0 for a claim.
    at: int = 0

    @property
    def field(self) -> str:
        """`role:web`, `label:site=ams`, `host:web1.example`."""
        return f"{self.kind}:{self.name}"

    def to_dict(self) -> Dict[str, Any]:
        """As `jsctl grants --json` prints it."""
        return {
            "node": str(self.node), "gid": self.node.gid, "nid": self.node.nid, "kind": self.kind, "name": self.name,
            "granted": self.granted, "by": self.by, "at": self.at,
        }


def fields(
    roles: Iterable[str] = (), labels: Union[Mapping[str, str], Iterable[str]] = (), hosts: Iterable[str] = ()
) -> List[str]:
    """The fields of a grant, each once; a `UsageError` says what cannot be granted."""
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
    if len(found) > MOST:
        raise UsageError(f"{len(found)} are too many at a time; the most is {MOST}")
    return found


def read(node: NodeId, hash_: Iterable[Tuple[bytes, bytes]], claims: Iterable[str] = ()) -> List[Grant]:
    """The grants of a node as its hash holds them, and those of its claims that are not among them."""
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
        out.append(Grant(node, kind, what, field in granted, str(value.get("by", "")), wire.integer(value.get("at"))))
    return sorted(out, key=lambda grant: (not grant.granted, _KINDS.index(grant.kind), grant.name))


def load(link: Link, known: Sequence[Node], more: Iterable[NodeId] = ()) -> List[Grant]:
    """The grants of these nodes and what they claim beyond; of `more` only the grants."""
    claims = {node.id: node.claims for node in known}
    ids = sorted({*claims, *more})
    hashes = link.bulk([("HGETALL", wire.grant_hash(node)) for node in ids])
    return [grant for node, raw in zip(ids, hashes) for grant in read(node, wire.pairs(raw), claims.get(node, ()))]


def claimed(link: Link, nodes: Sequence[NodeId]) -> Dict[NodeId, Set[str]]:
    """The claims of each of these nodes, granted or not; nodes that were never seen are left out."""
    out = {}
    for node, raw in zip(nodes, link.bulk([("HGETALL", wire.agent_hash(node)) for node in nodes])):
        facts = {wire.text(name): value for name, value in wire.pairs(raw)}
        if facts:
            fields = {*parse_names(facts.get("claims")), *(f"role:{r}" for r in parse_names(facts.get("roles")))}
            fields.add(f"host:{wire.text(facts.get('hostname'))}")
            fields.update(f"label:{name[6:]}={wire.text(v)}" for name, v in facts.items() if name.startswith("label."))
            out[node] = fields
    return out


def granted_nodes(link: Link) -> List[NodeId]:
    """All nodes that were granted anything, those included that were never seen."""
    found = (NodeId.from_key(wire.text(key)[len(wire.GRANT_PREFIX) :]) for key in link.scan(wire.GRANT_PREFIX + "*"))
    return [node for node in found if node is not None]


def write(client: Client, nodes: Sequence[NodeId], what: Sequence[str], remove: bool) -> Dict[NodeId, List[str]]:
    """Grants these fields to nodes, or takes them back; for each node those that were changed by that."""
    link, by = client.link, client.by
    now = now_ms(link.call("TIME"))
    asked: List[Tuple[object, ...]]
    if remove:
        asked = [("HDEL", wire.grant_hash(node), field) for node in nodes for field in what]
    else:
        value = wire.dumps({"by": by, "at": now})
        # What was granted before keeps who granted it.
        asked = [("HSETNX", wire.grant_hash(node), field, value) for node in nodes for field in what]
    entry = {
        "time": now, "id": wire.new_id(), "by": by, "user": client.user, "cmd": "grant",
        "args": {"remove": list(what)} if remove else {"add": list(what)},
        "targets": [node.key for node in nodes[:MOST_LISTED]], "count": len(nodes),
    }
    # First of all, so that nothing is granted by somebody who may not leave a trace.
    link.call("LPUSH", wire.AUDIT, wire.dumps(entry))
    answers = iter(link.bulk(asked))
    return {node: [field for field in what if next(answers)] for node in nodes}
