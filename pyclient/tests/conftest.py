"""Fixtures: a private redis-server, empty for each test, and a fake controller with nodes in a thread."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, Iterator, List, NamedTuple

import pytest
import redis

from jsclient import Client

sys.path.insert(0, str(Path(__file__).parent))
from fake import Fake  # noqa: E402


def wait_until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for a condition; fail after a timeout."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.01)


def end(children: List[subprocess.Popen[bytes]]) -> None:
    """End these processes, the last one first; kill those that do not exit."""
    for child in reversed(children):
        child.terminate()
    for child in children:
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


class Server:
    """A private redis-server on a Unix socket."""

    def __init__(self, *options: str) -> None:
        binary = shutil.which("redis-server")
        if binary is None:
            pytest.skip("redis-server is not installed")
        self.folder = tempfile.mkdtemp(prefix="jsclient-")
        self.socket = os.path.join(self.folder, "redis.sock")
        self.url = f"unix://{self.socket}"
        self._command = [binary, "--port", "0", "--unixsocket", self.socket, "--dir", self.folder, "--save", "",
                         "--daemonize", "no", "--loglevel", "warning", *options]
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        raw = redis.Redis(unix_socket_path=self.socket)

        def answers() -> bool:
            try:
                return bool(raw.ping())
            except (redis.AuthenticationError, redis.ResponseError):
                return True  # it wants a password
            except redis.ConnectionError:
                return False

        wait_until(answers)
        raw.close()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def shared_server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def server(shared_server: Server) -> Server:
    redis.Redis(unix_socket_path=shared_server.socket).flushall()
    return shared_server


@pytest.fixture
def raw(server: Server) -> Iterator[redis.Redis]:
    """Return a redis-py client, for assertions without jsclient."""
    connection = redis.Redis(unix_socket_path=server.socket, decode_responses=True)
    yield connection
    connection.close()


@pytest.fixture
def fake(server: Server) -> Iterator[Fake]:
    """Run a fake controller with the live nodes 1.1 (web), 1.2 (web, db), 2.1 (db)."""
    controller = Fake(server.socket)
    controller.add(1, 1, ["web"])
    controller.add(1, 2, ["web", "db"])
    controller.add(2, 1, ["db"])
    controller.start()
    yield controller
    controller.stop()


@pytest.fixture
def client(server: Server, fake: Fake) -> Iterator[Client]:
    with Client(server.url, timeout=10, by="tester") as it:
        yield it


@pytest.fixture(autouse=True)
def short_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten blocking reads, since many tests wait for the reads between them."""
    monkeypatch.setattr("jsclient._connection.BLOCKING_READ_SECONDS", 0.2)
    monkeypatch.setattr("jsclient._timeouts.BLOCKING_READ_SECONDS", 0.2)
    monkeypatch.setattr("jsclient._collector.HASH_CHECK_INTERVAL_SECONDS", 0.2)


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def jsctl(server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Return a function that runs a command line in this process, which is faster than a new one."""
    from jsclient.cli.main import main

    monkeypatch.setenv("JSCTL_REDIS", server.url)

    def run(*words: str) -> Ran:
        capsys.readouterr()
        code = main(list(words))
        out, err = capsys.readouterr()
        return Ran(code, out, err)

    return run


__all__: List[str] = ["Server", "wait_until"]
