"""exec -i, exec -t and shell with real nodes; skipped without the programs."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from pathlib import Path
from typing import Any, Callable

import pytest

from conftest import Ran, wait_until
from jsclient.cli.terminal import Escape
from test_real import BIN, Deployment, deployment, jsctl  # noqa: F401  # fixtures
from test_streams import JSCTL, Terminal, environment

pytestmark = pytest.mark.skipif(BIN is None, reason="jsacc and jsagent are not built")
Jsctl = Callable[..., Ran]


@pytest.mark.parametrize("typed,sent,ends", [
    (b"ls\r", b"ls\r", False), (b"~.", b"", True), (b"a~.", b"a~.", False), (b"a\r~.b", b"a\r", True),
    (b"a\n~.", b"a\n", True), (b"~~.", b"~.", False), (b"~x", b"~x", False), (b"~\r~.", b"~\r", True),
])
def test_escape_at_the_start_of_a_line_ends_the_connection(typed: bytes, sent: bytes, ends: bool) -> None:
    assert Escape().take(typed) == (sent, ends)
    escape, found = Escape(), b""
    for at in range(len(typed)):
        out, over = escape.take(typed[at : at + 1])
        found += out
        if over:
            break
    assert (found, over) == (sent, ends), "however it is split"


def run(deployment: Deployment, *words: str, data: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run([*JSCTL, *words], env=environment(deployment.server), input=data, capture_output=True, timeout=120)


def test_stdin_is_passed_on_to_its_end(deployment: Deployment) -> None:
    data = os.urandom(3_000_000)
    ran = run(deployment, "exec", "-i", "1.1", "--", "cat", data=data)
    assert (ran.returncode, ran.stdout == data, ran.stderr) == (0, True, b"")
    ran = run(deployment, "exec", "1.1", "-i", "--shell", "--", "sha256sum | cut -c 1-64; exit 3", data=data)
    assert ran.returncode == 3 and ran.stdout.decode().strip() == hashlib.sha256(data).hexdigest()
    assert run(deployment, "exec", "-i", "1.1", "--", "cat").stdout == b""


def test_program_that_reads_no_more_ends_the_input(deployment: Deployment) -> None:
    ran = run(deployment, "exec", "-i", "1.1", "--", "head", "-c", "5", data=b"x" * 3_000_000)
    assert (ran.returncode, ran.stdout) == (0, b"xxxxx")


@pytest.mark.parametrize("words,code,err", [
    (["exec", "-i", "@web", "--", "cat"], 2, "this is for one node"),
    (["exec", "-i", "1.1", "--detach", "--", "cat"], 2, "--detach"),
    (["exec", "-i", "1.1", "--every", "5", "--", "cat"], 2, "--every"),
    (["exec", "-i", "1.9", "--", "cat"], 3, "1.9"),
    (["shell", "all"], 2, "this is for one node"),
    (["exec", "-i", "1.1", "--", "no-such-program"], 127, "program not found"),
])
def test_wrong_use_is_told(deployment: Deployment, words: Any, code: int, err: str) -> None:
    ran = run(deployment, *words)
    assert ran.returncode == code and err in ran.stderr.decode() and not ran.stdout, ran


def test_shell_is_a_terminal(deployment: Deployment) -> None:
    with Terminal(deployment.server, "shell", "1.1", "--", "sh") as it:
        os.write(it.master, b"PS1='%'; stty size; tty; trap 'echo caught' INT; sleep 300\r")
        it.see(rb"/dev/pts/\d+\r\n")
        os.write(it.master, b"\x03")
        it.see(rb"caught\r\n")
        os.write(it.master, b"exit 7\r")
        assert it.ended() == 7, it.seen
        it.assert_restored()


def test_shell_follows_the_size_of_the_terminal(deployment: Deployment) -> None:
    with Terminal(deployment.server, "shell", "1.1", "--", "sh", "-c",
                  "trap 'stty size' WINCH; echo begun; while :; do sleep 0.1; done") as it:
        it.see(rb"begun")
        import termios

        termios.tcsetwinsize(it.slave, (33, 77)) if hasattr(termios, "tcsetwinsize") else resize(it.slave, 33, 77)
        it.see(rb"33 77")
        os.write(it.master, b"\r~.")
        assert it.ended() == 1
        it.assert_restored()


def resize(fd: int, rows: int, columns: int) -> None:
    import fcntl
    import struct
    import termios

    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


@pytest.mark.parametrize("end", ["~.", "TERM", "HUP"])
def test_shell_ends_with_its_client(deployment: Deployment, end: str) -> None:
    mark = deployment.folder / f"shell-{end}"
    with Terminal(deployment.server, "shell", "1.1", "--", "sh", "-c", f"echo $$ > {mark}; sleep 300") as it:
        wait_until(lambda: mark.exists() and mark.read_text().strip(), 30)
        pid = int(mark.read_text())
        if end == "~.":
            os.write(it.master, b"\r~.")
        else:
            it.child.send_signal(getattr(signal, f"SIG{end}"))
        assert it.ended() == (1 if end == "~." else 128 + getattr(signal, f"SIG{end}"))
        it.assert_restored()
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), 60)


def test_login_shell_starts_at_home(deployment: Deployment) -> None:
    with Terminal(deployment.server, "shell", "1.1") as it:
        os.write(it.master, b"echo a$((1+1))b; pwd; exit\r")
        it.see(rb"a2b")
        assert it.ended() == 0, it.seen


def test_python_reads_and_writes_a_shell(deployment: Deployment) -> None:
    shell = deployment.client.open_shell(1, 1, "sh", rows=20, columns=40)
    shell.stdin.write(b"stty -echo; PS1=; stty size\n")
    output = b""
    for chunk in shell:
        output += chunk.data
        if b"20 40" in output and not output.endswith(b"done\r\n"):
            shell.resize(21, 41)
            shell.stdin.write(b"stty size; echo done; exit 4\n")
            output = b""
    assert b"21 41\r\ndone\r\n" in output
    assert shell.job.wait(20).code == 4
