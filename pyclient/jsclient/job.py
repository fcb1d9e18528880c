"""A job of one node."""

from __future__ import annotations

import threading
import time
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Set, Tuple, Union

from . import commands, keys
from ._session import Session
from ._timeouts import DEFAULT, Timeout, WaitTimer
from .commands import Levels
from .errors import Error, JobNotFoundError, UsageError, WaitTimeoutError, job_not_found_error
from .frames import Chunk, Line, LineSplitter
from .keys import NodeId
from .result import Result
from .stream import WatchReader, read_output
from .wire import JobInfo, Record

#: A job that was found by its id may be unknown to Redis for this time, in seconds, while a controller takes it.
UNKNOWN_JOB_TIMEOUT_SECONDS = 1.0


class Job:
    """A job of one node. Its methods may be called from any thread."""

    def __init__(self, client: Session, job_id: str, node: Optional[NodeId] = None, found: bool = False) -> None:
        #: The client that sent or found the job.
        self.client = client
        #: The id, unique over all nodes.
        self.id = job_id
        self._node = node
        # When this process sent the job; `None` for a job that was found by its id.
        self._sent = None if found else time.monotonic()
        self._result: Optional[Result] = None
        # The targets of a job that was found by its id.
        self._targets: Optional[Set[NodeId]] = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Job {self.id} on {self._node or '?'}: {self._result.state if self._result else 'open'}>"

    @property
    def node(self) -> NodeId:
        """Return the node of the job; the first of its nodes when the job was found by its id."""
        if self._node is None:
            targets = nodes_of(self.info())
            if not targets:
                raise JobNotFoundError(f"job {self.id} was given to no node")
            self._node = targets[0]
        return self._node

    def info(self) -> JobInfo:
        """Return the state of the job; raise `JobNotFoundError` when Redis does not know it."""
        return self.client.job_info(self.id)

    def _info(self) -> Optional[JobInfo]:
        """Return the state of the job; `None` when this process sent it and no controller has taken it yet."""
        found = self.client._info(self.id)
        if found is None and (self._sent is None or time.monotonic() - self._sent > keys.JOB_TTL_SECONDS):
            raise job_not_found_error(self.id)
        return found

    @property
    def state(self) -> str:
        """Return `QUEUED`, `RUNNING`, `OK`, `ERROR`, `TIMEOUT` or `KILLED`; raise `JobNotFoundError`."""
        if self._result is not None:
            return self._result.state
        found = self._info()
        if found is None:
            return "QUEUED"
        return found.states.get(self._node, found.state) if self._node else found.state

    @property
    def result(self) -> Optional[Result]:
        """Return the result, `None` while there is none; do not wait. Raise `JobNotFoundError`."""
        if self._result is None:
            found = self._info()
            if found is not None:
                self._finish(self._pick(found))
        return self._result

    @property
    def stdout(self) -> str:
        """Return the last lines of stdout; empty while the job runs."""
        result = self.result
        return result.stdout if result else ""

    @property
    def stderr(self) -> str:
        """Return the last lines of stderr; empty while the job runs."""
        result = self.result
        return result.stderr if result else ""

    @property
    def value(self) -> Any:
        """Wait for the result and return its decoded data; raise `JobFailedError` when it is not `OK`."""
        return self.wait().raise_for_status().value

    def wait(self, timeout: Timeout = DEFAULT) -> Result:
        """Wait for the result and return it, also when it is not `OK`.

        `timeout` is in seconds; `None` waits without limit; the default is the timeout of the client. Raise
        `WaitTimeoutError` with the state of the job when the time is over; the job continues. Raise
        `JobNotFoundError` within a second for a job that was found by its id and is neither known nor in the queue.
        """
        return self._wait(timeout)

    def _wait(self, timeout: Timeout, check: Callable[[], None] = lambda: None) -> Result:
        """Wait as `wait` does; call `check` every few seconds without a result. Its exceptions end the wait."""
        if self._result is None:
            limit = self.client._resolve_timeout(timeout)
            result = self._await(limit, check=check)
            if result is None:
                raise WaitTimeoutError(self.client.explain_wait(self.id, self._node, limit))
            with self._lock:
                self._result = self._result or result
        return self._result

    def results(self, timeout: Timeout = DEFAULT) -> Iterator[Result]:
        """Yield the results of a recurring job; end after `timeout` seconds without one. Raise as `wait` does."""
        limit = self.client._resolve_timeout(timeout)
        while True:
            result = self._await(limit, once=False)
            if result is None:
                return
            yield result

    def _await(
        self, limit: Optional[float], once: bool = True, check: Callable[[], None] = lambda: None
    ) -> Optional[Result]:
        client = self.client
        deadline = None if limit is None else time.monotonic() + limit
        key = keys.result_list(self.id)
        timer = WaitTimer(deadline)
        is_unverified = self._sent is None and self._result is None
        unknown_until = time.monotonic() + UNKNOWN_JOB_TIMEOUT_SECONDS if is_unverified else None
        while True:
            if once and self._result is not None:
                return self._result  # another waiting thread received it
            seconds = timer.remaining()
            if unknown_until is not None:
                seconds = min(seconds, UNKNOWN_JOB_TIMEOUT_SECONDS / 2)
            try:
                popped = client.connection.pop([key], seconds)
                timer.reset()
            except Error as e:
                timer.back_off(e)
                popped = None
            if popped:
                result = Result.from_json(popped[1])
                if result is not None and self._is_expected(result):
                    return result
                if timer.expired():
                    return None
                continue
            if once or unknown_until is not None:
                # Another client, or a connection that broke, may have taken the result off the list.
                try:
                    found = client._info(self.id)
                    if not found or not found.results:
                        check()
                    if found is not None:
                        unknown_until = None
                    elif unknown_until is not None and (timer.expired() or time.monotonic() >= unknown_until):
                        self._require_queued()
                except Error as e:
                    timer.back_off(e)
                    found = None
                result = self._pick(found) if found and once else None
                if result is not None:
                    return result
            if timer.expired():
                return None

    def _require_queued(self) -> None:
        """Raise `JobNotFoundError` unless the job may be among the commands that no controller has taken."""
        if not self.client.connection.read("LLEN", keys.QUEUE):
            self._info()

    def _is_expected(self, result: Result) -> bool:
        """Return whether a result is from a target of the job; true when the targets are unknown."""
        if not result.nid:
            # A controller of 0.1.0 does not name the node that it answered for; the hash does.
            found = self.client._info(self.id)
            return found is None or len(nodes_of(found)) < 2
        if self._sent is not None and self._node is not None:
            return result.node == self._node
        if self._targets is None:
            found = self.client._info(self.id)
            self._targets = {*(found.targets or ()), *found.states} if found else set()
        return not self._targets or result.node in self._targets

    def _pick(self, info: JobInfo) -> Optional[Result]:
        """Return the result from the hash; delete the list of results once no node is open."""
        result = info.results.get(self._node) if self._node else None
        if result is None and not info.open:
            # The node of a role is known only now; a controller answers with node id 0 when no node matched.
            result = next((r for n, r in sorted(info.results.items()) if not (self._node and n.nid)), None)
        if result is not None and not info.open:
            self.client._forget(result)
        return result

    def _finish(self, result: Optional[Result]) -> None:
        if result is not None:
            with self._lock:
                self._result = self._result or result

    def kill(self, timeout: Timeout = DEFAULT) -> Result:
        """End the job: its stop signal, then KILL; it is not restarted and does not recur."""
        return self.client._ask(self.node, commands.kill(self.id), timeout)

    def signal(self, name: Union[str, int], timeout: Timeout = DEFAULT) -> Result:
        """Send a signal (`"HUP"`, `"SIGHUP"` or 1) to the process group of the job."""
        return self.client._ask(self.node, commands.signal(self.id, name), timeout)

    def unschedule(self, timeout: Timeout = DEFAULT) -> Result:
        """End the recurrence of the job; the run in progress continues to its end."""
        return self.client._ask(self.node, commands.unschedule(self.id), timeout)

    def cancel(self, timeout: Timeout = DEFAULT) -> bool:
        """Withdraw the job when its node has not taken it; it ends `KILLED`. Return whether it was withdrawn."""
        return not self.client._withdraw({self.node: self.id}, timeout)[self.node]

    def stats(self, timeout: Timeout = DEFAULT) -> Dict[str, Any]:
        """Return the current resource usage (cpu, rss, …); raise `JobFailedError` when the job does not run."""
        value = self.client._ask(self.node, commands.process_stats(self.id), timeout).value
        if not isinstance(value, dict):
            raise UsageError(f"node {self.node} did not answer an object")
        return value

    def logs(
        self,
        levels: Optional[Levels] = None,
        since: Optional[int] = None,
        follow: bool = False,
        timeout: Timeout = DEFAULT,
    ) -> Iterator[Record]:
        """Yield the records of the job from the database of its node; with `follow` until the job has ended."""
        until = self._has_ended if follow else None
        return self.client.logs(self.node, job=self.id, levels=levels, since=since, follow=follow, until=until,
                                timeout=timeout)

    def stream(self, timeout: Optional[float] = None) -> Iterator[Chunk]:
        """Yield the output as its node sends it: `Chunk`s, the last one of kind `end`.

        For a job that was sent with `stream=True`; begin within 30 seconds, else nobody watches it any more, and read
        it once. The bytes are those that the process wrote; a `gap` says where some are missing. Raise
        `StreamBrokenError` when they are not whole otherwise, and `WaitTimeoutError` when nothing came for `timeout`
        seconds (`None`: without limit). A node whose agent sends no live output yields nothing.
        """
        with WatchReader(self.client) as reader:
            reader.add(self.id, self.node)
            yield from read_output(reader, self.id, self.node, self._written, timeout)

    def lines(self, timeout: Optional[float] = None) -> Iterator[Line]:
        """Yield the lines of stdout and stderr as `stream` does, decoded as UTF-8; each of the two is in order."""
        splitter = LineSplitter()
        for chunk in self.stream(timeout):
            yield from splitter.take(chunk)
        yield from splitter.rest()

    def attach(
        self, tail: int = 0, start: Optional[Tuple[int, int]] = None, timeout: Timeout = DEFAULT
    ) -> Iterator[Chunk]:
        """Yield the output from now on as `stream` does, and before it at least the last `tail` bytes that are left.

        It attaches when the first chunk is asked for. `start` begins at these positions of stdout and stderr instead, or before them where a frame began. Raise
        `JobFailedError` unless the job runs, or was watched and has ended within the hour. `timeout` is for the answer
        of the node.
        """
        spec, watch = commands.attach(self.id, tail, start), keys.new_id()
        with WatchReader(self.client) as reader:
            reader.add(watch, self.node)
            answer = self.client._ask(self.node, spec, timeout, quiet=True, job_id=watch)
            reader.output(watch, self.node).start = commands.attached(answer.value, self.node)
            yield from read_output(reader, watch, self.node, self._written)

    def _written(self, nodes: Sequence[NodeId]) -> Dict[NodeId, Optional[Tuple[int, int]]]:
        return self.client.written(self.id, nodes)

    def _has_ended(self) -> bool:
        return self.result is not None


def is_answer_of(result: Result, node: NodeId) -> bool:
    """Return whether a result on the list of a job of this node is from it, or from a controller that names no node."""
    return not result.nid or result.node == node


def nodes_of(info: JobInfo) -> List[NodeId]:
    """Return the nodes of a job, including those a controller answered for, sorted; else the node of its command."""
    nodes = {*(info.targets or ()), *info.states}
    if not nodes:
        gid, nid = info.command.get("gid"), info.command.get("nid")
        nodes = {NodeId(gid, nid)} if isinstance(gid, int) and isinstance(nid, int) else set()
    return sorted(node for node in nodes if node.nid > 0)
