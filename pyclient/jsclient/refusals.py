"""The words of a server that takes no connection: protected mode, too many clients.

Such a server writes one line and closes. Whoever sends first most often finds the connection reset, and the line is
lost with it; so it is asked once more, without a word.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Tuple, Union

#: The path of a Unix socket, or a host and a port.
Server = Union[str, Tuple[str, int]]

#: A server that says nothing for so long (seconds) takes connections.
SECONDS = 0.5
_MOST_BYTES = 2048
_MOST_SHOWN = 200


def words(server: Server) -> str:
    """What the server says before it is asked anything; empty where it says nothing."""
    raw = b""
    with suppress(OSError), _connected(server) as connection:
        while b"\n" not in raw and len(raw) < _MOST_BYTES:
            more = connection.recv(_MOST_BYTES)
            if not more:
                break
            raw += more
    line = raw.split(b"\r\n")[0].decode("utf-8", "replace")
    return _short(line[1:]) if line.startswith("-") else ""


def _connected(server: Server) -> socket.socket:
    if not isinstance(server, str):
        return socket.create_connection(server, SECONDS)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(SECONDS)
    try:
        connection.connect(server)
    except OSError:
        connection.close()
        raise
    return connection


def _short(text: str) -> str:
    """The first sentences of it: Redis explains protected mode on a whole page."""
    if len(text) <= _MOST_SHOWN:
        return text
    end = text.rfind(". ", 0, _MOST_SHOWN)
    return text[: end + 1] if end > 0 else text[:_MOST_SHOWN] + "…"
