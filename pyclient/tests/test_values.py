"""Values of nodes that JSON cannot hold, are nested deeply, or expand far beyond their text."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from typing import Any, Callable, Dict

import pytest
from conftest import Ran
from fake import Fake

from jsclient import Client, UsageError
from jsclient.errors import ResultDecodeError
from jsclient.values import MAX_NESTING, decode, dump_json, load_json
from jsclient.wire import Command

Jsctl = Callable[..., Ran]
DEEP = "[" * 1500 + "]" * 1500
ALIASES = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi")
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{','.join([f'*{before}'] * 9)}]}}\n" for before, name in zip("abcdefgh", "bcdefghi")
)
#: Level, text, and the value in `--json`; `None` when it cannot be decoded.
VALUES = [
    (22, "at = 2026-01-31T12:00:00Z\nday = 2026-01-31\n", {"at": "2026-01-31T12:00:00+00:00", "day": "2026-01-31"}),
    (22, "n = nan\ni = inf\n", {"n": None, "i": None}),
    (22, "a = " + DEEP, None),
    (21, "!!set {b, a}", ["a", "b"]),
    (21, "!!binary aGFsbG8=", "aGFsbG8="),
    (21, "2026-01-31", "2026-01-31"),
    (21, "{1: a, null: b, 2026-01-31: c}", {"1": "a", "null": "b", "2026-01-31": "c"}),
    (21, "[.inf, .nan]", [None, None]),
    (21, "0x" + "f" * 5000, hex(int("f" * 5000, 16))),
    (21, "&a [*a]", None),
    (21, DEEP, None),
    (21, ALIASES, None),
    (21, MERGES, None),
    (21, '!!timestamp "x"', None),
    (21, '!!int ""', None),
    (21, "!!bool x", None),
    (21, "!!python/object:os.system {}", None),
    (20, DEEP, None),
    (20, '{"a": NaN, "b": Infinity, "c": 1e999}', {"a": None, "b": None, "c": None}),
    (20, '["caf\\udce9", "\\u009b31m\\u202e"]', ["caf\udce9", "\u009b31m\u202e"]),
    (20, "[" + "1" * 5000 + "]", None),
    (20, "{", None),
]


@pytest.mark.parametrize("level,text,shown", VALUES, ids=range(len(VALUES)))
def test_every_value_is_shown_and_written_as_json(jsctl: Jsctl, fake: Fake, level: int, text: str, shown: Any) -> None:
    fake.programs["say"] = lambda n, c: {"level": level, "data": text} if n == (1, 1) else {"level": 20, "data": "7"}
    ran = jsctl("exec", "1.1,1.2", "--json", "--", "say")
    assert ran.code == 0 and not any(word in ran.out for word in "\u009b\u202e"), ran.err
    found: Dict[str, Any] = {item["node"]: item["value"] for item in json.loads(ran.out, parse_constant=pytest.fail)}
    assert found == {"1.1": shown, "1.2": 7}
    ran = jsctl("exec", "1.1,1.2", "--", "say")
    assert ran.code == 0 and "== 1.1" in ran.out and "== 1.2\n7" in ran.out and "fault" not in ran.err
    ran = jsctl("exec", "1.1", "--ndjson", "--", "say")
    assert ran.code == 0 and json.loads(ran.out)["value"] == shown


def test_yaml_aliases_take_no_memory() -> None:
    code = f"from jsclient.values import decode\ntry:\n  decode(21, {ALIASES!r})\nexcept Exception as e: print(e)"

    def little_memory() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))

    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, timeout=60,
                          preexec_fn=little_memory)
    assert "its aliases make it too large" in done.stdout, done.stderr
    shared = decode(21, "a: &a [1, 2]\nb: [*a, *a]\nc: {<<: {d: 1}}\n")
    assert shared == {"a": [1, 2], "b": [[1, 2], [1, 2]], "c": {"d": 1}}


def test_nesting_up_to_the_limit_is_decoded() -> None:
    text = "[" * MAX_NESTING + "]" * MAX_NESTING
    for level in (20, 21):
        assert json.dumps(decode(level, text)) == text
        with pytest.raises(ResultDecodeError, match="nested"):
            decode(level, f"[{text}]")
    # Brackets in strings do not count.
    assert load_json(json.dumps(["[" * 1000, '"[' * 1000, "\\"])) == ["[" * 1000, '"[' * 1000, "\\"]
    assert json.loads(dump_json({"a": {1, 2}, (1, 2): b"x"})) == {"a": [1, 2], "[1, 2]": "eA=="}


@pytest.mark.parametrize("command,words", [
    ("ps", ["all"]), ("schedules", ["all"]), ("top", ["--once"]), ("logs", ["all"]), ("info", ["disk"]),
])
@pytest.mark.parametrize("level,data", [(20, "{"), (20, DEEP), (20, "[1]"), (20, '{"a": 1}'), (21, "!!bool x"), (0, "x")])
def test_undecodable_result_hides_no_other_node(
    jsctl: Jsctl, fake: Fake, client: Client, command: str, words: Any, level: int, data: str
) -> None:
    client.execute(1, 2, "sleep", ["9"], id="good")
    fake.record(1, 2, 1, "good")
    fake.schedules[(1, 2)] = [{"id": "good"}]
    answer = fake.answer
    bad = {"level": level, "data": data}
    fake.answer = lambda n, c: bad if n == (1, 1) else answer(n, c)  # type: ignore[method-assign]
    ran = jsctl(command, *words)
    assert ("good" in ran.out or "/dev/sda1" in ran.out) and "fault" not in ran.err, ran
    ran = jsctl(command, *words, "--json")
    assert isinstance(json.loads(ran.out), list) and ("good" in ran.out or "/dev/sda1" in ran.out)


def test_malformed_job_hashes_break_no_listing(jsctl: Jsctl, fake: Fake, raw: Any) -> None:
    jsctl("exec", "1.1", "--", "uname")
    command = '{"cmd":"execute","args":{"cmd":"x","args":5},"by":7}'
    raw.hset("jsacc:job:odd", mapping={"cmd": command, "created": "1e300", "targets": "5", "1:1": '{"state":"OK","time":1e400}'})
    raw.lpush("jsacc:jobs", "odd")
    for text in ('{"id":"odd","cmd":5,"args":[],"targets":7,"count":"x","time":1e300}', "[" * 2000, "\u009b"):
        raw.lpush("jsacc:audit", text)
        raw.lpush("jsacc:events", text)
        raw.lpush("jsacc:rejected", text)
    raw.hset("jsacc:stats:1:1", mapping={"a": "[1e400, 5]", "b": "[1, 1e400]", "c": "[NaN, 5]", "d": "[" * 2000})
    for words in (["jobs"], ["job", "odd"], ["audit"], ["events"], ["rejected"], ["stats", "1.1"], ["nodes"]):
        for flag in ([], ["--json"], ["--ndjson"]):
            ran = jsctl(*words, *flag)
            assert ran.code == 0 and "fault" not in ran.err, ran
            for line in [ran.out] if flag == ["--json"] else ran.out.splitlines() if flag else []:
                json.loads(line, parse_constant=pytest.fail)


@pytest.mark.parametrize("args", [
    {"a": float("nan")}, {"a": "\udce9"}, {"a": json.loads("[" * 500 + "]" * 500)}, {"a": {1, 2}}, {"a": object()},
])
def test_unsendable_arguments_are_a_usage_error(args: Any) -> None:
    with pytest.raises(UsageError):
        Command("x", 1, 1, args).to_json()
