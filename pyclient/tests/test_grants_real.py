"""Grants with the real controller and agent: a claim is a target only after its grant."""

from __future__ import annotations

import subprocess
from typing import List

import pytest
from conftest import wait_until
from test_kinds import BIN, Processes, free_port

from jsclient import Client, NodeId, NoMatchingNodesError
from jsclient.cli.main import main

pytestmark = pytest.mark.skipif(BIN is None, reason="jsacc and jsagent are not built")

#: A controller notices a change within this time on a busy machine, in seconds.
NOTICED = 120.0


def test_claimed_role_is_a_target_only_while_granted(capsys: pytest.CaptureFixture[str]) -> None:
    processes = Processes()
    try:
        port, web, out = free_port(), free_port(), processes.folder / "credentials"
        processes.server(port)
        url = f"127.0.0.1:{port}"
        same: List[str] = ["-r", url, "--state-dir", str(processes.folder / "state")]
        processes.start(str(BIN / "jsacc"), "-p", str(web), "-b", "127.0.0.1", "--insecure-http", *same)  # type: ignore[operator]
        with Client(url, timeout=60, by="alice") as client:
            wait_until(lambda: client.connection.read("ZCARD", "jsacc:acs"), NOTICED)

            def controller(*words: str) -> None:
                subprocess.run([str(BIN / "jsacc"), *words, *same], check=True, capture_output=True, timeout=60)  # type: ignore[operator]

            controller("enroll", "1", "1", "--role", "web", "--url", f"http://127.0.0.1:{web}", "--out", str(out))
            # It was granted something before it was seen.
            assert [(g.field, g.granted) for g in client.grants()] == [("role:web", True)] and client.nodes() == []
            settings = (out / "agent.toml").read_text().replace('roles = ["web"]', 'roles = ["web", "db"]')
            (out / "agent.toml").write_text(settings)
            processes.start(str(BIN / "jsagent"), "-c", str(out / "agent.toml"), "--data-dir", str(processes.folder / "node"))  # type: ignore[operator]

            def nodes(target: str) -> List[NodeId]:
                return client.target(target).nodes()

            wait_until(lambda: "role:db" in [g.field for g in client.grants() if not g.granted], NOTICED)
            assert nodes("@web") == [(1, 1)] and client.node(1, 1).claims == ("role:db",)
            with pytest.raises(NoMatchingNodesError, match="grant it with jsctl grant 1.1 --role db"):
                client.target("@db").ping()
            capsys.readouterr()
            assert main(["-r", url, "grants"]) == 0
            assert "jsctl grant 1.1 --role db" in capsys.readouterr().err
            assert main(["-r", url, "--as", "alice", "grant", "1.1", "--role", "db"]) == 0
            wait_until(lambda: nodes("@db") == [(1, 1)], NOTICED)
            assert client.target("@db").ping().wait().ok and client.node(1, 1).claims == ()
            assert {g.field: g.by for g in client.grants()}["role:db"] == "alice"
            assert main(["-r", url, "grant", "1.1", "--role", "web", "--role", "cache"]) == 0
            told = capsys.readouterr().err.splitlines()
            assert len(told) == 1 and "1.1: role:cache is granted and not claimed" in told[0]
            with pytest.raises(NoMatchingNodesError, match="granted to and not claimed by 1.1"):
                client.target("@cache").ping()
            # Both write into the audit list.
            assert [e["cmd"] for e in client.audit()] == ["grant", "ping", "grant"]
            assert client.grant("1.1", roles=["db"], remove=True) == {NodeId(1, 1): ["role:db"]}
            wait_until(lambda: nodes("@db") == [] and client.node(1, 1).claims == ("role:db",), NOTICED)

            controller("revoke", "1", "1")
            capsys.readouterr()
            sent = len(client.jobs())
            assert main(["-r", url, "exec", "1.1", "--", "true"]) == 3
            told = capsys.readouterr().err
            assert "1.1 was revoked at 20" in told and "jsacc enroll 1 1" in told and len(client.jobs()) == sent
    finally:
        processes.close()
