"""Tables, sizes, times and results as text. Pure but for `emit`."""

from __future__ import annotations

import re
import sys
from typing import Any, Dict, Iterable, List, Mapping, Sequence

from ..errors import ResultDecodeError
from ..keys import NodeId
from ..nodes import format_time as format_time
from ..nodes import join_names as join_names
from ..result import Result
from ..text import clean, one_line, shortened
from ..values import dump_json, plain
from . import stdio

_BYTES = frozenset(
    "total available used free swap_total swap_used rss vms read written rx_bytes tx_bytes".split()
)
#: Keys of the built-in answers in the order of display; others follow in their own order.
_ORDER = {
    key: at
    for at, key in enumerate(
        "hostname name os version kernel device mount fstype mac mtu addrs arch brand physical logical mhz usage"
        " load total used free available swap_total swap_used readonly removable rx_bytes tx_bytes rx_errors"
        " tx_errors uptime boottime agent".split()
    )
}
#: Most characters of a cell, and of one in the last column, which widens no other.
MAX_CELL, MAX_LAST_CELL = 200, 1000
#: Objects with more keys are shown as JSON: a table has a cell for each key in each row.
MAX_COLUMNS = 50
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?(e\+[0-9]+)?( |\Z)|-\Z")
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return columns of equal width, two spaces between them, numbers to the right; `...` ends a cell that was cut."""
    limits = [MAX_CELL] * (len(head) - 1) + [MAX_LAST_CELL]
    cells = [list(map(cell, row, limits)) for row in rows]
    columns = list(zip(*cells)) if cells else [()] * len(head)
    widths = [max([len(h), *map(len, column)]) for h, column in zip(head, columns)]
    right = [any(c != "-" for c in column) and all(map(_NUMBER.match, column)) for column in columns]
    if not right[-1]:
        widths[-1] = 0
    form = "  ".join(f"{{:{'>' if r else '<'}{w}}}" for w, r in zip(widths, right))
    return "\n".join(form.format(*row).rstrip() for row in [list(head), *cells])


def cell(value: object, most: int = MAX_CELL) -> str:
    """Return a value as one line of at most `most` characters, none of them a control character; `-` for an empty one."""
    if type(value) is str and 0 < len(value) <= most and value.isprintable():
        return value
    if value is None or value == "":
        return "-"
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) < 1e15 else f"{value:g}"
    if isinstance(value, (list, tuple)) and not isinstance(value, NodeId):
        value = ",".join(str(v) for v in value) or "-"
    return one_line(shortened(str(value), most))


def size(count: float) -> str:
    """Return a number of bytes with a binary unit: `1.5 MiB`."""
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count /= 1024
        unit += 1
    return f"{count:.0f} {_UNITS[unit]}" if unit == 0 else f"{count:.1f} {_UNITS[unit]}"


def friendly(name: str, value: Any) -> Any:
    """Return the value of a field for a table: bytes with a unit, times as local time."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e24:
        if name in _BYTES:
            return size(value)
        if name in ("starttime", "boottime") and value > 0:
            return format_time(value if value > 1e11 else value * 1000)
    return value


def value_text(value: Any, is_builtin: bool = True) -> str:
    """Return a decoded result as text: an object as one line for each key, a list of objects as a table, else JSON.

    Only in the answer of a built-in command (`is_builtin`) does the name of a key tell the unit of its number.
    """
    shown = friendly if is_builtin else (lambda _, v: v)
    value = plain(value, finite=False)
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        value = {k: value[k] for k in (_ordered(value) if is_builtin else value)}
    if isinstance(value, Mapping) and value and not any(isinstance(v, (Mapping)) for v in value.values()):
        width = max(len(cell(k)) for k in value)
        return "\n".join(f"{cell(k).ljust(width)}  {cell(shown(k, v), sys.maxsize)}" for k, v in value.items())
    if isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
        head = list(dict.fromkeys(str(k) for row in value for k in row))
        head = _ordered(head) if is_builtin else head
        if not 0 < len(head) <= MAX_COLUMNS:
            return dump_json(value, indent=2)
        return table(head, [[shown(k, row.get(k)) for k in head] for row in value])
    if isinstance(value, float):
        return str(value)
    return dump_json(value, indent=2)


def _ordered(keys: Iterable[Any]) -> List[Any]:
    return sorted(keys, key=lambda key: _ORDER.get(key, len(_ORDER)))


def body(result: Result, with_stderr: bool = True) -> str:
    """Return the output of a result: its streams, its data or the reason of its failure, its critical message."""
    parts = [result.stdout]
    if with_stderr:
        parts.append(result.stderr)
    if result.level >= 20 and result.data:
        try:
            parts.append(value_text(result.value, is_builtin=result.cmd.startswith("get_")))
        except ResultDecodeError:
            parts.append(result.data)
    elif result.data and not result.ok:
        # A sentence, which is cleaned also in a pipe; the output of a process is not.
        parts.append(clean(result.data))
    if result.critical:
        parts.append(f"critical: {result.critical}")
    return "\n".join(p for p in parts if p)


def status(result: Result) -> str:
    """Return `OK`, or the state with the exit status."""
    if result.ok:
        return "OK"
    return f"{result.state}, status {result.code}" if result.code else result.state


def _words(value: object) -> List[str]:
    return [str(word) for word in value] if isinstance(value, list) else []


def describe_command(command: Mapping[str, Any], most: int = 60) -> str:
    """Return a command as one line of at most `most` characters."""
    args = command.get("args")
    words: List[str] = [str(command.get("cmd", ""))]
    if isinstance(args, dict):
        if command.get("cmd") == "grant":
            words += [*_words(args.get("add")), *(f"-{name}" for name in _words(args.get("remove")))]
        elif args.get("cmd"):
            words = [str(args["cmd"]), *_words(args.get("args"))]
        else:
            words += [str(args[k]) for k in ("domain", "name", "path") if args.get(k)]
            if not args.get("name") and args.get("hash"):
                words.append(str(args["hash"])[:12])
    return shortened(" ".join(words), most)


def document(result: Result) -> Dict[str, Any]:
    """Return a result for --json: all its fields, `node`, and `value` (null when it cannot be decoded)."""
    out = {"node": str(result.node), **result.to_dict()}
    if result.args.get("secret"):
        out["args"] = {k: "***" if k == "env" else v for k, v in result.args.items()}
    if result.level >= 20:
        try:
            out["value"] = result.value
        except ResultDecodeError:
            out["value"] = None
    return out


def emit(items: List[Dict[str, Any]], ndjson: bool) -> None:
    """Write a list as one JSON document, or one object a line."""
    if ndjson:
        for item in items:
            stdio.out_json(item)
    else:
        stdio.out_json(items, indent=2)
