"""The nodes of a target, and what can be asked of all of them."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import time
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple, Union

from . import scripts, verbs, wire
from .errors import NobodyMatched, Undecodable, UsageError
from .fleet import Fleet, part_id
from .grants import HOW_TO_CLAIM
from .nodes import ago, load, names, unknown
from .target import Selection, Target
from .verbs import Data, Levels, Verb
from .wire import Command, NodeId, Record, Result, as_list

if TYPE_CHECKING:
    from .client import Client


#: A round of questions for records waits for slow nodes so long (seconds).
FOLLOW_SECONDS = 10
#: Of questions that are asked again and again: a node that did not answer one holds up the next only so long (seconds).
SILENT_SECONDS = 1.0


class Targeted:
    """The nodes of a target, and what can be asked of them; each order is a `Fleet`."""

    def __init__(self, client: Client, who: Target, but: Sequence[Target], any: bool) -> None:
        self._client = client
        self.who = who
        self.but = list(but)
        self.any = any

    def select(self) -> Selection:
        """Whom it means now."""
        found = self._client.select(self.who, self.but)
        if self.any and found.live:
            # A stopped one only where there is no other.
            one = random.choice(found.present.live or found.live)
            return Selection([one], [], [], [node for node in found.stopped if node.id == one])
        return found

    def nodes(self) -> List[NodeId]:
        """The nodes that it means now and that are there."""
        return self.select().live

    def start(
        self,
        verb: Verb,
        *,
        each: Optional[Mapping[NodeId, Verb]] = None,
        selection: Optional[Selection] = None,
        wait_offline: bool = False,
        batch: Union[int, str, None] = None,
        max_failures: Optional[int] = None,
        tags: str = "",
        expires: int = 0,
        id: Optional[str] = None,
        keep: bool = True,
        quiet: bool = False,
        returning: bool = False,
    ) -> Fleet:
        """Sends a command to all of them.

        Nodes of `each` get the command that it says for them. `wait_offline` also sends it to nodes that are not
        there (or were never seen), whose queues keep it.
        `batch` (`10`, or `"10%"`) has so many nodes at work at a time, `max_failures` stops sending once more
        have failed. `NobodyMatched` when there is nobody to send to. `quiet` keeps a command that only looks out
        of the history and the audit list; `returning` waits until each agent has started again.
        """
        client = self._client
        chosen = selection or self.select()
        to = chosen.everybody if wait_offline else chosen.live
        if not to:
            raise NobodyMatched(self.nobody(chosen))
        fleet_id = wire.check_id(id) if id else wire.new_id()
        at_once = batch_size(batch, len(to)) if batch is not None else 0
        single = self.who.fanout()
        own = each or {}
        # A fanout goes to all that the controllers count as live, no more and no less.
        exactly = to == chosen.live and not (chosen.narrowed or self.but or self.any)
        plain = exactly and not (own or at_once or max_failures is not None or returning)
        fanout, commands = None, []
        if single and plain and len(to) > 1:
            gid, roles = single
            fanout = Command(verb.cmd, gid, 0, verb.args, verb.data, roles, True, tags, expires, fleet_id, quiet=quiet)
        else:
            commands = [
                Command(
                    v.cmd, n.gid, n.nid, v.args, v.data, tags=tags, expires=expires, quiet=quiet,
                    id=fleet_id if len(to) == 1 else part_id(fleet_id, n),
                )
                for n in to
                for v in [own.get(n, verb)]
            ]
        return Fleet(
            client, fleet_id, verb, nodes=to, fanout=fanout, commands=commands, batch=at_once,
            offline=[] if wait_offline else chosen.offline, unknown=[] if wait_offline else chosen.unknown,
            revoked=chosen.revoked,
            max_failures=max_failures, keep=keep, named=self.who.named, returning=returning,
        )

    def nobody(self, chosen: Selection) -> str:
        """Why there is nobody to send to, in one sentence."""
        if chosen.unknown:
            return unknown(chosen.unknown, chosen.revoked)
        if chosen.offline:
            away = names([f"{n.id} ({'stopped' if n.stopped else 'last seen'} {ago(n.age)} ago)" for n in chosen.offline], 10)
            if self.who.named:
                return f"{away} {'is' if len(chosen.offline) == 1 else 'are'} offline"
            return f"no node that {self.who.text} means is online: {away}"
        return f"no node matches {self.who.text}" + (self._who_claims() if self.who.roles else "")

    def _who_claims(self) -> str:
        """Which nodes the target would mean, if they were granted what they claim, or claimed what they are granted."""
        link, wanted = self._client.link, [f"role:{role}" for role in self.who.roles]
        known = load(link, fields=("roles", "claims"))
        lacking = [(n, lacks) for n in known for lacks in [[f for f in wanted if f[5:] not in n.roles]] if lacks]
        held = link.bulk([("HMGET", wire.grant_hash(n.id), *lacks) for n, lacks in lacking])
        claiming: List[Tuple[NodeId, List[str]]] = []
        silent: List[NodeId] = []
        fresh: List[NodeId] = []
        for (node, lacks), values in zip(lacking, held):
            ungranted = [field for field, value in zip(lacks, values) if value is None]
            if set(lacks) <= set(node.claims):
                if ungranted:
                    claiming.append((node.id, ungranted))
                else:
                    fresh.append(node.id)
            elif not ungranted:
                silent.append(node.id)
        if claiming:
            first, fields = claiming[0]
            flags = " ".join(f"--role {field[5:]}" for field in fields)
            return f"; claimed by {names([node for node, _ in claiming], 10)} without a grant; to grant it: jsctl grant {first} {flags}"
        if fresh:
            return f"; granted to {names(fresh, 10)}, which controllers notice within seconds"
        return f"; granted to and not claimed by {names(silent, 10)}: {HOW_TO_CLAIM}" if silent else ""

    def execute(
        self, cmd: str, args: Optional[Sequence[object]] = None, *, data: Data = "", **options: Any
    ) -> Fleet:
        """Runs a program on each; see `Client.execute` and `start` for the options."""
        how, common = _split(options)
        return self.start(verbs.execute(cmd, args, data=data, **common), **how)

    def send(
        self, cmd: str, args: Optional[Mapping[str, Any]] = None, data: Data = "", **options: Any
    ) -> Fleet:
        """Sends any command to each."""
        return self.start(verbs.raw(cmd, args, data), **options)

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
        """Runs a script or a function on each; see `Client.run_script`."""
        script = script or scripts.load(path, source, function, language)
        how, common = _split(options)
        verb = verbs.script(script.language, script.sha256, data=data, **common)
        how["selection"] = self._somebody(how)
        self._client.store(script.source)
        return self.start(verb, **how)

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
        """Writes a file (its path here, or its bytes) to `path` on each."""
        content = scripts.read_file(local) if isinstance(local, str) else local
        verb = verbs.put(path, hashlib.sha256(content).hexdigest(), mode, owner, mkdir)
        options["selection"] = self._somebody(options)
        self._client.store(content)
        return self.start(verb, **options)

    def ping(self, **options: Any) -> Fleet:
        """Asks each for `pong`."""
        return self._look(verbs.ping(), options)

    def info(self, kind: str, **options: Any) -> Fleet:
        """Asks each for its `cpu`, `mem`, `disk`, `nic` or `os`."""
        return self._look(verbs.info(kind), options)

    def processes(self, domain: str = "", name: str = "", **options: Any) -> Fleet:
        """Asks each for its running jobs."""
        return self._look(verbs.processes(domain, name), options)

    def schedules(self, **options: Any) -> Fleet:
        """Asks each for its recurring jobs."""
        return self._look(verbs.schedules(), options)

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
        """The records of all of them as they are written, without end, or until `until()` is true.

        Without `since` (milliseconds) and `job` it begins with what is written from now on. Nodes are asked
        four times a second while they write, and every `slowest` seconds while they do not. `on_error`
        takes the answers of nodes that could not give their records. A `job` may have an id of its own on each node;
        then only those nodes are asked.
        """
        chosen = self.select().present
        nodes = chosen.live
        if not nodes:
            raise NobodyMatched(self.nobody(chosen))
        if not isinstance(job, str):
            nodes = [node for node in nodes if node in job]
            if not nodes:
                raise NobodyMatched(f"the job was given to no node of {self.who.text} that is there")
        if since is None and not job:
            # Clocks differ a little; the records of the last seconds are better shown than missed.
            since = int((time.time() - 5) * 1000)
        after: Dict[NodeId, int] = {}
        silent: Set[NodeId] = set()
        pause = 0.25
        while True:
            # Asked before the records are: what was written before the end is then among them.
            over = until() if until else False
            ids = dict.fromkeys(nodes, job) if isinstance(job, str) else job
            asked = {n: verbs.messages(ids[n], since=since, levels=levels, after=after.get(n)) for n in nodes}
            fresh: List[Record] = []
            full = False
            fleet = Fleet.each(self._client, asked, keep=False, quiet=True, expires=FOLLOW_SECONDS)
            for result in without_the_silent(fleet, FOLLOW_SECONDS, silent):
                if result is None:
                    continue
                try:
                    records = [Record.from_dict(raw, result.node) for raw in as_list(result.value)] if result.ok else []
                except Undecodable as e:
                    result, records = dataclasses.replace(result, state="ERROR", level=0, data=str(e)), []
                if not result.ok:
                    if on_error:
                        on_error(result)
                    continue
                if records:
                    after[result.node] = records[-1].id
                    full = full or len(records) >= 1000
                    fresh.extend(records)
            fresh.sort(key=lambda record: record.epoch)
            yield from fresh
            if over and not full:
                return
            pause = 0.25 if fresh else min(pause * 1.5, max(slowest, 0.25))
            if not full:
                time.sleep(pause)

    def kill(self, job_id: str, **options: Any) -> Fleet:
        """Ends a job on each."""
        return self.start(verbs.kill(job_id), **options)

    def killall(self, **options: Any) -> Fleet:
        """Ends every process on each."""
        return self.start(Verb("killall"), **options)

    def signal(self, job_id: str, name: Union[str, int], **options: Any) -> Fleet:
        """Sends a signal to a job on each."""
        return self.start(verbs.signal(job_id, name), **options)

    def unschedule(self, job_id: str, **options: Any) -> Fleet:
        """Unschedules a job on each."""
        return self.start(verbs.unschedule(job_id), **options)

    def restart(self, **options: Any) -> Fleet:
        """Has each agent exit, and waits until its service manager has started it again."""
        return self.start(Verb("restart"), **{"returning": True, **options})

    def _look(self, verb: Verb, options: Mapping[str, Any]) -> Fleet:
        """Sends a command that only looks: not to nodes whose agents have stopped."""
        chosen: Selection = options.get("selection") or self.select()
        return self.start(verb, **{**options, "selection": chosen.present})

    def _somebody(self, how: Mapping[str, Any]) -> Selection:
        # Before anything is stored: nobody there means that nothing is left behind either.
        self._client.check()
        chosen: Selection = how.get("selection") or self.select()
        if not (chosen.everybody if how.get("wait_offline") else chosen.live):
            raise NobodyMatched(self.nobody(chosen))
        return chosen


def without_the_silent(
    fleet: Fleet, timeout: float, silent: Set[NodeId], tick: float = 0.2
) -> Iterator[Optional[Result]]:
    """The results as they come, like `Fleet.stream` with `tick`, for questions that are asked again and again.

    Once only nodes of `silent` are missing, they are waited for `SILENT_SECONDS` at most. Afterwards `silent` has
    those that did not answer this time.
    """
    patience = time.monotonic() + SILENT_SECONDS
    for result in fleet.stream(timeout, tick):
        yield result
        if result is None and silent and time.monotonic() >= patience and silent.issuperset(fleet.missing):
            break
    silent.clear()
    silent.update(fleet.missing)


_HOW = ("selection", "wait_offline", "batch", "max_failures", "tags", "expires", "id", "keep", "quiet")


def _split(options: Mapping[str, Any]) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """What concerns the sending, and what goes to the node."""
    return {k: v for k, v in options.items() if k in _HOW}, {k: v for k, v in options.items() if k not in _HOW}


def batch_size(batch: Union[int, str], total: int) -> int:
    """How many nodes `10` or `"10%"` are, 1 at least."""
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
