"""Timeouts, and retries while Redis is unreachable."""

from __future__ import annotations

import enum
import time
from typing import Callable, Optional, Union

from ._connection import BLOCKING_READ_SECONDS
from .errors import Error, RedisUnavailableError

#: A wait fails when Redis was unreachable for this time, in seconds.
REDIS_OUTAGE_TIMEOUT_SECONDS = 60.0
_FIRST_BACKOFF_SECONDS = 0.05
_MAX_BACKOFF_SECONDS = 1.0


class Default(enum.Enum):
    """The type of `DEFAULT`, the timeout of the client."""

    TIMEOUT = "the client's timeout"


DEFAULT = Default.TIMEOUT
#: Seconds, `None` for no limit, or `DEFAULT` for the timeout of the client.
Timeout = Union[float, None, Default]


class WaitTimer:
    """The deadline of one wait, and the backoff between attempts while Redis is unreachable."""

    def __init__(self, deadline: Optional[float]) -> None:
        #: On the monotonic clock, in seconds; `None` for no limit.
        self.deadline = deadline
        self._failing_since: Optional[float] = None
        self._backoff = _FIRST_BACKOFF_SECONDS

    def remaining(self) -> float:
        """Return the seconds for the next blocking read, from 0 to `BLOCKING_READ_SECONDS`."""
        if self.deadline is None:
            return BLOCKING_READ_SECONDS
        return min(max(self.deadline - time.monotonic(), 0.0), BLOCKING_READ_SECONDS)

    def expired(self) -> bool:
        """Return whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def reset(self) -> None:
        """Reset the backoff after an answer of Redis."""
        self._failing_since, self._backoff = None, _FIRST_BACKOFF_SECONDS

    def back_off(self, error: Error, on_outage: Callable[[Error], None] = lambda _: None) -> None:
        """Call ``on_outage`` and sleep after a transient error; raise it when it is not transient or the time is over."""
        if not isinstance(error, RedisUnavailableError) or not error.transient:
            raise error
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        if self.expired() or now - self._failing_since > REDIS_OUTAGE_TIMEOUT_SECONDS:
            raise error
        on_outage(error)
        wait = self._backoff if self.deadline is None else min(self._backoff, max(self.deadline - now, 0.0))
        time.sleep(wait)
        self._backoff = min(self._backoff * 2, _MAX_BACKOFF_SECONDS)
