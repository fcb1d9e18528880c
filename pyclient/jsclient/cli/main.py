"""The entry point of `jsctl`: runs a command line and turns every outcome into an exit code."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import Any, Callable, List, Optional

from ..errors import FAILED, Error, UsageError, not_text_error
from ..text import is_text
from . import stdio
from .stdio import OutputError, Terminated, message


def main(argv: Optional[List[str]] = None) -> int:
    """Run one command line, by default `sys.argv`; return the exit code.

    It is 0 for OK, 1 failed, 2 wrong usage, 3 no match, 4 timed out, 128 + n for an end by signal n. Every error is
    one sentence on stderr.
    """
    stdio.prepare()
    try:
        with stdio.signals():
            code = _run(sys.argv[1:] if argv is None else argv)
    except Terminated as e:  # a second signal during the cleanup after the first
        code = 128 + e.number
    return stdio.finish(code)


def _run(argv: List[str]) -> int:
    args: Any = None
    try:
        for position, word in enumerate(argv, 1):
            if not is_text(word):
                raise not_text_error(f"argument {position}")
        if argv[:1] == ["__complete"]:
            from .complete import print_candidates

            return print_candidates(argv[1:])
        from .parser import parse

        args = parse(argv)
        module, _, name = args.run.partition(":")
        function: Callable[[argparse.Namespace], int] = getattr(
            importlib.import_module(f"{__package__}.{module}"), name
        )
        return function(args)
    except OutputError as e:
        if not e.is_expected:
            message(f"jsctl: {e}")
        return FAILED
    except Error as e:
        return report_error(e, args)
    except KeyboardInterrupt:
        message("interrupted")
        return 130
    except Terminated as e:
        message("terminated")
        return 128 + e.number
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else FAILED
    except Exception as e:
        # With JSCTL_DEBUG the traceback is shown, for developers.
        if os.environ.get("JSCTL_DEBUG"):
            raise
        message(f"jsctl: {_explain(e)}")
        return FAILED


def _explain(error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"a Python package cannot be loaded ({error}): install jsclient anew"
    if isinstance(error, MemoryError):
        return "there is not enough memory"
    if isinstance(error, OSError):
        prefix = f"{error.filename}: " if error.filename else ""
        return f"{prefix}{error.strerror or error}"
    detail = f"{type(error).__name__}: {error}"
    return f"internal error: {detail}; please report this as a bug, with the output under JSCTL_DEBUG=1"


def report_error(error: Error, args: Any) -> int:
    """Write the error to stderr, with `--json` also as a document to stdout; return its exit code."""
    message(f"jsctl: {error}")
    if isinstance(error, UsageError) and args is None and "--help" not in str(error):
        message("jsctl: see jsctl --help")
    if getattr(args, "json", False) and not error.json_started:
        try:
            stdio.out_json({"error": str(error)})
        except OutputError as e:
            message(f"jsctl: {e}")
    return error.exit_code
