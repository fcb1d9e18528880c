"""The command line, against the controller of `fake`."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from typing import Any, Callable, List

import pytest
import redis
from conftest import Ran, Server, wait_until
from fake import Fake

from jsclient import Client, NoControllerError

Jsctl = Callable[..., Ran]


def test_exec_one_node(jsctl: Jsctl, fake: Fake) -> None:
    assert jsctl("exec", "1.1", "--", "uname", "-a") == Ran(0, "Linux\n", "")
    ran = jsctl("exec", "1.1", "--max-time", "7", "--env", "A=b", "--secret", "--data", "in", "--", "cat", "--json")
    assert ran.out == "in\n"
    assert fake.seen[-1]["args"] == {
        "max_time": 7, "env": {"A": "b"}, "secret": True, "cmd": "cat", "args": ["--json"],
    }
    ran = jsctl("exec", "1.1", "--", "false")
    assert (ran.code, ran.out) == (1, "") and "it went wrong" in ran.err and "status 1" in ran.err
    ran = jsctl("exec", "1.1", "--", "nope")
    assert (ran.code, ran.out) == (1, "") and "program not found" in ran.err


def test_help_says_how_all_nodes_and_variables_are_named(jsctl: Jsctl, fake: Fake) -> None:
    told = " ".join(jsctl("exec", "--help").out.split())
    for words in ("all, or '*'", "may be given more than once", "so give secrets, with --secret"):
        assert words in told
    assert jsctl("exec", "*", "--", "echo", "x").out == "== 1.1, 1.2, 2.1 (3)\nx\n"


def test_script_that_is_not_here_is_told_as_that(jsctl: Jsctl, tmp_path: Any) -> None:
    assert "No such file" in jsctl("script", "run", "1.1", str(tmp_path / "nope")).err
    assert "A file of yours is sent by itself" in " ".join(jsctl("script", "run", "--help").out.split())


def test_offline_nodes_are_called_offline(jsctl: Jsctl, fake: Fake) -> None:
    for nid in (3, 4):
        fake.add(3, nid, ["far"], age=1000)
    assert jsctl("ping", "3.3").err == "jsctl: 3.3 (last seen 16m ago) is offline\n"
    assert jsctl("ping", "3.3,3.4").err.endswith("3.4 (last seen 16m ago) are offline\n")
    assert jsctl("ping", "@far").err.startswith("jsctl: no node that @far means is online: 3.3 (")


def test_shell_line_runs_in_the_shell_of_each_nodes_system(jsctl: Jsctl, fake: Fake, raw: redis.Redis) -> None:
    fake.programs["/bin/sh"] = lambda n, c: {"streams": ["posix\n", ""]}
    fake.programs["cmd.exe"] = lambda n, c: {"streams": ["windows\n", ""]}
    assert jsctl("exec", "all", "--shell", "--", "echo $HOME", "| wc").code == 0
    assert fake.seen[-1]["fanout"] and fake.seen[-1]["args"] == {"cmd": "/bin/sh", "args": ["-c", "echo $HOME | wc"]}
    raw.hset("jsacc:agent:1:2", "os", "windows")
    ran = jsctl("exec", "all", "--shell", "--max-time", "7", "--no-fold", "--", "echo %CD%", "& ver")
    assert ran.code == 0 and "== 1.2\nwindows\n" in ran.out and ran.out.count("posix") == 2
    args = {c["nid"]: c["args"] for c in fake.seen if c["gid"] == 1 and c["nid"]}
    assert args[1] == {"cmd": "/bin/sh", "args": ["-c", "echo %CD% & ver"], "max_time": 7}
    assert args[2] == {"cmd": "cmd.exe", "args": ["/d", "/s", "/c", '"echo %CD% & ver"'], "max_time": 7}
    assert jsctl("exec", "1.2", "--shell", "--", "ver").out == "windows\n"


def test_secrets_stay_out_of_what_jsctl_prints(
    jsctl: Jsctl, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "hunter2")
    ran = jsctl("exec", "1.1", "--secret", "--env", "TOKEN", "--json", "--", "echo")
    assert fake.seen[-1]["args"]["env"] == {"TOKEN": "hunter2"} and fake.seen[-1]["args"]["secret"] is True
    assert ran.code == 0 and "hunter2" not in ran.out + ran.err
    ran = jsctl("-r", "redis://:hunter2@localhost:1", "ping")
    assert ran.code == 1 and "hunter2" not in ran.out + ran.err


def test_equal_outputs_are_folded(jsctl: Jsctl, fake: Fake) -> None:
    ran = jsctl("exec", "all", "--", "echo", "same")
    assert ran.out.count("same") == 1 and "1.1, 1.2, 2.1 (3)" in ran.out
    assert "3 OK, 0 failed" in ran.err
    ran = jsctl("exec", "all", "--no-fold", "--", "echo", "same")
    assert ran.out.count("same") == 3
    ran = jsctl("exec", "@web", "--", "whoami")
    assert "== 1.1\n1.1\n" in ran.out and "== 1.2\n1.2\n" in ran.out


def test_the_last_line_names_who_failed(jsctl: Jsctl, fake: Fake) -> None:
    fake.add(1, 3, ["web"], age=1000)
    fake.programs["flaky"] = lambda n, c: {"state": "ERROR", "code": 2} if n == (1, 2) else {}
    ran = jsctl("exec", "1.1,1.2,1.3,1.9", "--", "flaky")
    assert ran.code == 1
    last = ran.err.strip().splitlines()[-1]
    assert last == "1 OK, 1 failed (1.2), 1 offline (1.3), 1 never seen (1.9)"
    assert "1.9 was never seen by a controller; nothing is sent to it" in ran.err


def test_json(jsctl: Jsctl, fake: Fake) -> None:
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
        (["exec", "1.1", "ls", "-l"], 2, "stands after --"),
        (["exec", "1.x", "--", "ls"], 2, "is no target"),
        (["exec", "1.1", "--timeout", "x", "--", "ls"], 2, "no number of seconds"),
        (["exec", "1.1", "--env", "x", "--", "ls"], 2, "NAME=VALUE"),
        (["exec", "1.1", "--batch", "0%", "--", "ls"], 2, "a batch is"),
        (["nodes", "--", "x"], 2, "takes nothing after --"),
        (["ping", "--json", "--ndjson"], 2, "not both"),
        (["ping", "9.9"], 3, "9.9 was never seen"),
        (["ping", "@nobody"], 3, "no node matches @nobody"),
        (["nodes", "@nobody"], 3, "no node matches"),
        (["job", "gone"], 3, "no job gone"),
        (["kill", "gone"], 3, "no job gone"),
        (["raw", "1.1", "x", "--args", "["], 2, "no JSON"),
        (["raw", "1.1", "x", "--args", "[]"], 2, "object"),
        (["raw", "1.1", "frob"], 1, "unknown command frob"),
        (["info", "gpu"], 2, "info knows"),
        (["put", "1.1", "/no/such", "/x"], 2, "cannot read"),
        (["script", "run", "1.1", "/no/such.py"], 2, "cannot read"),
        (["logs", "1.1", "--levels", "x"], 2, "levels are written"),
        (["logs", "1.1", "--levels", "\u00b2"], 2, "levels are written"),
        (["logs", "1.1", "--since", "9" * 400 + "d"], 2, "is no time"),
        (["jobs", "-n", "9" * 5000], 2, "is no whole number"),
        (["exec", "1.1", "--every", "5x", "--", "ls"], 2, "write 90, 90s, 5m, 2h or 1d"),
        (["exec", "1.1", "--every", "0.5", "--", "ls"], 2, "no whole number of seconds"),
        (["raw", "1.1", "x", "--args", "[" * 5000], 2, "no JSON"),
        (["raw", "1.1", "x", "--args", '{"a": NaN}'], 2, "what JSON can hold"),
        (["kill", "1.1", "nobody"], 3, "no job nobody"),
        (["signal", "1.1", "nobody", "HUP"], 3, "no job nobody"),
        (["ping", "-r", "redis://localhost?sokcet_timeout=5"], 2, "unknown setting sokcet_timeout; did you mean socket_timeout?"),
        (["ping", "-r", "redis://localhost?socket_timeout=x"], 2, "socket_timeout in the address of Redis takes a number"),
        (["ping", "-r", "redis://localhost?ssl_ca_certs=x"], 2, "ssl_ca_certs of the connection to Redis cannot be used"),
        (["ping", "-r", "redis://localhost/x"], 2, "the number of a database"),
        (["ping", "-r", "redis://localhost:40000000"], 2, "port in the address"),
        (["logs", "1.1", "--since", "noon"], 2, "is no time"),
        (["--redis", "redis://localhost:1", "ping"], 1, "cannot reach Redis at localhost:1"),
        (["ping", "-r", "http://x"], 2, "redis://"),
    ],
)
def test_what_goes_wrong_is_one_sentence(jsctl: Jsctl, fake: Fake, words: Any, code: int, told: str) -> None:
    ran = jsctl(*words)
    assert ran.code == code and told in ran.err and ran.out == ""
    assert "Traceback" not in ran.err
    assert len([line for line in ran.err.splitlines() if line.strip()]) <= 2


def test_no_controller(jsctl: Jsctl, server: Server) -> None:
    started = time.monotonic()
    ran = jsctl("--timeout", "600", "ping", "1.1")
    assert ran.code == 1 and "no controller serves" in ran.err
    assert time.monotonic() - started < 600


def test_the_last_controller_goes_while_somebody_waits(
    jsctl: Jsctl, fake: Fake, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jsclient.cli.output.CONTROLLER_CHECK_INTERVAL_SECONDS", 0.1)
    monkeypatch.setattr("jsclient._session._HEARTBEAT_CACHE_SECONDS", 0.0)

    def end(node: Any, command: Any) -> Any:
        fake.beating = False
        raw.delete("jsacc:acs")
        return {}

    fake.programs["end"] = end
    fake.deaf.add((1, 2))
    ran = jsctl("exec", "1.1,1.2", "--timeout", "1", "--", "end")
    assert ran.code == 4 and ran.err.count("start jsacc, or check the address; still waiting") == 1


def test_a_question_is_given_up_when_the_last_controller_goes(
    jsctl: Jsctl, fake: Fake, raw: Any, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jsclient.cli.output.CONTROLLER_CHECK_INTERVAL_SECONDS", 0.05)
    monkeypatch.setattr("jsclient._controllers.CONTROLLER_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr("jsclient._session._HEARTBEAT_CACHE_SECONDS", 0.0)
    monkeypatch.setattr("jsclient.node_commands.PRESENCE_CHECK_SECONDS", 0.1)
    fake.deaf.add((1, 1))
    take = fake._take

    def last(command: Any) -> None:
        fake.beating = False
        raw.delete("jsacc:acs")
        take(command)

    monkeypatch.setattr(fake, "_take", last)
    sentence = "start jsacc, or check the address"
    for words in (["ping", "1.1"], ["info", "os", "1.1", "--json"]):
        fake.beat()
        ran = jsctl(*words, "--timeout", "60")
        assert ran.code == 1 and ran.err.splitlines()[-1].endswith(sentence), (words, ran)
    for ask in (client.ping, client.get_os_info, client.get_msgs):
        fake.beat()
        with pytest.raises(NoControllerError, match=sentence):
            ask(1, 1, timeout=60)  # type: ignore[operator]


def test_what_came_is_shown_when_a_question_is_given_up(
    jsctl: Jsctl, fake: Fake, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jsclient.cli.output.CONTROLLER_CHECK_INTERVAL_SECONDS", 0.05)
    monkeypatch.setattr("jsclient._controllers.CONTROLLER_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr("jsclient._session._HEARTBEAT_CACHE_SECONDS", 0.0)
    fake.schedules = {(1, 2): [{"id": "hourly", "period": 3600}]}
    fake.deaf.add((1, 1))
    take = fake._take

    def last(command: Any) -> None:
        if command["nid"] == 1:
            fake.beating = False
            raw.delete("jsacc:acs")
        take(command)

    monkeypatch.setattr(fake, "_take", last)
    ran = jsctl("schedules", "1.2,1.1", "--timeout", "60")
    told = ran.err.splitlines()
    assert ran.code == 1 and "hourly" in ran.out and "1 OK, 0 failed, 1 without answer (1.1)" in told, ran
    assert any("could not be withdrawn" in line and "jsctl cancel" in line for line in told), ran
    assert told[-1].endswith("start jsacc, or check the address"), ran
    fake.beat()
    ran = jsctl("schedules", "1.2,1.1", "--timeout", "1", "--wait")
    assert ran.code == 4 and "hourly" in ran.out and "still waiting" in ran.err, "--wait waits on"


def test_a_controller_that_was_killed_is_noticed_when_its_beat_is_old(
    client: Client, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jsclient.keys.HEARTBEAT_TIMEOUT_SECONDS", 2)
    monkeypatch.setattr("jsclient._controllers.CONTROLLER_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr("jsclient._session._HEARTBEAT_CACHE_SECONDS", 0.2)
    fake.deaf.add((1, 1))
    take = fake._take

    def last(command: Any) -> None:
        fake.beating = False  # and its last beat stays, and grows old
        take(command)

    monkeypatch.setattr(fake, "_take", last)
    with pytest.raises(NoControllerError, match="the last one beat [0-9]+s ago; start jsacc"):
        client.get_os_info(1, 1, timeout=20)


def test_a_redis_without_its_beats_for_a_moment_ends_no_question(
    client: Client, fake: Fake, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jsclient._session._HEARTBEAT_CACHE_SECONDS", 0.0)
    fake.deaf.add((1, 1))
    looks: List[bool] = []
    check = client.check

    def looked() -> None:
        if looks == [True]:
            raw.delete("jsacc:acs")
        try:
            check()
            looks.append(True)
        except NoControllerError:
            looks.append(False)
            raise
        finally:
            if False in looks and looks[-1]:
                fake.end(fake.seen[-1]["id"], (1, 1))

    monkeypatch.setattr(client, "check", looked)
    assert client.ping(1, 1, timeout=20) == ""
    assert False in looks and looks[-1]


def test_recurring_jobs_are_listed_with_their_next_run(
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
    assert "runs again every 3600 s (jsctl schedules); to end it: jsctl unschedule" in ran.err


def test_dry_run(jsctl: Jsctl, fake: Fake) -> None:
    fake.add(1, 3, ["web"], age=1000)
    ran = jsctl("exec", "all", "--except", "@db", "--dry-run", "--", "reboot")
    assert ran.code == 0 and ran.out.split("\n")[0] == "1.1" and "1.3\tlast seen" in ran.out
    assert "1.2" not in ran.out and not fake.seen
    assert jsctl("ping", "@no", "--dry-run").code == 3


def test_timeout_detach_and_wait(jsctl: Jsctl, fake: Fake, raw: Any) -> None:
    ran = jsctl("exec", "1.1", "--timeout", "0.2", "--", "sleep", "9")
    assert ran.code == 4 and "it is running" in ran.err and "jsctl wait " in ran.err
    ran = jsctl("exec", "@web", "--detach", "--", "sleep", "9")
    job = ran.out.strip()
    assert ran.code == 0 and len(job) == 32 and ran.err == ""
    wait_until(lambda: len(fake.running) == 3)
    assert jsctl("wait", job, "--timeout", "0.2").code == 4
    ran = jsctl("ps")
    assert ran.code == 0 and job in ran.out and "sleep 9" in ran.out
    ran = jsctl("top", "--once")
    assert job in ran.out and "sleep 9" in ran.out
    ran = jsctl("kill", job)
    assert ran.code == 0
    ran = jsctl("wait", job)
    assert ran.code == 1 and "KILLED" in ran.out and "2 failed (1.1, 1.2)" in ran.err
    ran = jsctl("wait", job)  # once more, now from the job's hash
    assert ran.code == 1 and "2 failed (1.1, 1.2)" in ran.err
    ran = jsctl("job", job)
    assert ran.code == 0 and "KILLED" in ran.out and "sleep 9" in ran.out
    assert jsctl("wait", "nothing").code == 3


def test_a_fleet_of_many_jobs_is_found_by_its_id(jsctl: Jsctl, fake: Fake) -> None:
    fleet = jsctl("exec", "1.1,2.1", "--detach", "--", "whoami").out.strip()
    ran = jsctl("wait", fleet)
    assert ran.code == 0 and "2 OK" in ran.err and "== 2.1\n2.1" in ran.out
    ran = jsctl("job", fleet, "--json")
    assert [d["targets"] for d in json.loads(ran.out)] == [["1.1"], ["2.1"]]
    fleet = jsctl("exec", "1.1,2.1", "--detach", "--", "sleep", "5").out.strip()
    wait_until(lambda: len(fake.running) == 2)
    assert jsctl("signal", fleet, "HUP").code == 0
    assert jsctl("kill", fleet).code == 0
    assert "2 failed" in jsctl("wait", fleet).err


def test_a_fleet_that_is_still_being_taken_is_waited_for_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from jsclient.cli import lookup

    class Taking:
        reads = [["f.1.1"], ["f.1.1", "f.2.1"], ["f.1.1", "f.2.1"], ["f.1.1", "f.2.1"]]
        connection = property(lambda self: self)

        def member_ids(self, asked: str) -> List[str]:
            return self.reads.pop(0)

        def read(self, *command: Any) -> int:
            return 0

        def check(self) -> None: ...

        def job_info(self, job_id: str) -> str:
            return job_id

    monkeypatch.setattr(lookup.Fleet, "resume", staticmethod(lambda client, asked, infos: infos))
    # `wait`, `cancel`, `job`, `kill`, `signal` and `unschedule` all find what they speak of in this way.
    assert lookup.find_jobs(Taking(), "f") == ("f", ["f.1.1", "f.2.1"])  # type: ignore[arg-type]
    Taking.reads = [["f.1.1"], *[["f.1.1", "f.2.1"]] * 3]
    assert list(lookup.resume_fleet(Taking(), "f")) == ["f.1.1", "f.2.1"]  # type: ignore[arg-type]


def test_a_fleet_that_is_still_being_taken_is_shown_whole(jsctl: Jsctl, fake: Fake, raw: Any) -> None:
    def take(job: str, node: str) -> None:
        facts = {"cmd": "{}", "created": "5", "targets": f'["{node}"]', node: '{"state":"QUEUED"}'}
        raw.hset(f"jsacc:job:{job}", mapping=facts)
        raw.lpush("jsacc:jobs", job)

    take("f.1.1", "1:1")
    later = threading.Timer(0.15, take, ("f.1.2", "1:2"))
    later.start()
    ran = jsctl("job", "f")
    later.join()
    assert "1.1" in ran.out and "1.2" in ran.out, ran
    raw.delete("jsacc:acs")
    ran = jsctl("job", "f")
    assert ran.code == 0 and "1.2" in ran.out, "to look needs no controller"


def test_cancel_and_wait_for_a_node(jsctl: Jsctl, fake: Fake) -> None:
    ran = jsctl("exec", "7.7", "--detach", "--", "echo")
    assert "7.7 was never seen" in ran.err
    job = ran.out.strip()
    wait_until(lambda: fake.queued)
    ran = jsctl("cancel", job)
    assert (ran.code, ran.out) == (0, "cancelled on 7.7\n")
    assert jsctl("wait", job).code == 1
    ran = jsctl("cancel", job)
    assert ran.code == 1 and "has ended on node" in ran.err
    assert jsctl("exec", "7.7", "--wait", "--timeout", "0.2", "--", "echo").code == 4
    job = jsctl("exec", "1.1", "--detach", "--", "sleep", "5").out.strip()
    wait_until(lambda: fake.running)
    ran = jsctl("cancel", job)
    assert ran.code == 1 and f"jsctl kill {job}" in ran.err
    assert jsctl("kill", "1.1", job).code == 0


def test_batches(jsctl: Jsctl, fake: Fake) -> None:
    ran = jsctl("exec", "all", "--batch", "1", "--max-failures", "0", "--", "false")
    assert ran.code == 1 and "2 not sent after too many failures (1.2, 2.1)" in ran.err
    assert len(fake.seen) == 1
    assert jsctl("ping", "--batch", "50%").code == 0
    ran = jsctl("ping", "--batch", "1", "--detach")
    assert ran.code == 0 and len(ran.out.strip()) == 32


def test_any_raw_info_killall_restart(jsctl: Jsctl, fake: Fake) -> None:
    ran = jsctl("ping", "@web", "--any")
    assert ran.code == 0 and "1 OK" in ran.err
    assert jsctl("raw", "1.1", "execute", "--args", '{"cmd": "cat"}', "--data", "x").out == "x\n"
    assert "x86_64" in jsctl("info", "cpu", "1.1").out
    assert "4.0 GiB" in jsctl("info", "1.1", "mem").out
    assert "/dev/sda1" in jsctl("info", "disk").out
    assert "eth0" in jsctl("info", "nic", "1.1").out and "Debian" in jsctl("info", "os", "1.1").out
    assert jsctl("killall", "1.*").code == 0 and jsctl("restart", "1.1").code == 0
    assert jsctl("unschedule", "1.1", "j").code == 3


def test_nodes_and_history(jsctl: Jsctl, fake: Fake, raw: Any) -> None:
    fake.add(3, 1, [], age=100)
    fake.add(3, 2, [], age=90000)
    ran = jsctl("nodes")
    assert ran.code == 0 and "3 live, 1 late, 1 gone" in ran.err
    assert any(line.split()[:2] == ["3.1", "late"] for line in ran.out.splitlines())
    assert len(jsctl("nodes", "@web").out.splitlines()) == 3
    # One that said that it stops, and one that did so in an earlier life.
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


def test_scripts_and_put(jsctl: Jsctl, fake: Fake, tmp_path: Any) -> None:
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


def test_logs(jsctl: Jsctl, fake: Fake) -> None:
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


def test_top_is_refreshed_in_place(server: Server, fake: Fake) -> None:
    """In a terminal `jsctl top` takes its own screen, draws over what it drew, and gives the screen back."""
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    environment = {**os.environ, "JSCTL_REDIS": server.url, "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-m", "jsclient.cli", "top", "--interval", "0.2"],
        env=environment, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
    )
    os.close(terminal)
    seen = b""

    def read() -> bytes:
        nonlocal seen
        try:
            if select.select([screen], [], [], 0.05)[0]:
                seen += os.read(screen, 65536)
        except OSError:  # the other end is closed
            pass
        return seen

    try:
        wait_until(lambda: len(re.findall(rb"3 nodes, \d+ jobs", read())) >= 3, 30)
        wait_until(lambda: b"CPU%" in read(), 10)
        process.send_signal(signal.SIGINT)
        wait_until(lambda: (read(), process.poll() is not None)[1], 10)
        wait_until(lambda: b"\x1b[?1049l" in read(), 5)
    finally:
        process.kill()
        process.wait()
        os.close(screen)
    assert process.returncode == 0
    # Its own screen, and home before each drawing: nothing scrolls.
    assert seen.startswith(b"\x1b[?1049h") or b"\x1b[?1049h" in seen[:200]
    assert seen.count(b"\x1b[H") >= 3


def start(server: Server, *words: str, **options: Any) -> subprocess.Popen[str]:
    """A jsctl of its own process."""
    environment = {**os.environ, "JSCTL_REDIS": server.url}
    return subprocess.Popen([sys.executable, "-m", "jsclient.cli", *words], env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def test_ctrl_c_says_what_goes_on(server: Server, fake: Fake) -> None:
    fake.deaf.add((1, 1))
    child = start(server, "exec", "@web", "--", "sleep", "9")
    wait_until(lambda: len(fake.running) == 2)
    time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=10)
    assert child.returncode == 130
    assert "goes on running on 1.1, 1.2; to end it: jsctl kill " in err and "jsctl wait " in err


def test_follow(server: Server, fake: Fake) -> None:
    child = start(server, "logs", "1.1", "--follow")
    try:
        assert child.stdout is not None
        fake.record(1, 1, 1, "first")
        assert child.stdout.readline().split()[-1] == "first"
        fake.record(1, 1, 1, "second")
        assert child.stdout.readline().split()[-1] == "second"
    finally:
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=10)
    assert child.returncode == 0


def test_completion(jsctl: Jsctl, fake: Fake) -> None:
    def offers(line: str) -> Any:
        return jsctl("__complete", line).out.split()

    assert {"exec", "ping", "nodes"} <= set(offers("jsctl "))
    assert offers("jsctl no") == ["nodes"]
    assert offers("jsctl exec ") == ["1.*", "1.1", "1.2", "2.*", "2.1", "@db", "@web", "all"]
    assert offers("jsctl exec 1.1,") == ["1.1,1.2", "1.1,2.1"]
    assert offers("jsctl exec @web,d") == ["@web,db"]
    assert offers("jsctl info d") == ["disk"] and offers("jsctl info disk @d") == ["@db"]
    assert "--max-failures" in offers("jsctl exec 1.1 --max-f")
    assert offers("jsctl script r") == ["run"] and "1.1" in offers("jsctl script run ")
    assert offers("jsctl exec 1.1 -- l") == []
    assert offers("jsctl completion z") == ["zsh"]
    for shell in ("bash", "zsh", "fish"):
        assert "jsctl" in jsctl("completion", shell).out


def test_help_loads_no_library() -> None:
    loaded = "import sys, jsclient.cli.main as c; c.main(['--help']); print([m for m in ('redis', 'rich') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", loaded], check=True, capture_output=True, text=True).stdout
    assert out.splitlines()[-1] == "[]"


def test_a_job_is_found_by_how_its_id_begins(jsctl: Jsctl, fake: Fake, client: Client) -> None:
    one, two = "abcdef" + 26 * "1", "abcdef" + 26 * "2"
    for job_id in (one, two, "uvwxyz"):
        client.execute(1, 1, "uname", id=job_id).wait()
    assert jsctl("wait", "uvwxyz").out == jsctl("wait", one).out == jsctl("wait", one[:7]).out == "Linux\n"
    assert "uname" in jsctl("job", two).out
    ran = jsctl("job", "abcdef")
    assert ran.code == 2 and f"is how 2 jobs begin ({one}, {two})" in ran.err
    fleet = jsctl("exec", "1.1,1.2", "--detach", "--", "uname").out.strip()
    wait_until(lambda: jsctl("job", fleet).code == 0)
    assert jsctl("wait", fleet[:12]).err == "2 OK, 0 failed\n"
    long = client.execute(1, 1, "sleep", ["60"])
    wait_until(lambda: long.state == "RUNNING")
    assert jsctl("kill", long.id[:12]).code == 0 and long.wait().state == "KILLED"
    assert jsctl("cancel", fleet[:12]).code == 1
    for nobody in ("abcde", "ab", "nobody-begins-so"):
        assert jsctl("job", nobody).code == 3


def test_an_id_that_somebody_chose_stands_for_no_longer_one(jsctl: Jsctl, fake: Fake, client: Client) -> None:
    chosen = [client.execute(1, 1, "sleep", ["60"], id=i) for i in ("nightly-2", "facade-2")]
    for job in chosen:
        wait_until(lambda: job.state == "RUNNING")
    # Neither is in Redis: gone, or not yet taken from the queue.
    for asked in ("nightly", "facade"):
        assert jsctl("signal", asked, "HUP").code == 3
        for command in ("kill", "cancel", "unschedule", "job", "wait"):
            assert jsctl(command, asked).code == 3, command
    assert [job.state for job in chosen] == ["RUNNING"] * 2
    # The parts of a fleet are whole ids too.
    made = client.execute(1, 1, "sleep", ["60"], id=32 * "a" + ".1.10")
    wait_until(lambda: made.state == "RUNNING")
    assert jsctl("kill", 32 * "a" + ".1.1").code == 3 and made.state == "RUNNING"
    assert client.resolve_id("aaaaaa") == 32 * "a"


def test_what_is_waited_for_is_a_whole_id_first(
    jsctl: Jsctl, fake: Fake, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.execute(1, 1, "echo", ["other"], id="abcdef12" + 24 * "0").wait()
    looked: list[str] = []
    member_ids = Client.member_ids

    def late(self: Client, fleet_id: str) -> list[str]:
        looked.append(fleet_id)
        if len(looked) == 3:
            client.execute(1, 1, "echo", ["late"], id="abcdef12").wait()
        return member_ids(self, fleet_id)

    monkeypatch.setattr(Client, "member_ids", late)
    assert jsctl("wait", "abcdef12").out == "late\n"
    assert jsctl("wait", "abcdef120").out == "other\n"


def test_a_recurring_job_is_told_to_go_on(jsctl: Jsctl, fake: Fake) -> None:
    ran = jsctl("exec", "1.1", "--every", "60", "--", "uname")
    assert (ran.code, ran.out) == (0, "Linux\n")
    assert ran.err == f"runs again every 60 s (jsctl schedules); to end it: jsctl unschedule {fake.seen[-1]['id']}\n"


def test_usage_is_told_once(jsctl: Jsctl) -> None:
    ran = jsctl("exec")
    assert ran.code == 2 and ran.err.count("--help") == 1
    assert "required: target (see" in ran.err


def test_logs_without_records_say_so(jsctl: Jsctl, fake: Fake) -> None:
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


def test_records_of_a_job_are_found_by_how_its_id_begins(jsctl: Jsctl, fake: Fake, client: Client) -> None:
    job = client.execute(1, 1, "uname")
    job.wait()
    fake.record(1, 1, 1, "mine", jobid=job.id)
    ran = jsctl("logs", "1.1", "--job", job.id[:12])
    assert ran.code == 0 and ran.out.split()[-1] == "mine"
    assert jsctl("logs", "1.1", "--job", "abcdef123456").code == 3


def test_cut_output_is_told(jsctl: Jsctl, fake: Fake) -> None:
    tail = "1234567\n" * 999 + "1234567"
    fake.programs["big"] = lambda n, c: {"streams": [tail, "e"], "bytes": [1290000, 2], "truncated": True}
    ran = jsctl("exec", "1.1", "--", "big")
    job = fake.seen[-1]["id"]
    assert (ran.code, ran.out) == (0, tail + "\n")
    assert ran.err.endswith("jsctl: 1.1: its output is cut: kept are the last 7999 of 1290000 bytes of stdout; "
                            f"for the rest: jsctl logs 1.1 --job {job}\n")
    ran = jsctl("exec", "1.1,1.2", "--json", "--", "big")
    assert {(i["truncated"], tuple(i["bytes"])) for i in json.loads(ran.out)} == {(True, (1290000, 2))}
    assert ran.err.count("is cut") == 2 and f"jsctl logs 1.2 --job {fake.seen[-1]['id']}" in ran.err
    fake.programs["big"] = lambda n, c: {"level": 20, "data": "[1, ", "bytes": [9, 0], "truncated": True}
    assert "its output or its result is cut" in jsctl("exec", "1.1", "--", "big").err
    fake.programs["big"] = lambda n, c: {"streams": [tail, "e"], "bytes": [8000, 2], "truncated": False}
    assert jsctl("exec", "1.1", "--", "big").err == "e\n"


@pytest.mark.parametrize("answer,cut", [
    ({"streams": ["x\n" * 999 + "x", ""]}, True), ({"streams": ["", ("x" * 99 + "\n") * 655]}, True),
    ({"streams": ["\u20ac" * 21845, ""]}, True), ({"level": 23, "data": "x" * (1 << 20)}, True),
    ({"streams": ["x\n" * 998 + "x", "x" * 32000]}, False), ({"level": 23, "data": "x" * 9999}, False),
])
def test_an_agent_that_does_not_count_may_have_cut_output_at_its_limits(
    jsctl: Jsctl, fake: Fake, answer: Any, cut: bool
) -> None:
    fake.programs["big"] = lambda n, c: answer
    ran = jsctl("exec", "1.1", "--", "big")
    assert ran.code == 0 and ("its output may be cut" in ran.err) is cut
    shown = json.loads(jsctl("exec", "1.1", "--ndjson", "--", "big").out)
    assert (shown["bytes"], shown["truncated"]) == (None, cut)


def test_a_rolling_restart_waits_until_each_node_is_back(jsctl: Jsctl, fake: Fake) -> None:
    nodes, down = {(1, 1), (1, 2), (2, 1)}, []
    fake.lost = set(nodes)

    def back() -> None:
        # Each node stays away for a moment, in which no other may be sent the command.
        done: set[Any] = set()
        while len(done) < 3 and not over.wait(0.02):
            asked = {(c["gid"], c["nid"]) for c in fake.seen if c["cmd"] == "restart"}
            down.append(len(asked - done))
            for node in asked - done:
                over.wait(0.3)
                fake.started(node)
                done.add(node)

    over = threading.Event()
    thread = threading.Thread(target=back)
    thread.start()
    try:
        ran = jsctl("restart", "all", "--batch", "1", "--max-failures", "0")
    finally:
        over.set()
        thread.join()
    assert ran.code == 0 and ran.err == "3 OK, 0 failed\n" and max(down) == 1
    assert [c["cmd"] for c in fake.seen] == ["restart"] * 3


def test_a_restart_that_nothing_follows_is_a_failure(jsctl: Jsctl, fake: Fake) -> None:
    fake.lost.add((1, 1))
    ran = jsctl("restart", "1.1,1.2,2.1", "--batch", "1", "--max-failures", "0", "--timeout", "1.5")
    assert ran.code == 1 and "2 not sent after too many failures (1.2, 2.1)" in ran.err
    assert "== 1.1: ERROR\nthe agent ended, and nothing started it again within 1.5 s\n" == ran.out
    ran = jsctl("restart", "1.1", "--timeout", "1.5")
    assert ran.code == 1 and "nothing started it again within 1.5 s" in ran.err
    ran = jsctl("restart", "1.1", "--detach")
    assert ran.code == 0 and len(ran.out.strip()) == 32


def test_what_has_not_started_when_the_wait_ends_is_withdrawn(jsctl: Jsctl, fake: Fake, raw: Any) -> None:
    fake.absent.add((1, 2))  # listed as live: it has just gone
    ran = jsctl("exec", "1.1,1.2", "--timeout", "0.3", "--", "sleep", "9")
    assert ran.code == 4 and "withdrawn from 1.2, where it had not started" in ran.err
    sent = next(c["id"][:32] for c in fake.seen if c["cmd"] == "execute")
    assert f"it stays with 1.1; to wait on: jsctl wait {sent}" in ran.err and not fake.queued and len(fake.running) == 1
    assert not [k for k in raw.keys("cmds_queue_*")]
    ran = jsctl("exec", "1.2", "--timeout", "0.3", "--", "uname")
    assert ran.code == 4 and "withdrawn from 1.2" in ran.err and "jsctl wait" not in ran.err
    for flag in ("--wait", "--detach"):
        jsctl("exec", "1.2", "--timeout", "0.3", flag, "--", "uname")
        wait_until(lambda: len(fake.queued) == 1)
        ((job, node),) = fake.queued
        assert jsctl("wait", job, "--timeout", "0.3").code == 4 and len(fake.queued) == 1
        assert jsctl("cancel", job).code == 0


@pytest.mark.parametrize("words", [["ping"], ["info", "os"], ["ps"], ["logs"], ["top", "--once"]])
def test_a_stopped_node_is_told_at_once(jsctl: Jsctl, fake: Fake, raw: Any, words: Any) -> None:
    fake.absent.add((1, 1))
    raw.hset("jsacc:agent:1:1", "stopped", str(int(time.time() * 1000) + 1000))
    ran = jsctl(*words[:1], *(words[1:] if words[0] == "info" else ()), "1.1", *(words[1:] if words[0] == "top" else ()))
    assert ran.code == 3 and "stopped" in ran.err and not fake.seen, ran
    # What does something is left for it: most often it only starts again.
    ran = jsctl("exec", "1.1", "--timeout", "1", "--", "uname")
    assert ran.code == 4 and "the agent stopped" in ran.err


def test_further_pages_of_records_are_quiet(fake: Fake, client: Client, raw: Any) -> None:
    for i in range(2500):
        fake.record(1, 1, 1, f"line {i}")
    assert len(list(client.logs("1.1"))) == 2500
    asked = [c for c in fake.seen if c["cmd"] == "get_msgs"]
    assert [c.get("quiet", False) for c in asked] == [False, True, True]
    assert raw.llen("jsacc:audit") == 1


def test_resp_3_is_understood(jsctl: Jsctl, server: Server, fake: Fake) -> None:
    for words in (["nodes"], ["ping", "1.1"], ["jobs"]):
        ran = jsctl("--redis", f"unix://{server.socket}?protocol=3", *words)
        assert ran.code == 0, ran


@pytest.mark.parametrize("stopped", [b"9" * 5000, b"1e999", b"nan", b"\xff"])
def test_times_that_are_none_do_no_harm(jsctl: Jsctl, fake: Fake, raw: Any, stopped: bytes) -> None:
    raw.hset("jsacc:agent:1:1", "stopped", stopped)
    raw.hset("jsacc:job:j1", mapping={"cmd": "{}", "created": stopped})
    raw.lpush("jsacc:jobs", "j1")
    assert jsctl("nodes").code == 0 and jsctl("jobs").code == 0


def test_questions_that_are_asked_again_are_quiet(jsctl: Jsctl, server: Server, fake: Fake, client: Client, raw: Any) -> None:
    fake.record(1, 1, 1, "a line")
    list(client.target("all").follow(until=lambda: True))
    list(client.logs("1.1", follow=True, until=lambda: True))
    jsctl("top", "--once")
    asked = [c for c in fake.seen if c["cmd"] in ("get_msgs", "get_processes_stats")]
    assert len(asked) >= 5 and all(c["quiet"] is True and 0 < c["expires"] <= 60 for c in asked)
    assert raw.llen("jsacc:jobs") == 0 and raw.llen("jsacc:audit") == 0
    jsctl("ps")
    jsctl("logs", "1.1")
    assert "quiet" not in fake.seen[-1] and raw.llen("jsacc:audit") == 2


def test_completion_of_a_pattern_offers_no_files(server: Server, fake: Fake, tmp_path: Any) -> None:
    (tmp_path / "1.txt").touch()
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "jsctl").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m jsclient.cli "$@"\n')
    (bin_ / "jsctl").chmod(0o755)
    script = ('source <(jsctl completion bash); COMP_LINE="jsctl exec 1."; COMP_POINT=${#COMP_LINE}; _jsctl; '
              'printf "%s\\n" "${COMPREPLY[@]}"')
    done = subprocess.run(["bash", "--norc", "-c", script], cwd=tmp_path, text=True, capture_output=True, timeout=60,
                          env={**os.environ, "PATH": f"{bin_}:{os.environ['PATH']}", "JSCTL_REDIS": server.url})
    assert done.stdout.split() == ["1.\\*", "1.1", "1.2"], done


def test_the_audit_list_calls_names_self_declared(server: Server, jsctl: Jsctl, raw: Any) -> None:
    raw.lpush("jsacc:audit", '{"time": 1, "id": "j", "by": "alice@hr", "user": "ops", "cmd": "ping", "targets": ["1:1"]}')
    ran = jsctl("audit")
    assert ran.code == 0 and "BY (SELF-DECLARED)" in ran.out.splitlines()[0] and "alice@hr/ops" in ran.out
    assert "self-declared" in jsctl("audit", "--help").out and "self-declared" in jsctl("exec", "--help").out
