"""Every subcommand with a node whose fields and answers are hostile: on a terminal, in a pipe, as JSON.

None of its bytes controls the terminal, none of its lines looks like one of jsctl or of another node.
"""

from __future__ import annotations

import json
import os
import re
import traceback
from typing import Any, Callable, List

import pytest
from conftest import Ran, Server
from fake import Fake
from test_streams import Terminal, run

from jsclient import Client, Error, FleetFailedError, JobFailedError
from jsclient.cli import schedules, top
from jsclient.cli.complete import _names
from jsclient.cli.parser import build
from jsclient.result import Result

#: Text of a hostile node: control characters, markup of rich, line breaks, lines that imitate jsctl.
BAD = "\x1b]0;t\x07\x1b[2J\u009b31m\u202e\x85[bold]b[/bold][link=http://x]l[/link]\n== 1.2 (2)\r\n3 OK, 0 failed\njsctl: 1.2: fine\x0b"


def hostile(fake: Fake, raw: Any) -> None:
    """Make every field and answer of node 1.1 `BAD`."""
    raw.hset("jsacc:agent:1:1", mapping={"roles": json.dumps([BAD, "web"]), "hostname": BAD, "os": BAD, "version": BAD,
                                         "addr": BAD, "instance": BAD, "ac": BAD, "stopped": BAD,
                                         "claims": json.dumps([BAD, f"role:{BAD}", "role:db"])})
    raw.hset("jsacc:grant:1:1", mapping={BAD: BAD, f"role:{BAD}": "{}", "role:web": json.dumps({"by": BAD, "at": BAD})})
    entry = {"id": BAD, "cmd": BAD, "domain": BAD, "name": BAD, "pid": BAD, "state": BAD, "cpu": 1, "rss": BAD,
             "processes": BAD, "starttime": 5, "restarts": [BAD]}
    answers = {
        "get_processes_stats": {"level": 20, "data": json.dumps([entry])},
        "get_schedules": {"level": 20, "data": json.dumps([{**entry, "period": BAD, "next": BAD, "last_state": BAD}])},
        "get_os_info": {"level": 20, "data": json.dumps({BAD: BAD, "hostname": [BAD]})},
    }
    for cmd in ("ping", "kill", "signal", "unschedule", "killall", "restart", "put", "get", "execute_js_py", "del_msgs", BAD):
        answers[cmd] = {"state": "ERROR", "data": BAD, "critical": BAD, "tags": BAD, "cmd": BAD, "args": {BAD: BAD}}
    usual = fake.answer
    fake.answer = lambda n, c: answers.get(c["cmd"]) or usual(n, c)  # type: ignore[method-assign]
    fake.programs["say"] = lambda n, c: {"streams": [BAD, BAD], "critical": BAD, "state": "ERROR", "code": 1}
    fake.record(1, 1, 1, BAD, jobid=BAD)
    fake.record(1, 1, 1, BAD, jobid="j1")
    fake.record(1, 1, 30, json.dumps({"cmd": BAD, "state": BAD, "id": BAD}), jobid=BAD)
    for name in ("events", "rejected", "audit"):
        item = {"time": 1, "gid": 1, "nid": 1, "name": BAD, "data": {BAD: BAD}, "reason": BAD, "command": BAD, "id": BAD,
                "by": BAD, "user": BAD, "cmd": BAD, "targets": [BAD], "args": {"cmd": BAD, "args": [BAD]}}
        raw.lpush(f"jsacc:{name}", json.dumps(item), BAD)
    raw.hset("jsacc:stats:1:1", BAD, "[1, 1]")
    raw.lpush("jsacc:jobs", "j1")
    result = {"id": BAD, "gid": 1, "nid": 1, "cmd": BAD, "state": "ERROR", "data": BAD, "streams": [BAD, BAD]}
    command = {"cmd": BAD, "by": BAD, "args": {"cmd": BAD, "args": [BAD]}}
    raw.hset("jsacc:job:j1", mapping={"cmd": json.dumps(command), "targets": '["1:1"]', "1:1": json.dumps(result)})
    raw.set("jsacc:script:" + "a" * 64, BAD)


LOOKS = [["nodes"], ["grants"], ["ps", "1.1,1.2"], ["ps", "1.1"], ["schedules", "1.1,1.2"], ["top", "--once"], ["jobs"],
         ["job", "j1"], ["events"], ["audit"], ["rejected"], ["stats", "1.1"], ["script", "list"], ["logs", "1.1"], ["logs", "1.1,1.2"], ["info", "os", "1.1,1.2"],
         ["ping", "1.1,1.2"], ["exec", "1.1,1.2", "--", "say"], ["exec", "1.1,1.2", "--fold", "--", "say"], ["exec", "1.1,1.2", "--no-fold", "--no-stream", "--", "say"],
         ["exec", "1.1,1.2", "--no-progress", "--", "say"], ["wait", "j1"]]
