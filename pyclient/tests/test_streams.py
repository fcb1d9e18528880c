"""Closed and full standard streams, other encodings, terminals, and signals while a terminal is drawn on."""

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
from typing import Any, Dict, List

import pytest
from conftest import Server, wait_until
from fake import Fake

from jsclient import clean
from jsclient.cli import top
from jsclient.keys import NodeId

JSCTL = [sys.executable, "-m", "jsclient.cli"]


def environment(server: Server, **more: str) -> Dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON"))}
    return {**kept, "LC_ALL": "C.UTF-8", "JSCTL_REDIS": server.url, **more}


def run(server: Server, *words: "str | bytes", redirect: str = "", **more: str) -> "subprocess.CompletedProcess[bytes]":
    """Run jsctl in a process of its own; a shell closes or redirects its streams."""
    line = ["sh", "-c", f'exec "$@" {redirect}', "sh", *JSCTL, *words]
    return subprocess.run(line, env=environment(server, **more), capture_output=True, timeout=60)


TEXT = "a\u00a0b \u200d \u20ac caf\u00e9\r10%\r20%\t\x1b[31mred\u202e\x9b"


def test_pipe_gets_the_unchanged_output(server: Server, fake: Fake) -> None:
    fake.programs["say"] = lambda n, c: {"streams": [TEXT + "\n\n", "err\r" + TEXT + "\n"]}
    ran = run(server, "exec", "1.1", "--", "say")
    assert (ran.returncode, ran.stdout.decode(), ran.stderr.decode()) == (0, TEXT + "\n\n", "err\r" + TEXT + "\n")
    ran = run(server, "exec", "1.1,1.2", "--", "say")
    assert TEXT in ran.stdout.decode()


def test_clean_replaces_only_control_characters() -> None:
    kept = "a\u00a0b\u200d\U0001f469\u200d\U0001f680\tc\n\u20ac"
    assert clean(kept) == kept
    assert clean("a\r\nb") == "a\nb"
    for control in "\x00\x07\x08\x1b\r\x7f\x80\x9b\u202e\u2066\u200f\u061c":
        assert clean(f"a{control}b") == "a\ufffdb"


