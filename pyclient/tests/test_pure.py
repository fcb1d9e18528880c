"""Pure functions: targets, decoding, tables."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

import jsclient
from jsclient import NodeId, Result, UsageError, clean, keys, wire
from jsclient._timeouts import WaitTimer
from jsclient.cli import render
from jsclient.errors import RedisUnavailableError
from jsclient.nodes import Node, format_age, parse_names
from jsclient.target_commands import batch_size
from jsclient.target import match_nodes, parse_excludes, parse_target


@pytest.mark.parametrize(
    "text,nodes,grids,roles,all_nodes,fanout",
    [
        ("1.10", [(1, 10)], [], [], False, None),
        ("1:10", [(1, 10)], [], [], False, None),
        ("1.10, 1.11,1.10", [(1, 10), (1, 11)], [], [], False, None),
        ("1.*", [], [1], [], False, (1, ["*"])),
        ("1.*,2.*", [], [1, 2], [], False, None),
        ("1.*,2.5", [(2, 5)], [1], [], False, None),
        ("@web", [], [], ["web"], False, (0, ["web"])),
        ("@web,db", [], [], ["web", "db"], False, (0, ["web", "db"])),
        ("@web,@db", [], [], ["web", "db"], False, (0, ["web", "db"])),
        ("all", [], [], [], True, (0, ["*"])),
        ("*", [], [], [], True, (0, ["*"])),
        ("@*", [], [], [], True, (0, ["*"])),
    ],
)
def test_targets_are_parsed(text: str, nodes: Any, grids: Any, roles: Any, all_nodes: bool, fanout: Any) -> None:
    it = parse_target(text)
    assert (list(it.nodes), list(it.grids), list(it.roles), it.all_nodes) == (nodes, grids, roles, all_nodes)
    assert it.fanout() == fanout


@pytest.mark.parametrize("text", ["", " ", ",", "1", "1.", "1.0", "0.1", "01.1", "-1.1", "1.4294967296", "web",
                                  "@", "@web,1.1", "1.1,@web", "all,@web", "1.1,,1.2", "1.x", "*.1"])
def test_malformed_targets_raise_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse_target(text)


def test_match_nodes_applies_target_and_excludes() -> None:
    known = [Node(1, 1, ("web",)), Node(1, 2, ("web", "db")), Node(2, 1, age=91), Node(2, 2, ("web",), age=5000)]

    def names(text: str, *exclude: str) -> Any:
        found = match_nodes(parse_target(text), known, parse_excludes(exclude))
        return [str(n) for n in found.live], [str(n.id) for n in found.offline], [str(n) for n in found.unknown]

    assert names("all") == (["1.1", "1.2"], ["2.1", "2.2"], [])
    assert names("@web", "1.1") == (["1.2"], ["2.2"], [])
    assert names("1.1,3.1,3.2", "3.2") == (["1.1"], [], ["3.1"])
    assert names("1.2,2.1", "@db") == ([], ["2.1"], [])
    assert names("2.*", "all") == ([], [], [])


def test_formatting_and_parsing_helpers_handle_edge_values() -> None:
    assert NodeId.from_key(b"1:10") == (1, 10) and str(NodeId(1, 10)) == "1.10"
    assert [NodeId.from_key(k) for k in ("1", "a:1", "1:", "cmd")] == [None] * 4
    assert keys.log_list("a b", "") == "log.a_b.unknown"
    assert parse_names(b'["a", "b"]') == parse_names(b"a,b") == ("a", "b") and parse_names(None) == ()
    assert [batch_size(b, 20) for b in (5, "5", "10%", "1%", "100%")] == [5, 5, 2, 1, 20]
    assert [format_age(s) for s in (0, 119, 120, 7200, 200000)] == ["0s", "119s", "2m", "2h", "2d"]
    assert [render.size(n) for n in (0, 1023, 1024, 5 << 30)] == ["0 B", "1023 B", "1.0 KiB", "5.0 GiB"]
    assert clean("a\x1b[31m\tb\n") == "a\ufffd[31m\tb\n"
    assert render.table(("A", "N"), [("x", 1), ("yy", 10)]) == "A    N\nx    1\nyy  10"
    assert render.table(("NAME", "N"), [("", 1)]) == "NAME  N\n-     1"
    assert render.value_text({"b": 1, "a": [1, 2]}) == "b  1\na  1,2"
    assert render.value_text("x") == "x" and render.value_text([]) == "[]"


def test_malformed_results_are_parsed_leniently() -> None:
    assert Result.from_json("{") is None and Result.from_json('{"state": "RUNNING"}') is None
    it = Result.from_json('{"state": "OK", "streams": "x", "args": [], "data": {"a": 1}, "extra": 1}')
    assert it and it.streams == ("", "") and it.data == '{"a":1}' and it.node == (0, 0)
    info = wire.JobInfo.from_hash("j", {b"cmd": b"ping", b"targets": b'["1:1","1:2"]', b"1:1": b'{"state":"OK"}',
                                        b"later": b"x", b"created": b"5"})
    assert info.command == {"cmd": "ping"} and info.open == [(1, 2)] and info.created == 5 and info.state == "OK"


def test_only_builtin_answers_get_units() -> None:
    def shown(cmd: str) -> str:
        data = '[{"path": "/", "used": 2048}]'
        return render.body(Result.from_dict({"cmd": cmd, "state": "OK", "level": 20, "data": data}))

    assert shown("get_disk_info").splitlines() == ["   used  path", "2.0 KiB  /"]
    assert shown("execute_js_py").splitlines() == ["path  used", "/     2048"]


def test_client_and_programs_have_one_version() -> None:
    workspace = (Path(__file__).parents[2] / "Cargo.toml").read_text()
    assert re.findall(r'^version = "(.*)"$', workspace, re.MULTILINE) == [jsclient.__version__]


def test_error_sentence_of_a_node_has_no_control_characters() -> None:
    failed = {"cmd": "get_file", "state": "ERROR", "data": "no file \x1b]0;x\x07\u202e\x9b"}
    shown = render.body(Result.from_dict(failed))
    assert shown == "no file \ufffd]0;x\ufffd\ufffd\ufffd"
    assert render.body(Result.from_dict({**failed, "streams": ["\x1b[1m", ""]})).startswith("\x1b[1m\n")


@pytest.mark.parametrize("seconds,transient,told", [(60.0, True, 1), (-1.0, True, 0), (60.0, False, 0)])
def test_outage_is_told_only_where_the_wait_goes_on(
    seconds: float, transient: bool, told: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    seen = []
    timer, away = WaitTimer(time.monotonic() + seconds), RedisUnavailableError("away", transient)
    if told:
        timer.back_off(away, seen.append)
    else:
        with pytest.raises(RedisUnavailableError):
            timer.back_off(away, seen.append)
    assert len(seen) == told
