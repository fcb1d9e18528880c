"""Completion in the shells themselves."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Dict, List

import pytest
from conftest import Server
from fake import Fake

JSCTL = Path(sys.executable).with_name("jsctl")
pytestmark = pytest.mark.skipif(not JSCTL.exists(), reason="jsctl is not installed beside this Python")


def need(shell: str) -> str:
    found = shutil.which(shell)
    if found is None:
        # Loudly: what nobody runs breaks unseen.
        warnings.warn(f"{shell} is not installed (apt-get install {shell}): its completion is not tested", stacklevel=2)
        pytest.skip(f"{shell} is not installed")
    return found


def environment(server: Server, home: Path) -> Dict[str, str]:
    path = f"{JSCTL.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {"PATH": path, "JSCTL_REDIS": server.url, "HOME": str(home), "TERM": "dumb", "LANG": "C.UTF-8"}


LINES = [
    ("jsctl ex", ["exec"]),
    ("jsctl exec 1.", ["1.*", "1.1", "1.2"]),
    ("jsctl exec @w", ["@web"]),
    ("jsctl exec 1.1,1", ["1.1,1.2"]),
    ("jsctl ping --except 2", ["2.*", "2.1"]),
    ("jsctl completion f", ["fish"]),
]


def test_bash(server: Server, fake: Fake, tmp_path: Path) -> None:
    bash = need("bash")
    for line, want in LINES:
        script = (f'source <(jsctl completion bash); COMP_LINE="{line}"; COMP_POINT=${{#COMP_LINE}}; _jsctl; '
                  'printf "%s\\n" "${COMPREPLY[@]}"')
        done = subprocess.run([bash, "--norc", "-c", script], env=environment(server, tmp_path), text=True,
                              capture_output=True, timeout=60)
        assert done.stdout.split() == want, done


def test_fish(server: Server, fake: Fake, tmp_path: Path) -> None:
    fish = need("fish")
    for line, want in LINES:
        script = f"jsctl completion fish | source; complete -C '{line}'"
        done = subprocess.run([fish, "--no-config", "-c", script], env=environment(server, tmp_path), text=True,
                              capture_output=True, timeout=60)
        assert sorted(word.split("\t")[0] for word in done.stdout.splitlines()) == want, done


class Terminal:
    """A shell that believes somebody types."""

    def __init__(self, words: List[str], env: Dict[str, str]) -> None:
        self.master, slave = pty.openpty()
        self.child = subprocess.Popen(words, env=env, stdin=slave, stdout=slave, stderr=slave, close_fds=True,
                                      start_new_session=True)
        os.close(slave)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait(self, text: str, seconds: float = 30.0) -> None:
        end = time.monotonic() + seconds
        while text not in self.seen:
            left = end - time.monotonic()
            assert left > 0, f"{text!r} did not appear in {self.seen!r}"
            if select.select([self.master], [], [], left)[0]:
                self.seen += os.read(self.master, 4096).decode("utf-8", "replace")

    def close(self) -> None:
        self.child.kill()
        self.child.wait()
        os.close(self.master)


def test_zsh(server: Server, fake: Fake, tmp_path: Path) -> None:
    terminal = Terminal([need("zsh"), "-f", "-i"], environment(server, tmp_path))
    try:
        # What is completed stands on the line when it is run; the prompt is switched off, to read it well.
        terminal.type("PS1=; unsetopt zle_bracketed_paste; autoload -Uz compinit; compinit -u -D; "
                      "source <(jsctl completion zsh); jsctl() { if [[ $1 == __complete ]]; then command jsctl \"$@\"; "
                      "else print -r -- \"ran:$*:\"; fi }; print rea''dy\n")
        terminal.wait("ready")
        for line, want in (("jsctl ex", "exec"), ("jsctl exec @w", "exec @web"), ("jsctl exec 1.1,1", "exec 1.1,1.2"),
                           ("jsctl exec 2.1 --exc", "exec 2.1 --except"), ("jsctl completion f", "completion fish")):
            terminal.type(f"{line}\t\n")
            terminal.wait(f"ran:{want}:")
        # Where several fit, they are listed.
        terminal.type("jsctl exec 1.\t")
        terminal.wait("1.*")
        terminal.wait("1.2")
    finally:
        terminal.close()
