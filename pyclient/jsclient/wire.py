"""JSON of commands, records and jobs as Redis holds it. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple, Union

from .errors import ResultDecodeError, UsageError
from .keys import FINAL_STATES, WATCHING, NodeId, new_id
from .result import Result
from .values import MAX_NESTING, integer, load_json, too_deep

# One encoder for all calls: `json.dumps` with options builds a new one for each.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def dumps(value: object) -> str:
    """Return a value as compact JSON; raise `UsageError` when it is not UTF-8 text, too deep, or no JSON value."""
    try:
        encoded = _encode(value)
        if not encoded.isascii():
            encoded.encode("utf-8")
        if too_deep(encoded):
            raise RecursionError
    except UnicodeEncodeError:
        raise UsageError("args and data must be text that UTF-8 can hold") from None
    except RecursionError:
        raise UsageError(f"args and data must not be nested deeper than {MAX_NESTING} levels") from None
    except (TypeError, ValueError) as e:
        raise UsageError(f"args and data must be what JSON can hold: {e}") from None
    return encoded


def text(value: object) -> str:
    """Return an answer of Redis as text; `None` is empty, undecodable bytes become U+FFFD."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return "" if value is None else str(value)


@dataclass
class Command:
    """A command with its target."""

    cmd: str
    gid: int = 0
    nid: int = 0
    args: Mapping[str, Any] = field(default_factory=dict)
    data: Union[str, Mapping[str, Any]] = ""
    roles: Sequence[str] = ()
    fanout: bool = False
    tags: str = ""
    expires: int = 0
    id: str = field(default_factory=new_id)
    by: str = ""
    user: str = ""
    created: int = 0
    #: For read-only commands: kept out of the history and the audit list.
    quiet: bool = False
    #: Instead of `nid` and `roles`: each of these nodes, at most 10,000.
    nodes: Sequence[NodeId] = ()

    @property
    def opens_watch(self) -> bool:
        """Return whether nodes send live output for this command."""
        return self.cmd in WATCHING or self.args.get("stream") is True

    def to_json(self) -> str:
        """Return the JSON for the queue; raise `UsageError` without a name or a target."""
        if self.nid <= 0 and not self.roles and not self.nodes:
            raise UsageError("a command needs a target: gid and nid, nodes, or roles")
        if not isinstance(self.cmd, str) or not self.cmd:
            raise UsageError("a command needs a name")
        fields: Dict[str, Any] = {
            "id": self.id,
            "gid": self.gid,
            "nid": self.nid,
            "cmd": self.cmd,
            "args": self.args,
            "data": self.data,
            "roles": self.roles,
            "fanout": self.fanout,
            "tags": self.tags,
            "expires": self.expires,
        }
        if self.nodes:
            fields["nodes"] = [list(node) for node in self.nodes]
        if self.by:
            fields["by"] = self.by
        if self.user:
            fields["user"] = self.user
        if self.created:
            fields["created"] = self.created
        if self.quiet:
            fields["quiet"] = True
        return dumps(fields)

@dataclass(frozen=True)
class Record:
    """One message of a job, as a node stored it. `epoch` is in milliseconds since 1970, `level` from 1 to 30."""

    id: int
    jobid: str
    jobdomain: str
    jobname: str
    epoch: int
    level: int
    data: str
    gid: int = 0
    nid: int = 0

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], node: Optional[NodeId] = None) -> Record:
        """Return the record from an object of `get_msgs` or of a log list; missing fields are empty or 0."""
        return cls(
            id=integer(raw.get("id")),
            jobid=str(raw.get("jobid", "")),
            jobdomain=str(raw.get("jobdomain", "")),
            jobname=str(raw.get("jobname", "")),
            epoch=integer(raw.get("epoch")),
            level=integer(raw.get("level")),
            data=str(raw.get("data", "")),
            gid=integer(raw.get("gid")) or (node.gid if node else 0),
            nid=integer(raw.get("nid")) or (node.nid if node else 0),
        )

    @property
    def node(self) -> NodeId:
        """Return the node that stored the record."""
        return NodeId(self.gid, self.nid)


