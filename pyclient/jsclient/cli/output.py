"""Shows the results of a fleet: folded blocks, JSON, a progress bar, a summary, an exit code."""

from __future__ import annotations

import contextlib
import hashlib
import sys
import time
from typing import Any, Callable, Dict, Generator, List, Optional

from .._controllers import ControllerWatch
from ..client import Client
from ..errors import FAILED, NO_MATCH, OK, TIMED_OUT, Error, NoControllerError, RedisUnavailableError, ResultDecodeError
from ..fleet import Fleet
from ..keys import NodeId
from ..result import Result
from ..withdrawal import NO_ANSWER
from . import render, stdio
from .stdio import OutputError, Terminated, message

#: A block waits this long for further nodes with the same output, in seconds.
MAX_FOLD_DELAY_SECONDS = 2.0
#: Blocks are written before that when their texts are longer than this, in characters.
MAX_HELD_TEXT = 8 * 1024 * 1024
#: Most truncated results that are told one by one.
MAX_TRUNCATED = 10
#: Interval at which the progress bar is updated, in seconds.
PROGRESS_INTERVAL_SECONDS = 0.2
#: Interval at which the heartbeat of the controllers is checked while no result arrives, in seconds.
CONTROLLER_CHECK_INTERVAL_SECONDS = 2.0


def load(progress: bool) -> None:
    """Import the modules of the progress bar when it will be shown."""
    if progress and sys.stderr.isatty():
        from . import progress as _progress  # noqa: F401


