"""Shows the output of jobs as it comes: the bytes of one node as they are, the lines of several with their node."""

from __future__ import annotations

import codecs
import sys
import time
from typing import Any, Dict, Generator, Optional, Set, Tuple, Union

from ..errors import FAILED, TIMED_OUT, StreamBrokenError
from ..frames import STREAMS, Chunk, LineSplitter, NodeOutput, seconds_to_end
from ..keys import NodeId
from ..result import Result
from ..stream import WatchReader, check_whole
from . import render, stdio
from .output import Output
from .stdio import message

#: Results are looked for this often, in seconds, while output comes, and waited for this long.
_TURN_SECONDS, _RESULT_WAIT_SECONDS = 0.2, 0.01
#: Colors of nodes on a terminal, by their number: those that are readable on black and on white.
_COLORS = (36, 33, 32, 35, 34, 96, 95, 94)
_OVER: Any = object()


class BytesWriter:
    """Writes the bytes of one node as they are; text without control characters on a terminal."""

    def __init__(self) -> None:
        self._decoders: Dict[str, codecs.IncrementalDecoder] = {}

    def write(self, chunk: Chunk) -> None:
        """Write a chunk of stdout to stdout, of stderr to stderr."""
        if chunk.kind not in STREAMS:
            return
        is_stderr = chunk.kind == "stderr"
        if not (sys.stderr if is_stderr else sys.stdout).isatty():
            stdio.out_bytes(chunk.data, is_stderr)
            return
        decoder = self._decoders.get(chunk.kind)
        if decoder is None:
            decoder = self._decoders[chunk.kind] = codecs.getincrementaldecoder("utf-8")("replace")
        stdio.out_partial(decoder.decode(chunk.data), is_stderr)

    def finish(self) -> None:
        """Write what is left of a character that was cut."""
        for kind, decoder in self._decoders.items():
            rest = decoder.decode(b"", True)
            if rest:
                stdio.out_partial(rest, kind == "stderr")


class LinesWriter:
    """Writes the lines of several nodes, each with its node."""

    def __init__(self) -> None:
        self._splitter = LineSplitter()

    def write(self, chunk: Chunk) -> None:
        """Write the lines that a chunk completes."""
        for line in self._splitter.take(chunk):
            self.line(line.node, line.text, line.stream == "stderr")

    def line(self, node: NodeId, text: str, is_stderr: bool = False) -> None:
        """Write one line of a node."""
        stdio.node_line(str(node), text, _COLORS[(node.gid + node.nid) % len(_COLORS)], is_stderr)

    def finish(self) -> None:
        """Write the lines that have no end."""
        for line in self._splitter.rest():
            self.line(line.node, line.text, line.stream == "stderr")


Writer = Union[BytesWriter, LinesWriter]


class LiveOutput(Output):
    """Shows the output of the jobs of a fleet as it comes, and what is wrong with it."""

    def __init__(self, *args: Any, waits_from_output: bool = False, **options: Any) -> None:
        super().__init__(*args, **{**options, "progress": False})
        # The wait for the results begins anew with each output.
        self._waits_from_output = waits_from_output
        self._writer: Writer = BytesWriter() if self.single else LinesWriter()
        self._reader = WatchReader(self.client)
        self._ended: Set[NodeId] = set()
        # Results whose output may not have come to its end, and when the node sent the last.
        self._open: Dict[NodeId, Tuple[Result, float]] = {}
        # Nodes whose results were shown instead of their output.
        self._given_up: Set[NodeId] = set()
        self._broken = False

    def _results(self, limit: Optional[float]) -> Generator[Optional[Result], None, None]:
        last = time.monotonic()
        sent = -1
        with self._reader:
            while True:
                left = None if limit is None else max(last + limit - time.monotonic(), 0)
                step: Any = _OVER
                if left is None or left > 0:
                    watches = self.fleet.watches() if len(self.fleet.unsent) != sent else {}
                    for watch, node in watches.items():
                        self._reader.add(watch, node)
                    if watches:
                        # The wait for a batch begins when it is sent.
                        sent, last = len(self.fleet.unsent), time.monotonic()
                    # One step, after which output is looked for.
                    wait = _RESULT_WAIT_SECONDS if self._is_reading else _TURN_SECONDS
                    step = next(self.fleet.stream(left, tick=wait), _OVER)
                if step is _OVER and not self._open:
                    return
                yield None if step is _OVER else step
                if (self._show_output() or step not in (_OVER, None)) and self._waits_from_output:
                    last = time.monotonic()

    @property
    def _is_reading(self) -> bool:
        return len(self._ended) < len(self.fleet.nodes)

    def _show_output(self) -> bool:
        """Show what comes in one turn; return whether anything came."""
        until = time.monotonic() + _TURN_SECONDS
        came = False
        while self._is_reading and time.monotonic() < until:
            began, is_idle = time.monotonic(), True
            for chunk in self._reader.read(max(until - began, 0)):
                came, is_idle = True, False
                if chunk.node in self._given_up:
                    continue  # its result was shown instead
                if chunk.node in self._open:
                    self._open[chunk.node] = self._open[chunk.node][0], time.monotonic()
                if chunk.kind == "gap":
                    self._report(explain_gap(chunk))
                elif chunk.kind == "end":
                    self._ended.add(chunk.node)
                self._writer.write(chunk)
            self._finish_nodes(began if is_idle else None)
        return came

    def _show_result(self, result: Result) -> None:
        self._open[result.node] = result, time.monotonic()
        self._finish_nodes(None)

    def _finish_nodes(self, idle_since: Optional[float]) -> None:
        """Show the results of the nodes of which no more output is waited for.

        `idle_since` is the begin of a read that brought nothing: no other tells that nothing came.
        """
        for node, (result, since) in list(self._open.items()):
            output = self._reader.output(self.fleet.job_id(node), node)
            limit = seconds_to_end(output, result.bytes)
            if output.ended or not limit or (idle_since is not None and idle_since - since >= limit):
                del self._open[node]
                self._ended.add(node)
                self._finish(result, output)

    def _finish(self, result: Result, output: NodeOutput) -> None:
        if not output.ended and not output.offset:
            self._given_up.add(result.node)
            if result.truncated and result.bytes and any(result.bytes):
                self._report(f"{result.node}: its live output did not come; these are its last lines")
            if isinstance(self._writer, BytesWriter):
                super()._show_result(result)
                return
            for shown, is_stderr in ((render.body(result, with_stderr=False), False), (result.stderr, True)):
                for text in shown.split("\n") if shown else ():
                    self._writer.line(result.node, text, is_stderr)
        else:
            try:
                check_whole(output, result.bytes)
            except StreamBrokenError as e:
                self._report(str(e))
        if not result.ok:
            message(f"jsctl: {result.sentence(with_stderr=not output.offset)}")

    def _report(self, fault: str) -> None:
        self._broken = True
        message(f"jsctl: {fault}")

    def _flush(self) -> None:
        self._writer.finish()

    def _summarize(self, limit: Optional[float]) -> int:
        code = super()._summarize(limit)
        return FAILED if self._broken and code != TIMED_OUT else code


def explain_gap(chunk: Chunk) -> str:
    """Return a sentence that says how much is missing at a gap."""
    parts = [f"{chunk.detail[name]} bytes of {name}" for name in STREAMS if chunk.detail.get(name)]
    return f"{chunk.node}: {' and '.join(parts) or 'a part of the output'} are missing here"
