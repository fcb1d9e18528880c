"""Translation of errors of redis-py to errors of this package."""

from __future__ import annotations

import re
from typing import Optional

from . import _rejection, address
from .address import Address
from .errors import Error, RedisUnavailableError

#: The socket may be silent for this time, in seconds. It is well above the length of a blocking read, so that no
#: read is given up while Redis may answer.
SOCKET_TIMEOUT_SECONDS = 12.0
CONNECT_TIMEOUT_SECONDS = 2.5
#: The oldest version of Redis that works.
MIN_REDIS_VERSION = (6, 0, 6)

#: What to do about an error, by a part of its text.
_ADVICE = {
    "unknown command 'SENTINEL'": "this is no Sentinel; write redis://host:port",
    "WRONGTYPE": "another program may use this database; delete or rename that key, which the log of jsacc names",
    "DB index is out of range": "check the number behind the / of the address",
    "Protocol Error": "this is no Redis; check host and port",
    "certificate verify failed": "name its CA behind the address: ?ssl_ca_certs=FILE",
}
#: The name of a server in an error of redis-py.
_SERVER_IN_ERROR = re.compile(r"(?:connecting to|reading from) (\S+?):([0-9]{1,5})(?=[. ])")


class ClusterDetectedError(Error):
    """The one server of the address belongs to a cluster."""


def version_error(given: Address, version: str) -> RedisUnavailableError:
    """Return the error for a Redis of this version, which is too old."""
    oldest = ".".join(map(str, MIN_REDIS_VERSION))
    return RedisUnavailableError(f"Redis at {given.where} is {version}; {oldest} or newer is needed")


def translate(given: Address, error: BaseException, server: Optional[_rejection.Server] = None) -> Error:
    """Return the error of this package for an error of redis-py or of a socket.

    `server` is the one that was asked, where that is known.
    """
    from redis import exceptions as r
    from redis.sentinel import MasterNotFoundError

    is_cluster = given.kind == address.CLUSTER
    # redis-py 5.0 raises other classes when it was given a single server.
    is_redirect = isinstance(error, (r.MovedError, r.AskError, r.ClusterCrossSlotError)) or (
        isinstance(error, r.ResponseError) and str(error).startswith(("MOVED ", "ASK ", "CROSSSLOT "))
    )
    if is_redirect and not is_cluster:
        if given.kind == address.SINGLE and not given.url.startswith("unix:"):
            return ClusterDetectedError("this is a server of a cluster")
        return RedisUnavailableError(f"Redis at {given.where} is a server of a cluster: give its address as host:port")
    if "timeout is not an integer" in str(error):
        return version_error(given, "older than 6.0")

    if isinstance(error, MasterNotFoundError):
        # Its text holds all arguments of the connection, in some versions passwords too.
        if "AuthenticationError" in str(error):
            return RedisUnavailableError(
                f"the sentinels refuse these credentials ({given.where}): check sentinel_user and "
                "sentinel_password behind the ? of the address"
            )
        return RedisUnavailableError(f"no sentinel names a master: {given.where}", True)
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, (r.AuthenticationError, r.AuthorizationError)) or _is_password_error(reason):
        reason = reason.rstrip(".")
        if "HELLO must be called" in reason or "Authentication required" in reason:
            return RedisUnavailableError(
                f"Redis at {given.where} asks for a password: give redis://user:password@host:port in JSCTL_REDIS"
            )
        return RedisUnavailableError(
            f"Redis at {given.where} refuses these credentials ({reason}): check user and password"
        )
    if isinstance(error, r.NoPermissionError) or reason.startswith("NOPERM"):
        return RedisUnavailableError(f"this user of Redis at {given.where} may not do that: {reason}")
    server = server or _server_of(given, reason)
    shown = _shown_address(given, server)
    if isinstance(error, (r.TimeoutError, TimeoutError)):
        if "connecting" in reason.lower():
            limit = f"{CONNECT_TIMEOUT_SECONDS:g} s"
            return RedisUnavailableError(f"cannot reach Redis at {shown}: no answer within {limit}", True)
        return RedisUnavailableError(f"Redis at {shown} did not answer within {SOCKET_TIMEOUT_SECONDS:g} s", True)
    if isinstance(error, (r.ClusterError, r.RedisClusterException)) or reason.startswith("CLUSTERDOWN"):
        return RedisUnavailableError(f"the cluster at {given.where} cannot serve this now: {_without_address(reason)}", True)
    if isinstance(error, (r.ConnectionError, OSError)):
        # The connection broke after it was made; a TLS server sends nothing before a handshake.
        is_broken = any(word in reason.lower() for word in ("reset", "broken pipe", "closed"))
        may_reject = is_broken and not given.url.startswith("rediss:")
        rejection = _rejection.read_rejection(server) if may_reject and server else ""
        if rejection:
            return RedisUnavailableError(f"Redis at {shown} takes no connection: {rejection}", "max number" in rejection)
        return RedisUnavailableError(f"cannot reach Redis at {shown}: {_without_address(reason)}{_advice(reason)}", True)
    return RedisUnavailableError(f"Redis at {given.where}: {reason}{_advice(reason)}")


def _advice(reason: str) -> str:
    return next((f": {advice}" for part, advice in _ADVICE.items() if part in reason), "")


def _server_of(given: Address, reason: str) -> Optional[_rejection.Server]:
    """Return the server that the text of an error names, or the only one of the address."""
    named = _SERVER_IN_ERROR.search(reason)
    if named and named[2]:
        return named[1].strip("[]"), int(named[2])
    return address.server(given)


def _shown_address(given: Address, server: Optional[_rejection.Server]) -> str:
    """Return the address for messages, with the one server of a cluster or group that was asked."""
    if given.kind == address.SINGLE or not isinstance(server, tuple):
        return given.where
    part = "a server of the cluster at" if given.kind == address.CLUSTER else "of"
    return f"{address.shown(*server)}, {part} {given.where}"


def _is_password_error(reason: str) -> bool:
    words = ("WRONGPASS", "NOAUTH", "Authentication required", "invalid password", "invalid username-password")
    return any(word in reason for word in words)


def _without_address(reason: str) -> str:
    """Return the reason without the address that redis-py repeats: `Error 111 connecting to h:1. Refused.`"""
    head, dot, tail = reason.partition(". ")
    if head.startswith("Error ") and dot and tail:
        return tail.rstrip(".").lower()
    return reason.rstrip(".")