@pytest.mark.parametrize("more", [{"LC_ALL": "C", "PYTHONIOENCODING": "latin-1"}, {"PYTHONIOENCODING": "ascii"},
                                  {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
                                  {"PYTHONIOENCODING": "idna"}, {"PYTHONIOENCODING": "undefined"}])
def test_other_encoding_replaces_unencodable_characters(server: Server, fake: Fake, more: Dict[str, str]) -> None:
    fake.programs["say"] = lambda n, c: {"streams": ["caf\u00e9 \u20ac \udce9\n", ""], "level": 20, "data": '"\u20ac"'}
    for words in (["exec", "all", "--", "say"], ["exec", "1.1", "--json", "--", "say"], ["nodes"], ["exec", "--help"]):
        ran = run(server, *words, **more)
        assert ran.returncode == 0 and b"fault" not in ran.stderr and ran.stdout, (words, ran)
    ran = run(server, "exec", "1.1", "--ndjson", "--", "say", **more)
    # UTF-8 replaces an encoding that cannot encode text.
    assert json.loads(ran.stdout)["value"] == "\u20ac"
    assert (b'"value": "\\u20ac"' in ran.stdout) == (more.get("PYTHONIOENCODING") not in ("idna", "undefined"))
    ran = run(server, "ping", "@caf\u00e9", **more)
    assert ran.returncode in (2, 3) and b"fault" not in ran.stderr


@pytest.mark.parametrize("words", [
    [b"ping", b"@caf\xe9"], [b"exec", b"1.1", b"--", b"caf\xe9"], [b"put", b"1.1", b"/caf\xe9", b"/x"], [b"caf\xe9"],
    [b"-r", b"caf\xe9", b"ping"], [b"logs", b"1.1", b"--job", b"caf\xe9"],
])
def test_undecodable_arguments_are_a_usage_error(server: Server, fake: Fake, words: List[bytes]) -> None:
    ran = run(server, *words)
    assert (ran.returncode, ran.stdout) == (2, b"") and b"is not text in this locale" in ran.stderr
    assert not fake.seen


def test_ascii_locale_advice_names_a_utf8_locale(server: Server, fake: Fake) -> None:
    ascii = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for words, more in ((["ping", "@caf\u00e9"], {}), (["ping"], {"JSCTL_REDIS": "caf\u00e9"}),
                        (["exec", "1.1", "--env", "BAD", "--", "echo"], {"BAD": "caf\u00e9"})):
        ran = run(server, *words, **{**ascii, **more})
        assert ran.returncode == 2 and b"locale's encoding, ascii: set a UTF-8 locale, LC_ALL=C.UTF-8" in ran.stderr, ran
        assert b"write it in UTF-8" not in ran.stderr
        assert run(server, *words, **{**ascii, **more, "LC_ALL": "C.UTF-8"}).returncode != 2 or "JSCTL_REDIS" in more
    assert fake.seen[-1]["args"]["env"] == {"BAD": "caf\u00e9"}


def test_undecodable_environment_is_a_usage_error(server: Server, fake: Fake) -> None:
    for words in (["ping"], ["exec", "1.1", "--env", "BAD", "--", "echo"]):
        line = [*JSCTL, *words]
        mine: Dict[bytes, bytes] = {k.encode(): v.encode() for k, v in environment(server).items()}
        mine[b"JSCTL_REDIS" if words == ["ping"] else b"BAD"] = b"caf\xe9"
        ran = subprocess.run(line, env=mine, capture_output=True, timeout=60)
        assert ran.returncode == 2 and b"UTF-8" in ran.stderr and b"fault" not in ran.stderr, ran
    assert not fake.seen


@pytest.mark.parametrize("redirect,reason", [(">&-", b"bad file descriptor"), (">/dev/full", b"no space left on device")])
@pytest.mark.parametrize("words", [
    ["exec", "1.1", "--", "uname"], ["exec", "all", "--json", "--", "uname"], ["exec", "1.1", "--detach", "--", "uname"],
    ["ps", "all"],
    ["schedules", "all"],
])
def test_unwritable_output_reports_the_id(
    server: Server, fake: Fake, redirect: str, reason: bytes, words: List[str]
) -> None:
    ran = run(server, *words, redirect=redirect)
    assert ran.returncode == 1 and b"cannot write to standard output: " + reason in ran.stderr, ran
    sent = fake.seen[-1]["id"][:32].encode()
    assert b"jsctl wait " + sent in ran.stderr and b"Traceback" not in ran.stderr and b"Exception" not in ran.stderr


@pytest.mark.parametrize("words,code", [(["nodes"], 1), (["--help"], 1), (["completion", "bash"], 1), (["exec"], 2),
                                        (["ping", "9.9", "--json"], 3), (["exec", "1.1", "--", "true2"], 1)])
@pytest.mark.parametrize("redirect", [">&-", ">/dev/full", ">&- 2>&-", ">/dev/full 2>/dev/full", ">&- 2>&- <&-"])
def test_closed_and_full_streams_cause_no_traceback(
    server: Server, fake: Fake, words: List[str], code: int, redirect: str
) -> None:
    ran = run(server, *words, redirect=redirect)
    assert ran.returncode == code and b"fault" not in ran.stderr and b"Exception" not in ran.stderr, ran


def test_unused_closed_streams_are_ignored(server: Server, fake: Fake) -> None:
    for redirect in ("2>&-", "2>/dev/full", "<&-", "2>&- <&-"):
        ran = run(server, "exec", "all", "--", "uname", redirect=redirect)
        assert ran.returncode == 0 and b"Linux" in ran.stdout, ran
    ran = run(server, "exec", "1.1", "--data", "-", "--", "cat", redirect="<&-")
    assert ran.returncode == 2 and b"cannot read standard input: bad file descriptor" in ran.stderr
    ran = run(server, "exec", "1.1", "--data", "-", "--", "cat", redirect="</dev/zero")
    assert ran.returncode == 2 and b"standard input has more than 16777216 bytes" in ran.stderr


def test_closed_pipe_reports_only_the_id(server: Server, fake: Fake) -> None:
    fake.programs["say"] = lambda n, c: {"streams": ["x\n" * 900, ""]}
    line = '"$@" | head -n 1'
    ran = subprocess.run(["sh", "-c", line, "sh", *JSCTL, "exec", "all", "--no-fold", "--no-stream", "--", "say"],
                         env=environment(server), capture_output=True, timeout=60)
    assert ran.stdout.startswith(b"== ") and b"fault" not in ran.stderr and b"Exception" not in ran.stderr


def test_put_reads_pipes_and_devices_up_to_16_mib(server: Server, fake: Fake, tmp_path: Any) -> None:
    ran = run(server, "put", "1.1", "/dev/zero", "/x")
    assert ran.returncode == 2 and b"/dev/zero has more than 16777216 bytes" in ran.stderr and not fake.seen
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    writer = subprocess.Popen(["sh", "-c", f"printf content > {pipe}"])
    ran = run(server, "put", "1.1", pipe, "/x")
    assert writer.wait(10) == 0 and ran.returncode == 0 and fake.files[((1, 1), "/x")] == b"content"
    assert run(server, "put", "1.1", str(tmp_path), "/x").returncode == 2


class Terminal:
    """Run jsctl on a pseudo-terminal."""

    def __init__(self, server: Server, *words: str, columns: int = 80, **more: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.child = subprocess.Popen([*JSCTL, *words], env=environment(server, **{"TERM": "xterm", **more}), stdin=slave,
                                      stdout=slave, stderr=slave, start_new_session=True)
        self.seen = b""

    def read(self) -> bytes:
        if select.select([self.master], [], [], 0.05)[0]:
            self.seen += os.read(self.master, 65536)
        return self.seen

    def see(self, pattern: bytes, times: int = 1) -> None:
        wait_until(lambda: len(re.findall(pattern, self.read())) >= times, 30)

    def ended(self) -> int:
        wait_until(lambda: (self.read(), self.child.poll() is not None)[1], 30)
        while select.select([self.master], [], [], 0.05)[0]:
            self.seen += os.read(self.master, 65536)
        return self.child.returncode

    def assert_restored(self) -> None:
        for on, off in ((b"\x1b[?25l", b"\x1b[?25h"), (b"\x1b[?1049h", b"\x1b[?1049l")):
            assert self.seen.rfind(off) > self.seen.rfind(on) or on not in self.seen, self.seen[-300:]
        assert termios.tcgetattr(self.slave) == self.before

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.kill()
        self.child.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGINT])
