"""Completion in real shells."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any, Dict, List, Optional

import pytest
from conftest import Server
from fake import Fake

from jsclient.cli import complete

JSCTL = Path(sys.executable).with_name("jsctl")
pytestmark = pytest.mark.skipif(not JSCTL.exists(), reason="jsctl is not installed beside this Python")


def need(shell: str) -> str:
    found = shutil.which(shell)
    if found is None:
        # A failure, not a skip: an untested completion breaks unnoticed.
        warnings.warn(f"{shell} is not installed (apt-get install {shell}): its completion is not tested", stacklevel=2)
        pytest.skip(f"{shell} is not installed")
    return found


def environment(server: Server, home: Path) -> Dict[str, str]:
    path = f"{JSCTL.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {"PATH": path, "JSCTL_REDIS": server.url, "HOME": str(home), "TERM": "dumb", "LANG": "C.UTF-8"}


LINES = [
    ("jsctl ex", ["exec"]),
    ("jsctl exec 1.", ["1.*", "1.1", "1.2"]),
    ("jsctl exec 1.\\*", ["1.*"]),
    ("jsctl exec @w", ["@web"]),
    ("jsctl exec 1.1,1", ["1.1,1.2"]),
    ("jsctl ping --except 2", ["2.*", "2.1"]),
    ("jsctl completion f", ["fish"]),
]


def test_bash_completes(server: Server, fake: Fake, tmp_path: Path) -> None:
    bash = need("bash")
    for line, want in LINES:
        script = (f'source <(jsctl completion bash); COMP_LINE="{line}"; COMP_POINT=${{#COMP_LINE}}; _jsctl; '
                  'printf "%s\\n" "${COMPREPLY[@]}"')
        done = subprocess.run([bash, "--norc", "-c", script], env=environment(server, tmp_path), text=True,
                              capture_output=True, timeout=60)
        assert done.stdout.split() == [word.replace("*", "\\*") for word in want], done


def test_fish_completes(server: Server, fake: Fake, tmp_path: Path) -> None:
    fish = need("fish")
    for line, want in LINES:
        script = f"jsctl completion fish | source; complete -C '{line}'"
        done = subprocess.run([fish, "--no-config", "-c", script], env=environment(server, tmp_path), text=True,
                              capture_output=True, timeout=60)
        assert sorted(word.split("\t")[0] for word in done.stdout.splitlines()) == want, done


class Terminal:
    """An interactive shell on a pseudo-terminal."""

    def __init__(self, words: List[str], env: Dict[str, str], folder: Optional[Path] = None) -> None:
        self.master, slave = pty.openpty()
        # fish requires a controlling terminal.
        self.child = subprocess.Popen(["setsid", "-c", *words], env=env, stdin=slave, stdout=slave, stderr=slave,
                                      close_fds=True, cwd=folder)
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


def test_zsh_completes(server: Server, fake: Fake, tmp_path: Path) -> None:
    terminal = Terminal([need("zsh"), "-f", "-i"], environment(server, tmp_path))
    try:
        # The completed line is printed when it runs; the prompt is off.
        terminal.type("PS1=; unsetopt zle_bracketed_paste; autoload -Uz compinit; compinit -u -D; "
                      "source <(jsctl completion zsh); jsctl() { if [[ $1 == __complete ]]; then command jsctl \"$@\"; "
                      "else print -r -- \"ran:$*:\"; fi }; print rea''dy\n")
        terminal.wait("ready")
        for line, want in (("jsctl ex", "exec"), ("jsctl exec @w", "exec @web"), ("jsctl exec 1.1,1", "exec 1.1,1.2"),
                           ("jsctl exec 2.1 --exc", "exec 2.1 --except"), ("jsctl completion f", "completion fish")):
            terminal.type(f"{line}\t\n")
            terminal.wait(f"ran:{want}:")
        # Several candidates are listed.
        terminal.type("jsctl exec 1.\t")
        terminal.wait("1.\\*")
        terminal.wait("1.2")
    finally:
        terminal.close()


#: Each creates the file `mark`, adds words or expands to files, if a shell does not take it as a name.
HOSTILE = [
    "x;touch${IFS}mark;:", "x$(touch${IFS}mark)", "x`touch${IFS}mark`", "x\ntouch mark", "x\n@xy", "x y", "x*", "x?", "x[a-z]",
    "x'", 'x"', "x\\", "x|touch${IFS}mark", "x&touch${IFS}mark&", "x>mark", "x\ttouch mark", "x\rtouch mark\r", "x~", "x{a,b}",
    "x#", "x!!", "x=(touch)", "x\x1b]0;t\x07", "x\u202e", "x" * 65, "",
]
#: A shell whose `jsctl` prints the candidates in the file `words`, else its arguments.
SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], """PS1=
bind 'set enable-bracketed-paste off'; bind 'TAB: menu-complete'
source <(jsctl completion bash)
jsctl() {
  if [[ $1 != __complete ]]; then printf '(%s)' ran "$@" end; echo
  elif [[ -e words ]]; then cat words; else command jsctl "$@"; fi; }
