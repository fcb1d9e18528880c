"""Withdrawal of commands from nodes that have not started them."""

from __future__ import annotations

from typing import Dict, List, Mapping, Optional, Sequence

from . import keys
from ._session import Session
from ._timeouts import Timeout
from .commands import CommandSpec
from .errors import WaitTimeoutError
from .job import Job
from .keys import NodeId
from .result import Result
from .wire import Command, parse_targets

#: Most nodes of one command.
MAX_NODES_PER_COMMAND = 10_000
#: The reason where no controller answered.
NO_ANSWER = "no controller answered in time"


def withdraw(client: Session, jobs: Mapping[NodeId, str], timeout: Timeout) -> Dict[NodeId, str]:
    """Withdraw these jobs from these nodes, with one command for each job.

    Return for each node an empty text when it was withdrawn, else the reason why not.
    """
    nodes_by_job: Dict[str, List[NodeId]] = {}
    for node, job_id in jobs.items():
        nodes_by_job.setdefault(job_id, []).append(node)
    single = {nodes[0]: job_id for job_id, nodes in nodes_by_job.items() if len(nodes) == 1}
    specs = {node: CommandSpec("cancel", {}, {"id": job_id}) for node, job_id in single.items()}
    answers = client._ask_each(specs, timeout)
    reasons = {}
    for node in single:
        answer = answers.get(node)
        reasons[node] = NO_ANSWER if answer is None else "" if answer.ok else answer.data
    for job_id, nodes in nodes_by_job.items():
        if len(nodes) > 1:
            reasons.update(_withdraw_from_many(client, job_id, nodes, timeout))
    return {node: reasons[node] for node in jobs}


def _withdraw_from_many(client: Session, job_id: str, nodes: Sequence[NodeId], timeout: Timeout) -> Dict[NodeId, str]:
    ended = _final_states(client, job_id, nodes)
    reasons = {node: f"job {job_id} has ended on node {node}" for node in ended}
    open_nodes = [node for node in nodes if node not in ended]
    answers: Dict[NodeId, Optional[Result]] = {}
    for start in range(0, len(open_nodes), MAX_NODES_PER_COMMAND):
        chunk = open_nodes[start : start + MAX_NODES_PER_COMMAND]
        command = Command("cancel", nodes=chunk, data={"id": job_id})
        client.push([command])
        try:
            answer: Optional[Result] = Job(client, command.id).wait(timeout)
        except WaitTimeoutError:
            answer = None
        answers.update(dict.fromkeys(chunk, answer))
    # The command has one answer; the outcome for each node is in the hash of the job, which is written before it.
    now = _final_states(client, job_id, open_nodes)
    targets = set(parse_targets(client.connection.read("HGET", keys.job_hash(job_id), "targets") or b"") or ())
    for node, answer in answers.items():
        if now.get(node) == "KILLED" and node not in targets:
            reasons[node] = ""  # a controller that answers for a node takes it out of the targets
        else:
            reasons[node] = _reason(job_id, node, node in now, answer)
    return reasons


def _final_states(client: Session, job_id: str, nodes: Sequence[NodeId]) -> Dict[NodeId, str]:
    return {node: result.state for node, _, result in client._entries(job_id, nodes) if result is not None}


def _reason(job_id: str, node: NodeId, ended: bool, answer: Optional[Result]) -> str:
    if ended:
        return f"job {job_id} has ended on node {node}"
    if answer is None:
        return NO_ANSWER
    if answer.ok or "already with" in answer.data:
        return f"job {job_id} is already with node {node}: kill it instead"
    return answer.data
