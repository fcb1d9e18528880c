"""The client against the real controller and agents, when they are built.

They are looked for in JS_BIN_DIR, then in the debug folder of CARGO_TARGET_DIR, then in ../target/debug.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, List

import pytest
from conftest import Ran, Server, end, wait_until

from jsclient import Chunk, Client, JobFailedError, Line, WaitTimeoutError
from jsclient.cli.main import main
from jsclient.keys import NodeId
from jsclient.frames import LineSplitter
from jsclient.wire import Command

ROOT = Path(__file__).parents[2]


def binaries() -> Path | None:
    target = os.environ.get("CARGO_TARGET_DIR", str(ROOT / "target"))
    for folder in filter(None, (os.environ.get("JS_BIN_DIR"), f"{target}/debug")):
        found = Path(folder)
        if all((found / name).exists() for name in ("jsacc", "jsagent")):
            version = subprocess.run([found / "jsacc", "--version"], capture_output=True, text=True, timeout=10)
            if "jsacc" in version.stdout:
                return found
    return None


BIN = binaries()
pytestmark = pytest.mark.skipif(BIN is None, reason="jsacc and jsagent are not built")


def free_port() -> int:
    with socket.socket() as it:
        it.bind(("127.0.0.1", 0))
        return int(it.getsockname()[1])


class Deployment:
    """A Redis, a controller and two agents, 1.1 (web) and 1.2 (web, db)."""

    def __init__(self) -> None:
        assert BIN
        self.server = Server()
        self.folder = Path(tempfile.mkdtemp(prefix="jsclient-real-"))
        self.children: list[subprocess.Popen[bytes]] = []
        port = free_port()
        self.start("jsacc", "-p", str(port), "-b", "127.0.0.1", "-r", self.server.url, "--state-dir",
                   str(self.folder / "state"), "--insecure-http", "--insecure-no-auth")
        for nid, roles in ((1, ["web"]), (2, ["web", "db"])):
            config = self.folder / f"{nid}.toml"
            config.write_text(
                f"[main]\ngid = 1\nnid = {nid}\nroles = {json.dumps(roles)}\n"
                f"data_dir = {json.dumps(str(self.folder / str(nid)))}\n"
                f'[controllers.main]\nurl = "http://127.0.0.1:{port}"\n'
                "[stats]\ninterval = 1\n[monitor]\ninterval = 1\n"
            )
            self.start("jsagent", "-c", str(config))
        self.client = Client(self.server.url, timeout=30)
        try:
            wait_until(lambda: sum(n.live for n in self.client.nodes()) == 2, 30)
        except BaseException:
            print((self.folder / "log").read_text())
            self.close()
            raise

    def start(self, name: str, *words: str) -> None:
        with open(self.folder / "log", "ab") as log:
            self.children.append(subprocess.Popen([str(BIN / name), *words], stdout=log, stderr=log))  # type: ignore[operator]

    def close(self) -> None:
        self.client.close()
        end(self.children)
        self.server.close()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    it = Deployment()
    yield it
    it.close()


@pytest.fixture
def jsctl(deployment: Deployment, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    monkeypatch.setenv("JSCTL_REDIS", deployment.server.url)

    def run(*words: str) -> Ran:
        capsys.readouterr()
        code = main(list(words))
        return Ran(code, *capsys.readouterr())

    return run


Jsctl = Callable[..., Ran]


def test_execute_on_a_real_node_returns_its_output(deployment: Deployment, jsctl: Jsctl) -> None:
    job = deployment.client.execute(1, 1, "sh", ["-c", "cat; echo err >&2; exit 3"], data="in", tags="t")
    result = job.wait(20)
    assert (result.state, result.code, result.stdout, result.stderr, result.tags) == ("ERROR", 3, "in", "err", "t")
    assert jsctl("exec", "1.1", "--", "echo", "hi") == Ran(0, "hi\n", "")
    ran = jsctl("exec", "1.1", "--", "no-such-program")
    assert ran.code == 127 and "program not found" in ran.err
    ran = jsctl("raw", "1.1", "frob")
    assert ran.code == 1 and "unknown command" in ran.err


def lines(chunks: Iterable[Chunk]) -> List[Line]:
    splitter = LineSplitter()
    return [line for chunk in chunks for line in splitter.take(chunk)]


def test_output_of_a_real_node_comes_while_its_job_runs(deployment: Deployment) -> None:
    client, go_on = deployment.client, deployment.folder / "go-on"
    script = f"seq 300000; echo oops >&2; while ! [ -e {go_on} ]; do sleep 0.05; done; echo last"
    job = client.execute(1, 1, "sh", ["-c", script], stream=True)
    out, attached, chunk = b"", [], None
    for chunk in job.stream():
        out += chunk.data if chunk.kind == "stdout" else b""
        if chunk.kind == "stderr":
            assert chunk.data == b"oops\n" and job.state == "RUNNING"
            attached.append(client.job(job.id).attach(tail=10))
            first = next(attached[0])
            go_on.touch()
    assert chunk and chunk.kind == "end" and "error" not in chunk.detail
    assert out == b"".join(b"%d\n" % n for n in range(1, 300001)) + b"last\n"
    assert [line.text for line in lines([first, *attached[0]]) if line.stream == "stdout"][-2:] == ["300000", "last"]
    left = [(line.stream, line.text) for line in lines(job.attach(tail=1 << 30))]
    assert left[-1] == ("stdout", "last") and ("stderr", "oops") in left, "what has ended is there for an hour"
    with pytest.raises(JobFailedError, match="has no spool"):
        client.execute(1, 1, "true", id="unwatched").wait()
        list(client.job("unwatched").attach())


def test_info_commands_of_a_real_agent_answer(deployment: Deployment, jsctl: Jsctl) -> None:
    client = deployment.client
    assert client.ping(1, 1) == "pong"
    assert client.get_cpu_info(1, 1)["logical"] > 0
    assert client.get_mem_info(1, 1)["total"] > 0
    assert client.get_disk_info(1, 1) and client.get_nic_info(1, 1)
    assert client.get_os_info(1, 1)["os"] == "linux"
    for kind in ("cpu", "mem", "disk", "nic", "os"):
        assert jsctl("info", kind).code == 0
    ran = jsctl("nodes", "@web,db")
    assert ran.code == 0 and "1.2" in ran.out and "1.1" not in ran.out


def test_fleet_on_real_agents_returns_all_results(deployment: Deployment, jsctl: Jsctl) -> None:
    ran = jsctl("exec", "all", "--", "echo", "same")
    assert ran.out == "== 1.1, 1.2 (2)\nsame\n" and ran.err == "2 OK, 0 failed\n" and ran.code == 0
    for who, count in (("1.*", 2), ("@web", 2), ("@web,db", 1), ("1.1,1.2", 2), ("1.1", 1)):
        assert len(deployment.client.target(who).ping().wait().results) == count
    ran = jsctl("exec", "all", "--batch", "1", "--max-failures", "0", "--", "false")
    assert ran.code == 1 and "1 not sent after too many failures (1.2)" in ran.err
    ran = jsctl("exec", "1.1,1.9", "--json", "--", "true")
    assert ran.code == 1 and [i["state"] for i in json.loads(ran.out)] == ["OK", "UNKNOWN"]
    assert jsctl("ping", "1.9").code == 3


def test_running_job_is_signalled_and_killed(deployment: Deployment, jsctl: Jsctl) -> None:
    script = "trap 'echo got it' USR1; echo begun; while :; do sleep 0.05; done"
    job = deployment.client.execute(1, 1, "sh", ["-c", script], domain="d", name="n")
    lines = job.logs(follow=True, levels="1")  # the shell may tell of its sleep on stderr
    assert next(lines).data == "begun"
    assert job.state == "RUNNING" and job.result is None and job.stats()["id"] == job.id
    with pytest.raises(WaitTimeoutError, match="it is running"):
        job.wait(0.1)
    assert job.id in jsctl("ps", "1.1", "d.n").out and job.id in jsctl("top", "--once").out
    assert jsctl("signal", job.id, "USR1").code == 0
    assert next(lines).data == "got it"
    job.kill()
    assert job.wait(20).state == "KILLED"
    with pytest.raises(JobFailedError):
        job.kill()


def test_recurring_job_is_listed_until_unscheduled(deployment: Deployment, jsctl: Jsctl) -> None:
    job = deployment.client.execute(1, 1, "true", recurring_period=3600, domain="d", name="hourly")
    assert job.wait(20).ok
    ran = jsctl("schedules")
    assert ran.code == 0 and job.id in ran.out and "hourly" in ran.out and "60m" in ran.out and job.id not in jsctl("ps").out
    [entry] = deployment.client.get_schedules(1, 1)
    assert entry["next"] > entry["last_start"] > 0 and entry["last_state"] == "OK"
    job.unschedule()
    assert deployment.client.get_schedules(1, 1) == []


def test_one_command_withdraws_a_job_from_all_nodes(deployment: Deployment, jsctl: Jsctl) -> None:
    away = [NodeId(7, 1), NodeId(7, 2)]
    command = Command("execute", args={"cmd": "true"}, nodes=[NodeId(1, 1), *away])
    deployment.client.push([command])
    wait_until(lambda: any(it.id == command.id and it.open == away for it in deployment.client.jobs()), 30)
    audit = len(deployment.client.audit(1000))
    assert deployment.client.cancel(command.id) == dict.fromkeys(away, "")
    wait_until(lambda: len(deployment.client.audit(1000)) == audit + 1)
    ran = jsctl("wait", command.id, "--json")
    assert {r["node"]: r["state"] for r in json.loads(ran.out)} == {"1.1": "OK", "7.1": "KILLED", "7.2": "KILLED"}, ran


def test_detached_jobs_are_waited_for_cancelled_and_listed(deployment: Deployment, jsctl: Jsctl) -> None:
    job = jsctl("exec", "all", "--as", "alice", "--detach", "--", "echo", "later").out.strip()
    ran = jsctl("wait", job)
    assert ran.code == 0 and "later" in ran.out and "2 OK" in ran.err
    assert "later" in jsctl("wait", job).out
    fleet = jsctl("exec", "1.1,1.2", "--detach", "--", "echo", "parts").out.strip()
    assert jsctl("wait", fleet).err == "2 OK, 0 failed\n"
    assert "echo later" in jsctl("jobs").out and "echo later" in jsctl("job", job).out
    wait_until(lambda: any("alice" in line and "2 OK" in line for line in jsctl("audit").out.splitlines()))
    assert "startup" in jsctl("events").out
    waiting = jsctl("exec", "1.7", "--detach", "--", "true").out.strip()
    wait_until(lambda: jsctl("job", waiting).code == 0)
    assert jsctl("cancel", waiting).out == "cancelled on 1.7\n"
    ran = jsctl("wait", waiting)
    assert ran.code == 1 and "cancelled before its node took it" in ran.err
    done = deployment.client.job(job)
    assert jsctl("cancel", done.id).code == 1
    assert jsctl("exec", "1.7", "--wait", "--timeout", "0.5", "--expires", "1", "--", "true").code == 4


def test_broken_connections_lose_no_result(deployment: Deployment) -> None:
    import redis

    raw = redis.Redis(unix_socket_path=deployment.server.socket)
    client = Client(deployment.server.url, timeout=30, client_name="cut-me")
    stop = threading.Event()

    def cutter() -> None:
        while not stop.is_set():
            for it in raw.client_list():
                if it["name"] == "cut-me" and "b" in it["flags"]:
                    raw.client_kill_filter(_id=it["id"])
            time.sleep(0.005)

    thread = threading.Thread(target=cutter)
    thread.start()
    try:
        jobs = []
        for i in range(20):
            jobs.append(client.execute(1, 1 + i % 2, "echo", [str(i)]))
            assert jobs[-1].wait(20).stdout == f"{i}"
    finally:
        stop.set()
        thread.join()
        client.close()
    raw.close()


def test_recurring_job_yields_results(deployment: Deployment, jsctl: Jsctl) -> None:
    job = deployment.client.execute(1, 1, "sh", ["-c", "echo '20::{\"n\": 1}'"], recurring_period=1, name="again")
    results = job.results(timeout=20)
    assert [next(results).value for _ in range(2)] == [{"n": 1}] * 2
    assert jsctl("unschedule", "1.1", job.id).code == 0


def test_stats_of_a_real_agent_are_read(deployment: Deployment, jsctl: Jsctl) -> None:
    job = deployment.client.execute(1, 1, "sh", ["-c", "echo '10::made:5|c'; sleep 3"], domain="d", name="s")
    wait_until(lambda: "d.s.made" in jsctl("stats", "1.1", "d.s").out, 20)
    job.kill()


def test_messages_of_a_real_job_are_read(deployment: Deployment, jsctl: Jsctl) -> None:
    job = deployment.client.execute(1, 2, "sh", ["-c", "for i in 1 2 3; do echo line $i; done; echo 9::bad"])
    job.wait(20)
    assert [r.data for r in job.logs(levels="1")] == ["line 1", "line 2", "line 3"]
    assert jsctl("logs", "1.2", "--job", job.id, "--levels", "9").out.split()[-1] == "bad"
    assert "ended OK" in jsctl("logs", "1.2", "--job", job.id, "--levels", "30").out
    assert jsctl("logs", "1.2", "--job", job.id, "--delete").out == "1.2: 5 deleted\n"
    assert not list(job.logs())


def test_scripts_and_files_reach_a_real_agent(deployment: Deployment, jsctl: Jsctl, tmp_path: Path) -> None:
    def add(a: int, b: int) -> int:
        return a + b

    fleet = deployment.client.run_script("all", function=add, data={"a": 1, "b": 2}).wait()
    assert [r.value for r in fleet.raise_for_status().results.values()] == [3, 3]
    lua = tmp_path / "twice.lua"
    lua.write_text("function action(t) return {twice = 2 * t.x} end\n")
    ran = jsctl("script", "run", "1.1", str(lua), "--data", '{"x": 4}')
    assert ran.code == 0 and ran.out.split() == ["twice", "8"]
    failed = deployment.client.run_script("1.1", source="def action():\n    raise ValueError('no')\n").wait().failed[0]
    assert failed.code == 1 and "ValueError: no" in failed.critical
    content = bytes(range(256)) * 100
    there = tmp_path / "there"
    deployment.client.put("1.1", content, str(there), mode="0600").wait().raise_for_status()
    assert there.read_bytes() == content and there.stat().st_mode & 0o777 == 0o600
    assert deployment.client.put("1.1", content, str(there), mode="0600").wait().results[(1, 1)].value["changed"] is False
    ran = jsctl("put", "1.1", str(lua), str(tmp_path / "no" / "where"))
    assert ran.code == 1 and str(tmp_path / "no") in ran.err


def test_secret_values_are_shown_nowhere(deployment: Deployment, jsctl: Jsctl, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "geheim-7d793037a0760186"
    monkeypatch.setenv("PASSWORD", secret)
    script = "test ${#PASSWORD} = 23 && test $(wc -c) = 23 && echo fine"
    ran = jsctl("exec", "1.1", "--secret", "--env", "PASSWORD", "--data", secret, "--detach", "--", "sh", "-c", script)
    job = ran.out.strip()
    shown = [ran, jsctl("wait", job), jsctl("wait", job, "--json")]
    assert shown[1].out == "fine\n"
    failing = jsctl("exec", "1.1", "--secret", "--env", "PASSWORD", "--json", "--", "/no/such/program")
    assert failing.code == 1
    shown += [failing, jsctl("exec", "1.9", "--secret", "--env", "PASSWORD", "--data", secret, "--detach", "--", "true")]
    for words in (["jobs"], ["job", job], ["audit"], ["events"], ["rejected"], ["logs", "1.1", "--levels", "*"]):
        shown += [jsctl(*words), jsctl(*words, "--json")]
    for it in shown:
        assert secret not in it.out + it.err
    assert any(job in it.out for it in shown)


def test_ctrl_c_reports_how_to_end_the_job(deployment: Deployment) -> None:
    environment = {**os.environ, "JSCTL_REDIS": deployment.server.url}
    child = subprocess.Popen([sys.executable, "-m", "jsclient.cli", "exec", "@web", "--", "sleep", "77"],
                             env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def running() -> list[Any]:
        fleet = deployment.client.target("all").processes().wait()
        return [e for r in fleet.results.values() for e in r.value if e["state"] == "RUNNING"]

    wait_until(lambda: len(running()) == 2, 20)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=20)
    assert child.returncode == 130 and "still running on 1.1, 1.2; end it with jsctl kill " in err
    job = err.split("jsctl kill ")[1].split()[0]
    assert len(deployment.client.target("all").kill(job).wait().results) == 2


def test_rolling_restart_of_real_agents_waits_for_each(deployment: Deployment, jsctl: Jsctl) -> None:
    agents = [child for child in deployment.children if "jsagent" in str(child.args)]
    over = threading.Event()
    most_away = 0

    def service_manager() -> None:
        nonlocal most_away
        while not over.wait(0.05):
            ended = [child for child in agents if child.poll() is not None]
            most_away = max(most_away, len(ended))
            for child in ended:
                agents.remove(child)
                words = [str(word) for word in child.args]  # type: ignore[union-attr]
                deployment.start("jsagent", *words[1:])
                agents.append(deployment.children[-1])

    before = {node.id: node.instance for node in deployment.client.nodes()}
    thread = threading.Thread(target=service_manager)
    thread.start()
    try:
        ran = jsctl("restart", "all", "--batch", "1", "--max-failures", "0")
    finally:
        over.set()
        thread.join()
    assert ran.code == 0 and ran.err == "2 OK, 0 failed\n" and most_away == 1
    after = {node.id: node.instance for node in deployment.client.nodes()}
    assert all(after[node] not in ("", before[node]) for node in before)


def test_truncated_output_of_a_real_agent_is_reported(deployment: Deployment, jsctl: Jsctl) -> None:
    whole = "".join(f"{n}\n" for n in range(1, 200001))
    assert jsctl("exec", "1.1", "--", "seq", "200000") == Ran(0, whole, "")
    ran = jsctl("exec", "1.1", "--no-stream", "--", "seq", "200000")
    assert ran.code == 0 and ran.out.endswith("\n199999\n200000\n")
    assert "jsctl: 1.1: its output " in ran.err and "jsctl logs 1.1 --job " in ran.err
    assert jsctl("exec", "1.1", "--", "printf", "a\\n\\n\\n").out == "a\n\n\n"
    assert jsctl("exec", "1.1", "--", "seq", "100").err == ""


def test_put_does_not_replace_a_device(deployment: Deployment, jsctl: Jsctl, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    link = tmp_path / "null"
    link.symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for path in (pipe, link, tmp_path / "socket"):
            before = path.lstat()
            ran = jsctl("put", "1.1", __file__, str(path))
            assert ran.code == 1 and "is no regular file" in ran.err, ran
            assert (path.lstat().st_mode, path.lstat().st_ino) == (before.st_mode, before.st_ino)
