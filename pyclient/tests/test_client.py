"""The Python side, against the controller of `fake`."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any, Dict

import pytest
import redis
from conftest import Server, wait_until
from fake import Fake

from jsclient import (
    Client,
    FleetFailedError,
    JobFailedError,
    JobNotFoundError,
    NoControllerError,
    NodeId,
    NoMatchingNodesError,
    RedisUnavailableError,
    ResultDecodeError,
    UsageError,
    WaitTimeoutError,
)


def test_execute(client: Client, fake: Fake) -> None:
    job = client.execute(1, 1, "echo", ["a", "b"], domain="d", max_time=5, tags="t")
    result = job.wait(10)
    assert (result.state, result.stdout, result.stderr, result.code) == ("OK", "a b", "", 0)
    assert (result.tags, result.node, result.args["max_time"]) == ("t", (1, 1), 5)
    assert job.state == "OK" and job.stdout == "a b" and job.result is result
    assert fake.seen[-1]["by"] == "tester"


def test_a_failure_is_a_result_and_an_error_when_asked(client: Client) -> None:
    result = client.execute(1, 1, "false").wait()
    assert not result.ok
    with pytest.raises(JobFailedError, match="execute on 1.1 failed with status 1: it went wrong"):
        result.raise_for_status()


def test_infos_and_ping(client: Client) -> None:
    assert client.ping(1, 1) == "pong"
    assert client.get_cpu_info(1, 1)["arch"] == "x86_64"
    assert client.get_mem_info(1, 1)["total"] == 4 << 30
    assert client.get_disk_info(1, 1)[0]["mount"] == "/"
    assert client.get_nic_info(1, 1)[0]["name"] == "eth0"
    assert client.get_os_info(1, 1)["os"] == "linux"


def test_nodes(client: Client, fake: Fake) -> None:
    fake.add(3, 1, [], age=100)
    fake.add(3, 2, [], age=4000)
    states = {n.id: n.state for n in client.nodes()}
    assert states == {(1, 1): "live", (1, 2): "live", (2, 1): "live", (3, 1): "late", (3, 2): "gone"}
    assert client.node(1, 2).roles == ("web", "db")
    with pytest.raises(NoMatchingNodesError):
        client.node(9, 9)


def test_kill_signal_and_stats(client: Client) -> None:
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


def test_wait_says_where_the_job_stands(client: Client, fake: Fake) -> None:
    job = client.execute(1, 1, "sleep", ["100"])
    with pytest.raises(WaitTimeoutError, match="it is running"):
        job.wait(0.1)
    fake.add(1, 3, [], age=200)
    with pytest.raises(WaitTimeoutError, match="the node was last seen"):
        client.execute(1, 3, "echo").wait(0.1)
    with pytest.raises(WaitTimeoutError, match="never seen"):
        client.execute(7, 7, "echo").wait(0.1)
    assert issubclass(WaitTimeoutError, TimeoutError)


def test_nothing_is_left_behind(client: Client, raw: Any) -> None:
    client.execute(1, 1, "echo", ["x"]).wait()
    client.target("all").execute("echo", ["x"]).wait()
    client.target("1.1,1.2").execute("echo", ["x"]).wait()
    assert not [k for k in raw.keys("*") if k.startswith("cmds_queue")]


def test_a_result_that_somebody_else_popped_is_found(client: Client, fake: Fake, raw: Any) -> None:
    fake.hash_only = True
    assert client.execute(1, 1, "echo", ["x"]).wait(10).stdout == "x"
    fleet = client.target("1.1,2.1").execute("echo", ["x"]).wait(10)
    assert sorted(fleet.results) == [(1, 1), (2, 1)]
    assert len(client.target("all").ping().wait(10).results) == 3


def test_two_threads_wait_for_one_job(client: Client, fake: Fake) -> None:
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


def test_a_cut_connection_loses_no_result(client: Client, fake: Fake, raw: Any) -> None:
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


def test_one_client_in_many_threads(client: Client) -> None:
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


def push_forged(raw: Any, job_id: str, gid: int, nid: int) -> None:
    """Pushes a result as a node could that has found out the id of another node's job."""
    forged = {"id": job_id, "gid": gid, "nid": nid, "state": "OK", "data": "forged", "level": 0, "streams": ["", ""]}
    raw.rpush(f"cmds_queue_{job_id}", json.dumps(forged))


