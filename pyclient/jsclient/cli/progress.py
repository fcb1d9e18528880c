"""The progress bar of a fleet, on stderr. Only this module and `top` import rich."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ..fleet import Fleet
from . import stdio


class Bar:
    """Shows the numbers of nodes that have returned, failed, are waited for, and are offline."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._console = Console(stderr=True)
        self._progress = Progress(
            BarColumn(bar_width=30),
            TextColumn(
                "[green]{task.fields[returned]} of {task.total} returned[/]  [red]{task.fields[failed]} failed[/]  "
                "{task.fields[waiting]} waiting  [dim]{task.fields[offline]} offline[/]"
            ),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            redirect_stdout=False,
            refresh_per_second=10,
        )
        self._task: Any = None

    def start(self) -> None:
        """Show the bar."""
        self._task = self._progress.add_task("", total=max(len(self._fleet.nodes), 1), **self._fields())
        with stdio.signals_blocked():
            self._progress.start()

    def update(self) -> None:
        """Update the numbers."""
        fleet = self._fleet
        self._progress.update(
            self._task, completed=fleet.returned, total=max(len(fleet.nodes), 1), **self._fields()
        )

    def print(self, text: str) -> None:
        """Write a text to stdout without the bar in it."""
        if sys.stdout.isatty():
            self.stop()
            stdio.out(text)
            with stdio.signals_blocked():
                self._progress.start()
        else:
            stdio.out(text)

    def stop(self) -> None:
        """Remove the bar."""
        with stdio.signals_blocked():
            self._progress.stop()

    def _fields(self) -> Any:
        fleet = self._fleet
        return {
            "returned": fleet.returned,
            "failed": fleet.failures,
            "waiting": fleet.waiting,
            "offline": len(fleet.offline) + len(fleet.unknown),
        }
