"""The command line of `jsctl`: subcommands, flags and their help. It does not connect to Redis."""

from __future__ import annotations

import argparse
import os
import re
import textwrap
from typing import Any, List, NoReturn, Optional

from .. import __version__
from ..errors import TARGETS, UsageError
from . import argtypes, stdio

EXIT_CODES = """exit codes:
  0    all nodes answered OK
  1    a node failed, or Redis or its controllers are unreachable
  2    wrong usage
  3    no match: no such node, role or job
  4    a node did not answer in time
  130  interrupted (Ctrl-C)"""

EPILOG = f"""targets:
  {TARGETS}

durations:
  seconds, or a number with s, m, h or d: 90, 90s, 5m, 2h, 1d

environment:
  JSCTL_REDIS  address of Redis; --redis overrides it
  JSCTL_DEBUG  when set, an internal fault shows its traceback

{EXIT_CODES}

examples:
  jsctl nodes
  jsctl exec 1.10 -- uname -a
  jsctl exec @web --batch 10% --max-failures 1 -- systemctl reload nginx
  jsctl logs @web --since 10m --levels 7-9"""

_TARGET = "target nodes: 1.10, 1.*, @web, all; see jsctl --help"
_TARGET_OR_ALL = _TARGET + " (default: all)"
_ID = "id of a job; for an id made by jsctl its first 6 or more digits are enough"


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Wraps the lines of a description, and keeps indented lines unchanged."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = text.splitlines()
        return "\n".join(line if line.startswith(" ") else textwrap.fill(line, width) for line in lines)


