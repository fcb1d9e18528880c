"""`jsctl`. This file only starts it: what a command needs is imported when it runs, so that `--help` is quick."""

from __future__ import annotations

import sys
from typing import List, Optional


def main(argv: Optional[List[str]] = None) -> int:
    """Runs one command line and returns the exit code (0 OK, 1 failed, 2 usage, 3 nobody, 4 timed out)."""
    from .start import run

    return run(sys.argv[1:] if argv is None else argv)
