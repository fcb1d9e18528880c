"""Frames of live output, checked byte by byte against the counts and hashes of the node. Pure."""

from __future__ import annotations

import codecs
import struct
from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from .errors import StreamBrokenError
from .keys import NodeId
from .values import load_json

#: Largest payload of a frame, in bytes.
MAX_FRAME_BYTES = 256 * 1024
#: A longer line is yielded in pieces of this many characters.
MAX_LINE = 64 * 1024

#: The names of the kinds of frames.
KINDS = {1: "stdout", 2: "stderr", 3: "record", 4: "gap", 5: "end"}
STREAMS = ("stdout", "stderr")
_HEADER = struct.Struct(">B3sI")


@dataclass(frozen=True)
class Chunk:
    """A piece of live output of one node: bytes of `stdout` or `stderr`, a `record`, a `gap`, or the `end`."""

    node: NodeId
    #: `stdout`, `stderr`, `record`, `gap` or `end`.
    kind: str
    #: The bytes of stdout or stderr as the process wrote them; empty for the other kinds.
    data: bytes = b""
    #: The record; of a gap the number of missing bytes in `stdout` and `stderr`, and of `records`; of the end `bytes`
    #: and `sha256` of each stream, or `error`, the reason why there is no more.
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """A line of a job's output, without its line feed. A line of more than 64 Ki characters comes in pieces."""

    node: NodeId
    #: `stdout` or `stderr`.
    stream: str
    text: str


def frames(data: bytes) -> Iterator[Tuple[str, bytes]]:
    """Yield kind and payload of each frame; raise `StreamBrokenError` at bytes that are no whole frame."""
    at = 0
    while at < len(data):
        if len(data) - at < _HEADER.size:
            raise StreamBrokenError("a part of a frame came")
        kind, zeros, length = _HEADER.unpack_from(data, at)
        at += _HEADER.size
        if kind not in KINDS or zeros != b"\0\0\0" or length > MAX_FRAME_BYTES or length > len(data) - at:
            raise StreamBrokenError(f"a frame of kind {kind} and {length} bytes came, with {len(data) - at} bytes behind")
        yield KINDS[kind], data[at : at + length]
        at += length


class NodeOutput:
    """The live output of one node in one watch: counts and hashes what comes, and compares at the end."""

    def __init__(self, node: NodeId, start: Sequence[int] = (0, 0)) -> None:
        self.node = node
        #: Bytes of frames so far: where the next entry begins.
        self.offset = 0
        #: Where the output of the job begins in this watch, in bytes of stdout and stderr.
        self.start = (start[0], start[1])
        #: The bytes that came, or are told as missing, of stdout and stderr.
        self.count = [0, 0]
        #: The bytes and records that are told as missing.
        self.missing = 0
        #: Whether the end came, or the output is broken.
        self.ended = False
        #: Why the output is not known to be whole; empty when it is, or may still be.
        self.fault = ""
        #: Whether the bytes that came are not those that were sent.
        self.differs = False
        # A third of the time of an import of the whole package.
        import hashlib

        self._hashes = [hashlib.sha256(), hashlib.sha256()]

    def take(self, offset: int, data: bytes) -> Iterator[Chunk]:
        """Yield the chunks of an entry; raise `StreamBrokenError` when one before it is lost, or it breaks a rule.

        What came before is left out: a node sends again what a Redis has lost.
        """
        try:
            if 0 <= offset < self.offset:
                data = data[self.offset - offset :]
            elif offset != self.offset:
                raise StreamBrokenError(f"output after byte {self.offset} of its frames is lost, it goes on at {offset}")
            for kind, payload in frames(data):
                yield self._chunk(kind, payload)
            self.offset += len(data)
        except StreamBrokenError as e:
            self.ended, self.fault = True, str(e)
            raise StreamBrokenError(f"node {self.node}: {e}") from None

    def _chunk(self, kind: str, payload: bytes) -> Chunk:
        if self.ended:
            raise StreamBrokenError("more output came after its end")
        if kind in STREAMS:
            n = STREAMS.index(kind)
            self.count[n] += len(payload)
            self._hashes[n].update(payload)
            return Chunk(self.node, kind, payload)
        try:
            detail = load_json(payload)
        except (ValueError, RecursionError):
            detail = None
        if not isinstance(detail, dict):
            raise StreamBrokenError(f"a frame of kind {kind} is no JSON object")
        if kind == "gap":
            for n, name in enumerate((*STREAMS, "records")):
                missing = _count(detail.get(name, 0), f"{name} of a gap")
                self.missing += missing
                if n < 2:
                    self.count[n] += missing
        elif kind == "end":
            self._check_end(detail)
            self.ended = True
        return Chunk(self.node, kind, b"", detail)

    def _check_end(self, end: Mapping[str, Any]) -> None:
        if "error" in end:
            self.fault = str(end["error"])
            return
        if "size" in end:  # of a file; its bytes are those of stdout
            self._check_hash(0, end)
            return
        for n, name in enumerate(STREAMS):
            said = end.get(name)
            if not isinstance(said, dict):
                raise StreamBrokenError(f"the end does not say how many bytes {name} had")
            position = self.start[n] + self.count[n]
            count = _count(said.get("bytes"), f"bytes of {name}")
            if count != position:
                raise StreamBrokenError(f"{name} has {count} bytes, and {position} came")
            self._check_hash(n, said)

    def _check_hash(self, n: int, said: Mapping[str, Any]) -> None:
        if said.get("sha256") != self._hashes[n].hexdigest():
            self.differs = True
            raise StreamBrokenError(f"the SHA-256 of {STREAMS[n]} is not that of the bytes that came")


