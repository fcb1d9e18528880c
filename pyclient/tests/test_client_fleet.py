"""Fleets and targets from Python, against the controller of `fake`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import wait_until
from fake import Fake

from jsclient import (
    Client,
    FleetFailedError,
    NodeId,
    NoMatchingNodesError,
    WaitTimeoutError,
)


def push_forged(raw: Any, job_id: str, gid: int, nid: int) -> None:
    """Push a result as a node could that knows the id of a job of another node."""
    forged = {"id": job_id, "gid": gid, "nid": nid, "state": "OK", "data": "forged", "level": 0, "streams": ["", ""]}
    raw.rpush(f"cmds_queue_{job_id}", json.dumps(forged))


def test_result_of_a_foreign_node_is_dropped(client: Client, fake: Fake, raw: Any) -> None:
    fake.deaf.add((1, 1))
    job = client.execute(1, 1, "sleep", ["100"])
    wait_until(lambda: job.state == "RUNNING")
    push_forged(raw, job.id, 2, 1)
    with pytest.raises(WaitTimeoutError):
        job.wait(0.3)
    with pytest.raises(WaitTimeoutError):
        client.job(job.id).wait(0.1)
    push_forged(raw, job.id, 2, 1)
    push_forged(raw, job.id, 1, 1)
    assert client.job(job.id).wait(5).node == (1, 1)

    fleet = client.target("1.1,2.1").execute("sleep", ["100"])
    wait_until(lambda: len(fleet.states()) == 2)
    push_forged(raw, fleet.job_id(NodeId(2, 1)), 1, 1)
    fan = client.target("1.*").execute("sleep", ["100"])
    wait_until(lambda: len(fan.states()) == 2)
    push_forged(raw, fan.id, 2, 1)
    for many in (fleet, fan):
        assert many.wait(0.3).results == {}
        assert raw.llen(f"cmds_queue_{many.job_id(many.nodes[-1])}") == 0


def test_member_ids_of_a_fleet_are_random(client: Client, fake: Fake) -> None:
    fleet = client.target("1.1,2.1").execute("echo", ["x"]).wait(10)
    ids = [fleet.job_id(node) for node in fleet.nodes]
    ends = [job_id.rsplit(".", 1)[1] for job_id in ids]
    assert len(set(ends)) == 2 and all(len(end) == 16 for end in ends)
    assert client.member_ids(fleet.id) == ids and client.resolve_id(fleet.id[:10]) == fleet.id
    assert [job.wait(5).ok for job in fleet.jobs.values()] == [True, True]


def test_fleet_yields_a_result_for_each_node(client: Client) -> None:
    fleet = client.target("@web").execute("whoami")
    assert {r.stdout for r in fleet} == {"1.1", "1.2"}
    assert fleet.ok and not fleet.failed and not fleet.missing
    assert fleet.raise_for_status() is fleet
    assert len(fleet.nodes) == 2 and sorted(fleet.results) == [(1, 1), (1, 2)]
    assert [r.node for r in fleet] == [r.node for r in fleet.results.values()]


@pytest.mark.parametrize(
    "who,but,nodes",
    [
        ("1.1", None, ["1.1"]),
        ("1.1,2.1", None, ["1.1", "2.1"]),
        ("1.*", None, ["1.1", "1.2"]),
        ("@web,db", None, ["1.2"]),
        ("@db", None, ["1.2", "2.1"]),
        ("all", None, ["1.1", "1.2", "2.1"]),
        ("all", "1.1", ["1.2", "2.1"]),
        ("all", ["@db", "9.9"], ["1.1"]),
    ],
)
def test_target_selects_and_excludes_nodes(client: Client, who: str, but: Any, nodes: Any) -> None:
    target = client.target(who, exclude=but)
    assert [str(n) for n in target.nodes()] == nodes
    assert [str(n) for n in sorted(target.ping().wait(10).results)] == nodes


def test_any_selects_one_node(client: Client, fake: Fake) -> None:
    assert len(client.target("all", any=True).ping().wait().results) == 1


def test_failed_and_missing_nodes_are_named(client: Client, fake: Fake) -> None:
    fake.deaf.add((2, 1))
    fake.programs["flaky"] = lambda n, c: {"state": "ERROR", "code": 2} if n == (1, 1) else {}
    fleet = client.target("all").execute("flaky").wait(0.5)
    assert [r.node for r in fleet.failed] == [(1, 1)] and fleet.missing == [(2, 1)]
    with pytest.raises(FleetFailedError, match="failed on 1.1; no answer from 2.1") as e:
        fleet.raise_for_status()
    assert e.value.missing == ["2.1"]


def test_offline_and_unknown_nodes_are_kept_apart(client: Client, fake: Fake) -> None:
    fake.add(1, 3, ["web"], age=500)
    fleet = client.target("1.1,1.3,1.9").ping().wait()
    assert list(fleet.results) == [(1, 1)]
    assert [n.id for n in fleet.offline] == [(1, 3)] and fleet.unknown == [(1, 9)]
    with pytest.raises(NoMatchingNodesError, match="1.9 was never seen"):
        client.target("1.9").ping()
    with pytest.raises(NoMatchingNodesError, match="no node matches @nobody"):
        client.target("@nobody").ping()
    fleet = client.target("1.3").ping(wait_offline=True)
    assert fleet.wait(0.2).missing == [(1, 3)]
    fake.arrive(1, 3)
    assert fleet.wait(5).ok


def test_batches_stop_after_max_failures(client: Client, fake: Fake) -> None:
    for nid in range(10, 20):
        fake.add(5, nid, ["many"])
    fleet = client.target("@many").execute("false", batch="10%", max_failures=2).wait()
    assert fleet.returned == 3 and len(fleet.skipped) == 7
    fleet = client.target("@many").execute("echo", batch=4).wait()
    assert fleet.returned == 10 and not fleet.skipped


def test_fleet_of_200_nodes_collects_all_results(client: Client, fake: Fake) -> None:
    for nid in range(1, 201):
        fake.add(8, nid, ["x"])
    fleet = client.target("8.*", exclude="8.7").ping().wait(20)
    assert fleet.returned == 199 and fleet.ok
