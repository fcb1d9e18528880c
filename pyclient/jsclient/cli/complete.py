"""Tab completion: the scripts for bash, zsh and fish, and their candidates."""

from __future__ import annotations

import argparse
import re
from typing import List

from .. import keys
from ..commands import INFO
from ..errors import OK, Error
from . import stdio

# The shells check the words again: the installed `jsctl` may be another version.
_BASH = """_jsctl() {
    local line="${COMP_LINE:0:COMP_POINT}" cur cut word
    # A target has commas and colons in it, so the word is taken from the line and not from COMP_WORDS.
    cur="${line##*[[:space:]]}"
    cut="${cur%"${cur##*[:=]}"}"
    COMPREPLY=()
    while IFS= read -r word; do
        [[ -z "$word" || "$word" == *[!A-Za-z0-9@._:/,*-]* ]] && continue
        word="${word#"$cut"}"
        # bash puts it on the line as it is: 1.* is no pattern for files.
        COMPREPLY+=("${word//\\*/\\\\*}")
    done < <(jsctl __complete "$line" 2>/dev/null)
    [[ ${#COMPREPLY[@]} -eq 0 ]] && compopt -o default 2>/dev/null
}
complete -o nospace -F _jsctl jsctl
"""

_ZSH = """#compdef jsctl
_jsctl() {
    emulate -L zsh
    local -a found
    found=(${(f)"$(jsctl __complete "${BUFFER[1,CURSOR]}" 2>/dev/null)"})
    found=(${found:#*[^A-Za-z0-9@._:\\/,*-]*})
    # Without -Q zsh quotes what needs it.
    if (( ${#found} )); then compadd -S '' -- "${found[@]}"; else _files; fi
}
compdef _jsctl jsctl
"""

_FISH = """function __jsctl_complete
    jsctl __complete (commandline -cp | string collect) 2>/dev/null | string match -r '^[A-Za-z0-9@._:/,*-]+$'
end
complete -c jsctl -f -a '(__jsctl_complete)'
complete -c jsctl -n '__fish_seen_subcommand_from put run' -F
"""

#: A candidate has no character with a meaning for a shell, except the `*` of `1.*`, which the scripts quote.
_OFFERED = re.compile(r"(?:[A-Za-z0-9@._:/,-]|(?<=[0-9]\.)\*)+\Z")
_JOB = ("kill", "signal", "unschedule", "cancel", "job", "wait")


def script(args: argparse.Namespace) -> int:
    """Run `jsctl completion SHELL`."""
    stdio.out({"bash": _BASH, "zsh": _ZSH, "fish": _FISH}[args.shell], end="")
    return OK


def print_candidates(argv: List[str]) -> int:
    """Run `jsctl __complete LINE`: print the candidates for the last word of the line, one a line."""
    for word in candidates(argv[0] if argv else ""):
        stdio.out(word)
    return OK


def candidates(line: str) -> List[str]:
    """Return the candidates for the last word of a `jsctl` line, sorted, in characters that are safe in a shell."""
    words = line.split()[1:]
    # A shell writes `1.*` as `1.\\*`.
    current = "" if not line or line[-1].isspace() else (words.pop().replace("\\*", "*") if words else "")
    from .parser import build

    parser = build()
    url = parser.get_default("redis")
    plain: List[str] = []
    before = ""
    for word in words:
        if word == "--":
            return []
        if before in ("-r", "--redis"):
            url = word
        elif not word.startswith("-") and not (before.startswith("-") and _takes_value(parser, plain, before)):
            plain.append(word)
        before = word
    if plain[:1] == ["script"] and len(plain) > 1:
        plain = plain[1:]
        parser = _sub(_sub(parser, "script"), plain[0])
    elif plain:
        parser = _sub(parser, plain[0])
    if before == "--except":
        found = _targets(url, current)
    elif before.startswith("-") and _takes_value(parser, [], before):
        found = _choices(parser, before)
    elif current.startswith("-"):
        found = [flag for action in parser._actions for flag in action.option_strings]
    elif not plain or plain == ["script"]:
        found = _names(parser)
    else:
        name, at = plain[0], len(plain) - 1
        places = [a for a in parser._actions if not (a.option_strings or isinstance(a, argparse._SubParsersAction))]
        found = [str(choice) for choice in places[at].choices or ()] if at < len(places) else []
        if name == "info" and at == 0:
            found = list(INFO)
        elif name == "signal" and at >= 1:
            found = ["HUP", "INT", "TERM", "USR1", "USR2", "STOP", "CONT", "KILL"]
        if name in _JOB and at <= 1:
            found += _jobs(url)
        # The words of a command for a job begin with an optional target.
        if at < len(places) and places[at].dest in ("target", "words"):
            found += _targets(url, current)
    return sorted({word for word in found if word.startswith(current) and _OFFERED.match(word)})


def _sub(parser: argparse.ArgumentParser, name: str) -> argparse.ArgumentParser:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) and name in action.choices:
            found: argparse.ArgumentParser = action.choices[name]
            return found
    return parser


def _names(parser: argparse.ArgumentParser) -> List[str]:
    return [n for a in parser._actions if isinstance(a, argparse._SubParsersAction) for n in a.choices]


def _takes_value(parser: argparse.ArgumentParser, plain: List[str], flag: str) -> bool:
    for word in plain:
        parser = _sub(parser, word)
    return any(flag in a.option_strings and a.nargs != 0 for a in parser._actions)


def _choices(parser: argparse.ArgumentParser, flag: str) -> List[str]:
    return [str(c) for a in parser._actions if flag in a.option_strings for c in (a.choices or [])]


def _targets(url: str, current: str) -> List[str]:
    """Return nodes, grids and roles; in a list, the words that may follow its last comma."""
    from ..client import Client

    try:
        with Client(url, timeout=2.0, socket_timeout=1.5, socket_connect_timeout=1.0) as client:
            nodes = client.nodes()
    except Error:
        return []
    head, comma, _ = current.rpartition(",")
    ids = [str(n.id) for n in nodes if n.state != "gone"]
    roles = sorted({role for n in nodes for role in n.roles if keys.is_role(role)})
    taken = head.lstrip("@").split(",")
    if comma:
        return [f"{head},{word}" for word in (roles if head.startswith("@") else ids) if word not in taken]
    return [*ids, *sorted({f"{n.gid}.*" for n in nodes}), *(f"@{role}" for role in roles), "all"]


def _jobs(url: str) -> List[str]:
    from ..client import Client

    try:
        with Client(url, timeout=2.0, socket_timeout=1.5, socket_connect_timeout=1.0) as client:
            # An id that begins with a dash would be read as a flag.
            return [info.id for info in client.jobs(50) if keys.is_id(info.id) and info.id[0] != "-"]
    except Error:
        return []
