"""Grants of nodes, and their claims without a grant."""

from __future__ import annotations

import json
import time
from typing import Any, Callable, List

import pytest
from conftest import Ran
from fake import Fake

from jsclient import Client, Grant, NodeId, NoMatchingNodesError, RedisUnavailableError, UsageError

Jsctl = Callable[..., Ran]


@pytest.fixture
def claiming(fake: Fake, raw: Any) -> Fake:
    """Give 1.1 a grant for `web`, and claims for `db` and a label."""
    raw.hset("jsacc:grant:1:1", mapping={"role:web": '{"by": "first start", "at": 1766385000000}'})
    raw.hset("jsacc:agent:1:1", "claims", json.dumps(["role:db", "label:site=ams"]))
    return fake


def test_grant_is_written_as_controllers_read_it(client: Client, claiming: Fake, raw: Any) -> None:
    before = int(time.time() * 1000) - 1000
    changed = client.grant("1.1,1.2", roles=["db", "web"], labels={"site": "ams"}, hosts=["db1.example"])
    assert changed[NodeId(1, 1)] == ["role:db", "label:site=ams", "host:db1.example"]
    assert changed[NodeId(1, 2)] == ["role:db", "role:web", "label:site=ams", "host:db1.example"]
    held = {name: json.loads(value) for name, value in raw.hgetall("jsacc:grant:1:1").items()}
    assert held["role:web"] == {"by": "first start", "at": 1766385000000}, "who granted it first stays"
    assert held["role:db"]["by"] == "tester" and held["role:db"]["at"] >= before
    assert client.grant("1.2", roles=["db"], remove=True) == {NodeId(1, 2): ["role:db"]}
    assert sorted(raw.hkeys("jsacc:grant:1:2")) == ["host:db1.example", "label:site=ams", "role:web"]
    assert client.grant("1.2", labels=["site=ams", "site=ams"], hosts=["x"], remove=True) == {NodeId(1, 2): ["label:site=ams"]}


def test_grants_and_claims_are_kept_apart(client: Client, claiming: Fake, raw: Any) -> None:
    raw.hset("jsacc:grant:1:1", mapping={"host:h": "not JSON", "later": "{}", "role:a b": "{}"})
    found = client.grants()
    assert [(g.node, g.field, g.granted, g.by, g.at) for g in found] == [
        (NodeId(1, 1), "role:web", True, "first start", 1766385000000), (NodeId(1, 1), "host:h", True, "", 0),
        (NodeId(1, 1), "role:db", False, "", 0), (NodeId(1, 1), "label:site=ams", False, "", 0),
    ]
    assert found == client.grants("1.1") == client.grants("1.*") and client.grants("1.2") == []
    assert client.node(1, 1).claims == ("role:db", "label:site=ams")
    # It is no claim as soon as it is granted, before the controller has read the grant.
    client.grant("1.1", roles=["db"])
    assert [g.field for g in client.grants("1.1") if not g.granted] == ["label:site=ams"]
    assert isinstance(found[0], Grant)


def test_grant_for_an_unseen_node_is_refused(client: Client, claiming: Fake, raw: Any, jsctl: Jsctl) -> None:
    with pytest.raises(NoMatchingNodesError, match="7.7 was never seen by a controller; nothing was changed"):
        client.grant("1.1,7.7", roles=["db"])
    assert not raw.exists("jsacc:grant:7:7") and raw.hkeys("jsacc:grant:1:1") == ["role:web"]
    assert not raw.exists("jsacc:audit")
    assert jsctl("grant", "7.7", "--role", "db").code == jsctl("grant", "@nobody", "--role", "db").code == 3
    # A node with grants from its enrolment that no controller has seen.
    raw.hset("jsacc:grant:7:7", "role:web", '{"by": "enroll", "at": 1}')
    assert [g.field for g in client.grants() if g.node == (7, 7)] == ["role:web"] == [g.field for g in client.grants("7.7")]
    assert client.grant("7.7", roles=["db"]) == {NodeId(7, 7): ["role:db"]}
    assert jsctl("grant", "7.7", "--role", "web", "--role", "db", "--remove").code == 0 and not raw.exists("jsacc:grant:7:7")