def test_result_of_a_node_that_was_not_asked_is_dropped(client: Client, fake: Fake, raw: Any) -> None:
    fake.deaf.add((1, 1))
    job = client.execute(1, 1, "sleep", ["100"])
    wait_until(lambda: job.state == "RUNNING")
    push_forged(raw, job.id, 2, 1)
    with pytest.raises(WaitTimeoutError):
        job.wait(0.3)
    with pytest.raises(WaitTimeoutError):
        client.job(job.id).wait(0.1)
    push_forged(raw, job.id, 2, 1)
    push_forged(raw, job.id, 1, 1)
    assert client.job(job.id).wait(5).node == (1, 1)

    fleet = client.target("1.1,2.1").execute("sleep", ["100"])
    wait_until(lambda: len(fleet.states()) == 2)
    push_forged(raw, fleet.job_id(NodeId(2, 1)), 1, 1)
    fan = client.target("1.*").execute("sleep", ["100"])
    wait_until(lambda: len(fan.states()) == 2)
    push_forged(raw, fan.id, 2, 1)
    for many in (fleet, fan):
        assert many.wait(0.3).results == {}
        assert raw.llen(f"cmds_queue_{many.job_id(many.nodes[-1])}") == 0


def test_ids_of_a_fleet_do_not_follow_from_each_other(client: Client, fake: Fake) -> None:
    fleet = client.target("1.1,2.1").execute("echo", ["x"]).wait(10)
    ids = [fleet.job_id(node) for node in fleet.nodes]
    ends = [job_id.rsplit(".", 1)[1] for job_id in ids]
    assert len(set(ends)) == 2 and all(len(end) == 16 for end in ends)
    assert client.member_ids(fleet.id) == ids and client.resolve_id(fleet.id[:10]) == fleet.id
    assert [job.wait(5).ok for job in fleet.jobs.values()] == [True, True]


def test_fleet(client: Client) -> None:
    fleet = client.target("@web").execute("whoami")
    assert {r.stdout for r in fleet} == {"1.1", "1.2"}
    assert fleet.ok and not fleet.failed and not fleet.missing
    assert fleet.raise_for_status() is fleet
    assert len(fleet.nodes) == 2 and sorted(fleet.results) == [(1, 1), (1, 2)]
    assert [r.node for r in fleet] == [r.node for r in fleet.results.values()]


@pytest.mark.parametrize(
    "who,but,nodes",
    [
        ("1.1", None, ["1.1"]),
        ("1.1,2.1", None, ["1.1", "2.1"]),
        ("1.*", None, ["1.1", "1.2"]),
        ("@web,db", None, ["1.2"]),
        ("@db", None, ["1.2", "2.1"]),
        ("all", None, ["1.1", "1.2", "2.1"]),
        ("all", "1.1", ["1.2", "2.1"]),
        ("all", ["@db", "9.9"], ["1.1"]),
    ],
)
def test_targets(client: Client, who: str, but: Any, nodes: Any) -> None:
    selection = client.target(who, exclude=but)
    assert [str(n) for n in selection.nodes()] == nodes
    assert [str(n) for n in sorted(selection.ping().wait(10).results)] == nodes


def test_any_picks_one(client: Client, fake: Fake) -> None:
    assert len(client.target("all", any=True).ping().wait().results) == 1


def test_who_failed_and_who_is_silent(client: Client, fake: Fake) -> None:
    fake.deaf.add((2, 1))
    fake.programs["flaky"] = lambda n, c: {"state": "ERROR", "code": 2} if n == (1, 1) else {}
    fleet = client.target("all").execute("flaky").wait(0.5)
    assert [r.node for r in fleet.failed] == [(1, 1)] and fleet.missing == [(2, 1)]
    with pytest.raises(FleetFailedError, match="failed on 1.1; no answer from 2.1") as e:
        fleet.raise_for_status()
    assert e.value.missing == ["2.1"]


def test_nodes_that_are_not_there(client: Client, fake: Fake) -> None:
    fake.add(1, 3, ["web"], age=500)
    fleet = client.target("1.1,1.3,1.9").ping().wait()
    assert list(fleet.results) == [(1, 1)]
    assert [n.id for n in fleet.offline] == [(1, 3)] and fleet.unknown == [(1, 9)]
    with pytest.raises(NoMatchingNodesError, match="1.9 was never seen"):
        client.target("1.9").ping()
    with pytest.raises(NoMatchingNodesError, match="no node matches @nobody"):
        client.target("@nobody").ping()
    fleet = client.target("1.3").ping(wait_offline=True)
    assert fleet.wait(0.2).missing == [(1, 3)]
    fake.arrive(1, 3)
    assert fleet.wait(5).ok