@dataclass
class JobInfo:
    """The state of a job from its hash in Redis."""

    id: str
    command: Dict[str, Any]
    created: int
    targets: Optional[List[NodeId]]
    states: Dict[NodeId, str]
    results: Dict[NodeId, Result]

    @classmethod
    def from_hash(cls, job_id: str, raw: Mapping[bytes, bytes]) -> JobInfo:
        """Parse the hash `jsacc:job:<id>`; unknown and malformed fields are ignored."""
        info = cls(id=job_id, command={}, created=0, targets=None, states={}, results={})
        for name, value in raw.items():
            if name == b"cmd":
                info.command = _command(value)
            elif name == b"created":
                info.created = milliseconds(value)
            elif name == b"targets":
                info.targets = parse_targets(value)
            else:
                node = NodeId.from_key(name)
                if node is None:
                    continue
                state, result = parse_entry(value, node)
                if state is not None:
                    info.states[node] = state
                if result is not None:
                    info.results[node] = result
        return info

    @property
    def state(self) -> str:
        """Return one state for all nodes: `RUNNING` or `QUEUED` while one is open, else the worst final state."""
        states = set(self.states.values())
        for word in ("RUNNING", "QUEUED", "ERROR", "TIMEOUT", "KILLED", "OK"):
            if word in states:
                return word
        return "QUEUED" if self.targets is None or self.targets else "ERROR"

    @property
    def open(self) -> List[NodeId]:
        """Return the nodes without a final result."""
        return [n for n in (self.targets or self.states) if self.states.get(n) not in FINAL_STATES]


def parse_entry(raw: bytes, node: NodeId) -> Tuple[Optional[str], Optional[Result]]:
    """Return the state of a node and its final result from its field in a job hash; `None` for what is not there."""
    try:
        value = load_json(raw)
    except ValueError:
        return None, None
    if not isinstance(value, dict):
        return None, None
    state = str(value.get("state", ""))
    # A controller of 0.1.0 does not name the node of a fanout that it answers for.
    is_final = value.get("state") in FINAL_STATES
    return state, Result.from_dict({**value, "gid": node.gid, "nid": node.nid}) if is_final else None


def parse_targets(raw: Union[str, bytes]) -> Optional[List[NodeId]]:
    """Parse the field `targets` of a job hash; `None` when it is malformed."""
    try:
        value = load_json(raw)
    except ValueError:
        return None
    if not isinstance(value, list):
        return None
    return [node for node in (NodeId.from_key(str(item)) for item in value) if node is not None]


def _command(raw: bytes) -> Dict[str, Any]:
    # A controller may store the whole command, or its name alone.
    try:
        value = load_json(raw)
    except ValueError:
        return {"cmd": text(raw)}
    return value if isinstance(value, dict) else {"cmd": str(value)}


def milliseconds(raw: bytes) -> int:
    """Parse a time (ms since 1970); 0 when it is malformed."""
    try:
        return int(float(raw))
    except (ValueError, OverflowError):
        return 0


def scored(answer: Sequence[Any]) -> List[Tuple[Any, float]]:
    """Return the members and scores of a sorted set, from a flat list (RESP 2) or pairs (RESP 3)."""
    if answer and isinstance(answer[0], (list, tuple)):
        return [(member, float(score)) for member, score in answer]
    return [(answer[i], float(answer[i + 1])) for i in range(0, len(answer), 2)]


def pairs(raw: Any) -> Iterable[Tuple[bytes, bytes]]:
    """Return the fields and values of a hash, from a mapping of redis-py or a flat list of `bulk`."""
    if isinstance(raw, Mapping):
        return list(raw.items())
    return list(zip(raw[::2], raw[1::2])) if raw else []


def parse_list(items: Iterable[bytes]) -> List[Dict[str, Any]]:
    """Parse the entries of a JSON list (events, audit, rejected); an entry that is no object becomes `{"text": …}`."""
    out: List[Dict[str, Any]] = []
    for item in items:
        try:
            value = load_json(item)
        except ValueError:
            value = None
        out.append(value if isinstance(value, dict) else {"text": text(item)})
    return out


def as_dict(value: Any) -> Dict[str, Any]:
    """Return the object that a node answered; raise `ResultDecodeError` for any other value."""
    if not isinstance(value, dict):
        raise ResultDecodeError(f"the node answered not an object but {type(value).__name__}")
    return value


def as_list(value: Any) -> List[Dict[str, Any]]:
    """Return the list of objects that a node answered; raise `ResultDecodeError` for any other value."""
    if not isinstance(value, list):
        raise ResultDecodeError(f"the node answered not a list but {type(value).__name__}")
    if not all(isinstance(item, dict) for item in value):
        raise ResultDecodeError("the node answered a list with items that are not objects")
    return value
