"""Commands for one node."""

from __future__ import annotations

import time
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Union

from . import commands, keys, withdrawal
from ._controllers import ControllerWatch
from ._session import NodeLike, Session
from ._timeouts import DEFAULT, Timeout
from .commands import CommandSpec, Data, Levels
from .errors import Error, NoMatchingNodesError, WaitTimeoutError
from .fleet import WITHDRAW_TIMEOUT_SECONDS, Fleet
from .job import Job
from .keys import NodeId
from .result import Result
from .shell import Shell, login_shell, terminal
from .stream import WatchReader, read_output
from .values import integer
from .wire import Command, Record, as_dict, as_list

#: A quiet command expires after this time, in seconds.
QUIET_EXPIRY_SECONDS = 30
#: A ping without an answer checks after this time, in seconds, whether its node is online.
PRESENCE_CHECK_SECONDS = 1.0
#: Most records of one `get_msgs`.
MAX_RECORDS = 1000


class NodeCommands(Session):
    """Commands for one node. All but `execute` and `send` wait for the answer.

    Those that wait raise `JobFailedError` when the node answers with an error, `WaitTimeoutError` after `timeout`
    seconds (then the command is withdrawn if it has not started), and `RedisUnavailableError` or `NoControllerError`.
    """

    def execute(
        self,
        gid: int,
        nid: int,
        cmd: str,
        args: Optional[Sequence[object]] = None,
        *,
        data: Data = "",
        tags: str = "",
        expires: int = 0,
        id: Optional[str] = None,
        **options: Any,
    ) -> Job:
        """Start a program on a node and return its `Job` without waiting.

        `args` is a list of words. Without `args`, `cmd` is split into words as a shell does; no shell runs.
        `data` goes to stdin. `expires` is in seconds (0: one day). `options` are `workingdir`, `env`, `max_time`
        (seconds), `max_restart`, `recurring_period` (seconds), `domain`, `name`, `queue`, `user`, `nice`, `rlimits`
        and the other arguments of the protocol. Raise `UsageError` for an unknown option.
        """
        spec = commands.execute(cmd, args, data=data, **options)
        return self._start(gid, nid, spec, tags, expires, id)

    def send(
        self,
        gid: int,
        nid: int,
        cmd: str,
        args: Optional[Mapping[str, Any]] = None,
        data: Data = "",
        *,
        tags: str = "",
        expires: int = 0,
        id: Optional[str] = None,
    ) -> Job:
        """Send any command to a node and return its `Job` without waiting."""
        return self._start(gid, nid, commands.raw(cmd, args, data), tags, expires, id)

    def open_shell(
        self,
        gid: int,
        nid: int,
        cmd: str = "",
        args: Optional[Sequence[object]] = None,
        *,
        rows: int = 24,
        columns: int = 80,
        term: str = "xterm",
        **options: Any,
    ) -> Shell:
        """Start a program on a terminal of a node (Linux), by default the login shell of the agent's user.

        Begin to read the `Shell` within 30 seconds. `options` are those of `execute`. Raise `UsageError`.
        """
        if cmd:
            spec = commands.execute(cmd, args, **terminal(options, rows, columns, term))
        else:
            spec = login_shell(options, rows, columns, term)
        return Shell(self._start(gid, nid, spec, "", QUIET_EXPIRY_SECONDS, None))

    def get(
        self, gid: int, nid: int, path: str, *, offset: int = 0, length: Optional[int] = None, timeout: Timeout = DEFAULT
    ) -> Iterator[bytes]:
        """Yield the bytes of a regular file of a node, from `offset` on and at most `length` of them.

        Raise `JobFailedError` when the node has no such file, `StreamBrokenError` when the bytes are not whole, and
        `WaitTimeoutError` when nothing came for `timeout` seconds.
        """
        node, watch = NodeId(gid, nid), keys.new_id()
        with WatchReader(self) as reader:
            reader.add(watch, node)
            self._ask(node, commands.get(path, offset, length), timeout, quiet=True, job_id=watch)
            for chunk in read_output(reader, watch, node, lambda nodes: {}, self._resolve_timeout(timeout)):
                if chunk.data:
                    yield chunk.data

    def ping(self, gid: int, nid: int, timeout: Timeout = DEFAULT) -> str:
        """Return `"pong"`; raise `NoMatchingNodesError` after about a second when the node is offline."""
        return str(self._ask(NodeId(gid, nid), commands.ping(), timeout, present=True).value)

    def info(self, gid: int, nid: int, kind: str, timeout: Timeout = DEFAULT) -> Any:
        """Return the decoded answer to one of the kinds `cpu`, `mem`, `disk`, `nic`, `os`."""
        return self._ask(NodeId(gid, nid), commands.info(kind), timeout).value

    def get_cpu_info(self, gid: int, nid: int, timeout: Timeout = DEFAULT) -> Dict[str, Any]:
        """Return `arch`, `brand`, `physical`, `logical`, `mhz`, `usage` (a list, percent of each), `load` (a list of 3)."""
        return as_dict(self.info(gid, nid, "cpu", timeout))

    def get_mem_info(self, gid: int, nid: int, timeout: Timeout = DEFAULT) -> Dict[str, Any]:
        """Return `total`, `available`, `used`, `free`, `swap_total`, `swap_used`, in bytes."""
        return as_dict(self.info(gid, nid, "mem", timeout))

    def get_disk_info(self, gid: int, nid: int, timeout: Timeout = DEFAULT) -> List[Dict[str, Any]]:
        """Return for each disk `device`, `mount`, `fstype`, `total`, `used`, `free` (bytes), `readonly`, `removable`."""
        return as_list(self.info(gid, nid, "disk", timeout))

    def get_nic_info(self, gid: int, nid: int, timeout: Timeout = DEFAULT) -> List[Dict[str, Any]]:
        """Return for each interface `name`, `mac`, `mtu`, `addrs`, `rx_bytes`, `tx_bytes`, `rx_errors`, `tx_errors`."""
        return as_list(self.info(gid, nid, "nic", timeout))

    def get_os_info(self, gid: int, nid: int, timeout: Timeout = DEFAULT) -> Dict[str, Any]:
        """Return `hostname`, `os`, `name`, `version`, `kernel`, `arch`, `uptime`, `boottime` (seconds), `agent`."""
        return as_dict(self.info(gid, nid, "os", timeout))

    def get_process_stats(self, gid: int, nid: int, job: str, timeout: Timeout = DEFAULT) -> Dict[str, Any]:
        """Return the resource usage of one running job."""
        return as_dict(self._ask(NodeId(gid, nid), commands.process_stats(job), timeout).value)

    def get_processes_stats(
        self, gid: int, nid: int, domain: str = "", name: str = "", timeout: Timeout = DEFAULT
    ) -> List[Dict[str, Any]]:
        """Return the resource usage of each running job, of one domain and name where given."""
        return as_list(self._ask(NodeId(gid, nid), commands.processes(domain, name), timeout).value)

    def get_schedules(self, gid: int, nid: int, timeout: Timeout = DEFAULT) -> List[Dict[str, Any]]:
        """Return for each recurring job `id`, `domain`, `name`, `period` (s), `next`, `last_start` (ms), `last_state`."""
        return as_list(self._ask(NodeId(gid, nid), commands.schedules(), timeout).value)

    def get_msgs(
        self,
        gid: int,
        nid: int,
        job: str = "",
        *,
        since: Optional[int] = None,
        until: Optional[int] = None,
        levels: Optional[Levels] = None,
        limit: Optional[int] = None,
        after: Optional[int] = None,
        quiet: bool = False,
        timeout: Timeout = DEFAULT,
    ) -> List[Record]:
        """Return records from the database of a node, oldest first, at most 1000; `logs` reads further pages.

        `since` and `until` are milliseconds since 1970, `after` is the id of a record. `quiet` keeps the command out
        of the history and the audit list.
        """
        node = NodeId(gid, nid)
        spec = commands.messages(job, since=since, until=until, levels=levels, limit=limit, after=after)
        return [Record.from_dict(raw, node) for raw in as_list(self._ask(node, spec, timeout, quiet=quiet).value)]

    def del_msgs(
        self,
        gid: int,
        nid: int,
        job: str = "",
        *,
        since: Optional[int] = None,
        until: Optional[int] = None,
        levels: Optional[Levels] = None,
        limit: Optional[int] = None,
        timeout: Timeout = DEFAULT,
    ) -> int:
        """Delete records on a node and return their number; arguments as for `get_msgs`."""
        spec = commands.messages(job, since=since, until=until, levels=levels, limit=limit, delete=True)
        return integer(as_dict(self._ask(NodeId(gid, nid), spec, timeout).value).get("deleted"))

    def kill(self, gid: int, nid: int, job: str, timeout: Timeout = DEFAULT) -> Result:
        """End a job; it is not restarted and does not recur."""
        return self._ask(NodeId(gid, nid), commands.kill(job), timeout)

    def killall(self, gid: int, nid: int, timeout: Timeout = DEFAULT) -> Result:
        """End every process; recurring jobs keep their schedule, remembered jobs start again."""
        return self._ask(NodeId(gid, nid), CommandSpec("killall"), timeout)

    def signal(self, gid: int, nid: int, job: str, name: Union[str, int], timeout: Timeout = DEFAULT) -> Result:
        """Send a signal (`"HUP"`, `"SIGHUP"` or 1) to the process group of a job."""
        return self._ask(NodeId(gid, nid), commands.signal(job, name), timeout)

    def unschedule(self, gid: int, nid: int, job: str, timeout: Timeout = DEFAULT) -> Result:
        """End the recurrence of a job; the run in progress continues to its end."""
        return self._ask(NodeId(gid, nid), commands.unschedule(job), timeout)

    def restart(self, gid: int, nid: int, timeout: Timeout = DEFAULT) -> Result:
        """Restart the agent of a node and wait until its service manager has started it again."""
        node = self._node_id((gid, nid))
        fleet = Fleet.each(self, {node: CommandSpec("restart")}, await_restart=True).wait(timeout)
        if node not in fleet.results:
            self._withdraw_quietly({node: fleet.id})
            raise WaitTimeoutError(self.explain_wait(fleet.id, node, self._resolve_timeout(timeout)))
        return fleet.results[node].raise_for_status()

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
        """Yield the records of a node, oldest first.

        `since` and `until_ms` are milliseconds since 1970. With `follow` it reads again every `every` seconds,
        until `until()` returns true. The history and the audit list have the first command alone, and with `follow`
        none.
        """
        node_id = self._node_id(node)
        after: Optional[int] = None
        while True:
            last_time = until() if follow and until is not None else False
            want = MAX_RECORDS if limit is None else min(MAX_RECORDS, limit)
            batch = self.get_msgs(
                *node_id, job, since=since, until=until_ms, levels=levels, limit=want, after=after,
                quiet=follow or after is not None, timeout=timeout,
            )
            yield from batch
            if batch:
                after = batch[-1].id
            if limit is not None:
                limit -= len(batch)
                if limit <= 0:
                    return
            if len(batch) >= want:
                continue
            if not follow or last_time:
                return
            time.sleep(every)

    def _start(
        self, gid: int, nid: int, spec: CommandSpec, tags: str, expires: int, job_id: Optional[str], quiet: bool = False
    ) -> Job:
        node = self._node_id((gid, nid))
        command = Command(spec.cmd, gid, nid, spec.args, spec.data, tags=tags, expires=expires, quiet=quiet)
        if job_id is not None:
            command.id = keys.check_id(job_id)
        self.push([command])
        return Job(self, command.id, node)

    def _ask(
        self, node: NodeId, spec: CommandSpec, timeout: Timeout = DEFAULT, quiet: bool = False, present: bool = False,
        job_id: Optional[str] = None,
    ) -> Result:
        """Send a command to one node and return its result; withdraw the command when it has not started in time.

        With `present` raise `NoMatchingNodesError` soon when the node is offline.
        """
        limit = self._resolve_timeout(timeout)
        job = self._start(node.gid, node.nid, spec, "", QUIET_EXPIRY_SECONDS if quiet else 0, job_id, quiet)
        try:
            if present and (limit is None or limit > PRESENCE_CHECK_SECONDS):
                try:
                    return job.wait(PRESENCE_CHECK_SECONDS).raise_for_status()
                except WaitTimeoutError:
                    absence = self._explain_absence(node)
                    if absence:
                        self._withdraw_quietly({node: job.id})
                        raise NoMatchingNodesError(absence) from None
                    limit = None if limit is None else limit - PRESENCE_CHECK_SECONDS
            watch = ControllerWatch(self)
            return job._wait(limit, watch.check if spec.read_only else lambda: None).raise_for_status()
        except WaitTimeoutError as e:
            if quiet or not self._withdraw_quietly({node: job.id}):
                raise
            raise WaitTimeoutError(f"{e}; it was withdrawn") from None

    def _ask_each(self, specs: Mapping[NodeId, CommandSpec], timeout: Timeout = DEFAULT) -> Dict[NodeId, Result]:
        return Fleet.each(self, specs).wait(timeout).results if specs else {}

    def _withdraw(self, jobs: Mapping[NodeId, str], timeout: Timeout = DEFAULT) -> Dict[NodeId, str]:
        return withdrawal.withdraw(self, jobs, timeout)

    def _withdraw_quietly(self, jobs: Mapping[NodeId, str]) -> bool:
        """Withdraw commands and delete their results; return whether all were withdrawn."""
        try:
            reasons = self._withdraw(jobs, WITHDRAW_TIMEOUT_SECONDS)
            lists = [keys.result_list(jobs[node]) for node, reason in reasons.items() if not reason]
            self.connection.bulk([("DEL", key) for key in lists])
        except Error:
            return False
        return not any(reasons.values())
