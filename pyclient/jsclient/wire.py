"""What lies in Redis: the names of the keys and the JSON of commands, results and records.

Nothing here talks to anybody, so a client of another kind (asyncio, say) can stand on this file alone.
"""

from __future__ import annotations

import builtins
import json
import os
import re
from dataclasses import dataclass, field
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

from .errors import JobFailed, Undecodable, UsageError
from .text import one_line
from .values import MAX_NESTING, decode, load_json, plain, too_deep

QUEUE = "cmds_queue"
JOBS = "jsacc:jobs"
AGENTS = "jsacc:agents"
CONTROLLERS = "jsacc:acs"
EVENTS = "jsacc:events"
REJECTED = "jsacc:rejected"
AUDIT = "jsacc:audit"
AUDIT_RESULTS = "jsacc:audit:results"
SCRIPT_PREFIX = "jsacc:script:"
GRANT_PREFIX = "jsacc:grant:"

#: A node is live when it was seen within so many seconds, late up to the second number, then gone.
LIVE_SECONDS = 90
LATE_SECONDS = 3600
#: A controller beats every 5 seconds; without a beat for so long it is gone.
BEAT_SECONDS = 15
#: A job's hash is kept for a day.
JOB_SECONDS = 86400
#: A script is kept for a week after its last use.
SCRIPT_SECONDS = 7 * 86400
#: Largest script or file that nodes fetch, in bytes.
MAX_SCRIPT = 16 * 1024 * 1024

FINAL_STATES = frozenset({"OK", "ERROR", "TIMEOUT", "KILLED"})

#: The arguments that every process-like command takes beside its own (contract 7).
COMMON_ARGS = frozenset(
    "domain name max_time max_restart recurring_period loglevels loglevels_db loglevels_ac stats_interval queue"
    " user stop_signal stop_timeout rlimits nice umask oom_score_adj secret workingdir env args".split()
)

_NODE_KEY = re.compile(r"([0-9]{1,10}):([0-9]{1,10})\Z")
_JOB_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}\Z")
_ROLE = re.compile(r"[A-Za-z0-9._:/-]{1,64}\Z")
# One encoder made once: `json.dumps` with options builds a new one for every call.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
#: The agent keeps so much of each stream of a job: its last lines, and at most so many bytes of them.
STREAM_LINES = 1000
STREAM_BYTES = 64 * 1024
#: And so many bytes of the last message of levels 20 to 23.
DATA_BYTES = 1024 * 1024


class NodeId(NamedTuple):
    """A node: grid and number. People write `1.10`, keys say `1:10`."""

    gid: int
    nid: int

    def __str__(self) -> str:
        return f"{self.gid}.{self.nid}"

    @property
    def key(self) -> str:
        """As it stands in keys and in `targets`."""
        return f"{self.gid}:{self.nid}"

    @classmethod
    def from_key(cls, text: Union[str, bytes]) -> Optional[NodeId]:
        """Reads `1:10`; nothing when it is no node."""
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        found = _NODE_KEY.match(text)
        return cls(int(found[1]), int(found[2])) if found else None


def result_list(job_id: str) -> str:
    """The list on which a job's results arrive."""
    return f"cmds_queue_{job_id}"


def job_hash(job_id: str) -> str:
    """The hash that says where a job stands."""
    return f"jsacc:job:{job_id}"


def agent_hash(node: NodeId) -> str:
    """What the controllers know of a node."""
    return f"jsacc:agent:{node.gid}:{node.nid}"


def stats_hash(node: NodeId) -> str:
    """A node's latest series."""
    return f"jsacc:stats:{node.gid}:{node.nid}"


def log_list(domain: str, name: str) -> str:
    """The list of the records that agents forwarded for a domain and a name."""
    clean = [re.sub(r"[^A-Za-z0-9_-]", "_", part) or "unknown" for part in (domain, name)]
    return f"log.{clean[0]}.{clean[1]}"


