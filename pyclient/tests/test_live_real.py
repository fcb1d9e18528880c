"""Live output of real nodes: attach, output, get; skipped without the programs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Callable

import pytest

from conftest import Ran, wait_until
from jsclient import StreamBrokenError, UsageError
from test_real import BIN, Deployment, deployment, jsctl  # noqa: F401  # fixtures
from test_streams import JSCTL, environment

pytestmark = pytest.mark.skipif(BIN is None, reason="jsacc and jsagent are not built")
Jsctl = Callable[..., Ran]


def start(deployment: Deployment, *words: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([*JSCTL, *words], env=environment(deployment.server), stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)


def test_binary_output_into_a_pipe_is_exact(deployment: Deployment) -> None:
    script = "head -c 3000000 /dev/urandom | tee $0; head -c 1000 /dev/urandom | tee $0.err >&2; exit 9"
    copy = str(deployment.folder / "copy")
    ran = start(deployment, "exec", "1.1", "--", "sh", "-c", script, copy)
    out, err = ran.communicate(timeout=60)
    assert ran.returncode == 9
    assert out == Path(copy).read_bytes()
    assert err.startswith(Path(copy + ".err").read_bytes()) and b"failed with status 9" in err


def test_attach_follows_a_running_job_to_its_end(deployment: Deployment) -> None:
    go_on = deployment.folder / "attach-go-on"
    script = f"seq 1000; while ! [ -e {go_on} ]; do sleep 0.05; done; echo last; exit 5"
    job = deployment.client.execute(1, 1, "sh", ["-c", script])
    wait_until(lambda: list(job.logs()), 30)
    two = [start(deployment, "attach", job.id) for _ in range(2)]
    wait_until(lambda: sum("attach" in line for line in watches(deployment)) >= 2, 30)
    go_on.touch()
    for ran in two:
        out, err = ran.communicate(timeout=60)
        assert (ran.returncode, out) == (5, b"last\n") and b"status 5" in err, err
    assert job.wait(20).code == 5, "attach takes no result from the client that sent the job"


def watches(deployment: Deployment) -> "list[str]":
    """Return a word for each watch of an attach that is alive."""
    return ["attach" for key in deployment.client.connection.scan("jsacc:watch:*") if key]


def test_interrupted_attach_leaves_the_job(deployment: Deployment) -> None:
    job = deployment.client.execute(1, 1, "sleep", ["300"])
    wait_until(lambda: job.state == "RUNNING", 30)
    ran = start(deployment, "attach", job.id)
    wait_until(lambda: watches(deployment), 30)
    time.sleep(0.2)
    ran.send_signal(signal.SIGINT)
    _, err = ran.communicate(timeout=30)
    assert ran.returncode == 130 and b"the job goes on" in err, err
    assert job.state == "RUNNING"
    job.kill()


def test_output_of_a_job_that_has_ended(deployment: Deployment, jsctl: Jsctl) -> None:  # noqa: F811
    client = deployment.client
    watched = client.execute(1, 1, "sh", ["-c", "printf 'a\\0b'; echo oops >&2"], stream=True)
    assert [chunk.kind for chunk in watched.stream()][-1] == "end"
    ran = jsctl("output", watched.id)
    assert (ran.code, ran.out, ran.err) == (0, "a\0b", "oops\n")
    unwatched = client.execute(1, 1, "sh", ["-c", "echo one; echo two >&2"])
    unwatched.wait(20)
    ran = jsctl("output", unwatched.id)
    assert ran.code == 0 and ran.out == "one\n" and ran.err.endswith("\ntwo\n") and "from its records" not in ran.out
    assert "are not kept; these are the lines that its records have" in ran.err
    silent = client.execute(1, 1, "sh", ["-c", "echo lost"], loglevels_db="9")
    silent.wait(20)
    ran = jsctl("output", silent.id)
    assert ran.code == 1 and "no record has the other 5 bytes of stdout" in ran.err
    assert jsctl("output", "nosuch").code == 3


def test_output_begins_where_the_node_began_to_keep_it(deployment: Deployment, jsctl: Jsctl) -> None:  # noqa: F811
    go_on = deployment.folder / "output-go-on"
    script = f"echo before; while ! [ -e {go_on} ]; do echo tick; sleep 0.05; done; echo after"
    job = deployment.client.execute(1, 1, "sh", ["-c", script])
    wait_until(lambda: list(job.logs()), 30)
    running = jsctl("output", job.id)
    assert running.code == 3 and f"see it with jsctl attach {job.id}" in running.err
    chunks = job.attach()
    first = next(chunks).data
    go_on.touch()
    whole = first + b"".join(chunk.data for chunk in chunks)
    assert whole.endswith(b"tick\nafter\n") and b"before" not in whole
    ran = jsctl("output", job.id)
    assert ran.code == 1 and ran.out.encode() == whole and "bytes of stdout are missing here" in ran.err


def test_get_brings_a_file_whole(deployment: Deployment, jsctl: Jsctl, tmp_path: Path) -> None:  # noqa: F811
    there = deployment.folder / "there.bin"
    there.write_bytes(os.urandom(3_000_000))
    there.chmod(0o640)
    here = tmp_path / "here.bin"
    assert jsctl("get", "1.1", str(there), str(here)).code == 0
    assert here.read_bytes() == there.read_bytes() and here.stat().st_mode & 0o777 == 0o640
    assert jsctl("get", "1.1", str(there), str(tmp_path)).code == 0
    ran = jsctl("get", "@web", str(there), str(tmp_path / "all"))
    assert ran.code == 0 and ran.err == "2 OK, 0 failed\n"
    for node in ("1.1", "1.2"):
        assert (tmp_path / "all" / node / "there.bin").read_bytes() == there.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all", "here.bin", "there.bin"]
    there.write_bytes(b"")
    assert jsctl("get", "1.1", str(there), str(here)).code == 0 and here.read_bytes() == b""


def test_get_to_standard_output(deployment: Deployment) -> None:
    there = deployment.folder / "stdout.bin"
    there.write_bytes(os.urandom(300_000))
    ran = start(deployment, "get", "1.1", str(there), "-")
    assert ran.communicate(timeout=60)[0] == there.read_bytes() and ran.returncode == 0


def test_get_goes_on_where_it_was_cut_off(deployment: Deployment, jsctl: Jsctl, tmp_path: Path) -> None:  # noqa: F811
    there, here = deployment.folder / "resume.bin", tmp_path / "resume.bin"
    there.write_bytes(os.urandom(40_000_000))
    ran = start(deployment, "get", "1.1", str(there), str(here), "--no-progress")
    wait_until(lambda: any(path.stat().st_size for path in tmp_path.glob(".resume.bin.*.part")), 30)
    ran.send_signal(signal.SIGINT)
    ran.communicate(timeout=30)
    (part,) = tmp_path.glob(".resume.bin.*.part")
    came = part.stat().st_size
    assert not here.exists() and 0 < came < 40_000_000
    # Bytes that are here already are not sent again.
    with open(part, "r+b") as file:
        file.write(b"here")
    assert jsctl("get", "1.1", str(there), str(here)).code == 0
    assert here.read_bytes() == b"here" + there.read_bytes()[4:] and [path.name for path in tmp_path.iterdir()] == ["resume.bin"]
    # Another version of the file begins anew, and a partial file of another node or path is left alone.
    part.write_bytes(b"old")
    foreign = tmp_path / ".resume.bin.0123456789abcdef.1-40000000.part"
    foreign.write_bytes(b"of another")
    there.write_bytes(b"another")
    assert jsctl("get", "1.1", str(there), str(here)).code == 0
    assert here.read_bytes() == b"another"
    assert sorted(path.name for path in tmp_path.iterdir()) == [foreign.name, "resume.bin"]


@pytest.mark.parametrize("words,code,err", [
    (["1.1", "/no/such/file", "x"], 1, "No such file or directory"),
    (["1.1", "/etc", "x"], 1, "no regular file"),
    (["1.1", "/proc/version", "x"], 1, "have no size of their own"),
    (["1.1", "/etc/hostname", "/no/such/folder/x"], 1, "/no"),
    (["1.1,1.2", "/etc/hostname", "-"], 2, "name a folder"),
    (["1.1", "/"], 2, "is not the path of a file"),
    (["1.9", "/etc/hostname"], 3, "1.9"),
    (["1.1", "relative"], 1, "absolute"),
])
def test_get_says_what_is_wrong(
    deployment: Deployment, jsctl: Jsctl, tmp_path: Path, words: Any, code: int, err: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = jsctl("get", *words)
    assert ran.code == code and err in ran.err and not any(tmp_path.iterdir()), ran


def test_exec_of_a_job_whose_agent_dies_says_so(deployment: Deployment) -> None:
    agent = next(child for child in deployment.children if b"2.toml" in Path(f"/proc/{child.pid}/cmdline").read_bytes())
    ran = start(deployment, "exec", "1.2", "--", "sh", "-c", "echo begun; sleep 300")
    assert ran.stdout and ran.stdout.readline() == b"begun\n"
    agent.kill()
    agent.wait()
    config = next(path for path in deployment.folder.glob("2.toml"))
    deployment.start("jsagent", "-c", str(config))
    out, err = ran.communicate(timeout=120)
    assert ran.returncode == 1 and out == b"", (ran.returncode, err)
    assert re.search(rb"1\.2: the agent ended while the job ran", err), err


def test_stream_of_python_raises_when_its_agent_dies(deployment: Deployment) -> None:
    agent = next(child for child in deployment.children if child.poll() is None
                 and b"1.toml" in Path(f"/proc/{child.pid}/cmdline").read_bytes())
    job = deployment.client.execute(1, 1, "sh", ["-c", "echo begun; sleep 300"], stream=True)
    chunks = job.stream()
    assert next(chunks).data == b"begun\n"
    agent.kill()
    agent.wait()
    deployment.start("jsagent", "-c", str(deployment.folder / "1.toml"))
    with pytest.raises(StreamBrokenError, match="the agent ended"):
        list(chunks)


def test_put_of_a_large_file_travels_in_pieces(deployment: Deployment, jsctl: Jsctl, tmp_path: Path) -> None:  # noqa: F811
    here, there = tmp_path / "large", deployment.folder / "large"
    here.write_bytes(os.urandom((17 << 20) + 5))
    for _ in range(2):
        ran = jsctl("put", "1.1", str(here), str(there), "--mode", "0640")
        assert ran.code == 0, ran
        assert there.read_bytes() == here.read_bytes() and there.stat().st_mode & 0o777 == 0o640
    pieces = deployment.client.connection.scan("jsacc:blob:*")
    assert len(pieces) == 18 and all(deployment.client.connection.call("TTL", piece) > 0 for piece in pieces)
    # A piece that is not there any more is stored again.
    deployment.client.connection.call("DEL", pieces[0])
    there.unlink()
    assert deployment.client.put("1.1", str(here), str(there)).wait().ok
    assert there.read_bytes() == here.read_bytes()
    with pytest.raises(UsageError, match="write them to a file"):
        deployment.client.put("1.1", here.read_bytes(), str(there))