class Parser(argparse.ArgumentParser):
    """Raises `UsageError` instead of exiting, and takes no abbreviated flags."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", HelpFormatter)
        super().__init__(allow_abbrev=False, **kwargs)

    def _print_message(self, message: str, file: Any = None) -> None:
        stdio.out(message, end="")

    def error(self, message: str) -> NoReturn:
        """Raise `UsageError` with the message and the command that shows the help."""
        if message.startswith("unrecognized arguments"):
            message += "; arguments of a program stand after --"
        unknown = re.match(r"argument COMMAND: invalid choice: '(.*?)' \(choose from (.*)\)$", message)
        if unknown:
            import difflib

            word, names = unknown[1], re.findall(r"[a-z]+", unknown[2])
            near = difflib.get_close_matches(word, names, n=1)
            message = f"there is no command {word!r}" + (f"; did you mean {near[0]}?" if near else "")
        raise UsageError(f"{message} (see {self.prog} --help)")


def parse(argv: List[str]) -> argparse.Namespace:
    """Parse a command line; the words after a lone `--` belong to a program and stay unchanged.

    Raise `UsageError`.
    """
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


def _description(help: str, more: str = "") -> str:
    return f"{help[0].upper()}{help[1:]}." + (f" {more}" if more else "")


def _epilog(*examples: str, targets: bool = False) -> str:
    parts = [f"targets:\n  {TARGETS}"] if targets else []
    if examples:
        parts.append("\n  ".join(["examples:", *examples]))
    return "\n\n".join(parts)


class _Builder:
    """Adds subcommands to the parser."""

    def __init__(self, subparsers: Any) -> None:
        self._subparsers = subparsers

    def command(
        self, name: str, run: str, help: str, more: str = "", examples: Any = (), targets: bool = False, **kwargs: Any
    ) -> argparse.ArgumentParser:
        """Add a subcommand that runs `module:function`; return its parser."""
        sub: argparse.ArgumentParser = self._subparsers.add_parser(
            name, help=help, description=_description(help, more), epilog=_epilog(*examples, targets=targets), **kwargs
        )
        _add_global_flags(sub)
        sub.set_defaults(run=run)
        return sub

    def for_target(
        self, name: str, run: str, help: str, more: str = "", examples: Any = (), optional: bool = False
    ) -> argparse.ArgumentParser:
        """Add a subcommand that sends a command to a target; return its parser."""
        sub = self.command(name, run, help, more, examples, targets=True)
        _add_target(sub, optional)
        _add_fleet_flags(sub)
        return sub


def build() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = Parser(
        prog="jsctl", description="Run commands, scripts and services on large fleets of nodes, over Redis.", epilog=EPILOG
    )
    parser.add_argument("--version", action="version", version=f"jsctl {__version__}", help="show the version and exit")
    _add_global_flags(parser, default=True)
    subs = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", parser_class=Parser)
    builder = _Builder(subs)
    _add_run_commands(builder)
    _add_node_commands(builder)
    _add_job_commands(builder)
    _add_history_commands(builder)
    return parser


def _add_run_commands(builder: _Builder) -> None:
    sub = builder.for_target(
        "exec", "run:execute", "run a program on nodes",
        "No shell runs it, except with --shell. A single word with spaces in it is split as a shell does. "
        "Output is shown as it comes: that of one node byte for byte, lines of several with the node before them. "
        "The exit status of the program on a single node is that of jsctl.",
        ["jsctl exec 1.1 -- uname -a", "jsctl exec all --shell -- 'df -h | tail -n 1'",
         "jsctl exec 1.1 --every 5m --domain ops --name disk -- /usr/local/bin/check-disk"],
    )
    sub.add_argument("program", nargs="*", default=[], help="program and its arguments, after --")
    _add_process_flags(sub)
    sub.add_argument("--shell", action="store_true", help="run the words in a shell: /bin/sh -c, on Windows cmd.exe /c")
    sub.add_argument("-i", "--interactive", action="store_true",
                     help="pass standard input on to the program, to its end; for one node")
    sub.add_argument("-t", "--tty", action="store_true",
                     help="run it on a terminal, with -i; for one node with Linux. ~. at the start of a line ends jsctl")
    sub.add_argument("--fold", action="store_true",
                     help="show the output of several nodes at their end, the same output once; the default where "
                     "stdout is no terminal, and for more than 20 nodes")
    sub.add_argument("--no-stream", action="store_true", help="show the output of a node at its end, the last lines of it")

    sub = builder.command(
        "shell", "terminal:shell", "open a shell on a node, on a terminal",
        "It is the login shell of the agent's user, or of --user. ~. at the start of a line ends the connection, and "
        "the shell with it.", ["jsctl shell 1.1", "jsctl shell 1.1 --user app -- top"], targets=True,
    )
    _add_target(sub)
    sub.add_argument("program", nargs="*", default=[], help="program and its arguments instead of a shell, after --")
    sub.add_argument("--user", help="run it as this user (default: the user of the agent)")

    sub = builder.command("script", "run:script", "run scripts, or list the stored ones")
    actions = sub.add_subparsers(dest="action", metavar="run|list", parser_class=Parser, required=True)
    scripts = _Builder(actions)
    sub = scripts.command(
        "run", "run:script_run", "run a Python or Lua script on nodes",
        "A local file is sent to the nodes, which keep it.",
        ["jsctl script run 1.1 ./check.py --data '{\"path\": \"/\"}'", "jsctl script run @web ops/disk -- -v"], targets=True,
    )
    _add_target(sub)
    sub.add_argument("script", help="a local .py or .lua file, - for standard input (with --lang), or domain/name of a "
                     "script in the jumpscript folder of the nodes")
    sub.add_argument("program", nargs="*", default=[], metavar="ARGS", help="arguments of the script, after --")
    sub.add_argument("--lang", choices=["py", "lua"], help="language, when the file name does not end in .py or .lua")
    _add_fleet_flags(sub)
    _add_process_flags(sub)
    scripts.command("list", "list:scripts", "list the scripts and files in Redis",
                    "They expire a week after their last use.")

    sub = builder.command(
        "put", "run:put", "write a file to nodes",
        "The file is replaced in one step, only when its content differs. One above 16 MiB travels in pieces, which stay "
        "in Redis for a day; the same command goes on where an earlier one was cut off.",
        ["jsctl put 1.1 ./app.conf /etc/app.conf --mode 0644 --owner root:root"], targets=True,
        usage="jsctl put TARGET FILE PATH [options]",
    )
    _add_target(sub)
    sub.add_argument("file", help="local file of up to 64 GiB; a pipe or device, or - for standard input, "
                     "of up to 16 MiB")
    sub.add_argument("path", help="path on the nodes: a regular file, or a name that does not exist")
    sub.add_argument("--mode", help="mode of the file, octal (0644, for example)")
    sub.add_argument("--owner", help="owner of the file: user or user:group")
    sub.add_argument("--mkdir", action="store_true", help="create missing folders")
    _add_fleet_flags(sub)

    sub = builder.command(
        "get", "files:get", "get a file of nodes",
        "It is put in its place when all of it is there and its SHA-256 is right; the same command goes on where an "
        "earlier one was cut off.",
        ["jsctl get 1.1 /etc/hosts", "jsctl get @web /var/log/app.log logs"], targets=True,
        usage="jsctl get TARGET PATH [LOCAL] [options]",
    )
    _add_target(sub)
    sub.add_argument("path", help="absolute path of a regular file on the nodes")
    sub.add_argument("local", nargs="?", help="local file or folder, or - for standard output (default: the name of the "
                     "file, here); of several nodes a folder, with a folder for each node in it")
    _add_exclude(sub)
    sub.add_argument("--no-progress", action="store_true", help="show no progress")

    sub = builder.for_target(
        "raw", "run:raw", "send any command to nodes", examples=["jsctl raw 1.1 execute --args '{\"cmd\": \"ls\"}'"]
    )
    sub.add_argument("cmd", help="name of the command")
    sub.add_argument("--args", dest="raw_args", default="{}", metavar="JSON", help="arguments, a JSON object (default: {})")
    sub.add_argument("--data", default="", help="data: text, @FILE, or - for standard input")


def _add_node_commands(builder: _Builder) -> None:
    builder.for_target("ping", "run:ping", "check whether nodes answer", optional=True)

    sub = builder.command(
        "nodes", "list:nodes", "list the nodes with their state and roles",
        "A node is live when it was seen within 90 seconds, late within an hour, then gone; stopped when its agent "
        "has announced its stop. Claims without a grant are listed separately.",
        ["jsctl nodes @web --state late"], targets=True,
    )
    _add_target(sub, optional=True)
    _add_exclude(sub)
    sub.add_argument("--state", choices=["live", "late", "gone", "stopped"], help="list only nodes in this state")

    sub = builder.command(
        "grant", "grants:grant", "grant roles, labels and host names that nodes claim",
        "A claim is used for targets only after its grant. jsctl grants lists both.",
        ["jsctl grant 1.1 --role web --label site=ams"], targets=True,
    )
    _add_target(sub)
    sub.add_argument("--role", action="append", default=[], metavar="R", help="role; may be given more than once")
    sub.add_argument("--label", action="append", default=[], metavar="K=V", help="label; may be given more than once")
    sub.add_argument("--host", action="append", default=[], metavar="H", help="host name; may be given more than once")
    sub.add_argument("--remove", action="store_true", help="take the grants back")

    sub = builder.command(
        "grants", "grants:grants", "list the grants of nodes, and their claims without a grant",
        "The name of the user who granted is self-declared.", targets=True,
    )
    _add_target(sub, optional=True)

    sub = builder.command("info", "run:info", "show cpu, memory, disks, network interfaces or system of nodes",
                          examples=["jsctl info mem @web"], targets=True)
    sub.add_argument("kind", metavar="cpu|mem|disk|nic|os", help="kind of information")
    _add_target(sub, optional=True)
    _add_fleet_flags(sub)

    sub = builder.command("stats", "list:stats", "show the latest series of nodes",
                          "Nodes send them once a minute by default.",
                          ["jsctl stats 1.1 ops.disk"], targets=True)
    _add_target(sub, optional=True)
    sub.add_argument("series", nargs="?", default="", metavar="DOMAIN[.NAME]", help="only series of this domain, or name")

    sub = builder.for_target("ps", "run:ps", "list the running jobs of nodes",
                             "Between two runs a recurring job is listed by jsctl schedules.", optional=True)
    sub.add_argument("series", nargs="?", default="", metavar="DOMAIN[.NAME]", help="only jobs of this domain, or name")

    builder.for_target("schedules", "schedules:schedules", "list the recurring jobs of nodes with their next run",
                       optional=True)

    sub = builder.command("top", "top:top", "show the running jobs by cpu, refreshed until q is typed", targets=True)
    _add_target(sub, optional=True)
    _add_exclude(sub)
    sub.add_argument("--interval", type=argtypes.seconds, default=2.0, metavar="S",
                     help="time between refreshes (default: 2 s)")
    sub.add_argument("--once", action="store_true", help="print the table once and exit")
    sub.add_argument("--lines", type=argtypes.count, default=30, metavar="N", help="most jobs to show (default: 30)")

    sub = builder.command(
        "logs", "logs:logs", "show, follow or delete the messages of jobs", "They are read from the databases of the nodes.",
        ["jsctl logs @web --since 10m --levels 7-9", "jsctl logs 1.1 --job 7c0e12 --follow"], targets=True,
    )
    _add_target(sub)
    _add_exclude(sub)
    sub.add_argument("--job", default="", metavar="ID", help=f"only messages of one job: {_ID}")
    sub.add_argument("--levels", metavar="SET", help="only these levels: 9, 1-5, 1-5,9 or * (default: *)")
    sub.add_argument("--since", type=argtypes.moment, metavar="TIME",
                     help="only messages from this time on: 10m (ago), 2h, 1d, or local time 2026-01-31T12:00")
    sub.add_argument("--until", type=argtypes.moment, metavar="TIME", help="only messages up to this time")
    sub.add_argument("--limit", type=argtypes.count, metavar="N", help="most messages of each node, the oldest first")
    sub.add_argument("-f", "--follow", action="store_true", help="print new messages until Ctrl-C, or the end of --job")
    sub.add_argument("--delete", action="store_true", help="delete the messages instead of showing them")

    builder.for_target("killall", "run:killall", "end every process of nodes",
                       "Recurring jobs keep their schedule; jobs with --max-time -1 start again.")
    builder.for_target("restart", "run:restart", "restart the agents of nodes, and wait until they are back",
                       "An agent exits, and its service manager starts it again. Running jobs end KILLED; those with "
                       "--max-time -1 or --every start again.", ["jsctl restart all --batch 10% --max-failures 0"])


def _add_job_commands(builder: _Builder) -> None:
    sub = builder.command(
        "kill", "job_commands:kill", "end a job",
        "It gets its stop signal, then KILL; it is not restarted and does not recur.",
        ["jsctl kill 7c0e12", "jsctl kill 1.10 watchdog"], usage="jsctl kill [TARGET] ID [options]",
    )
    _add_job_words(sub, "[TARGET] ID")
    sub = builder.command(
        "signal", "job_commands:signal", "send a signal to the process group of a job", "",
        ["jsctl signal 7c0e12 HUP"], usage="jsctl signal [TARGET] ID SIGNAL [options]",
    )
    _add_job_words(sub, "[TARGET] ID SIGNAL")
    sub = builder.command(
        "unschedule", "job_commands:unschedule", "end the recurrence of a job", "The run in progress continues to its end.",
        usage="jsctl unschedule [TARGET] ID [options]",
    )
    _add_job_words(sub, "[TARGET] ID")

    sub = builder.command("cancel", "job_commands:cancel", "withdraw a command from nodes that have not taken it",
                          "It ends KILLED there.", ["jsctl cancel 7c0e12"])
    sub.add_argument("id", help=_ID)

    sub = builder.command(
        "attach", "attach:attach", "show the output of a job from now on, to its end",
        "Ctrl-C ends jsctl, not the job. The exit status of the program on a single node is that of jsctl.",
        ["jsctl attach 7c0e12", "jsctl attach 7c0e12 --tail 4096"],
    )
    sub.add_argument("id", help=_ID)
    sub.add_argument("--tail", type=argtypes.number, default=0, metavar="BYTES",
                     help="begin with at least this much of the output so far, where the node has it (default: 0)")
    sub = builder.command(
        "output", "attach:output", "show the whole output of a job that has ended",
        "A node keeps the last bytes of a job that was watched until an hour after its end. Later, and of other jobs, "
        "the lines in its records are shown, and jsctl says so.",
        ["jsctl output 7c0e12 > output.txt"],
    )
    sub.add_argument("id", help=_ID)

    sub = builder.command("wait", "job_commands:wait", "wait for jobs that were sent earlier, and show their results",
                          examples=["jsctl wait $(jsctl exec @web --detach -- uptime)"])
    sub.add_argument("ids", nargs="+", metavar="ID", help=_ID)
    _add_output_flags(sub)


def _add_history_commands(builder: _Builder) -> None:
    sub = builder.command("jobs", "list:jobs", "list the last jobs, newest first")
    _add_limit(sub)
    sub = builder.command("job", "list:job", "show the command of a job, and its state on each node")
    sub.add_argument("id", help=_ID)
    for name, help in (
        ("events", "list the last events, newest first"),
        ("audit", "list the last commands and who sent them (self-declared), newest first"),
        ("rejected", "list malformed commands with the reason, newest first"),
    ):
        _add_limit(builder.command(name, f"list:{name}", help))

    sub = builder.command("completion", "complete:script", "print the completion script of a shell",
                          examples=["source <(jsctl completion bash)"])
    sub.add_argument("shell", choices=["bash", "zsh", "fish"], help="the shell")


def _add_target(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    if optional:
        parser.add_argument("target", nargs="?", default="all", help=_TARGET_OR_ALL)
    else:
        parser.add_argument("target", help=_TARGET)


def _add_exclude(parser: Any) -> None:
    parser.add_argument("--except", dest="exclude", action="append", metavar="TARGET",
                        help="leave these nodes out; may be given more than once")


def _add_limit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", "--limit", type=argtypes.count, default=20, metavar="N", help="most entries (default: 20)")


def _add_job_words(parser: argparse.ArgumentParser, metavar: str) -> None:
    parser.add_argument("words", nargs="+", metavar=metavar,
                        help=f"{_ID}; without TARGET the command goes to the nodes of the job")
    _add_fleet_flags(parser)


def _add_global_flags(parser: argparse.ArgumentParser, default: bool = False) -> None:
    # The same flags before and after the subcommand; only the first parser sets their defaults.
    def value(fallback: Any) -> Any:
        return fallback if default else argparse.SUPPRESS

    group = parser.add_argument_group("global options")
    group.add_argument(
        "-r", "--redis", metavar="URL", default=value(os.environ.get("JSCTL_REDIS") or "redis://localhost:6379"),
        help="address of Redis: redis://user:pw@host:port/db, rediss://… (TLS), unix:///path, servers of a cluster "
        "separated by commas, sentinel://host,host/group, or sentinels://… (default: JSCTL_REDIS, else "
        "redis://localhost:6379)",
    )
    group.add_argument(
        "--timeout", type=argtypes.seconds, default=value(None), metavar="S",
        help="wait this long for results, of each batch; 0 is without limit (default: 60 s, or --max-time and 30 s); "
        "then the command is withdrawn where it has not started",
    )
    group.add_argument("--as", dest="by", metavar="NAME", default=value(None),
                       help="name for the audit list, self-declared (default: the login name)")
    group.add_argument("--json", action="store_true", default=value(False), help="print one JSON document")
    group.add_argument("--ndjson", action="store_true", default=value(False),
                       help="print one JSON object a line, as results arrive")


def _add_output_flags(parser: Any) -> None:
    parser.add_argument("--no-fold", action="store_true", help="print the output of each node separately, as it arrives")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")


def _add_fleet_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("fleet options")
    _add_exclude(group)
    group.add_argument("--any", action="store_true", help="send to one random node of the target")
    group.add_argument("--dry-run", action="store_true", help="list the target nodes and send nothing")
    group.add_argument("--wait", action="store_true",
                       help="also send to nodes that are offline or were never seen, and wait for them; "
                       "after --timeout the command stays queued")
    group.add_argument("--batch", metavar="N|N%", help="send to this many nodes at a time (default: all)")
    group.add_argument("--max-failures", type=argtypes.number, metavar="N",
                       help="stop sending when more than N nodes have failed (default: never)")
    group.add_argument("--detach", action="store_true", help="print the job id and do not wait")
    group.add_argument("--expires", type=argtypes.duration, default=0, metavar="S",
                       help="drop the command on a node that has not taken it after this time (default: 1d)")
    group.add_argument("--tags", default="", help="text that comes back with the results")
    _add_output_flags(group)


def _add_process_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("process options")
    add = group.add_argument
    add("--data", default=None, help="standard input of the process: text, @FILE, or - for that of jsctl; JSON for the "
        "action of a script")
    add("--cwd", dest="workingdir", metavar="DIR", help="working folder")
    add("--env", action="append", metavar="NAME[=VALUE]", help="set an environment variable; may be given more than once. "
        "NAME alone takes the value from the environment of jsctl: use it for secrets, with --secret")
    add("--secret", action="store_true", default=None,
        help="keep the values of --env and --data out of history, records and logs")
    add("--max-time", type=argtypes.max_time, metavar="S",
        help="end it after this time; 0 is without limit, -1 also starts it again "
        "after it failed or the node restarted (default: 0)")
    add("--max-restart", type=argtypes.number, metavar="N", help="restart it at most N times when it fails (default: 0)")
    add("--every", dest="recurring_period", type=argtypes.duration, metavar="S",
        help="run it again each time after this period")
    add("--domain", help="domain of its messages and series")
    add("--name", help="name of its messages and series")
    add("--queue", help="jobs of one queue run one at a time, in order")
    add("--user", help="run it as this user (default: the user of the agent)")
    add("--nice", type=argtypes.signed, metavar="N", help="niceness, from -20 to 19 (default: 0)")
    add("--rlimit", action="append", metavar="K=N",
        help="resource limit: nofile, as, cpu, core…; may be given more than once")
    add("--umask", metavar="MODE", help="umask, octal (default: 022)")
    add("--oom-score-adj", type=argtypes.signed, metavar="N",
        help="from -1000, never killed for memory, to 1000, killed first (default: 0)")
    add("--stop-signal", metavar="NAME", help="signal that asks it to end (default: TERM)")
    add("--stop-timeout", type=argtypes.duration, metavar="S",
        help="time between the stop signal and KILL (default: 5 s)")
    add("--loglevels", metavar="SET", help="keep only messages of these levels: 9, 1-5, 1-5,9 or *")
    add("--loglevels-db", metavar="SET", help="levels to keep on the node (default: as configured there)")
    add("--loglevels-ac", metavar="SET", help="levels to send to the controller (default: as configured there)")
    add("--stats-interval", type=argtypes.duration, metavar="S",
        help="time between samples of its cpu and memory (default: as configured there)")