def grant_hash(node: NodeId) -> str:
    """What a node was granted of the roles, labels and host name that it claims."""
    return f"{GRANT_PREFIX}{node.key}"


def revoked_key(node: NodeId) -> str:
    """Since when (ms) a node is revoked, until it is enrolled again."""
    return f"jsacc:{{{node.key}}}:revoked"


def script_key(sha256: str) -> str:
    """A script's source, by its hash."""
    return SCRIPT_PREFIX + sha256


def new_id() -> str:
    """An id for a job: 32 hexadecimal digits, unique."""
    return os.urandom(16).hex()


def check_id(job_id: str) -> str:
    """The id itself, or a `UsageError`."""
    if not isinstance(job_id, str) or not is_id(job_id):
        raise UsageError(f"a job id is 1 to 128 of A-Z a-z 0-9 . _ : -, not {job_id!r}")
    return job_id


def is_id(text: str) -> bool:
    """Whether this can be the id of a job."""
    return bool(_JOB_ID.match(text))


def is_role(text: str) -> bool:
    """Whether this can be a role or a label: controllers and agents refuse any other."""
    return bool(_ROLE.match(text))


def dumps(value: object) -> str:
    """Compact JSON, as it is sent; a `UsageError` says why a value cannot be sent."""
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


def _at_the_limit(streams: Sequence[object], data: object) -> bool:
    """Whether a result looks as one that the agent has cut."""
    if any(isinstance(stream, str) and _stream_at_the_limit(stream) for stream in streams[:2]):
        return True
    return isinstance(data, str) and len(data) >= DATA_BYTES // 4 and len(data.encode("utf-8", "replace")) > DATA_BYTES - 4


def _stream_at_the_limit(text: str) -> bool:
    # The line that the cut hits goes as a whole, so less than the limit may be left.
    if len(text) > STREAM_BYTES // 8 and len(text.encode("utf-8", "replace")) > STREAM_BYTES // 2:
        return True
    return text.count("\n") >= STREAM_LINES - 1


