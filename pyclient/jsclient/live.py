"""Opens watches on several nodes at once: each gets its own `attach`, `get` or `follow`."""

from __future__ import annotations

from typing import Dict, List, Mapping, Sequence, Tuple

from ._session import Session
from ._timeouts import DEFAULT, Timeout
from .commands import CommandSpec
from .fleet import Fleet
from .keys import NodeId
from .node_commands import QUIET_EXPIRY_SECONDS
from .result import Result
from .stream import Counts, WatchReader, Written


def open_watches(
    session: Session, reader: WatchReader, specs: Mapping[NodeId, CommandSpec], timeout: Timeout = DEFAULT
) -> Tuple[Dict[NodeId, str], Dict[NodeId, Result]]:
    """Send each node its command; return the watches of those that answered OK, and all answers that came in time.

    The watches of the others are let go.
    """
    fleet = Fleet.each(session, specs, quiet=True, expires=QUIET_EXPIRY_SECONDS)
    for node in specs:
        reader.add(fleet.job_id(node), node)
    fleet.wait(timeout)
    watches = {node: fleet.job_id(node) for node in specs}
    for node in [node for node in specs if node not in fleet.results or not fleet.results[node].ok]:
        reader.release(watches.pop(node))
    return watches, fleet.results


def written_by(session: Session, jobs: Mapping[NodeId, str]) -> Written:
    """Return the function that looks for the results of these jobs, for `read_outputs`."""

    def written(nodes: Sequence[NodeId]) -> Dict[NodeId, Counts]:
        ids: Dict[str, List[NodeId]] = {}
        for node in nodes:
            ids.setdefault(jobs[node], []).append(node)
        return {node: counts for job, some in ids.items() for node, counts in session.written(job, some).items()}

    return written
