"""Live output: frames, what one node has sent, and a stream in a real Redis."""

from __future__ import annotations

import hashlib
import json
import random
import struct
import threading
from typing import Any, Callable, Dict, List

import pytest
import redis

from conftest import Ran, Server, wait_until
from test_streams import run
from jsclient import Chunk, Client, Line, NoControllerError, NodeId, StreamBrokenError, UsageError, WaitTimeoutError
from jsclient.frames import MAX_LINE, LineSplitter, NodeOutput, frames
from jsclient.stream import WatchReader
from jsclient.uploads import Upload

Jsctl = Callable[..., Ran]

NODE = NodeId(1, 1)


def frame(kind: int, payload: bytes) -> bytes:
    return struct.pack(">B3xI", kind, len(payload)) + payload


def note(kind: int, value: Any) -> bytes:
    return frame(kind, json.dumps(value).encode())


def end(out: bytes = b"", err: bytes = b"", missing: int = 0) -> bytes:
    said = {"stdout": {"bytes": len(out) + missing, "sha256": hashlib.sha256(out).hexdigest()},
            "stderr": {"bytes": len(err), "sha256": hashlib.sha256(err).hexdigest()}}
    return note(5, said)


def test_frames_are_read_whole_or_not_at_all() -> None:
    assert list(frames(b"")) == []
    assert list(frames(frame(1, b"a") + frame(2, b""))) == [("stdout", b"a"), ("stderr", b"")]
    for bad in (b"\1", frame(1, b"abc")[:-1], frame(0, b""), frame(6, b""), b"\1\0\0\1\0\0\0\0",
                struct.pack(">B3xI", 1, 1 << 20)):
        found = frames(frame(1, b"before") + bad)
        assert next(found) == ("stdout", b"before")
        with pytest.raises(StreamBrokenError):
            next(found)


def test_output_of_a_node_is_checked_to_its_end() -> None:
    output = NodeOutput(NODE)
    first = frame(1, b"one") + frame(2, b"two")
    assert [(c.kind, c.data) for c in output.take(0, first)] == [("stdout", b"one"), ("stderr", b"two")]
    assert [c.kind for c in output.take(len(first), end(b"one", b"two"))] == ["end"]
    assert output.ended


@pytest.mark.parametrize("entries", [
    [(1, frame(1, b"a"))],
    [(0, frame(1, b"a")), (9, end(b"b"))],
    [(0, frame(1, b"a")), (9, end(b"ab"))],
    [(0, end() + frame(1, b"a"))],
    [(0, frame(1, b"a")), (9, note(5, {}))],
    [(0, frame(1, b"a")), (9, note(5, {"stdout": 1, "stderr": 0}))],
    [(0, frame(1, b"a")), (9, note(5, {"stdout": {"bytes": 1}, "stderr": {"bytes": 0}}))],
    [(0, frame(1, b"a")), (9, note(5, {"stdout": {"bytes": True}, "stderr": {"bytes": 0}}))],
    [(0, frame(1, b"a")), (9, note(5, {"size": 1, "sha256": "0"}))],
    [(0, note(4, {"stdout": "1"}))],
    [(0, note(4, {"stdout": -1}))],
    [(0, note(4, {"records": 1.5}))],
    [(0, frame(4, b"[]"))],
    [(0, frame(5, b"{"))],
    [(0, frame(5, b"[" * 100_000))],
])
def test_output_that_is_not_whole_is_an_error(entries: List[Any]) -> None:
    output = NodeOutput(NODE)
    with pytest.raises(StreamBrokenError):
        for offset, data in entries:
            list(output.take(offset, data))
    assert output.ended and output.fault


def test_frames_that_come_again_are_left_out() -> None:
    output = NodeOutput(NODE)
    one, two = frame(1, b"one"), frame(1, b"two")
    found = [*output.take(0, one), *output.take(0, one), *output.take(0, one + two), *output.take(len(one), two),
             *output.take(len(one), two + end(b"onetwo")), *output.take(0, one)]
    assert [chunk.data for chunk in found] == [b"one", b"two", b""] and output.ended and not output.fault


