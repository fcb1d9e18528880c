"""Detection of a missing controller while a caller waits for an answer."""

from __future__ import annotations

import time
from typing import Optional

from ._session import Session
from .errors import NoControllerError

#: A read-only command fails when no controller was online for this time, in seconds.
CONTROLLER_TIMEOUT_SECONDS = 10.0


class ControllerWatch:
    """Checks during one wait whether a controller is online."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._missing_since: Optional[float] = None

    def missing(self) -> Optional[NoControllerError]:
        """Return the error that says why no controller is online; `None` while one is."""
        try:
            self._session.check()
            self._missing_since = None
        except NoControllerError as e:
            self._missing_since = self._missing_since or time.monotonic()
            return e
        return None

    @property
    def is_over(self) -> bool:
        """Return whether no controller was found for `CONTROLLER_TIMEOUT_SECONDS`."""
        return self._missing_since is not None and time.monotonic() - self._missing_since >= CONTROLLER_TIMEOUT_SECONDS

    def check(self) -> None:
        """Raise `NoControllerError` when no controller was found for `CONTROLLER_TIMEOUT_SECONDS`."""
        fault = self.missing()
        if fault and self.is_over:
            raise fault
