"""What a fleet answers, shown: folded blocks, JSON, a progress bar, a last line, an exit code."""

from __future__ import annotations

import hashlib
import sys
import time
from typing import Any, Callable, Dict, List, Optional

from ..client import Client, ControllerWatch
from ..errors import FAILED, NOBODY, OK, TIMED_OUT, Error, NoController, Undecodable
from ..fleet import Fleet
from ..wire import NodeId, Result
from . import render, stdio
from .stdio import Terminated, WriteFault, say

#: Blocks are printed when the oldest result in them has waited so long for others like it (seconds).
FOLD_SECONDS = 2.0
#: So often the progress bar moves (seconds).
TICK = 0.2
#: While nothing comes, so often somebody looks whether a controller still beats (seconds).
CHECK_SECONDS = 2.0


def load(progress: bool) -> None:
    """Imports what the progress bar needs, where there will be one."""
    if progress and sys.stderr.isatty():
        from . import progress as _progress  # noqa: F401


class Output:
    """Takes the results of one fleet as they come."""

    def __init__(
        self,
        fleet: Fleet,
        *,
        json_: bool,
        ndjson: bool,
        fold: bool,
        progress: bool,
        single: bool,
        withdraw: bool = False,
        to_job: bool = False,
        render_all: Optional[Callable[[Client, List[Result]], str]] = None,
    ) -> None:
        self.fleet = fleet
        self.json = json_
        self.ndjson = ndjson
        self.fold = fold
        self.single = single and not (json_ or ndjson)
        #: Whether a command is withdrawn from the nodes that have not started it when the wait ends.
        self.withdraw = withdraw
        #: Whether it concerns a job of the nodes, which none of them may have.
        self.to_job = to_job
        self._without_job = 0
        self.render_all = None if json_ or ndjson else render_all
        self._kept: List[Result] = []
        self._failed: List[NodeId] = []
        self._unreadable: List[NodeId] = []
        self._cut: List[Result] = []
        self._held: Optional[str] = None
        # Blocks not printed yet by the hash of what they show, and the first node of each that was.
        self._blocks: Dict[bytes, List[NodeId]] = {}
        self._texts: Dict[bytes, str] = {}
        self._shown: Dict[bytes, NodeId] = {}
        self._oldest = 0.0
        self._checked = time.monotonic()
        self._warned = False
        self._controllers = ControllerWatch(fleet.client)
        #: Why a question was given up.
        self._gone: Optional[NoController] = None
        self._bar: Any = None
        if progress and not self.single and sys.stderr.isatty():
            from .progress import Bar

            self._bar = Bar(fleet)

    def run(self, limit: Optional[float]) -> int:
        """Shows everything and returns the exit code."""
        try:
            if self._bar:
                self._bar.start()
            for result in self.fleet.stream(limit, tick=TICK):
                if result is not None:
                    self._take(result)
                elif self._look_at_controllers():
                    break
                self._flush_old()
                if self._bar:
                    self._bar.update()
        except (KeyboardInterrupt, Terminated) as e:
            self._stop_bar()
            try:
                self._flush()
                self._end_json()
                self._say_cut()
            finally:
                self._interrupted()
            return 128 + e.number if isinstance(e, Terminated) else 130
        except WriteFault:
            raise
        except Error as e:
            self._stop_bar()
            self._flush()
            self._end_json()
            e.told = True  # in the document there is no room for a second one
            raise
        finally:
            self._stop_bar()
        self._flush()
        if self.render_all:
            stdio.rows(self.render_all(self.fleet.client, self._kept))
        self._end_json()
        self._say_cut()
        code = self._last_line(limit)
        if self._gone:
            self._gone.told = True
            raise self._gone
        return code

    def _look_at_controllers(self) -> bool:
        """Says it once when the last controller goes while somebody waits; whether a question is given up for that."""
        now = time.monotonic()
        looks = self.fleet.verb.looks and self.withdraw  # with --wait it is waited for, come what may
        if (self._warned and not looks) or now - self._checked < CHECK_SECONDS:
            return False
        self._checked = now
        try:
            fault = self._controllers.missing()
        except Error:
            return False  # Redis is away; the fleet itself sees to that
        if fault and not self._warned:
            self._warned = True
            say(f"jsctl: {fault}; still waiting")
        if looks and self._controllers.is_over:
            self._gone = fault
        return self._gone is not None

    def _stop_bar(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None

    def _take(self, result: Result) -> None:
        if not result.ok:
            self._failed.append(result.node)
            self._without_job += result.data.startswith("no job ")
        if result.truncated:
            self._cut.append(result)
        if self.json or self.ndjson:
            self._item(render.document(result))
        elif self.render_all and result.ok:
            try:
                result.value  # noqa: B018  # of the others the table is shown all the same
                self._kept.append(result)
            except Undecodable as e:
                self._unreadable.append(result.node)
                say(f"jsctl: {result.node}: {e}")
        elif self.single:
            self._plain(result)
        else:
            text = f"{render.status(result)}\n{render.body(result)}"
            mark = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()
            if not self._blocks:
                self._oldest = time.monotonic()
            self._blocks.setdefault(mark, []).append(result.node)
            if mark not in self._shown:
                self._texts.setdefault(mark, text)
            if not self.fold:
                self._flush()
                self._shown.clear()

    def _plain(self, result: Result) -> None:
        """One node's answer alone: its stdout on ours, its stderr on ours."""
        if result.ok or not result.data or result.level >= 20:
            _out(render.body(result, with_stderr=False))
        else:
            _out(result.stdout)
        if result.stderr:
            stdio.err(result.stderr)
        if not result.ok:
            say(f"jsctl: {result.sentence()}")

    def _say_cut(self) -> None:
        """Says of which nodes the results are not all that was written."""
        for result in self._cut[:10]:
            say(f"jsctl: {result.node}: {result.cut}; for the rest: jsctl logs {result.node} --job {self.fleet.job_id(result.node)}")
        if len(self._cut) > 10:
            more = sorted(result.node for result in self._cut[10:])
            say(f"jsctl: {len(more)} more are cut or may be: {render.names(more)}")

    def _flush_old(self) -> None:
        if self._blocks and time.monotonic() - self._oldest >= FOLD_SECONDS:
            self._flush()

    def _flush(self) -> None:
        for mark, nodes in self._blocks.items():
            nodes.sort()
            count = f" ({len(nodes)})" if len(nodes) > 1 else ""
            before = self._shown.get(mark)
            if before is not None:
                self._print(f"== {render.names(nodes, 1000)}{count}: as {before}")
                continue
            self._shown[mark] = nodes[0]
            status, _, text = self._texts.pop(mark).partition("\n")
            tail = "" if status == "OK" else f": {status}"
            self._print(f"== {render.names(nodes, 1000)}{count}{tail}" + (f"\n{stdio.marked(text)}" if text else ""))
        self._blocks.clear()

    def _print(self, text: str) -> None:
        if self._bar:
            self._bar.print(text)
        else:
            _out(text)

    def _item(self, item: Dict[str, Any]) -> None:
        line = stdio.json_text(item)
        if self.json:
            # One is held back: whether a comma follows it is known with the next.
            self._print("[" if self._held is None else f"{self._held},")
            self._held = line
        else:
            self._print(line)

    def _end_json(self) -> None:
        if not (self.json or self.ndjson):
            return
        silent = [(n, "NO ANSWER") for n in self.fleet.missing] + [(n, "NOT SENT") for n in self.fleet.skipped]
        silent += [(n.id, "OFFLINE") for n in self.fleet.offline]
        revoked = set(self.fleet.revoked)
        silent += [(n, "REVOKED" if n in revoked else "UNKNOWN") for n in self.fleet.unknown]
        for node, state in silent:
            self._item({"node": str(node), "gid": node.gid, "nid": node.nid, "id": self.fleet.id, "state": state})
        if self.json:
            stdio.out("[]" if self._held is None else f"{self._held}\n]")

    def _last_line(self, limit: Optional[float]) -> int:
        fleet = self.fleet
        missing = fleet.missing
        ok = fleet.returned - fleet.failures
        if not self.single or missing:
            parts = [f"{ok} OK", f"{fleet.failures} failed"]
            if self._failed:
                parts[-1] += f" ({render.names(sorted(self._failed))})"
            if missing:
                parts.append(f"{len(missing)} without answer ({render.names(missing)})")
            if fleet.skipped:
                parts.append(f"{len(fleet.skipped)} not sent after too many failures ({render.names(fleet.skipped)})")
            if fleet.offline:
                parts.append(f"{len(fleet.offline)} offline ({render.names([n.id for n in fleet.offline])})")
            revoked = set(fleet.revoked)
            strange = [n for n in fleet.unknown if n not in revoked]
            if strange:
                parts.append(f"{len(strange)} never seen ({render.names(strange)})")
            if fleet.revoked:
                parts.append(f"{len(fleet.revoked)} revoked ({render.names(fleet.revoked)})")
            say(", ".join(parts))
        period = fleet.verb.args.get("recurring_period")
        if period:
            say(f"runs again every {period} s (jsctl schedules); to end it: jsctl unschedule {fleet.id}")
        if missing:
            self._why(missing, limit)
            return TIMED_OUT
        if self.to_job and self._without_job == fleet.returned == len(fleet.nodes):
            return NOBODY
        if fleet.failures or fleet.skipped or fleet.unknown or self._unreadable:
            return FAILED
        if fleet.offline and fleet.named:
            return FAILED
        return OK

    def _why(self, missing: List[NodeId], limit: Optional[float]) -> None:
        fleet = self.fleet
        if self._gone:
            if self.withdraw:
                self._withdraw(missing)
            return  # the error says the rest
        try:
            why = fleet.client.why_waiting(fleet.job_id(missing[0]), missing[0], limit)
        except Error as e:
            why = str(e)
        say(f"jsctl: {why}")
        left = self._withdraw(missing) if self.withdraw else missing
        if left:
            stays = "" if left == missing else f"it stays with {render.names(left)}; "
            say(f"jsctl: {stays}to wait on: jsctl wait {fleet.id}")

    def _withdraw(self, missing: List[NodeId]) -> List[NodeId]:
        """Withdraws the command where it has not started; the nodes where it stays."""
        try:
            told = self.fleet.withdraw()
        except Error as e:
            say(f"jsctl: it could not be withdrawn: {e}; to withdraw it later: jsctl cancel {self.fleet.id}")
            return missing
        gone = [node for node, why in told.items() if not why]
        if gone:
            say(f"jsctl: withdrawn from {render.names(gone)}, where it had not started (--wait and --detach leave it)")
        return [node for node in missing if told.get(node) != ""]

    def _interrupted(self) -> None:
        fleet = self.fleet
        missing = fleet.missing
        unsent = [NodeId(c.gid, c.nid) for c in fleet.unsent]
        say("")
        if unsent:
            say(f"not sent to {len(unsent)} ({render.names(unsent)})")
        try:
            if missing:
                states = fleet.states()
                running = [n for n in missing if states.get(n) == "RUNNING"]
                waiting = [n for n in missing if n not in running]
                if running:
                    say(f"goes on running on {render.names(running)}; to end it: jsctl kill {fleet.id}")
                if waiting:
                    say(f"waits for {render.names(waiting)}; to withdraw it: jsctl cancel {fleet.id}")
        except Error:
            say(f"goes on or waits on {render.names(missing)}; to end it: jsctl kill {fleet.id}")
        finally:
            say(f"for its results: jsctl wait {fleet.id}")


def _out(text: str) -> None:
    if text:
        stdio.out(text)