class Output:
    """Shows the results of one fleet as they arrive."""

    def __init__(
        self,
        client: Client,
        fleet: Fleet,
        *,
        json_: bool,
        ndjson: bool,
        fold: bool,
        progress: bool,
        single: bool,
        withdraw: bool = False,
        is_for_job: bool = False,
        exit_status: bool = False,
        render_all: Optional[Callable[[Client, List[Result]], str]] = None,
    ) -> None:
        self.client = client
        self.fleet = fleet
        self.json = json_
        self.ndjson = ndjson
        self.fold = fold
        self.single = single and not (json_ or ndjson)
        #: Whether the end of the wait withdraws the command from the nodes that have not started it.
        self.withdraw = withdraw
        #: Whether the command is for a job that the nodes may not have.
        self.is_for_job = is_for_job
        self._without_job = 0
        #: Whether the exit status of the program on a single node becomes that of jsctl.
        self.exit_status = exit_status and self.single
        self._status = FAILED
        self.render_all = None if json_ or ndjson else render_all
        self._kept: List[Result] = []
        self._failed: List[NodeId] = []
        self._unreadable: List[NodeId] = []
        # The first results that are truncated, and the nodes of the others.
        self._truncated: List[Result] = []
        self._truncated_more: List[NodeId] = []
        self._held: Optional[str] = None
        # Blocks that are not printed yet, by the hash of their text; texts; the first node of each printed block.
        self._blocks: Dict[bytes, List[NodeId]] = {}
        self._texts: Dict[bytes, str] = {}
        self._shown: Dict[bytes, NodeId] = {}
        self._oldest = 0.0
        # Characters of the texts of blocks that are not printed yet.
        self._held_text = 0
        self._bar_updated = 0.0
        self._checked = time.monotonic()
        self._warned = False
        fleet.on_outage = self._report_outage
        self._outage_reported = False
        self._controllers = ControllerWatch(client)
        # Why the wait for a read-only command ended early.
        self._controller_error: Optional[NoControllerError] = None
        self._bar: Any = None
        if progress and not self.single and sys.stderr.isatty():
            from .progress import Bar

            self._bar = Bar(fleet)

    def run(self, limit: Optional[float]) -> int:
        """Show all results and return the exit code."""
        try:
            if self._bar:
                self._bar.start()
            with contextlib.closing(self._results(limit)) as results:
                for result in results:
                    if result is not None:
                        self._take(result)
                    elif self._check_controllers():
                        break
                    self._flush_old()
                    if self._bar and time.monotonic() - self._bar_updated >= PROGRESS_INTERVAL_SECONDS:
                        self._bar_updated = time.monotonic()
                        self._bar.update()
        except (KeyboardInterrupt, Terminated) as e:
            self._stop_bar()
            try:
                self._flush()
                self._end_json()
                self._report_truncated()
            finally:
                self._report_interruption()
            return 128 + e.number if isinstance(e, Terminated) else 130
        except OutputError:
            raise
        except Error as e:
            self._stop_bar()
            self._flush()
            self._end_json()
            e.json_started = True  # the document cannot hold a second error
            raise
        finally:
            self._stop_bar()
        self._flush()
        if self.render_all:
            stdio.rows(self.render_all(self.client, self._kept))
        self._end_json()
        self._report_truncated()
        code = self._summarize(limit)
        if self._controller_error:
            self._controller_error.json_started = True
            raise self._controller_error
        return code

    def _results(self, limit: Optional[float]) -> Generator[Optional[Result], None, None]:
        """Yield the results as they arrive, and `None` every now and then."""
        yield from self.fleet.stream(limit, tick=PROGRESS_INTERVAL_SECONDS)

    def _check_controllers(self) -> bool:
        """Warn once when no controller is left; return whether the wait for a read-only command ends."""
        now = time.monotonic()
        may_give_up = self.fleet.spec.read_only and self.withdraw  # --wait waits without a controller
        if (self._warned and not may_give_up) or now - self._checked < CONTROLLER_CHECK_INTERVAL_SECONDS:
            return False
        self._checked = now
        try:
            fault = self._controllers.missing()
        except Error:
            return False  # Redis is unreachable; the fleet handles it
        if fault and not self._warned:
            self._warned = True
            message(f"jsctl: {fault}; still waiting")
        if may_give_up and self._controllers.is_over:
            self._controller_error = fault
        return self._controller_error is not None

    def _report_outage(self, error: Error) -> None:
        if isinstance(error, RedisUnavailableError) and error.transient and not self._outage_reported:
            self._outage_reported = True
            message(f"jsctl: {error}; still waiting")

    def _stop_bar(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None

    def _take(self, result: Result) -> None:
        if not result.ok:
            self._failed.append(result.node)
            self._status = result.code if 0 < result.code < 256 else FAILED
            self._without_job += result.data.startswith("no job ")
        self._show_result(result)

    def _show_result(self, result: Result) -> None:
        if result.truncated:
            if len(self._truncated) < MAX_TRUNCATED:
                self._truncated.append(result)
            else:
                self._truncated_more.append(result.node)
        if self.json or self.ndjson:
            self._item(render.document(result))
        elif self.render_all and result.ok:
            try:
                result.value  # noqa: B018  # an undecodable result does not hide those of other nodes
                self._kept.append(result)
            except ResultDecodeError as e:
                self._unreadable.append(result.node)
                message(f"jsctl: {result.node}: {e}")
        elif self.single:
            self._plain(result)
        else:
            text = f"{render.status(result)}\n{render.body(result)}"
            digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()
            if not self._blocks:
                self._oldest = time.monotonic()
            self._blocks.setdefault(digest, []).append(result.node)
            if digest not in self._shown and digest not in self._texts:
                self._texts[digest] = text
                self._held_text += len(text)
            if not self.fold:
                self._flush()
                self._shown.clear()

    def _plain(self, result: Result) -> None:
        """Write the stdout and stderr of a single node to stdout and stderr."""
        if result.ok or not result.data or result.level >= 20:
            _out(render.body(result, with_stderr=False))
        else:
            _out(result.stdout)
        if result.stderr:
            stdio.err(result.stderr)
        if not result.ok:
            message(f"jsctl: {result.sentence()}")

    def _report_truncated(self) -> None:
        """Write which results are truncated."""
        for result in self._truncated:
            rest = f"jsctl logs {result.node} --job {self.fleet.job_id(result.node)}"
            message(f"jsctl: {result.node}: {result.truncation}; see all of it with {rest}")
        if self._truncated_more:
            more = render.join_names(sorted(self._truncated_more))
            message(f"jsctl: {len(self._truncated_more)} more are or may be truncated: {more}")

    def _flush_old(self) -> None:
        is_old = bool(self._blocks) and time.monotonic() - self._oldest >= MAX_FOLD_DELAY_SECONDS
        if is_old or self._held_text > MAX_HELD_TEXT:
            self._flush()

    def _flush(self) -> None:
        for digest, nodes in self._blocks.items():
            nodes.sort()
            count = f" ({len(nodes)})" if len(nodes) > 1 else ""
            before = self._shown.get(digest)
            if before is not None:
                self._print(f"== {render.join_names(nodes, 1000)}{count}: same output as {before}")
                continue
            self._shown[digest] = nodes[0]
            status, _, text = self._texts.pop(digest).partition("\n")
            tail = "" if status == "OK" else f": {status}"
            output = f"\n{stdio.prefix_lines(text)}" if text else ""
            self._print(f"== {render.join_names(nodes, 1000)}{count}{tail}{output}")
        self._blocks.clear()
        self._held_text = 0

    def _print(self, text: str) -> None:
        if self._bar:
            self._bar.print(text)
        else:
            _out(text)

    def _item(self, item: Dict[str, Any]) -> None:
        line = stdio.json_text(item)
        if self.json:
            # The last item is held back until it is known whether a comma follows.
            self._print("[" if self._held is None else f"{self._held},")
            self._held = line
        else:
            self._print(line)

    def _end_json(self) -> None:
        if not (self.json or self.ndjson):
            return
        without_result = [(n, "NO ANSWER") for n in self.fleet.missing] + [(n, "NOT SENT") for n in self.fleet.skipped]
        without_result += [(n.id, "OFFLINE") for n in self.fleet.offline]
        revoked = set(self.fleet.revoked)
        without_result += [(n, "REVOKED" if n in revoked else "UNKNOWN") for n in self.fleet.unknown]
        for node, state in without_result:
            self._item({"node": str(node), "gid": node.gid, "nid": node.nid, "id": self.fleet.id, "state": state})
        if self.json:
            stdio.out("[]" if self._held is None else f"{self._held}\n]")

    def _summarize(self, limit: Optional[float]) -> int:
        fleet = self.fleet
        missing = fleet.missing
        ok = fleet.returned - fleet.failures
        if not self.single or missing:
            parts = [f"{ok} OK", f"{fleet.failures} failed"]
            if self._failed:
                parts[-1] += f" ({render.join_names(sorted(self._failed))})"
            if missing:
                parts.append(f"{len(missing)} without answer ({render.join_names(missing)})")
            if fleet.skipped:
                parts.append(f"{len(fleet.skipped)} not sent after too many failures ({render.join_names(fleet.skipped)})")
            if fleet.offline:
                parts.append(f"{len(fleet.offline)} offline ({render.join_names([n.id for n in fleet.offline])})")
            revoked = set(fleet.revoked)
            never_seen = [n for n in fleet.unknown if n not in revoked]
            if never_seen:
                parts.append(f"{len(never_seen)} never seen ({render.join_names(never_seen)})")
            if fleet.revoked:
                parts.append(f"{len(fleet.revoked)} revoked ({render.join_names(fleet.revoked)})")
            message(", ".join(parts))
        period = fleet.spec.args.get("recurring_period")
        if period:
            message(f"runs again every {period} s; list it with jsctl schedules, end it with jsctl unschedule {fleet.id}")
        if missing:
            self._explain_missing(missing, limit)
            return TIMED_OUT
        if self.is_for_job and self._without_job == fleet.returned == len(fleet.nodes):
            return NO_MATCH
        if fleet.failures and self.exit_status:
            return self._status
        if fleet.failures or fleet.skipped or fleet.unknown or self._unreadable:
            return FAILED
        if fleet.offline and fleet.explicit:
            return FAILED
        return OK

    def _explain_missing(self, missing: List[NodeId], limit: Optional[float]) -> None:
        fleet = self.fleet
        if self._controller_error:
            if self.withdraw:
                self._withdraw(missing)
            return  # the error has the reason
        try:
            why = self.client.explain_wait(fleet.job_id(missing[0]), missing[0], limit)
        except Error as e:
            why = str(e)
        message(f"jsctl: {why}")
        if self.withdraw:
            self._withdraw(missing)
        else:
            message(f"jsctl: wait for it with jsctl wait {fleet.id}, withdraw it with jsctl cancel {fleet.id}")

    def _withdraw(self, missing: List[NodeId]) -> None:
        """Withdraw the command where it has not started; tell the nodes where it stays, and the commands that end it."""
        try:
            reasons = self.fleet.withdraw()
        except Error as e:
            message(f"jsctl: the command could not be withdrawn: {e}; withdraw it later with jsctl cancel {self.fleet.id}")
            return
        withdrawn = [node for node, reason in reasons.items() if not reason]
        if withdrawn:
            names = render.join_names(withdrawn)
            message(f"jsctl: withdrawn from {names}, where it had not started; --wait and --detach keep it queued")
        left = [node for node in missing if reasons.get(node) != ""]
        if left:
            stays = "" if left == missing else f"still with {render.join_names(left)}; "
            job_id = self.fleet.id
            # Without the controller's answer the nodes may not have it yet.
            unknown = any(reasons.get(node, NO_ANSWER) == NO_ANSWER for node in left)
            end = f"withdraw it later with jsctl cancel {job_id}" if unknown else f"end it with jsctl kill {job_id}"
            message(f"jsctl: {stays}wait for it with jsctl wait {job_id}, {end}")

    def _report_interruption(self) -> None:
        fleet = self.fleet
        missing = fleet.missing
        unsent = [NodeId(c.gid, c.nid) for c in fleet.unsent]
        message("")
        if unsent:
            message(f"not sent to {len(unsent)} ({render.join_names(unsent)})")
        try:
            if missing:
                states = fleet.states()
                running = [n for n in missing if states.get(n) == "RUNNING"]
                waiting = [n for n in missing if n not in running]
                if running:
                    message(f"still running on {render.join_names(running)}; end it with jsctl kill {fleet.id}")
                if waiting:
                    message(f"queued for {render.join_names(waiting)}; withdraw it with jsctl cancel {fleet.id}")
        except Error:
            message(f"still running or queued on {render.join_names(missing)}; end it with jsctl kill {fleet.id}")
        finally:
            message(f"show its results with jsctl wait {fleet.id}")


def _out(text: str) -> None:
    if text:
        stdio.out(text)
