"""The subcommand get: files of nodes."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import sys
import time
from typing import Any, BinaryIO, Dict, List, Mapping, Optional, Tuple

from .. import commands
from ..client import Client
from ..errors import FAILED, OK, Error, NoMatchingNodesError, StreamBrokenError, UsageError
from ..frames import Chunk
from ..keys import NodeId
from ..live import open_watches
from ..result import Result
from ..stream import WatchReader, check_whole, read_outputs
from ..values import integer
from . import render, stdio
from .lookup import connect
from .stdio import OutputError, message

#: Seconds without an answer or a byte by default, after which a transfer is given up.
_TIMEOUT_SECONDS = 60.0
#: Interval at which the progress is shown, in seconds.
_PROGRESS_SECONDS = 0.5


def get(args: argparse.Namespace) -> int:
    """Run `jsctl get TARGET PATH [LOCAL]`."""
    if args.local == "-" and (args.json or args.ndjson):
        raise UsageError("standard output is either the file or JSON, not both")
    limit = _TIMEOUT_SECONDS if args.timeout is None else args.timeout or None
    with connect(args) as client:
        target = client.target(args.target, exclude=args.exclude)
        client.check()
        chosen = target.select().without_stopped
        if not chosen.live:
            raise NoMatchingNodesError(target.explain_no_nodes(chosen))
        for node in (*chosen.unknown, *(seen.id for seen in chosen.offline)):
            message(f"jsctl: {node} is left out: it is offline, or was never seen")
        is_single = target.target.explicit and len(chosen.nodes) == 1
        files = {node: File(node, args.path, _local(args, node, is_single), not is_single) for node in chosen.live}
        with WatchReader(client) as reader:
            transfer = Transfer(client, reader, files, args.path, limit)
            transfer.run(not args.no_progress and sys.stderr.isatty())
        failed = [file for file in files.values() if file.fault]
        if args.json or args.ndjson:
            render.emit([file.document() for file in files.values()], args.ndjson)
        for file in failed:
            message(f"jsctl: {file.node}: {file.fault}")
        if not is_single:
            names = render.join_names([file.node for file in failed])
            message(f"{len(files) - len(failed)} OK, {len(failed)} failed" + (f" ({names})" if failed else ""))
        return FAILED if failed or chosen.unknown or (chosen.offline and target.target.explicit) else OK


def _local(args: argparse.Namespace, node: NodeId, is_single: bool) -> str:
    """Return the local path of the file of a node; `-` for standard output."""
    name = re.split(r"[/\\]", args.path.rstrip("/\\"))[-1]
    if not name or name in (".", ".."):
        raise UsageError(f"{args.path} is not the path of a file")
    given = args.local
    if not is_single:
        if given == "-":
            raise UsageError("files of several nodes do not go to standard output: name a folder")
        return os.path.join(given or ".", str(node), name)
    if given is None:
        return name
    return os.path.join(given, name) if given.endswith(os.sep) or os.path.isdir(given) else str(given)


class File:
    """A file of one node on its way: written to a partial file beside its place, which a later run goes on with.

    The partial file's name has the node and the path in short, and the time and the size of the file, so that no other
    file or version of it is gone on with. It is locked: another `jsctl get` of the same file fails.
    """

    def __init__(self, node: NodeId, path: str, local: str, makes_folder: bool) -> None:
        self.node = node
        self.local = local
        #: Why it did not come; empty while it may.
        self.fault = ""
        #: Bytes that are here, and the size of the file.
        self.have, self.size = 0, 0
        self._facts: Tuple[int, int] = (0, 0)
        self._path = path
        self._makes_folder = makes_folder
        self._mode = 0o600
        self._out: Optional[BinaryIO] = None
        self._part = ""
        folder, name = os.path.split(local)
        source = hashlib.sha256(f"{node} {path}".encode("utf-8", "surrogateescape")).hexdigest()[:16]
        self._folder, self._stem = folder, f".{name[:80]}.{source}."

    @property
    def is_stdout(self) -> bool:
        """Return whether the bytes go to standard output."""
        return self.local == "-"

    def document(self) -> Dict[str, Any]:
        """Return what became of it, for `--json`."""
        about = {"node": str(self.node), "gid": self.node.gid, "nid": self.node.nid, "path": self._path}
        return {**about, "error": self.fault} if self.fault else {**about, "local": self.local, "size": self.size}

    def left_over(self) -> int:
        """Return the size of the one partial file of an earlier run; 0 without."""
        found = [] if self.is_stdout else self._partials()
        try:
            return os.path.getsize(found[0]) if len(found) == 1 else 0
        except OSError:
            return 0

    def _partials(self) -> List[str]:
        pattern = re.compile(re.escape(self._stem) + r"-?[0-9]+-[0-9]+\.part\Z")
        try:
            names = os.listdir(self._folder or ".")
        except OSError:
            return []
        return [os.path.join(self._folder, one) for one in names if pattern.match(one)]

    def begin(self, facts: Mapping[str, Any], offset: int) -> bool:
        """Open the partial file for a file with these facts; return whether it goes on at `offset`."""
        self.size, self._facts = integer(facts.get("size")), (integer(facts.get("mtime")), integer(facts.get("size")))
        mode = facts.get("mode")
        self._mode = int(mode, 8) & 0o777 if isinstance(mode, str) and re.match(r"[0-7]{3,5}\Z", mode) else 0o600
        if self.is_stdout:
            self.have = offset
            return True
        self._part = os.path.join(self._folder, "{}{}-{}.part".format(self._stem, *self._facts))
        if offset and not (os.path.exists(self._part) and os.path.getsize(self._part) == offset):
            return False
        if self._makes_folder:
            os.makedirs(self._folder, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        self._out = os.fdopen(os.open(self._part, flags, 0o600), "wb")
        if not _lock(self._out):
            self._out.close()
            self._out = None
            self.fail("another jsctl is getting this file to the same place")
            return False
        for other in self._partials():
            if other != self._part:
                os.unlink(other)
        self._out.truncate(offset)
        self._out.seek(offset)
        self.have = offset
        return True

    def take(self, chunk: Chunk) -> None:
        """Write the bytes of a chunk, and put the file in its place at the end."""
        if self.fault:
            return
        if chunk.kind == "stdout":
            self.have += len(chunk.data)
            if self.have > self.size:
                self.fail("it sent more than the file has")
            elif self.is_stdout:
                stdio.out_bytes(chunk.data)
            elif self._out:
                self._out.write(chunk.data)
        elif chunk.kind == "gap":
            self.fail("a part of the file was not sent")
        elif chunk.kind == "end" and "error" not in chunk.detail:
            if (integer(chunk.detail.get("mtime")), integer(chunk.detail.get("size"))) != self._facts:
                self.fail(f"{self._path} was changed while it was sent; try again", keep=False)

    def fail(self, fault: str, keep: bool = True) -> None:
        """Give up; keep the partial file for the next run, or not."""
        self.fault = self.fault or fault
        if self._out:
            self._out.close()
            self._out = None
        if not keep and self._part:
            with contextlib.suppress(OSError):
                os.unlink(self._part)

    def finish(self) -> None:
        """Put the whole file in its place."""
        if self.fault or self.is_stdout or not self._out:
            return
        if self.have != self.size:
            self.fail(f"{self.have} of {self.size} bytes came")
            return
        umask = os.umask(0)
        os.umask(umask)
        self._out.flush()
        os.fsync(self._out.fileno())
        self._out.close()
        self._out = None
        os.chmod(self._part, self._mode & ~umask)
        os.replace(self._part, self.local)


def _lock(file: BinaryIO) -> bool:
    """Lock a file for this process; return whether nobody else has it. Windows refuses to replace an open file."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Transfer:
    """The files of several nodes, read by one reader."""

    def __init__(
        self, client: Client, reader: WatchReader, files: Dict[NodeId, File], path: str, limit: Optional[float]
    ) -> None:
        self._client = client
        self._reader = reader
        self._files = files
        self._path = path
        self._limit = limit
        self._shown = 0.0
        self._began = time.monotonic()
        self._skipped = 0

    def run(self, progress: bool) -> None:
        """Get all files; `fault` of each says what failed."""
        watches = self._open({node: file.left_over() for node, file in self._files.items()})
        self._skipped = sum(file.have for file in self._files.values())
        try:
            for chunk in read_outputs(self._reader, watches, lambda nodes: {}, self._limit):
                file = self._files[chunk.node]
                self._try(file, lambda: file.take(chunk))  # noqa: B023  # called at once
                if file.fault:
                    # Nothing more of it is to cross the network.
                    output = self._reader.output(watches[chunk.node], chunk.node)
                    output.ended, output.fault = True, file.fault
                    self._reader.stop(watches[chunk.node])
                if progress and time.monotonic() - self._shown > _PROGRESS_SECONDS:
                    self._show()
        except OutputError:
            raise
        except Error as e:
            for node, watch in watches.items():
                if not self._reader.output(watch, node).ended:
                    advice = "" if self._files[node].is_stdout else "; the same command goes on where it stopped"
                    self._files[node].fail(f"{e}{advice}")
        finally:
            if self._shown:
                stdio.progress("")
            for node, watch in watches.items():
                self._finish(self._files[node], watch)

    def _open(self, offsets: Dict[NodeId, int]) -> Dict[NodeId, str]:
        """Ask for the files from these offsets on, and from their begin where a partial file does not fit."""
        specs = {node: commands.get(self._path, offset) for node, offset in offsets.items()}
        watches, answers = open_watches(self._client, self._reader, specs, self._limit)
        again: Dict[NodeId, int] = {}
        for node, offset in offsets.items():
            file, answer = self._files[node], answers.get(node)
            if node in watches and self._begins(file, answer, offset):
                continue
            if node in watches:
                self._reader.release(watches.pop(node))
            if offset and not file.fault and answer is not None:
                again[node] = 0
            elif not file.fault:
                file.fail("it did not answer in time" if answer is None else answer.data or answer.sentence())
        if again:
            watches.update(self._open(again))
        return watches

    def _begins(self, file: File, answer: Optional[Result], offset: int) -> bool:
        try:
            facts = answer.value if answer else None
        except Error as e:
            file.fail(str(e))
            return False
        if not isinstance(facts, dict):
            file.fail("it did not tell the size of the file: its agent may be too old")
            return False
        return bool(self._try(file, lambda: file.begin(facts, offset)))

    def _finish(self, file: File, watch: str) -> None:
        if not file.fault:
            output = self._reader.output(watch, file.node)
            try:
                check_whole(output, (1, 0))
                self._try(file, file.finish)
            except StreamBrokenError as e:
                file.fail(str(e).partition(": ")[2], keep=not output.differs)

    @staticmethod
    def _try(file: File, step: Any) -> Any:
        try:
            return step()
        except OSError as e:
            file.fail(f"cannot write {file.local} here: {(e.strerror or str(e)).lower()}")
            return None

    def _show(self) -> None:
        self._shown = time.monotonic()
        have = sum(file.have for file in self._files.values())
        size = sum(file.size for file in self._files.values())
        rate = (have - self._skipped) / max(self._shown - self._began, 0.001)
        stdio.progress(f"{_mib(have)} of {_mib(size)}, {_mib(rate)}/s")


def _mib(count: float) -> str:
    return f"{count / 1048576:.1f} MiB"