def test_end_with_an_error_need_not_say_how_many_bytes_there_were() -> None:
    output = NodeOutput(NODE)
    chunks = list(output.take(0, frame(1, b"a") + note(5, {"error": "the agent ended"})))
    assert chunks[-1].detail == {"error": "the agent ended"} and output.fault == "the agent ended"


def test_gap_counts_for_the_end() -> None:
    output = NodeOutput(NODE)
    gap = note(4, {"stdout": 10, "stderr": 0, "records": 0})
    chunks = output.take(0, gap + frame(1, b"rest") + end(b"rest", missing=10))
    assert [c.kind for c in chunks] == ["gap", "stdout", "end"] and output.missing == 10
    later = NodeOutput(NODE, [10, 0])
    assert list(later.take(0, frame(1, b"rest") + end(b"rest", missing=10)))[-1].kind == "end" and not later.missing


def lines(chunks: List[Chunk]) -> List[Line]:
    splitter = LineSplitter()
    return [*(line for chunk in chunks for line in splitter.take(chunk)), *splitter.rest()]


def test_lines_are_the_same_however_the_bytes_are_split() -> None:
    text = "plain\n\nüml\u00e4ut 😀\r\nlast".encode() + b"\xff"
    want = [Line(NODE, "stdout", t) for t in ("plain", "", "üml\u00e4ut 😀\r", "last\ufffd")]
    for size in range(1, len(text) + 1):
        pieces = [Chunk(NODE, "stdout", text[i : i + size]) for i in range(0, len(text), size)]
        assert lines(pieces) == want, size
        assert lines([*pieces, Chunk(NODE, "end")]) == want, size


def test_lines_of_nodes_and_streams_are_kept_apart() -> None:
    other = NodeId(1, 2)
    pieces = [Chunk(NODE, "stdout", b"a\xc3"), Chunk(other, "stdout", b"b"), Chunk(NODE, "stderr", b"e\n"),
              Chunk(NODE, "stdout", b"\xa4\n"), Chunk(other, "end")]
    want = [Line(NODE, "stderr", "e"), Line(NODE, "stdout", "aä"), Line(other, "stdout", "b")]
    assert lines(pieces) == want


def test_line_without_end_is_bounded() -> None:
    splitter = LineSplitter()
    found = [line for _ in range(100) for line in splitter.take(Chunk(NODE, "stdout", b"x" * 10_000))]
    assert {len(line.text) for line in found} == {MAX_LINE}
    assert sum(len(line.text) for line in [*found, *splitter.rest()]) == 1_000_000
    one = splitter.take(Chunk(NODE, "stdout", b"y" * (MAX_LINE + 1) + b"\n"))
    assert [len(line.text) for line in one] == [MAX_LINE, 1]


class Sender(threading.Thread):
    """Sends frames as a controller stores them, while somebody watches."""

    def __init__(self, raw: redis.Redis, job: str, entries: List[bytes]) -> None:
        super().__init__(daemon=True)
        self.raw, self.job, self.entries, self.watches = raw, job, entries, set()

    def run(self) -> None:
        offset = 0
        for data in self.entries:
            self.watches.add(self.raw.get(f"jsacc:watch:{self.job}"))
            fields: Dict[Any, Any] = {"n": "1:1", "o": offset, "d": data}
            self.raw.xadd(f"jsacc:stream:{self.job}", fields)
            offset += len(data)


def test_stream_brings_every_byte(client: Client, fake: Any, server: Any, raw: redis.Redis) -> None:
    fake.deaf.add((1, 1))
    job = client.execute(1, 1, "cat", stream=True)
    assert raw.get(f"jsacc:watch:{job.id}") == "0-0", "watched before the node has it"
    assert 0 < raw.ttl(f"jsacc:watch:{job.id}") <= 30
    wait_until(lambda: fake.seen and fake.seen[-1]["args"].get("stream") is True)
    out = [random.randbytes(random.randrange(1, 5000)) for _ in range(200)]
    sender = Sender(raw, job.id, [*(frame(1, data) for data in out), end(b"".join(out))])
    sender.start()
    chunks = list(job.stream())
    assert b"".join(c.data for c in chunks if c.kind == "stdout") == b"".join(out)
    assert chunks[-1].kind == "end" and chunks[-1].node == NODE
    wait_until(lambda: not raw.exists(f"jsacc:watch:{job.id}"))