def test_signal_during_the_progress_bar_restores_the_terminal(server: Server, fake: Fake, number: int) -> None:
    with Terminal(server, "exec", "@web", "--fold", "--", "sleep", "9") as it:
        it.see(rb"\x1b\[\?25l")
        wait_until(lambda: len(fake.running) == 2)
        it.child.send_signal(number)
        assert it.ended() == 128 + number, it.seen
        it.assert_restored()
        assert b"jsctl wait " + fake.seen[-1]["id"].encode() in it.seen


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_signal_during_top_restores_the_terminal(server: Server, fake: Fake, number: int) -> None:
    with Terminal(server, "top", "--interval", "0.2") as it:
        it.see(rb"3 nodes, \d+ jobs", 2)
        it.child.send_signal(number)
        assert it.ended() == 128 + number
        it.assert_restored()


@pytest.mark.parametrize("interval", ["0.2", "1000"])
def test_q_ends_top(server: Server, fake: Fake, interval: str) -> None:
    with Terminal(server, "top", "--interval", interval) as it:
        it.see(rb"3 nodes, \d+ jobs")
        os.write(it.master, b"q")
        assert it.ended() == 0
        it.assert_restored()


@pytest.mark.parametrize("term", ["dumb", ""])
def test_top_on_a_dumb_terminal_prints_each_round(server: Server, fake: Fake, term: str) -> None:
    with Terminal(server, "top", "--interval", "0.1", TERM=term) as it:
        it.see(rb"3 nodes, \d+ jobs\r\nNODE .*CPU%", 3)
        assert b"\x1b" not in it.seen
        os.write(it.master, b"q")
        assert it.ended() == 0


