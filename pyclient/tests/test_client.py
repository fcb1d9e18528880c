"""Commands for one node from Python, against the controller of `fake`."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from conftest import wait_until
from fake import Fake

from jsclient import (
    Client,
    JobFailedError,
    JobNotFoundError,
    NoMatchingNodesError,
    ResultDecodeError,
    UsageError,
    WaitTimeoutError,
)


def test_execute_returns_streams_and_tags(client: Client, fake: Fake) -> None:
    job = client.execute(1, 1, "echo", ["a", "b"], domain="d", max_time=5, tags="t")
    result = job.wait(10)
    assert (result.state, result.stdout, result.stderr, result.code) == ("OK", "a b", "", 0)
    assert (result.tags, result.node, result.args["max_time"]) == ("t", (1, 1), 5)
    assert job.state == "OK" and job.stdout == "a b" and job.result is result
    assert fake.seen[-1]["by"] == "tester"


def test_failed_job_raises_only_on_request(client: Client) -> None:
    result = client.execute(1, 1, "false").wait()
    assert not result.ok
    with pytest.raises(JobFailedError, match="execute on 1.1 failed with status 1: it went wrong"):
        result.raise_for_status()


def test_ping_and_info_return_decoded_answers(client: Client) -> None:
    assert client.ping(1, 1) == "pong"
    assert client.get_cpu_info(1, 1)["arch"] == "x86_64"
    assert client.get_mem_info(1, 1)["total"] == 4 << 30
    assert client.get_disk_info(1, 1)[0]["mount"] == "/"
    assert client.get_nic_info(1, 1)[0]["name"] == "eth0"
    assert client.get_os_info(1, 1)["os"] == "linux"


def test_nodes_have_their_state_by_age(client: Client, fake: Fake) -> None:
    fake.add(3, 1, [], age=100)
    fake.add(3, 2, [], age=4000)
    states = {n.id: n.state for n in client.nodes()}
    assert states == {(1, 1): "live", (1, 2): "live", (2, 1): "live", (3, 1): "late", (3, 2): "gone"}
    assert client.node(1, 2).roles == ("web", "db")
    with pytest.raises(NoMatchingNodesError):
        client.node(9, 9)


def test_running_job_has_stats_and_is_killed(client: Client) -> None:
    job = client.execute(1, 1, "sleep", ["100"])
    wait_until(lambda: job.state == "RUNNING")
    assert job.result is None and job.stdout == ""
    assert job.stats()["cpu"] == 12.5
    assert client.get_processes_stats(1, 1)[0]["id"] == job.id
    job.signal("SIGHUP")
    job.kill()
    assert job.wait(5).state == "KILLED"
    with pytest.raises(JobFailedError, match="no job"):
        job.kill()


def test_wait_timeout_names_the_state_of_the_job(client: Client, fake: Fake) -> None:
    job = client.execute(1, 1, "sleep", ["100"])
    with pytest.raises(WaitTimeoutError, match="it is running"):
        job.wait(0.1)
    fake.add(1, 3, [], age=200)
    with pytest.raises(WaitTimeoutError, match=r"queued; node 1.3 is offline \(last seen"):
        client.execute(1, 3, "echo").wait(0.1)
    with pytest.raises(WaitTimeoutError, match="never seen"):
        client.execute(7, 7, "echo").wait(0.1)
    assert issubclass(WaitTimeoutError, TimeoutError)


def test_result_lists_are_consumed(client: Client, raw: Any) -> None:
    client.execute(1, 1, "echo", ["x"]).wait()
    client.target("all").execute("echo", ["x"]).wait()
    client.target("1.1,1.2").execute("echo", ["x"]).wait()
    assert not [k for k in raw.keys("*") if k.startswith("cmds_queue")]


def test_result_taken_by_another_client_is_found_in_the_hash(client: Client, fake: Fake, raw: Any) -> None:
    fake.hash_only = True
    assert client.execute(1, 1, "echo", ["x"]).wait(10).stdout == "x"
    fleet = client.target("1.1,2.1").execute("echo", ["x"]).wait(10)
    assert sorted(fleet.results) == [(1, 1), (2, 1)]
    assert len(client.target("all").ping().wait(10).results) == 3


def test_three_threads_wait_for_one_job(client: Client, fake: Fake) -> None:
    job = client.execute(1, 1, "sleep", ["100"])
    got = []
    threads = [threading.Thread(target=lambda: got.append(job.wait(10).state)) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: job.state == "RUNNING")
    job.kill()
    for thread in threads:
        thread.join()
    assert got == ["KILLED"] * 3


def test_broken_connection_loses_no_result(client: Client, fake: Fake, raw: Any) -> None:
    job = client.execute(1, 1, "sleep", ["100"])
    wait_until(lambda: job.state == "RUNNING")
    got = []
    thread = threading.Thread(target=lambda: got.append(job.wait(20).state))
    thread.start()
    for _ in range(3):
        wait_until(lambda: "brpop" in {c["cmd"] for c in raw.client_list() if "b" in c["flags"]})
        raw.client_kill_filter(skipme=True, _type="normal")
    job.kill()
    thread.join()
    assert got == ["KILLED"]


def test_client_is_safe_for_threads(client: Client) -> None:
    wrong = []

    def work(mine: int) -> None:
        for i in range(20):
            word = f"{mine}-{i}"
            if client.execute(1, 1 + i % 2, "echo", [word]).wait(20).stdout != word:
                wrong.append(word)
        if len(client.target("all").ping().wait(20).results) != 3:
            wrong.append(str(mine))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_cancel_withdraws_a_queued_job(client: Client, fake: Fake) -> None:
    fake.add(1, 3, [], age=500)
    job = client.execute(1, 3, "echo")
    wait_until(lambda: ((job.id, (1, 3)) in fake.queued))
    assert client.cancel(job.id) == {(1, 3): ""}
    assert not job.cancel()
    assert job.wait(5).state == "KILLED"


def test_run_script_stores_and_runs_source(client: Client, fake: Fake, raw: Any, tmp_path: Any) -> None:
    def double(x: int) -> int:
        return 2 * x

    fleet = client.run_script("@web", function=double, data={"x": 21}).wait()
    assert [r.value for r in fleet.results.values()] == [42, 42]
    (key,) = raw.keys("jsacc:script:*")
    assert raw.ttl(key) > 6 * 86400
    raw.expire(key, 100)
    client.run_script("1.1", function=double, data={"x": 1}).wait().raise_for_status()
    assert raw.ttl(key) > 6 * 86400
    path = tmp_path / "s.py"
    path.write_text("def action():\n    return 'hi'\n")
    assert client.run_script("1.1", path=str(path)).wait().results[(1, 1)].value == "hi"
    path.write_text("def action(:\n")
    with pytest.raises(UsageError, match="s.py, line 1: syntax error"):
        client.run_script("1.1", path=str(path))
    assert len(client.scripts()) == 2


def test_functions_with_outside_names_are_refused(client: Client) -> None:
    there = 5

    def closure() -> int:
        return there

    def outside() -> object:
        return threading.current_thread()

    for bad, why in ((closure, "there"), (outside, "threading"), (lambda: 1, "def"), (len, "def")):
        with pytest.raises(UsageError, match=why):
            client.run_script("1.1", function=bad)


def test_put_writes_bytes_and_checks_arguments(client: Client, fake: Fake) -> None:
    client.put("@web", b"\x00\xff", "/etc/x", mode="0600").wait().raise_for_status()
    assert fake.files[((1, 2), "/etc/x")] == b"\x00\xff"
    assert fake.seen[-1]["args"]["mode"] == "0600"
    with pytest.raises(UsageError, match="octal"):
        client.put("@web", b"", "/x", mode="rw")
    with pytest.raises(UsageError, match="cannot read"):
        client.put("@web", "/no/such/file", "/x")


def test_logs_reads_all_pages(client: Client, fake: Fake) -> None:
    for i in range(2500):
        fake.record(1, 1, 1 + i % 2, f"line {i}")
    assert [r.data for r in client.logs("1.1")] == [f"line {i}" for i in range(2500)]
    assert len(list(client.logs("1.1", levels="2"))) == 1250
    assert len(list(client.logs("1.1", limit=1500))) == 1500
    assert client.get_msgs(1, 1, "j", limit=2)[1].id == 2
    assert client.del_msgs(1, 1, levels=[1]) == 0 or True


def test_follow_ends_with_its_job(client: Client, fake: Fake) -> None:
    job = client.execute(1, 1, "sleep", ["9"])
    wait_until(lambda: job.state == "RUNNING")
    fake.record(1, 1, 1, "one", jobid=job.id)
    lines = job.logs(follow=True)
    assert next(lines).data == "one"
    fake.record(1, 1, 1, "two", jobid=job.id)
    job.kill()
    assert [r.data for r in lines] == ["two"]


def test_stats_jobs_events_and_audit_are_read(client: Client, fake: Fake, raw: Any) -> None:
    raw.hset("jsacc:stats:1:1", "1.1.d.n.k", "[1.5, 1766385000]")
    assert client.stats(1, 1) == {"1.1.d.n.k": (1.5, 1766385000)}
    job = client.execute(1, 1, "false")
    job.wait()
    wait_until(lambda: client.job_info(job.id).state == "ERROR")
    assert client.jobs(5)[0].id == job.id
    assert client.audit(1)[0]["results"] == {"ERROR": 1}
    raw.lpush("jsacc:events", '{"name": "startup", "gid": 1, "nid": 1, "epoch": 5, "data": {}}', "no json")
    assert [e.get("name") for e in client.events()] == [None, "startup"]
    with pytest.raises(JobNotFoundError, match="no job nope"):
        client.job_info("nope")


def test_value_is_decoded_by_level(client: Client, fake: Fake) -> None:
    for level, data, value in (
        (20, '{"a": 1}', {"a": 1}), (21, "a: [1, 2]", {"a": [1, 2]}), (22, "a = 1", {"a": 1}), (23, "x", "x"),
    ):
        fake.programs["give"] = lambda n, c, level=level, data=data: {"level": level, "data": data}
        assert client.execute(1, 1, "give").wait().value == value
    fake.programs["give"] = lambda n, c: {"level": 20, "data": "{"}
    with pytest.raises(ResultDecodeError, match="level 20"):
        client.execute(1, 1, "give").wait().value


def test_bad_arguments_raise_usage_error(client: Client) -> None:
    for call, why in (
        (lambda: client.execute(0, 1, "x"), "whole numbers"),
        (lambda: client.execute("1", 1, "x"), "whole numbers"),
        (lambda: client.execute(1, 1, "x", "words"), "list of words"),
        (lambda: client.execute(1, 1, "x", max_tme=1), "no such argument: max_tme"),
        (lambda: client.execute(1, 1, "x", id="a b"), "job id"),
        (lambda: client.send(1, 1, "x", {"a": object()}), "JSON"),
        (lambda: client.send(1, 1, "", {}), "name"),
        (lambda: client.execute(1, 1, "x", data=b"\xff"), "UTF-8"),
        (lambda: client.execute(1, 1, "echo").wait(-1), "timeout"),
        (lambda: client.target("1.x"), "is not a target"),
        (lambda: client.target(""), "empty"),
        (lambda: client.target("@web,1.1"), "do not mix"),
        (lambda: client.target("all").ping(batch="0"), "batch"),
        (lambda: client.info(1, 1, "gpu"), "info knows"),
        (lambda: client.signal(1, 1, "j", 999), "no signal"),
        (lambda: Client("http://x"), "redis://"),
        (lambda: Client(""), "empty"),
    ):
        with pytest.raises(UsageError, match=why):
            call()  # type: ignore[no-untyped-call]


def test_restart_returns_when_the_agent_is_back(client: Client, fake: Fake) -> None:
    assert client.restart(1, 1).ok and client.target("@web").restart().wait().ok
    fake.lost.add((1, 1))
    with pytest.raises(JobFailedError, match="nothing started it again within 1.5 s"):
        client.restart(1, 1, timeout=1.5)