def test_controller_is_told_what_was_read(client: Client, fake: Any, raw: redis.Redis) -> None:
    fake.deaf.add((1, 1))
    job = client.execute(1, 1, "cat", stream=True)
    data = frame(1, b"x" * 250_000) * 4
    entries = [raw.xadd(f"jsacc:stream:{job.id}", {"n": "1:1", "o": n * len(data), "d": data}) for n in range(3)]
    chunks = job.stream()
    for _ in range(9):
        next(chunks)
    wait_until(lambda: raw.get(f"jsacc:watch:{job.id}") == entries[1])
    assert raw.ttl(f"jsacc:watch:{job.id}") > 0
    chunks.close()
    wait_until(lambda: not raw.exists(f"jsacc:watch:{job.id}"))


def test_output_of_many_jobs_comes_through_one_reader(client: Client, fake: Any, raw: redis.Redis) -> None:
    with WatchReader(client) as reader:
        for n in range(1, 51):
            reader.add(f"job-{n}", NodeId(1, n))
        for n in range(1, 51):
            raw.xadd(f"jsacc:stream:job-{n}", {"n": f"1:{n}", "o": 0, "d": frame(1, b"%d" % n) + end(b"%d" % n)})
            raw.xadd(f"jsacc:stream:job-{n}", {"n": f"2:{n}", "o": 0, "d": frame(1, b"of another node")})
        found: List[Chunk] = []
        wait_until(lambda: found.extend(reader.read(0.1)) or len(found) >= 100)
        assert {c.node: c.data for c in found if c.kind == "stdout"} == {NodeId(1, n): b"%d" % n for n in range(1, 51)}
        assert all(reader.output(f"job-{n}", NodeId(1, n)).ended for n in range(1, 51))
        wait_until(lambda: raw.ttl("jsacc:watch:job-50") > 0)
    wait_until(lambda: not raw.keys("jsacc:watch:*"))


def test_first_result_of_a_recurring_job_is_not_its_end(client: Client, fake: Any, raw: redis.Redis) -> None:
    job = client.execute(1, 1, "echo", ["a"], stream=True, recurring_period=60)
    assert job.wait().ok
    with pytest.raises(WaitTimeoutError):
        list(job.stream(timeout=1.5))


def test_output_without_an_end_is_an_error_once_the_result_is_there(
    client: Client, fake: Any, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jsclient.frames.NEXT_FRAME_SECONDS", 0.1)
    job = client.execute(1, 1, "echo", ["a"], stream=True)
    assert job.wait().ok
    raw.xadd(f"jsacc:stream:{job.id}", {"n": "1:1", "o": 0, "d": frame(1, b"a")})
    with pytest.raises(StreamBrokenError, match="did not come to its end"):
        list(job.stream())


def test_node_without_live_output_yields_nothing(client: Client, fake: Any) -> None:
    job = client.execute(1, 1, "echo", ["a"], stream=True)
    assert list(job.stream()) == []
    assert job.wait().stdout == "a"


def test_lost_entry_is_an_error(client: Client, fake: Any, raw: redis.Redis) -> None:
    fake.deaf.add((1, 1))
    job = client.execute(1, 1, "cat", stream=True)
    raw.xadd(f"jsacc:stream:{job.id}", {"n": "1:1", "o": 9, "d": frame(1, b"b")})
    with pytest.raises(StreamBrokenError, match="is lost"):
        list(job.stream())


def test_stream_goes_on_after_its_connection_was_cut(client: Client, fake: Any, raw: redis.Redis) -> None:
    fake.deaf.add((1, 1))
    job = client.execute(1, 1, "cat", stream=True)
    data = frame(1, b"one")
    raw.xadd(f"jsacc:stream:{job.id}", {"n": "1:1", "o": 0, "d": data})
    chunks = job.stream()
    assert next(chunks).data == b"one"
    raw.client_kill_filter(_type="normal", skipme=True)
    raw.xadd(f"jsacc:stream:{job.id}", {"n": "1:1", "o": len(data), "d": end(b"one")})
    assert [c.kind for c in chunks] == ["end"]


def live_program(raw: redis.Redis, entries: List[bytes], **answer: Any) -> Any:
    """Return a program of a simulated node that sends these entries while it runs."""

    def run(node: Any, command: Dict[str, Any]) -> Dict[str, Any]:
        offset = 0
        for data in entries if command["args"].get("stream") else ():
            fields: Dict[Any, Any] = {"n": f"{node[0]}:{node[1]}", "o": offset, "d": data}
            raw.xadd(f"jsacc:stream:{command['id']}", fields)
            offset += len(data)
        return answer

    return run


BINARY = bytes(range(256)) * 100


def test_exec_writes_the_bytes_of_one_node_as_they_are(server: Server, fake: Any, raw: redis.Redis) -> None:
    entries = [frame(1, BINARY), frame(2, b"\xffoops"), end(BINARY, b"\xffoops")]
    fake.programs["tar"] = live_program(raw, entries, streams=["?", "?"], bytes=[len(BINARY), 5], truncated=True)
    ran = run(server, "exec", "1.1", "--", "tar")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, BINARY, b"\xffoops")
    ran = run(server, "exec", "1.1", "--no-stream", "--", "tar")
    assert ran.stdout == b"?\n" and b"truncated" in ran.stderr


