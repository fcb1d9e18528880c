"""The subcommands for jobs that were sent earlier: kill, unschedule, signal, cancel, wait."""

from __future__ import annotations

import argparse
from typing import Callable, Dict, List, Optional, Tuple

from .. import commands, keys
from ..commands import CommandSpec
from ..errors import FAILED, OK, JobNotFoundError, NoMatchingNodesError, UsageError, job_not_found_error
from ..fleet import Fleet
from ..job import nodes_of
from ..keys import NodeId
from ..target import parse_target
from . import render, stdio
from .lookup import connect, find_jobs, resume_fleet
from .send import dry_run, report_id_on_error, send, show
from .stdio import message


def kill(args: argparse.Namespace) -> int:
    """Run `jsctl kill [TARGET] ID`."""
    target, words = _split_words(args, 1, "jsctl kill [TARGET] ID")
    return _send_to_job(args, target, words[0], commands.kill)


def unschedule(args: argparse.Namespace) -> int:
    """Run `jsctl unschedule [TARGET] ID`."""
    target, words = _split_words(args, 1, "jsctl unschedule [TARGET] ID")
    return _send_to_job(args, target, words[0], commands.unschedule)


def signal(args: argparse.Namespace) -> int:
    """Run `jsctl signal [TARGET] ID SIGNAL`."""
    target, (job_id, name) = _split_words(args, 2, "jsctl signal [TARGET] ID SIGNAL")
    return _send_to_job(args, target, job_id, lambda i: commands.signal(i, name))


def cancel(args: argparse.Namespace) -> int:
    """Run `jsctl cancel ID`."""
    with connect(args) as client:
        args.id, members = find_jobs(client, args.id)
        if not members:
            raise job_not_found_error(args.id)
        reasons: Dict[NodeId, str] = {}
        for job_id in members:
            reasons.update(client.cancel(job_id, **_timeout(args)))
        if not reasons:
            raise NoMatchingNodesError(f"job {args.id} was given to no node")
    withdrawn = [n for n, reason in reasons.items() if not reason]
    kept = {n: reason for n, reason in reasons.items() if reason}
    if args.json or args.ndjson:
        stdio.out_json({"id": args.id, "cancelled": [str(n) for n in withdrawn],
                        "refused": {str(n): reason for n, reason in kept.items()}})
    elif withdrawn:
        stdio.out(f"cancelled on {render.join_names(withdrawn)}")
    for node, reason in list(kept.items())[:10]:
        message(f"jsctl: {node}: {reason}")
    if any("kill it" in reason for reason in kept.values()):
        message(f"jsctl: end it where it runs with jsctl kill {args.id}")
    return OK if withdrawn and not kept else FAILED


def wait(args: argparse.Namespace) -> int:
    """Run `jsctl wait ID…`; return the highest exit code of all jobs."""
    with connect(args) as client:
        code = OK
        for job_id in args.ids:
            code = max(code, show(args, client, resume_fleet(client, keys.check_id(job_id)), is_single=True))
        return code


def _split_words(args: argparse.Namespace, count: int, usage: str) -> Tuple[Optional[str], List[str]]:
    """Return the optional target and the `count` words after it."""
    words: List[str] = args.words
    if len(words) == count:
        return None, words
    if len(words) == count + 1:
        return words[0], words[1:]
    raise UsageError(f"usage: {usage}")


def _send_to_job(
    args: argparse.Namespace, target: Optional[str], job_id: str, make_spec: Callable[[str], CommandSpec]
) -> int:
    """Send a command for a job to the target.

    Without a target send it to the nodes on which the job is open, or to all its nodes when none is.
    """
    keys.check_id(job_id)
    if target is not None:
        args.target = target
        with connect(args) as client:
            job_id = client.resolve_id(job_id)
            ids = client.ids_by_node(job_id)
        each = {node: make_spec(member) for node, member in ids.items()}
        return send(args, make_spec(job_id), is_for_job=True, each=each)
    with connect(args) as client:
        job_id, members = find_jobs(client, job_id)
        if not members:
            raise JobNotFoundError(
                f"no job {job_id} in Redis any more; say which node it runs on: jsctl {args.command} 1.10 {job_id}"
            )
        infos = [client.job_info(member) for member in members]
        specs = {node: make_spec(info.id) for info in infos for node in info.open or nodes_of(info)}
        if not specs:
            raise NoMatchingNodesError(f"job {job_id} was given to no node")
        if args.dry_run:
            nodes = ",".join(map(str, specs))
            return dry_run(args, client.target(nodes), client.select(parse_target(nodes)))
        command_id = keys.new_id()
        with report_id_on_error(client, command_id):
            fleet = Fleet.each(client, specs, keep=False, id=command_id)
            return show(args, client, fleet, is_single=True, withdraw=not args.wait, is_for_job=True)


def _timeout(args: argparse.Namespace) -> Dict[str, float]:
    return {} if args.timeout is None else {"timeout": args.timeout}
