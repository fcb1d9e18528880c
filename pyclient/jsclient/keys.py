"""Names of the keys in Redis, node and job ids, and the limits of the protocol. Pure."""

from __future__ import annotations

import os
import re
from typing import NamedTuple, Optional, Union

from .errors import UsageError

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

#: A node is `live` up to this age, in seconds.
LIVE_SECONDS = 90
#: A node is `late` up to this age, in seconds, and then `gone`.
LATE_SECONDS = 3600
#: A controller without a heartbeat for this time, in seconds, is offline; it sends one every 5 seconds.
HEARTBEAT_TIMEOUT_SECONDS = 15
#: The hash of a job is kept this long, in seconds.
JOB_TTL_SECONDS = 86400
#: A script is kept this long after its last use, in seconds.
SCRIPT_TTL_SECONDS = 7 * 86400
#: Largest script or file that nodes fetch, in bytes.
MAX_SCRIPT_BYTES = 16 * 1024 * 1024

FINAL_STATES = frozenset({"OK", "ERROR", "TIMEOUT", "KILLED"})

#: A watch that its client does not renew ends after this time, in seconds.
WATCH_TTL_SECONDS = 30
#: The built-in commands that open a watch.
WATCHING = frozenset({"attach", "follow", "get"})
#: The arguments that every process-like command takes beside its own.
COMMON_ARGS = frozenset(
    "domain name max_time max_restart recurring_period loglevels loglevels_db loglevels_ac stats_interval queue"
    " user stop_signal stop_timeout rlimits nice umask oom_score_adj secret workingdir env args stream stdin tty".split()
)

_NODE_KEY = re.compile(r"([0-9]{1,10}):([0-9]{1,10})\Z")
_JOB_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}\Z")
_ROLE = re.compile(r"[A-Za-z0-9._:/-]{1,64}\Z")


class NodeId(NamedTuple):
    """A node: grid id and node id. Its text is `1.10`, in keys `1:10`."""

    gid: int
    nid: int

    def __str__(self) -> str:
        return f"{self.gid}.{self.nid}"

    @property
    def key(self) -> str:
        """Return `1:10`, the form in keys and in `targets`."""
        return f"{self.gid}:{self.nid}"

    @classmethod
    def from_key(cls, text: Union[str, bytes]) -> Optional[NodeId]:
        """Parse `1:10`; return `None` for any other text."""
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        found = _NODE_KEY.match(text)
        return cls(int(found[1]), int(found[2])) if found else None


def result_list(job_id: str) -> str:
    """Return the key of the list that receives the results of a job."""
    return f"cmds_queue_{job_id}"


def job_hash(job_id: str) -> str:
    """Return the key of the hash with the state and the results of a job."""
    return f"jsacc:job:{job_id}"


def agent_hash(node: NodeId) -> str:
    """Return the key of the hash with the facts of a node."""
    return f"jsacc:agent:{node.gid}:{node.nid}"


def stats_hash(node: NodeId) -> str:
    """Return the key of the hash with the latest series of a node."""
    return f"jsacc:stats:{node.gid}:{node.nid}"


def log_list(domain: str, name: str) -> str:
    """Return the key of the list of records that agents forwarded for a domain and a name."""
    clean = [re.sub(r"[^A-Za-z0-9_-]", "_", part) or "unknown" for part in (domain, name)]
    return f"log.{clean[0]}.{clean[1]}"


def grant_hash(node: NodeId) -> str:
    """Return the key of the hash with the granted roles, labels and host names of a node."""
    return f"{GRANT_PREFIX}{node.key}"


def revoked_key(node: NodeId) -> str:
    """Return the key of the time (ms since 1970) at which a node was revoked; it is deleted by enrolment."""
    return f"jsacc:{{{node.key}}}:revoked"


def script_key(sha256: str) -> str:
    """Return the key of the source of a script."""
    return SCRIPT_PREFIX + sha256


def blob_key(sha256: str, piece: int) -> str:
    """Return the key of a piece of a large file."""
    return f"jsacc:blob:{sha256}:{piece}"


def watch(job_id: str) -> str:
    """Return the key by which a client watches a job or command; it expires when it is not renewed."""
    return f"jsacc:watch:{job_id}"


def stream(job_id: str) -> str:
    """Return the key of the stream with the live output of a watch."""
    return f"jsacc:stream:{job_id}"


def new_id() -> str:
    """Return a new unique job id of 32 hexadecimal digits."""
    return os.urandom(16).hex()


def check_id(job_id: str) -> str:
    """Return the job id unchanged; raise `UsageError` when it is not 1 to 128 of `A-Z a-z 0-9 . _ : -`."""
    if not isinstance(job_id, str) or not is_id(job_id):
        raise UsageError(f"a job id is 1 to 128 of A-Z a-z 0-9 . _ : -, not {job_id!r}")
    return job_id


def is_id(text: str) -> bool:
    """Return whether the text is a valid job id."""
    return bool(_JOB_ID.match(text))


def is_role(text: str) -> bool:
    """Return whether the text is a valid role or label: 1 to 64 of `A-Z a-z 0-9 . _ : / -`."""
    return bool(_ROLE.match(text))
