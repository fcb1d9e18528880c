"""The command line: names, flags and their help. Nothing here talks to Redis."""

from __future__ import annotations

import argparse
import os
import re
from typing import Any, List, NoReturn, Optional

from .. import __version__
from ..errors import TARGETS, UsageError
from . import stdio

EXIT_CODES = """exit codes:
  0  all OK
  1  some failed, or Redis or its controllers are away
  2  wrong usage
  3  nobody matched: no such node, role or job
  4  somebody did not answer in time
130  interrupted (Ctrl-C)"""

EPILOG = f"""targets:
  {TARGETS}

{EXIT_CODES}

The address of Redis comes from --redis or JSCTL_REDIS (redis://localhost:6379)."""

_TARGET = "the target nodes: 1.10, 1.*, @web, all (the whole grammar: jsctl --help)"
_ID = "a job's id; of one that was made by jsctl, its first 6 digits or more do"
_ID_AND = _ID + ", where no TARGET is given"


class Parser(argparse.ArgumentParser):
    """Raises instead of leaving, and never guesses abbreviated flags."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **kwargs)

    def _print_message(self, message: str, file: Any = None) -> None:
        stdio.out(message, end="")

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments"):
            message += "; what belongs to a program stands after --"
        unknown = re.match(r"argument COMMAND: invalid choice: '(.*?)' \(choose from (.*)\)$", message)
        if unknown:
            import difflib

            word, names = unknown[1], re.findall(r"[a-z]+", unknown[2])
            near = difflib.get_close_matches(word, names, n=1)
            message = f"there is no command {word!r}" + (f"; did you mean {near[0]}?" if near else "")
        raise UsageError(f"{message} (see {self.prog} --help)")


def parse(argv: List[str]) -> argparse.Namespace:
    """Reads a command line. What follows a lone `--` is a program's own and is left as it is."""
    tail: Optional[List[str]] = None
    if "--" in argv:
        at = argv.index("--")
        argv, tail = argv[:at], argv[at + 1 :]
    parser = build()
    args = parser.parse_args(argv)
    if not getattr(args, "run", None):
        raise UsageError("no command given (see jsctl --help)")
    if args.json and args.ndjson:
        raise UsageError("give --json or --ndjson, not both")
    if tail is not None:
        if "program" in args:
            args.program = [*args.program, *tail]
        else:
            raise UsageError(f"{args.command} takes nothing after --")
    return args


