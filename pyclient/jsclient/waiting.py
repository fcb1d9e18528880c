"""How long to wait, and how to bridge a Redis that is away for a while."""

from __future__ import annotations

import enum
import time
from typing import Optional, Union

from .errors import Error, Unavailable
from .link import SLICE

#: A Redis that has been away for so long (seconds) while somebody waits is given up.
AWAY_SECONDS = 60.0


class Default(enum.Enum):
    """Stands for the timeout of the client."""

    TIMEOUT = "the client's timeout"


DEFAULT = Default.TIMEOUT
#: Seconds, `None` for ever, or left out for the client's.
Timeout = Union[float, None, Default]


class Pause:
    """The deadline of one wait, and the growing pauses between attempts while Redis is away."""

    def __init__(self, deadline: Optional[float]) -> None:
        self.deadline = deadline
        self._since: Optional[float] = None
        self._next = 0.05

    def left(self) -> float:
        """Seconds for the next blocking read, never above SLICE, never below 0."""
        if self.deadline is None:
            return SLICE
        return min(max(self.deadline - time.monotonic(), 0.0), SLICE)

    def over(self) -> bool:
        """Whether the time is up."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def reset(self) -> None:
        """Redis answered."""
        self._since, self._next = None, 0.05

    def after(self, error: Error) -> None:
        """Waits a little after an error; raises it when waiting does not help."""
        if not isinstance(error, Unavailable) or not error.passing:
            raise error
        now = time.monotonic()
        if self._since is None:
            self._since = now
        if self.over() or now - self._since > AWAY_SECONDS:
            raise error
        wait = self._next if self.deadline is None else min(self._next, max(self.deadline - now, 0.0))
        time.sleep(wait)
        self._next = min(self._next * 2, 1.0)
