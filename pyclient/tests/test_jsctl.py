"""The subcommands of jsctl against the controller of `fake`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any, Callable

import pytest
import redis
from conftest import Ran, Server
from fake import Fake

from jsclient import Client

Jsctl = Callable[..., Ran]


def test_exec_prints_streams_and_sends_options(jsctl: Jsctl, fake: Fake) -> None:
    assert jsctl("exec", "1.1", "--", "uname", "-a") == Ran(0, "Linux\n", "")
    ran = jsctl("exec", "1.1", "--max-time", "7", "--env", "A=b", "--secret", "--data", "in", "--", "cat", "--json")
    assert ran.out == "in\n"
    assert fake.seen[-1]["args"] == {
        "max_time": 7, "env": {"A": "b"}, "secret": True, "cmd": "cat", "args": ["--json"], "stream": True,
    }
    ran = jsctl("exec", "1.1", "--", "false")
    assert (ran.code, ran.out) == (1, "") and "it went wrong" in ran.err and "status 1" in ran.err
    ran = jsctl("exec", "1.1", "--", "nope")
    assert (ran.code, ran.out) == (1, "") and "program not found" in ran.err


def test_exec_help_explains_all_nodes_and_variables(jsctl: Jsctl, fake: Fake) -> None:
    told = " ".join(jsctl("exec", "--help").out.split())
    for words in ("all, or '*'", "may be given more than once", "use it for secrets, with --secret"):
        assert words in told
    assert jsctl("exec", "*", "--", "echo", "x").out == "== 1.1, 1.2, 2.1 (3)\nx\n"


def test_missing_script_file_is_reported_as_missing(jsctl: Jsctl, tmp_path: Any) -> None:
    assert "No such file" in jsctl("script", "run", "1.1", str(tmp_path / "nope")).err
    assert "A local file is sent to the nodes" in " ".join(jsctl("script", "run", "--help").out.split())


def test_offline_target_is_reported_as_offline(jsctl: Jsctl, fake: Fake) -> None:
    for nid in (3, 4):
        fake.add(3, nid, ["far"], age=1000)
    assert jsctl("ping", "3.3").err == "jsctl: node 3.3 is offline (last seen 16 min ago)\n"
    assert jsctl("ping", "3.3,3.4").err.startswith("jsctl: 2 nodes are offline: 3.3 (last seen 16 min ago), 3.4 (")
    assert jsctl("ping", "@far").err.startswith("jsctl: no node of @far is online: 3.3 (")


def test_shell_option_uses_cmd_on_windows_nodes(jsctl: Jsctl, fake: Fake, raw: redis.Redis) -> None:
    fake.programs["/bin/sh"] = lambda n, c: {"streams": ["posix\n", ""]}
    fake.programs["cmd.exe"] = lambda n, c: {"streams": ["windows\n", ""]}
    assert jsctl("exec", "all", "--shell", "--", "echo $HOME", "| wc").code == 0
    assert fake.seen[-1]["fanout"] and fake.seen[-1]["args"] == {"cmd": "/bin/sh", "args": ["-c", "echo $HOME | wc"]}
    raw.hset("jsacc:agent:1:2", "os", "windows")
    ran = jsctl("exec", "all", "--shell", "--max-time", "7", "--no-stream", "--no-fold", "--", "echo %CD%", "& ver")
    assert ran.code == 0 and "== 1.2\nwindows\n" in ran.out and ran.out.count("posix") == 2
    args = {c["nid"]: c["args"] for c in fake.seen if c["gid"] == 1 and c["nid"]}
    assert args[1] == {"cmd": "/bin/sh", "args": ["-c", "echo %CD% & ver"], "max_time": 7}
    assert args[2] == {"cmd": "cmd.exe", "args": ["/d", "/s", "/c", '"echo %CD% & ver"'], "max_time": 7}
    assert jsctl("exec", "1.2", "--shell", "--", "ver").out == "windows\n"


def test_secrets_are_not_printed(
    jsctl: Jsctl, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "hunter2")
    ran = jsctl("exec", "1.1", "--secret", "--env", "TOKEN", "--json", "--", "echo")
    assert fake.seen[-1]["args"]["env"] == {"TOKEN": "hunter2"} and fake.seen[-1]["args"]["secret"] is True
    assert ran.code == 0 and "hunter2" not in ran.out + ran.err
    ran = jsctl("-r", "redis://:hunter2@localhost:1", "ping")
    assert ran.code == 1 and "hunter2" not in ran.out + ran.err


def test_json_of_every_listing_is_a_list(jsctl: Jsctl, fake: Fake) -> None:
    fake.add(1, 3, ["web"], age=1000)
    ran = jsctl("exec", "@web", "--json", "--", "whoami")
    found = {item["node"]: item["state"] for item in json.loads(ran.out)}
    assert (ran.code, found) == (0, {"1.1": "OK", "1.2": "OK", "1.3": "OFFLINE"})
    ran = jsctl("ping", "--ndjson")
    assert sorted((i["node"], i.get("value")) for i in map(json.loads, ran.out.splitlines())) == [
        ("1.1", "pong"), ("1.2", "pong"), ("1.3", None), ("2.1", "pong")]
    ran = jsctl("ping", "9.9", "--json")
    assert ran.code == 3 and "never seen" in json.loads(ran.out)["error"]
    for words in (["nodes"], ["jobs"], ["events"], ["audit"], ["rejected"], ["script", "list"], ["stats", "1.1"],
                  ["top"], ["logs", "1.1"], ["ps"], ["info", "cpu"], ["ping", "--dry-run"]):
        ran = jsctl(*words, "--json")
        assert ran.code == 0 and isinstance(json.loads(ran.out), list), words


@pytest.mark.parametrize(
    "words,code,told",
    [
        ([], 2, "no command"),
        (["frob"], 2, "there is no command 'frob' (see jsctl --help)"),
        (["node"], 2, "did you mean nodes?"),
        (["exec"], 2, "target"),
        (["exec", "1.1"], 2, "needs a program"),
        (["exec", "1.1", "ls", "-l"], 2, "stand after --"),
        (["exec", "1.x", "--", "ls"], 2, "is not a target"),
        (["exec", "1.1", "--timeout", "x", "--", "ls"], 2, "not a number of seconds"),
        (["exec", "1.1", "--env", "x", "--", "ls"], 2, "NAME=VALUE"),
        (["exec", "1.1", "--batch", "0%", "--", "ls"], 2, "a batch is"),
        (["nodes", "--", "x"], 2, "takes nothing after --"),
        (["ping", "--json", "--ndjson"], 2, "not both"),
        (["ping", "9.9"], 3, "9.9 was never seen"),
        (["ping", "@nobody"], 3, "no node matches @nobody"),
        (["nodes", "@nobody"], 3, "no node matches"),
        (["job", "gone"], 3, "no job gone"),
        (["kill", "gone"], 3, "no job gone"),
        (["raw", "1.1", "x", "--args", "["], 2, "not JSON"),
        (["raw", "1.1", "x", "--args", "[]"], 2, "object"),
        (["raw", "1.1", "frob"], 1, "unknown command frob"),
        (["info", "gpu"], 2, "info knows"),
        (["put", "1.1", "/no/such", "/x"], 2, "cannot read"),
        (["script", "run", "1.1", "/no/such.py"], 2, "cannot read"),
        (["logs", "1.1", "--levels", "x"], 2, "levels are written"),
        (["logs", "1.1", "--levels", "\u00b2"], 2, "levels are written"),
        (["logs", "1.1", "--since", "9" * 400 + "d"], 2, "is not a time"),
        (["jobs", "-n", "9" * 5000], 2, "is not a whole number"),
        (["exec", "1.1", "--every", "5x", "--", "ls"], 2, "write 90, 90s, 5m, 2h or 1d"),
        (["exec", "1.1", "--every", "0.5", "--", "ls"], 2, "not a whole number of seconds"),
        (["raw", "1.1", "x", "--args", "[" * 5000], 2, "not JSON"),
        (["raw", "1.1", "x", "--args", '{"a": NaN}'], 2, "what JSON can hold"),
        (["kill", "1.1", "nobody"], 3, "no job nobody"),
        (["signal", "1.1", "nobody", "HUP"], 3, "no job nobody"),
        (["ping", "-r", "redis://localhost?sokcet_timeout=5"], 2, "unknown setting sokcet_timeout; did you mean socket_timeout?"),
        (["ping", "-r", "redis://localhost?socket_timeout=x"], 2, "socket_timeout in the address of Redis takes a number"),
        (["ping", "-r", "redis://localhost?ssl_ca_certs=x"], 2, "ssl_ca_certs of the connection to Redis cannot be used"),
        (["ping", "-r", "redis://localhost/x"], 2, "the number of a database"),
        (["ping", "-r", "redis://localhost:40000000"], 2, "port in the address"),
        (["logs", "1.1", "--since", "noon"], 2, "is not a time"),
        (["--redis", "redis://localhost:1", "ping"], 1, "cannot reach Redis at localhost:1"),
        (["ping", "-r", "http://x"], 2, "redis://"),
    ],
)
def test_errors_are_one_sentence_with_their_exit_code(jsctl: Jsctl, fake: Fake, words: Any, code: int, told: str) -> None:
    ran = jsctl(*words)
    assert ran.code == code and told in ran.err and ran.out == ""
    assert "Traceback" not in ran.err
    assert len([line for line in ran.err.splitlines() if line.strip()]) <= 2


def test_schedules_lists_recurring_jobs_with_their_next_run(
    jsctl: Jsctl, fake: Fake, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jsclient.nodes.time.localtime", time.gmtime)
    job = client.execute(1, 1, "uptime", recurring_period=3600, id="hourly")
    job.wait()
    entry = {"id": job.id, "domain": "ops", "name": "up", "schedule": None, "period": 3600, "next": 1772370000000,
             "last_start": 1772366400000, "last_state": "OK", "paused": False}
    fake.schedules = {(1, 1): [entry], (1, 2): [{**entry, "id": "gone", "next": None, "last_state": None}]}
    ran = jsctl("schedules")
    assert [line.split() for line in ran.out.splitlines()] == [
        ["NODE", "JOB", "COMMAND", "DOMAIN", "NAME", "EVERY", "NEXT", "LAST", "START", "LAST"],
        ["1.2", "gone", "-", "ops", "up", "60m", "now", "2026-03-01", "12:00:00", "-"],
        ["1.1", "hourly", "uptime", "ops", "up", "60m", "2026-03-01", "13:00:00", "2026-03-01", "12:00:00", "OK"],
    ], ran.out
    assert json.loads(jsctl("schedules", "1.1", "--json").out)[0]["value"] == [entry]
    assert client.get_schedules(1, 1) == [entry] and len(client.target("1.*").schedules().wait().results) == 2
    assert "uptime (every 60m)" in jsctl("jobs").out
    ran = jsctl("exec", "1.1", "--every", "1h", "--", "uptime")
    assert "runs again every 3600 s; list it with jsctl schedules, end it with jsctl unschedule" in ran.err


def test_dry_run_lists_nodes_and_sends_nothing(jsctl: Jsctl, fake: Fake) -> None:
    fake.add(1, 3, ["web"], age=1000)
    ran = jsctl("exec", "all", "--except", "@db", "--dry-run", "--", "reboot")
    assert ran.code == 0 and ran.out.split("\n")[0] == "1.1" and "1.3\tlast seen" in ran.out
    assert "1.2" not in ran.out and not fake.seen
    assert jsctl("ping", "@no", "--dry-run").code == 3


def test_batches_stop_after_max_failures(jsctl: Jsctl, fake: Fake) -> None:
    ran = jsctl("exec", "all", "--batch", "1", "--max-failures", "0", "--", "false")
    assert ran.code == 1 and "2 not sent after too many failures (1.2, 2.1)" in ran.err
    assert len(fake.seen) == 1
    assert jsctl("ping", "--batch", "50%").code == 0
    ran = jsctl("ping", "--batch", "1", "--detach")
    assert ran.code == 0 and len(ran.out.strip()) == 32


def test_any_raw_info_killall_and_restart_reach_nodes(jsctl: Jsctl, fake: Fake) -> None:
    ran = jsctl("ping", "@web", "--any")
    assert ran.code == 0 and "1 OK" in ran.err
    assert jsctl("raw", "1.1", "execute", "--args", '{"cmd": "cat"}', "--data", "x").out == "x\n"
    assert "x86_64" in jsctl("info", "cpu", "1.1").out
    assert "4.0 GiB" in jsctl("info", "1.1", "mem").out
    assert "/dev/sda1" in jsctl("info", "disk").out
    assert "eth0" in jsctl("info", "nic", "1.1").out and "Debian" in jsctl("info", "os", "1.1").out
    assert jsctl("killall", "1.*").code == 0 and jsctl("restart", "1.1").code == 0
    assert jsctl("unschedule", "1.1", "j").code == 3


def test_nodes_and_history_are_listed(jsctl: Jsctl, fake: Fake, raw: Any) -> None:
    fake.add(3, 1, [], age=100)
    fake.add(3, 2, [], age=90000)
    ran = jsctl("nodes")
    assert ran.code == 0 and "3 live, 1 late, 1 gone" in ran.err
    assert any(line.split()[:2] == ["3.1", "late"] for line in ran.out.splitlines())
    assert len(jsctl("nodes", "@web").out.splitlines()) == 3
    # A node that announced its stop, and one that did so before its last start.
    raw.hset("jsacc:agent:3:1", "stopped", str(int(time.time() * 1000)))
    raw.hset("jsacc:agent:1:1", "stopped", "5")
    ran = jsctl("nodes")
    assert "3 live, 0 late, 1 gone, 1 stopped" in ran.err
    assert [line.split()[:2] for line in jsctl("nodes", "--state", "stopped").out.splitlines()[1:]] == [["3.1", "stopped"]]
    jsctl("exec", "@web", "--as", "alice", "--", "false")
    ran = jsctl("jobs")
    assert "2 ERROR" in ran.out and "1.1, 1.2" in ran.out
    ran = jsctl("audit")
    assert "alice" in ran.out and "2 ERROR" in ran.out
    raw.lpush("jsacc:events", '{"name": "startup", "gid": 1, "nid": 1, "time": 5, "data": {"a": 1}}')
    raw.lpush("jsacc:rejected", '{"reason": "not JSON", "time": 5, "command": "boo"}')
    raw.hset("jsacc:stats:1:1", mapping={"1.1.d.n.k": "[1.5, 1766385000]", "1.1.e.n.k": "[2, 1766385000]"})
    assert "startup" in jsctl("events").out and "boo" in jsctl("rejected").out
    assert "d.n.k" in jsctl("stats", "1.1").out and "e.n.k" not in jsctl("stats", "1.1", "d.n").out


def test_script_run_and_put_send_files(jsctl: Jsctl, fake: Fake, tmp_path: Any) -> None:
    script = tmp_path / "check.py"
    script.write_text("# a check\ndef action(path='/'):\n    return {'path': path}\n")
    ran = jsctl("script", "run", "1.1", str(script), "--data", '{"path": "/x"}')
    assert ran.code == 0 and "/x" in ran.out
    assert "# a check" in jsctl("script", "list").out
    script.write_text("def action(:\n")
    seen = len(fake.seen)
    ran = jsctl("script", "run", "1.1", str(script))
    assert ran.code == 2 and "check.py, line 1: syntax error" in ran.err and len(fake.seen) == seen
    jsctl("script", "run", "1.1", "ops/disk", "--", "-v")
    assert fake.seen[-1]["args"] == {"domain": "ops", "name": "disk", "args": ["-v"]}
    ran = jsctl("put", "@web", str(script), "/etc/x.py", "--mode", "0600", "--owner", "root")
    assert ran.code == 0 and fake.files[((1, 1), "/etc/x.py")] == script.read_bytes()


def test_logs_filters_and_deletes_records(jsctl: Jsctl, fake: Fake) -> None:
    fake.record(1, 1, 1, "old", age=7200)
    fake.record(1, 1, 1, "fine", jobid="a")
    fake.record(1, 2, 9, "bad", jobid="b")
    ran = jsctl("logs", "@web")
    assert [line.split()[-1] for line in ran.out.splitlines()] == ["old", "fine", "bad"]
    assert jsctl("logs", "1.1", "--since", "10m").out.split()[-1] == "fine"
    assert jsctl("logs", "@web", "--levels", "7-9").out.split()[-1] == "bad"
    assert jsctl("logs", "@web", "--job", "a", "--ndjson").out.count("\n") == 1
    assert jsctl("logs", "1.1", "--job", "a", "--delete").out == "1.1: 1 deleted\n"
    ran = jsctl("logs", "1.1", "--job", "nosuch", "--delete")
    assert (ran.code, ran.err) == (3, "jsctl: no record of job nosuch\n")
    assert jsctl("logs", "9.9").code == 3


def test_help_imports_neither_redis_nor_rich() -> None:
    loaded = "import sys, jsclient.cli.main as c; c.main(['--help']); print([m for m in ('redis', 'rich') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", loaded], check=True, capture_output=True, text=True).stdout
    assert out.splitlines()[-1] == "[]"


def test_usage_error_names_help_once(jsctl: Jsctl) -> None:
    ran = jsctl("exec")
    assert ran.code == 2 and ran.err.count("--help") == 1
    assert "required: target (see" in ran.err


def test_logs_without_records_exits_with_a_sentence(jsctl: Jsctl, fake: Fake) -> None:
    ran = jsctl("logs", "1.1", "--job", "nobody")
    assert (ran.code, ran.out, ran.err) == (3, "", "jsctl: no records of job nobody match\n")
    ran = jsctl("logs", "1.1", "--job", "nobody", "--json")
    assert (ran.code, ran.out) == (3, "[]\n")
    ran = jsctl("logs", "1.1", "--levels", "9")
    assert (ran.code, ran.out, ran.err) == (0, "", "jsctl: no records match\n")


@pytest.mark.parametrize("text,seconds", [("60", 60), ("5m", 300), ("2h", 7200), ("1d", 86400), ("90s", 90)])
def test_durations_take_a_unit(jsctl: Jsctl, fake: Fake, text: str, seconds: int) -> None:
    assert jsctl("exec", "1.1", "--max-time", text, "--every", text, "--expires", text, "--", "uname").code == 0
    sent = fake.seen[-1]
    assert (sent["args"]["max_time"], sent["args"]["recurring_period"], sent["expires"]) == (seconds,) * 3
    assert jsctl("exec", "1.1", "--timeout", "0.5m", "--max-time", "-1", "--", "uname").code == 0
    assert fake.seen[-1]["args"]["max_time"] == -1


def test_logs_finds_a_job_by_the_prefix_of_its_id(jsctl: Jsctl, fake: Fake, client: Client) -> None:
    job = client.execute(1, 1, "uname")
    job.wait()
    fake.record(1, 1, 1, "mine", jobid=job.id)
    ran = jsctl("logs", "1.1", "--job", job.id[:12])
    assert ran.code == 0 and ran.out.split()[-1] == "mine"
    assert jsctl("logs", "1.1", "--job", "abcdef123456").code == 3


def test_resp_3_answers_are_parsed(jsctl: Jsctl, server: Server, fake: Fake) -> None:
    for words in (["nodes"], ["ping", "1.1"], ["jobs"]):
        ran = jsctl("--redis", f"unix://{server.socket}?protocol=3", *words)
        assert ran.code == 0, ran


@pytest.mark.parametrize("stopped", [b"9" * 5000, b"1e999", b"nan", b"\xff"])
def test_malformed_times_are_ignored(jsctl: Jsctl, fake: Fake, raw: Any, stopped: bytes) -> None:
    raw.hset("jsacc:agent:1:1", "stopped", stopped)
    raw.hset("jsacc:job:j1", mapping={"cmd": "{}", "created": stopped})
    raw.lpush("jsacc:jobs", "j1")
    assert jsctl("nodes").code == 0 and jsctl("jobs").code == 0


def test_audit_marks_names_as_self_declared(server: Server, jsctl: Jsctl, raw: Any) -> None:
    raw.lpush("jsacc:audit", '{"time": 1, "id": "j", "by": "alice@hr", "user": "ops", "cmd": "ping", "targets": ["1:1"]}')
    ran = jsctl("audit")
    assert ran.code == 0 and "BY (SELF-DECLARED)" in ran.out.splitlines()[0] and "alice@hr/ops" in ran.out
    assert "self-declared" in jsctl("audit", "--help").out and "self-declared" in jsctl("exec", "--help").out


@pytest.mark.parametrize("words,told", [
    (["--timeout", "99999d"], "'99999d' is too long; the most is 999999999 seconds"),
    (["--max-restart", "9" * 16], "is too large; the most is 999999999999999"),
    (["--max-restart", "-1"], "'-1' is not a whole number of 0 or more"),
    (["--timeout", "nan"], "'nan' is not a number of seconds"),
    (["--", ""], "exec needs a program"),
])
def test_impossible_argument_is_refused_with_its_bound(jsctl: Jsctl, fake: Fake, words: Any, told: str) -> None:
    ran = jsctl("exec", "1.1", *words, *([] if "--" in words else ["--", "uname"]))
    assert ran.code == 2 and told in ran.err and not fake.seen, ran