def build() -> argparse.ArgumentParser:
    """The whole grammar."""
    parser = Parser(prog="jsctl", description="Commands for a fleet of nodes.", epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"jsctl {__version__}")
    _everywhere(parser, default=True)
    subs = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", parser_class=Parser)

    def command(name: str, run: str, help: str, **kwargs: Any) -> argparse.ArgumentParser:
        sub = subs.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".", **kwargs)
        _everywhere(sub)
        sub.set_defaults(run=run)
        return sub

    def send(name: str, run: str, help: str, optional_target: bool = False, **kwargs: Any) -> argparse.ArgumentParser:
        kwargs.setdefault("epilog", f"targets: {TARGETS}")
        sub = command(name, run, help, **kwargs)
        if optional_target:
            sub.add_argument("target", nargs="?", default="all", help=f"{_TARGET}; all when left out")
        else:
            sub.add_argument("target", help=_TARGET)
        _fleet(sub)
        return sub

    sub = send("exec", "run:execute", "run a program: jsctl exec 1.1 -- uname -a")
    sub.add_argument("program", nargs="*", default=[], help="the program and its arguments, after --")
    _process(sub)
    sub.add_argument("--shell", action="store_true", help="hand the words to a shell: /bin/sh -c, on Windows cmd.exe /c")

    sub = command("script", "run:script", "run scripts, or list the stored ones")
    scripts = sub.add_subparsers(dest="action", metavar="run|list", parser_class=Parser, required=True)
    run = scripts.add_parser("run", help="run a Python or Lua script: jsctl script run 1.1 ./check.py",
                             description="Run a Python or Lua script: jsctl script run 1.1 ./check.py. A file of yours is "
                             "sent by itself.", epilog=f"targets: {TARGETS}")
    _everywhere(run)
    run.add_argument("target", help=_TARGET)
    run.add_argument("script", help="a .py or .lua file, - for standard input (with --lang), or domain/name of a script "
                     "that lies on the nodes")
    run.add_argument("program", nargs="*", default=[], metavar="ARGS", help="the script's own arguments, after --")
    run.add_argument("--lang", choices=["py", "lua"], help="the language, where the file's ending does not say it")
    _fleet(run)
    _process(run)
    run.set_defaults(run="run:script_run")
    listing = scripts.add_parser("list", help="the scripts and files that Redis keeps",
                                 description="The scripts and files that Redis keeps, for a week after their last use.")
    _everywhere(listing)
    listing.set_defaults(run="list:scripts")

    send("ping", "run:ping", "ask whether nodes answer", optional_target=True)

    sub = command("nodes", "list:nodes", "list the nodes: live, late (not seen for 90 s), gone (for an hour); "
                  "their roles, and what they claim without a grant")
    sub.add_argument("target", nargs="?", default="all", help=f"{_TARGET}; all when left out")
    sub.add_argument("--except", dest="exclude", action="append", metavar="TARGET", help="leave these out")
    sub.add_argument("--state", choices=["live", "late", "gone", "stopped"], help="only these")

    sub = command(
        "grant", "grants:grant", "let nodes have roles, labels and host names that they claim: jsctl grant 1.1 --role web",
        epilog="What is granted, and what nodes claim beyond that: jsctl grants.",
    )
    sub.add_argument("target", help=_TARGET)
    sub.add_argument("--role", action="append", default=[], metavar="R", help="a role; may be given more than once")
    sub.add_argument("--label", action="append", default=[], metavar="K=V", help="a label, likewise")
    sub.add_argument("--host", action="append", default=[], metavar="H", help="a host name, likewise")
    sub.add_argument("--remove", action="store_true", help="take these back")

    sub = command("grants", "grants:grants", "what nodes were granted, by whom (self-declared), and what else they claim")
    sub.add_argument("target", nargs="?", default="all", help=f"{_TARGET}; all when left out")

    sub = command("info", "run:info", "what nodes say of their cpu, mem, disk, nic or os")
    sub.add_argument("kind", metavar="cpu|mem|disk|nic|os")
    sub.add_argument("target", nargs="?", default="all", help=f"{_TARGET}; all when left out")
    _fleet(sub)

    send("schedules", "schedules:schedules", "recurring jobs (--every), with their next run", optional_target=True)

    sub = send("ps", "run:ps", "the jobs that run on nodes; between two runs a recurring one is in jsctl schedules",
                optional_target=True)
    sub.add_argument("series", nargs="?", default="", metavar="DOMAIN[.NAME]", help="only of these")

    sub = command("top", "top:top", "the jobs of all nodes by cpu, refreshed in place until q is typed")
    sub.add_argument("target", nargs="?", default="all", help=f"{_TARGET}; all when left out")
    sub.add_argument("--except", dest="exclude", action="append", metavar="TARGET", help="leave these out")
    sub.add_argument("--interval", type=_seconds, default=2.0, help="seconds between refreshes (2)")
    sub.add_argument("--once", action="store_true", help="print once and leave")
    sub.add_argument("--lines", type=_count, default=30, help="so many jobs (30)")

    sub = command("kill", "job_commands:kill", "end a job: jsctl kill [TARGET] ID", usage="jsctl kill [TARGET] ID [options]")
    sub.add_argument("words", nargs="+", metavar="[TARGET] ID", help=_ID_AND)
    _fleet(sub)
    send("killall", "run:killall", "end every process of nodes; remembered jobs start again")
    sub = command(
        "signal", "job_commands:signal", "send a signal to a job: jsctl signal [TARGET] ID HUP",
        usage="jsctl signal [TARGET] ID SIGNAL [options]",
    )
    sub.add_argument("words", nargs="+", metavar="[TARGET] ID SIGNAL", help=_ID_AND)
    _fleet(sub)
    sub = command(
        "unschedule", "job_commands:unschedule", "stop a recurring job after the run under way",
        usage="jsctl unschedule [TARGET] ID [options]",
    )
    sub.add_argument("words", nargs="+", metavar="[TARGET] ID", help=_ID_AND)
    _fleet(sub)
    send("restart", "run:restart", "end agents, which their service managers start again, and wait until each is back")

    sub = command("cancel", "job_commands:cancel", "withdraw a command that still waits for its node")
    sub.add_argument("id", help=_ID)

    sub = command(
        "put", "run:put", "write a file to nodes: jsctl put 1.1 ./app.conf /etc/app.conf",
        usage="jsctl put TARGET FILE PATH [options]",
    )
    sub.add_argument("target", help=_TARGET)
    sub.add_argument("file", help="a file, pipe or device here, or - for standard input; at most 16 MiB")
    sub.add_argument("path", help="where it goes on the nodes: a file, or a name that is free")
    sub.add_argument("--mode", help="octal, 0644 say")
    sub.add_argument("--owner", help="user or user:group")
    sub.add_argument("--mkdir", action="store_true", help="make the folder when it is missing")
    _fleet(sub)

    sub = command("logs", "logs:logs", "what jobs wrote, from the nodes' databases")
    sub.add_argument("target", help=_TARGET)
    sub.add_argument("--except", dest="exclude", action="append", metavar="TARGET", help="leave these out")
    sub.add_argument("--job", default="", metavar="ID", help=f"of one job: {_ID}")
    sub.add_argument("--levels", help="1-5, 9, * (all)")
    sub.add_argument("--since", type=_moment, help="10m, 2h, 1d, or 2026-01-31T12:00")
    sub.add_argument("--until", type=_moment, help="likewise")
    sub.add_argument("--limit", type=_count, help="at most so many of each node, the oldest first")
    sub.add_argument("-f", "--follow", action="store_true", help="go on with what is written from now on")
    sub.add_argument("--delete", action="store_true", help="delete these records instead of showing them")

    sub = command("stats", "list:stats", "the latest series of nodes")
    sub.add_argument("target", nargs="?", default="all", help=f"{_TARGET}; all when left out")
    sub.add_argument("series", nargs="?", default="", metavar="DOMAIN[.NAME]", help="only of these")

    sub = command("jobs", "list:jobs", "the last jobs, newest first")
    sub.add_argument("-n", "--limit", type=_count, default=20, help="so many (20)")

    sub = command("job", "list:job", "what a job asked for, and where it stands on each node")
    sub.add_argument("id", help=_ID)

    sub = command("wait", "job_commands:wait", "wait for jobs that were sent before, and show their results")
    sub.add_argument("ids", nargs="+", metavar="ID", help=_ID)
    _output(sub)

    for name, help in (("events", "the last events"), ("audit", "what was asked for, and by whom (self-declared)"), ("rejected", "what was no command")):
        sub = command(name, f"list:{name}", help + ", newest first")
        sub.add_argument("-n", "--limit", type=_count, default=20, help="so many (20)")

    sub = send("raw", "run:raw", "send any command: jsctl raw 1.1 execute --args '{\"cmd\": \"ls\"}'")
    sub.add_argument("cmd", help="the command's name")
    sub.add_argument("--args", dest="raw_args", default="{}", metavar="JSON", help="an object")
    sub.add_argument("--data", default="", help="text, @FILE, or - for standard input")

    sub = command("completion", "complete:script", "the completion of a shell: source <(jsctl completion bash)")
    sub.add_argument("shell", choices=["bash", "zsh", "fish"])
    return parser


