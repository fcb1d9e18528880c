"""From a command line to the function that carries it out, and from whatever happens to one exit code."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any, Callable, List

from ..errors import FAILED, Error, UsageError, not_text
from ..text import is_text
from . import stdio
from .stdio import Terminated, WriteFault, say

if TYPE_CHECKING:
    import argparse

__all__ = ["complain", "run", "say"]


def run(argv: List[str]) -> int:
    """Runs one command line; every error is one sentence on stderr."""
    stdio.prepare()
    try:
        with stdio.signals():
            code = _run(argv)
    except Terminated as e:  # a second one, while the first was dealt with
        code = 128 + e.number
    return stdio.finish(code)


def _run(argv: List[str]) -> int:
    args: Any = None
    try:
        for place, word in enumerate(argv, 1):
            if not is_text(word):
                raise not_text(f"argument {place}")
        if argv[:1] == ["__complete"]:
            from .complete import candidates

            return candidates(argv[1:])
        from .parser import parse

        args = parse(argv)
        module, _, name = args.run.partition(":")
        function: Callable[[argparse.Namespace], int] = getattr(
            importlib.import_module(f"{__package__}.{module}"), name
        )
        return function(args)
    except WriteFault as e:
        if not e.expected:
            say(f"jsctl: {e}")
        return FAILED
    except Error as e:
        return complain(e, args)
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except Terminated as e:
        say("terminated")
        return 128 + e.number
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else FAILED
    except Exception as e:
        # People get a sentence all the same; who mends it sets JSCTL_DEBUG.
        if os.environ.get("JSCTL_DEBUG"):
            raise
        say(f"jsctl: {_reason(e)}")
        return FAILED


def _reason(error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"a Python package cannot be loaded ({error}): install jsclient anew"
    if isinstance(error, MemoryError):
        return "there is not enough memory"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    return f"a fault of jsctl itself: {type(error).__name__}: {error} (JSCTL_DEBUG=1 shows where)"


def complain(error: Error, args: Any) -> int:
    """Says what is wrong, on stderr; with --json stdout gets it as a document too."""
    say(f"jsctl: {error}")
    if isinstance(error, UsageError) and args is None and "--help" not in str(error):
        say("jsctl: see jsctl --help")
    if getattr(args, "json", False) and not error.told:
        try:
            stdio.out_json({"error": str(error)})
        except WriteFault as e:
            say(f"jsctl: {e}")
    return error.exit_code
