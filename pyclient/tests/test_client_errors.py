"""Errors of the client: no controller, no Redis, wrong credentials, timeouts, an old Redis."""

from __future__ import annotations

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
    JobNotFoundError,
    NoControllerError,
    NoMatchingNodesError,
    RedisUnavailableError,
    WaitTimeoutError,
)


def test_without_controller_nothing_is_queued(server: Server) -> None:
    client = Client(server.url)
    with pytest.raises(NoControllerError, match="start jsacc"):
        client.execute(1, 1, "echo")
    fake = Fake(server.socket)
    fake.beat(age=60)
    with pytest.raises(NoControllerError, match="60 s ago"):
        client.execute(1, 1, "echo")
    assert not redis.Redis(unix_socket_path=server.socket).exists("cmds_queue")
    client.close()


def test_unreachable_redis_raises_without_the_password() -> None:
    with pytest.raises(RedisUnavailableError, match="cannot reach Redis at localhost:1: connection refused"):
        Client("redis://:secret@localhost:1").nodes()


def test_wrong_and_missing_password_are_named() -> None:
    server = Server("--requirepass", "right")
    try:
        with pytest.raises(RedisUnavailableError, match="refuses these credentials") as e:
            Client(f"{server.url}?password=wrong").nodes()
        assert "wrong" not in str(e.value).split("(")[0]
        with pytest.raises(RedisUnavailableError, match="asks for a password: give redis://user:password@host:port") as e:
            Client(server.url).nodes()
        assert "HELLO" not in str(e.value)
        assert Client(f"{server.url}?password=right").nodes() == []
    finally:
        server.close()


def test_wait_survives_a_restart_of_redis() -> None:
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


def test_state_of_an_unknown_job_raises_job_not_found(client: Client, fake: Fake) -> None:
    with pytest.raises(JobNotFoundError, match="it was never sent, or is older than a day"):
        client.job("never-sent").state
    fake.deaf.add((1, 1))
    job = client.execute(1, 1, "uname")
    assert job.state in ("QUEUED", "RUNNING")


def test_timeout_of_a_command_withdraws_it(client: Client, fake: Fake) -> None:
    fake.absent.add((1, 1))
    with pytest.raises(WaitTimeoutError, match="it was withdrawn"):
        client.killall(1, 1, timeout=0.3)
    assert not fake.queued


def test_ping_of_an_offline_node_fails_soon(
    client: Client, fake: Fake, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jsclient.node_commands.PRESENCE_CHECK_SECONDS", 0.2)
    fake.add(1, 5, [], age=300)
    fake.absent.add((1, 1))
    raw.hset("jsacc:agent:1:1", "stopped", str(int(time.time() * 1000) + 1000))
    for gid, nid, why in ((1, 1, "stopped"), (1, 5, "is offline .last seen 5 min ago"), (8, 8, "never seen")):
        with pytest.raises(NoMatchingNodesError, match=why):
            client.ping(gid, nid, timeout=None)
    assert not fake.queued
    fake.deaf.add((1, 2))
    with pytest.raises(WaitTimeoutError):
        client.ping(1, 2, timeout=0.5)


class OldRedis(threading.Thread):
    """A server that answers as an older Redis does, from a table of commands."""

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
def test_old_redis_is_refused_with_its_version(answers: Dict[str, bytes], told: str) -> None:
    with OldRedis({"TIME": NOW, "ZREVRANGE": BEAT, **answers}) as old, Client(old.url) as client:
        with pytest.raises(RedisUnavailableError, match=told):
            client.execute(1, 1, "uname").wait(5)


def test_user_without_the_right_for_the_version_is_served(client: Client, fake: Fake, server: Server, raw: Any) -> None:
    raw.execute_command("ACL", "SETUSER", "few", "on", ">pw", "~*", "+@all", "-hello", "-info")
    try:
        with Client(server.url.replace("unix://", "unix://few:pw@")) as few:
            assert few.execute(1, 1, "uname").wait(10).ok and few.connection.version_known
    finally:
        raw.execute_command("ACL", "DELUSER", "few")