@pytest.mark.parametrize("words", [
    [], ["--role", ""], ["--role", "a b"], ["--role", "$(x)"], ["--role", "x" * 65], ["--role", "caf\u00e9"], ["--role", "a\n"],
    ["--label", "a"], ["--label", "a="], ["--label", "=b"], ["--label", "a=b=c"], ["--label", "a=b c"],
    ["--host", "a/b"], ["--host", "x" * 254], ["--host", "h\x1b[1m"], ["--role", "good", "--label", "bad"],
])
def test_invalid_grant_is_a_usage_error(claiming: Fake, jsctl: Jsctl, raw: Any, words: List[str]) -> None:
    ran = jsctl("grant", "1.2", *words)
    assert ran.code == 2 and not raw.exists("jsacc:grant:1:2"), ran
    assert len(ran.err.strip().splitlines()) <= 2 and "\x1b" not in ran.err


def test_grant_names_given_as_text_are_a_usage_error(client: Client) -> None:
    with pytest.raises(UsageError, match="lists"):
        client.grant("1.1", roles="web")
    with pytest.raises(UsageError, match="most is 100"):
        client.grant("1.1", roles=[f"r{i}" for i in range(101)])
    assert len(client.grant("1.1", roles=[f"r:/-_.{i}" for i in range(100)])[NodeId(1, 1)]) == 100


def test_jsctl_grant_reports_remaining_claims(claiming: Fake, jsctl: Jsctl) -> None:
    ran = jsctl("grants")
    assert ran.code == 0 and "BY (SELF-DECLARED)" in ran.out.splitlines()[0]
    rows = [line.split("  ") for line in ran.out.splitlines()[1:]]
    assert ["1.1", "role:web"] == [cell.strip() for cell in rows[0] if cell][:2] and "yes" in ran.out
    assert "no, claimed" in ran.out.splitlines()[2]
    assert "grant them with jsctl grant 1.1 --role db --label site=ams" in ran.err
    nodes = jsctl("nodes")
    assert nodes.out.splitlines()[0].endswith("NOT GRANTED") and "role:db,label:site=ams" in nodes.out
    assert json.loads(jsctl("nodes", "1.1", "--json").out)[0]["claims"] == ["role:db", "label:site=ams"]
    assert "NOT GRANTED" not in jsctl("nodes", "1.2").out
    ran = jsctl("--as", "alice", "grant", "1.1", "--role", "db", "--role", "web", "--label", "site=ams")
    assert ran.code == 0 and ran.out == "1.1: granted role:db, label:site=ams\n1.1: role:web was granted before\n"
    ran = jsctl("grants", "1.1")
    assert ran.err == "" and ran.out.count("alice") == 2 and "no, claimed" not in ran.out
    assert jsctl("grant", "1.1", "--role", "db", "--remove").out == "1.1: removed role:db\n"
    ran = jsctl("grant", "1.1", "--role", "db", "--remove")
    assert (ran.code, ran.out) == (3, "1.1: role:db was not granted\n")
    assert jsctl("grants", "2.1").code == 3 and "no grant and no claim" in jsctl("grants", "2.1").err


def test_grant_without_a_claim_explains_how_to_claim(claiming: Fake, jsctl: Jsctl) -> None:
    ran = jsctl("grant", "1.1", "--role", "db", "--role", "web", "--label", "site=ams", "--host", "host1")
    assert ran.code == 0 and ran.err == "", "all of these are claimed"
    ran = jsctl("grant", "1.*", "--role", "cache", "--role", "web", "--label", "site=ber", "--json")
    assert ran.code == 0 and ran.err.splitlines() == [
        "jsctl: 1.1, 1.2: role:cache is granted and not claimed, so it is not a target yet; "
        "name it in roles of the node's agent.toml and restart the agent",
        "jsctl: 1.1, 1.2: label:site=ber is granted and not claimed, so it is not a target yet",
    ]
    assert jsctl("grant", "1.1", "--role", "other", "--remove").err == ""