def test_batches_and_failures(client: Client, fake: Fake) -> None:
    for nid in range(10, 20):
        fake.add(5, nid, ["many"])
    fleet = client.target("@many").execute("false", batch="10%", max_failures=2).wait()
    assert fleet.returned == 3 and len(fleet.skipped) == 7
    fleet = client.target("@many").execute("echo", batch=4).wait()
    assert fleet.returned == 10 and not fleet.skipped


def test_many_lists(client: Client, fake: Fake) -> None:
    for nid in range(1, 201):
        fake.add(8, nid, ["x"])
    fleet = client.target("8.*", exclude="8.7").ping().wait(20)
    assert fleet.returned == 199 and fleet.ok


def test_cancel(client: Client, fake: Fake) -> None:
    fake.add(1, 3, [], age=500)
    job = client.execute(1, 3, "echo")
    wait_until(lambda: ((job.id, (1, 3)) in fake.queued))
    assert client.cancel(job.id) == {(1, 3): ""}
    assert not job.cancel()
    assert job.wait(5).state == "KILLED"


def test_run_script(client: Client, fake: Fake, raw: Any, tmp_path: Any) -> None:
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


def test_functions_that_cannot_travel(client: Client) -> None:
    there = 5

    def closure() -> int:
        return there

    def outside() -> object:
        return threading.current_thread()

    for bad, why in ((closure, "there"), (outside, "threading"), (lambda: 1, "def"), (len, "def")):
        with pytest.raises(UsageError, match=why):
            client.run_script("1.1", function=bad)


def test_put(client: Client, fake: Fake) -> None:
    client.put("@web", b"\x00\xff", "/etc/x", mode="0600").wait().raise_for_status()
    assert fake.files[((1, 2), "/etc/x")] == b"\x00\xff"
    assert fake.seen[-1]["args"]["mode"] == "0600"
    with pytest.raises(UsageError, match="octal"):
        client.put("@web", b"", "/x", mode="rw")
    with pytest.raises(UsageError, match="cannot read"):
        client.put("@web", "/no/such/file", "/x")


def test_logs(client: Client, fake: Fake) -> None:
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


def test_stats_jobs_events_audit(client: Client, fake: Fake, raw: Any) -> None:
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


def test_results_by_level(client: Client, fake: Fake) -> None:
    for level, data, value in (
        (20, '{"a": 1}', {"a": 1}), (21, "a: [1, 2]", {"a": [1, 2]}), (22, "a = 1", {"a": 1}), (23, "x", "x"),
    ):
        fake.programs["give"] = lambda n, c, level=level, data=data: {"level": level, "data": data}
        assert client.execute(1, 1, "give").wait().value == value
    fake.programs["give"] = lambda n, c: {"level": 20, "data": "{"}
    with pytest.raises(ResultDecodeError, match="level 20"):
        client.execute(1, 1, "give").wait().value


def test_bad_arguments(client: Client) -> None:
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
        (lambda: client.target("1.x"), "is no target"),
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


def test_no_controller(server: Server) -> None:
    client = Client(server.url)
    with pytest.raises(NoControllerError, match="start jsacc"):
        client.execute(1, 1, "echo")
    fake = Fake(server.socket)
    fake.beat(age=60)
    with pytest.raises(NoControllerError, match="60s ago"):
        client.execute(1, 1, "echo")
    assert not redis.Redis(unix_socket_path=server.socket).exists("cmds_queue")
    client.close()


def test_no_redis() -> None:
    with pytest.raises(RedisUnavailableError, match="cannot reach Redis at localhost:1: connection refused"):
        Client("redis://:secret@localhost:1").nodes()


def test_wrong_password() -> None:
    server = Server("--requirepass", "right")
    try:
        with pytest.raises(RedisUnavailableError, match="refuses these credentials") as e:
            Client(f"{server.url}?password=wrong").nodes()
        assert "wrong" not in str(e.value).split("(")[0]
        with pytest.raises(RedisUnavailableError, match="refuses these credentials"):
            Client(server.url).nodes()
        assert Client(f"{server.url}?password=right").nodes() == []
    finally:
        server.close()


def test_redis_restarts_under_a_wait() -> None:
    server = Server("--appendonly", "yes")
    fake = Fake(server.socket)
    fake.add(1, 1, [])
    fake.start()
    try:
        client = Client(server.url)
        job = client.execute(1, 1, "sleep", ["9"])
        wait_until(lambda: job.state == "RUNNING")
        got = []
        thread = threading.Thread(target=lambda: got.append(job.wait(20).state))
        thread.start()
        server.stop()
        server.start()
        job.kill(10)
        thread.join()
        assert got == ["KILLED"]
        for nid in range(2, 12):
            fake.add(1, nid, [])
        fleet = client.target("1.*").execute("echo", batch=1)
        for number, _ in enumerate(fleet.stream(20)):
            if number == 3:
                server.stop()
                threading.Timer(0.2, server.start).start()
        assert fleet.ok and fleet.returned == 11
        client.close()
    finally:
        fake.stop()
        server.close()


