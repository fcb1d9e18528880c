"""Script sources from a file, a text or a Python function, with a syntax check."""

from __future__ import annotations

import hashlib
import inspect
import os
import textwrap
from dataclasses import dataclass
from types import CodeType
from typing import Any, BinaryIO, Callable, Optional, Set, Union

from . import keys
from .errors import UsageError


@dataclass(frozen=True)
class Script:
    """A script with a valid syntax."""

    source: bytes
    #: `py` or `lua`.
    language: str

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of the source in hexadecimal, its name in the script store."""
        return hashlib.sha256(self.source).hexdigest()


def load_script(
    path: Optional[str] = None,
    source: Union[str, bytes, None] = None,
    function: Optional[Callable[..., Any]] = None,
    language: Optional[str] = None,
) -> Script:
    """Return the script from one of `path`, `source` and `function`.

    `language` is `py` or `lua`; by default the file name suffix tells it, else it is `py`. Raise `UsageError` with
    the line for a syntax error, and for a source of more than 16 MiB.
    """
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
        language, raw = "py", function_source(function).encode()
        name = getattr(function, "__name__", "the function")
    else:
        language, raw = language or "py", source.encode() if isinstance(source, str) else source or b""
    if language not in ("py", "lua"):
        raise UsageError(f"the language of a script is py or lua, not {language!r}")
    if len(raw) > keys.MAX_SCRIPT_BYTES:
        raise UsageError(f"{name} has {len(raw)} bytes; the most is {keys.MAX_SCRIPT_BYTES}")
    if language == "py":
        check_python(raw, name)
    else:
        from .lua import check_lua

        check_lua(raw, name)
    return Script(raw, language)


def read_file(path: str) -> bytes:
    """Return the content of a file of at most 16 MiB; raise `UsageError` when it is larger or cannot be read."""
    try:
        with open(path, "rb") as file:
            return read_all(file, path)
    except (OSError, ValueError) as e:
        if isinstance(e, UsageError):
            raise
        raise UsageError(f"cannot read {path}: {getattr(e, 'strerror', None) or e}") from None


def read_all(file: BinaryIO, name: str) -> bytes:
    """Return the content of a file, a pipe or a device; raise `UsageError` when it has more than 16 MiB."""
    content = file.read(keys.MAX_SCRIPT_BYTES + 1)
    if len(content) > keys.MAX_SCRIPT_BYTES:
        raise UsageError(f"{name} has more than {keys.MAX_SCRIPT_BYTES} bytes, which is the most that can be sent")
    return content


def check_python(source: bytes, name: str) -> None:
    """Raise `UsageError` with the line of the first syntax error of a Python source."""
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


def function_source(function: Callable[..., Any]) -> str:
    """Return the source of a function, with `action` as a second name for it.

    Raise `UsageError` for a lambda, a closure, or a function that uses names from outside.
    """
    name = getattr(function, "__name__", "")
    if not inspect.isfunction(function) or name == "<lambda>":
        raise UsageError("only a function made with def can be sent")
    if function.__closure__:
        names = ", ".join(function.__code__.co_freevars)
        raise UsageError(f"{name} uses {names} from around it, which the node does not have: pass it as data")
    # The node defines log, stat and result in every script.
    around = sorted(_globals(function.__code__) & set(function.__globals__) - {name, "log", "stat", "result"})
    if around:
        raise UsageError(f"{name} uses {', '.join(around)} from outside: import or define it inside the function")
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):
        raise UsageError(f"the source of {name} cannot be found: put it into a file") from None
    # Annotations may use names that only the caller has imported, so they must not be evaluated.
    lines = source.splitlines(keepends=True)
    while lines and lines[0].lstrip().startswith("@"):
        lines.pop(0)
    source = "from __future__ import annotations\n\n" + "".join(lines)
    return source if name == "action" else f"{source}\n\naction = {name}\n"
