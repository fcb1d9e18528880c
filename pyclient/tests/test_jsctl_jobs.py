"""Jobs that jsctl finds by their ids, waits for, kills and withdraws."""

from __future__ import annotations

import json
import threading
import time
from typing import Any, Callable, List

import pytest
from conftest import Ran, Server, wait_until
from fake import Fake

from jsclient import Client

Jsctl = Callable[..., Ran]


def test_detached_job_is_waited_for_and_killed_by_its_id(jsctl: Jsctl, fake: Fake, raw: Any) -> None:
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


def test_fleet_of_many_jobs_is_found_by_its_id(jsctl: Jsctl, fake: Fake) -> None:
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


def test_fleet_in_the_queue_is_resumed_with_all_members(monkeypatch: pytest.MonkeyPatch) -> None:
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
    # `wait`, `cancel`, `job`, `kill`, `signal` and `unschedule` all use this function.
    assert lookup.find_jobs(Taking(), "f") == ("f", ["f.1.1", "f.2.1"])  # type: ignore[arg-type]
    Taking.reads = [["f.1.1"], *[["f.1.1", "f.2.1"]] * 3]
    assert list(lookup.resume_fleet(Taking(), "f")) == ["f.1.1", "f.2.1"]  # type: ignore[arg-type]


def test_fleet_in_the_queue_is_shown_with_all_members(jsctl: Jsctl, fake: Fake, raw: Any) -> None:
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


def test_cancel_withdraws_a_queued_command(jsctl: Jsctl, fake: Fake) -> None:
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


def test_job_is_found_by_the_prefix_of_its_id(jsctl: Jsctl, fake: Fake, client: Client) -> None:
    one, two = "abcdef" + 26 * "1", "abcdef" + 26 * "2"
    for job_id in (one, two, "uvwxyz"):
        client.execute(1, 1, "uname", id=job_id).wait()
    assert jsctl("wait", "uvwxyz").out == jsctl("wait", one).out == jsctl("wait", one[:7]).out == "Linux\n"
    assert "uname" in jsctl("job", two).out
    ran = jsctl("job", "abcdef")
    assert ran.code == 2 and f"is ambiguous: 2 jobs begin with it ({one}, {two})" in ran.err
    fleet = jsctl("exec", "1.1,1.2", "--detach", "--", "uname").out.strip()
    wait_until(lambda: jsctl("job", fleet).code == 0)
    assert jsctl("wait", fleet[:12]).err == "2 OK, 0 failed\n"
    long = client.execute(1, 1, "sleep", ["60"])
    wait_until(lambda: long.state == "RUNNING")
    assert jsctl("kill", long.id[:12]).code == 0 and long.wait().state == "KILLED"
    assert jsctl("cancel", fleet[:12]).code == 1
    for nobody in ("abcde", "ab", "nobody-begins-so"):
        assert jsctl("job", nobody).code == 3


def test_chosen_id_is_no_prefix_of_a_longer_id(jsctl: Jsctl, fake: Fake, client: Client) -> None:
    chosen = [client.execute(1, 1, "sleep", ["60"], id=i) for i in ("nightly-2", "facade-2")]
    for job in chosen:
        wait_until(lambda: job.state == "RUNNING")
    # Neither is in Redis: expired, or not yet taken from the queue.
    for asked in ("nightly", "facade"):
        assert jsctl("signal", asked, "HUP").code == 3
        for command in ("kill", "cancel", "unschedule", "job", "wait"):
            assert jsctl(command, asked).code == 3, command
    assert [job.state for job in chosen] == ["RUNNING"] * 2
    # Ids of fleet members are complete too.
    made = client.execute(1, 1, "sleep", ["60"], id=32 * "a" + ".1.10")
    wait_until(lambda: made.state == "RUNNING")
    assert jsctl("kill", 32 * "a" + ".1.1").code == 3 and made.state == "RUNNING"
    assert client.resolve_id("aaaaaa") == 32 * "a"