def test_grant_is_reported_when_reading_claims_fails(
    claiming: Fake, jsctl: Jsctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RedisUnavailableError("Redis at x closed the connection", transient=True)

    monkeypatch.setattr("jsclient.cli.grants.load_claims", fail)
    ran = jsctl("grant", "1.1", "--role", "cache")
    assert (ran.code, ran.out) == (0, "1.1: granted role:cache\n")
    assert ran.err == "jsctl: whether it is claimed is not known: Redis at x closed the connection\n"


def test_role_without_nodes_names_claiming_and_granted_nodes(claiming: Fake, jsctl: Jsctl, raw: Any) -> None:
    raw.hset("jsacc:agent:2:1", "roles", "[]")
    raw.hset("jsacc:agent:1:2", "roles", "[]")
    told = "jsctl: no node matches @db; claimed by 1.1 without a grant; grant it with jsctl grant 1.1 --role db"
    for words in (["exec", "@db", "--", "true"], ["ping", "@db"], ["nodes", "@db"], ["stats", "@db"]):
        ran = jsctl(*words)
        assert ran.code == 3 and ran.err.splitlines()[0] == told, (words, ran)
    assert "grant it with jsctl grant 1.1 --role db" in jsctl("ping", "@web,db").err
    jsctl("grant", "1.1", "--role", "db")
    assert "no node matches @db; granted to 1.1, which controllers notice within seconds" in jsctl("ping", "@db").err
    raw.hset("jsacc:agent:1:1", "claims", "[]")
    told = "no node matches @db; granted to and not claimed by 1.1: name it in roles of the node's agent.toml"
    assert told in jsctl("ping", "@db").err
    assert jsctl("ping", "@nobody").err == "jsctl: no node matches @nobody\n"


def test_grants_json_has_all_fields(claiming: Fake, jsctl: Jsctl) -> None:
    found = json.loads(jsctl("grants", "--json").out)
    assert found[0] == {"node": "1.1", "gid": 1, "nid": 1, "kind": "role", "name": "web", "granted": True,
                        "by": "first start", "at": 1766385000000}
    assert [(it["kind"], it["name"], it["granted"]) for it in found[1:]] == [("role", "db", False), ("label", "site=ams", False)]
    lines = jsctl("grant", "1.*", "--role", "web", "--ndjson").out.splitlines()
    assert [json.loads(line) for line in lines] == [{"node": "1.1", "gid": 1, "nid": 1, "granted": []},
                                                    {"node": "1.2", "gid": 1, "nid": 2, "granted": ["role:web"]}]
    assert json.loads(jsctl("grant", "1.1", "--role", "web", "--remove", "--json").out)[0]["removed"] == ["role:web"]
    assert json.loads(jsctl("grants", "2.1", "--json").out) == []


def test_audit_list_names_the_user_who_granted(claiming: Fake, jsctl: Jsctl, client: Client) -> None:
    jsctl("--as", "alice", "grant", "1.1", "--role", "db")
    jsctl("--as", "bob", "grant", "1.*", "--role", "db", "--label", "site=ams", "--remove")
    second, first = client.audit(2)
    assert (first["by"], first["cmd"], first["args"], first["targets"]) == ("alice", "grant", {"add": ["role:db"]}, ["1:1"])
    assert (second["by"], second["args"]["remove"], second["count"]) == ("bob", ["role:db", "label:site=ams"], 2)
    ran = jsctl("audit")
    assert "BY (SELF-DECLARED)" in ran.out and "grant role:db" in ran.out and "grant -role:db -label:site=ams" in ran.out
    assert "self-declared" in jsctl("grants", "--help").out


def test_grant_and_grants_are_completed(claiming: Fake, jsctl: Jsctl) -> None:
    for line in ("jsctl grant 1.", "jsctl grants 1."):
        assert jsctl("__complete", line).out.split() == ["1.*", "1.1", "1.2"]
    assert "--remove" in jsctl("__complete", "jsctl grant 1.1 --re").out
