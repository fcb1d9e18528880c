"""Commands for the nodes of a target: the counterpart of `node_commands` for many nodes."""

from __future__ import annotations

import dataclasses
import random
import time
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple, Union

from . import commands, keys, scripts
from ._follow import Query, follow
from ._session import Session
from .commands import CommandSpec, Data, Levels
from .errors import NoMatchingNodesError, ResultDecodeError, UsageError
from .fleet import Fleet, member_id
from .grants import HOW_TO_CLAIM
from .keys import NodeId
from .nodes import explain_unknown, join_names, load_nodes
from .result import Result
from .target import Target, TargetNodes
from .uploads import Upload
from .wire import Command, Record, as_list

#: `follow` starts this far back, in seconds: clocks of nodes differ a little.
_FOLLOW_OVERLAP_SECONDS = 5


class TargetCommands:
    """Commands for the nodes of a target. Each method that sends one returns its `Fleet`."""

    def __init__(self, client: Session, target: Target, exclude: Sequence[Target], any: bool) -> None:
        self._client = client
        #: The nodes to send to.
        self.target = target
        #: The nodes to leave out.
        self.exclude = list(exclude)
        #: Whether one random node of those that are online is chosen.
        self.any = any

    def select(self) -> TargetNodes:
        """Return the nodes that the target matches now."""
        found = self._client.select(self.target, self.exclude)
        if self.any and found.live:
            # A stopped node only when no other is online.
            one = random.choice(found.without_stopped.live or found.live)
            return TargetNodes([one], [], [], [node for node in found.stopped if node.id == one])
        return found

    def nodes(self) -> List[NodeId]:
        """Return the matching nodes that are online."""
        return self.select().live

    def start(
        self,
        spec: CommandSpec,
        *,
        each: Optional[Mapping[NodeId, CommandSpec]] = None,
        target_nodes: Optional[TargetNodes] = None,
        wait_offline: bool = False,
        batch: Union[int, str, None] = None,
        max_failures: Optional[int] = None,
        tags: str = "",
        expires: int = 0,
        id: Optional[str] = None,
        keep: bool = True,
        quiet: bool = False,
        await_restart: bool = False,
    ) -> Fleet:
        """Send a command to all matching nodes.

        `each` replaces the command for some nodes, `target_nodes` the nodes. `wait_offline` also sends to nodes that
        are offline or were never seen; the command waits in their queues for `expires` seconds (0: one day).
        `batch` (10 or `"10%"`) is the number of nodes at work at a time. `max_failures` stops sending when more nodes
        have failed. `quiet` keeps a read-only command out of the history and the audit list. `await_restart` waits
        until each agent has started again. With `keep=False` the fleet keeps no results.
        Raise `NoMatchingNodesError` when there is no node to send to, and `NoControllerError`.
        """
        client = self._client
        chosen = target_nodes or self.select()
        nodes = chosen.nodes if wait_offline else chosen.live
        if not nodes:
            raise NoMatchingNodesError(self.explain_no_nodes(chosen))
        fleet_id = keys.check_id(id) if id else keys.new_id()
        parallel = batch_size(batch, len(nodes)) if batch is not None else 0
        fanout_target = self.target.fanout()
        own = each or {}
        # A fanout goes to exactly the nodes that the controllers count as live.
        exactly = nodes == chosen.live and not (chosen.is_narrowed or self.exclude or self.any)
        plain = exactly and not (own or parallel or max_failures is not None or await_restart)
        fanout, to_send = None, []
        if fanout_target and plain and len(nodes) > 1:
            gid, roles = fanout_target
            fanout = Command(spec.cmd, gid, 0, spec.args, spec.data, roles, True, tags, expires, fleet_id, quiet=quiet)
        else:
            to_send = [
                Command(
                    s.cmd, n.gid, n.nid, s.args, s.data, tags=tags, expires=expires, quiet=quiet,
                    id=fleet_id if len(nodes) == 1 else member_id(fleet_id, n),
                )
                for n in nodes
                for s in [own.get(n, spec)]
            ]
        return Fleet(
            client, fleet_id, spec, nodes=nodes, fanout=fanout, commands=to_send, batch=parallel,
            offline=[] if wait_offline else chosen.offline, unknown=[] if wait_offline else chosen.unknown,
            revoked=chosen.revoked,
            max_failures=max_failures, keep=keep, explicit=self.target.explicit, await_restart=await_restart,
        )

    def explain_no_nodes(self, chosen: TargetNodes) -> str:
        """Return one sentence that says why no node can be sent to."""
        if chosen.unknown:
            return explain_unknown(chosen.unknown, chosen.revoked)
        if chosen.offline:
            offline = join_names([f"{n.id} ({n.last_contact})" for n in chosen.offline], 10)
            if self.target.explicit:
                if len(chosen.offline) == 1:
                    return f"node {chosen.offline[0].id} is offline ({chosen.offline[0].last_contact})"
                return f"{len(chosen.offline)} nodes are offline: {offline}"
            return f"no node of {self.target.text} is online: {offline}"
        return f"no node matches {self.target.text}" + (self._claim_hint() if self.target.roles else "")

    def _claim_hint(self) -> str:
        """Return advice when nodes claim the roles without a grant, or have a grant without a claim."""
        connection, wanted = self._client.connection, [f"role:{role}" for role in self.target.roles]
        known = load_nodes(connection, fields=("roles", "claims"))
        lacking = [(n, lacks) for n in known for lacks in [[f for f in wanted if f[5:] not in n.roles]] if lacks]
        held = connection.bulk([("HMGET", keys.grant_hash(n.id), *lacks) for n, lacks in lacking])
        claiming: List[Tuple[NodeId, List[str]]] = []
        unclaimed: List[NodeId] = []
        pending: List[NodeId] = []
        for (node, lacks), values in zip(lacking, held):
            ungranted = [field for field, value in zip(lacks, values) if value is None]
            if set(lacks) <= set(node.claims):
                if ungranted:
                    claiming.append((node.id, ungranted))
                else:
                    pending.append(node.id)
            elif not ungranted:
                unclaimed.append(node.id)
        if claiming:
            first, fields = claiming[0]
            flags = " ".join(f"--role {field[5:]}" for field in fields)
            nodes = join_names([node for node, _ in claiming], 10)
            return f"; claimed by {nodes} without a grant; grant it with jsctl grant {first} {flags}"
        if pending:
            return f"; granted to {join_names(pending, 10)}, which controllers notice within seconds"
        return f"; granted to and not claimed by {join_names(unclaimed, 10)}: {HOW_TO_CLAIM}" if unclaimed else ""

    def execute(
        self, cmd: str, args: Optional[Sequence[object]] = None, *, data: Data = "", **options: Any
    ) -> Fleet:
        """Run a program on each node; the options are those of `Client.execute` and `start`."""
        send_options, common = _split_options(options)
        return self.start(commands.execute(cmd, args, data=data, **common), **send_options)

    def send(
        self, cmd: str, args: Optional[Mapping[str, Any]] = None, data: Data = "", **options: Any
    ) -> Fleet:
        """Send any command to each node; the options are those of `start`."""
        return self.start(commands.raw(cmd, args, data), **options)

    def run_script(
        self,
        script: Optional[scripts.Script] = None,
        *,
        path: Optional[str] = None,
        source: Optional[str] = None,
        function: Optional[Callable[..., Any]] = None,
        language: Optional[str] = None,
        data: Any = "",
        **options: Any,
    ) -> Fleet:
        """Run a script or a function on each node; see `Client.run_script`."""
        script = script or scripts.load_script(path, source, function, language)
        send_options, common = _split_options(options)
        spec = commands.script(script.language, script.sha256, data=data, **common)
        send_options["target_nodes"] = self._require_nodes(send_options)
        self._client.store(script.source)
        return self.start(spec, **send_options)

    def put(
        self,
        local: Union[str, bytes],
        path: str,
        *,
        mode: Optional[str] = None,
        owner: Optional[str] = None,
        mkdir: bool = False,
        **options: Any,
    ) -> Fleet:
        """Write a file (a local path, or bytes; of those at most 16 MiB) to `path` on each node.

        A file above 16 MiB travels in pieces, which stay in Redis for a day; a node gets a few a second, so give its
        fleet time. `mode` is octal (`"0644"`), `owner` is `user` or `user:group`, `mkdir` creates the missing folders.
        """
        upload = Upload(local)
        spec = commands.put(path, upload.sha256, mode, owner, mkdir, upload.size if upload.is_large else None)
        options["target_nodes"] = self._require_nodes(options)
        upload.store(self._client)
        return self.start(spec, **options)

    def ping(self, **options: Any) -> Fleet:
        """Ask each node for `pong`."""
        return self._send_read_only(commands.ping(), options)

    def info(self, kind: str, **options: Any) -> Fleet:
        """Ask each node for its `cpu`, `mem`, `disk`, `nic` or `os`."""
        return self._send_read_only(commands.info(kind), options)

    def processes(self, domain: str = "", name: str = "", **options: Any) -> Fleet:
        """Ask each node for its running jobs, of one domain and name where given."""
        return self._send_read_only(commands.processes(domain, name), options)

    def schedules(self, **options: Any) -> Fleet:
        """Ask each node for its recurring jobs."""
        return self._send_read_only(commands.schedules(), options)

    def follow(
        self,
        *,
        job: Union[str, Mapping[NodeId, str]] = "",
        levels: Optional[Levels] = None,
        since: Optional[int] = None,
        until: Optional[Callable[[], bool]] = None,
        on_error: Optional[Callable[[Result], None]] = None,
        slowest: float = 2.0,
    ) -> Iterator[Record]:
        """Yield the records of all nodes as they are written, without end, or until `until()` returns true.

        Without `since` (milliseconds since 1970) and `job` it starts with the current time. Nodes whose agents send no
        records by themselves are read four times a second while they write, else every `slowest` seconds. `on_error` is called with the result
        of a node that failed. A `job` may be a mapping with the id on each node; then only those nodes are read.
        Raise `NoMatchingNodesError` when no node is online.
        """
        chosen = self.select().without_stopped
        nodes = chosen.live
        if not nodes:
            raise NoMatchingNodesError(self.explain_no_nodes(chosen))
        if not isinstance(job, str):
            nodes = [node for node in nodes if node in job]
            if not nodes:
                raise NoMatchingNodesError(f"the job was given to no node of {self.target.text} that is online")
        if since is None and not job:
            since = int((time.time() - _FOLLOW_OVERLAP_SECONDS) * 1000)
        ids = dict.fromkeys(nodes, job) if isinstance(job, str) else {node: job[node] for node in nodes}
        return follow(self._client, Query(ids, levels, since), until, on_error or (lambda _: None), slowest)

    def kill(self, job_id: str, **options: Any) -> Fleet:
        """End a job on each node; it is not restarted and does not recur."""
        return self.start(commands.kill(job_id), **options)

    def killall(self, **options: Any) -> Fleet:
        """End every process on each node; remembered jobs start again."""
        return self.start(CommandSpec("killall"), **options)

    def signal(self, job_id: str, name: Union[str, int], **options: Any) -> Fleet:
        """Send a signal to a job on each node."""
        return self.start(commands.signal(job_id, name), **options)

    def unschedule(self, job_id: str, **options: Any) -> Fleet:
        """End the recurrence of a job on each node."""
        return self.start(commands.unschedule(job_id), **options)

    def restart(self, **options: Any) -> Fleet:
        """Restart each agent, and wait until its service manager has started it again."""
        return self.start(CommandSpec("restart"), **{"await_restart": True, **options})

    def _send_read_only(self, spec: CommandSpec, options: Mapping[str, Any]) -> Fleet:
        """Send a read-only command, not to nodes whose agents have stopped."""
        chosen: TargetNodes = options.get("target_nodes") or self.select()
        return self.start(spec, **{**options, "target_nodes": chosen.without_stopped})

    def _require_nodes(self, options: Mapping[str, Any]) -> TargetNodes:
        """Return the nodes; raise `NoMatchingNodesError` before a script or a file is stored for no node."""
        self._client.check()
        chosen: TargetNodes = options.get("target_nodes") or self.select()
        if not (chosen.nodes if options.get("wait_offline") else chosen.live):
            raise NoMatchingNodesError(self.explain_no_nodes(chosen))
        return chosen


_SEND_OPTIONS = ("target_nodes", "wait_offline", "batch", "max_failures", "tags", "expires", "id", "keep", "quiet")


def _split_options(options: Mapping[str, Any]) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """Return the options of `start`, and the arguments of the command."""
    own = {k: v for k, v in options.items() if k in _SEND_OPTIONS}
    return own, {k: v for k, v in options.items() if k not in own}


def batch_size(batch: Union[int, str], total: int) -> int:
    """Return the number of nodes for `10` or `"10%"`, 1 at least; raise `UsageError` for anything else."""
    words = str(batch).strip()
    try:
        if words.endswith("%"):
            share = float(words[:-1])
            if not 0 < share <= 100:
                raise ValueError
            return max(1, int(total * share / 100))
        count = int(words)
        if count < 1:
            raise ValueError
        return count
    except ValueError:
        raise UsageError(f"a batch is a number of nodes (10) or a share of them (10%), not {batch!r}") from None