def test_narrow_top_keeps_the_sort_column(server: Server, fake: Fake) -> None:
    entry = {"id": "f" * 32, "cmd": "execute", "domain": "a-domain", "name": "a-name", "pid": 4194304, "state": "running",
             "cpu": 12.5, "rss": 1 << 30, "processes": 12, "starttime": 5, "restarts": 3}
    rows = [top._row(NodeId(10, 1000), entry, "x" * 40)]
    for width in (200, 120, 100, 80, 60, 40, 20, 5):
        lines = top.fit(rows, width).splitlines()
        assert "CPU%" in lines[0] and "12.5" in lines[1], width
        assert width < 20 or max(map(len, lines)) <= width
    assert top.fit(rows, 200).split()[:12] == list(top.HEADER)
    assert "JOB" in top.fit(rows, 80) and "RSS" in top.fit(rows, 80) and "RESTARTS" not in top.fit(rows, 80)
    with Terminal(server, "top", "--interval", "0.2", columns=80) as it:
        it.see(rb"CPU%")


def test_terminal_output_has_no_control_characters(server: Server, fake: Fake) -> None:
    fake.programs["say"] = lambda n, c: {"streams": ["\x1b]0;x\x07\u009b31m\u202e\u00a0ok\n", "\x1b[2J\n"], "state": "ERROR",
                                         "critical": "\x1b[1m"}
    for words in (["exec", "1.1", "--", "say"], ["exec", "1.1,1.2", "--fold", "--no-progress", "--", "say"],
                  ["exec", "1.1,1.2", "--", "say"], ["exec", "1.1", "--json", "--no-progress", "--", "say"]):
        with Terminal(server, *words) as it:
            assert it.ended() == 1
            # The color of a node's name is jsctl's own.
            text = re.sub(r"^\x1b\[[0-9]{2}m(1\.[12])\x1b\[0m ", r"\1 ", it.seen.decode(), flags=re.MULTILINE)
            assert not any(c in text for c in "\x1b\x07\u009b\u202e") and "\u00a0ok" in text, text


def test_folded_lines_never_begin_with_text_of_a_node(server: Server, fake: Fake, raw: Any) -> None:
    fillers = ["x" * 70, "x" * 78, "x" * 79, "\u4e2d" * 39, "\u4e2d" * 40, "\u0301" * 80, "\t" * 10, "e\u0301" * 40]
    output = "\n".join(filler + "== 1.2 (2)" * 9 for filler in fillers)
    fake.programs["say"] = lambda n, c: {"streams": [output, ""]}
    raw.hset("jsacc:agent:1:1", mapping={"hostname": "x" * 60 + "2.1  live  0s"})
    fake.record(1, 1, 1, "y" * 52 + "2.1  live  0s" * 40)
    for words in (["exec", "1.1,1.2", "--", "say"], ["nodes"], ["logs", "1.1"]):
        for columns in (80, 40, 33):
            with Terminal(server, *words, columns=columns) as it:
                it.ended()
                text = re.sub(r"\x1b\[\?25[lh]|\x1b\[[0-9;]*m|\x1b\[1?[AK]|\x1b\[2K", "", it.seen.decode())
            for line in (line.split("\r")[-1] for line in text.replace("\r\n", "\n").split("\n")):
                # Nothing is left for the terminal to wrap, but for the last line's counts.
                wide = sum(2 if "\u1100" <= c else 1 for c in line)
                assert wide <= columns or "failed" in line or "OK" in line or "live," in line, (columns, line)
                assert not re.match(r"2\.1  live  0s", line), text


def test_in_a_pipe_only_lines_like_headings_change(server: Server, fake: Fake) -> None:
    text = "a == b\n== 1.2 (2)\n  ==\n\tx\r== 1.1\n=\n"
    fake.programs["say"] = lambda n, c: {"streams": [text, ""]}
    ran = run(server, "exec", "1.1,1.2", "--", "say")
    assert ran.stdout.decode() == "== 1.1, 1.2 (2)\na == b\n == 1.2 (2)\n   ==\n\tx\r == 1.1\n=\n"
    ran = run(server, "exec", "1.1", "--", "say")
    assert ran.stdout.decode() == text
