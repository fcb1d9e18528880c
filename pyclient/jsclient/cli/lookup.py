"""The client of a command line, and the lookup of jobs that were sent earlier."""

from __future__ import annotations

import argparse
import time
from typing import List, Tuple

from .. import keys
from ..client import Client
from ..errors import NoControllerError, job_not_found_error
from ..fleet import Fleet

#: Reads of the jobs of a fleet that a controller is still taking from the queue, and the pause between, in seconds.
_MAX_READS = 30
_READ_INTERVAL_SECONDS = 0.1


def connect(args: argparse.Namespace) -> Client:
    """Return the client for the flags `--redis` and `--as`."""
    return Client(args.redis, by=args.by)


def find_jobs(client: Client, job_id: str, read_only: bool = False) -> Tuple[str, List[str]]:
    """Return the complete id for an id or its prefix, and the ids of its jobs, none when Redis knows no such job.

    Raise `NoControllerError` when commands may wait in the queue and no controller takes them, except with
    `read_only`.
    """
    # A controller may still be taking the commands from the queue. Then the number of jobs grows from read to read,
    # and a caller that ends a fleet must end all of it.
    members: List[str] = []
    unchanged = 0
    for attempt in range(_MAX_READS):
        found = client.member_ids(job_id)
        unchanged = unchanged + 1 if found == members else 0
        members = found
        if members == [job_id]:
            break
        is_settled = unchanged >= 2 if members else attempt > 2
        if is_settled and not client.connection.read("LLEN", keys.QUEUE):
            break
        try:
            client.check()
        except NoControllerError:
            if read_only:
                break  # nothing takes commands, so the list is complete
            raise
        time.sleep(_READ_INTERVAL_SECONDS)
    if not members:
        # Only now: until here it may have been a complete id.
        job_id = client.resolve_id(job_id)
        members = client.member_ids(job_id)
    return job_id, members


def resume_fleet(client: Client, job_id: str) -> Fleet:
    """Return the fleet with this id or prefix; raise `JobNotFoundError`."""
    job_id, members = find_jobs(client, job_id)
    if not members:
        raise job_not_found_error(job_id)
    return Fleet.resume(client, job_id, {member: client.job_info(member) for member in members})
