"""A syntax check for Lua 5.4, which finds the line of an error before a script is sent. Pure.

It does not check labels, attributes and the escapes of strings; the Lua of the node does.
"""

from __future__ import annotations

import re
from typing import Iterator, List, NamedTuple, NoReturn

from .errors import UsageError


class _Token(NamedTuple):
    kind: str  # a keyword or an operator itself, or name, number, string, eof
    text: str
    line: int


_KEYWORDS = frozenset(
    "and break do else elseif end false for function goto if in local nil not or repeat return then true until"
    " while".split()
)
_TOKEN = re.compile(
    r"""(?P<space>\s+)
      | (?P<comment>--(?!\[=*\[)[^\n]*)
      | (?P<long>(?:--)?\[(?P<bars>=*)\[)
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<number>0[xX](?:[0-9a-fA-F]+\.?[0-9a-fA-F]*|\.[0-9a-fA-F]+)(?:[pP][+-]?[0-9]+)?
                  |(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
      | (?P<string>"(?:[^"\\\n]|\\z\s*|\\\r?\n|\\.)*"|'(?:[^'\\\n]|\\z\s*|\\\r?\n|\\.)*')
      | (?P<op>\.\.\.|\.\.|==|~=|<=|>=|//|::|<<|>>|[-+*/%^\#&~|<>=(){}\[\];:,.])
    """,
    re.VERBOSE,
)
_UNARY = frozenset(["not", "-", "#", "~"])
_BINARY = frozenset("+ - * / // % ^ .. == ~= < <= > >= and or & | ~ << >>".split())
_BLOCK_END = frozenset(["end", "else", "elseif", "until", "eof"])
#: Deepest nesting; Lua itself takes 200 levels.
_DEPTH = 190


def check_lua(source: bytes, name: str) -> None:
    """Raise `UsageError` with the line of the first syntax error."""
    text = source.decode("utf-8-sig", "replace")  # without a byte order mark
    if text.startswith("#"):  # a shebang
        text = "--" + text
    _Parser(list(_tokens(text, name)), name).chunk()


def _tokens(text: str, name: str) -> Iterator[_Token]:
    at, line = 0, 1
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            reason = "a string without its end" if text[at] in "\"'" else f"{text[at]!r} does not belong here"
            _fail(name, line, reason)
        kind, end = str(found.lastgroup if found.lastgroup != "bars" else "long"), found.end()
        if kind == "long":
            close = text.find(f"]{found['bars']}]", end)
            if close < 0:
                _fail(name, line, "a long comment or string without its end")
            end = close + 2 + len(found["bars"])
            if not found["long"].startswith("--"):
                yield _Token("string", text[at:end], line)
        elif kind == "name":
            yield _Token(found[0] if found[0] in _KEYWORDS else "name", found[0], line)
        elif kind in ("number", "string"):
            if kind == "number" and end < len(text) and (text[end].isalnum() or text[end] == "_"):
                _fail(name, line, f"malformed number near {text[at:end + 1]!r}")
            yield _Token(kind, found[0], line)
        elif kind == "op":
            yield _Token(found[0], found[0], line)
        line += text.count("\n", at, end)
        at = end
    yield _Token("eof", "the end", line)


def _fail(name: str, line: int, reason: str) -> NoReturn:
    raise UsageError(f"{name}, line {line}: syntax error: {reason}")