def test_complete_id_wins_over_a_prefix(
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


def test_recurring_job_prints_how_to_end_it(jsctl: Jsctl, fake: Fake) -> None:
    ran = jsctl("exec", "1.1", "--every", "60", "--", "uname")
    assert (ran.code, ran.out) == (0, "Linux\n")
    assert ran.err == f"runs again every 60 s; list it with jsctl schedules, end it with jsctl unschedule {fake.seen[-1]['id']}\n"


def test_rolling_restart_waits_for_each_node(jsctl: Jsctl, fake: Fake) -> None:
    nodes, down = {(1, 1), (1, 2), (2, 1)}, []
    fake.lost = set(nodes)

    def back() -> None:
        # Each node is offline for a moment, in which no other node gets the command.
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


def test_restart_without_return_of_the_agent_fails(jsctl: Jsctl, fake: Fake) -> None:
    fake.lost.add((1, 1))
    ran = jsctl("restart", "1.1,1.2,2.1", "--batch", "1", "--max-failures", "0", "--timeout", "1.5")
    assert ran.code == 1 and "2 not sent after too many failures (1.2, 2.1)" in ran.err
    assert "== 1.1: ERROR\nthe agent ended, and nothing started it again within 1.5 s\n" == ran.out
    ran = jsctl("restart", "1.1", "--timeout", "1.5")
    assert ran.code == 1 and "nothing started it again within 1.5 s" in ran.err
    ran = jsctl("restart", "1.1", "--detach")
    assert ran.code == 0 and len(ran.out.strip()) == 32


def test_timeout_withdraws_unstarted_commands(jsctl: Jsctl, fake: Fake, raw: Any) -> None:
    fake.absent.add((1, 2))  # still listed as live
    ran = jsctl("exec", "1.1,1.2", "--timeout", "0.3", "--", "sleep", "9")
    assert ran.code == 4 and "withdrawn from 1.2, where it had not started" in ran.err
    sent = next(c["id"][:32] for c in fake.seen if c["cmd"] == "execute")
    assert f"still with 1.1; wait for it with jsctl wait {sent}" in ran.err and not fake.queued and len(fake.running) == 1
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
def test_read_only_command_for_a_stopped_node_fails_at_once(jsctl: Jsctl, fake: Fake, raw: Any, words: Any) -> None:
    fake.absent.add((1, 1))
    raw.hset("jsacc:agent:1:1", "stopped", str(int(time.time() * 1000) + 1000))
    ran = jsctl(*words[:1], *(words[1:] if words[0] == "info" else ()), "1.1", *(words[1:] if words[0] == "top" else ()))
    assert ran.code == 3 and "stopped" in ran.err and not fake.seen, ran
    # Other commands are queued for it, since most agents start again.
    ran = jsctl("exec", "1.1", "--timeout", "1", "--", "uname")
    assert ran.code == 4 and "queued; node 1.1 is offline (stopped " in ran.err


def test_further_pages_of_records_are_quiet(fake: Fake, client: Client, raw: Any) -> None:
    for i in range(2500):
        fake.record(1, 1, 1, f"line {i}")
    assert len(list(client.logs("1.1"))) == 2500
    asked = [c for c in fake.seen if c["cmd"] == "get_msgs"]
    assert [c.get("quiet", False) for c in asked] == [False, True, True]
    assert raw.llen("jsacc:audit") == 1


def test_repeated_read_only_commands_are_quiet(jsctl: Jsctl, server: Server, fake: Fake, client: Client, raw: Any) -> None:
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


def test_end_of_a_wait_names_the_command_that_ends_the_job(jsctl: Jsctl, fake: Fake) -> None:
    fake.deaf.add((1, 1))
    ran = jsctl("exec", "1.1", "--timeout", "1", "--", "sleep", "9")
    assert ran.code == 4 and "end it with jsctl kill " in ran.err and "jsctl cancel" not in ran.err
    fake.add(1, 3, [], age=200)
    ran = jsctl("exec", "1.3", "--wait", "--timeout", "1", "--", "sleep", "9")
    assert ran.code == 4 and ran.err.endswith(f"withdraw it with jsctl cancel {ran.err.split()[-1]}\n")
