"""The subcommands for the output of jobs that were sent earlier: attach, output."""

from __future__ import annotations

import argparse
import time
from typing import Dict, List, Mapping, Optional, Tuple

from .. import commands
from ..client import Client
from ..errors import FAILED, NO_MATCH, OK, TIMED_OUT, Error, StreamBrokenError, UsageError, job_not_found_error
from ..frames import Chunk
from ..job import nodes_of
from ..keys import NodeId
from ..live import open_watches, written_by
from ..result import Result
from ..stream import WatchReader, check_whole, read_outputs
from . import render
from .live import BytesWriter, LinesWriter, Writer, explain_gap
from .lookup import connect, find_jobs
from .stdio import message

#: Seconds to wait for the nodes' answers by default.
_ANSWER_TIMEOUT_SECONDS = 20.0
#: The result of a job whose output has ended is waited for this long, and looked for this often, in seconds.
_RESULT_TIMEOUT_SECONDS, _RESULT_INTERVAL_SECONDS = 10.0, 0.05


def attach(args: argparse.Namespace) -> int:
    """Run `jsctl attach ID`: show the output of a job from now on."""
    _refuse_json(args)
    with connect(args) as client:
        open_, ended = _find(client, args.id)
        jobs = open_ or ended
        with WatchReader(client) as reader:
            watches, failed = _open(client, reader, jobs, args, tail=args.tail)
            for node, reason in failed.items():
                message(f"jsctl: {node}: {reason}")
            if not watches:
                return FAILED
            try:
                whole = _show(client, reader, jobs, watches, _writer(jobs))
            except KeyboardInterrupt:
                message(f"\njsctl: the job goes on; attach again with jsctl attach {args.id}")
                return 130
        return _status(client, {node: jobs[node] for node in watches}, OK if whole and not failed else FAILED)


def output(args: argparse.Namespace) -> int:
    """Run `jsctl output ID`: show the whole output of a job that has ended."""
    _refuse_json(args)
    with connect(args) as client:
        open_, jobs = _find(client, args.id)
        if open_:
            message(f"jsctl: it still runs or waits on {render.join_names(list(open_))}; see it with jsctl attach {args.id}")
        if not jobs:
            return NO_MATCH
        writer = _writer(jobs)
        with WatchReader(client) as reader:
            watches, failed = _open(client, reader, jobs, args, start=(0, 0))
            whole = _show(client, reader, jobs, watches, writer)
        for node, reason in failed.items():
            if "has no spool" in reason or "unknown command" in reason:
                whole = _show_records(client, node, jobs[node], writer) and whole
            else:
                message(f"jsctl: {node}: {reason}")
                whole = False
        writer.finish()
        return OK if whole and not open_ else FAILED


def _refuse_json(args: argparse.Namespace) -> None:
    if args.json or args.ndjson:
        raise UsageError(f"{args.command} prints bytes and no JSON; jsctl wait has the result of a job as JSON")


def _find(client: Client, given: str) -> Tuple[Dict[NodeId, str], Dict[NodeId, str]]:
    """Return the jobs with this id by node: those that have no result, and those that have; raise `JobNotFoundError`."""
    job_id, members = find_jobs(client, given, read_only=True)
    if not members:
        raise job_not_found_error(job_id)
    open_: Dict[NodeId, str] = {}
    ended: Dict[NodeId, str] = {}
    for info in map(client.job_info, members):
        is_recurring = bool((info.command.get("args") or {}).get("recurring_period"))
        for node in nodes_of(info):
            (open_ if node in info.open or is_recurring else ended)[node] = info.id
    return open_, ended


def _open(
    client: Client, reader: WatchReader, jobs: Mapping[NodeId, str], args: argparse.Namespace, tail: int = 0,
    start: Optional[Tuple[int, int]] = None,
) -> Tuple[Dict[NodeId, str], Dict[NodeId, str]]:
    """Attach to jobs; return the watches by node, and for each other node why it has none."""
    limit = _ANSWER_TIMEOUT_SECONDS if args.timeout is None else args.timeout or None
    specs = {node: commands.attach(job, tail, start) for node, job in jobs.items()}
    watches, answers = open_watches(client, reader, specs, limit)
    failed = {node: _reason(answers.get(node)) for node in jobs if node not in watches}
    for node, watch in list(watches.items()):
        try:
            reader.output(watch, node).start = commands.attached(answers[node].value, node)
        except Error as e:
            reader.release(watches.pop(node))
            failed[node] = str(e)
    return watches, failed


def _reason(answer: Optional[Result]) -> str:
    return "it did not answer in time" if answer is None else answer.data or answer.sentence()


def _writer(jobs: Mapping[NodeId, str]) -> Writer:
    return BytesWriter() if len(jobs) == 1 else LinesWriter()


def _show(
    client: Client, reader: WatchReader, jobs: Mapping[NodeId, str], watches: Mapping[NodeId, str], writer: Writer
) -> bool:
    """Show what comes until the end of all; return whether it is whole."""
    whole = True
    for chunk in read_outputs(reader, watches, written_by(client, jobs)):
        if chunk.kind == "gap":
            whole = False
            message(f"jsctl: {explain_gap(chunk)}")
        writer.write(chunk)
    writer.finish()
    for node, watch in watches.items():
        output = reader.output(watch, node)
        try:
            check_whole(output, None if output.ended else client.written(jobs[node], [node]).get(node))
        except StreamBrokenError as e:
            whole = False
            message(f"jsctl: {e}")
    return whole


def _show_records(client: Client, node: NodeId, job: str, writer: Writer) -> bool:
    """Show the lines of a job from the records of its node; return whether these are all."""
    message(f"jsctl: {node}: the bytes of job {job} are not kept; these are the lines that its records have")
    counts = client.written(job, [node]).get(node) or (0, 0)
    shown = [0, 0]
    try:
        for record in client.logs(node, job=job, levels="1-9,20-23"):
            n = int(record.level == 2)
            data = record.data.encode("utf-8", "replace") + b"\n"
            shown[n] += len(data)
            writer.write(Chunk(node, "stderr" if n else "stdout", data))
    except Error as e:
        message(f"jsctl: {node}: {e}")
        return False
    # A last line may have had no line feed, and text of another encoding has other lengths.
    missing = [count - have for count, have in zip(counts, shown)]
    lacks: List[str] = [f"{lack} bytes of {name}" for name, lack in zip(("stdout", "stderr"), missing) if lack > 1]
    if lacks:
        message(f"jsctl: {node}: no record has the other {' and '.join(lacks)}")
    return not lacks


def _status(client: Client, jobs: Mapping[NodeId, str], code: int) -> int:
    """Return the exit status of the program of a single node, of several whether all ended `OK`; else `code`."""
    # The result may come a moment after the output. It stays on its list for the client that sent the job.
    until = time.monotonic() + _RESULT_TIMEOUT_SECONDS
    left = dict(jobs)
    while True:
        for node, job in list(left.items()):
            for _, _, result in client._entries(job, [node]):
                if result is not None:
                    del left[node]
                    if not result.ok:
                        message(f"jsctl: {result.sentence(with_stderr=False)}")
                        is_status = len(jobs) == 1 and 0 < result.code < 256 and code == OK
                        code = result.code if is_status else FAILED
        if not left:
            return code
        if time.monotonic() > until:
            message(f"jsctl: the output of {render.join_names(list(left))} has ended, and its result has not come")
            return TIMED_OUT
        time.sleep(_RESULT_INTERVAL_SECONDS)
