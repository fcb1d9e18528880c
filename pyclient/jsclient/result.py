"""The result of a job on one node, and the errors that carry results. Pure."""

from __future__ import annotations

import builtins
import json
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from .errors import Error
from .keys import FINAL_STATES, NodeId
from .text import one_line, shortened
from .values import decode, integer, load_json, plain

# One encoder for all calls: `json.dumps` with options builds a new one for each.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
#: Most lines and bytes of each stream in a result; an agent keeps the last ones.
MAX_STREAM_LINES = 1000
MAX_STREAM_BYTES = 64 * 1024
#: Most characters of a reason in a sentence.
MAX_REASON = 1000
#: Most bytes of the last message of levels 20 to 23 in a result.
MAX_DATA_BYTES = 1024 * 1024


def _at_the_limit(streams: Sequence[object], data: object) -> bool:
    """Return whether a stream or the data is so large that the agent may have truncated it."""
    if any(isinstance(stream, str) and _stream_at_the_limit(stream) for stream in streams[:2]):
        return True
    if not isinstance(data, str) or len(data) < MAX_DATA_BYTES // 4:
        return False
    return len(data.encode("utf-8", "replace")) > MAX_DATA_BYTES - 4


def _stream_at_the_limit(text: str) -> bool:
    # An agent drops whole lines, so less than the limit may be left.
    if len(text) > MAX_STREAM_BYTES // 8 and len(text.encode("utf-8", "replace")) > MAX_STREAM_BYTES // 2:
        return True
    return text.count("\n") >= MAX_STREAM_LINES - 1


def _counts(value: object) -> Optional[Tuple[int, int]]:
    if isinstance(value, list) and len(value) >= 2:
        return integer(value[0]), integer(value[1])
    return None


@dataclass
class Result:
    """The final state of a job on one node. `time` is in milliseconds, `starttime` in milliseconds since 1970."""

    id: str
    gid: int
    nid: int
    cmd: str
    args: Dict[str, Any]
    data: str
    level: int
    state: str
    code: int
    time: int
    starttime: int
    streams: Tuple[str, str]
    critical: str
    tags: str
    #: Number of bytes written to stdout and stderr; `None` from an agent that does not count them.
    bytes: Optional[Tuple[int, int]] = None
    #: Whether `streams` or `data` is incomplete, or may be when the agent does not say so.
    truncated: bool = False

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Result:
        """Return the result from its JSON object; missing and malformed fields are empty or 0."""
        get = raw.get
        streams = get("streams")
        if not isinstance(streams, list) or len(streams) < 2:
            streams = ["", ""]
        data = get("data", "")
        args = get("args")
        truncated = get("truncated")
        if not isinstance(truncated, bool):
            truncated = _at_the_limit(streams, data)
        return cls(
            id=str(get("id", "")),
            gid=integer(get("gid")),
            nid=integer(get("nid")),
            cmd=str(get("cmd", "")),
            args=args if isinstance(args, dict) else {},
            data=data if isinstance(data, str) else _encode(plain(data)),
            level=integer(get("level")),
            state=str(get("state", "")),
            code=integer(get("code")),
            time=integer(get("time")),
            starttime=integer(get("starttime")),
            streams=(str(streams[0]), str(streams[1])),
            critical=str(get("critical") or ""),
            tags=str(get("tags") or ""),
            bytes=_counts(get("bytes")),
            truncated=truncated,
        )

    @classmethod
    def from_json(cls, raw: Union[str, builtins.bytes]) -> Optional[Result]:
        """Parse an entry of a result list or of a job hash; `None` when it is no final result."""
        try:
            value = load_json(raw)
        except ValueError:
            return None
        if not isinstance(value, dict) or value.get("state") not in FINAL_STATES:
            return None
        return cls.from_dict(value)

    def to_dict(self) -> Dict[str, Any]:
        """Return the result as a JSON object."""
        return {
            "id": self.id,
            "gid": self.gid,
            "nid": self.nid,
            "cmd": self.cmd,
            "args": self.args,
            "data": self.data,
            "level": self.level,
            "state": self.state,
            "code": self.code,
            "time": self.time,
            "starttime": self.starttime,
            "streams": list(self.streams),
            "critical": self.critical,
            "tags": self.tags,
            "bytes": None if self.bytes is None else list(self.bytes),
            "truncated": self.truncated,
        }

    @property
    def ok(self) -> bool:
        """Return whether the state is `OK`."""
        return self.state == "OK"

    @property
    def node(self) -> NodeId:
        """Return the node of the result, also when a controller answered for it; node id 0 when no node matched."""
        return NodeId(self.gid, self.nid)

    @property
    def stdout(self) -> str:
        """Return the last lines of unmarked stdout."""
        return self.streams[0]

    @property
    def stderr(self) -> str:
        """Return the last lines of unmarked stderr."""
        return self.streams[1]

    @property
    def value(self) -> Any:
        """Return `data` decoded by its level: JSON (20), YAML (21), TOML (22), else text; raise `ResultDecodeError`."""
        return decode(self.level, self.data)

    @property
    def truncation(self) -> str:
        """Return a sentence that names the missing parts of `streams` and `data`; empty when nothing is missing."""
        if not self.truncated:
            return ""
        if self.bytes is None:
            return f"its output may be truncated: an agent keeps the last {MAX_STREAM_LINES} lines and 64 KiB of each stream"
        parts = []
        for name, text, count in zip(("stdout", "stderr"), self.streams, self.bytes):
            shown = len(text.encode("utf-8", "replace"))
            # The count includes marked lines, so only a stream at its limit can be truncated.
            if count > shown + 1 and _stream_at_the_limit(text):
                parts.append(f"the last {shown} of {count} bytes of {name}")
        return f"its output is truncated to {' and '.join(parts)}" if parts else "its output or its data is truncated"

    def sentence(self, with_stderr: bool = True) -> str:
        """Return one sentence with the command, the node, the state and the last line of the reason.

        The reason may be the last line of stderr, unless that was shown before.
        """
        who = f"{self.cmd or 'the command'}"
        if self.nid:
            who += f" on {self.node}"
        if self.ok:
            return one_line(f"{who} ended OK")
        why = {"TIMEOUT": "ran out of time", "KILLED": "was killed"}.get(self.state, "failed")
        if self.state == "ERROR" and self.code:
            why += f" with status {self.code}"
        detail = self.critical or (self.data if self.level == 0 or self.state != "OK" else "") or (self.stderr if with_stderr else "")
        lines = detail.strip().splitlines()
        return one_line(f"{who} {why}" + (f": {shortened(lines[-1].strip(), MAX_REASON)}" if lines else ""))

    def raise_for_status(self) -> Result:
        """Return the result when it is `OK`, else raise `JobFailedError`."""
        if not self.ok:
            raise JobFailedError(self)
        return self


class JobFailedError(Error):
    """A job did not end with `OK`."""

    def __init__(self, result: Result) -> None:
        super().__init__(result.sentence())
        #: The result with a state other than `OK`.
        self.result = result


class FleetFailedError(Error):
    """Some nodes of a fleet failed or did not answer."""

    def __init__(self, message: str, failed: Sequence[Result], missing: Sequence[str]) -> None:
        super().__init__(message)
        #: The results that are not `OK`.
        self.failed: List[Result] = list(failed)
        #: The nodes (`"1.10"`) that did not answer.
        self.missing: List[str] = list(missing)
