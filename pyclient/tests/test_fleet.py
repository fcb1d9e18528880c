"""Fleets: answers of the controller, stopped nodes, and withdrawal."""

from __future__ import annotations

import json
import re
import time
from typing import Any, Callable, List, Set

import pytest
from conftest import Ran, wait_until
from fake import Fake

from jsclient import Client, Fleet, NodeId, NoMatchingNodesError, WaitTimeoutError, keys
from jsclient._connection import _is_too_old
from jsclient._follow import skip_unresponsive
from jsclient.wire import Command

Jsctl = Callable[..., Ran]
ALL = [(1, 1), (1, 2), (2, 1)]


def at_work(fake: Fake, fleet: Fleet) -> None:
    """Wait until every node has taken the job."""
    wait_until(lambda: all((fleet.id, node) in fake.running for node in fleet.nodes))


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("expired", ALL)
def test_controller_answer_for_one_node_leaves_the_others_open(
    client: Client, fake: Fake, raw: Any, named: bool, expired: Any
) -> None:
    fake.names_nodes = named
    fake.deaf.update(ALL)
    fleet = client.target("all").execute("uname")
    at_work(fake, fleet)
    for node in ALL:
        (fake.expire if node == expired else fake.end)(fleet.id, node)
    came = list(fleet.stream(5))
    assert {r.node: r.state for r in came} == {n: "ERROR" if n == expired else "OK" for n in ALL}
    assert {r.node: r.state for r in fleet.results.values()} == {r.node: r.state for r in came}
    assert fleet.returned == len(fleet.nodes) == 3 and not fleet.missing and [r.node for r in fleet.failed] == [expired]
    assert not raw.exists(keys.result_list(fleet.id))


@pytest.mark.parametrize("named", [True, False])
def test_controller_answer_arrives_during_the_wait_for_others(
    client: Client, fake: Fake, named: bool
) -> None:
    fake.names_nodes = named
    fake.deaf.update(ALL)
    fleet = client.target("all").execute("uname")
    at_work(fake, fleet)
    came = fleet.stream(10)
    fake.end(fleet.id, (1, 1))
    assert next(came).node == (1, 1)
    fake.expire(fleet.id, (1, 2))
    assert (next(came).node, fleet.missing) == ((1, 2), [(2, 1)])
    fake.end(fleet.id, (2, 1))
    assert [r.node for r in came] == [(2, 1)] and not fleet.missing


@pytest.mark.parametrize("named", [True, False])
def test_second_client_sees_all_results_of_a_partly_withdrawn_job(
    client: Client, fake: Fake, jsctl: Jsctl, named: bool
) -> None:
    fake.names_nodes = named
    fake.deaf.update(ALL)
    fleet = client.target("all").execute("uname")
    at_work(fake, fleet)
    fake.expire(fleet.id, (1, 1))
    fake.end(fleet.id, (1, 2))
    fake.expire(fleet.id, (2, 1))
    ran = jsctl("wait", fleet.id, "--timeout", "10", "--json")
    assert ran.code == 1 and {r["node"]: r["state"] for r in json.loads(ran.out)} == {
        "1.1": "ERROR", "1.2": "OK", "2.1": "ERROR"}
    assert "1 OK, 2 failed (1.1, 2.1)" in ran.err


def test_job_of_one_node_ignores_answers_for_others(client: Client, fake: Fake, raw: Any) -> None:
    fake.names_nodes = False
    fake.deaf.update(ALL)
    fleet = client.target("all").execute("uname")
    at_work(fake, fleet)
    jobs = fleet.jobs
    fake.expire(fleet.id, (1, 1))
    with pytest.raises(WaitTimeoutError):
        jobs[NodeId(1, 2)].wait(0.3)
    assert jobs[NodeId(1, 1)].wait(5).node == (1, 1)
    fake.end(fleet.id, (1, 2))
    assert jobs[NodeId(1, 2)].result.state == "OK"  # type: ignore[union-attr]
    assert raw.llen(keys.result_list(fleet.id)) == 1, "others wait for what is on the list"


def test_job_without_targets_has_one_result_for_all(client: Client, fake: Fake, jsctl: Jsctl) -> None:
    command = Command("ping", roles=["nobody"], fanout=True)
    client.push([command])
    for _ in range(2):
        ran = jsctl("wait", command.id, "--timeout", "10")
        assert ran.code == 1 and "no live node has these roles" in ran.out + ran.err, ran
    for words in (["cancel"], ["kill"]):
        ran = jsctl(*words, command.id)
        assert ran.code == 3 and f"job {command.id} was given to no node" in ran.err, ran
    with pytest.raises(LookupError, match="was given to no node"):
        client.job(command.id).node


def stop(raw: Any, node: str) -> None:
    """Let the agent of a node announce its stop."""
    raw.hset(f"jsacc:agent:{node}", "stopped", str(int(time.time() * 1000) + 1000))


