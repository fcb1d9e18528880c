"""One command on many nodes: the results as they come, and who failed, is silent, or was not there."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Deque, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

from . import verbs, wire
from .errors import Error, FleetFailed, Unavailable
from .job import Job, answers_for, nodes_of
from .link import MANY
from .nodes import Node
from .waiting import DEFAULT, Pause, Timeout
from .wire import Command, JobInfo, NodeId, Result

if TYPE_CHECKING:
    from .client import Client

#: With more lists than one BRPOP watches, all are swept so often (seconds).
SWEEP_SECONDS = 0.25
#: While nothing comes, the jobs' hashes are looked into so often (seconds).
LOOK_SECONDS = 2.0
#: How many results one round trip takes off a list.
DRAIN = 64
#: Nodes that restart are looked for so often (seconds).
RETURN_SECONDS = 0.25
#: So long a controller may take to withdraw commands (seconds).
WITHDRAW_SECONDS = 5.0


class Fleet:
    """The jobs of one order.

    Iterate over it for the results as they come, or `wait()` for all. A target that one command can name
    (`@web`, `1.*`, `all`) is a single job with many results; other targets are a job for each node, whose
    ids begin with the fleet's. Its methods are for one thread at a time; `results` may be read by others.
    """

    def __init__(
        self,
        client: Client,
        fleet_id: str,
        verb: verbs.Verb,
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
        named: bool = False,
        returning: bool = False,
    ) -> None:
        #: The client that sent it.
        self.client = client
        #: The id of the one job, or what the ids of all its jobs begin with.
        self.id = fleet_id
        self.verb = verb
        #: The nodes that it was (or, in batches, will be) sent to.
        self.nodes: List[NodeId] = list(nodes)
        #: Nodes that the target means and that are not there; nothing was sent to them.
        self.offline: List[Node] = list(offline)
        #: Nodes that were named and that no controller knows; nothing was sent to them.
        self.unknown: List[NodeId] = list(unknown)
        #: Those of `unknown` that were revoked and not enrolled since.
        gone = set(revoked)
        self.revoked: List[NodeId] = [node for node in self.unknown if node in gone]
        #: The results so far.
        self.results: Dict[NodeId, Result] = {}
        #: Nodes that nothing was sent to, since too many others failed.
        self.skipped: List[NodeId] = []
        #: How many are back, and how many of them are not `OK`.
        self.returned = 0
        self.failures = 0
        #: Whether its nodes were named one by one, so that one that is not there is a failure.
        self.named = named
        self._keep = keep
        self._batch = batch
        self._max_failures = max_failures
        self._unsent: Deque[Command] = deque(commands)
        # Node -> the id of its job, where each node has a job of its own.
        self._ids: Dict[NodeId, str] = {NodeId(c.gid, c.nid): c.id for c in commands}
        self._open: Dict[str, Tuple[NodeId, float]] = {}  # job id -> node, when it was sent
        self._fan: Optional[str] = None
        self._fan_sent = 0.0
        self._fan_known = False
        self._done: set[NodeId] = set()
        self._fresh: Deque[Result] = deque()  # taken and not handed out yet
        self._late: Dict[str, NodeId] = {}  # job id -> node, given up; the next wait takes them up again
        self._given_up = False  # likewise, what is open of the one job
        self._recurs = bool(verb.args.get("recurring_period"))
        self._begun = False  # sent before: the first look is into the hashes
        self._looked = time.monotonic()
        self._swept = 0.0
        #: Whether a node's job is done only when its agent has started again.
        self._returns = returning
        self._before: Dict[NodeId, bytes] = {}  # the agent's instance before the command was sent
        self._returning: Dict[NodeId, Tuple[Result, float]] = {}  # the answer, and when it came
        self._asked_back = 0.0
        self._lock = threading.Lock()
        if fanout is not None:
            client.push([fanout])
            self._fan, self._fan_sent = fanout.id, time.monotonic()
        self._send()

    @classmethod
    def again(cls, client: Client, fleet_id: str, found: Dict[str, JobInfo]) -> Fleet:
        """The fleet of jobs that were sent before, for waiting on: by their ids, as Redis knows them."""
        verb = verbs.raw(str(next(iter(found.values())).command.get("cmd", "")))
        fleet = cls(client, fleet_id, verb, nodes=[], keep=False)
        now = time.monotonic()
        if list(found) == [fleet_id]:
            info = found[fleet_id]
            fleet._fan, fleet._fan_sent = fleet_id, now
            fleet.nodes = nodes_of(info)
            fleet._fan_known = bool(fleet.nodes)
            args = info.command.get("args")
            fleet._recurs = isinstance(args, dict) and bool(args.get("recurring_period"))
        else:
            for job_id, info in found.items():
                for node in nodes_of(info)[:1]:
                    fleet.nodes.append(node)
                    fleet._open[job_id] = node, now
                    fleet._ids[node] = job_id
        fleet._begun = True
        return fleet

    @classmethod
    def each(
        cls, client: Client, asked: Mapping[NodeId, verbs.Verb], keep: bool = True, *, id: Optional[str] = None,
        quiet: bool = False, expires: int = 0, returning: bool = False,
    ) -> Fleet:
        """A command of its own for each node."""
        fleet_id = id or wire.new_id()
        commands = [
            Command(v.cmd, n.gid, n.nid, v.args, v.data, id=fleet_id if len(asked) == 1 else part_id(fleet_id, n),
                    quiet=quiet, expires=expires)
            for n, v in asked.items()
        ]
        return cls(client, fleet_id, next(iter(asked.values())), nodes=list(asked), commands=commands, keep=keep,
                   named=True, returning=returning)

    def __repr__(self) -> str:
        return f"<Fleet {self.id}: {self.returned} of {len(self.nodes)} returned, {self.failures} failed>"

    def __len__(self) -> int:
        return len(self.nodes)

    def __iter__(self) -> Iterator[Result]:
        yield from list(self.results.values())
        yield from self.stream()

    # What is known so far.

    @property
    def failed(self) -> List[Result]:
        """The results that are not `OK`."""
        return [result for result in self.results.values() if not result.ok]

    @property
    def ok(self) -> bool:
        """Whether every node has answered `OK`."""
        return not self.failures and not self.missing and not self.skipped and not self.unknown

    @property
    def missing(self) -> List[NodeId]:
        """The nodes that it was sent to and that have not answered (yet)."""
        out = {*self._late.values(), *self._returning, *(node for node, _ in self._open.values())}
        if self._fan:
            out.update(node for node in self.nodes if node not in self._done)
        return sorted(out - self._done)

    @property
    def waiting(self) -> int:
        """How many have not answered and are still waited for, those not yet sent included."""
        if self._given_up:
            return 0
        return max(len(self.nodes) - self.returned - len(self._late) - len(self.skipped), 0)

    @property
    def unsent(self) -> List[Command]:
        """The commands of the batches to come."""
        return list(self._unsent)

    def states(self) -> Dict[NodeId, str]:
        """Where it stands on each node that has not answered: `QUEUED`, `RUNNING`…"""
        if self._fan:
            found = self.client._info(self._fan)
            return found.states if found else {}
        out: Dict[NodeId, str] = {}
        for node in self.missing:
            found = self.client._info(self.job_id(node))
            if found is not None and node in found.states:
                out[node] = found.states[node]
        return out

    @property
    def jobs(self) -> Dict[NodeId, Job]:
        """A `Job` for each node."""
        return {node: Job(self.client, self.job_id(node), node) for node in self.nodes}

    def job_id(self, node: NodeId) -> str:
        """The id of this node's job."""
        return self._ids.get(node, self.id)

    def raise_for_status(self) -> Fleet:
        """Itself when all is well, else a `FleetFailed` that names who failed or did not answer."""
        if self.ok:
            return self
        parts = []
        failed, missing = self.failed, [str(n) for n in self.missing]
        if failed:
            parts.append("failed on " + ", ".join(str(r.node) for r in failed))
        if missing:
            parts.append("no answer from " + ", ".join(missing))
        if self.skipped:
            parts.append("not sent to " + ", ".join(map(str, self.skipped)))
        revoked = set(self.revoked)
        strange = [node for node in self.unknown if node not in revoked]
        if strange:
            parts.append("never seen: " + ", ".join(map(str, strange)))
        if self.revoked:
            parts.append("revoked: " + ", ".join(map(str, self.revoked)))
        detail = f" ({failed[0].sentence()})" if failed else ""
        raise FleetFailed(f"{self.verb.cmd}: {'; '.join(parts)}{detail}", failed, missing)

    # Waiting.

    def wait(self, timeout: Timeout = DEFAULT) -> Fleet:
        """Waits until all have answered or `timeout` seconds (of each batch, where there are batches) are over.

        Returns itself either way: `missing` says who did not answer, `raise_for_status()` makes it an error.
        """
        for _ in self.stream(timeout):
            pass
        return self

    def stream(self, timeout: Timeout = DEFAULT, tick: float = 0) -> Iterator[Any]:
        """The results that are still to come, as they come.

        With `tick`, also `None` at least every so many seconds, so that the caller can do something else.
        """
        limit = self.client._limit(timeout)
        began = time.monotonic()
        self._given_up = False
        self._open.update((job_id, (node, began)) for job_id, node in self._late.items())
        self._late.clear()
        if self._begun:
            self._begun = False
            try:
                self._look(force=True)
            except Unavailable as e:
                if not e.passing:
                    raise
                self._looked = 0.0  # the waiting below bridges that, and looks again
        yield from self._handed()
        while not self._over():
            try:
                self._step(limit, began, tick)
            finally:
                yield from self._handed()
            if tick:
                yield None

    def _handed(self) -> Iterator[Result]:
        while self._fresh:
            yield self._fresh.popleft()

    def _over(self) -> bool:
        sent = not self._open and not self._returning and not self._unsent
        return sent and (not self._fan or self._fan_over())

    def _fan_over(self) -> bool:
        return self._given_up or (self._fan_known and all(node in self._done for node in self.nodes))

    def _send(self) -> None:
        at_work = len(self._open) + len(self._returning)
        room = self._batch - at_work if self._batch else len(self._unsent)
        if self._max_failures is not None and self.failures + len(self._late) > self._max_failures:
            self.skipped.extend(NodeId(c.gid, c.nid) for c in self._unsent)
            self._unsent.clear()
        now = time.monotonic()
        group = [self._unsent.popleft() for _ in range(min(room, len(self._unsent)))]
        if group:
            try:
                if self._returns:
                    self._before.update(self._instances([NodeId(c.gid, c.nid) for c in group]))
                self.client.push(group)
            except Error:
                # Should they have arrived after all, their ids keep them from running twice.
                self._unsent.extendleft(reversed(group))
                raise
            for command in group:
                self._open[command.id] = NodeId(command.gid, command.nid), now

    def _step(self, limit: Optional[float], began: float, tick: float) -> None:
        """One blocking read at most."""
        # A wait begins anew with each call of `stream`, so time spent before it does not count.
        deadlines = [max(sent, began) + limit for _, sent in self._open.values()] if limit is not None else []
        if limit is not None:
            deadlines += [max(came, began) + limit for _, came in self._returning.values()]
        if self._fan and limit is not None:
            deadlines.append(max(self._fan_sent, began) + limit)
        deadline = min(deadlines) if deadlines else None
        pause = Pause(deadline)
        wait = min(pause.left(), tick) if tick else pause.left()
        while True:
            try:
                if self._fan:
                    self._read_fan(wait)
                else:
                    self._read_lists(wait)
                break
            except Error as e:
                pause.after(e)
        if limit is not None and deadline is not None and not self._fresh and time.monotonic() >= deadline:
            self._look(force=True)
            self._give_up(limit, began)
        while self._unsent:
            try:
                self._send()
                break
            except Error as e:
                pause.after(e)

    def _give_up(self, limit: float, began: float) -> None:
        now = time.monotonic()
        for node, (result, came) in list(self._returning.items()):
            if now >= max(came, began) + limit:
                del self._returning[node]
                reason = f"the agent ended, and nothing started it again within {limit:g} s"
                self._settle(dataclasses.replace(result, state="ERROR", level=0, data=reason), node)
        for job_id, (node, sent) in list(self._open.items()):
            if now >= max(sent, began) + limit:
                del self._open[job_id]
                self._late[job_id] = node
        if self._fan and now >= max(self._fan_sent, began) + limit:
            self._given_up = True

    def _take(self, result: Result, node: NodeId) -> None:
        if node in self._done or node in self._returning:
            return
        if result.node != node:  # a controller of 0.1.0 that answered for it
            result = dataclasses.replace(result, gid=node.gid, nid=node.nid)
        if self._returns and result.ok:
            self._returning[node] = result, time.monotonic()
        else:
            self._settle(result, node)

    def _settle(self, result: Result, node: NodeId) -> None:
        self._done.add(node)
        self.returned += 1
        self.failures += not result.ok
        if self._keep:
            self.results[node] = result
        self._fresh.append(result)

    def _instances(self, nodes: Sequence[NodeId]) -> Dict[NodeId, bytes]:
        """Which start of its agent each node has told its controller last."""
        answers = self.client.link.bulk([("HGET", wire.agent_hash(node), "instance") for node in nodes])
        return {node: answer or b"" for node, answer in zip(nodes, answers)}

    def _take_restarted(self) -> None:
        """Takes the answers of the nodes whose agents have started again."""
        now = time.monotonic()
        if now - self._asked_back < RETURN_SECONDS:
            return
        self._asked_back = now
        now_is = self._instances(list(self._returning))
        for node, instance in now_is.items():
            if instance not in (b"", self._before.get(node)):
                self._settle(self._returning.pop(node)[0], node)

    def _read_fan(self, wait: float) -> None:
        assert self._fan
        key = wire.result_list(self._fan)
        popped = self.client.link.pop([key], min(wait, 0.05) if not self._fan_known else wait)
        raws = [popped[1]] if popped else []
        full = bool(raws)
        while full:
            more = [raw for raw in self.client.link.bulk([("RPOP", key)] * DRAIN) if raw is not None]
            raws.extend(more)
            full = len(more) == DRAIN
        results = [result for result in map(Result.from_json, raws) if result is not None]
        unnamed = [result for result in results if not result.nid]
        if unnamed or not self._fan_known:
            # The hash says whom the controller gave it to, and for which of them it answered: it is written first.
            # Nothing is taken before, for what a cut connection loses now is found in the hash later.
            self._look(force=True)
        elif not results:
            self._look()
        given = set(self.nodes)
        for result in results:
            if result.nid and not self._fan_known and result.node not in given:
                self.nodes.append(result.node)
                given.add(result.node)
            if result.node in given:  # else nobody has asked that node
                self._take(result, result.node)
        if unnamed and not self._fan_known:  # nobody was there
            nobody = unnamed[0].node
            self.nodes, self._fan_known = [nobody], True
            self._take(unnamed[0], nobody)

    def _read_lists(self, wait: float) -> None:
        if self._returning:
            wait = min(wait, RETURN_SECONDS)
            self._take_restarted()
            if self._fresh:
                return
            if not self._open:
                time.sleep(wait)
        if not self._open:
            return
        ids = list(self._open)
        keys = {wire.result_list(job_id): job_id for job_id in ids[:MANY]}
        now = time.monotonic()
        if len(ids) > MANY:
            wait = min(wait, SWEEP_SECONDS)
        popped = self.client.link.pop(list(keys), wait)
        if popped:
            self._arrived(wire.text(popped[0])[len(wire.result_list("")) :], popped[1])
        if len(ids) > 1 and (popped is None or len(ids) > MANY) and now - self._swept >= SWEEP_SECONDS:
            self._swept = now
            rest = [job_id for job_id in ids if job_id in self._open]
            for job_id, raw in zip(rest, self.client.link.bulk([("RPOP", wire.result_list(i)) for i in rest])):
                if raw is not None:
                    self._arrived(job_id, raw)
        if not self._fresh:
            self._look()

    def _arrived(self, job_id: str, raw: bytes) -> None:
        result = Result.from_json(raw)
        if result is not None and job_id in self._open and answers_for(result, self._open[job_id][0]):
            node, _ = self._open.pop(job_id)
            self._take(result, node)

    def _look(self, force: bool = False) -> None:
        """Takes what the jobs' hashes hold: results that somebody else, or a cut connection, took off the lists."""
        now = time.monotonic()
        if not force and now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        if self._fan:
            found = self.client._info(self._fan)
            if found is not None:
                self._look_into(found)
            return
        ids = list(self._open)
        commands = [("HGET", wire.job_hash(job_id), self._open[job_id][0].key) for job_id in ids]
        for job_id, raw in zip(ids, self.client.link.bulk(commands)):
            late = Result.from_json(raw) if raw else None
            if late is not None:
                self._take(late, self._open.pop(job_id)[0])
                self.client._forget(late)

    def _look_into(self, found: JobInfo) -> None:
        # The controller decides whom a fanout means, a moment after the client did. Where that is nobody, its answer
        # stands for all.
        given = nodes_of(found) or list(found.results)
        if given:
            self.nodes, self._fan_known = sorted({*given, *self._done}), True
        before = self.returned
        for node in given:
            if node in found.results:
                self._take(found.results[node], node)
        if self.returned > before and self._fan_over():
            self.client._forget(self._fresh[-1])

    # What can be done to all of them.

    def kill(self, timeout: Timeout = DEFAULT) -> Dict[NodeId, Result]:
        """Kills it on every node that has not answered."""
        return self.client._ask_each({n: verbs.kill(self.job_id(n)) for n in self.missing}, timeout)

    def withdraw(self, timeout: Timeout = WITHDRAW_SECONDS) -> Dict[NodeId, str]:
        """Withdraws it from the nodes that have not answered and not started it; there it ends `KILLED`.

        Returns for each of them an empty text when it was withdrawn, else the sentence that says why not.
        """
        nodes = [node for node in self.missing if node not in self._returning]
        told = self.client._withdraw({node: self.job_id(node) for node in nodes}, timeout)
        gone = {node for node, why in told.items() if not why}
        # What it says of that lies in the jobs' hashes too. A list on which others may still answer is left alone.
        if not self._fan or (not self._recurs and self._done | gone >= set(self.nodes)):
            lists = {wire.result_list(self.job_id(node)) for node in gone}
            self.client.link.bulk([("DEL", key) for key in lists])
        return told

    def signal(self, name: Union[str, int], timeout: Timeout = DEFAULT) -> Dict[NodeId, Result]:
        """Sends a signal to it on every node that has not answered."""
        return self.client._ask_each({n: verbs.signal(self.job_id(n), name) for n in self.missing}, timeout)


def part_id(fleet_id: str, node: NodeId) -> str:
    """A new id for one node's job in a fleet of many jobs.

    Each node knows its own id, so the others must not follow from it.
    """
    return f"{fleet_id}.{node.gid}.{node.nid}.{os.urandom(8).hex()}"
