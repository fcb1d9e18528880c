"""Large texts and numbers of nodes: tables and sentences stay small, JSON has all of them."""

from __future__ import annotations

import json
from typing import Any, Callable, List

import pytest
from conftest import Ran
from fake import Fake

from jsclient import Result
from jsclient.cli import render, top

Jsctl = Callable[..., Ran]
HUGE = "x" * 1_000_000


@pytest.mark.parametrize("field", ["hostname", "os", "version", "addr", "roles", "claims"])
def test_huge_text_of_a_node_is_cut_in_the_table(jsctl: Jsctl, fake: Fake, raw: Any, field: str) -> None:
    raw.hset("jsacc:agent:1:1", field, json.dumps([HUGE]) if field in ("roles", "claims") else HUGE)
    ran = jsctl("nodes")
    assert ran.code == 0 and len(ran.out) < 6000 and "xxx..." in ran.out
    assert HUGE in jsctl("nodes", "--json").out


@pytest.mark.parametrize("words,fields", [
    (["events"], {"name": HUGE, "data": HUGE}), (["events"], {"name": "x", "data": {HUGE: HUGE}}),
    (["audit"], {"by": HUGE, "cmd": HUGE, "targets": [HUGE], "id": HUGE}), (["rejected"], {"reason": HUGE, "command": HUGE}),
])
def test_huge_entry_is_cut_in_the_table(jsctl: Jsctl, fake: Fake, raw: Any, words: List[str], fields: Any) -> None:
    raw.lpush(f"jsacc:{words[0]}", json.dumps({"time": 1, **fields}))
    ran = jsctl(*words)
    assert ran.code == 0 and len(ran.out) < 4000 and "xxx..." in ran.out
    assert HUGE in jsctl(*words, "--json").out


def test_last_column_is_cut_later_and_widens_no_row() -> None:
    lines = render.table(("A", "B"), [("1", HUGE), (HUGE, "2"), ("3", "4")]).splitlines()
    assert [len(line) for line in lines] == [203, 202 + 1000, 203, 203]
    assert lines[1].endswith("xxx...") and lines[2] == "x" * 197 + "...  2"


def test_number_of_many_digits_widens_no_column(jsctl: Jsctl, fake: Fake, raw: Any) -> None:
    assert render.value_text({"a": 1e308, "b": -1e300, "c": 0.5}) == "a  1e+308\nb  -1e+300\nc  0.5"
    assert render.table(("N",), [(1e308,), (1.5,)]) == "     N\n1e+308\n   1.5"
    assert len(render.table(("N", "M"), [(10**3000, 1)]).splitlines()[1]) == 203
    raw.hset("jsacc:stats:1:1", mapping={"huge": "[1e308, 1767225600]", "large": "[12345678, 1767225600]"})
    values = [line.split()[2] for line in jsctl("stats", "1.1").out.splitlines()]
    assert values == ["VALUE", "1e+308", "12345678"]


def test_result_of_many_keys_is_json_and_of_a_long_key_is_cut() -> None:
    def shown(value: object) -> str:
        result = {"cmd": "execute_js_py", "state": "OK", "level": 20, "data": json.dumps(value)}
        return render.body(Result.from_dict(result))

    many = [{f"k{i}": i} for i in range(3000)]
    assert json.loads(shown(many)) == many
    assert json.loads(shown([{}, {}])) == [{}, {}]
    assert shown([{"k": 1}, {"k": 2}]) == "k\n1\n2"
    text = shown({HUGE: 1, **{str(i): i for i in range(1000)}})
    assert len(text) < 300_000 and "xxx...  1\n" in text
    assert shown({"k": HUGE}) == f"k  {HUGE}"


def test_huge_reason_of_a_failure_is_cut(jsctl: Jsctl, fake: Fake) -> None:
    fake.programs["fail"] = lambda n, c: {"state": "ERROR", "code": 1, "data": HUGE}
    ran = jsctl("exec", "1.1", "--", "fail")
    assert ran.code == 1 and len(ran.err) < 1100 and ran.err.endswith("xxx...\n")
    assert HUGE in jsctl("exec", "1.1", "--json", "--", "fail").out


def test_top_cuts_huge_fields_of_a_process() -> None:
    row = (None, "a" * 32, HUGE, HUGE, HUGE, HUGE, HUGE, "0.0", "0 B", HUGE, "1s", HUGE)
    assert all(len(line) <= 80 for line in top.fit([row], 80).splitlines())
    assert "aaaaaaaaaaaa " in top.fit([(row[0], row[1], "sh -c " + HUGE, *["x"] * 9)], 100)