def text(value: object) -> str:
    """What Redis answered, as text; never an error."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return "" if value is None else str(value)


@dataclass
class Command:
    """A command as it is pushed."""

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
    #: For commands that only look: kept out of the history and the audit list.
    quiet: bool = False
    #: Instead of `nid` and `roles`: each of these, at most 10,000.
    nodes: Sequence[NodeId] = ()

    def to_json(self) -> str:
        """The text that goes on the queue."""
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


def integer(value: object) -> int:
    """A whole number of a node as 64 bits hold it; 0 for everything else."""
    return int(value) if isinstance(value, int) and -(2**63) <= value < 2**63 else 0


def _counts(value: object) -> Optional[Tuple[int, int]]:
    if isinstance(value, list) and len(value) >= 2:
        return integer(value[0]), integer(value[1])
    return None


@dataclass
class Result:
    """How a job ended on one node."""

    id: str
    gid: int
    nid: int
    cmd: str
    args: Dict[str, Any]
    data: str
    level: int
    state: str
    code: int
    time: int
    starttime: int
    streams: Tuple[str, str]
    critical: str
    tags: str
    #: How many bytes it wrote to stdout and stderr; nothing from an agent that does not count them.
    bytes: Optional[Tuple[int, int]] = None
    #: Whether `streams` or `data` is not all of it. Of an agent that does not say so: whether they may be cut.
    truncated: bool = False

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Result:
        """Takes a result as it came; what is missing has its zero."""
        get = raw.get
        streams = get("streams")
        if not isinstance(streams, list) or len(streams) < 2:
            streams = ["", ""]
        data = get("data", "")
        args = get("args")
        truncated = get("truncated")
        if not isinstance(truncated, bool):
            truncated = _at_the_limit(streams, data)
        return cls(
            id=str(get("id", "")),
            gid=integer(get("gid")),
            nid=integer(get("nid")),
            cmd=str(get("cmd", "")),
            args=args if isinstance(args, dict) else {},
            data=data if isinstance(data, str) else _encode(plain(data)),
            level=integer(get("level")),
            state=str(get("state", "")),
            code=integer(get("code")),
            time=integer(get("time")),
            starttime=integer(get("starttime")),
            streams=(str(streams[0]), str(streams[1])),
            critical=str(get("critical") or ""),
            tags=str(get("tags") or ""),
            bytes=_counts(get("bytes")),
            truncated=truncated,
        )

    @classmethod
    def from_json(cls, raw: Union[str, builtins.bytes]) -> Optional[Result]:
        """Reads what a result list or a job's hash holds; nothing when it is no final result."""
        try:
            value = load_json(raw)
        except ValueError:
            return None
        if not isinstance(value, dict) or value.get("state") not in FINAL_STATES:
            return None
        return cls.from_dict(value)

    def to_dict(self) -> Dict[str, Any]:
        """The result as JSON would hold it."""
        return {
            "id": self.id,
            "gid": self.gid,
            "nid": self.nid,
            "cmd": self.cmd,
            "args": self.args,
            "data": self.data,
            "level": self.level,
            "state": self.state,
            "code": self.code,
            "time": self.time,
            "starttime": self.starttime,
            "streams": list(self.streams),
            "critical": self.critical,
            "tags": self.tags,
            "bytes": None if self.bytes is None else list(self.bytes),
            "truncated": self.truncated,
        }

    @property
    def ok(self) -> bool:
        """Whether it ended `OK`."""
        return self.state == "OK"

    @property
    def node(self) -> NodeId:
        """The node it came from, or that the controller answered for; the number is 0 where that is nobody."""
        return NodeId(self.gid, self.nid)

    @property
    def stdout(self) -> str:
        """The last lines of unmarked stdout."""
        return self.streams[0]

    @property
    def stderr(self) -> str:
        """The last lines of unmarked stderr."""
        return self.streams[1]

    @property
    def value(self) -> Any:
        """`data`, decoded by its level: JSON (20), YAML (21), TOML (22); other levels stay text."""
        return decode(self.level, self.data)

    @property
    def cut(self) -> str:
        """A sentence that names the missing parts of `streams` and `data`; empty when nothing is missing."""
        if not self.truncated:
            return ""
        if self.bytes is None:
            return f"its output may be cut: an agent keeps the last {STREAM_LINES} lines and 64 KiB of each stream"
        parts = []
        for name, text, count in zip(("stdout", "stderr"), self.streams, self.bytes):
            shown = len(text.encode("utf-8", "replace"))
            # Marked lines are counted too and lie elsewhere, so only a stream at its limit can have been cut.
            if count > shown + 1 and _stream_at_the_limit(text):
                parts.append(f"the last {shown} of {count} bytes of {name}")
        return f"its output is cut: kept are {' and '.join(parts)}" if parts else "its output or its result is cut"

    def sentence(self) -> str:
        """What happened, in one sentence."""
        who = f"{self.cmd or 'the command'}"
        if self.nid:
            who += f" on {self.node}"
        if self.ok:
            return one_line(f"{who} ended OK")
        why = {"TIMEOUT": "ran out of time", "KILLED": "was killed"}.get(self.state, "failed")
        if self.state == "ERROR" and self.code:
            why += f" with status {self.code}"
        detail = self.critical or (self.data if self.level == 0 or self.state != "OK" else "") or self.stderr
        lines = detail.strip().splitlines()
        return one_line(f"{who} {why}" + (f": {lines[-1].strip()}" if lines else ""))

    def raise_for_status(self) -> Result:
        """The result itself when it is `OK`, else a `JobFailed`."""
        if not self.ok:
            raise JobFailed(self)
        return self


@dataclass(frozen=True)
class Record:
    """One message of a job, as a node stored it."""

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
        """Takes a record as `get_msgs` or a log list gives it."""
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
        """Whose record it is."""
        return NodeId(self.gid, self.nid)


