"""The output of jsctl: folding, summary, top, completion."""

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
import time
from typing import Any, Callable

import pytest
from conftest import Ran, Server, wait_until
from fake import Fake

Jsctl = Callable[..., Ran]


def test_equal_outputs_are_folded(jsctl: Jsctl, fake: Fake) -> None:
    ran = jsctl("exec", "all", "--", "echo", "same")
    assert ran.out.count("same") == 1 and "1.1, 1.2, 2.1 (3)" in ran.out
    assert "3 OK, 0 failed" in ran.err
    ran = jsctl("exec", "all", "--no-fold", "--no-stream", "--", "echo", "same")
    assert ran.out.count("same") == 3 and ran.out.count("== ") == 3
    ran = jsctl("exec", "@web", "--", "whoami")
    assert "== 1.1\n1.1\n" in ran.out and "== 1.2\n1.2\n" in ran.out


def test_summary_names_failed_offline_and_unknown_nodes(jsctl: Jsctl, fake: Fake) -> None:
    fake.add(1, 3, ["web"], age=1000)
    fake.programs["flaky"] = lambda n, c: {"state": "ERROR", "code": 2} if n == (1, 2) else {}
    ran = jsctl("exec", "1.1,1.2,1.3,1.9", "--", "flaky")
    assert ran.code == 1
    last = ran.err.strip().splitlines()[-1]
    assert last == "1 OK, 1 failed (1.2), 1 offline (1.3), 1 never seen (1.9)"
    assert "1.9 was never seen by a controller; nothing is sent to it" in ran.err


def test_top_refreshes_the_alternate_screen(server: Server, fake: Fake) -> None:
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
    # The alternate screen, with the cursor at home before each refresh: nothing scrolls.
    assert seen.startswith(b"\x1b[?1049h") or b"\x1b[?1049h" in seen[:200]
    assert seen.count(b"\x1b[H") >= 3


def start(server: Server, *words: str, **options: Any) -> subprocess.Popen[str]:
    """Start jsctl in a process of its own."""
    environment = {**os.environ, "JSCTL_REDIS": server.url}
    return subprocess.Popen([sys.executable, "-m", "jsclient.cli", *words], env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def test_ctrl_c_reports_running_jobs(server: Server, fake: Fake) -> None:
    fake.deaf.add((1, 1))
    child = start(server, "exec", "@web", "--", "sleep", "9")
    wait_until(lambda: len(fake.running) == 2)
    time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=10)
    assert child.returncode == 130
    assert "still running on 1.1, 1.2; end it with jsctl kill " in err and "jsctl wait " in err


def test_logs_follow_prints_new_records(server: Server, fake: Fake) -> None:
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


def test_completion_offers_commands_nodes_roles_and_flags(jsctl: Jsctl, fake: Fake) -> None:
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
    assert offers("jsctl completion z") == ["zsh"] and offers("jsctl nosuch ") == offers("jsctl completion zsh ") == []
    assert offers("jsctl stats 1.") == offers("jsctl kill 1.") == ["1.*", "1.1", "1.2"]
    for shell in ("bash", "zsh", "fish"):
        assert "jsctl" in jsctl("completion", shell).out


def test_truncated_output_is_reported(jsctl: Jsctl, fake: Fake) -> None:
    tail = "1234567\n" * 999 + "1234567"
    fake.programs["big"] = lambda n, c: {"streams": [tail, "e"], "bytes": [1290000, 2], "truncated": True}
    ran = jsctl("exec", "1.1", "--no-stream", "--", "big")
    job = fake.seen[-1]["id"]
    assert (ran.code, ran.out) == (0, tail + "\n")
    assert ran.err.endswith("jsctl: 1.1: its output is truncated to the last 7999 of 1290000 bytes of stdout; "
                            f"see all of it with jsctl logs 1.1 --job {job}\n")
    ran = jsctl("exec", "1.1,1.2", "--json", "--", "big")
    assert {(i["truncated"], tuple(i["bytes"])) for i in json.loads(ran.out)} == {(True, (1290000, 2))}
    assert ran.err.count("is truncated") == 2 and f"jsctl logs 1.2 --job {fake.seen[-1]['id']}" in ran.err
    fake.programs["big"] = lambda n, c: {"level": 20, "data": "[1, ", "bytes": [9, 0], "truncated": True}
    assert "its output or its data is truncated" in jsctl("exec", "1.1", "--no-stream", "--", "big").err
    fake.programs["big"] = lambda n, c: {"streams": [tail, "e"], "bytes": [8000, 2], "truncated": False}
    assert jsctl("exec", "1.1", "--no-stream", "--", "big").err == "e\n"


@pytest.mark.parametrize("answer,cut", [
    ({"streams": ["x\n" * 999 + "x", ""]}, True), ({"streams": ["", ("x" * 99 + "\n") * 655]}, True),
    ({"streams": ["\u20ac" * 21845, ""]}, True), ({"level": 23, "data": "x" * (1 << 20)}, True),
    ({"streams": ["x\n" * 998 + "x", "x" * 32000]}, False), ({"level": 23, "data": "x" * 9999}, False),
])
def test_output_at_its_limits_of_an_old_agent_may_be_truncated(
    jsctl: Jsctl, fake: Fake, answer: Any, cut: bool
) -> None:
    fake.programs["big"] = lambda n, c: answer
    ran = jsctl("exec", "1.1", "--", "big")
    assert ran.code == 0 and ("its output may be truncated" in ran.err) is cut
    shown = json.loads(jsctl("exec", "1.1", "--ndjson", "--", "big").out)
    assert (shown["bytes"], shown["truncated"]) == (None, cut)


def test_completion_of_a_grid_pattern_offers_no_files(server: Server, fake: Fake, tmp_path: Any) -> None:
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
