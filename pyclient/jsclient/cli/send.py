"""Sends a command to the target of the flags, and shows the results."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import sys
from typing import Any, Callable, Iterator, List, Mapping, Optional, Sequence

from .. import keys
from ..client import Client
from ..commands import CommandSpec
from ..errors import OK, NoMatchingNodesError
from ..fleet import Fleet
from ..keys import NodeId
from ..nodes import explain_unknown, format_duration, load_nodes
from ..target import TargetNodes
from ..target_commands import TargetCommands
from . import render, stdio
from .lookup import connect
from .stdio import message

#: Seconds to wait for results by default, and beside `--max-time`.
_DEFAULT_TIMEOUT_SECONDS = 60.0
_MAX_TIME_MARGIN_SECONDS = 30.0
#: Controllers drop a command that its node has not taken after this time, in seconds, by default.
_DEFAULT_EXPIRY_SECONDS = 86400
#: Most nodes that a warning lists.
_MAX_LISTED = 10
#: Output of more nodes than this is not shown as it comes, unless asked for.
MAX_LIVE_NODES = 20


def send(
    args: argparse.Namespace,
    spec: CommandSpec,
    store: Optional[Callable[[Client], None]] = None,
    render_all: Optional[Callable[[Client, List[Any]], str]] = None,
    windows: Optional[CommandSpec] = None,
    read_only: bool = False,
    await_restart: bool = False,
    is_for_job: bool = False,
    each: Optional[Mapping[NodeId, CommandSpec]] = None,
    is_program: bool = False,
) -> int:
    """Send a command to the target of the flags, show the results, and return the exit code.

    `store` puts a script or file into Redis first. `windows` replaces the command on Windows nodes, `each` on
    single nodes. A `read_only` command is not sent to a node whose agent has stopped. With `await_restart` a node is
    done when its agent has started again. `is_for_job` marks a command for a job that the nodes may not have.
    `is_program` marks a program, whose output is shown as it comes unless the flags say otherwise.
    """
    job_id = keys.new_id()
    with connect(args) as client, report_id_on_error(client, job_id):
        target = client.target(args.target, exclude=args.exclude, any=args.any)
        client.check()
        chosen = target.select()
        if read_only:
            chosen = chosen.without_stopped
        if args.dry_run:
            return dry_run(args, target, chosen)
        _warn(args, chosen, job_id)
        nodes = chosen.nodes if args.wait or args.detach else chosen.live
        if store is not None and nodes:
            store(client)
        if not args.detach:
            # Imported before anything is sent, so that Ctrl-C during the import leaves no unreported job.
            from . import output

            output.load(progress=not args.no_progress)
        is_single = target.target.explicit and len(nodes) == 1 and chosen.nodes == nodes
        is_live = is_program and _is_live(args, is_single, len(nodes))
        if is_live:
            spec = dataclasses.replace(spec, args={**spec.args, "stream": True})
            windows = windows and dataclasses.replace(windows, args={**windows.args, "stream": True})
        own = {n: windows for n in _windows_nodes(client, nodes)} if windows else dict(each or {})
        fleet = target.start(
            spec, each=own, target_nodes=chosen, wait_offline=args.wait or args.detach, batch=args.batch,
            max_failures=args.max_failures, tags=args.tags, expires=args.expires, keep=False, id=job_id,
            await_restart=await_restart,
        )
        if args.detach:
            while fleet.unsent:  # a batch is sent when the one before has ended
                for _ in fleet.stream(None):
                    pass
            if args.json or args.ndjson:
                stdio.out_json({"id": fleet.id, "nodes": [str(n) for n in fleet.nodes]})
            else:
                stdio.out(fleet.id)
            return OK
        return show(
            args, client, fleet, is_single, render_all, withdraw=not args.wait, is_for_job=is_for_job,
            is_program=is_program, is_live=is_live,
        )


def _is_live(args: argparse.Namespace, is_single: bool, count: int) -> bool:
    """Return whether output is shown as it comes."""
    if args.no_stream or args.fold or args.detach or args.json or args.ndjson or args.recurring_period:
        return False
    return is_single or args.no_fold or (count <= MAX_LIVE_NODES and sys.stdout.isatty())


@contextlib.contextmanager
def report_id_on_error(client: Client, job_id: str) -> Iterator[None]:
    """Write the job id to stderr when an exception ends the block after a command was sent."""
    try:
        yield
    except BaseException:
        if client.sent:
            message(f"jsctl: sent as {job_id}; show its results with jsctl wait {job_id}")
        raise


def show(
    args: argparse.Namespace, client: Client, fleet: Fleet, is_single: bool,
    render_all: Optional[Callable[[Client, List[Any]], str]] = None, withdraw: bool = False,
    is_for_job: bool = False,
    is_program: bool = False,
    is_live: bool = False,
) -> int:
    """Show the results of a fleet as they arrive, and return the exit code."""
    from .output import Output

    make: Callable[..., Output] = Output
    if is_live:
        from .live import LiveOutput

        make = functools.partial(LiveOutput, waits_from_output=args.timeout is None and not args.max_time)
    output = make(
        client, fleet, json_=args.json, ndjson=args.ndjson, fold=not args.no_fold, progress=not args.no_progress,
        single=is_single and len(fleet.nodes) == 1, render_all=render_all, withdraw=withdraw,
        is_for_job=is_for_job, exit_status=is_program,
    )
    return output.run(_result_timeout(args))


def _result_timeout(args: argparse.Namespace) -> Optional[float]:
    """Return the seconds to wait for results; `None` for no limit."""
    if args.timeout is not None:
        return None if args.timeout == 0 else float(args.timeout)
    max_time = getattr(args, "max_time", None)
    return _DEFAULT_TIMEOUT_SECONDS if not max_time or max_time < 0 else max_time + _MAX_TIME_MARGIN_SECONDS


def _windows_nodes(client: Client, nodes: Sequence[NodeId]) -> List[NodeId]:
    return [node.id for node in load_nodes(client.connection, nodes, ("os",)) if node.os == "windows"]


def dry_run(args: argparse.Namespace, target: TargetCommands, chosen: TargetNodes) -> int:
    """List the target nodes without sending anything; raise `NoMatchingNodesError` when there is no node to send to."""
    offline = {n.id: n for n in (*chosen.offline, *chosen.stopped)}
    if args.json or args.ndjson:
        items = [{"node": str(n), "gid": n.gid, "nid": n.nid, "state": _state(n, chosen)} for n in chosen.nodes]
        render.emit(items, args.ndjson)
    else:
        for node in chosen.nodes:
            seen = offline.get(node)
            if node in chosen.unknown:
                note = "\trevoked" if node in chosen.revoked else "\tnever seen"
            else:
                note = f"\t{seen.last_contact}" if seen else ""
            stdio.out(f"{node}{note}")
    if not chosen.live and not (args.wait and chosen.nodes):
        raise NoMatchingNodesError(target.explain_no_nodes(chosen))
    batch = f", in batches of {args.batch}" if args.batch else ""
    nodes = f"{len(chosen.live)} node{'s' if len(chosen.live) != 1 else ''}"
    message(f"the command would go to {nodes}{batch}; nothing was sent")
    return OK


def _state(node: NodeId, chosen: TargetNodes) -> str:
    if node in chosen.unknown:
        return "revoked" if node in chosen.revoked else "unknown"
    return next((n.state for n in (*chosen.offline, *chosen.stopped) if n.id == node), "live")


def _warn(args: argparse.Namespace, chosen: TargetNodes, job_id: str) -> None:
    """Write which nodes are offline, stopped or unknown, and what happens to the command for them."""
    is_kept = args.wait or args.detach
    lifetime = format_duration(args.expires or _DEFAULT_EXPIRY_SECONDS)
    outcome = "nothing is sent to it; --wait sends the command and waits"
    if is_kept:
        outcome = f"queued; runs if the node returns within {lifetime}; withdraw it with jsctl cancel {job_id}"
    if not chosen.live and not is_kept:
        return  # the error has the reason
    for node in chosen.unknown[:_MAX_LISTED]:
        answered = "the command is answered with ERROR" if is_kept and node in chosen.revoked else outcome
        message(f"jsctl: {explain_unknown([node], chosen.revoked)}; {answered}")
    for seen in chosen.stopped[:_MAX_LISTED]:
        message(f"jsctl: node {seen.id} is offline ({seen.last_contact}); it gets the command when it starts again")
    for seen in chosen.offline[:_MAX_LISTED] if is_kept else ():
        message(f"jsctl: node {seen.id} is offline ({seen.last_contact}); {outcome}")