@dataclass
class JobInfo:
    """A job as its hash in Redis tells it."""

    id: str
    command: Dict[str, Any]
    created: int
    targets: Optional[List[NodeId]]
    states: Dict[NodeId, str]
    results: Dict[NodeId, Result]

    @classmethod
    def from_hash(cls, job_id: str, raw: Mapping[bytes, bytes]) -> JobInfo:
        """Reads the hash `jsacc:job:<id>`; unknown fields are passed over."""
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
                try:
                    state = load_json(value)
                except ValueError:
                    continue
                if not isinstance(state, dict):
                    continue
                info.states[node] = str(state.get("state", ""))
                if state.get("state") in FINAL_STATES:
                    # A controller of 0.1.0 that answered for a node of a fanout did not name it.
                    info.results[node] = Result.from_dict({**state, "gid": node.gid, "nid": node.nid})
        return info

    @property
    def state(self) -> str:
        """One word for all its nodes: `QUEUED`, `RUNNING`, `OK`, or the worst of its ends."""
        states = set(self.states.values())
        for word in ("RUNNING", "QUEUED", "ERROR", "TIMEOUT", "KILLED", "OK"):
            if word in states:
                return word
        return "QUEUED" if self.targets is None or self.targets else "ERROR"

    @property
    def open(self) -> List[NodeId]:
        """The nodes that have no final result yet."""
        return [n for n in (self.targets or self.states) if self.states.get(n) not in FINAL_STATES]


def parse_targets(raw: Union[str, bytes]) -> Optional[List[NodeId]]:
    """Reads the field `targets` of a job's hash."""
    try:
        value = load_json(raw)
    except ValueError:
        return None
    if not isinstance(value, list):
        return None
    return [node for node in (NodeId.from_key(str(item)) for item in value) if node is not None]


def _command(raw: bytes) -> Dict[str, Any]:
    # A controller may store the whole command or its name alone.
    try:
        value = load_json(raw)
    except ValueError:
        return {"cmd": text(raw)}
    return value if isinstance(value, dict) else {"cmd": str(value)}


def milliseconds(raw: bytes) -> int:
    """A time as Redis holds it; 0 where it is none."""
    try:
        return int(float(raw))
    except (ValueError, OverflowError):
        return 0


def scored(answer: Sequence[Any]) -> List[Tuple[Any, float]]:
    """The members and scores of a sorted set: RESP 2 has them one behind the other, RESP 3 in pairs."""
    if answer and isinstance(answer[0], (list, tuple)):
        return [(member, float(score)) for member, score in answer]
    return [(answer[i], float(answer[i + 1])) for i in range(0, len(answer), 2)]


def pairs(raw: Any) -> Iterable[Tuple[bytes, bytes]]:
    """The fields and values of a hash: redis-py makes a mapping of what its own calls answer, `bulk` brings a flat list."""
    if isinstance(raw, Mapping):
        return list(raw.items())
    return list(zip(raw[::2], raw[1::2])) if raw else []


def parse_list(items: Iterable[bytes]) -> List[Dict[str, Any]]:
    """Reads the entries of a JSON list (events, audit, rejected); what is no object is kept as `text`."""
    out: List[Dict[str, Any]] = []
    for item in items:
        try:
            value = load_json(item)
        except ValueError:
            value = None
        out.append(value if isinstance(value, dict) else {"text": text(item)})
    return out


def as_dict(value: Any) -> Dict[str, Any]:
    """The object that a node answered; `Undecodable` when it is none."""
    if not isinstance(value, dict):
        raise Undecodable(f"the node answered no object but {type(value).__name__}")
    return value


def as_list(value: Any) -> List[Dict[str, Any]]:
    """The list that a node answered; `Undecodable` when it is none."""
    if not isinstance(value, list):
        raise Undecodable(f"the node answered no list but {type(value).__name__}")
    if not all(isinstance(item, dict) for item in value):
        raise Undecodable("the node answered a list with items that are no objects")
    return value