#: Commands whose nodes answer with an error, which is a sentence on stderr.
TELLS = [["kill", "1.1", "j"], ["kill", "1.1,1.2", "j"], ["kill", "j1"], ["signal", "1.1", "j", "HUP"], ["unschedule", "1.1", "j"],
         ["killall", "1.1"], ["restart", "1.1"], ["put", "1.1", "/etc/hostname", "/x"], ["script", "run", "1.1", "-", "--lang", "py"], ["get", "1.1", "/x", "x"],
         ["raw", "1.1", BAD], ["logs", "1.1", "--delete"], ["logs", "1.1", "--job", "j1", "--follow"]]
#: Subcommands that show only the id of a node.
SILENT = [["grant", "1.1", "--role", "vault"], ["grant", "1.1", "--role", "web"], ["cancel", "j1"], ["completion", "bash"],
          ["exec", "all", "--dry-run", "--", "say"], ["exec", "1.1", "--detach", "--", "say"], ["nodes", "1.2"]]


def test_every_subcommand_is_tested() -> None:
    # These show bytes as they are in a pipe, and are tested with the programs of a real node.
    walked = {words[0] for words in [*LOOKS, *TELLS, *SILENT]} | {"attach", "output", "shell"}
    assert walked == set(_names(build()))


@pytest.mark.parametrize("words", [*LOOKS, *TELLS, *SILENT], ids=lambda words: " ".join(words).replace(BAD, "BAD"))
def test_hostile_text_neither_controls_the_terminal_nor_imitates_jsctl(
    server: Server, fake: Fake, raw: Any, words: List[str]
) -> None:
    hostile(fake, raw)
    with Terminal(server, *words) as it:
        if "-" in words:
            os.write(it.master, b"def action():\n    return 1\n\x04")
        it.ended()
        text = it.seen.decode()
    bar = r"\x1b\[\?25[lh]|\x1b\[[0-9;]*m|\x1b\[1?[AK]|\x1b\[2K"  # of the progress bar, which shows nothing of nodes
    if words[0] not in ("nodes", "jobs", "job", "events", "audit", "rejected", "stats", "logs", "grants"):
        text = re.sub(bar, "", text)
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e]", text), text
    assert "fault of jsctl" not in text
    if words in SILENT:
        assert "\ufffd" not in text and "[bold]" not in text
        return
    assert "\ufffd" in text
    shown = [line.split("\r")[-1] for line in text.replace("\r\n", "\n").split("\n")]
    assert "".join(text.split()).count("[bold]b[/bold]") or words[0] in ("jobs", "wait", "rejected", "script"), text
    if words != ["wait", "j1"]:  # one node's output alone is shown as it is
        for line in shown:
            assert not re.match(r"== 1\.2 \(2\)|3 OK, 0|jsctl: 1\.2: fine", line), text


@pytest.mark.parametrize("words", [[*words, flag] for flag in ("--json", "--ndjson") for words in [*LOOKS, *TELLS, *SILENT]
                                   if "--follow" not in words and "--delete" not in words and "-" not in words
                                   and "completion" not in words],
                         ids=lambda words: " ".join(words).replace(BAD, "BAD"))
def test_json_escapes_control_characters(server: Server, fake: Fake, raw: Any, words: List[str]) -> None:
    hostile(fake, raw)
    at = words.index("--") if "--" in words else len(words)
    ran = run(server, *words[:at], words[-1], *words[at:-1])
    text = ran.stdout.decode()
    assert text and "fault of jsctl" not in ran.stderr.decode()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text), text
    for line in [text] if "--json" in words else text.splitlines():
        json.loads(line)


def test_sentences_are_cleaned_in_a_pipe(server: Server, fake: Fake, raw: Any) -> None:
    hostile(fake, raw)
    fake.answer = lambda n, c: {"level": 21, "data": "[" + BAD}  # type: ignore[method-assign]
    for words in (["ping", "1.1"], ["ps", "1.1,1.2"], ["logs", "1.1"], ["logs", "1.1", "--delete"]):
        for line in run(server, *words).stderr.decode().splitlines():
            assert line.startswith(("jsctl: ", "  ", "0 OK", "2 OK")) and line.isprintable(), line


