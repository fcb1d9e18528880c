"""The client: one Redis, every node behind it."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

from . import grants, scripts, target, verbs, wire, withdrawal
from . import nodes as nodes_
from .errors import Error, NobodyMatched, NoController, UsageError, WaitTimeout
from .fleet import WITHDRAW_SECONDS, Fleet
from .job import Job, nodes_of
from .link import Link
from .looking import Looking
from .nodes import ago
from .target import Selection, Target
from .targeted import Targeted
from .verbs import Data, Levels, Verb
from .waiting import DEFAULT, Default, Timeout
from .wire import Command, NodeId, Record, Result, as_dict, as_list

Node_ = Union[str, NodeId, Tuple[int, int]]
Target_ = Union[str, NodeId, Target]

DEFAULT_URL = "redis://localhost:6379"
#: Questions that are asked again and again wait for their node so long (seconds).
QUIET_SECONDS = 30
#: After so long without an answer a ping looks whether its node is there (seconds).
PRESENT_SECONDS = 1.0
#: A question is given up when no controller has been left to carry its answer for so long (seconds).
CONTROLLER_SECONDS = 10.0
#: How long a controller's beat, once seen, is taken for granted (seconds).
_TRUST_SECONDS = 5.0


class ControllerWatch:
    """Looks, while somebody waits for an answer, whether a controller is left to carry it."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._gone_since: Optional[float] = None

    def missing(self) -> Optional[NoController]:
        """Why no controller is there now; `None` while there is one."""
        try:
            self._client.check()
            self._gone_since = None
        except NoController as e:
            self._gone_since = self._gone_since or time.monotonic()
            return e
        return None

    @property
    def is_over(self) -> bool:
        """Whether none has been there for `CONTROLLER_SECONDS` of looking."""
        return self._gone_since is not None and time.monotonic() - self._gone_since >= CONTROLLER_SECONDS

    def look(self) -> None:
        """Raises `NoController` once the wait is over."""
        fault = self.missing()
        if fault and self.is_over:
            raise fault