def _everywhere(parser: argparse.ArgumentParser, default: bool = False) -> None:
    # The same flags before and after the command; only the first parser sets their defaults.
    def value(fallback: Any) -> Any:
        return fallback if default else argparse.SUPPRESS

    group = parser.add_argument_group("everywhere")
    group.add_argument(
        "-r", "--redis", metavar="URL", default=value(os.environ.get("JSCTL_REDIS") or "redis://localhost:6379"),
        help="redis://user:pw@host:port/db, rediss://…, unix:///path, a,b,c of a cluster, sentinel://a,b/group, sentinels://…",
    )
    group.add_argument(
        "--timeout", type=_seconds, default=value(None), metavar="S",
        help="seconds to wait for answers, of each batch (60, or --max-time and 30 more; 0 waits for ever); then the "
        "command is withdrawn where it has not started",
    )
    group.add_argument("--as", dest="by", metavar="NAME", default=value(None), help="who asks, for the audit list (self-declared)")
    group.add_argument("--json", action="store_true", default=value(False), help="one JSON document")
    group.add_argument("--ndjson", action="store_true", default=value(False), help="one JSON object a line, as they come")


def _output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-fold", action="store_true", help="every node's output by itself, as it comes")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


def _fleet(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("fleet")
    group.add_argument("--except", dest="exclude", action="append", metavar="TARGET", help="leave these out")
    group.add_argument("--any", action="store_true", help="one of them, whichever")
    group.add_argument("--dry-run", action="store_true", help="list the target nodes, and do nothing")
    group.add_argument("--wait", action="store_true", help="also wait for nodes that are not there, or never were; "
                       "when the wait ends the command stays for them")
    group.add_argument("--batch", metavar="N|N%", help="so many at a time")
    group.add_argument("--max-failures", type=_number, metavar="N", help="stop sending when more than N have failed")
    group.add_argument("--detach", action="store_true", help="print the id and do not wait")
    group.add_argument("--expires", type=_duration, default=0, metavar="S", help="give up on a node after so long (a day)")
    group.add_argument("--tags", default="", help="a text that comes back with the results")
    _output(group)  # type: ignore[arg-type]


def _process(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("process")
    add = group.add_argument
    add("--data", default=None, help="its standard input: text, @FILE, or - for ours; JSON for a script's action")
    add("--cwd", dest="workingdir", help="its folder")
    add("--env", action="append", metavar="NAME[=VALUE]", help="sets a variable for it; may be given more than once. NAME "
        "alone takes the value from jsctl's own environment: so give secrets, with --secret")
    add("--secret", action="store_true", default=None, help="keep the values of --env and --data out of history, records and logs")
    add("--max-time", type=_longest, metavar="S", help="seconds, or 5m, 2h, 1d; -1 runs for good and comes back after a restart")
    add("--max-restart", type=_number, metavar="N", help="start it again so often when it fails")
    add("--every", dest="recurring_period", type=_duration, metavar="S", help="run it again after so many seconds, or 5m, 2h, 1d")
    add("--domain", help="what its records and stats are filed under")
    add("--name", help="likewise")
    add("--queue", help="one at a time of each queue")
    add("--user", help="run it as this user")
    add("--nice", type=_signed, help="its niceness")
    add("--rlimit", action="append", metavar="K=N", help="nofile, as, cpu, core…")
    add("--umask", metavar="MODE", help="its umask, octal (022)")
    add("--oom-score-adj", type=_signed, metavar="N", help="from -1000, never killed for memory, to 1000 (0)")
    add("--stop-signal", metavar="NAME", help="what asks it to end (TERM)")
    add("--stop-timeout", type=_duration, metavar="S", help="seconds between the stop signal and KILL (5)")
    add("--loglevels", help="keep only these messages")
    add("--loglevels-db", help="those kept on the node")
    add("--loglevels-ac", help="those sent to the controller")
    add("--stats-interval", type=_duration, metavar="S", help="seconds between samples")


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _seconds(text: str) -> float:
    """Seconds from `90`, `1.5`, `5m`, `2h` or `1d`."""
    unit = _UNITS.get(text[-1:], 0)
    try:
        value = float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds; write 90, 90s, 5m, 2h or 1d")
    return value


def _duration(text: str) -> int:
    """Whole seconds."""
    value = _seconds(text)
    if value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of seconds; write 90, 90s, 5m, 2h or 1d")
    return int(value)


def _longest(text: str) -> int:
    """Whole seconds, or -1."""
    return -1 if text == "-1" else _duration(text)


def _number(text: str) -> int:
    if not re.match(r"[0-9]{1,15}\Z", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 0 or more")
    return int(text)


def _count(text: str) -> int:
    if not re.match(r"[0-9]{1,15}\Z", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


def _signed(text: str) -> int:
    try:
        if abs(int(text)) > 10**15:
            raise ValueError
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None


def _moment(text: str) -> int:
    """Milliseconds since 1970, from `10m` or a date."""
    import time

    if re.match(r"[0-9]{1,9}[smhd]\Z", text):
        return int((time.time() - int(text[:-1]) * _UNITS[text[-1]]) * 1000)
    from datetime import datetime

    try:
        return int(datetime.fromisoformat(text).timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        raise argparse.ArgumentTypeError(f"{text!r} is no time: write 10m, 2h, 1d or 2026-01-31T12:00") from None