class _Parser:
    """Parses the tokens by recursive descent. `_loops` counts the enclosing loops, for `break`."""

    def __init__(self, tokens: List[_Token], name: str) -> None:
        self._tokens = tokens
        self._at = 0
        self._name = name
        self._loops = 0
        self._depth = 0

    def chunk(self) -> None:
        """Parse the whole source; raise `UsageError`."""
        self._block()
        if self._kind != "eof":
            self._unexpected("the end")

    @property
    def _kind(self) -> str:
        return self._tokens[self._at].kind

    def _unexpected(self, wanted: str) -> NoReturn:
        token = self._tokens[self._at]
        near = "at the end" if token.kind == "eof" else f"near {token.text[:20]!r}"
        _fail(self._name, token.line, f"{wanted} expected {near}")

    def _take(self, kind: str, expected: str = "") -> None:
        if self._kind != kind:
            self._unexpected(expected or f"'{kind}'")
        self._at += 1

    def _try(self, *kinds: str) -> bool:
        if self._kind in kinds:
            self._at += 1
            return True
        return False

    def _close(self, kind: str, opener: str, line: int) -> None:
        if self._kind != kind:
            self._unexpected(f"'{kind}' (to close '{opener}' of line {line})")
        self._at += 1

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > _DEPTH:
            _fail(self._name, self._tokens[self._at].line, "nested too deeply")

    def _block(self) -> None:
        self._deeper()
        while self._kind not in _BLOCK_END:
            if self._try("return"):
                if self._kind not in _BLOCK_END and self._kind != ";":
                    self._expressions()
                self._try(";")
                if self._kind not in _BLOCK_END:
                    self._unexpected("the end of the block after return")
                break
            self._statement()
        self._depth -= 1

    def _loop(self) -> None:
        self._loops += 1
        self._block()
        self._loops -= 1

    def _statement(self) -> None:
        kind, line = self._kind, self._tokens[self._at].line
        if self._try(";"):
            pass
        elif self._try("::"):
            self._take("name", "a label")
            self._take("::")
        elif self._try("goto"):
            self._take("name", "a label")
        elif self._try("break"):
            if not self._loops:
                _fail(self._name, line, "break outside a loop")
        elif self._try("do"):
            self._block()
            self._close("end", "do", line)
        elif self._try("while"):
            self._expression()
            self._take("do")
            self._loop()
            self._close("end", "while", line)
        elif self._try("repeat"):
            self._loop()
            self._close("until", "repeat", line)
            self._expression()
        elif self._try("if"):
            self._expression()
            self._take("then")
            self._block()
            while self._try("elseif"):
                self._expression()
                self._take("then")
                self._block()
            if self._try("else"):
                self._block()
            self._close("end", "if", line)
        elif self._try("for"):
            self._for(line)
        elif self._try("function"):
            self._take("name", "a name")
            while self._try("."):
                self._take("name", "a name")
            if self._try(":"):
                self._take("name", "a name")
            self._function_body(line)
        elif self._try("local"):
            self._local(line)
        elif kind in ("name", "("):
            self._call_or_assignment()
        else:
            self._unexpected("a statement")

    def _for(self, line: int) -> None:
        self._take("name", "a name")
        if self._try("="):
            self._expression()
            self._take(",")
            self._expression()
            if self._try(","):
                self._expression()
        else:
            while self._try(","):
                self._take("name", "a name")
            self._take("in", "'=' or 'in'")
            self._expressions()
        self._take("do")
        self._loop()
        self._close("end", "for", line)

    def _local(self, line: int) -> None:
        if self._try("function"):
            self._take("name", "a name")
            self._function_body(line)
            return
        while True:
            self._take("name", "a name")
            if self._try("<"):
                self._take("name", "const or close")
                self._take(">")
            if not self._try(","):
                break
        if self._try("="):
            self._expressions()

    def _call_or_assignment(self) -> None:
        kind = self._suffixed()
        if kind != "call" or self._kind in ("=", ","):
            while True:
                if kind != "variable":
                    self._unexpected("something to assign to" if self._kind in ("=", ",") else "a call")
                if not self._try(","):
                    break
                kind = self._suffixed()
            self._take("=", "'=' or a call")
            self._expressions()

    def _suffixed(self) -> str:
        """Parse a name or a parenthesis with its suffixes; return `call`, `variable` (can be assigned to) or `value`."""
        line = self._tokens[self._at].line
        if self._try("("):
            self._expression()
            self._close(")", "(", line)
            kind = "value"
        else:
            self._take("name", "an expression")
            kind = "variable"
        while True:
            line = self._tokens[self._at].line
            if self._try("."):
                self._take("name", "a name")
                kind = "variable"
            elif self._try("["):
                self._expression()
                self._close("]", "[", line)
                kind = "variable"
            elif self._try(":"):
                self._take("name", "a name")
                self._arguments()
                kind = "call"
            elif self._kind in ("(", "string", "{"):
                self._arguments()
                kind = "call"
            else:
                return kind

    def _arguments(self) -> None:
        line = self._tokens[self._at].line
        if self._try("string"):
            return
        if self._kind == "{":
            self._table()
            return
        self._take("(", "arguments")
        if self._kind != ")":
            self._expressions()
        self._close(")", "(", line)

    def _table(self) -> None:
        line = self._tokens[self._at].line
        self._take("{")
        while self._kind != "}":
            if self._try("["):
                self._expression()
                self._take("]")
                self._take("=")
            elif self._kind == "name" and self._tokens[self._at + 1].kind == "=":
                self._at += 2
            self._expression()
            if not self._try(",", ";"):
                break
        self._close("}", "{", line)

    def _function_body(self, line: int) -> None:
        self._take("(")
        if self._kind != ")":
            while True:
                if self._try("..."):
                    break
                self._take("name", "a parameter")
                if not self._try(","):
                    break
        self._take(")")
        loops, self._loops = self._loops, 0
        self._block()
        self._loops = loops
        self._close("end", "function", line)

    def _expressions(self) -> None:
        self._expression()
        while self._try(","):
            self._expression()

    def _expression(self) -> None:
        self._deeper()
        while True:
            while self._kind in _UNARY:
                self._at += 1
            line = self._tokens[self._at].line
            if self._try("function"):
                self._function_body(line)
            elif self._kind == "{":
                self._table()
            elif not self._try("nil", "true", "false", "number", "string", "..."):
                self._suffixed()
            if self._kind not in _BINARY:
                break
            self._at += 1
        self._depth -= 1