def test_invalid_id_breaks_no_table(server: Server, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = ["\ud800x", "a b", "x" * 129, ["good"], {}, 7, None, "good"]
    usual = fake.answer
    fake.answer = lambda n, c: {"level": 20, "data": json.dumps([{"id": i, "name": "seen"} for i in ids])} \
        if c["cmd"].startswith(("get_processes", "get_schedules")) else usual(n, c)  # type: ignore[method-assign]
    for words in (["schedules"], ["ps"], ["top", "--once"]):
        ran = run(server, *words)
        assert ran.returncode == 0 and ran.stdout.decode().count("seen") == 3 * len(ids), ran
    for table in (schedules.table, top.process_table):
        asked: List[str] = []
        monkeypatch.setattr(Client, "sent_commands", lambda _, ids: asked.extend(ids) or {})
        results = [Result.from_json(json.dumps({"id": "q", "gid": 1, "nid": n, "state": "OK", "level": 20, "data": json.dumps(
            [{"id": i} for i in (*ids, *(f"{n}.{k}" for k in range(500)))])}).encode()) for n in (1, 2)]
        with Client(server.url) as client:
            assert len(table(client, [r for r in results if r]).splitlines()) == 1 + 2 * (500 + len(ids))
        assert asked[:2] == ["good", "1.0"] and len(asked) <= 500


def test_top_shows_no_hostile_byte_that_moves_the_cursor(server: Server, fake: Fake, raw: Any) -> None:
    hostile(fake, raw)
    with Terminal(server, "top", "--interval", "0.2", columns=200) as it:
        it.see(rb"bold", 2)
        os.write(it.master, b"q")
        it.ended()
        text = it.seen.decode()
    # All sequences that rich writes.
    text = re.sub(r"\x1b\[\?(25|1049)[lh]|\x1b\[H|\x1b\[[0-9;]*m", "", text)
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e]", text), text
    assert "\ufffd" in text and "[bold]b[/bold]" in text


@pytest.mark.parametrize("line", ["jsctl exec ", "jsctl exec @", "jsctl exec 1.1,", "jsctl grants ", "jsctl kill ", "jsctl nodes --except "])
def test_completion_offers_no_hostile_names(server: Server, fake: Fake, raw: Any, line: str) -> None:
    hostile(fake, raw)
    raw.lpush("jsacc:jobs", BAD)
    raw.hset(f"jsacc:job:{BAD}", "cmd", "{}")
    ran = run(server, "__complete", line)
    assert ran.returncode == 0 and ran.stderr == b""
    assert all(re.fullmatch(r"[A-Za-z0-9@._:/,*-]+", word) for word in ran.stdout.decode().split("\n")[:-1]), ran.stdout


def test_traceback_has_no_control_characters_of_a_node(client: Client, fake: Fake, raw: Any) -> None:
    hostile(fake, raw)
    last = BAD + "\n\x1b]0;t\x07\u009b1m\u202elast"
    fake.programs["say"] = lambda n, c: {"streams": [BAD, BAD], "critical": last, "state": "ERROR", "code": 1}
    usual = fake.answer
    answers = {"yaml": {"level": 21, "data": "[" + last}, "ping": {"state": "ERROR", "data": last}}
    fake.answer = lambda n, c: answers.get(c["cmd"]) or usual(n, c)  # type: ignore[method-assign]
    fleet = client.target("1.1,1.2").execute("say").wait()
    for ask in (lambda: client.ping(1, 1), lambda: client.execute(1, 1, "say").wait().raise_for_status(),
                fleet.raise_for_status, lambda: client.send(1, 2, "yaml").value):
        with pytest.raises(Error) as e:
            ask()
        told = "".join(traceback.format_exception_only(e.type, e.value))
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", told + str(e.value)), told
        if isinstance(e.value, (JobFailedError, FleetFailedError)):
            assert "\ufffd" in told
    sentence = fleet.results[fleet.nodes[0]].sentence()
    assert "\ufffd" in sentence and sentence.isprintable()
    assert client.send(1, 1, BAD).wait().sentence().isprintable()


def test_malformed_times_hide_no_other_node(jsctl: Callable[..., Ran], fake: Fake, raw: Any) -> None:
    raw.zadd("jsacc:agents", {"1:99": float("inf"), "1:98": float("-inf")})
    raw.hset("jsacc:stats:1:1", mapping={"broken": "[1," + "9" * 400 + "]", "good": "[2,1767225600]"})
    for words in (["nodes"], ["nodes", "--json"], ["grants"], ["ping", "all"]):
        ran = jsctl(*words)
        assert ran.code == 0 and "1.99" not in ran.out, ran
        assert words == ["grants"] or "1.1" in ran.out or '"nid": 1' in ran.out, ran
    ran = jsctl("stats", "1.1")
    assert ran.code == 0 and "good" in ran.out and "broken" not in ran.out, ran