def _count(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise StreamBrokenError(f"{name} is no count")
    return value


class LineSplitter:
    """Makes lines of the bytes of many nodes."""

    def __init__(self) -> None:
        self._decoders: Dict[Tuple[NodeId, str], codecs.IncrementalDecoder] = {}
        self._rests: Dict[Tuple[NodeId, str], str] = {}

    def take(self, chunk: Chunk) -> List[Line]:
        """Return the lines that this chunk completes; at the end of a node also those without a line feed."""
        if chunk.kind == "end":
            return [line for name in STREAMS for line in self._lines(chunk.node, name, b"", True)]
        return self._lines(chunk.node, chunk.kind, chunk.data, False) if chunk.kind in STREAMS else []

    def rest(self) -> List[Line]:
        """Return what is left without a line feed of nodes without an end."""
        return [line for node, name in list(self._decoders) for line in self._lines(node, name, b"", True)]

    def _lines(self, node: NodeId, name: str, data: bytes, final: bool) -> List[Line]:
        key = node, name
        decoder = self._decoders.get(key)
        if decoder is None:
            decoder = self._decoders[key] = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(data, final)
        rest = self._rests.pop(key, "")
        *whole, last = (rest + text).split("\n")
        if final:
            del self._decoders[key]
            whole.extend([last] if last else [])
        else:
            while len(last) >= MAX_LINE:
                whole.append(last[:MAX_LINE])
                last = last[MAX_LINE:]
            if last:
                self._rests[key] = last
        return [
            Line(node, name, text[at : at + MAX_LINE])
            for text in whole
            for at in range(0, max(len(text), 1), MAX_LINE)
        ]


#: A node sends its output with its result, or soon after it: this long, in seconds, none is waited for.
FIRST_FRAME_SECONDS = 10.0
#: A node that has begun to send, and sends nothing for this time, in seconds, after its result, is given up.
NEXT_FRAME_SECONDS = 60.0


def seconds_to_end(output: NodeOutput, written: Optional[Tuple[int, int]]) -> float:
    """Return how long after the result to wait for more output; `written` are the counts in the result.

    An agent that does not count sends no live output, and one whose job wrote nothing may leave out the end.
    """
    if output.offset:
        return NEXT_FRAME_SECONDS
    return FIRST_FRAME_SECONDS if written and any(written) else 0.0
