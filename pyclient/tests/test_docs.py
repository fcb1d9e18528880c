"""Runs the examples of docs/reference/client.md and jsctl.md, and the recipes."""

from __future__ import annotations

import importlib.util
import linecache
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import pytest
from conftest import Ran, Server, wait_until
from fake import Fake
from test_live import end, frame, live_program

import jsclient

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "client.md"
JSCTL_PAGE = ROOT / "docs" / "reference" / "jsctl.md"
RECIPES_PAGE = ROOT / "docs" / "how-to" / "recipes.md"
RECIPES = ROOT / "pyclient" / "examples"


def blocks(language: str, page: Path = PAGE) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.fixture
def fleet(fake: Fake) -> Fake:
    """Return the fake nodes with the programs and records that the page uses."""
    for program in ("uptime", "systemctl", "sh", "/bin/sh", "curl", "apt-get", "make"):
        fake.programs[program] = lambda n, c: {"streams": ["done\n", ""]}
    fake.record(1, 1, 1, "a line")
    return fake


def test_python_blocks_run(fleet: Fake, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jsclient._session.DEFAULT_URL", server.url)
    found = blocks("python")
    assert len(found) >= 8
    space: dict[str, Any] = {"client": jsclient.Client(server.url, timeout=10), "__name__": "page"}
    for number, block in enumerate(found):
        block = block.replace("redis://localhost:6379", server.url).replace("client.close()\n", "")
        name = f"<client.md {number}>"
        # A function of the page is sent by its source, which is found by the name of the file.
        linecache.cache[name] = (len(block), None, block.splitlines(True), name)
        exec(compile(block, name, "exec"), space)
    space["client"].close()


def test_console_blocks_run(fleet: Fake, jsctl: Callable[..., Ran]) -> None:
    lines = [line[2:] for block in blocks("console", JSCTL_PAGE) for line in block.splitlines() if line.startswith("$ ")]
    assert len(lines) > 15
    for line in lines:
        ran = jsctl(*shlex.split(line)[1:])
        assert ran.code == 0, (line, ran)


def recipe(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def here(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JSCTL_REDIS", server.url)


RUNS: list[tuple[str, list[str], int, str]] = [
    ("rolling_restart", ["@web", "nginx"], 0, "1.1 restarted\n1.2 restarted\n"),
    ("disk_full", ["all", "90"], 1, "1.2: / is 95% full\n"),
    ("run_my_function", ["@web", str(RECIPES)], 0, ".py"),
    ("push_config", ["@web", str(PAGE), "/etc/x", "nginx"], 0, "reloaded on 1.1,1.2"),
    ("when_it_is_back", ["1.1", "--", "apt-get", "-y", "upgrade"], 0, "execute on 1.1 ended OK"),
    ("slowest_nodes", ["all"], 0, "2.1  "),
    ("recurring_check", ["1.1", "1", "1", "--", "curl", "x"], 0, "1 OK done"),
]


@pytest.mark.parametrize("name,words,code,told", RUNS)
def test_recipes_run(
    fleet: Fake, here: None, capsys: pytest.CaptureFixture[str], name: str, words: list[str], code: int, told: str
) -> None:
    if name == "recurring_check":
        # The jobs of the fake end at once, so their schedule cannot be ended.
        answer = fleet.answer
        fleet.answer = lambda n, c: {} if c["cmd"] == "unschedule" else answer(n, c)  # type: ignore[method-assign]
    assert recipe(name).main(*words) == code
    assert told in capsys.readouterr().out


def test_recipe_facts_writes_csv(fleet: Fake, here: None, tmp_path: Path) -> None:
    assert recipe("facts_to_csv").main(str(tmp_path / "f.csv")) == 0
    lines = (tmp_path / "f.csv").read_text().splitlines()
    assert len(lines) == 4 and lines[1].startswith("1.1,host1,Debian,12,6.1,x86_64,2,3000,4294967296,0.1.0")


def test_recipe_watch_errors_prints_errors(fleet: Fake, here: None, capsys: pytest.CaptureFixture[str]) -> None:
    fleet.record(1, 2, 9, "on fire")
    fleet.record(1, 2, 1, "quiet")
    assert recipe("watch_errors").main("all", "0") == 0
    assert capsys.readouterr().out == "1.2 CRITICAL n: on fire\n"


def test_recipe_kill_runaways_kills(fleet: Fake, here: None, client: jsclient.Client,
                              capsys: pytest.CaptureFixture[str]) -> None:
    job = client.execute(1, 1, "sleep", ["9"])
    wait_until(lambda: job.state == "RUNNING")
    assert recipe("kill_runaways").main("all", "10") == 0
    assert job.wait(5).state == "KILLED" and job.id in capsys.readouterr().out


def test_recipes_follow_and_failures_print_jobs(fleet: Fake, here: None, capsys: pytest.CaptureFixture[str]) -> None:
    entries = [frame(1, b"compiling\n"), end(b"compiling\n")]
    fleet.programs["make"] = live_program(fleet._redis, entries, state="ERROR", code=2, bytes=[10, 0])
    assert recipe("follow_a_job").main("1.1", "--", "make", "all") == 2
    assert capsys.readouterr().out == "compiling\n"
    assert recipe("failed_lately").main() == 0
    assert "make  on 1.1: execute on 1.1 failed with status 2" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["facts_to_csv", "follow_a_job", "push_config", "recurring_check", "rolling_restart",
                                  "when_it_is_back"])
def test_recipe_without_its_arguments_prints_its_usage(name: str) -> None:
    ran = subprocess.run([sys.executable, str(RECIPES / f"{name}.py")], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout) == (1, "") and f"    python {name}.py " in ran.stderr, ran


def test_all_twelve_recipes_are_listed() -> None:
    names = sorted(path.name for path in RECIPES.glob("*.py"))
    assert len(names) == 12
    for name in names:
        assert f"pyclient/examples/{name} " in RECIPES_PAGE.read_text(), name
