"""One command on many nodes."""

from __future__ import annotations

import os
from typing import Dict, Iterator, List, Mapping, Optional, Union

from . import commands, keys
from ._collector import ResultCollector
from ._session import Session
from ._timeouts import DEFAULT, Timeout
from .commands import CommandSpec
from .job import Job
from .keys import NodeId
from .result import FleetFailedError, Result
from .wire import Command, JobInfo

#: A controller answers a withdrawal within this time, in seconds.
WITHDRAW_TIMEOUT_SECONDS = 5.0


class Fleet(ResultCollector):
    """The jobs of one command on many nodes.

    Iterate over it for the results as they arrive, or call `wait()` for all. A target that one command can name
    (`@web`, `1.*`, `all`) is a single job with many results; any other target is one job for each node, whose ids
    begin with the id of the fleet. One thread at a time may call its methods; others may read `results`.
    """

    @classmethod
    def resume(cls, client: Session, fleet_id: str, found: Dict[str, JobInfo]) -> Fleet:
        """Return the fleet of jobs that were sent earlier; `found` has them by job id, one at least."""
        spec = commands.raw(str(next(iter(found.values())).command.get("cmd", "")))
        fleet = cls(client, fleet_id, spec, nodes=[], keep=False)
        fleet._resume(found)
        return fleet

    @classmethod
    def each(
        cls, client: Session, specs: Mapping[NodeId, CommandSpec], keep: bool = True, *, id: Optional[str] = None,
        quiet: bool = False, expires: int = 0, await_restart: bool = False,
    ) -> Fleet:
        """Send each node its own command, and return the fleet."""
        fleet_id = id or keys.new_id()
        to_send = [
            Command(s.cmd, n.gid, n.nid, s.args, s.data, id=fleet_id if len(specs) == 1 else member_id(fleet_id, n),
                    quiet=quiet, expires=expires)
            for n, s in specs.items()
        ]
        return cls(client, fleet_id, next(iter(specs.values())), nodes=list(specs), commands=to_send, keep=keep,
                   explicit=True, await_restart=await_restart)

    def __repr__(self) -> str:
        return f"<Fleet {self.id}: {self.returned} of {len(self.nodes)} returned, {self.failures} failed>"

    def __len__(self) -> int:
        return len(self.nodes)

    def __iter__(self) -> Iterator[Result]:
        yield from list(self.results.values())
        yield from self.stream()

    # State.

    @property
    def failed(self) -> List[Result]:
        """Return the results that are not `OK`."""
        return [result for result in self.results.values() if not result.ok]

    @property
    def ok(self) -> bool:
        """Return whether every node has answered `OK`."""
        return not self.failures and not self.missing and not self.skipped and not self.unknown

    def states(self) -> Dict[NodeId, str]:
        """Return the state (`QUEUED`, `RUNNING`, …) on each node that has not answered."""
        if self._fanout_id:
            entries = self.client._entries(self._fanout_id, self.missing)
            return {node: state for node, state, _ in entries if state is not None}
        out: Dict[NodeId, str] = {}
        for node in self.missing:
            found = self.client._info(self.job_id(node))
            if found is not None and node in found.states:
                out[node] = found.states[node]
        return out

    @property
    def jobs(self) -> Dict[NodeId, Job]:
        """Return a `Job` for each node."""
        return {node: Job(self.client, self.job_id(node), node) for node in self.nodes}

    def raise_for_status(self) -> Fleet:
        """Return the fleet when every node answered `OK`; raise `FleetFailedError` with the other nodes."""
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
        never_seen = [node for node in self.unknown if node not in revoked]
        if never_seen:
            parts.append("never seen: " + ", ".join(map(str, never_seen)))
        if self.revoked:
            parts.append("revoked: " + ", ".join(map(str, self.revoked)))
        detail = f" ({failed[0].sentence()})" if failed else ""
        raise FleetFailedError(f"{self.spec.cmd}: {'; '.join(parts)}{detail}", failed, missing)

    def wait(self, timeout: Timeout = DEFAULT) -> Fleet:
        """Wait until all nodes have answered or `timeout` seconds are over (for each batch, where there are batches).

        Return the fleet in both cases: `missing` has the nodes without an answer; `raise_for_status()` raises.
        """
        for _ in self.stream(timeout):
            pass
        return self

    # Actions on the nodes that have not answered.

    def kill(self, timeout: Timeout = DEFAULT) -> Dict[NodeId, Result]:
        """Kill the job on every node that has not answered."""
        return self.client._ask_each({n: commands.kill(self.job_id(n)) for n in self.missing}, timeout)

    def withdraw(self, timeout: Timeout = WITHDRAW_TIMEOUT_SECONDS) -> Dict[NodeId, str]:
        """Withdraw the job from the nodes that have not answered and not started it; it ends `KILLED` there.

        Return for each of them an empty text when it was withdrawn, else the reason why not.
        """
        nodes = [node for node in self.missing if node not in self._restarting]
        reasons = self.client._withdraw({node: self.job_id(node) for node in nodes}, timeout)
        withdrawn = {node for node, reason in reasons.items() if not reason}
        # The hashes have the withdrawal too. A list on which other nodes may still answer is kept.
        if not self._fanout_id or (not self._is_recurring and self._done | withdrawn >= set(self.nodes)):
            lists = {keys.result_list(self.job_id(node)) for node in withdrawn}
            self.client.connection.bulk([("DEL", key) for key in lists])
        return reasons

    def signal(self, name: Union[str, int], timeout: Timeout = DEFAULT) -> Dict[NodeId, Result]:
        """Send a signal (`"HUP"`, `"SIGHUP"` or 1) to the job on every node that has not answered."""
        return self.client._ask_each({n: commands.signal(self.job_id(n), name) for n in self.missing}, timeout)


def member_id(fleet_id: str, node: NodeId) -> str:
    """Return a new id for the job of one node in a fleet of many jobs.

    Each node sees its own id; the random part keeps it from deriving the others.
    """
    return f"{fleet_id}.{node.gid}.{node.nid}.{os.urandom(8).hex()}"
