"""Follows the records of nodes: over watches, and by repeated questions where an agent knows no `follow`."""

from __future__ import annotations

import dataclasses
import time
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Set

from . import commands, keys
from ._session import Session
from .commands import Levels
from .errors import Error, NoControllerError, RedisUnavailableError, ResultDecodeError
from .fleet import Fleet
from .keys import NodeId
from .live import open_watches
from .node_commands import MAX_RECORDS
from .result import Result
from .stream import WatchReader
from .wire import Record, as_list

#: The records of slow nodes are waited for this long, in seconds.
FOLLOW_TIMEOUT_SECONDS = 10
#: A node that did not answer a repeated command delays the next one at most this long, in seconds.
UNRESPONSIVE_TIMEOUT_SECONDS = 1.0
#: Interval at which nodes are read while they write, in seconds.
_MIN_INTERVAL_SECONDS = 0.25
#: After the end of a job its last records come within this time, in seconds.
_LAST_RECORDS_SECONDS = 1.0
#: Interval at which `until` is asked, in seconds.
_UNTIL_SECONDS = 0.5
#: Interval at which agents that have started again are looked for, in seconds.
_RESTART_CHECK_SECONDS = 5.0
#: Pauses between two tries to open a watch again, in seconds.
_FIRST_REOPEN_SECONDS, _MAX_REOPEN_SECONDS = 1.0, 30.0
#: A client that stood still for this time, in seconds, has lost its watches.
_LAPSE_SECONDS = 25.0

OnError = Callable[[Result], None]


@dataclasses.dataclass(frozen=True)
class Query:
    """The records to follow: of a job on each node (empty for all), of these levels, from this time on."""

    ids: Mapping[NodeId, str]
    levels: Optional[Levels]
    since: Optional[int]


def follow(
    session: Session, query: Query, until: Optional[Callable[[], bool]], on_error: OnError, slowest: float
) -> Iterator[Record]:
    """Yield records as they are written, without end, or until `until()` returns true."""
    with WatchReader(session) as reader:
        watched = _Watched(session, reader, query, on_error)
        polled: Optional[_Polled] = None
        is_last, asked, last = False, 0.0, time.monotonic()
        while True:
            now = time.monotonic()
            if until and not is_last and now - asked >= _UNTIL_SECONDS:
                asked = now
                # Asked before the read, so that the records before the end are among them.
                is_last, last = _ask(until), now
            if watched.refused and polled is None:
                polled = _Polled(session, query, watched.refused, watched.after, on_error, slowest)
            pause = polled.pause if polled else _UNTIL_SECONDS
            received = watched.read(0.0 if is_last and polled else pause)
            if polled:
                received.extend(polled.read(wait=not watched.is_open))
            received.sort(key=lambda record: record.epoch)
            if received:
                last = time.monotonic()
            yield from received
            is_quiet = not watched.is_open or time.monotonic() - last >= _LAST_RECORDS_SECONDS
            if is_last and is_quiet and not (polled and polled.is_full):
                yield from _last_records(session, query, watched, on_error)
                return


def _ask(until: Callable[[], bool]) -> bool:
    try:
        return until()
    except Error as e:
        if not _is_passing(e):
            raise
        return False


def _is_passing(error: Error) -> bool:
    """Return whether an error is that of an outage of Redis or of the controllers."""
    return isinstance(error, NoControllerError) or bool(getattr(error, "transient", False))


def _last_records(session: Session, query: Query, watched: _Watched, on_error: OnError) -> Iterator[Record]:
    """Yield what a node had not sent yet when its job had ended."""
    nodes = [node for node in query.ids if node not in watched.refused]
    rest = _Polled(session, query, nodes, watched.after, on_error, 0)
    rest.is_full = bool(nodes)
    while rest.is_full:
        yield from sorted(rest.read(wait=False), key=lambda record: record.epoch)


def _record(raw: Mapping[str, Any], node: NodeId) -> Record:
    # The node is the one that sent it, whatever it says.
    return dataclasses.replace(Record.from_dict(raw, node), gid=node.gid, nid=node.nid)


