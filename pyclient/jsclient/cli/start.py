"""From a command line to the function that carries it out, and from whatever happens to one exit code."""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import TYPE_CHECKING, Any, Callable, List

from ..errors import FAILED, Error, UsageError

if TYPE_CHECKING:
    import argparse


def run(argv: List[str]) -> int:
    """Runs one command line; every error is one sentence on stderr."""
    if argv[:1] == ["__complete"]:
        from .complete import candidates

        return candidates(argv[1:])
    from .parser import parse

    args: Any = None
    try:
        args = parse(argv)
        module, _, name = args.run.partition(":")
        function: Callable[[argparse.Namespace], int] = getattr(
            importlib.import_module(f"{__package__}.{module}"), name
        )
        code = function(args)
        sys.stdout.flush()
        return code
    except Error as e:
        return complain(e, args)
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except BrokenPipeError:
        # Whoever read our output has seen enough (`| head`). Without this, Python complains once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as e:
        # A fault of this program. People get a sentence all the same; who mends it sets JSCTL_DEBUG.
        if os.environ.get("JSCTL_DEBUG"):
            raise
        say(f"jsctl: a fault of jsctl itself: {type(e).__name__}: {e} (JSCTL_DEBUG=1 shows where)")
        return FAILED
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else FAILED


def complain(error: Error, args: Any) -> int:
    """Says what is wrong, on stderr; with --json stdout gets it as a document too."""
    say(f"jsctl: {error}")
    if isinstance(error, UsageError) and args is None and "--help" not in str(error):
        say("jsctl: see jsctl --help")
    if getattr(args, "json", False) and not error.told:
        print(json.dumps({"error": str(error)}, ensure_ascii=False))
    return error.exit_code


def say(text: str) -> None:
    """A line for people, on stderr."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        pass
