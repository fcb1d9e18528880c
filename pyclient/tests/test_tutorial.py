"""The commands of README.md and docs/tutorial.md, run against the real programs as scripts/quickstart starts them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

import pytest
from conftest import end, wait_until
from test_real import BIN, ROOT, free_port

from jsclient import Client

pytestmark = [
    pytest.mark.skipif(BIN is None, reason="jsacc and jsagent are not built"),
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed"),
]
ID = re.compile(r"\b[0-9a-f]{32}\b")
#: Lines of an output that differ on each machine: its name, its load, a path.
OWN = re.compile(r" vm |load average|…|WARN")


class Checkout:
    """A folder with what scripts/quickstart leaves in a checkout."""

    def __init__(self) -> None:
        assert BIN
        self.folder = Path(tempfile.mkdtemp(prefix="js-tutorial-"))
        self.children: List[subprocess.Popen[bytes]] = []
        home = self.folder / ".quickstart"
        home.mkdir()
        (self.folder / "target").mkdir()
        (self.folder / "target" / "release").symlink_to(BIN)
        tools = self.folder / ".venv" / "bin"
        tools.mkdir(parents=True)
        for name, words in (("jsctl", "-m jsclient.cli"), ("python", "")):
            (tools / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {words} "$@"\n')
            (tools / name).chmod(0o755)
        url, port = f"unix://{home}/redis.sock", str(free_port())
        (home / "port").write_text(port)
        self.start("redis-server", "--port", "0", "--unixsocket", f"{home}/redis.sock", "--dir", str(home), "--save", "")
        wait_until(lambda: (home / "redis.sock").exists())
        state = ["-r", url, "--state-dir", str(home / "state")]
        self.start(str(BIN / "jsacc"), "-p", port, "-b", "127.0.0.1", *state)
        wait_until(lambda: (home / "state" / "server.pem").exists())
        enroll = [str(BIN / "jsacc"), "enroll", "1", "1", "--url", f"https://127.0.0.1:{port}", "--out", str(home / "agent")]
        subprocess.run([*enroll, *state], check=True, capture_output=True, timeout=30)
        self.start(str(BIN / "jsagent"), "-c", f"{home}/agent/agent.toml", "--data-dir", f"{home}/agent/data")
        with Client(url) as client:
            wait_until(lambda: any(node.state == "live" for node in client.nodes()))

    def start(self, *words: str) -> None:
        with open(self.folder / "log", "ab") as log:
            self.children.append(subprocess.Popen(words, stdout=log, stderr=log, cwd=self.folder))

    def close(self) -> None:
        end(self.children)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def checkout() -> Iterator[Checkout]:
    it = Checkout()
    yield it
    it.close()


def steps(page: Path) -> List[Tuple[str, List[str]]]:
    """Every command of a page with the lines of its output; a file that the page shows is written."""
    found: List[Tuple[str, List[str]]] = []
    for language, block in re.findall(r"^```(console|python)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        if language == "python":
            head = ".venv/bin/python -" if "from jsclient" in block else "cat >disk.py"
            found.append((f"{head} <<'END'\n{block}END", []))
            continue
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return found


#: Words of `date`, which are others each day.
DAY = re.compile(r"\b(Mon|Tue|Wed|Thu|Fri|Sat|Sun) (Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)\b")


def plain(line: str) -> str:
    return " ".join(re.sub(r"\d+", "0", DAY.sub("Day Month", ID.sub("id", line))).split())


@pytest.mark.parametrize("name", ["README.md", "docs/tutorial.md"])
def test_commands_of_the_page_do_what_it_shows(checkout: Checkout, name: str) -> None:
    shell = subprocess.Popen(["bash"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             cwd=checkout.folder, text=True, env={**os.environ, "PYTHONPATH": str(ROOT / "pyclient")})
    assert shell.stdin and shell.stdout
    known: Dict[str, str] = {}

    def ask(command: str) -> Tuple[int, List[str]]:
        shell.stdin.write(f"{command}\nSTATUS=$?; jobs >/dev/null; echo; echo \"END $STATUS\"\n")  # type: ignore[union-attr]
        shell.stdin.flush()  # type: ignore[union-attr]
        lines: List[str] = []
        for line in shell.stdout:  # type: ignore[union-attr]
            if line.startswith("END "):
                return int(line.split()[1]), lines
            lines.append(line.rstrip("\n"))
        raise AssertionError(f"the shell ended: {lines}")

    try:
        ask("set -m")
        count = 0
        for command, shown in steps(ROOT / name):
            if command.startswith(("scripts/", "echo $?")):
                continue
            if command == "cat disk.py":
                # The page shows the file that the next command sends.
                (checkout.folder / "disk.py").write_text("\n".join(shown) + "\n")
            count += 1
            for old, new in known.items():
                command = command.replace(old[:6], new[:6])
            answer: List[Tuple[int, List[str]]] = []

            def is_as_shown() -> bool:
                status, lines = ask(command)
                answer[:] = [(status, lines)]
                for old, new in zip(ID.findall("\n".join(shown)), ID.findall("\n".join(lines))):
                    known.setdefault(old, new)
                was = {plain(line) for line in lines}
                missing = [line for line in shown if not OWN.search(line) and plain(line) not in was]
                return not missing and status == (1 if command.endswith(" false") else 0)

            # A question is asked until the answer is there; anything else is done once.
            if re.match(r"(jsctl (nodes|ps|logs|schedules)|grep)\b", command):
                try:
                    wait_until(is_as_shown, 60)
                except AssertionError:
                    raise AssertionError(f"{command}: {answer}, and the page shows {shown}") from None
            else:
                assert is_as_shown(), (command, answer, shown)
        assert count > 8
    finally:
        # Not -9: an agent that is asked to end takes its jobs with it.
        ask("kill %?node2 2>/dev/null; wait")
        shell.stdin.close()
        shell.wait(10)
