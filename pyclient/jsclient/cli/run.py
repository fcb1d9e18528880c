"""The subcommands that send a command to a target: exec, script run, put, ping, info, ps, killall, restart, raw."""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Any, Dict, List

from .. import commands, scripts
from ..client import Client
from ..commands import CommandSpec
from ..errors import UsageError
from ..uploads import PIECE_BYTES, Upload
from ..values import load_json
from . import stdio
from .options import process_options, read_data, read_stdin
from .send import send

#: A node gets about so many pieces of a large file a second.
_PIECES_A_SECOND = 4
#: Interval at which the progress is shown, in seconds.
_PROGRESS_SECONDS = 0.5


def execute(args: argparse.Namespace) -> int:
    """Run `jsctl exec`."""
    words: List[str] = args.program
    if not any(words):
        raise UsageError("exec needs a program: jsctl exec 1.1 -- uname -a")
    options = process_options(args)
    if args.interactive or args.tty:
        from .terminal import interactive

        return interactive(args, lambda options: _program(args, words, "", options), options)
    data = read_data(args.data)
    windows = None
    if args.shell:
        # With /s cmd.exe removes the outer quotes and nothing else.
        windows = commands.execute("cmd.exe", ["/d", "/s", "/c", f'"{" ".join(words)}"'], data=data, **options)
    return send(args, _program(args, words, data, options), windows=windows, is_program=True)


def _program(args: argparse.Namespace, words: List[str], data: str, options: Dict[str, Any]) -> CommandSpec:
    if args.shell:
        return commands.execute("/bin/sh", ["-c", " ".join(words)], data=data, **options)
    if len(words) == 1 and " " in words[0]:
        return commands.execute(words[0], data=data, **options)
    return commands.execute(words[0], words[1:], data=data, **options)


def script_run(args: argparse.Namespace) -> int:
    """Run `jsctl script run`."""
    options = process_options(args)
    if args.program:
        options["args"] = args.program
    domain, slash, name = args.script.rpartition("/")
    is_on_node = not os.path.exists(args.script) and slash and not args.script.startswith((".", "/"))
    if is_on_node and "." not in name:
        # domain/name of a script in the jumpscript folder of the nodes
        options = {k: v for k, v in options.items() if k not in ("domain", "name")}
        data = read_data(args.data)
        return send(args, commands.installed_script(args.lang or "py", domain, name, data=data, **options))
    if args.script == "-":
        if args.lang is None:
            raise UsageError("say which language the script on standard input is: --lang py or --lang lua")
        if args.data == "-":
            raise UsageError("standard input is either the script or its --data, not both")
        script = scripts.load_script(source=read_stdin(), language=args.lang)
    else:
        script = scripts.load_script(path=args.script, language=args.lang)
        options.setdefault("name", os.path.splitext(os.path.basename(args.script))[0])
    spec = commands.script(script.language, script.sha256, data=read_data(args.data), **options)
    return send(args, spec, store=lambda client: _store(client, script.source))


def _store(client: Client, source: bytes) -> None:
    client.store(source)


def put(args: argparse.Namespace) -> int:
    """Run `jsctl put`."""
    upload = Upload(read_stdin() if args.file == "-" else args.file)
    size = upload.size if upload.is_large else None
    spec = commands.put(args.path, upload.sha256, args.mode, args.owner, args.mkdir, size)
    if size and args.timeout is None:
        args.timeout = 60 + size / PIECE_BYTES / _PIECES_A_SECOND
    return send(args, spec, store=lambda client: _upload(args, client, upload))


def _upload(args: argparse.Namespace, client: Client, upload: Upload) -> None:
    shown = 0.0

    def progress(count: int) -> None:
        nonlocal shown
        if time.monotonic() - shown > _PROGRESS_SECONDS:
            shown = time.monotonic()
            stdio.progress(f"{args.file}: {count >> 20} of {upload.size >> 20} MiB are in Redis")

    upload.store(client, progress if sys.stderr.isatty() and not args.no_progress else lambda count: None)
    if shown:
        stdio.progress("")


def ping(args: argparse.Namespace) -> int:
    """Run `jsctl ping`."""
    return send(args, commands.ping(), read_only=True)


def info(args: argparse.Namespace) -> int:
    """Run `jsctl info KIND [TARGET]`; the two may be swapped."""
    if args.kind not in commands.INFO and args.target in commands.INFO:
        args.kind, args.target = args.target, args.kind
    return send(args, commands.info(args.kind), read_only=True)


def ps(args: argparse.Namespace) -> int:
    """Run `jsctl ps`."""
    from .top import process_table

    domain, _, name = args.series.partition(".")
    return send(args, commands.processes(domain, name), render_all=process_table, read_only=True)


def killall(args: argparse.Namespace) -> int:
    """Run `jsctl killall`."""
    return send(args, CommandSpec("killall"))


def restart(args: argparse.Namespace) -> int:
    """Run `jsctl restart`."""
    return send(args, CommandSpec("restart"), await_restart=not args.detach)


def raw(args: argparse.Namespace) -> int:
    """Run `jsctl raw`."""
    try:
        fields = load_json(args.raw_args)
    except ValueError as e:
        raise UsageError(f"--args is not JSON: {e}") from None
    if not isinstance(fields, dict):
        raise UsageError("--args must be a JSON object")
    return send(args, commands.raw(args.cmd, fields, read_data(args.data)))
