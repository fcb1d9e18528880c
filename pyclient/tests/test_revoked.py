"""Revoked nodes are distinguished from nodes that were never seen."""

from __future__ import annotations

import json
from typing import Callable

import pytest
import redis
from conftest import Ran
from fake import Fake

from jsclient import Client, Fleet, FleetFailedError, NodeId, NoMatchingNodesError
from jsclient.commands import CommandSpec
from jsclient.nodes import explain_unknown

Jsctl = Callable[..., Ran]
SENTENCE = "1.7 was revoked at 2026-03-01 12:00:00: enrol it again with jsacc enroll 1 7"


@pytest.fixture(autouse=True)
def revoked(raw: redis.Redis, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Revoke 1.7."""
    monkeypatch.setattr("jsclient.nodes.time.localtime", __import__("time").gmtime)
    raw.set("jsacc:{1:7}:revoked", 1772366400123)


def test_command_for_a_revoked_node_fails_at_once_with_advice(jsctl: Jsctl, fake: Fake) -> None:
    for words in (["exec", "1.7", "--", "true"], ["ping", "1.7"], ["logs", "1.7"], ["stats", "1.7"], ["nodes", "1.7"],
                  ["grant", "1.7", "--role", "web"]):
        ran = jsctl(*words)
        assert ran.code == 3 and SENTENCE in ran.err, (words, ran)
    assert not fake.seen
    ran = jsctl("exec", "1.7", "--dry-run", "--json", "--", "true")
    assert json.loads(ran.out.split("]")[0] + "]")[0]["state"] == "revoked"
    assert jsctl("exec", "1.7", "--dry-run", "--", "true").out == "1.7\trevoked\n"


def test_revoked_node_among_others_is_listed_separately(jsctl: Jsctl) -> None:
    ran = jsctl("exec", "1.1,1.7,1.9", "--", "echo", "x")
    assert ran.code == 1 and f"{SENTENCE}; nothing is sent to it" in ran.err
    assert ran.err.splitlines()[-1] == "1 OK, 0 failed, 1 never seen (1.9), 1 revoked (1.7)"
    ran = jsctl("exec", "1.1,1.7,1.9", "--json", "--", "echo", "x")
    assert {it["node"]: it["state"] for it in json.loads(ran.out)} == {"1.1": "OK", "1.7": "REVOKED", "1.9": "UNKNOWN"}


def test_revoked_node_is_named_in_exceptions(client: Client) -> None:
    with pytest.raises(NoMatchingNodesError, match="7.7 was never seen by a controller; 1.7 was revoked at"):
        client.target("1.7,7.7").execute("true")
    with pytest.raises(NoMatchingNodesError, match="node 1.7 was revoked at"):
        client.node(1, 7)
    fleet = client.target("1.1,1.7").execute("echo", ["x"]).wait()
    assert fleet.unknown == fleet.revoked == [(1, 7)]
    with pytest.raises(FleetFailedError, match="revoked: 1.7"):
        fleet.raise_for_status()


def test_ten_of_many_unknown_nodes_are_named_and_the_others_counted() -> None:
    many = [NodeId(1, n) for n in range(1, 26)]
    told = explain_unknown(many, {})
    assert told.startswith("1.1, 1.2, ") and told.endswith("1.10 and 15 more were never seen by a controller")
    told = explain_unknown(many[:12], {node: 1 for node in many})
    assert told.count(" was revoked at ") == 10 and told.endswith("; and 2 more were revoked")


def test_revoked_nodes_of_a_fleet_are_iterated_once(client: Client) -> None:
    nodes = [NodeId(1, n) for n in (7, 8, 9)]
    fleet = Fleet(client, "f", CommandSpec("ping"), nodes=[], unknown=nodes, revoked=iter(nodes[1:]))
    assert fleet.revoked == nodes[1:]