"""),
    "zsh": (["zsh", "-f", "-i"], """PS1=
unsetopt zle_bracketed_paste; setopt menu_complete
autoload -Uz compinit; compinit -u -D
source <(jsctl completion zsh)
jsctl() {
  if [[ $1 != __complete ]]; then printf '(%s)' ran "$@" end; echo
  elif [[ -e words ]]; then cat words; else command jsctl "$@"; fi; }
"""),
    "fish": (["fish", "--no-config", "-i"], """function fish_prompt; end
jsctl completion fish | source
function jsctl
  if test "$argv[1]" != __complete; printf '(%s)' ran $argv end; echo
  else if test -e words; cat words; else; command jsctl $argv; end; end
"""),
}


@pytest.mark.parametrize("shell", SHELLS)
def test_hostile_names_neither_run_nor_expand(shell: str, server: Server, fake: Fake, tmp_path: Path) -> None:
    fake.add(8, 1, ["yes.a:b/c_d-e"])
    for name in ("8.log", "@xa"):
        (tmp_path / name).touch()
    (tmp_path / "setup").write_text(SHELLS[shell][1])
    words = [need(shell), *SHELLS[shell][0][1:]]
    terminal = Terminal(words, {**environment(server, tmp_path), "TERM": "xterm"}, tmp_path)
    try:
        terminal.type("source ./setup; echo rea''dy\n")
        terminal.wait("ready")
        for line, want in (("@y", "@yes.a:b/c_d-e"), ("@web,y", "@web,yes.a:b/c_d-e")):
            terminal.seen = ""
            terminal.type(f"jsctl exec {line}\t\n")
            terminal.wait(f"(ran)(exec)({want})(end)")
        # Further tabs select the next candidate, in the order of the shell.
        # The first Enter may only select a candidate.
        got, enter = set(), "\n\n" if shell == "fish" else "\n"
        for tabs in ("\t", "\t\t", "\t\t\t"):
            terminal.seen = ""
            terminal.type(f"jsctl exec 8.{tabs}{enter}")
            terminal.wait("(end)")
            got.update(re.findall(r"\(ran\)\(exec\)\((8\..)\)\(end\)", terminal.seen))
        assert got == {"8.*", "8.1"}
        (tmp_path / "words").write_text("".join(f"@{role}\n" for role in HOSTILE))
        for times in range(1, len(HOSTILE) + 2):
            terminal.seen = ""
            terminal.type("jsctl exec @x" + "\t" * times + enter)
            terminal.wait("(end)")
            assert re.search(r"\(ran\)\(exec\)\(@[xya*]*\)\(end\)", terminal.seen), terminal.seen
    finally:
        terminal.close()
    assert not (tmp_path / "mark").exists()


def test_only_names_safe_in_a_shell_are_offered(
    server: Server, fake: Fake, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JSCTL_REDIS", server.url)
    for number, role in enumerate(HOSTILE, 1):
        fake.add(7, number, [role, "ok"])
        if len(role) > 64:
            continue
        raw.lpush("jsacc:jobs", role)
        raw.hset(f"jsacc:job:{role}", "cmd", "{}")
    raw.lpush("jsacc:jobs", "--json", "nightly:1")
    raw.hset("jsacc:job:--json", "cmd", "{}")
    raw.hset("jsacc:job:nightly:1", "cmd", "{}")
    assert [word for word in complete.candidates("jsctl exec @") if word not in ("@web", "@db")] == ["@ok"]
    assert complete.candidates("jsctl exec @ok,") == ["@ok,db", "@ok,web"]
    assert complete.candidates("jsctl job ") == ["nightly:1"]
