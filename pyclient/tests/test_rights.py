"""The rights that docs give to clients (reference/client.md, how-to/set-up-redis.md) are enough, and not more than documented."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Callable, Iterator, List

import pytest
from conftest import Ran, Server, wait_until
from fake import Fake

from jsclient import Client, RedisUnavailableError
from jsclient.cli.main import main

ROOT = Path(__file__).parents[2]
GRANTING = "(%W~jsacc:grant:* +hsetnx +hdel) (%W~jsacc:audit +lpush)"


@pytest.fixture
def few(server: Server, raw: Any) -> Iterator[str]:
    """Return the address of Redis with the documented user."""
    page = (ROOT / "docs" / "reference" / "client.md").read_text()
    (rule,) = re.findall(r"^ACL SETUSER (ops .*)$", page, re.MULTILINE)
    other = (ROOT / "docs" / "how-to" / "set-up-redis.md").read_text()
    assert f"ACL SETUSER {rule}\n" in other and f"`{GRANTING}`" in page and f"`{GRANTING}`" in other
    raw.execute_command("ACL", "SETUSER", *rule.replace("PASSWORD", "right").split())
    raw.execute_command("ACL", "LOG", "RESET")
    yield f"{server.url}?username=ops&password=right"
    raw.execute_command("ACL", "DELUSER", "ops")


@pytest.fixture
def limited(few: str, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Return jsctl as that user."""

    def run(*words: str) -> Ran:
        capsys.readouterr()
        code = main(["--redis", few, *words])
        return Ran(code, *capsys.readouterr())

    return run


def denied(raw: Any) -> List[str]:
    """Return the refused commands of that user, without those by which jsctl tests its rights."""
    entries = [dict(zip(e[::2], e[1::2])) if isinstance(e, list) else e for e in raw.execute_command("ACL", "LOG")]
    return [f"{e['context']} {e['object']}" for e in entries if e["object"] not in ("getrange", "client|setinfo")]


def test_documented_rights_are_enough_for_the_client(few: str, fake: Fake, raw: Any) -> None:
    with Client(few, timeout=10) as client:
        assert client.user == "ops" and client.ping(1, 1) == "pong"
        job = client.execute(1, 1, "sleep", ["9"])
        wait_until(lambda: job.state == "RUNNING")
        job.kill()
        assert job.wait().state == "KILLED" and not job.cancel()
        assert client.target("all").execute("echo").wait().ok and client.target("1.1,1.2").ping().wait().ok
        assert client.run_script("1.1", source="def action():\n    return 1\n").wait().ok
        assert client.put("1.1", b"x", "/x").wait().ok and client.scripts()
        assert client.nodes() and client.jobs() and client.audit() and not client.events()
        assert not client.rejected() and not client.stats(1, 1) and not client.forwarded("d", "n")
        assert not list(client.logs("1.1")) and client.member_ids(job.id) == [job.id] and client.grants() == []
        fake.hash_only = True
        assert client.execute(1, 1, "echo").wait().ok and client.target("1.1,1.2").ping().wait().ok
    assert denied(raw) == []