def test_a_job_that_was_never_sent_has_no_state(client: Client, fake: Fake) -> None:
    with pytest.raises(JobNotFoundError, match="it was never sent, or is older than a day"):
        client.job("never-sent").state
    fake.deaf.add((1, 1))
    job = client.execute(1, 1, "uname")
    assert job.state in ("QUEUED", "RUNNING")


def test_an_answer_that_does_not_come_in_time_leaves_no_command_behind(client: Client, fake: Fake) -> None:
    fake.absent.add((1, 1))
    with pytest.raises(WaitTimeoutError, match="it was withdrawn"):
        client.killall(1, 1, timeout=0.3)
    assert not fake.queued


def test_a_ping_of_a_node_that_is_not_there_ends_soon(
    client: Client, fake: Fake, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jsclient.node_commands.PRESENCE_CHECK_SECONDS", 0.2)
    fake.add(1, 5, [], age=300)
    fake.absent.add((1, 1))
    raw.hset("jsacc:agent:1:1", "stopped", str(int(time.time() * 1000) + 1000))
    for gid, nid, why in ((1, 1, "stopped"), (1, 5, "was last seen"), (8, 8, "never seen")):
        with pytest.raises(NoMatchingNodesError, match=why):
            client.ping(gid, nid, timeout=None)
    assert not fake.queued
    fake.deaf.add((1, 2))
    with pytest.raises(WaitTimeoutError):
        client.ping(1, 2, timeout=0.5)


def test_restart_returns_when_the_agent_is_back(client: Client, fake: Fake) -> None:
    assert client.restart(1, 1).ok and client.target("@web").restart().wait().ok
    fake.lost.add((1, 1))
    with pytest.raises(JobFailedError, match="nothing started it again within 1.5 s"):
        client.restart(1, 1, timeout=1.5)


class OldRedis(threading.Thread):
    """Answers as an older Redis does, from a table of commands."""

    def __init__(self, answers: Dict[str, bytes]) -> None:
        super().__init__(daemon=True)
        self.answers = answers
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self.listener.getsockname()[1]}"
        self.start()

    def run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as lines:
                while head := lines.readline():
                    words = []
                    for _ in range(int(head[1:])):
                        lines.readline()
                        words.append(lines.readline().strip().decode())
                    unknown = b"-ERR unknown command '%s'\r\n" % words[0].encode()
                    connection.sendall(self.answers.get(words[0].upper(), unknown))

    def __enter__(self) -> OldRedis:
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


NOW = b"*2\r\n$10\r\n1766385000\r\n$1\r\n0\r\n"
BEAT = b"*2\r\n$2\r\nac\r\n$13\r\n1766385000000\r\n"


@pytest.mark.parametrize("answers,told", [
    ({"INFO": b"$39\r\n# Server\r\nredis_version:5.0.14\r\nos:x\r\n..\r\n"}, "is 5.0.14; 6.0.6 or newer is needed"),
    ({"INFO": b"-NOPERM no\r\n", "BRPOP": b"-ERR timeout is not an integer or out of range\r\n", "LPUSH": b":1\r\n"},
     "is older than 6.0; 6.0.6 or newer is needed"),
    ({"HELLO": b"*4\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$6\r\n4.0.14\r\n"},
     "is 4.0.14; 6.0.6 or newer is needed"),
])
def test_a_redis_that_is_too_old_is_told_in_one_sentence(answers: Dict[str, bytes], told: str) -> None:
    with OldRedis({"TIME": NOW, "ZREVRANGE": BEAT, **answers}) as old, Client(old.url) as client:
        with pytest.raises(RedisUnavailableError, match=told):
            client.execute(1, 1, "uname").wait(5)


def test_a_user_that_may_not_ask_for_the_version_is_served(client: Client, fake: Fake, server: Server, raw: Any) -> None:
    raw.execute_command("ACL", "SETUSER", "few", "on", ">pw", "~*", "+@all", "-hello", "-info")
    try:
        with Client(server.url.replace("unix://", "unix://few:pw@")) as few:
            assert few.execute(1, 1, "uname").wait(10).ok and few.connection.version_known
    finally:
        raw.execute_command("ACL", "DELUSER", "few")
