"""A script's source: from a file, a text or a Python function; checked before it is sent."""

from __future__ import annotations

import hashlib
import inspect
import os
import textwrap
from dataclasses import dataclass
from types import CodeType
from typing import Any, BinaryIO, Callable, Optional, Set, Union

from . import wire
from .errors import UsageError


@dataclass(frozen=True)
class Script:
    """A source that can be sent."""

    source: bytes
    #: `py` or `lua`.
    language: str

    @property
    def sha256(self) -> str:
        """The name under which it is stored."""
        return hashlib.sha256(self.source).hexdigest()


def load(
    path: Optional[str] = None,
    source: Union[str, bytes, None] = None,
    function: Optional[Callable[..., Any]] = None,
    language: Optional[str] = None,
) -> Script:
    """One of `path`, `source` and `function`; a syntax error is a `UsageError` with its line."""
    if sum(x is not None for x in (path, source, function)) != 1:
        raise UsageError("give one of path, source and function")
    name = path or "the script"
    if path is not None:
        ending = os.path.splitext(path)[1].lower()
        language = language or {".py": "py", ".lua": "lua"}.get(ending)
        raw = read_file(path)
        if language is None:
            raise UsageError(f"{path}: a script ends in .py or .lua, or say which language it is")
    elif function is not None:
        language, raw = "py", of_function(function).encode()
        name = getattr(function, "__name__", "the function")
    else:
        language, raw = language or "py", source.encode() if isinstance(source, str) else source or b""
    if language not in ("py", "lua"):
        raise UsageError(f"the language of a script is py or lua, not {language!r}")
    if len(raw) > wire.MAX_SCRIPT:
        raise UsageError(f"{name} has {len(raw)} bytes; the most is {wire.MAX_SCRIPT}")
    if language == "py":
        check_python(raw, name)
    else:
        from .lua import check_lua

        check_lua(raw, name)
    return Script(raw, language)


def read_file(path: str) -> bytes:
    """A file of at most 16 MiB; a `UsageError` says why it cannot be read."""
    try:
        with open(path, "rb") as file:
            return read_all(file, path)
    except (OSError, ValueError) as e:
        if isinstance(e, UsageError):
            raise
        raise UsageError(f"cannot read {path}: {getattr(e, 'strerror', None) or e}") from None


def read_all(file: BinaryIO, name: str) -> bytes:
    """Returns the content of a file, a pipe or a device, within the bound: an endless one is not read for ever."""
    content = file.read(wire.MAX_SCRIPT + 1)
    if len(content) > wire.MAX_SCRIPT:
        raise UsageError(f"{name} has more than {wire.MAX_SCRIPT} bytes, which is the most that can be sent")
    return content


def check_python(source: bytes, name: str) -> None:
    """Says where a Python source has a syntax error."""
    try:
        compile(source, name, "exec", dont_inherit=True)
    except SyntaxError as e:
        raise UsageError(f"{name}, line {e.lineno}: syntax error: {e.msg}") from None
    except ValueError as e:
        raise UsageError(f"{name}: {e}") from None


def _globals(code: CodeType) -> Set[str]:
    import dis

    found = {str(step.argval) for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            found |= _globals(inner)
    return found


def of_function(function: Callable[..., Any]) -> str:
    """The source of a plain function, with `action` naming it, so that the node calls it with the data."""
    name = getattr(function, "__name__", "")
    if not inspect.isfunction(function) or name == "<lambda>":
        raise UsageError("only a function made with def can be sent")
    if function.__closure__:
        names = ", ".join(function.__code__.co_freevars)
        raise UsageError(f"{name} uses {names} from around it, which the node does not have: pass it as data")
    # The node gives every script its own log, stat and result.
    around = sorted(_globals(function.__code__) & set(function.__globals__) - {name, "log", "stat", "result"})
    if around:
        raise UsageError(f"{name} uses {', '.join(around)} from outside: import or define it inside the function")
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):
        raise UsageError(f"the source of {name} cannot be found: put it into a file") from None
    # Annotations and defaults may name what only the caller has imported; annotations at least need not run.
    lines = source.splitlines(keepends=True)
    while lines and lines[0].lstrip().startswith("@"):
        lines.pop(0)
    source = "from __future__ import annotations\n\n" + "".join(lines)
    return source if name == "action" else f"{source}\n\naction = {name}\n"
