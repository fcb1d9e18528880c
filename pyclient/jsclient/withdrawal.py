"""Withdrawing commands from nodes that have not started them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, List, Mapping, Optional, Sequence

from .errors import WaitTimeout
from .job import Job
from .verbs import Verb
from .waiting import Timeout
from .wire import Command, JobInfo, NodeId, Result

if TYPE_CHECKING:
    from .client import Client

#: Most nodes that one command names.
MOST_NODES = 10_000
_NOT_IN_TIME = "no controller answered in time"


def withdraw(client: Client, jobs: Mapping[NodeId, str], timeout: Timeout) -> Dict[NodeId, str]:
    """Withdraws these jobs from these nodes, with one command for each job, so that the history keeps the others.

    Returns for each node an empty text when it was withdrawn, else the sentence that says why not.
    """
    nodes_of: Dict[str, List[NodeId]] = {}
    for node, job_id in jobs.items():
        nodes_of.setdefault(job_id, []).append(node)
    single = {nodes[0]: job_id for job_id, nodes in nodes_of.items() if len(nodes) == 1}
    answers = client._ask_each({node: Verb("cancel", {}, {"id": job_id}) for node, job_id in single.items()}, timeout)
    told = {}
    for node in single:
        answer = answers.get(node)
        told[node] = _NOT_IN_TIME if answer is None else "" if answer.ok else answer.data
    for job_id, nodes in nodes_of.items():
        if len(nodes) > 1:
            told.update(_from_many(client, job_id, nodes, timeout))
    return {node: told[node] for node in jobs}


def _from_many(client: Client, job_id: str, nodes: Sequence[NodeId], timeout: Timeout) -> Dict[NodeId, str]:
    before = client._info(job_id)
    ended = before.results if before else {}
    told = {node: f"job {job_id} has ended on node {node}" for node in nodes if node in ended}
    asked = [node for node in nodes if node not in ended]
    answers: Dict[NodeId, Optional[Result]] = {}
    for start in range(0, len(asked), MOST_NODES):
        some = asked[start : start + MOST_NODES]
        command = Command("cancel", nodes=some, data={"id": job_id})
        client.push([command])
        try:
            answer: Optional[Result] = Job(client, command.id).wait(timeout)
        except WaitTimeout:
            answer = None
        answers.update(dict.fromkeys(some, answer))
    # One answer for all: what became of each node stands in the job's hash, which is written before it.
    now = client._info(job_id)
    told.update((node, _outcome(job_id, node, now, answer)) for node, answer in answers.items())
    return told


def _outcome(job_id: str, node: NodeId, found: Optional[JobInfo], answer: Optional[Result]) -> str:
    result = found.results.get(node) if found else None
    if found and result and result.state == "KILLED" and node not in (found.targets or ()):
        return ""  # a node that the controller answered for is no target any more
    if result:
        return f"job {job_id} has ended on node {node}"
    if answer is None:
        return _NOT_IN_TIME
    if answer.ok or "already with" in answer.data:
        return f"job {job_id} is already with node {node}: kill it instead"
    return answer.data