def test_exec_ends_with_the_status_of_the_program_on_a_single_node(jsctl: Jsctl, fake: Any, raw: redis.Redis) -> None:
    fake.programs["no"] = live_program(raw, [frame(1, b"out\n"), end(b"out\n")], state="ERROR", code=7, bytes=[4, 0])
    assert jsctl("exec", "1.1", "--", "no")[:2] == (7, "out\n")
    assert jsctl("exec", "1.1", "--no-stream", "--", "no").code == 7
    assert jsctl("exec", "1.1", "--json", "--", "no").code == 1
    assert jsctl("exec", "1.1,1.2", "--", "no").code == 1


@pytest.mark.parametrize("entries,fault", [
    ([note(4, {"stdout": 3}), frame(1, b"b"), end(b"b", missing=3)], "1.1: 3 bytes of stdout are missing here"),
    ([frame(1, b"b"), note(5, {"error": "the agent ended while the job ran"})], "1.1: the agent ended"),
    ([frame(1, b"b"), end(b"c")], "the SHA-256 of stdout is not that of the bytes that came"),
    ([frame(1, b"b"), end(b"bb")], "stdout has 2 bytes, and 1 came"),
    ([frame(1, b"b")], "its output did not come to its end"),
])
def test_exec_fails_when_output_is_not_whole(
    jsctl: Jsctl, fake: Any, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch, entries: List[bytes], fault: str
) -> None:
    monkeypatch.setattr("jsclient.frames.NEXT_FRAME_SECONDS", 0.3)
    fake.programs["tar"] = live_program(raw, entries, bytes=[4, 0])
    ran = jsctl("exec", "1.1", "--", "tar")
    assert ran.code == 1 and ran.out == "b" and fault in ran.err


def test_exec_shows_the_lines_of_several_nodes_with_their_node(jsctl: Jsctl, fake: Any, raw: redis.Redis) -> None:
    entries = [frame(1, b"one\ntw"), frame(2, b"err\n"), frame(1, b"o\nrest"), end(b"one\ntwo\nrest", b"err\n")]
    fake.programs["say"] = live_program(raw, entries, bytes=[12, 4])
    for target in ("@web", "1.1,1.2"):
        ran = jsctl("exec", target, "--no-fold", "--", "say")
        want = [f"1.{n} | {text}" for n in (1, 2) for text in ("one", "two", "rest")]
        assert ran.code == 0 and sorted(ran.out.splitlines(), key=want.index) == want, ran
        assert sorted(ran.err.splitlines()) == ["1.1 | err", "1.2 | err", "2 OK, 0 failed"]
    assert "== " in jsctl("exec", "@web", "--", "say").out, "folded where stdout is no terminal"