class Client(Looking):
    """Talks to a fleet through its Redis. Safe for threads; connections are made when needed.

    `url`: `redis://user:pw@host:port/db`, `rediss://…`, `unix:///path`, or `host:port`; several with commas
    between for a cluster; `sentinel://host,host/group`. Left out, it is `JSCTL_REDIS`, or localhost.
    `timeout`: how long the methods wait for a node when they are not told otherwise, in seconds; `None`
    waits for ever. `by`: who is asking, for the audit list; the login name when left out.
    `options` go to redis-py (`ssl_ca_certs=…`, say).
    """

    def __init__(
        self, url: Optional[str] = None, *, timeout: Optional[float] = 60.0, by: Optional[str] = None, **options: Any
    ) -> None:
        self.link = Link(os.environ.get("JSCTL_REDIS") or DEFAULT_URL if url is None else url, **options)
        self.timeout = timeout
        self._by = by
        self._user: Optional[str] = None
        self._beat = -_TRUST_SECONDS
        self._beat_lock = threading.Lock()
        #: How many commands were sent, those included of which it is not known whether they arrived.
        self.sent = 0

    def close(self) -> None:
        """Closes the connections; a later call opens new ones."""
        self.link.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client of {self.link.where}>"

    @property
    def by(self) -> str:
        """Who is asking."""
        if self._by is None:
            import getpass

            try:
                # An account's name may be no UTF-8.
                self._by = getpass.getuser().encode("utf-8", "replace").decode()
            except (OSError, KeyError, ImportError):
                self._by = "unknown"
        return self._by

    # One node: each of these waits for the answer, `execute` and `send` do not.

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
        """Starts a program on a node.

        `cmd` with `args` is run as it is; without `args`, `cmd` is split as a shell would split it.
        `data` goes to its stdin. `options` are `workingdir`, `env`, `max_time`, `max_restart`,
        `recurring_period`, `domain`, `name`, `queue`, `user`, `nice`, `rlimits` and the others of the protocol.
        """
        verb = verbs.execute(cmd, args, data=data, **options)
        return self._start(gid, nid, verb, tags, expires, id)

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
        """Sends any command to a node."""
        return self._start(gid, nid, verbs.raw(cmd, args, data), tags, expires, id)

    def ping(self, gid: int, nid: int, timeout: Timeout = DEFAULT) -> str:
        """`"pong"`, from a node that is there; `NobodyMatched` soon when it is not."""
        return str(self._ask(NodeId(gid, nid), verbs.ping(), timeout, present=True).value)

    def info(self, gid: int, nid: int, kind: str, timeout: Timeout = DEFAULT) -> Any:
        """What a node says of its `cpu`, `mem`, `disk`, `nic` or `os`."""
        return self._ask(NodeId(gid, nid), verbs.info(kind), timeout).value

    def get_cpu_info(self, gid: int, nid: int, timeout: Timeout = DEFAULT) -> Dict[str, Any]:
        """`arch`, `brand`, `physical`, `logical`, `mhz`, `usage` (percent of each), `load`."""
        return as_dict(self.info(gid, nid, "cpu", timeout))

    def get_mem_info(self, gid: int, nid: int, timeout: Timeout = DEFAULT) -> Dict[str, Any]:
        """`total`, `available`, `used`, `free`, `swap_total`, `swap_used`, in bytes."""
        return as_dict(self.info(gid, nid, "mem", timeout))

    def get_disk_info(self, gid: int, nid: int, timeout: Timeout = DEFAULT) -> List[Dict[str, Any]]:
        """For each disk `device`, `mount`, `fstype`, `total`, `used`, `free` (bytes), `readonly`, `removable`."""
        return as_list(self.info(gid, nid, "disk", timeout))

    def get_nic_info(self, gid: int, nid: int, timeout: Timeout = DEFAULT) -> List[Dict[str, Any]]:
        """For each card `name`, `mac`, `mtu`, `addrs`, `rx_bytes`, `tx_bytes`, `rx_errors`, `tx_errors`."""
        return as_list(self.info(gid, nid, "nic", timeout))

    def get_os_info(self, gid: int, nid: int, timeout: Timeout = DEFAULT) -> Dict[str, Any]:
        """`hostname`, `os`, `name`, `version`, `kernel`, `arch`, `uptime`, `boottime`, `agent`."""
        return as_dict(self.info(gid, nid, "os", timeout))

    def get_process_stats(self, gid: int, nid: int, job: str, timeout: Timeout = DEFAULT) -> Dict[str, Any]:
        """What one running job uses."""
        return as_dict(self._ask(NodeId(gid, nid), verbs.process_stats(job), timeout).value)

    def get_processes_stats(
        self, gid: int, nid: int, domain: str = "", name: str = "", timeout: Timeout = DEFAULT
    ) -> List[Dict[str, Any]]:
        """What each running job uses."""
        return as_list(self._ask(NodeId(gid, nid), verbs.processes(domain, name), timeout).value)

    def get_schedules(self, gid: int, nid: int, timeout: Timeout = DEFAULT) -> List[Dict[str, Any]]:
        """For each recurring job `id`, `domain`, `name`, `period` (seconds), `next`, `last_start` (ms), `last_state`."""
        return as_list(self._ask(NodeId(gid, nid), verbs.schedules(), timeout).value)

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
        """Records from the node's database, at most 1000; `logs` fetches more by itself.

        `quiet` keeps the question out of the history and the audit list, for programs that ask often.
        """
        node = NodeId(gid, nid)
        verb = verbs.messages(job, since=since, until=until, levels=levels, limit=limit, after=after)
        return [Record.from_dict(raw, node) for raw in as_list(self._ask(node, verb, timeout, quiet=quiet).value)]

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
        """Deletes records on the node; how many there were."""
        verb = verbs.messages(job, since=since, until=until, levels=levels, limit=limit, delete=True)
        return wire.integer(as_dict(self._ask(NodeId(gid, nid), verb, timeout).value).get("deleted"))

    def kill(self, gid: int, nid: int, job: str, timeout: Timeout = DEFAULT) -> Result:
        """Ends a job; it is forgotten, so that no restart follows."""
        return self._ask(NodeId(gid, nid), verbs.kill(job), timeout)

    def killall(self, gid: int, nid: int, timeout: Timeout = DEFAULT) -> Result:
        """Ends every process; recurring jobs keep their schedule, remembered ones start again."""
        return self._ask(NodeId(gid, nid), Verb("killall"), timeout)

    def signal(self, gid: int, nid: int, job: str, name: Union[str, int], timeout: Timeout = DEFAULT) -> Result:
        """Sends a signal (`"HUP"`) to a job's process group."""
        return self._ask(NodeId(gid, nid), verbs.signal(job, name), timeout)

    def unschedule(self, gid: int, nid: int, job: str, timeout: Timeout = DEFAULT) -> Result:
        """Lets the run under way end, and no other follow."""
        return self._ask(NodeId(gid, nid), verbs.unschedule(job), timeout)

    def restart(self, gid: int, nid: int, timeout: Timeout = DEFAULT) -> Result:
        """The agent answers and exits, and its service manager starts it again, which is waited for."""
        node = self._node((gid, nid))
        fleet = Fleet.each(self, {node: Verb("restart")}, returning=True).wait(timeout)
        if node not in fleet.results:
            self._withdraw_quietly({node: fleet.id})
            raise WaitTimeout(self.why_waiting(fleet.id, node, self._limit(timeout)))
        return fleet.results[node].raise_for_status()

    def logs(
        self,
        node: Node_,
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
        """A node's records, oldest first, as many as there are.

        `follow` asks again every `every` seconds, until `until()` is true where that is given. In the history and
        the audit list stands the first question alone, and with `follow` none.
        """
        where = self._node(node)
        after: Optional[int] = None
        page = 1000
        while True:
            last_time = until() if follow and until is not None else False
            want = page if limit is None else min(page, limit)
            batch = self.get_msgs(
                *where, job, since=since, until=until_ms, levels=levels, limit=want, after=after,
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

    # Many nodes.

    def target(self, who: Target_, *, but: Union[None, str, Sequence[str]] = None, any: bool = False) -> Targeted:
        """The nodes of a target, for an order to all of them: `client.target("@web").execute("uname")`.

        `but` leaves nodes out, `any` picks one of those that are there.
        """
        return Targeted(self, target.parse(who), target.parse_except(but), any)

    def run_script(
        self,
        who: Target_,
        *,
        path: Optional[str] = None,
        source: Optional[str] = None,
        function: Optional[Callable[..., Any]] = None,
        language: Optional[str] = None,
        data: Any = "",
        **options: Any,
    ) -> Fleet:
        """Runs a script (`path`, `source`) or a Python function of yours on every node of a target.

        The source is stored in Redis under its hash, and nodes fetch it from there once. An `action` in it
        (or your function) is called with `data`, and what it returns is the result's `value`.
        """
        script = scripts.load(path, source, function, language)
        return self.target(who).run_script(script, data=data, **options)

    def put(self, who: Target_, local: Union[str, bytes], path: str, **options: Any) -> Fleet:
        """Writes a file (its path here, or its bytes) to `path` on every node of a target."""
        return self.target(who).put(local, path, **options)

    # Jobs.

    def job(self, job_id: str) -> Job:
        """A job that was sent before, by its id; asking for the state of one that never was raises `Gone`."""
        return Job(self, wire.check_id(job_id), found=True)

    def cancel(self, job_id: str, timeout: Timeout = DEFAULT) -> Dict[NodeId, str]:
        """Withdraws a job from the nodes that have not taken it; there it ends `KILLED`.

        Returns for each node an empty text when it was withdrawn, else the sentence that says why not.
        """
        info = self.job_info(job_id)
        return self._cancel(job_id, info.open or nodes_of(info), timeout)

    def _cancel(self, job_id: str, nodes: Sequence[NodeId], timeout: Timeout = DEFAULT) -> Dict[NodeId, str]:
        return self._withdraw({node: job_id for node in nodes}, timeout)

    def _withdraw(self, jobs: Mapping[NodeId, str], timeout: Timeout = DEFAULT) -> Dict[NodeId, str]:
        return withdrawal.withdraw(self, jobs, timeout)

    def _withdraw_quietly(self, jobs: Mapping[NodeId, str]) -> bool:
        """Whether all were withdrawn; for commands whose ids the caller does not know."""
        try:
            told = self._withdraw(jobs, WITHDRAW_SECONDS)
            self.link.bulk([("DEL", wire.result_list(jobs[node])) for node, why in told.items() if not why])
        except Error:
            return False
        return not any(told.values())

    # Grants.

    def grant(
        self,
        who: Target_,
        *,
        roles: Iterable[str] = (),
        labels: Union[Mapping[str, str], Iterable[str]] = (),
        hosts: Iterable[str] = (),
        remove: bool = False,
    ) -> Dict[NodeId, List[str]]:
        """Grants roles, labels (`{"site": "ams"}` or `["site=ams"]`) and host names to the nodes of a target.

        With `remove` they are taken back. Controllers notice it within seconds where a node claims what was granted,
        and within minutes what was taken back. Returns for each node the fields (`role:web`) that were changed.
        `NobodyMatched`, and nothing is changed, when one of the nodes was never seen.
        """
        what = grants.fields(roles, labels, hosts)
        chosen = self.select(target.parse(who))
        # What was named when it was enrolled, a node has before it is seen.
        exist = self.link.bulk([("EXISTS", wire.grant_hash(node)) for node in chosen.unknown])
        strange = [node for node, exists in zip(chosen.unknown, exist) if not exists]
        if strange or not chosen.everybody:
            told = self.target(who).nobody(dataclasses.replace(chosen, unknown=strange))
            raise NobodyMatched(f"{told}; nothing was changed: start its agent first, or name roles to jsacc enroll")
        return grants.write(self, chosen.everybody, what, remove)

    # Scripts.

    def store(self, content: bytes) -> str:
        """Keeps a script or a file in Redis for a week after its last use; its hash."""
        import hashlib

        if len(content) > wire.MAX_SCRIPT:
            raise UsageError(f"{len(content)} bytes are too many; the most is {wire.MAX_SCRIPT}")
        sha256 = hashlib.sha256(content).hexdigest()
        key = wire.script_key(sha256)
        if not self.link.read("EXPIRE", key, wire.SCRIPT_SECONDS):
            self.link.read("SET", key, content, "EX", wire.SCRIPT_SECONDS)
        return sha256

    # Below: what the other files of this package use.

    def check(self) -> None:
        """`NoController` when no controller has beaten lately; once seen it is trusted for 5 seconds."""
        if time.monotonic() - self._beat < _TRUST_SECONDS:
            return
        asked: List[Tuple[object, ...]] = [("TIME",), ("ZREVRANGE", wire.CONTROLLERS, 0, 0, "WITHSCORES")]
        now, last = self.link.bulk(asked)
        if not last:
            raise NoController(f"no controller serves Redis at {self.link.where}: start jsacc, or check the address")
        age = (nodes_.now_ms(now) - wire.scored(last)[0][1]) / 1000
        if age > wire.BEAT_SECONDS:
            raise NoController(
                f"no controller serves Redis at {self.link.where}: the last one beat {ago(age)} ago; start jsacc"
            )
        with self._beat_lock:
            self._beat = time.monotonic()

    def push(self, commands: Sequence[Command]) -> None:
        """Puts commands on the queue, once it is sure that a controller will take them."""
        self.check()
        now = int(time.time() * 1000)
        texts = []
        for command in commands:
            command.created = now
            command.by = command.by or self.by
            command.user = command.user or self.user
            texts.append(command.to_json())
        for start in range(0, len(texts), 500):
            self.sent += len(texts[start : start + 500])
            # A connection that breaks leaves it open whether they arrived; a known id does not run twice.
            self.link.read("LPUSH", wire.QUEUE, *texts[start : start + 500])

    @property
    def user(self) -> str:
        """Our user in Redis, where it tells."""
        if self._user is None:
            try:
                self._user = wire.text(self.link.call("ACL", "WHOAMI"))
            except Error:
                self._user = ""
        return self._user

    def select(self, who: Target, but: Sequence[Target] = ()) -> Selection:
        """Whom a target means now."""
        # Named nodes need no look at all others; only what is left out by role needs the roles.
        known = nodes_.load(self.link, who.nodes if who.named else None, ("roles", "stopped"))
        chosen = target.select(who, known, but)
        return dataclasses.replace(chosen, revoked=nodes_.revoked(self.link, chosen.unknown)) if chosen.unknown else chosen

    def why_waiting(self, job_id: str, node: Optional[NodeId], limit: Optional[float]) -> str:
        """Why there is no result yet, in one sentence."""
        start = f"job {job_id}" + (f" on {node}" if node else "") + f" has no result after {limit or 0:g} s"
        try:
            self._beat = -_TRUST_SECONDS
            self.check()
            found = self._info(job_id)
        except Error as e:
            return f"{start}: {e}"
        if found is None:
            return f"{start}: no controller has taken it yet"
        state = found.states.get(node, found.state) if node else found.state
        if state == "QUEUED":
            known = nodes_.load(self.link, [node], ("stopped",)) if node else []
            if node and not known:
                return f"{start}: {nodes_.unknown([node], nodes_.revoked(self.link, [node]))}; it waits in the queue"
            if known and known[0].stopped:
                return f"{start}: the agent stopped {ago(known[0].age)} ago; it waits in the queue"
            if known and not known[0].live:
                return f"{start}: the node was last seen {ago(known[0].age)} ago; it waits in the queue"
            return f"{start}: it waits for its node"
        return f"{start}: it is {state.lower()}"

    def _start(
        self, gid: int, nid: int, verb: Verb, tags: str, expires: int, job_id: Optional[str], quiet: bool = False
    ) -> Job:
        node = self._node((gid, nid))
        command = Command(verb.cmd, gid, nid, verb.args, verb.data, tags=tags, expires=expires, quiet=quiet)
        if job_id is not None:
            command.id = wire.check_id(job_id)
        self.push([command])
        return Job(self, command.id, node)

    def _ask(
        self, node: NodeId, verb: Verb, timeout: Timeout = DEFAULT, quiet: bool = False, present: bool = False
    ) -> Result:
        """The answer of a node. A command that has not started when the time is up is withdrawn."""
        limit = self._limit(timeout)
        job = self._start(node.gid, node.nid, verb, "", QUIET_SECONDS if quiet else 0, None, quiet)
        try:
            if present and (limit is None or limit > PRESENT_SECONDS):
                try:
                    return job.wait(PRESENT_SECONDS).raise_for_status()
                except WaitTimeout:
                    absent = self._absent(node)
                    if absent:
                        self._withdraw_quietly({node: job.id})
                        raise NobodyMatched(absent) from None
                    limit = None if limit is None else limit - PRESENT_SECONDS
            watch = ControllerWatch(self)
            return job._wait(limit, watch.look if verb.looks else lambda: None).raise_for_status()
        except WaitTimeout as e:
            if quiet or not self._withdraw_quietly({node: job.id}):
                raise
            raise WaitTimeout(f"{e}; it was withdrawn") from None

    def _absent(self, node: NodeId) -> str:
        """Why a node cannot answer now; empty where it may."""
        known = nodes_.load(self.link, [node], ("stopped",))
        if not known:
            return f"node {nodes_.unknown([node], nodes_.revoked(self.link, [node]))}"
        if known[0].stopped:
            return f"the agent of node {node} stopped {ago(known[0].age)} ago"
        return "" if known[0].live else f"node {node} was last seen {ago(known[0].age)} ago"

    def _ask_each(self, asked: Mapping[NodeId, Verb], timeout: Timeout = DEFAULT) -> Dict[NodeId, Result]:
        return Fleet.each(self, asked).wait(timeout).results if asked else {}

    def _forget(self, result: Result) -> None:
        # The result was read from the job's hash; its copy on the list would lie there for a day.
        # A recurring job's list goes on.
        if result.id and not result.args.get("recurring_period"):
            try:
                self.link.call("DEL", wire.result_list(result.id))
            except Error:
                pass  # it expires by itself

    def _limit(self, timeout: Timeout) -> Optional[float]:
        if isinstance(timeout, Default):
            return self.timeout
        if timeout is None:
            return None
        if not isinstance(timeout, (int, float)) or timeout < 0:
            raise UsageError(f"a timeout is a number of seconds or None, not {timeout!r}")
        return float(timeout)

    def _node(self, node: Node_) -> NodeId:
        if isinstance(node, str):
            parsed = target.parse(node)
            if not parsed.named or len(parsed.nodes) != 1:
                raise UsageError(f"{node} is not one node; write 1.10")
            return parsed.nodes[0]
        gid, nid = node
        if not (isinstance(gid, int) and isinstance(nid, int) and gid > 0 and nid > 0):
            raise UsageError(f"a node is two whole numbers of 1 or more, not {gid!r} and {nid!r}")
        return NodeId(gid, nid)
