"""A fanout to thousands of nodes: all is shown, and the client holds a part of the results at a time."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.process
import time
import tracemalloc
from typing import Any, Callable, Dict, Iterator

import pytest
import redis
from conftest import Ran, Server

from jsclient import Client, commands

NODES = 4000
#: Most bytes of memory a node, of the selection, the wait and the output together: 100,000 nodes stay below 400 MB.
MAX_BYTES_A_NODE = 2500
OUTPUT = "x" * 1000 + "\n"


def add_nodes(socket: str) -> None:
    now = int(time.time() * 1000)
    pipe = redis.Redis(unix_socket_path=socket).pipeline()
    pipe.zadd("jsacc:agents", {f"1:{nid}": now for nid in range(1, NODES + 1)})
    pipe.zadd("jsacc:acs", {"one": now})
    pipe.execute()


def answer(socket: str, to_list: bool) -> None:
    """Answer the first command for all nodes at once, as a controller does."""
    connection = redis.Redis(unix_socket_path=socket)
    popped: Any = connection.brpop(["cmds_queue"], 30)
    command: Dict[str, Any] = json.loads(popped[1])
    job = command["id"]
    results = {
        f"1:{nid}": json.dumps({
            "id": job, "gid": 1, "nid": nid, "cmd": command["cmd"], "args": command["args"], "data": "", "level": 0,
            "state": "OK", "code": 0, "time": 1, "starttime": 1, "streams": [OUTPUT, ""], "critical": "", "tags": "",
            "bytes": [len(OUTPUT), 0], "truncated": False,
        })
        for nid in range(1, NODES + 1)
    }
    pipe = connection.pipeline()
    head = {"cmd": json.dumps(command), "targets": json.dumps(list(results))}
    pipe.hset(f"jsacc:job:{job}", mapping={**head, **results})
    if to_list:
        pipe.lpush(f"cmds_queue_{job}", *results.values())
    pipe.execute()


@pytest.fixture(params=[True, False], ids=["list", "hash"])
def answers(server: Server, request: pytest.FixtureRequest) -> Iterator[multiprocessing.process.BaseProcess]:
    """All results are on the list, or, after a connection that broke, in the hash alone.

    The controller is a process of its own, so that its memory is not that of the client.
    """
    add_nodes(server.socket)
    process = multiprocessing.get_context("fork").Process(target=answer, args=(server.socket, request.param))
    process.start()
    yield process
    process.join(30)


def test_large_fanout_is_shown_in_bounded_memory(answers: object, jsctl: Callable[..., Ran]) -> None:
    jsctl("--version")  # what is imported once does not grow with the nodes
    tracemalloc.start()
    try:
        ran = jsctl("exec", "all", "--no-progress", "--", "true")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert ran.code == 0, ran.err
    assert f"{NODES} OK, 0 failed" in ran.err
    assert peak / NODES < MAX_BYTES_A_NODE, f"{peak / NODES:.0f} bytes a node"


def test_fanout_without_keep_holds_a_part_of_the_results(
    answers: multiprocessing.process.BaseProcess, server: Server
) -> None:
    with Client(server.url) as client:
        fleet = client.target("all").start(commands.ping(), keep=False)
        answers.join(30)
        held = []
        for _ in fleet.stream(20):
            held.append(len(fleet._pending))
        assert len(held) == fleet.returned == NODES and not fleet.missing
        assert max(held) <= 1000