@pytest.mark.parametrize("who,there", [("all", 3), ("@web", 2), ("1.*", 2), ("1.1,1.2,2.1", 2), ("@db", 1)])
@pytest.mark.parametrize("words", [["ping"], ["info", "os"], ["ps"], ["top", "--once"]])
def test_stopped_node_is_left_out_of_every_kind_of_target(
    jsctl: Jsctl, fake: Fake, raw: Any, words: List[str], who: str, there: int
) -> None:
    fake.add(1, 3, ["web"])
    fake.deaf.add((1, 2))
    stop(raw, "1:2")
    ran = jsctl(*words, who, *(["--timeout", "5"] if words[0] != "top" else []))
    if words[0] == "top":
        assert ran.code == 0 and f"{there} nodes, 0 jobs, 1 offline\n" in ran.err, ran
    else:
        assert ran.code == (1 if "," in who else 0), ran
        assert f"{there} OK, 0 failed, 1 offline (1.2)" in ran.err
    assert not fake.running and not fake.queued, "it was sent nothing"


def test_stopped_node_is_left_out_of_a_target(client: Client, fake: Fake, raw: Any) -> None:
    fake.deaf.add((1, 2))
    stop(raw, "1:2")
    for target in (client.target("all"), client.target("1.1,1.2,2.1")):
        for fleet in (target.ping(), target.info("os"), target.processes()):
            assert sorted(fleet.wait(10).results) == [(1, 1), (2, 1)]
            assert [n.id for n in fleet.offline] == [(1, 2)]
    assert not fake.running
    assert {client.target("@web", any=True).nodes()[0] for _ in range(20)} == {(1, 1)}
    stop(raw, "1:1")
    with pytest.raises(NoMatchingNodesError, match="stopped"):
        client.target("@web", any=True).ping()


@pytest.mark.parametrize("named", [True, False])
def test_withdrawal_keeps_the_results_of_other_nodes(
    client: Client, fake: Fake, raw: Any, named: bool
) -> None:
    fake.names_nodes = named
    fake.deaf.update(ALL)
    fleet = client.target("all").execute("uname")
    at_work(fake, fleet)
    for node in ALL[1:]:  # as a controller sees nodes that have not polled yet
        fake.queued[(fleet.id, node)] = fake.running.pop((fleet.id, node))
    assert fleet.wait(0.2).missing == ALL
    # The answer of a node arrives between the end of the wait and the withdrawal.
    fake.end(fleet.id, (1, 1))
    jobs, audit = raw.llen("jsacc:jobs"), raw.llen("jsacc:audit")
    told = fleet.withdraw()
    assert {n: why for n, why in told.items() if why} == {(1, 1): f"job {fleet.id} has ended on node 1.1"}
    assert (raw.llen("jsacc:jobs"), raw.llen("jsacc:audit")) == (jobs + 1, audit + 1), "one entry for all"
    found = [json.loads(text) for text in raw.lrange(keys.result_list(fleet.id), 0, -1)]
    assert (1, 1) in [(r["gid"], r["nid"]) for r in found], "other clients may wait for it"
    fleet.wait(10)
    assert {n: r.state for n, r in fleet.results.items()} == {(1, 1): "OK", (1, 2): "KILLED", (2, 1): "KILLED"}
    assert not raw.exists(keys.result_list(fleet.id))


def test_withdrawal_from_all_open_nodes_deletes_the_list(client: Client, fake: Fake, raw: Any) -> None:
    fake.deaf.update(ALL)
    fleet = client.target("all").execute("uname")
    at_work(fake, fleet)
    fake.end(fleet.id, (1, 1))
    assert len(fleet.wait(0.3).results) == 1
    for node in ALL[1:]:
        fake.queued[(fleet.id, node)] = fake.running.pop((fleet.id, node))
    assert fleet.withdraw() == {(1, 2): "", (2, 1): ""}
    assert not raw.exists(keys.result_list(fleet.id))


def test_withdrawal_returns_a_reason_for_each_node(client: Client, fake: Fake) -> None:
    fake.deaf.update(ALL)
    fleet = client.target("all").execute("uname")
    at_work(fake, fleet)
    fake.queued[(fleet.id, (2, 1))] = fake.running.pop((fleet.id, (2, 1)))
    fake.end(fleet.id, (1, 1))
    already = f"job {fleet.id} is already with node 1.2: kill it instead"
    assert client.cancel(fleet.id) == {(1, 2): already, (2, 1): ""}
    asked = [c for c in fake.seen if c["cmd"] == "cancel"]
    assert [c.get("nodes") for c in asked] == [[[1, 2], [2, 1]]]
    assert client.cancel(fleet.id) == {(1, 2): f"job {fleet.id} is already with node 1:2: kill it instead"}


