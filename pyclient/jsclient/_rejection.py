"""The reason that a Redis server gives when it takes no connection: protected mode, too many clients.

Such a server writes one line and closes. A client that sends first usually finds the connection reset, and the line
is lost; so a second connection reads without sending.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Tuple, Union

#: The path of a Unix socket, or a host and a port.
Server = Union[str, Tuple[str, int]]

#: A server that sends nothing for this time, in seconds, takes connections.
GREETING_TIMEOUT_SECONDS = 0.5
_MAX_BYTES = 2048
_MAX_SHOWN = 200


def read_rejection(server: Server) -> str:
    """Return the error that the server sends to a new connection; empty when it sends none."""
    raw = b""
    with suppress(OSError), _connect(server) as connection:
        while b"\n" not in raw and len(raw) < _MAX_BYTES:
            more = connection.recv(_MAX_BYTES)
            if not more:
                break
            raw += more
    line = raw.split(b"\r\n")[0].decode("utf-8", "replace")
    return _shorten(line[1:]) if line.startswith("-") else ""


def _connect(server: Server) -> socket.socket:
    if not isinstance(server, str):
        return socket.create_connection(server, GREETING_TIMEOUT_SECONDS)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(GREETING_TIMEOUT_SECONDS)
    try:
        connection.connect(server)
    except OSError:
        connection.close()
        raise
    return connection


def _shorten(text: str) -> str:
    """Return the first sentences; the text for protected mode fills a page."""
    if len(text) <= _MAX_SHOWN:
        return text
    end = text.rfind(". ", 0, _MAX_SHOWN)
    return text[: end + 1] if end > 0 else text[:_MAX_SHOWN] + "…"
