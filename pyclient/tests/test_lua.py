"""The syntax check for Lua."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jsclient import UsageError
from jsclient.lua import check_lua

GOOD = [
    "",
    "#!/usr/bin/lua\nprint('x')",
    "\ufeffprint('x')",
    "\ufeff#!/usr/bin/lua\nprint('x')",
    "local a, b <const> = 1, 0x1F ; a = a + b * -2 ^ 3 .. 'x' // 1",
    "for i = 1, 10, 2 do if i > 3 then break end end",
    "for k, v in pairs{1, 2; x = 3, ['y'] = 4,} do print(k, v) end",
    "function a.b.c:d(x, ...) return ... end",
    "local function f() return end",
    "repeat local x = f{} until x == nil",
    "while not done do goto next ::next:: end",
    "local s = [==[ long ]] ]==] --[[ c\n]] print 'x' (f or g)(1)",
    "a.b[1].c, d = (function() return 1, 2 end)()",
    "x = a and b or not c ~= d < e",
    "x = 1e5 + .5 + 3. + 0xA.8p1 & ~2 | 3 << 1",
    "obj:method 'x' {1}.y = 2",
    r"""x = "a\"b\\" .. 'it\'s' .. "line\
two" """,
]
BAD = [
    ("x =", 1, "an expression expected at the end"),
    ("x", 1, "'=' or a call"),
    ("\nif a then\nprint(1)\n", 4, "'end' (to close 'if' of line 2) expected at the end"),
    ("print(1", 1, "')' (to close '(' of line 1)"),
    ("for i in do end", 1, "an expression"),
    ("break", 1, "break outside a loop"),
    ("x = 'abc\n", 1, "string without its end"),
    ("x = [[abc", 1, "long comment or string"),
    ("f() = 1", 1, "something to assign to"),
    ("(x) = 1", 1, "something to assign to"),
    ("(x)", 1, "a call expected"),
    ("return 1 x = 2", 1, "after return"),
    ("x = 3y", 1, "malformed number"),
    ("x = $", 1, "'$'"),
    ("end", 1, "the end expected"),
    ("local 1 = 2", 1, "a name expected"),
    ("x = " + "(" * 500, 1, "nested too deeply"),
]


@pytest.mark.parametrize("source", GOOD)
def test_valid_lua_is_accepted(source: str) -> None:
    check_lua(source.encode(), "s.lua")


@pytest.mark.parametrize("source,line,what", BAD)
def test_invalid_lua_is_refused_with_its_line(source: str, line: int, what: str) -> None:
    with pytest.raises(UsageError, match=rf"^s.lua, line {line}: syntax error: .*{re.escape(what)}"):
        check_lua(source.encode(), "s.lua")


def test_scripts_of_the_repository_are_valid() -> None:
    root = Path(__file__).parents[2]
    for path in [*root.glob("agent/**/*.lua"), *root.glob("acc/**/*.lua")]:
        check_lua(path.read_bytes(), path.name)
