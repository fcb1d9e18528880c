"""Reads live output: the frames of many watches with one reader, and one thread that keeps the watches alive.

A client watches by a key that it renews (`jsacc:watch:<id>`), whose value says up to which entry it has read; the
controller keeps the entries after that. Nodes' frames are in the stream `jsacc:stream:<id>`.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Callable, Dict, Iterator, Mapping, Optional, Sequence, Tuple

from . import keys
from ._session import Session
from ._timeouts import WaitTimer
from .errors import Error, StreamBrokenError, WaitTimeoutError
from .frames import Chunk, NodeOutput, seconds_to_end
from .keys import NodeId

#: A watch is renewed this often, in seconds.
RENEWAL_SECONDS = 8.0
#: Pause before a renewal that failed is repeated, in seconds.
_RETRY_SECONDS = 1.0
#: A renewal that is under way at the end is waited for so long, in seconds.
_JOIN_SECONDS = 2.0
#: Bytes that were read and that a controller is not told of yet.
_MAX_UNTOLD = 1024 * 1024
#: Fewest and most entries of one read of a stream; an entry has at most 1 MiB, a stream 32 MiB.
_MIN_ENTRIES, _MAX_ENTRIES = 16, 1024
#: Bytes of one read, about.
_READ_BYTES = 4 * 1024 * 1024
#: Longest read, in seconds, before the result is looked for.
_STEP_SECONDS = 0.5


class Watches:
    """The watches of one client, kept alive by one thread until they are let go."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._read: Dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._is_closed = False
        # A renewal must not come after the end of its watch.
        self._sending = threading.Lock()
        self._thread: Optional[threading.Thread] = None

    def add(self, watch: str) -> None:
        """Keep a watch alive from now on; the first renewal is made at once."""
        with self._lock:
            self._read.setdefault(watch, b"0-0")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="watches", daemon=True)
                self._thread.start()
        self._wake.set()

    def note(self, watch: str, entry: bytes, tell: bool) -> None:
        """Note the last entry that was read; with `tell` a controller is told now, else with the next renewal."""
        with self._lock:
            # Entries that Redis has lost come again under lower ids.
            if watch in self._read and _order(entry) > _order(self._read[watch]):
                self._read[watch] = entry
        if tell:
            self._wake.set()

    def renew(self) -> None:
        """Renew all watches now."""
        self._wake.set()

    def release(self, watch: str) -> None:
        """Let a watch go: its node sends nothing more, and the controller drops what is left."""
        with self._lock:
            known = self._read.pop(watch, None)
        if known is not None:
            self._expire([watch])

    def close(self) -> None:
        """Let all watches go and end the thread."""
        with self._lock:
            left, thread = list(self._read), self._thread
            self._read.clear()
            self._is_closed = True
        self._wake.set()
        if thread is not None:
            # A renewal that is under way would come after the end of the watch.
            thread.join(_JOIN_SECONDS)
        self._expire(left)

    def _expire(self, watches: Sequence[str]) -> None:
        # The documented user may set watches and not delete them.
        try:
            with self._sending:
                self._session.connection.bulk([("SET", keys.watch(watch), "1", "PX", 1) for watch in watches])
        except Error:
            pass  # they expire

    def _run(self) -> None:
        wait = 0.0
        while True:
            self._wake.wait(wait)
            self._wake.clear()
            with self._sending:
                with self._lock:
                    if self._is_closed:
                        return
                    ttl = keys.WATCH_TTL_SECONDS
                    sets = [("SET", keys.watch(watch), entry, "EX", ttl) for watch, entry in self._read.items()]
                try:
                    self._session.connection.bulk(sets)
                    wait = RENEWAL_SECONDS
                except Error:
                    wait = _RETRY_SECONDS


def _order(entry: bytes) -> Tuple[int, ...]:
    """Return the id of an entry so that ids compare as Redis orders them."""
    return tuple(int(part) for part in entry.split(b"-"))


