"""Sends the commands of a fleet and collects their results from Redis."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from typing import Any, Callable, Deque, Dict, Iterable, Iterator, List, Optional, Sequence, Set, Tuple

from . import keys, wire
from ._connection import MAX_BRPOP_KEYS
from ._session import Session
from ._timeouts import DEFAULT, Timeout, WaitTimer
from .commands import CommandSpec
from .errors import Error, RedisUnavailableError
from .job import is_answer_of, nodes_of
from .keys import NodeId
from .nodes import Node
from .result import Result
from .wire import Command, JobInfo

#: Interval at which all lists are read when one BRPOP cannot watch all of them, in seconds.
SWEEP_INTERVAL_SECONDS = 0.25
#: Interval at which the hashes of the jobs are read while no result arrives, in seconds.
HASH_CHECK_INTERVAL_SECONDS = 2.0
#: Number of RPOP commands in one round trip.
RPOP_BATCH = 64
#: Interval at which restarting agents are checked, in seconds.
RESTART_CHECK_INTERVAL_SECONDS = 0.25
#: Most results that are held for `stream` before more are read.
MAX_PENDING = 1000
#: Longest wait for a result of a fanout job whose nodes are unknown, in seconds.
_UNKNOWN_FANOUT_WAIT_SECONDS = 0.05


class ResultCollector:
    """Sends commands, in batches where asked for, and yields their results as they arrive.

    A node has its own job, or all nodes share one job, the fanout.
    """

    def __init__(
        self,
        client: Session,
        fleet_id: str,
        spec: CommandSpec,
        *,
        nodes: Sequence[NodeId],
        offline: Sequence[Node] = (),
        unknown: Sequence[NodeId] = (),
        revoked: Iterable[NodeId] = (),
        fanout: Optional[Command] = None,
        commands: Sequence[Command] = (),
        batch: int = 0,
        max_failures: Optional[int] = None,
        keep: bool = True,
        explicit: bool = False,
        await_restart: bool = False,
    ) -> None:
        #: The client that sent the fleet.
        self.client = client
        #: The id of the single job, or the prefix of the ids of all jobs.
        self.id = fleet_id
        #: The command without its target.
        self.spec = spec
        #: The nodes that the command was (or, in batches, will be) sent to.
        self.nodes: List[NodeId] = list(nodes)
        #: Nodes of the target that are offline; nothing was sent to them.
        self.offline: List[Node] = list(offline)
        #: Named nodes that no controller knows; nothing was sent to them.
        self.unknown: List[NodeId] = list(unknown)
        revoked_set = set(revoked)
        #: Those of `unknown` that were revoked and not enrolled since.
        self.revoked: List[NodeId] = [node for node in self.unknown if node in revoked_set]
        #: The results so far, by node.
        self.results: Dict[NodeId, Result] = {}
        #: Nodes that nothing was sent to because too many others failed.
        self.skipped: List[NodeId] = []
        #: Number of results so far.
        self.returned = 0
        #: Number of results so far that are not `OK`.
        self.failures = 0
        #: Whether the target names its nodes one by one; then an offline node is a failure.
        self.explicit = explicit
        self._keep = keep
        self._batch = batch
        self._max_failures = max_failures
        self._unsent: Deque[Command] = deque(commands)
        # Job ids by node; empty for a fanout.
        self._ids: Dict[NodeId, str] = {NodeId(c.gid, c.nid): c.id for c in commands}
        # Open jobs by id: the node, and when the command was sent.
        self._open: Dict[str, Tuple[NodeId, float]] = {}
        self._fanout_id: Optional[str] = None
        self._fanout_sent = 0.0
        self._fanout_nodes_known = False
        self._fanout_timed_out = False
        self._done: Set[NodeId] = set()
        # The nodes of a fanout, as a set.
        self._targets: Set[NodeId] = set()
        # Received results that `stream` has not yielded.
        self._pending: Deque[Result] = deque()
        #: Called with each error of Redis that the wait bridges, and with the last one, which ends it.
        self.on_outage: Callable[[Error], None] = lambda _: None
        # Jobs by id that timed out; the next call of `stream` waits for them again.
        self._timed_out: Dict[str, NodeId] = {}
        self._is_recurring = bool(spec.args.get("recurring_period"))
        # Sent earlier: the hashes are read first.
        self._is_resumed = False
        self._hashes_checked = time.monotonic()
        self._swept = 0.0
        # Whether the job of a node is done only when its agent has started again.
        self._await_restart = await_restart
        # The instance of each agent before its command was sent.
        self._instances_before: Dict[NodeId, bytes] = {}
        # Answers of agents that have not started again, and when they arrived.
        self._restarting: Dict[NodeId, Tuple[Result, float]] = {}
        self._restarts_checked = 0.0
        self._lock = threading.Lock()
        if fanout is not None:
            client.push([fanout])
            self._fanout_id, self._fanout_sent = fanout.id, time.monotonic()
            self._targets = set(self.nodes)
        self._send()

    def _resume(self, found: Dict[str, JobInfo]) -> None:
        """Take over jobs that were sent earlier."""
        now = time.monotonic()
        if list(found) == [self.id]:
            info = found[self.id]
            self._fanout_id, self._fanout_sent = self.id, now
            self._set_nodes(nodes_of(info))
            args = info.command.get("args")
            self._is_recurring = isinstance(args, dict) and bool(args.get("recurring_period"))
        else:
            for job_id, info in found.items():
                for node in nodes_of(info)[:1]:
                    self.nodes.append(node)
                    self._open[job_id] = node, now
                    self._ids[node] = job_id
        self._is_resumed = True

    @property
    def missing(self) -> List[NodeId]:
        """Return the nodes that the command was sent to and that have not answered, sorted."""
        out = {*self._timed_out.values(), *self._restarting, *(node for node, _ in self._open.values())}
        if self._fanout_id:
            out.update(node for node in self.nodes if node not in self._done)
        return sorted(out - self._done)

    @property
    def waiting(self) -> int:
        """Return the number of nodes that are waited for, including those of later batches."""
        if self._fanout_timed_out:
            return 0
        return max(len(self.nodes) - self.returned - len(self._timed_out) - len(self.skipped), 0)

    @property
    def unsent(self) -> List[Command]:
        """Return the commands of the later batches."""
        return list(self._unsent)

    def job_id(self, node: NodeId) -> str:
        """Return the id of the job of this node."""
        return self._ids.get(node, self.id)

    def watches(self) -> Dict[str, Optional[NodeId]]:
        """Return the ids of the jobs that were sent, each with its node; no node for a job of all nodes."""
        if self._fanout_id:
            return {self._fanout_id: None}
        unsent = {command.id for command in self._unsent}
        return {job_id: node for node, job_id in self._ids.items() if job_id not in unsent}

    def stream(self, timeout: Timeout = DEFAULT, tick: float = 0) -> Iterator[Any]:
        """Yield the results that have not been yielded, as they arrive.

        With `tick` also yield `None` at least every `tick` seconds, so that the caller can do something else.
        """
        limit = self.client._resolve_timeout(timeout)
        began = time.monotonic()
        self._fanout_timed_out = False
        self._open.update((job_id, (node, began)) for job_id, node in self._timed_out.items())
        self._timed_out.clear()
        if self._is_resumed:
            self._is_resumed = False
            try:
                self._check_hashes(force=True)
            except RedisUnavailableError as e:
                if not e.transient:
                    raise
                self._hashes_checked = 0.0  # the wait below bridges the outage and checks again
        yield from self._take_pending()
        while not self._is_over():
            try:
                self._step(limit, began, tick)
            finally:
                yield from self._take_pending()
            if tick:
                yield None

    def _take_pending(self) -> Iterator[Result]:
        while self._pending:
            yield self._pending.popleft()

    def _is_over(self) -> bool:
        all_sent = not self._open and not self._restarting and not self._unsent
        return all_sent and (not self._fanout_id or self._is_fanout_over())

    def _is_fanout_over(self) -> bool:
        # Results of other nodes are dropped, so the numbers tell it.
        return self._fanout_timed_out or (self._fanout_nodes_known and len(self._done) >= len(self.nodes))

    def _send(self) -> None:
        """Send the commands of the next batch, or skip all unsent ones after too many failures."""
        at_work = len(self._open) + len(self._restarting)
        room = self._batch - at_work if self._batch else len(self._unsent)
        if self._max_failures is not None and self.failures + len(self._timed_out) > self._max_failures:
            self.skipped.extend(NodeId(c.gid, c.nid) for c in self._unsent)
            self._unsent.clear()
        now = time.monotonic()
        group = [self._unsent.popleft() for _ in range(min(room, len(self._unsent)))]
        if group:
            try:
                if self._await_restart:
                    self._instances_before.update(self._instances([NodeId(c.gid, c.nid) for c in group]))
                self.client.push(group)
            except Error:
                # Sending them again is safe: a node runs an id once.
                self._unsent.extendleft(reversed(group))
                raise
            for command in group:
                self._open[command.id] = NodeId(command.gid, command.nid), now

    def _step(self, limit: Optional[float], began: float, tick: float) -> None:
        """Read results with at most one blocking read, and send the next batch."""
        # Each call of `stream` begins a new wait, so time before it does not count.
        deadlines = [max(sent, began) + limit for _, sent in self._open.values()] if limit is not None else []
        if limit is not None:
            deadlines += [max(arrived, began) + limit for _, arrived in self._restarting.values()]
        if self._fanout_id and limit is not None:
            deadlines.append(max(self._fanout_sent, began) + limit)
        deadline = min(deadlines) if deadlines else None
        timer = WaitTimer(deadline)
        wait = min(timer.remaining(), tick) if tick else timer.remaining()
        while True:
            try:
                if self._fanout_id:
                    self._read_fanout(self._fanout_id, wait)
                else:
                    self._read_lists(wait)
                break
            except Error as e:
                timer.back_off(e, self.on_outage)
        if limit is not None and deadline is not None and not self._pending and time.monotonic() >= deadline:
            self._check_hashes(force=True)
            if not self._pending:
                self._time_out(limit, began)
        while self._unsent:
            try:
                self._send()
                break
            except Error as e:
                timer.back_off(e, self.on_outage)

    def _time_out(self, limit: float, began: float) -> None:
        now = time.monotonic()
        for node, (result, arrived) in list(self._restarting.items()):
            if now >= max(arrived, began) + limit:
                del self._restarting[node]
                reason = f"the agent ended, and nothing started it again within {limit:g} s"
                self._complete(dataclasses.replace(result, state="ERROR", level=0, data=reason), node)
        for job_id, (node, sent) in list(self._open.items()):
            if now >= max(sent, began) + limit:
                del self._open[job_id]
                self._timed_out[job_id] = node
        if self._fanout_id and now >= max(self._fanout_sent, began) + limit:
            self._fanout_timed_out = True

    def _accept(self, result: Result, node: NodeId) -> None:
        if node in self._done or node in self._restarting:
            return
        if result.node != node:  # from a controller of 0.1.0, which does not name the node
            result = dataclasses.replace(result, gid=node.gid, nid=node.nid)
        if self._await_restart and result.ok:
            self._restarting[node] = result, time.monotonic()
        else:
            self._complete(result, node)

    def _complete(self, result: Result, node: NodeId) -> None:
        self._done.add(node)
        self.returned += 1
        self.failures += not result.ok
        if self._keep:
            self.results[node] = result
        self._pending.append(result)

    def _instances(self, nodes: Sequence[NodeId]) -> Dict[NodeId, bytes]:
        """Return the instance id of each agent, which changes with each start; empty when unknown."""
        answers = self.client.connection.bulk([("HGET", keys.agent_hash(node), "instance") for node in nodes])
        return {node: answer or b"" for node, answer in zip(nodes, answers)}

    def _complete_restarted(self) -> None:
        """Complete the nodes whose agents have started again."""
        now = time.monotonic()
        if now - self._restarts_checked < RESTART_CHECK_INTERVAL_SECONDS:
            return
        self._restarts_checked = now
        for node, instance in self._instances(list(self._restarting)).items():
            if instance not in (b"", self._instances_before.get(node)):
                self._complete(self._restarting.pop(node)[0], node)

    def _read_fanout(self, fanout_id: str, wait: float) -> None:
        key = keys.result_list(fanout_id)
        wait = wait if self._fanout_nodes_known else min(wait, _UNKNOWN_FANOUT_WAIT_SECONDS)
        popped = self.client.connection.pop([key], wait)
        raws = [popped[1]] if popped else []
        if popped:  # the others stay in Redis until these have been yielded
            raws.extend(raw for raw in self.client.connection.bulk([("RPOP", key)] * RPOP_BATCH) if raw is not None)
        results = [result for result in map(Result.from_json, raws) if result is not None]
        unnamed = [result for result in results if not result.nid]
        if not self._fanout_nodes_known:
            # The controller writes the hash, with the nodes of the job, before the list. A result that a broken
            # connection loses here is found in the hash later.
            self._read_nodes(fanout_id, [result.node for result in results])
        for result in results:
            if result.nid and not self._fanout_nodes_known and result.node not in self._targets:
                self.nodes.append(result.node)
                self._targets.add(result.node)
            if result.node in self._targets:  # a result of any other node is dropped
                self._accept(result, result.node)
        if unnamed or not results:
            self._check_hashes(force=bool(unnamed))
        if unnamed and not self._fanout_nodes_known:  # no node matched
            no_node = unnamed[0].node
            self._set_nodes([no_node])
            self._accept(unnamed[0], no_node)

    def _set_nodes(self, nodes: List[NodeId]) -> None:
        self.nodes, self._targets, self._fanout_nodes_known = nodes, set(nodes), bool(nodes)

    def _read_nodes(self, fanout_id: str, answered: Iterable[NodeId]) -> None:
        """Read the nodes of a fanout. The controller selects them, a moment after the client did."""
        raw = self.client.connection.read("HGET", keys.job_hash(fanout_id), "targets")
        targets = set(wire.parse_targets(raw) or () if raw else ())
        if targets:
            # The controller has answered for these, or another one does not know them.
            others = [node for node in {*self.nodes, *answered} - targets - self._done if node.nid]
            targets.update(node for node, state, _ in self.client._entries(fanout_id, others) if state is not None)
            self._set_nodes(sorted(targets | self._done))
            return
        found = self.client._info(fanout_id)
        if found is not None and (found.states or found.results):
            # When no node matched, the answer of the controller stands for all.
            self._set_nodes(sorted({*(nodes_of(found) or found.results), *self._done}))

    def _read_lists(self, wait: float) -> None:
        if self._restarting:
            wait = min(wait, RESTART_CHECK_INTERVAL_SECONDS)
            self._complete_restarted()
            if self._pending:
                return
            if not self._open:
                time.sleep(wait)
        if not self._open:
            return
        ids = list(self._open)
        lists = {keys.result_list(job_id): job_id for job_id in ids[:MAX_BRPOP_KEYS]}
        now = time.monotonic()
        if len(ids) > MAX_BRPOP_KEYS:
            wait = min(wait, SWEEP_INTERVAL_SECONDS)
        popped = self.client.connection.pop(list(lists), wait)
        if popped:
            self._receive(wire.text(popped[0])[len(keys.result_list("")) :], popped[1])
        is_sweep_due = now - self._swept >= SWEEP_INTERVAL_SECONDS
        if len(ids) > 1 and (popped is None or len(ids) > MAX_BRPOP_KEYS) and is_sweep_due:
            self._swept = now
            rest = [job_id for job_id in ids if job_id in self._open]
            answers = self.client.connection.bulk([("RPOP", keys.result_list(i)) for i in rest])
            for job_id, raw in zip(rest, answers):
                if raw is not None:
                    self._receive(job_id, raw)
        if not self._pending:
            self._check_hashes()

    def _receive(self, job_id: str, raw: bytes) -> None:
        result = Result.from_json(raw)
        if result is not None and job_id in self._open and is_answer_of(result, self._open[job_id][0]):
            node, _ = self._open.pop(job_id)
            self._accept(result, node)

    def _check_hashes(self, force: bool = False) -> None:
        """Accept results from the hashes that another client, or a broken connection, took off the lists."""
        now = time.monotonic()
        if not force and now - self._hashes_checked < HASH_CHECK_INTERVAL_SECONDS:
            return
        self._hashes_checked = now
        if self._fanout_id:
            self._check_fanout(self._fanout_id)
            return
        ids = list(self._open)
        requests = [("HGET", keys.job_hash(job_id), self._open[job_id][0].key) for job_id in ids]
        for job_id, raw in zip(ids, self.client.connection.bulk(requests)):
            result = Result.from_json(raw) if raw else None
            if result is not None:
                self._accept(result, self._open.pop(job_id)[0])
                self.client._forget(result)

    def _check_fanout(self, fanout_id: str) -> None:
        if not self._fanout_nodes_known:
            self._read_nodes(fanout_id, ())
        last = None
        for node, _, result in self.client._entries(fanout_id, [n for n in self.nodes if n not in self._done]):
            if result is not None:
                last = result
                self._accept(result, node)
            if len(self._pending) >= MAX_PENDING:
                self._hashes_checked = 0.0  # the next step goes on
                return
        if last is not None and self._is_fanout_over():
            self.client._forget(last)
