"""Error sentences when Redis refuses a connection, is too old, or does not know a job."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from typing import Any, Callable, Iterator, List

import pytest
from conftest import Ran, Server, wait_until
from fake import Fake
from test_client_errors import BEAT, NOW, OldRedis
from test_jsctl_output import start

from jsclient import Client, JobNotFoundError
from jsclient.cli.main import main

Jsctl = Callable[..., Ran]

LOOKS = [["nodes"], ["nodes", "--json"], ["jobs"], ["job", "x"], ["events"], ["audit"], ["rejected"], ["stats", "1.1"],
         ["script", "list"], ["ping", "1.1"], ["logs", "1.1"], ["top", "--once"], ["wait", "x"], ["cancel", "x"]]


@pytest.mark.parametrize("words", LOOKS, ids=" ".join)
def test_old_redis_fails_every_command(words: List[str], capsys: pytest.CaptureFixture[str]) -> None:
    version = b"$39\r\n# Server\r\nredis_version:5.0.14\r\nos:x\r\n..\r\n"
    empty = {name: b"*0\r\n" for name in ("ZRANGE", "LRANGE", "HGETALL", "SCAN")}
    with OldRedis({"TIME": NOW, "ZREVRANGE": BEAT, "INFO": version, "EXISTS": b":0\r\n", **empty}) as old:
        assert main(["--redis", old.url, *words]) == 1
    out, err = capsys.readouterr()
    assert err.count("5.0.14; 6.0.6 or newer is needed") == 1 and (not out or "6.0.6" in out), (out, err)


DENIED = ("DENIED Redis is running in protected mode because protected mode is enabled and no password is set for the "
          "default user. In this mode connections are only accepted from the loopback interface. ")


@contextlib.contextmanager
def refusing(line: str, path: str = "") -> Iterator[str]:
    """A server that takes no connection: it sends a line and closes."""
    if path:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
    else:
        listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.sendall(f"{line}\r\n".encode())

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"unix://{path}" if path else f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@pytest.mark.parametrize("words", [["nodes"], ["ping", "1.1"], ["audit"], ["exec", "1.1", "--", "x"]], ids=" ".join)
def test_server_that_takes_no_connection_is_quoted(words: List[str], capsys: pytest.CaptureFixture[str]) -> None:
    with refusing("-" + DENIED + "If you want to connect from external computers " * 20) as url:
        assert main(["--redis", url, *words]) == 1
    err = capsys.readouterr().err
    assert "takes no connection: DENIED Redis is running in protected mode" in err and "If you want" not in err
    assert "reset" not in err and "pipe" not in err and len(err.splitlines()) == 1


def test_too_many_clients_on_a_unix_socket_is_quoted(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with refusing("-ERR max number of clients reached", str(tmp_path / "redis sock")) as url:
        assert main(["--redis", url.replace(" ", "%20"), "nodes"]) == 1
    err = capsys.readouterr().err
    assert "max number of clients reached" in err and "closed" not in err and len(err.splitlines()) == 1


def test_server_that_is_no_redis_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with refusing("HTTP/1.1 400 Bad Request") as url:
        assert main(["--redis", url, "nodes"]) == 1
    assert "this is no Redis; check host and port" in capsys.readouterr().err


def test_key_of_another_type_and_missing_database_get_advice(
    server: Server, raw: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    raw.set("jsacc:agents", "x")
    assert main(["--redis", server.url, "nodes"]) == 1
    assert "another program may use this database; delete or rename that key" in capsys.readouterr().err
    assert main(["--redis", server.url + "?db=99", "nodes"]) == 1
    assert "check the number behind the / of the address" in capsys.readouterr().err


def test_outage_of_redis_is_reported_once_while_a_result_is_missing() -> None:
    own = Server()
    fake = Fake(own.socket)
    fake.add(1, 1, [])
    fake.start()
    child = start(own, "exec", "1.1", "--timeout", "5", "--", "sleep", "9")
    try:
        wait_until(lambda: fake.running, 30)
        own.stop()
        out, err = child.communicate(timeout=60)
    finally:
        child.kill()
        own.start()
        fake.stop()
        own.close()
    assert child.returncode == 1 and err.count("; still waiting\n") == 1
    assert err.startswith(f"jsctl: cannot reach Redis at {own.socket}: ")


def test_interrupt_during_the_imports_shows_no_traceback() -> None:
    source = """
import sys
class Interrupt:
    def find_spec(self, name, *_):
        if name == "jsclient.cli.main":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
from jsclient.cli import entry
sys.exit(entry())
"""
    ran = subprocess.run([sys.executable, "-c", source], capture_output=True, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, b"", b"")


def test_wait_for_an_unknown_job_fails_at_once(client: Client, fake: Fake) -> None:
    # Without the check a wait would never end.
    client.timeout = None
    job = client.job("never-sent")
    for ask in (lambda: job.value, lambda: job.wait(), lambda: job.result, lambda: list(job.results()), lambda: job.stdout):
        with pytest.raises(JobNotFoundError, match="no job never-sent: it was never sent, or is older than a day"):
            ask()


def test_job_in_the_queue_is_waited_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jsclient.job.UNKNOWN_JOB_TIMEOUT_SECONDS", 0.05)
    fake = Fake(server.socket)
    fake.add(1, 1, [])
    fake.beat()
    with Client(server.url, timeout=60) as sender, Client(server.url, timeout=60) as waiter:
        sender.execute(1, 1, "echo", ["hi"], id="of-somebody-else")
        looks: List[int] = []
        look = waiter._info
        monkeypatch.setattr(waiter, "_info", lambda job_id: looks.append(1) or look(job_id))
        got: List[str] = []
        thread = threading.Thread(target=lambda: got.append(waiter.job("of-somebody-else").wait().stdout))
        thread.start()
        wait_until(lambda: len(looks) > 3, 60)
        fake.start()
        try:
            thread.join(60)
        finally:
            fake.stop()
    assert got == ["hi"]


@pytest.mark.parametrize("words", [["put", "1.1", "-", "/x"], ["script", "run", "1.1", "-", "--lang", "py"]], ids=" ".join)
def test_dash_reads_standard_input(server: Server, fake: Fake, tmp_path: Any, words: List[str]) -> None:
    from test_streams import run

    source = tmp_path / "source"
    source.write_bytes(b"def action():\n    return 1\n")
    ran = run(server, *words, redirect=f"<{source}")
    assert ran.returncode == 0, ran
    if words[0] == "put":
        assert fake.files[((1, 1), "/x")] == source.read_bytes()
    assert run(server, *words, redirect="<&-").returncode == 2


def test_script_on_standard_input_requires_its_language(jsctl: Jsctl, fake: Fake) -> None:
    assert "--lang py or --lang lua" in jsctl("script", "run", "1.1", "-").err
    ran = jsctl("script", "run", "1.1", "-", "--lang", "py", "--data", "-")
    assert ran.code == 2 and "not both" in ran.err and not fake.seen
