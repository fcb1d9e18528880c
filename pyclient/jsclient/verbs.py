"""What can be asked of a node: each function makes the name, the arguments and the data of one command. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

from . import wire
from .errors import UsageError

#: The five of `info`, and the built-in command of each.
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
class Verb:
    """A command without its target."""

    cmd: str
    args: Mapping[str, Any] = field(default_factory=dict)
    data: Union[str, Mapping[str, Any]] = ""

    @property
    def looks(self) -> bool:
        """Whether it changes nothing on a node."""
        return self.cmd == "ping" or self.cmd.startswith("get_")


def raw(cmd: str, args: Optional[Mapping[str, Any]] = None, data: Data = "") -> Verb:
    """Any command, built in or not."""
    if args is not None and not isinstance(args, Mapping):
        raise UsageError(f"args must be a mapping, not {type(args).__name__}")
    if isinstance(data, bytes):
        try:
            data = data.decode("utf-8")
        except UnicodeDecodeError:
            raise UsageError("data must be UTF-8 text; send other bytes with put") from None
    elif not isinstance(data, (str, Mapping)):
        raise UsageError(f"data must be text or a mapping, not {type(data).__name__}")
    return Verb(cmd, args or {}, data)


def execute(
    cmd: str,
    args: Optional[Sequence[object]] = None,
    *,
    data: Data = "",
    workingdir: Optional[str] = None,
    env: Optional[Mapping[str, str]] = None,
    **common: Any,
) -> Verb:
    """A program. Without `args`, `cmd` is split as a shell would split it; no shell runs it."""
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


def script(language: str, sha256: str, *, data: Any = "", **common: Any) -> Verb:
    """A script that the script store holds; `data` may be anything that JSON can hold."""
    return raw(f"execute_js_{language}", {**_common(common), "hash": sha256}, _json(data))


def installed_script(language: str, domain: str, name: str, *, data: Any = "", **common: Any) -> Verb:
    """A script that lies on the node, below its jumpscript folder."""
    return raw(f"execute_js_{language}", {**_common(common), "domain": domain, "name": name}, _json(data))


def ping() -> Verb:
    """Answers `pong`."""
    return Verb("ping")


def info(kind: str) -> Verb:
    """One of `cpu`, `mem`, `disk`, `nic`, `os`."""
    if kind not in INFO:
        raise UsageError(f"info knows {', '.join(INFO)}, not {kind!r}")
    return Verb(INFO[kind])


def kill(job_id: str) -> Verb:
    """Ends a job and forgets it."""
    return Verb("kill", {}, {"id": wire.check_id(job_id)})


def signal(job_id: str, name: Union[str, int]) -> Verb:
    """Sends a signal to a job's process group."""
    return Verb("signal", {}, {"id": wire.check_id(job_id), "signal": signal_name(name)})


def signal_name(name: Union[str, int]) -> str:
    """`HUP` from `HUP`, `SIGHUP`, `hup` or a number."""
    if isinstance(name, int) or name.isdigit():
        import signal as signals

        try:
            name = signals.Signals(int(name)).name
        except ValueError:
            raise UsageError(f"there is no signal {name}") from None
    name = name.upper()
    return name[3:] if name.startswith("SIG") else name


def unschedule(job_id: str) -> Verb:
    """Lets the run under way end, and no other follow."""
    return Verb("unschedule", {}, {"id": wire.check_id(job_id)})


def process_stats(job_id: str) -> Verb:
    """One running job."""
    return Verb("get_process_stats", {}, {"id": wire.check_id(job_id)})


def schedules() -> Verb:
    """The recurring jobs."""
    return Verb("get_schedules")


def processes(domain: str = "", name: str = "") -> Verb:
    """The running jobs, of a domain and a name where given."""
    return Verb("get_processes_stats", {}, _given(domain=domain, name=name))


def messages(
    job_id: str = "",
    *,
    since: Optional[int] = None,
    until: Optional[int] = None,
    levels: Optional[Levels] = None,
    limit: Optional[int] = None,
    after: Optional[int] = None,
    delete: bool = False,
) -> Verb:
    """Records of the node's database; times in milliseconds, `after` is a record's id."""
    query: Dict[str, Any] = {}
    if job_id:
        query["jobid"] = wire.check_id(job_id)
    if levels is not None:
        query["levels"] = check_levels(levels)
    for key, value in (("timefrom", since), ("timeto", until), ("limit", limit), ("after", after)):
        if value is not None:
            query[key] = int(value)
    return Verb("del_msgs" if delete else "get_msgs", {}, query)


def put(path: str, sha256: str, mode: Optional[str] = None, owner: Optional[str] = None, mkdir: bool = False) -> Verb:
    """A file from the script store, written to `path` on the node."""
    fields: Dict[str, Any] = {"path": path, "hash": sha256}
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
    return Verb("put", fields)


def check_levels(levels: Levels) -> Union[str, List[int]]:
    """A level set as the node takes it: `"*"`, `"1"`, `"1,2,3"`, `"1-5"`, a mix, or a list of numbers."""
    if not isinstance(levels, str):
        out = [int(level) for level in levels]
        if any(not 0 <= level <= 31 for level in out):
            raise UsageError("a level is a number from 0 to 31")
        return out
    for part in filter(None, (p.strip() for p in levels.split(","))):
        first, _, last = part.partition("-")
        bounds = [first, last or first]
        if part != "*" and (not all(_LEVEL.match(b.strip()) and int(b) <= 31 for b in bounds) or int(first) > int(bounds[1])):
            raise UsageError(f"levels are written 1, 1,2,3, 1-5 or *, not {levels!r}")
    return levels


def _common(common: Mapping[str, Any]) -> Dict[str, Any]:
    unknown = sorted(set(common) - wire.COMMON_ARGS)
    if unknown:
        raise UsageError(f"no such argument: {', '.join(unknown)}")
    return {key: value for key, value in common.items() if value is not None}


def _json(data: Any) -> Data:
    """A list, a number… as the JSON that an action gets as its argument; text stays as it is."""
    if data is None:
        return ""
    if isinstance(data, (str, bytes, Mapping)):
        return data
    return wire.dumps(data)


def _given(**fields: Any) -> Dict[str, Any]:
    return {key: value for key, value in fields.items() if value}
