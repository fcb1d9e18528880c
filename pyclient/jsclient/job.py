"""One command on its way to one node, and what became of it."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Optional, Set, Union

from . import verbs, wire
from .errors import Error, Gone, UsageError, WaitTimeout
from .waiting import DEFAULT, Pause, Timeout
from .wire import NodeId, Record, Result

if TYPE_CHECKING:
    from .client import Client


#: So long (seconds) a job that was only found by its id may be unknown to Redis: a controller takes it meanwhile.
UNKNOWN_SECONDS = 1.0


class Job:
    """A job of one node. Its methods may be called from any thread."""

    def __init__(self, client: Client, job_id: str, node: Optional[NodeId] = None, found: bool = False) -> None:
        self.client = client
        #: The id, unique over the whole fleet.
        self.id = job_id
        self._node = node
        # When it was sent from here; nothing of one that was only looked up by its id.
        self._sent = None if found else time.monotonic()
        self._result: Optional[Result] = None
        # The nodes that it was given to, for a job that was found by its id.
        self._asked: Optional[Set[NodeId]] = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Job {self.id} on {self._node or '?'}: {self._result.state if self._result else 'open'}>"

    @property
    def node(self) -> NodeId:
        """The node that it was sent to; of a job that was found by its id, the first of its nodes."""
        if self._node is None:
            given = nodes_of(self.info())
            if not given:
                raise Gone(f"job {self.id} was given to no node")
            self._node = given[0]
        return self._node

    def info(self) -> wire.JobInfo:
        """What Redis knows of it; `Gone` when that is nothing (any more)."""
        return self.client.job_info(self.id)

    def _info(self) -> Optional[wire.JobInfo]:
        """What Redis knows of it; nothing where it was sent from here and no controller has taken it yet."""
        found = self.client._info(self.id)
        if found is None and (self._sent is None or time.monotonic() - self._sent > wire.JOB_SECONDS):
            raise Gone(f"no job {self.id}: it was never sent, or is older than a day")
        return found

    @property
    def state(self) -> str:
        """`QUEUED`, `RUNNING`, `OK`, `ERROR`, `TIMEOUT` or `KILLED`; `Gone` when Redis does not know the job."""
        if self._result is not None:
            return self._result.state
        found = self._info()
        if found is None:
            return "QUEUED"
        return found.states.get(self._node, found.state) if self._node else found.state

    @property
    def result(self) -> Optional[Result]:
        """The result when it is there; asks, and does not wait. `Gone` when Redis does not know the job."""
        if self._result is None:
            found = self._info()
            if found is not None:
                self._finish(self._pick(found))
        return self._result

    @property
    def stdout(self) -> str:
        """The last lines that it wrote to stdout; empty while it runs."""
        result = self.result
        return result.stdout if result else ""

    @property
    def stderr(self) -> str:
        """The last lines that it wrote to stderr; empty while it runs."""
        result = self.result
        return result.stderr if result else ""

    @property
    def value(self) -> Any:
        """What it returned, decoded by its level; waits for it."""
        return self.wait().raise_for_status().value

    def wait(self, timeout: Timeout = DEFAULT) -> Result:
        """Waits for the result and returns it, whatever its state.

        `timeout` is in seconds, `None` waits for ever; left out, it is the client's. When the time is up
        `WaitTimeout` says where the job stands; the job itself goes on. A job that was found by its id and that Redis
        does not know is `Gone` within `UNKNOWN_SECONDS` (1 second), unless commands wait to be taken by a controller.
        """
        return self._wait(timeout)

    def _wait(self, timeout: Timeout, look: Callable[[], None] = lambda: None) -> Result:
        """`look` is called now and then while nothing comes; what it raises ends the wait."""
        if self._result is None:
            limit = self.client._limit(timeout)
            result = self._await(limit, look=look)
            if result is None:
                raise WaitTimeout(self.client.why_waiting(self.id, self._node, limit))
            with self._lock:
                self._result = self._result or result
        return self._result

    def results(self, timeout: Timeout = DEFAULT) -> Iterator[Result]:
        """The results of a recurring job as they come; ends when none came for `timeout` seconds, `Gone` as `wait`."""
        limit = self.client._limit(timeout)
        while True:
            result = self._await(limit, once=False)
            if result is None:
                return
            yield result

    def _await(
        self, limit: Optional[float], once: bool = True, look: Callable[[], None] = lambda: None
    ) -> Optional[Result]:
        client = self.client
        deadline = None if limit is None else time.monotonic() + limit
        key = wire.result_list(self.id)
        pause = Pause(deadline)
        doubted = None if self._sent is not None or self._result is not None else time.monotonic() + UNKNOWN_SECONDS
        while True:
            if once and self._result is not None:
                return self._result  # another thread that waits had it first
            try:
                popped = client.link.pop([key], pause.left() if doubted is None else min(pause.left(), UNKNOWN_SECONDS / 2))
                pause.reset()
            except Error as e:
                pause.after(e)
                popped = None
            if popped:
                result = Result.from_json(popped[1])
                if result is not None and self._was_asked(result):
                    return result
                if pause.over():
                    return None
                continue
            if once or doubted is not None:
                # Somebody else may have taken it off the list, or a cut connection may have.
                try:
                    found = client._info(self.id)
                    if not found or not found.results:
                        look()
                    if found is not None:
                        doubted = None
                    elif doubted is not None and (pause.over() or time.monotonic() >= doubted):
                        self._still_queued()
                except Error as e:
                    pause.after(e)
                    found = None
                result = self._pick(found) if found and once else None
                if result is not None:
                    return result
            if pause.over():
                return None

    def _still_queued(self) -> None:
        """`Gone` unless it may be among the commands that no controller has taken yet."""
        if not self.client.link.read("LLEN", wire.QUEUE):
            self._info()

    def _was_asked(self, result: Result) -> bool:
        """Whether a result is of a node that the job was given to, as far as that is known."""
        if not result.nid:
            # Of many nodes a controller of 0.1.0 does not name the one that it answered for: the hash does.
            found = self.client._info(self.id)
            return found is None or len(nodes_of(found)) < 2
        if self._sent is not None and self._node is not None:
            return result.node == self._node
        if self._asked is None:
            found = self.client._info(self.id)
            self._asked = {*(found.targets or ()), *found.states} if found else set()
        return not self._asked or result.node in self._asked

    def _pick(self, info: wire.JobInfo) -> Optional[Result]:
        """Its result in the hash; the list, which may be that of other nodes too, is deleted once all are there."""
        result = info.results.get(self._node) if self._node else None
        if result is None and not info.open:
            # A role's node is known only now, and a controller answers for nobody under the number 0.
            result = next((r for n, r in sorted(info.results.items()) if not (self._node and n.nid)), None)
        if result is not None and not info.open:
            self.client._forget(result)
        return result

    def _finish(self, result: Optional[Result]) -> None:
        if result is not None:
            with self._lock:
                self._result = self._result or result

    def kill(self, timeout: Timeout = DEFAULT) -> Result:
        """Ends it: its stop signal, then KILL; it is forgotten, so that no restart follows."""
        return self.client._ask(self.node, verbs.kill(self.id), timeout)

    def signal(self, name: Union[str, int], timeout: Timeout = DEFAULT) -> Result:
        """Sends a signal (`"HUP"`) to its process group."""
        return self.client._ask(self.node, verbs.signal(self.id, name), timeout)

    def unschedule(self, timeout: Timeout = DEFAULT) -> Result:
        """Lets the run under way end, and no other follow."""
        return self.client._ask(self.node, verbs.unschedule(self.id), timeout)

    def cancel(self, timeout: Timeout = DEFAULT) -> bool:
        """Withdraws it while it still waits for its node: it ends `KILLED`. False when it is too late for that."""
        return not self.client._cancel(self.id, [self.node], timeout)[self.node]

    def stats(self, timeout: Timeout = DEFAULT) -> Dict[str, Any]:
        """What it uses now (cpu, rss, …); a `JobFailed` when it does not run."""
        value = self.client._ask(self.node, verbs.process_stats(self.id), timeout).value
        if not isinstance(value, dict):
            raise UsageError(f"node {self.node} answered no object")
        return value

    def logs(
        self,
        levels: Optional[verbs.Levels] = None,
        since: Optional[int] = None,
        follow: bool = False,
        timeout: Timeout = DEFAULT,
    ) -> Iterator[Record]:
        """Its records, from the node's database; `follow` goes on until it has ended."""
        until = self._has_ended if follow else None
        return self.client.logs(self.node, job=self.id, levels=levels, since=since, follow=follow, until=until,
                                 timeout=timeout)

    def _has_ended(self) -> bool:
        return self.result is not None


def answers_for(result: Result, node: NodeId) -> bool:
    """Whether a result on the list of this node's own job is its: by itself, or by a controller that names none."""
    return not result.nid or result.node == node


def nodes_of(info: wire.JobInfo) -> List[NodeId]:
    """The nodes that a job was given to, those included that the controller answered for; else the one it names."""
    given = {*(info.targets or ()), *info.states}
    if not given:
        gid, nid = info.command.get("gid"), info.command.get("nid")
        given = {NodeId(gid, nid)} if isinstance(gid, int) and isinstance(nid, int) else set()
    return sorted(node for node in given if node.nid > 0)