class WatchReader:
    """Reads the frames of watches. One thread at a time may use it.

    An output that breaks a rule has ended, and its `fault` says why; those of other nodes go on.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._watches = Watches(session)
        # The id of the last entry of each stream that was read, by the stream's key.
        self._after: Dict[str, bytes] = {}
        self._nodes: Dict[str, Optional[NodeId]] = {}
        self._outputs: Dict[str, Dict[NodeId, NodeOutput]] = {}
        self._count = _MIN_ENTRIES
        self._untold: Dict[str, int] = {}
        self._timer = WaitTimer(None)
        self._is_out = False

    def __enter__(self) -> WatchReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._watches.close()

    def add(self, watch: str, node: Optional[NodeId] = None, start: Sequence[int] = (0, 0)) -> None:
        """Watch a job or command: of one node, whose output begins at `start`, or of all its nodes."""
        key = keys.stream(watch)
        if key not in self._after:
            self._after[key], self._nodes[key] = b"0-0", node
            self._watches.add(watch)
        if node is not None and node not in self._outputs.get(key, {}):
            self._outputs.setdefault(key, {})[node] = NodeOutput(node, start)

    def output(self, watch: str, node: NodeId) -> NodeOutput:
        """Return what came of this node in this watch."""
        return self._output(keys.stream(watch), node)

    def _output(self, key: str, node: NodeId) -> NodeOutput:
        outputs = self._outputs.setdefault(key, {})
        if node not in outputs:
            outputs[node] = NodeOutput(node)
        return outputs[node]

    def stop(self, watch: str) -> None:
        """Read this watch no more, and let it go."""
        self._after.pop(keys.stream(watch), None)
        self._watches.release(watch)

    def release(self, watch: str) -> None:
        """Read this watch no more, let it go, and forget what came."""
        self.stop(watch)
        known: Dict[str, Any]
        for known in (self._nodes, self._untold, self._outputs):
            known.pop(keys.stream(watch), None)

    def read(self, seconds: float) -> Iterator[Chunk]:
        """Yield the chunks of one read, which waits at most `seconds`; wait and yield nothing in a short outage.

        Raise `RedisUnavailableError` when Redis was unreachable for a minute.
        """
        if not self._after:
            time.sleep(seconds)
            return
        try:
            found = self._session.connection.read_streams(self._after, seconds, self._count)
            self._timer.reset()
        except Error as e:
            self._is_out = True
            self._timer.back_off(e)
            return
        if self._is_out:
            # A Redis that has started again may have lost the watches, and entries: they come again under lower ids,
            # with more in them, and what came before is left out.
            self._is_out = False
            self._watches.renew()
            self._after = dict.fromkeys(self._after, b"0-0")
        size = 0
        for key, entries in found:
            for entry, fields in entries:
                size += len(fields.get(b"d", b""))
                yield from self._take(key, fields)
                self._note(key, entry, len(fields.get(b"d", b"")))
        # Small entries are read many at a time.
        if found and size < _READ_BYTES // 2:
            self._count = min(self._count * 2, _MAX_ENTRIES)
        elif size > _READ_BYTES:
            self._count = max(self._count // 2, _MIN_ENTRIES)

    def _take(self, key: str, fields: Dict[bytes, bytes]) -> Iterator[Chunk]:
        node = NodeId.from_key(fields.get(b"n", b""))
        only = self._nodes.get(key)
        if node is None or (only is not None and node != only):
            return
        output = self._output(key, node)
        if output.fault:
            return
        offset = fields.get(b"o", b"")
        try:
            yield from output.take(int(offset) if offset.isdigit() else -1, fields.get(b"d", b""))
        except StreamBrokenError as e:
            yield Chunk(node, "end", b"", {"error": str(e)})

    def _note(self, key: str, entry: bytes, size: int) -> None:
        if key not in self._after:
            return  # let go while it was read
        self._after[key] = entry
        untold = self._untold.get(key, 0) + size
        is_much = untold >= _MAX_UNTOLD
        self._untold[key] = 0 if is_much else untold
        self._watches.note(key[len(keys.stream("")) :], entry, is_much)


#: The counts of stdout and stderr in a result; `None` from an agent that does not count them.
Counts = Optional[Tuple[int, int]]
#: Returns the counts of those of these nodes that have a result, after which no more output is made.
Written = Callable[[Sequence[NodeId]], Mapping[NodeId, Counts]]


def read_outputs(
    reader: WatchReader, watches: Mapping[NodeId, str], written: Written, timeout: Optional[float] = None
) -> Iterator[Chunk]:
    """Yield the chunks of these nodes until each has ended, or nothing is to be waited for after its result.

    Raise `WaitTimeoutError` when nothing came for `timeout` seconds.
    """
    open_ = dict(watches)
    # When the result of a node was seen, or the last chunk after it.
    ended: Dict[NodeId, Tuple[float, Counts]] = {}
    last = looked = time.monotonic()
    while open_:
        is_idle, began = True, time.monotonic()
        for chunk in reader.read(_STEP_SECONDS if timeout is None else min(_STEP_SECONDS, timeout)):
            is_idle = False
            ended.pop(chunk.node, None)
            yield chunk
        now = time.monotonic()
        open_ = {node: watch for node, watch in open_.items() if not reader.output(watch, node).ended}
        if not is_idle:
            last = now
        elif timeout is not None and now - last >= timeout and open_:
            raise WaitTimeoutError(f"no output came for {timeout:g} s")
        unknown = [node for node in open_ if node not in ended]
        if unknown and (is_idle or now - looked > _STEP_SECONDS):
            looked = now
            ended.update((node, (now, counts)) for node, counts in written(unknown).items())
        # The reader may have been held up itself: only a read that began late enough and brought nothing counts.
        for node, (since, counts) in ended.items():
            limit = seconds_to_end(reader.output(open_[node], node), counts) if node in open_ else 0
            if node in open_ and (not limit or (is_idle and began - since >= limit)):
                del open_[node]


def read_output(
    reader: WatchReader, watch: str, node: NodeId, written: Written, timeout: Optional[float] = None
) -> Iterator[Chunk]:
    """Yield the chunks of one node until its end. Raise as `read_outputs` and `check_whole` do."""
    output = reader.output(watch, node)
    for chunk in read_outputs(reader, {node: watch}, written, timeout):
        if not output.fault:
            yield chunk
    check_whole(output, None if output.ended else written([node]).get(node))


def check_whole(output: NodeOutput, written: Counts) -> None:
    """Raise `StreamBrokenError` when the output of a node is not known to be whole; gaps are in `missing`."""
    if output.fault:
        raise StreamBrokenError(f"node {output.node}: {output.fault}")
    if not output.ended and (output.offset or (written and any(written))):
        raise StreamBrokenError(f"node {output.node}: its output did not come to its end")
