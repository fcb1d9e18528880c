"""The commands of a node: each function returns the name, the arguments and the data of one command. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from . import keys, wire
from .errors import UsageError

#: The kinds of `info`, with the built-in command of each.
INFO = {
    "cpu": "get_cpu_info",
    "mem": "get_mem_info",
    "disk": "get_disk_info",
    "nic": "get_nic_info",
    "os": "get_os_info",
}

_LEVEL = re.compile(r"[0-9]{1,2}\Z")

Data = Union[str, bytes, Mapping[str, Any]]
Levels = Union[str, Sequence[int]]


@dataclass(frozen=True)
class CommandSpec:
    """A command without its target."""

    cmd: str
    args: Mapping[str, Any] = field(default_factory=dict)
    data: Union[str, Mapping[str, Any]] = ""

    @property
    def read_only(self) -> bool:
        """Return whether the command changes nothing on a node: `ping` and all `get_…`."""
        return self.cmd == "ping" or self.cmd.startswith("get_")


def raw(cmd: str, args: Optional[Mapping[str, Any]] = None, data: Data = "") -> CommandSpec:
    """Return any command; raise `UsageError` when `args` is no mapping or `data` is no text or mapping."""
    if args is not None and not isinstance(args, Mapping):
        raise UsageError(f"args must be a mapping, not {type(args).__name__}")
    if isinstance(data, bytes):
        try:
            data = data.decode("utf-8")
        except UnicodeDecodeError:
            raise UsageError("data must be UTF-8 text; send other bytes with put") from None
    elif not isinstance(data, (str, Mapping)):
        raise UsageError(f"data must be text or a mapping, not {type(data).__name__}")
    return CommandSpec(cmd, args or {}, data)


def execute(
    cmd: str,
    args: Optional[Sequence[object]] = None,
    *,
    data: Data = "",
    workingdir: Optional[str] = None,
    env: Optional[Mapping[str, str]] = None,
    **common: Any,
) -> CommandSpec:
    """Return the command that runs a program. Without `args`, `cmd` is split as a shell does; no shell runs.

    `common` are the arguments in `keys.COMMON_ARGS`; raise `UsageError` for any other.
    """
    if isinstance(args, (str, bytes)):
        raise UsageError("args must be a list of words, not one text")
    fields = _common(common)
    fields["cmd"] = cmd
    if args is not None:
        fields["args"] = [str(a) for a in args]
    if workingdir is not None:
        fields["workingdir"] = workingdir
    if env is not None:
        fields["env"] = {str(k): str(v) for k, v in env.items()}
    return raw("execute", fields, data)


def script(language: str, sha256: str, *, data: Any = "", **common: Any) -> CommandSpec:
    """Return the command that runs a stored script in `py` or `lua`; `data` is any JSON value."""
    return raw(f"execute_js_{language}", {**_common(common), "hash": sha256}, _json(data))


def installed_script(language: str, domain: str, name: str, *, data: Any = "", **common: Any) -> CommandSpec:
    """Return the command that runs a script from the jumpscript folder of the node; `data` is any JSON value."""
    return raw(f"execute_js_{language}", {**_common(common), "domain": domain, "name": name}, _json(data))


def ping() -> CommandSpec:
    """Return the command that answers `pong`."""
    return CommandSpec("ping")


def info(kind: str) -> CommandSpec:
    """Return the command for one of `cpu`, `mem`, `disk`, `nic`, `os`; raise `UsageError` for any other kind."""
    if kind not in INFO:
        raise UsageError(f"info knows {', '.join(INFO)}, not {kind!r}")
    return CommandSpec(INFO[kind])


def attach(job_id: str, tail: int = 0, start: Optional[Sequence[int]] = None) -> CommandSpec:
    """Return the command that opens a watch on a job.

    It begins so that at least `tail` bytes of what is left of its output come, or at these positions of stdout and
    stderr, or a little before them.
    """
    data: Dict[str, Any] = {"id": keys.check_id(job_id)}
    data.update({"tail": tail} if start is None else {"from": list(start)})
    return CommandSpec("attach", {}, data)


def attached(answer: Any, node: object) -> Tuple[int, int]:
    """Return the positions at which the watch of `attach` begins; raise `UsageError` when the answer has none."""
    start = answer.get("from") if isinstance(answer, dict) else None
    if isinstance(start, list) and len(start) == 2 and all(type(n) is int and n >= 0 for n in start):
        return start[0], start[1]
    raise UsageError(f"node {node} did not say where the output begins: its agent may be too old")


def get(path: str, offset: int = 0, length: Optional[int] = None) -> CommandSpec:
    """Return the command that sends a file of a node, from `offset` on and at most `length` bytes of it."""
    data: Dict[str, Any] = {"path": path, "offset": offset}
    data.update({} if length is None else {"length": length})
    return CommandSpec("get", {}, data)


def input_(job_id: str, offset: int, data: str, eof: bool) -> CommandSpec:
    """Return the command that writes base64 `data` to the stdin of a job, where `offset` bytes were taken before."""
    return CommandSpec("input", {}, {"id": keys.check_id(job_id), "offset": offset, "data": data, "eof": eof})


def resize(job_id: str, rows: int, columns: int) -> CommandSpec:
    """Return the command that changes the size of the terminal of a job."""
    return CommandSpec("resize", {}, {"id": keys.check_id(job_id), "rows": rows, "cols": columns})


def kill(job_id: str) -> CommandSpec:
    """Return the command that ends a job; it is not restarted and does not recur."""
    return CommandSpec("kill", {}, {"id": keys.check_id(job_id)})


def signal(job_id: str, name: Union[str, int]) -> CommandSpec:
    """Return the command that sends a signal to the process group of a job."""
    return CommandSpec("signal", {}, {"id": keys.check_id(job_id), "signal": signal_name(name)})


def signal_name(name: Union[str, int]) -> str:
    """Return `HUP` for `HUP`, `SIGHUP`, `hup` or 1; raise `UsageError` for a number without a signal."""
    if isinstance(name, int) or name.isdigit():
        import signal as signals

        try:
            name = signals.Signals(int(name)).name
        except ValueError:
            raise UsageError(f"there is no signal {name}") from None
    name = name.upper()
    return name[3:] if name.startswith("SIG") else name


def unschedule(job_id: str) -> CommandSpec:
    """Return the command that ends the recurrence of a job; the run in progress continues."""
    return CommandSpec("unschedule", {}, {"id": keys.check_id(job_id)})


def process_stats(job_id: str) -> CommandSpec:
    """Return the command for the resource usage of one running job."""
    return CommandSpec("get_process_stats", {}, {"id": keys.check_id(job_id)})


def schedules() -> CommandSpec:
    """Return the command that lists recurring jobs."""
    return CommandSpec("get_schedules")


def processes(domain: str = "", name: str = "") -> CommandSpec:
    """Return the command that lists running jobs, of one domain and name where given."""
    return CommandSpec("get_processes_stats", {}, _non_empty(domain=domain, name=name))


def messages(
    job_id: str = "",
    *,
    since: Optional[int] = None,
    until: Optional[int] = None,
    levels: Optional[Levels] = None,
    limit: Optional[int] = None,
    after: Optional[int] = None,
    delete: bool = False,
) -> CommandSpec:
    """Return the command that reads or deletes records of a node.

    `since` and `until` are milliseconds since 1970, both inclusive; `after` is the id of a record.
    """
    query: Dict[str, Any] = {}
    if job_id:
        query["jobid"] = keys.check_id(job_id)
    if levels is not None:
        query["levels"] = check_levels(levels)
    for key, value in (("timefrom", since), ("timeto", until), ("limit", limit), ("after", after)):
        if value is not None:
            query[key] = int(value)
    return CommandSpec("del_msgs" if delete else "get_msgs", {}, query)


def follow(
    job_id: str = "",
    *,
    since: Optional[int] = None,
    levels: Optional[Levels] = None,
    after: Optional[int] = None,
) -> CommandSpec:
    """Return the command that opens a watch on the records of a node; arguments as for `messages`."""
    return CommandSpec("follow", {}, messages(job_id, since=since, levels=levels, after=after).data)


def put(
    path: str, sha256: str, mode: Optional[str] = None, owner: Optional[str] = None, mkdir: bool = False,
    size: Optional[int] = None,
) -> CommandSpec:
    """Return the command that writes a stored file to `path` on the node; with `size` one that was stored in pieces.

    `mode` is octal (`"0644"`), `owner` is `user` or `user:group`. Raise `UsageError` for an invalid mode.
    """
    fields: Dict[str, Any] = {"path": path, "hash": sha256}
    if size is not None:
        fields["size"] = size
    if mode is not None:
        try:
            if not 0 <= int(mode, 8) <= 0o7777:
                raise ValueError
        except ValueError:
            raise UsageError(f"the mode is octal, 0644 say, not {mode!r}") from None
        fields["mode"] = mode
    if owner:
        fields["owner"] = owner
    if mkdir:
        fields["mkdir"] = True
    return CommandSpec("put", fields)


def check_levels(levels: Levels) -> Union[str, List[int]]:
    """Return a level set: `"*"`, `"1"`, `"1,2,3"`, `"1-5"`, a mix of these, or a list of numbers from 0 to 31.

    Raise `UsageError` for anything else.
    """
    if not isinstance(levels, str):
        out = [int(level) for level in levels]
        if any(not 0 <= level <= 31 for level in out):
            raise UsageError("a level is a number from 0 to 31")
        return out
    for part in filter(None, (p.strip() for p in levels.split(","))):
        first, _, last = part.partition("-")
        bounds = [first, last or first]
        are_levels = all(_LEVEL.match(b.strip()) and int(b) <= 31 for b in bounds)
        if part != "*" and (not are_levels or int(first) > int(bounds[1])):
            raise UsageError(f"levels are written 1, 1,2,3, 1-5 or *, not {levels!r}")
    return levels


def _common(common: Mapping[str, Any]) -> Dict[str, Any]:
    unknown = sorted(set(common) - keys.COMMON_ARGS)
    if unknown:
        raise UsageError(f"no such argument: {', '.join(unknown)}")
    return {key: value for key, value in common.items() if value is not None}


def _json(data: Any) -> Data:
    """Return data for a script: text and mappings unchanged, any other value as JSON, empty for `None`."""
    if data is None:
        return ""
    if isinstance(data, (str, bytes, Mapping)):
        return data
    return wire.dumps(data)


def _non_empty(**fields: Any) -> Dict[str, Any]:
    return {key: value for key, value in fields.items() if value}
