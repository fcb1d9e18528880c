"""What lies in Redis: the names of the keys and the JSON of commands, results and records.

Nothing here talks to anybody, so a client of another kind (asyncio, say) can stand on this file alone.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

from .errors import JobFailed, Undecodable, UsageError

QUEUE = "cmds_queue"
JOBS = "jsacc:jobs"
AGENTS = "jsacc:agents"
CONTROLLERS = "jsacc:acs"
EVENTS = "jsacc:events"
REJECTED = "jsacc:rejected"
AUDIT = "jsacc:audit"
AUDIT_RESULTS = "jsacc:audit:results"
SCRIPT_PREFIX = "jsacc:script:"

#: A node is live when it was seen within so many seconds, late up to the second number, then gone.
LIVE_SECONDS = 90
LATE_SECONDS = 3600
#: A controller beats every 5 seconds; without a beat for so long it is gone.
BEAT_SECONDS = 15
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

_JOB_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}\Z")
# One encoder made once: `json.dumps` with options builds a new one for every call.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


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
        gid, colon, nid = text.partition(":")
        if colon and gid.isascii() and nid.isascii() and gid.isdigit() and nid.isdigit():
            return cls(int(gid), int(nid))
        return None


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


def script_key(sha256: str) -> str:
    """A script's source, by its hash."""
    return SCRIPT_PREFIX + sha256


def new_id() -> str:
    """An id for a job: 32 hexadecimal digits, unique."""
    return os.urandom(16).hex()


def check_id(job_id: str) -> str:
    """The id itself, or a `UsageError`."""
    if not isinstance(job_id, str) or not _JOB_ID.match(job_id):
        raise UsageError(f"a job id is 1 to 128 of A-Z a-z 0-9 . _ : -, not {job_id!r}")
    return job_id


def dumps(value: object) -> str:
    """Compact JSON."""
    return _encode(value)


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

    def to_json(self) -> str:
        """The text that goes on the queue."""
        if self.nid <= 0 and not self.roles:
            raise UsageError("a command needs a target: gid and nid, or roles")
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
        if self.by:
            fields["by"] = self.by
        if self.user:
            fields["user"] = self.user
        if self.created:
            fields["created"] = self.created
        try:
            return _encode(fields)
        except (TypeError, ValueError) as e:
            raise UsageError(f"args and data must be what JSON can hold: {e}") from None


def _integer(value: object) -> int:
    return value if isinstance(value, int) else 0


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

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Result:
        """Takes a result as it came; what is missing has its zero."""
        get = raw.get
        streams = get("streams")
        if not isinstance(streams, list) or len(streams) < 2:
            streams = ["", ""]
        data = get("data", "")
        args = get("args")
        return cls(
            id=str(get("id", "")),
            gid=_integer(get("gid")),
            nid=_integer(get("nid")),
            cmd=str(get("cmd", "")),
            args=args if isinstance(args, dict) else {},
            data=data if isinstance(data, str) else _encode(data),
            level=_integer(get("level")),
            state=str(get("state", "")),
            code=_integer(get("code")),
            time=_integer(get("time")),
            starttime=_integer(get("starttime")),
            streams=(str(streams[0]), str(streams[1])),
            critical=str(get("critical") or ""),
            tags=str(get("tags") or ""),
        )

    @classmethod
    def from_json(cls, raw: Union[str, bytes]) -> Optional[Result]:
        """Reads what a result list or a job's hash holds; nothing when it is no final result."""
        try:
            value = json.loads(raw)
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
        }

    @property
    def ok(self) -> bool:
        """Whether it ended `OK`."""
        return self.state == "OK"

    @property
    def node(self) -> NodeId:
        """Who it came from; `0.0` when the controller itself answered for nobody."""
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

    def sentence(self) -> str:
        """What happened, in one sentence."""
        who = f"{self.cmd or 'the command'}"
        if self.nid:
            who += f" on {self.node}"
        if self.ok:
            return f"{who} ended OK"
        why = {"TIMEOUT": "ran out of time", "KILLED": "was killed"}.get(self.state, "failed")
        if self.state == "ERROR" and self.code:
            why += f" with status {self.code}"
        detail = self.critical or (self.data if self.level == 0 or self.state != "OK" else "") or self.stderr
        lines = detail.strip().splitlines()
        return f"{who} {why}" + (f": {lines[-1].strip()}" if lines else "")

    def raise_for_status(self) -> Result:
        """The result itself when it is `OK`, else a `JobFailed`."""
        if not self.ok:
            raise JobFailed(self)
        return self


def decode(level: int, data: str) -> Any:
    """Decodes the text of a result by its level."""
    try:
        if level == 20:
            return json.loads(data)
        if level == 21:
            try:
                import yaml
            except ImportError:
                raise Undecodable("the result is YAML: pip install 'jsclient[yaml]' to have it decoded") from None
            try:
                return yaml.safe_load(data)
            except yaml.YAMLError as e:
                raise ValueError(str(e)) from None
        if level == 22:
            try:
                import tomllib as toml
            except ImportError:
                try:
                    import tomli as toml  # type: ignore[no-redef,unused-ignore]
                except ImportError:
                    raise Undecodable("the result is TOML: pip install 'jsclient[toml]' to have it decoded") from None
            return toml.loads(data)
    except Undecodable:
        raise
    except ValueError as e:
        kind = {20: "JSON", 21: "YAML", 22: "TOML"}[level]
        raise Undecodable(f"the result has level {level} but is no {kind}: {e}") from None
    return data


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
            id=_integer(raw.get("id")),
            jobid=str(raw.get("jobid", "")),
            jobdomain=str(raw.get("jobdomain", "")),
            jobname=str(raw.get("jobname", "")),
            epoch=_integer(raw.get("epoch")),
            level=_integer(raw.get("level")),
            data=str(raw.get("data", "")),
            gid=_integer(raw.get("gid")) or (node.gid if node else 0),
            nid=_integer(raw.get("nid")) or (node.nid if node else 0),
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
                info.created = _milliseconds(value)
            elif name == b"targets":
                info.targets = parse_targets(value)
            else:
                node = NodeId.from_key(name)
                if node is None:
                    continue
                try:
                    state = json.loads(value)
                except ValueError:
                    continue
                if not isinstance(state, dict):
                    continue
                info.states[node] = str(state.get("state", ""))
                if state.get("state") in FINAL_STATES:
                    info.results[node] = Result.from_dict(state)
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
        value = json.loads(raw)
    except ValueError:
        return None
    if not isinstance(value, list):
        return None
    return [node for node in (NodeId.from_key(str(item)) for item in value) if node is not None]


def _command(raw: bytes) -> Dict[str, Any]:
    # A controller may store the whole command or its name alone.
    try:
        value = json.loads(raw)
    except ValueError:
        return {"cmd": text(raw)}
    return value if isinstance(value, dict) else {"cmd": str(value)}


def _milliseconds(raw: bytes) -> int:
    try:
        return int(float(raw))
    except ValueError:
        return 0


def parse_list(items: Iterable[bytes]) -> List[Dict[str, Any]]:
    """Reads the entries of a JSON list (events, audit, rejected); what is no object is kept as `text`."""
    out: List[Dict[str, Any]] = []
    for item in items:
        try:
            value = json.loads(item)
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
    return value