def test_documented_rights_are_enough_for_jsctl(
    few: str, limited: Callable[..., Ran], fake: Fake, raw: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "a.py"
    script.write_text("def action():\n    return 1\n")
    fake.record(1, 1, 1, "a line", jobid="j")
    raw.hset("jsacc:grant:1:1", "role:web", '{"by": "first start", "at": 1}')
    raw.hset("jsacc:stats:1:1", "1.1.node.load", "[1, 1]")
    sent = json.loads(limited("exec", "1.1", "--json", "--", "echo", "hi").out)[0]["id"]
    waits = limited("exec", "1.1", "--detach", "--", "sleep", "9").out.strip()
    wait_until(lambda: raw.hget(f"jsacc:job:{waits}", "1:1") == '{"state": "RUNNING"}')
    for words in (
        ["exec", "@web", "--", "echo", "x"], ["exec", "all", "--batch", "1", "--", "echo"], ["exec", "1.1,2.1", "--", "echo"],
        ["exec", "1.1", "--shell", "--", "true"], ["script", "run", "1.1", str(script)], ["put", "1.1", str(script), "/x"],
        ["script", "list"], ["ping"], ["info", "os"], ["nodes"], ["nodes", "--json"], ["ps"], ["schedules"], ["top", "--once"],
        ["signal", waits, "HUP"], ["kill", waits], ["killall", "1.1"], ["restart", "1.1"], ["unschedule", "1.1", "j"],
        ["logs", "1.1"], ["logs", "1.1", "--job", "j"], ["logs", "1.1", "--delete"], ["stats", "1.1"], ["jobs"],
        ["job", sent], ["wait", sent], ["events"], ["audit"], ["rejected"], ["raw", "1.1", "ping"], ["grants"],
        ["grants", "1.1", "--json"], ["completion", "bash"],
    ):
        fake.programs.setdefault("/bin/sh", lambda n, c: {})
        ran = limited(*words)
        assert ran.code == (3 if words[0] == "unschedule" else 0) and "may not" not in ran.err, (words, ran)
    for line, offered in (("exec ", "1.1"), ("kill ", sent)):
        assert main(["__complete", f"jsctl --redis {few} {line}"]) == 0 and offered in capsys.readouterr().out.split()
    raw.set("jsacc:{1:7}:revoked", 1)
    assert "1.7 was revoked" in limited("exec", "1.7", "--", "true").err
    assert denied(raw) == []
    assert limited("grant", "1.1", "--role", "db").code == 1 and not raw.hexists("jsacc:grant:1:1", "role:db")


def test_granting_needs_two_more_rights(limited: Callable[..., Ran], fake: Fake, raw: Any) -> None:
    raw.execute_command("ACL", "SETUSER", "ops", *re.findall(r"\(.*?\)", GRANTING))
    for words in (["--role", "db"], ["--role", "db", "--remove"], ["--label", "a=b", "--host", "h", "--json"]):
        assert limited("grant", "1.1,1.2", *words).code == 0
    assert raw.hkeys("jsacc:grant:1:2") == ["label:a=b", "host:h"]
    assert denied(raw) == []


def test_documented_rights_do_not_read_queued_commands(few: str, raw: Any) -> None:
    keys = (ROOT / "acc" / "src" / "model" / "keys.rs").read_text()
    assert 'format!("jsacc:{{{node}}}:cmds")' in keys and 'format!("jsacc:{{cmds_queue}}:taken:{ac}")' in keys
    raw.lpush("cmds_queue", "secret")
    raw.lpush("jsacc:{cmds_queue}:taken:h:1:x", "secret")
    raw.hset("jsacc:{1:1}:cmds", "id", "secret")
    raw.zadd("jsacc:{1:1}:queue", {"id": 1})
    raw.set("jsacc:script:a", "secret")
    raw.hset("jsacc:grant:1:1", "role:web", "{}")
    with Client(few, timeout=10) as client:
        for words in [
            ("LRANGE", "cmds_queue", 0, -1), ("RPOP", "cmds_queue"), ("BRPOP", "cmds_queue", 1), ("DEL", "cmds_queue"),
            ("SET", "cmds_queue", "x"), ("EXPIRE", "cmds_queue", 1), ("LRANGE", "jsacc:{cmds_queue}:taken:h:1:x", 0, -1),
            ("HGETALL", "jsacc:{1:1}:cmds"), ("HGET", "jsacc:{1:1}:cmds", "id"), ("HMGET", "jsacc:{1:1}:cmds", "id"),
            ("ZRANGE", "jsacc:{1:1}:queue", 0, -1), ("HGETALL", "jsacc:{revoked}"), ("HGETALL", "jsacc:secret"),
            ("DEL", "jsacc:job:x"), ("SET", "jsacc:agents", "x"), ("LPUSH", "jsacc:audit", "x"), ("KEYS", "*"),
            ("GETRANGE", "jsacc:script:a", 0, 9), ("GET", "jsacc:script:a"), ("SET", "jsacc:script:a", "x", "GET"),
            ("DEL", "jsacc:script:a"), ("HSETNX", "jsacc:grant:1:1", "role:db", "{}"), ("HDEL", "jsacc:grant:1:1", "role:web"),
            ("DEL", "jsacc:grant:1:1"), ("GET", "jsacc:ticket_key"), ("FLUSHALL",), ("SET", "jsacc:acs", "x"),
            ("EVAL", "return 1", 0), ("CONFIG", "GET", "*"), ("MONITOR",), ("CLIENT", "LIST"), ("SUBSCRIBE", "x"),
        ]:
            with pytest.raises(RedisUnavailableError, match="may not"):
                client.connection.call(*words)
        assert raw.lrange("cmds_queue", 0, -1) == ["secret"]
        client.connection.call("LPUSH", "cmds_queue", "mine")
