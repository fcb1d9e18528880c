"""Values as text: tables, sizes, times, and what of a result people want to see. Pure."""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, Mapping, Sequence

from ..errors import Undecodable
from ..nodes import moment as moment
from ..nodes import names as names
from ..text import clean, one_line
from ..values import dump_json, plain
from ..wire import NodeId, Result
from . import stdio

_BYTES = frozenset(
    "total available used free swap_total swap_used rss vms read written rx_bytes tx_bytes".split()
)
#: Keys of the built-in answers in the order in which people read them; others follow as they came.
_ORDER = {
    key: at
    for at, key in enumerate(
        "hostname name os version kernel device mount fstype mac mtu addrs arch brand physical logical mhz usage"
        " load total used free available swap_total swap_used readonly removable rx_bytes tx_bytes rx_errors"
        " tx_errors uptime boottime agent".split()
    )
}
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns of equal width, two spaces between them; numbers to the right."""
    cells = [[cell(value) for value in row] for row in rows]
    columns = list(zip(*cells)) if cells else [()] * len(head)
    widths = [max([len(h), *map(len, column)]) for h, column in zip(head, columns)]
    right = [any(c != "-" for c in column) and all(map(_is_number, column)) for column in columns]
    form = "  ".join(f"{{:{'>' if r else '<'}{w}}}" for w, r in zip(widths, right))
    return "\n".join(form.format(*row).rstrip() for row in [list(head), *cells])


def cell(value: object) -> str:
    """A value as one line without control characters; `-` for nothing."""
    if type(value) is str and value and value.isprintable():
        return value
    if value is None or value == "":
        return "-"
    if isinstance(value, float):
        return f"{value:.1f}"
    if isinstance(value, (list, tuple)) and not isinstance(value, NodeId):
        value = ",".join(str(v) for v in value) or "-"
    return one_line(str(value))


def shortened(value: object, most: int) -> object:
    """A cell's value, a long text cut to `most` characters."""
    return value[:most] if isinstance(value, str) and len(value) > most else value


def _is_number(cell: str) -> bool:
    return cell == "-" or cell.replace(".", "", 1).replace("-", "", 1).split(" ")[0].isdigit()


def size(count: float) -> str:
    """Bytes for people."""
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count /= 1024
        unit += 1
    return f"{count:.0f} {_UNITS[unit]}" if unit == 0 else f"{count:.1f} {_UNITS[unit]}"


def friendly(name: str, value: Any) -> Any:
    """A field's value for a table."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e24:
        if name in _BYTES:
            return size(value)
        if name in ("starttime", "boottime") and value > 0:
            return moment(value if value > 1e11 else value * 1000)
    return value


def value_text(value: Any, ours: bool = True) -> str:
    """A decoded result: an object a line for each key, a list of objects as a table, else JSON or the text.

    Only in the built-in answers (`ours`) does a key's name say what its number counts; a script's may be anything.
    """
    shown = friendly if ours else (lambda _, v: v)
    value = plain(value, finite=False)
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        value = {k: value[k] for k in (_ordered(value) if ours else value)}
    if isinstance(value, Mapping) and value and not any(isinstance(v, (Mapping)) for v in value.values()):
        width = max(len(cell(k)) for k in value)
        return "\n".join(f"{cell(k).ljust(width)}  {cell(shown(k, v))}" for k, v in value.items())
    if isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
        head = list(dict.fromkeys(str(k) for row in value for k in row))
        head = _ordered(head) if ours else head
        return table(head, [[shown(k, row.get(k)) for k in head] for row in value])
    if isinstance(value, float):
        return str(value)
    return dump_json(value, indent=2)


def _ordered(keys: Iterable[Any]) -> List[Any]:
    return sorted(keys, key=lambda key: _ORDER.get(key, len(_ORDER)))


def body(result: Result, with_stderr: bool = True) -> str:
    """What a result has to show, without who it is from."""
    parts = [result.stdout]
    if with_stderr:
        parts.append(result.stderr)
    if result.level >= 20 and result.data:
        try:
            parts.append(value_text(result.value, ours=result.cmd.startswith("get_")))
        except Undecodable:
            parts.append(result.data)
    elif result.data and not result.ok:
        # A sentence, and no output of a process that a pipe gets as it is.
        parts.append(clean(result.data))
    if result.critical:
        parts.append(f"critical: {result.critical}")
    return "\n".join(p for p in parts if p)


def status(result: Result) -> str:
    """`OK`, or the state and what belongs to it."""
    if result.ok:
        return "OK"
    return f"{result.state}, status {result.code}" if result.code else result.state


def _words(value: object) -> List[str]:
    return [str(word) for word in value] if isinstance(value, list) else []


def asked(command: Mapping[str, Any], most: int = 60) -> str:
    """A command in a few words."""
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
    text = " ".join(words)
    return text if len(text) <= most else text[: most - 3] + "..."


def document(result: Result) -> Dict[str, Any]:
    """A result as --json shows it: as it came, with `node`, and `value` where it could be decoded."""
    out = {"node": str(result.node), **result.to_dict()}
    if result.args.get("secret"):
        out["args"] = {k: "***" if k == "env" else v for k, v in result.args.items()}
    if result.level >= 20:
        try:
            out["value"] = result.value
        except Undecodable:
            out["value"] = None
    return out


def emit(items: List[Dict[str, Any]], ndjson: bool) -> None:
    """A list as one document, or a line each."""
    if ndjson:
        for item in items:
            stdio.out_json(item)
    else:
        stdio.out_json(items, indent=2)