def test_wait_for_the_result_begins_anew_with_each_output(
    jsctl: Jsctl, fake: Any, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jsclient.cli.send._DEFAULT_TIMEOUT_SECONDS", 1.5)

    def slow(node: Any, command: Dict[str, Any]) -> Dict[str, Any]:
        offset = 0
        for data in [frame(1, b"x")] * 6 + [end(b"xxxxxx")]:
            raw.xadd(f"jsacc:stream:{command['id']}", {"n": "1:1", "o": offset, "d": data})
            offset += len(data)
            threading.Event().wait(0.5)
        return {"bytes": [6, 0]}

    fake.programs["slow"] = slow
    ran = jsctl("exec", "1.1", "--", "slow")
    assert (ran.code, ran.out) == (0, "xxxxxx")


def test_end_of_the_wait_cuts_no_output_without_a_word(
    jsctl: Jsctl, fake: Any, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jsclient.frames.NEXT_FRAME_SECONDS", 3)
    monkeypatch.setattr("jsclient.frames.FIRST_FRAME_SECONDS", 3)
    fake.programs["tar"] = live_program(raw, [frame(1, b"part")], bytes=[1000, 0])
    ran = jsctl("exec", "1.1", "--timeout", "1", "--", "tar")
    assert ran.code == 1 and ran.out == "part" and "did not come to its end" in ran.err
    fake.programs["tar"] = live_program(raw, [], streams=["last line\n", ""], bytes=[10, 0])
    assert jsctl("exec", "1.1", "--timeout", "1", "--", "tar")[:2] == (0, "last line\n")


def test_wait_for_a_batch_begins_when_it_is_sent(jsctl: Jsctl, fake: Any, raw: redis.Redis) -> None:
    def slow(node: Any, command: Dict[str, Any]) -> Dict[str, Any]:
        threading.Event().wait(1)
        return {}

    fake.programs["slow"] = slow
    ran = jsctl("exec", "1.1,1.2,2.1", "--no-fold", "--batch", "1", "--timeout", "2", "--", "slow")
    assert ran.code == 0 and "3 OK" in ran.err, ran


def test_forgotten_watches_leave_nothing_behind(client: Client) -> None:
    with WatchReader(client) as reader:
        for n in range(100):
            reader.add(f"job-{n}", NODE)
            reader.release(f"job-{n}")
        assert not any(map(len, (reader._after, reader._nodes, reader._outputs, reader._untold, reader._watches._read)))


def test_partial_put_of_a_changed_file_stores_nothing_wrong(client: Client, raw: redis.Redis, tmp_path: Any) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * (17 << 20))
    upload = Upload(str(path))
    path.write_bytes(b"x" * (16 << 20) + b"y" * (1 << 20))
    with pytest.raises(UsageError, match="was changed"):
        upload.store(client)
    with redis.Redis(unix_socket_path=client.connection.where) as of_bytes:
        assert not of_bytes.exists(f"jsacc:blob:{upload.sha256}:16")


def follow_answers(fake: Any, raw: redis.Redis, entries: List[bytes]) -> None:
    """Make node 1.1 of the fake answer `follow`, and send these entries."""
    usual = fake.answer

    def answer(node: Any, command: Dict[str, Any]) -> Dict[str, Any]:
        if command["cmd"] != "follow":
            return usual(node, command)
        offset = 0
        for data in entries:
            raw.xadd(f"jsacc:stream:{command['id']}", {"n": "1:1", "o": offset, "d": data})
            offset += len(data)
        return {"level": 20, "data": '{"from": 0}'}

    fake.answer = answer


def test_follow_tells_of_gaps_and_of_the_node_that_sent_a_record(client: Client, fake: Any, raw: redis.Redis) -> None:
    record = note(3, {"id": 8, "jobid": "j", "epoch": 1, "level": 1, "data": "one", "gid": 9, "nid": 9})
    follow_answers(fake, raw, [note(4, {"records": 7}) + record])
    told: List[str] = []
    records = client.target("1.1").follow(on_error=lambda result: told.append(result.data))
    found = next(records)
    assert (found.data, found.node) == ("one", NODE)
    assert told == ["up to 7 records are missing here"]
    assert not [c for c in fake.seen if c["cmd"] == "get_msgs"], "the node is not asked again and again"


def test_follow_of_a_job_bridges_an_outage_and_brings_its_last_records(
    client: Client, fake: Any, raw: redis.Redis
) -> None:
    follow_answers(fake, raw, [])
    fake.record(1, 1, 1, "last", jobid="j")
    answers = iter([NoControllerError("no controller"), True])

    def until() -> bool:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert [record.data for record in client.target("1.1").follow(job="j", until=until)] == ["last"]