def test_unresponsive_node_delays_the_next_command_briefly(
    client: Client, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jsclient._follow.UNRESPONSIVE_TIMEOUT_SECONDS", 0.05)
    fake.deaf.add((1, 2))
    silent: Set[NodeId] = set()

    def ask(limit: float) -> Fleet:
        fleet = client.target("all").ping()
        came = [result.node for result in skip_unresponsive(fleet, limit, silent, 0.05) if result]
        assert sorted(came) == ALL if (1, 2) not in fake.deaf else [(1, 1), (2, 1)]
        return fleet

    assert ask(3).waiting == 0 and silent == {(1, 2)}, "its time was up"
    assert ask(30).waiting == 1 and silent == {(1, 2)}, "its time was not up"
    fake.deaf.clear()
    monkeypatch.setattr("jsclient._follow.UNRESPONSIVE_TIMEOUT_SECONDS", 30)
    assert ask(30).waiting == 0 and not silent


def test_follow_does_not_wait_for_an_unresponsive_node_each_time(
    client: Client, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleets: List[Fleet] = []
    each = Fleet.each
    monkeypatch.setattr(Fleet, "each", lambda *a, **k: fleets.append(each(*a, **k)) or fleets[-1])
    monkeypatch.setattr("jsclient._follow.UNRESPONSIVE_TIMEOUT_SECONDS", 0.05)
    monkeypatch.setattr("jsclient._follow.FOLLOW_TIMEOUT_SECONDS", 3)
    fake.deaf.add((1, 2))
    records = client.target("1.*").follow()
    fake.record(1, 1, 1, "one")
    assert next(records).data == "one"
    monkeypatch.setattr("jsclient._follow.FOLLOW_TIMEOUT_SECONDS", 120)
    again: List[Fleet] = []
    while not again:
        fake.record(1, 1, 1, "more")
        assert next(records).data == "more"
        again = [fleet for fleet in fleets[1:] if fleet.nodes == [NodeId(1, 2)]]
    assert again[0].missing == [NodeId(1, 2)]


def test_fleet_id_selects_the_job_of_each_node_for_logs_kill_and_signal(client: Client, fake: Fake, jsctl: Jsctl) -> None:
    fleet = client.target("1.1,2.1").execute("sleep", ["9"])
    wait_until(lambda: len(fake.running) == 2)
    fake.deaf.add((1, 2))  # it was not asked for the job, and is not asked for its records
    for gid, nid in fleet.nodes:
        fake.record(gid, nid, 1, f"of {gid}.{nid}", jobid=fleet.job_id(NodeId(gid, nid)))
    fake.add(1, 9, [], age=500)
    for name in (fleet.id, fleet.id[:12]):
        ran = jsctl("logs", "all", "--job", name, "--timeout", "5")
        assert ran.code == 0 and "of 1.1" in ran.out and "of 2.1" in ran.out and not ran.err, ran
        assert jsctl("signal", "1.1", name, "HUP").code == 0
    ran = jsctl("logs", "1.2", "--follow", "--job", fleet.id)
    assert ran.code == 3 and "given to no node of 1.2" in ran.err, ran
    assert jsctl("kill", "1.1", fleet.id[:12]).code == 0 and jsctl("kill", "2.1", fleet.id).code == 0
    ran = jsctl("logs", "all", "--follow", "--job", fleet.id)
    assert ran.code == 0 and "of 1.1" in ran.out and "of 2.1" in ran.out, ran
    assert "1 deleted" in jsctl("logs", "2.1", "--job", fleet.id, "--delete").out


def test_withdrawn_node_is_listed(client: Client, fake: Fake, jsctl: Jsctl) -> None:
    fake.deaf.update(ALL)
    fleet = client.target("all").execute("uname")
    at_work(fake, fleet)
    fake.expire(fleet.id, (1, 1))
    assert "1.1, 1.2, 2.1  1 ERROR 2 RUNNING" in jsctl("jobs").out


def test_stopped_node_is_reported_before_the_wait(fake: Fake, jsctl: Jsctl, raw: Any) -> None:
    stop(raw, "1:2")
    ran = jsctl("exec", "@web", "--", "uname")
    told = r"node 1\.2 is offline \(stopped \d+ s ago\); it gets the command when it starts again"
    assert ran.code == 0 and re.search(told, ran.err), ran
    ran = jsctl("exec", "@web", "--dry-run", "--", "uname")
    assert "1.2\tstopped " in ran.out and "the command would go to 2 nodes; nothing was sent" in ran.err
    ran = jsctl("exec", "@web", "--dry-run", "--json", "--", "uname")
    assert [(n["node"], n["state"]) for n in json.loads(ran.out)] == [("1.1", "live"), ("1.2", "stopped")]


@pytest.mark.parametrize("old", ["5.0.14", "2.8", "6.0.5", "6", "6.0", "6.0.x"])
def test_versions_below_the_minimum_are_too_old(old: str) -> None:
    assert _is_too_old(old.encode())


@pytest.mark.parametrize("good", ["6.0.6", "6.0.16", "6.2", "7.2.4-rc1", "10.0.0", "255.255.255", "unstable", "", "df-v1.5.0"])
def test_new_and_unparsable_versions_are_accepted(good: str) -> None:
    assert not _is_too_old(good.encode())