class _Watched:
    """The nodes that send their records over watches."""

    def __init__(self, session: Session, reader: WatchReader, query: Query, on_error: OnError) -> None:
        #: Nodes whose agents know no `follow`.
        self.refused: List[NodeId] = []
        self._session = session
        self._reader = reader
        self._query = query
        self._on_error = on_error
        self._watches: Dict[NodeId, str] = {}
        #: The id of the last record of each node.
        self.after: Dict[NodeId, int] = {}
        # When a watch is opened again, and the pause before that.
        self._reopen: Dict[NodeId, float] = {}
        self._pauses: Dict[NodeId, float] = {}
        self._instances: Dict[NodeId, bytes] = {}
        self._checked = self._turned = time.monotonic()
        self._open(list(query.ids), FOLLOW_TIMEOUT_SECONDS)

    @property
    def is_open(self) -> bool:
        """Return whether any node sends records, or will again."""
        return bool(self._watches or self._reopen)

    def read(self, seconds: float) -> List[Record]:
        """Return the records of one read."""
        self._keep_open()
        if not self.is_open:
            return []
        records: List[Record] = []
        for chunk in self._reader.read(seconds):
            if chunk.kind == "record":
                record = _record(chunk.detail, chunk.node)
                self.after[chunk.node] = max(record.id, self.after.get(chunk.node, 0))
                self._pauses.pop(chunk.node, None)
                records.append(record)
            elif chunk.kind == "gap":
                reason = f"up to {chunk.detail.get('records')} records are missing here"
                self._on_error(Result.from_dict({"gid": chunk.node.gid, "nid": chunk.node.nid, "cmd": "follow",
                                                 "state": "ERROR", "data": reason}))
            elif chunk.kind == "end":
                self._close(chunk.node)
        return records

    def _open(self, nodes: List[NodeId], timeout: float) -> None:
        query = self._query
        specs = {
            n: commands.follow(query.ids[n], since=query.since, levels=query.levels, after=self.after.get(n)) for n in nodes
        }
        self._instances.update(self._read_instances(nodes))
        watches, answers = open_watches(self._session, self._reader, specs, timeout)
        self._watches.update(watches)
        for node in nodes:
            answer = answers.get(node)
            if node in watches:
                self._reopen.pop(node, None)
            elif answer is not None and answer.data.startswith("unknown command"):
                self._reopen.pop(node, None)
                self.refused.append(node)
            else:
                if answer is not None and node not in self._reopen:
                    self._on_error(answer)
                self._close(node)

    def _close(self, node: NodeId) -> None:
        """Let the watch of a node go, and open another one later."""
        watch = self._watches.pop(node, None)
        if watch:
            self._reader.release(watch)
        pause = self._pauses.get(node, _FIRST_REOPEN_SECONDS)
        self._pauses[node] = min(2 * pause, _MAX_REOPEN_SECONDS)
        self._reopen[node] = time.monotonic() + pause

    def _keep_open(self) -> None:
        now = time.monotonic()
        if now - self._turned > _LAPSE_SECONDS:
            for node in list(self._watches):
                self._close(node)
        self._turned = now
        if now - self._checked > _RESTART_CHECK_SECONDS and self._watches:
            self._checked = now
            found = self._read_instances(list(self._watches))
            for node, instance in found.items():
                if instance and instance != self._instances.get(node, instance):
                    # An agent that died has said nothing of the end of its watch.
                    self._close(node)
        due = [node for node, at in self._reopen.items() if at <= now]
        if due:
            try:
                # The records of the others wait meanwhile.
                self._open(due, UNRESPONSIVE_TIMEOUT_SECONDS)
            except Error as e:
                if not _is_passing(e):
                    raise
                for node in due:
                    self._close(node)

    def _read_instances(self, nodes: List[NodeId]) -> Dict[NodeId, bytes]:
        """Return the instance id of each agent, which changes with each start; nothing in an outage of Redis."""
        try:
            answers = self._session.connection.bulk([("HGET", keys.agent_hash(node), "instance") for node in nodes])
        except RedisUnavailableError as e:
            if not e.transient:
                raise
            return {}
        return {node: answer or b"" for node, answer in zip(nodes, answers)}


class _Polled:
    """The nodes that are asked again and again: four times a second while they write, else more seldom."""

    def __init__(
        self, session: Session, query: Query, nodes: List[NodeId], after: Dict[NodeId, int], on_error: OnError,
        slowest: float,
    ) -> None:
        #: Whether a node has more records than one answer holds.
        self.is_full = False
        #: Seconds before they are asked again.
        self.pause = _MIN_INTERVAL_SECONDS
        self._session = session
        self._query = query
        self._nodes = nodes
        self._on_error = on_error
        self._slowest = slowest
        self._after = after
        self._unresponsive: Set[NodeId] = set()
        self._is_first = True

    def read(self, wait: bool) -> List[Record]:
        """Ask all nodes once and return their records; `wait` the pause before it."""
        if wait and not self.is_full and not self._is_first:
            time.sleep(self.pause)
        self._is_first = False
        query, received = self._query, []
        specs = {
            n: commands.messages(query.ids[n], since=query.since, levels=query.levels, after=self._after.get(n))
            for n in self._nodes
        }
        self.is_full = False
        fleet = Fleet.each(self._session, specs, keep=False, quiet=True, expires=FOLLOW_TIMEOUT_SECONDS)
        for result in skip_unresponsive(fleet, FOLLOW_TIMEOUT_SECONDS, self._unresponsive):
            if result is None:
                continue
            try:
                records = [_record(raw, result.node) for raw in as_list(result.value)] if result.ok else []
            except ResultDecodeError as e:
                result, records = dataclasses.replace(result, state="ERROR", level=0, data=str(e)), []
            if not result.ok:
                self._on_error(result)
            elif records:
                self._after[result.node] = records[-1].id
                self.is_full = self.is_full or len(records) >= MAX_RECORDS
                received.extend(records)
        slow = min(self.pause * 1.5, max(self._slowest, _MIN_INTERVAL_SECONDS))
        self.pause = _MIN_INTERVAL_SECONDS if received else slow
        return received


def skip_unresponsive(
    fleet: Fleet, timeout: float, unresponsive: Set[NodeId], tick: float = 0.2
) -> Iterator[Optional[Result]]:
    """Yield the results as `Fleet.stream` with `tick` does, for a command that is repeated.

    When only nodes of `unresponsive` are missing, the wait ends after `UNRESPONSIVE_TIMEOUT_SECONDS`. Afterwards
    `unresponsive` has the nodes that did not answer this time.
    """
    deadline = time.monotonic() + UNRESPONSIVE_TIMEOUT_SECONDS
    for result in fleet.stream(timeout, tick):
        yield result
        if result is None and unresponsive and time.monotonic() >= deadline and unresponsive.issuperset(fleet.missing):
            break
    unresponsive.clear()
    unresponsive.update(fleet.missing)
