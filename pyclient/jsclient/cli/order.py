"""The commands that ask nodes for something: from the flags to a fleet, and from its results to an exit code."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from .. import scripts, target, verbs, wire
from ..client import Client
from ..errors import FAILED, OK, Gone, NobodyMatched, NoController, UsageError, not_text
from ..fleet import Fleet
from ..job import nodes_of
from ..nodes import ago, load, unknown
from ..target import Selection
from ..targeted import Targeted
from ..text import is_text
from ..values import load_json
from ..verbs import Verb
from ..wire import NodeId
from . import render, stdio
from .start import say


def connect(args: argparse.Namespace) -> Client:
    """The client that the flags describe."""
    return Client(args.redis, by=args.by)


def execute(args: argparse.Namespace) -> int:
    """`jsctl exec`."""
    words: List[str] = args.program
    if not words:
        raise UsageError("exec needs a program: jsctl exec 1.1 -- uname -a")
    options = process_options(args)
    if args.shell:
        line, data = " ".join(words), stdin(args.data)
        posix = verbs.execute("/bin/sh", ["-c", line], data=data, **options)
        # With /s cmd.exe takes the outer quotes away, and nothing else.
        windows = verbs.execute("cmd.exe", ["/d", "/s", "/c", f'"{line}"'], data=data, **options)
        return order(args, posix, windows=windows)
    if len(words) == 1 and " " in words[0]:
        verb = verbs.execute(words[0], data=stdin(args.data), **options)
    else:
        verb = verbs.execute(words[0], words[1:], data=stdin(args.data), **options)
    return order(args, verb)


def script_run(args: argparse.Namespace) -> int:
    """`jsctl script run`."""
    options = process_options(args)
    if args.program:
        options["args"] = args.program
    domain, slash, name = args.script.rpartition("/")
    on_node = not os.path.exists(args.script) and slash and not args.script.startswith((".", "/"))
    if on_node and "." not in name:
        # domain/name, as the script lies on the nodes.
        options = {k: v for k, v in options.items() if k not in ("domain", "name")}
        data = stdin(args.data)
        return order(args, verbs.installed_script(args.lang or "py", domain, name, data=data, **options))
    if args.script == "-":
        if args.lang is None:
            raise UsageError("say which language the script on standard input is: --lang py or --lang lua")
        if args.data == "-":
            raise UsageError("standard input is either the script or its --data, not both")
        script = scripts.load(source=stdin_bytes(), language=args.lang)
    else:
        script = scripts.load(path=args.script, language=args.lang)
        options.setdefault("name", os.path.splitext(os.path.basename(args.script))[0])
    verb = verbs.script(script.language, script.sha256, data=stdin(args.data), **options)
    return order(args, verb, store=script.source)


def put(args: argparse.Namespace) -> int:
    """`jsctl put`."""
    import hashlib

    content = stdin_bytes() if args.file == "-" else scripts.read_file(args.file)
    verb = verbs.put(args.path, hashlib.sha256(content).hexdigest(), args.mode, args.owner, args.mkdir)
    return order(args, verb, store=content)


def ping(args: argparse.Namespace) -> int:
    """`jsctl ping`."""
    return order(args, verbs.ping(), looking=True)


def info(args: argparse.Namespace) -> int:
    """`jsctl info KIND [TARGET]`, in either order."""
    if args.kind not in verbs.INFO and args.target in verbs.INFO:
        args.kind, args.target = args.target, args.kind
    return order(args, verbs.info(args.kind), looking=True)


def ps(args: argparse.Namespace) -> int:
    """`jsctl ps`."""
    from . import top

    domain, _, name = args.series.partition(".")
    return order(args, verbs.processes(domain, name), render_all=top.process_table, looking=True)


def killall(args: argparse.Namespace) -> int:
    """`jsctl killall`."""
    return order(args, Verb("killall"))


def restart(args: argparse.Namespace) -> int:
    """`jsctl restart`."""
    return order(args, Verb("restart"), returning=not args.detach)


def raw(args: argparse.Namespace) -> int:
    """`jsctl raw`."""
    try:
        fields = load_json(args.raw_args)
    except ValueError as e:
        raise UsageError(f"--args is no JSON: {e}") from None
    if not isinstance(fields, dict):
        raise UsageError("--args must be a JSON object")
    return order(args, verbs.raw(args.cmd, fields, stdin(args.data)))


def kill(args: argparse.Namespace) -> int:
    """`jsctl kill [TARGET] ID`."""
    who, words = _who_and(args, 1, "jsctl kill [TARGET] ID")
    return _to_job(args, who, words[0], verbs.kill)


def unschedule(args: argparse.Namespace) -> int:
    """`jsctl unschedule [TARGET] ID`."""
    who, words = _who_and(args, 1, "jsctl unschedule [TARGET] ID")
    return _to_job(args, who, words[0], verbs.unschedule)


def signal(args: argparse.Namespace) -> int:
    """`jsctl signal [TARGET] ID SIGNAL`."""
    who, (job_id, name) = _who_and(args, 2, "jsctl signal [TARGET] ID SIGNAL")
    return _to_job(args, who, job_id, lambda i: verbs.signal(i, name))


def cancel(args: argparse.Namespace) -> int:
    """`jsctl cancel ID`."""
    with connect(args) as client:
        args.id, parts = parts_of(client, args.id)
        if not parts:
            raise Gone(f"no job {args.id}: it was never sent, or is older than a day")
        told: Dict[NodeId, str] = {}
        for job_id in parts:
            told.update(client.cancel(job_id, **_timeout(args)))
        if not told:
            raise NobodyMatched(f"job {args.id} was given to no node")
    gone = [n for n, why in told.items() if not why]
    kept = {n: why for n, why in told.items() if why}
    if args.json or args.ndjson:
        stdio.out_json({"id": args.id, "cancelled": [str(n) for n in gone],
                        "refused": {str(n): why for n, why in kept.items()}})
    elif gone:
        stdio.out(f"cancelled on {render.names(gone)}")
    for node, why in list(kept.items())[:10]:
        say(f"jsctl: {node}: {why}")
    if any("kill it" in why for why in kept.values()):
        say(f"jsctl: to end it where it runs: jsctl kill {args.id}")
    return OK if gone and not kept else FAILED


def wait(args: argparse.Namespace) -> int:
    """`jsctl wait ID…`."""
    with connect(args) as client:
        code = OK
        for asked in args.ids:
            code = max(code, _show(args, _found(client, wire.check_id(asked)), single=True))
        return code


def parts_of(client: Client, asked: str, looking: bool = False) -> Tuple[str, List[str]]:
    """The whole id of what `asked` names, and the ids of its jobs; none when Redis knows nothing of it.

    Who is only `looking` needs no controller for that.
    """
    import time

    # What was sent a moment ago may not have been taken from the queue yet, or only some jobs of a fleet:
    # one that is still being taken grows from look to look, and who ends it must end all of it.
    parts: List[str] = []
    still = 0
    for attempt in range(30):
        found = client.parts(asked)
        still = still + 1 if found == parts else 0
        parts = found
        if parts == [asked]:
            break
        settled = still >= 2 if parts else attempt > 2
        if settled and not client.link.read("LLEN", wire.QUEUE):
            break
        try:
            client.check()
        except NoController:
            if looking:
                break  # nobody takes anything, so what is there is all
            raise
        time.sleep(0.1)
    if not parts:
        # Only now, for until here it may have been a whole id.
        asked = client.whole_id(asked)
        parts = client.parts(asked)
    return asked, parts


def _found(client: Client, asked: str) -> Fleet:
    asked, parts = parts_of(client, asked)
    if not parts:
        raise Gone(f"no job {asked}: it was never sent, or is older than a day")
    return Fleet.again(client, asked, {part: client.job_info(part) for part in parts})


def order(
    args: argparse.Namespace,
    verb: Verb,
    store: Optional[bytes] = None,
    render_all: Optional[Callable[[Client, List[Any]], str]] = None,
    windows: Optional[Verb] = None,
    looking: bool = False,
    returning: bool = False,
    to_job: bool = False,
    each: Optional[Mapping[NodeId, Verb]] = None,
) -> int:
    """Sends a command to the target of the flags, and shows what comes back.

    A command that is only `looking` is not sent to a node whose agent has stopped; with `returning` a node is done
    when its agent has started again. Nodes with Windows get `windows` in its place, where it is given, and those of
    `each` what it says for them.
    """
    job_id = wire.new_id()
    with connect(args) as client, _told(client, job_id):
        targeted = client.target(args.target, but=args.but, any=args.any)
        client.check()
        chosen = targeted.select()
        if looking:
            chosen = chosen.present
        if args.dry_run:
            return _dry_run(args, targeted, chosen)
        _warn(args, chosen)
        everybody = chosen.everybody if args.wait or args.detach else chosen.live
        if store is not None and everybody:
            client.store(store)
        if not args.detach:
            # Loaded before anything is sent, so that Ctrl-C finds somebody who can say what goes on running.
            from . import output

            output.load(progress=not args.no_progress)
        own = {n: windows for n in _with_windows(client, everybody)} if windows else dict(each or {})
        fleet = targeted.start(
            verb, each=own, selection=chosen, wait_offline=args.wait or args.detach, batch=args.batch,
            max_failures=args.max_failures, tags=args.tags, expires=args.expires, keep=False, id=job_id,
            returning=returning,
        )
        if args.detach:
            while fleet.unsent:  # in batches: each waits for the one before
                for _ in fleet.stream(None):
                    pass
            if args.json or args.ndjson:
                stdio.out_json({"id": fleet.id, "nodes": [str(n) for n in fleet.nodes]})
            else:
                stdio.out(fleet.id)
            return OK
        single = targeted.who.named and len(fleet.nodes) == 1 and not fleet.offline and not fleet.unknown
        return _show(args, fleet, single, render_all, withdraw=not args.wait, to_job=to_job)


@contextlib.contextmanager
def _told(client: Client, job_id: str) -> Iterator[None]:
    """Whatever ends an order after something was sent, its id is told."""
    try:
        yield
    except BaseException:
        if client.sent:
            say(f"jsctl: it was sent as {job_id}; for its results: jsctl wait {job_id}")
        raise


def _show(
    args: argparse.Namespace, fleet: Fleet, single: bool,
    render_all: Optional[Callable[[Client, List[Any]], str]] = None, withdraw: bool = False,
    to_job: bool = False,
) -> int:
    from .output import Output

    output = Output(
        fleet, json_=args.json, ndjson=args.ndjson, fold=not args.no_fold, progress=not args.no_progress,
        single=single and len(fleet.nodes) == 1, render_all=render_all, withdraw=withdraw,
        to_job=to_job,
    )
    return output.run(_limit(args))


def _with_windows(client: Client, nodes: Sequence[NodeId]) -> List[NodeId]:
    """Those of the nodes whose agents said that they run on Windows."""
    return [node.id for node in load(client.link, nodes, ("os",)) if node.os == "windows"]


def _dry_run(args: argparse.Namespace, targeted: Targeted, chosen: Selection) -> int:
    away = {n.id: n for n in (*chosen.offline, *chosen.stopped)}
    if args.json or args.ndjson:
        items = [{"node": str(n), "gid": n.gid, "nid": n.nid, "state": _state(n, chosen)} for n in chosen.everybody]
        render.emit(items, args.ndjson)
    else:
        for node in chosen.everybody:
            seen = away.get(node)
            late = f"\t{'stopped' if seen.stopped else 'last seen'} {ago(seen.age)} ago" if seen else ""
            stdio.out(f"{node}{late}" if node not in chosen.unknown else f"{node}\t{'revoked' if node in chosen.revoked else 'never seen'}")
    if not chosen.live and not (args.wait and chosen.everybody):
        raise NobodyMatched(targeted.nobody(chosen))
    batch = f", in batches of {args.batch}" if args.batch else ""
    say(f"{len(chosen.live)} would be asked{batch}; nothing was sent")
    return OK


def _state(node: NodeId, chosen: Selection) -> str:
    if node in chosen.unknown:
        return "revoked" if node in chosen.revoked else "unknown"
    return next((n.state for n in (*chosen.offline, *chosen.stopped) if n.id == node), "live")


def _warn(args: argparse.Namespace, chosen: Selection) -> None:
    kept = args.wait or args.detach
    then = "its command waits for it" if kept else "nothing is sent to it (--wait sends it and waits)"
    if not chosen.live and not kept:
        return  # the error says it
    for node in chosen.unknown[:10]:
        answered = "its command is answered with ERROR" if kept and node in chosen.revoked else then
        say(f"jsctl: {unknown([node], chosen.revoked)}; {answered}")
    for seen in chosen.stopped[:10]:
        say(f"jsctl: the agent of {seen.id} stopped {ago(seen.age)} ago; it gets the command when it starts again")
    for seen in chosen.offline[:10] if kept else ():
        say(f"jsctl: {seen.id} was last seen {ago(seen.age)} ago; {then}")


def _who_and(args: argparse.Namespace, count: int, usage: str) -> Tuple[Optional[str], List[str]]:
    words: List[str] = args.words
    if len(words) == count:
        return None, words
    if len(words) == count + 1:
        return words[0], words[1:]
    raise UsageError(f"usage: {usage}")


def _to_job(args: argparse.Namespace, who: Optional[str], asked: str, verb: Callable[[str], Verb]) -> int:
    wire.check_id(asked)
    if who is not None:
        args.target = who
        with connect(args) as client:
            asked = client.whole_id(asked)
            ids = client.ids_on_nodes(asked)
        return order(args, verb(asked), to_job=True, each={node: verb(job_id) for node, job_id in ids.items()})
    with connect(args) as client:
        asked, parts = parts_of(client, asked)
        if not parts:
            raise Gone(f"no job {asked} in Redis any more; say which node it runs on: jsctl {args.command} 1.10 {asked}")
        infos = [client.job_info(part) for part in parts]
        asked_of = {node: verb(found.id) for found in infos for node in found.open or nodes_of(found)}
        if not asked_of:
            raise NobodyMatched(f"job {asked} was given to no node")
        if args.dry_run:
            chosen = client.select(target.parse(",".join(map(str, asked_of))))
            return _dry_run(args, client.target(",".join(map(str, asked_of))), chosen)
        job_id = wire.new_id()
        with _told(client, job_id):
            fleet = Fleet.each(client, asked_of, keep=False, id=job_id)
            return _show(args, fleet, single=True, withdraw=not args.wait, to_job=True)


def process_options(args: argparse.Namespace) -> Dict[str, Any]:
    """The arguments of a process, from the flags that were given."""
    plain = ("workingdir secret max_time max_restart recurring_period domain name queue user nice umask stop_signal"
             " oom_score_adj stop_timeout loglevels loglevels_db loglevels_ac stats_interval")
    out: Dict[str, Any] = {}
    for name in plain.split():
        value = getattr(args, name, None)
        if value is not None:
            out[name] = value
    for name in ("loglevels", "loglevels_db", "loglevels_ac"):
        if name in out:
            verbs.check_levels(out[name])
    if args.env:
        out["env"] = _environment(args.env)
    if args.rlimit:
        limits: Mapping[str, str] = _pairs(args.rlimit, "--rlimit")
        try:
            out["rlimits"] = {k: int(v) for k, v in limits.items()}
        except ValueError:
            raise UsageError("--rlimit takes NAME=NUMBER") from None
    return out


def _environment(words: Sequence[str]) -> Dict[str, str]:
    """`K=V`, or `K` alone for its value here, so that a secret need not stand on a command line."""
    out = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            if key not in os.environ:
                raise UsageError(f"--env takes NAME=VALUE, or the NAME of a variable that is set here, not {word!r}")
            value = os.environ[key]
            if not is_text(value):
                raise not_text(f"the variable {key}")
        if not key:
            raise UsageError(f"--env takes NAME=VALUE, not {word!r}")
        out[key] = value
    return out


def _pairs(words: Sequence[str], flag: str) -> Dict[str, str]:
    out = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise UsageError(f"{flag} takes NAME=VALUE, not {word!r}")
        out[key] = value
    return out


def stdin(data: Optional[str]) -> str:
    """`--data`: the text itself, `@FILE`, or `-` for our own standard input."""
    if data is None:
        return ""
    try:
        if data == "-":
            return stdin_bytes().decode("utf-8")
        if data.startswith("@"):
            return scripts.read_file(data[1:]).decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError("--data must be UTF-8 text; send other bytes with jsctl put") from None
    return data


def stdin_bytes() -> bytes:
    """Our own standard input, to its end; at most 16 MiB."""
    try:
        return scripts.read_all(sys.stdin.buffer, "standard input")
    except OSError as e:
        raise UsageError(f"cannot read standard input: {(e.strerror or str(e)).lower()}") from None


def _limit(args: argparse.Namespace) -> Optional[float]:
    """Seconds to wait for answers; nothing is for ever."""
    if args.timeout is not None:
        return None if args.timeout == 0 else float(args.timeout)
    most = getattr(args, "max_time", None)
    return 60.0 if not most or most < 0 else most + 30.0


def _timeout(args: argparse.Namespace) -> Dict[str, float]:
    return {} if args.timeout is None else {"timeout": args.timeout}
