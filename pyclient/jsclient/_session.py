"""State and steps that jobs, fleets and targets share. `NodeCommands` implements the abstract methods."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from abc import ABC, abstractmethod
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

from . import keys, wire
from ._connection import Connection
from ._timeouts import DEFAULT, Default, Timeout
from .commands import CommandSpec, Levels
from .errors import Error, NoControllerError, RedisUnavailableError, UsageError, job_not_found_error
from .keys import NodeId
from .nodes import explain_unknown, format_duration, load_nodes, load_revoked, to_milliseconds
from .result import Result
from .target import Target, TargetNodes, match_nodes, parse_target
from .wire import Command, JobInfo, Record

NodeLike = Union[str, NodeId, Tuple[int, int]]
TargetLike = Union[str, NodeId, Target]

DEFAULT_URL = "redis://localhost:6379"
#: Commands of one LPUSH.
_PUSH_SIZE = 500
#: Fields of one HMGET.
_HMGET_SIZE = 500
#: A heartbeat of a controller, once read, is not read again for this time, in seconds.
_HEARTBEAT_CACHE_SECONDS = 5.0


class Session(ABC):
    """The connection to one Redis, with its settings. Safe for threads."""

    def __init__(
        self, url: Optional[str] = None, *, timeout: Optional[float] = 60.0, by: Optional[str] = None, **options: Any
    ) -> None:
        self.connection = Connection(os.environ.get("JSCTL_REDIS") or DEFAULT_URL if url is None else url, **options)
        self.timeout = timeout
        self._by = by
        self._user: Optional[str] = None
        self._heartbeat_seen = -_HEARTBEAT_CACHE_SECONDS
        self._heartbeat_lock = threading.Lock()
        #: Number of commands pushed, including those whose arrival is unknown after a connection error.
        self.sent = 0

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        self.connection.close()

    @property
    def by(self) -> str:
        """Return the name for the audit list: the argument `by`, else the login name, else `unknown`."""
        if self._by is None:
            import getpass

            try:
                # The login name may contain bytes that are not UTF-8.
                self._by = getpass.getuser().encode("utf-8", "replace").decode()
            except (OSError, KeyError, ImportError):
                self._by = "unknown"
        return self._by

    @property
    def user(self) -> str:
        """Return the user name of this connection in Redis; empty where Redis does not tell it."""
        if self._user is None:
            try:
                self._user = wire.text(self.connection.call("ACL", "WHOAMI"))
            except Error:
                self._user = ""
        return self._user

    def check(self) -> None:
        """Raise `NoControllerError` when no controller sent a heartbeat within 15 seconds.

        After a success the next check within 5 seconds asks nothing.
        """
        if time.monotonic() - self._heartbeat_seen < _HEARTBEAT_CACHE_SECONDS:
            return
        requests: List[Tuple[object, ...]] = [("TIME",), ("ZREVRANGE", keys.CONTROLLERS, 0, 0, "WITHSCORES")]
        now, last = self.connection.bulk(requests)
        if not last:
            where = self.connection.where
            raise NoControllerError(f"no controller serves Redis at {where}: start jsacc, or check the address")
        age = (to_milliseconds(now) - wire.scored(last)[0][1]) / 1000
        if age > keys.HEARTBEAT_TIMEOUT_SECONDS:
            raise NoControllerError(
                f"no controller serves Redis at {self.connection.where}: last controller heartbeat "
                f"{format_duration(age)} ago; start jsacc"
            )
        with self._heartbeat_lock:
            self._heartbeat_seen = time.monotonic()

    def push(self, commands: Sequence[Command]) -> None:
        """Put commands on the queue; raise `NoControllerError` when no controller would take them."""
        self.check()
        now = int(time.time() * 1000)
        texts = []
        for command in commands:
            command.created = now
            command.by = command.by or self.by
            command.user = command.user or self.user
            texts.append(command.to_json())
        watched = [command.id for command in commands if command.opens_watch]
        if watched:
            # Before the commands, for their nodes may send at once.
            ttl = keys.WATCH_TTL_SECONDS
            self.connection.bulk([("SET", keys.watch(job_id), "0-0", "EX", ttl) for job_id in watched])
        for start in range(0, len(texts), _PUSH_SIZE):
            chunk = texts[start : start + _PUSH_SIZE]
            self.sent += len(chunk)
            # A second LPUSH after a broken connection is safe: a node runs an id once.
            self.connection.read("LPUSH", keys.QUEUE, *chunk)

    def select(self, target: Target, exclude: Sequence[Target] = ()) -> TargetNodes:
        """Return the nodes that the target matches now."""
        # Nodes that are named one by one need no read of all others; `exclude` may need the roles.
        known = load_nodes(self.connection, target.nodes if target.explicit else None, ("roles", "stopped"))
        chosen = match_nodes(target, known, exclude)
        if not chosen.unknown:
            return chosen
        return dataclasses.replace(chosen, revoked=load_revoked(self.connection, chosen.unknown))

    def store(self, content: bytes) -> str:
        """Store a script or a file of at most 16 MiB in Redis, for a week after its last use.

        Return its SHA-256 in hexadecimal. Raise `UsageError` when it is larger.
        """
        import hashlib

        if len(content) > keys.MAX_SCRIPT_BYTES:
            raise UsageError(f"{len(content)} bytes are too many; the most is {keys.MAX_SCRIPT_BYTES}")
        sha256 = hashlib.sha256(content).hexdigest()
        key = keys.script_key(sha256)
        if not self.connection.read("EXPIRE", key, keys.SCRIPT_TTL_SECONDS):
            self.connection.read("SET", key, content, "EX", keys.SCRIPT_TTL_SECONDS)
        return sha256

    def explain_wait(self, job_id: str, node: Optional[NodeId], limit: Optional[float]) -> str:
        """Return one sentence that says why a job has no result after `limit` seconds."""
        start = f"job {job_id}" + (f" on {node}" if node else "") + f" has no result after {limit or 0:g} s"
        try:
            self._heartbeat_seen = -_HEARTBEAT_CACHE_SECONDS
            self.check()
            states = [state for _, state, _ in self._entries(job_id, [node]) if state] if node else []
            found = None if states else self._info(job_id)
        except Error as e:
            return f"{start}: {e}"
        state = states[0] if states else found.state if found else ""
        if not state:
            return f"{start}: no controller has taken it yet"
        if state != "QUEUED":
            return f"{start}: it is {state.lower()}"
        absence = self._explain_absence(node) if node else ""
        return f"{start}: queued; {absence or 'its node has not taken it yet'}"

    def _explain_absence(self, node: NodeId) -> str:
        """Return why a node cannot answer now; empty when it may answer."""
        known = load_nodes(self.connection, [node], ("stopped",))
        if not known:
            return f"node {self._explain_unknown(node)}"
        return "" if known[0].live and not known[0].stopped else f"node {node} is offline ({known[0].last_contact})"

    def _explain_unknown(self, node: NodeId) -> str:
        return explain_unknown([node], load_revoked(self.connection, [node]))

    def job_info(self, job_id: str) -> JobInfo:
        """Return the state of a job; raise `JobNotFoundError` when it was never sent or is older than a day."""
        found = self._info(keys.check_id(job_id))
        if found is None:
            raise job_not_found_error(job_id)
        return found

    def _info(self, job_id: str) -> Optional[JobInfo]:
        pairs = dict(wire.pairs(self.connection.read("HGETALL", keys.job_hash(job_id))))
        return JobInfo.from_hash(job_id, pairs) if pairs else None

    def _entries(
        self, job_id: str, nodes: Sequence[NodeId]
    ) -> Iterator[Tuple[NodeId, Optional[str], Optional[Result]]]:
        """Yield nodes of a job that its hash has, each with its state and its result.

        The hash of a fanout may have 100,000 results, so a part of it is read at a time.
        """
        for start in range(0, len(nodes), _HMGET_SIZE):
            part = nodes[start : start + _HMGET_SIZE]
            values = self.connection.read("HMGET", keys.job_hash(job_id), *(node.key for node in part))
            for node, value in zip(part, values):
                if value is not None:
                    yield (node, *wire.parse_entry(value, node))

    def written(self, job_id: str, nodes: Sequence[NodeId]) -> Dict[NodeId, Optional[Tuple[int, int]]]:
        """Return the counts of bytes in the results of a job, of those of these nodes that write no more.

        A recurring job writes more after each result. In an outage of Redis nothing is known.
        """
        try:
            return {
                node: result.bytes
                for node, _, result in self._entries(job_id, nodes)
                if result is not None and not result.args.get("recurring_period")
            }
        except RedisUnavailableError as e:
            if not e.transient:
                raise
            return {}

    def _forget(self, result: Result) -> None:
        """Delete the list of results of a job whose result was read from its hash, except of a recurring job."""
        if result.id and not result.args.get("recurring_period"):
            try:
                self.connection.call("DEL", keys.result_list(result.id))
            except Error:
                pass  # the list expires

    def _resolve_timeout(self, timeout: Timeout) -> Optional[float]:
        """Return the timeout in seconds, `None` for no limit; raise `UsageError` for anything else."""
        if isinstance(timeout, Default):
            return self.timeout
        if timeout is None:
            return None
        if not isinstance(timeout, (int, float)) or timeout < 0:
            raise UsageError(f"a timeout is a number of seconds or None, not {timeout!r}")
        return float(timeout)

    @staticmethod
    def _node_id(node: NodeLike) -> NodeId:
        """Return the id of one node; raise `UsageError` when the argument is not one node."""
        if isinstance(node, str):
            parsed = parse_target(node)
            if not parsed.explicit or len(parsed.nodes) != 1:
                raise UsageError(f"{node} is not one node; write 1.10")
            return parsed.nodes[0]
        gid, nid = node
        if not (isinstance(gid, int) and isinstance(nid, int) and gid > 0 and nid > 0):
            raise UsageError(f"a node is two whole numbers of 1 or more, not {gid!r} and {nid!r}")
        return NodeId(gid, nid)

    @abstractmethod
    def logs(
        self,
        node: NodeLike,
        *,
        job: str = "",
        levels: Optional[Levels] = None,
        since: Optional[int] = None,
        until_ms: Optional[int] = None,
        limit: Optional[int] = None,
        follow: bool = False,
        every: float = 1.0,
        until: Optional[Callable[[], bool]] = None,
        timeout: Timeout = DEFAULT,
    ) -> Iterator[Record]:
        """Yield the records of a node, oldest first."""

    @abstractmethod
    def _ask(
        self, node: NodeId, spec: CommandSpec, timeout: Timeout = DEFAULT, quiet: bool = False, present: bool = False,
        job_id: Optional[str] = None,
    ) -> Result:
        """Send a command to one node and return its result."""

    @abstractmethod
    def _ask_each(self, specs: Mapping[NodeId, CommandSpec], timeout: Timeout = DEFAULT) -> Dict[NodeId, Result]:
        """Send each node its command and return the results that came in time."""

    @abstractmethod
    def _withdraw(self, jobs: Mapping[NodeId, str], timeout: Timeout = DEFAULT) -> Dict[NodeId, str]:
        """Withdraw jobs from nodes; return for each node why it could not be, empty when it was."""
