"""Parsing of an address of Redis: one server, a cluster, or a group that Sentinels watch. Pure.

The forms are those of `jsacc -r`: `host:port`, `redis://user:pw@host:port/db`, `rediss://…`, `unix:///path`;
several of them with commas between are servers of one cluster (scheme, user and password of the first hold for
all; a comma that can only belong to a password does not separate), and
`sentinel://[user:pw@]host:26379,host:26379/group[/db][?sentinel_user=…&sentinel_password=…]` names Sentinels and the
group that they watch, `sentinels://` the same over TLS.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import List, Tuple, Union
from urllib.parse import unquote, urlsplit

from .errors import UsageError, not_text_error
from .text import is_text

SINGLE, CLUSTER, SENTINEL = "single", "cluster", "sentinel"
_GROUP = "a sentinel address names hosts and their group: sentinel://host:26379,host:26379/mymaster"
#: Replaces the message of a parser, which may quote a part of the password as the port.
UNREADABLE = "the address cannot be read; write , / # ? @ in the password as %2C %2F %23 %3F %40"
#: Does not show the port, which may be a part of a password that was not escaped.
_BAD_PORT = "the port in the address of Redis is not a number from 1 to 65535"
_NEXT_URL = re.compile(r",\s*(?=[a-z]+://)")
_HOST = re.compile(r"\s*(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(:[0-9]+)?\s*\Z")
#: One login at most, a host, and the text of its port.
_PORT = re.compile(r"rediss?://(?:[^@/?#]*@)?(?:\[[0-9A-Fa-f:.]+\]|[\w.-]+):([^:@/?#]*)(?:[/?#][^@]*)?\Z")
_SETTINGS = re.compile(r"([a-z_]+=[^&]*(&|\Z))*\Z")

#: Settings after the `?` of an address, with the kind of their values; the names are those of redis-py.
_NUMBER, _WHOLE, _YES, _TEXT = "a number of seconds", "a whole number", "true or false", "a text"
SETTINGS = {
    "db": _WHOLE, "username": _TEXT, "password": _TEXT, "client_name": _TEXT, "protocol": _WHOLE,
    "socket_timeout": _NUMBER, "socket_connect_timeout": _NUMBER, "socket_keepalive": _YES,
    "health_check_interval": _NUMBER, "max_connections": _WHOLE, "retry_on_timeout": _YES,
    "ssl_ca_certs": _TEXT, "ssl_ca_path": _TEXT, "ssl_certfile": _TEXT, "ssl_keyfile": _TEXT, "ssl_password": _TEXT,
    "ssl_cert_reqs": _TEXT, "ssl_check_hostname": _YES,
}
_VALUES = {
    _NUMBER: re.compile(r"[0-9]+(\.[0-9]*)?|\.[0-9]+"), _WHOLE: re.compile(r"[0-9]{1,9}"),
    _YES: re.compile(r"(?i:true|false|yes|no|on|off|0|1|t|f|y|n)"), _TEXT: re.compile(r".*", re.DOTALL),
}


@dataclass(frozen=True)
class Address:
    """A parsed address."""

    kind: str
    #: A URL with user, password and database of the servers.
    url: str
    #: The servers of the cluster, or the Sentinels.
    hosts: Tuple[Tuple[str, int], ...] = ()
    #: The group that the Sentinels watch.
    group: str = ""
    #: User and password of the Sentinels themselves, and whether they are reached over TLS.
    own: Tuple[str, str] = ("", "")
    secure: bool = False

    @property
    def where(self) -> str:
        """Return the address without its password, for messages."""
        hosts = ", ".join(shown(host, port) for host, port in self.hosts)
        if self.kind == SENTINEL:
            return f"{self.group} of the sentinels {hosts}"
        return hosts if self.kind == CLUSTER else masked(self.url)


def parse(text: str) -> Address:
    """Parse an address; raise `UsageError`, whose text never has a password."""
    text = text.strip()
    if not is_text(text):
        raise not_text_error("the address of Redis")
    for scheme, server in (("sentinel://", "redis"), ("sentinels://", "rediss")):
        if text.startswith(scheme):
            return _sentinel(text[len(scheme) :], server)
    parts = [part for part in _split(text) if part] if text[:1] != "/" else [text]
    first = normalize(parts[0] if parts else "")
    urls = [first] + [normalize(part) for part in parts[1:]]
    for url in urls:
        _check(url)
        _check_settings(url)
    # redis-py reads the text after the ? as a form, in which + is a space.
    path, mark, query = first.partition("?")
    first = path + mark + query.replace("+", "%2B")
    if len(parts) <= 1:
        return Address(SINGLE, first)
    if any(url.startswith("unix:") for url in urls):
        raise UsageError("several addresses of Redis are a cluster, and a cluster has no Unix sockets")
    return Address(CLUSTER, first, tuple(_host(url, 6379) for url in urls))


def clustered(single: Address) -> Address:
    """Return the address of the cluster that this single server belongs to."""
    return Address(CLUSTER, single.url, (_host(single.url, 6379),))


def server(given: Address) -> Union[str, Tuple[str, int], None]:
    """Return the single server of an address, a socket path or host and port; `None` for a cluster or Sentinels."""
    if given.kind != SINGLE:
        return None
    return unquote(urlsplit(given.url).path) if given.url.startswith("unix:") else _host(given.url, 6379)


def setting(url: str, name: str) -> str:
    """Return the value of a setting after the `?` of an address; empty when it has none."""
    found = (pair.partition("=") for pair in url.partition("?")[2].split("&"))
    return next((unquote(value) for key, _, value in found if key == name), "")


def normalize(url: str) -> str:
    """Return a Redis URL for `host:port`, `host`, the path of a socket, or a URL; raise `UsageError`."""
    if not url:
        raise UsageError("the address of Redis is empty: give redis://host:port, unix:///path or host:port")
    if url.startswith("/"):
        return "unix://" + url
    if "://" not in url:
        return "redis://" + url
    if url.split("://", 1)[0] not in ("redis", "rediss", "unix"):
        raise UsageError("the address of Redis begins with redis://, rediss://, unix:// or sentinel://")
    return url


def masked(url: str) -> str:
    """Return the address without its password, for messages."""
    try:
        parts = urlsplit(url)
        if parts.scheme == "unix":
            return parts.path
        return shown(parts.hostname or "localhost", parts.port or 6379)
    except ValueError:
        return "the given address"


def shown(host: str, port: int) -> str:
    """Return `host:port`, with brackets for IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _host(url: str, port: int) -> Tuple[str, int]:
    try:
        parts = urlsplit(url)
        if parts.port == 0:
            raise ValueError
        return unquote(parts.hostname or "localhost"), parts.port or port
    except ValueError:
        raise UsageError(_why_unreadable(url)) from None


def _why_unreadable(url: str) -> str:
    """Return the advice about passwords, or the one about ports when only the port can be wrong."""
    found = _PORT.match(url)
    good = found is None or (found[1].isdecimal() and found[1].isascii() and 0 < int(found[1][:9]) < 65536)
    return UNREADABLE if good else _BAD_PORT


def _split(text: str) -> List[str]:
    """Split an address at its commas, except those that can only belong to a password."""
    out: List[str] = []
    for group in _NEXT_URL.split(text):
        scheme, slashes, rest = group.partition("://") if re.match(r"[a-z]+://", group) else ("", "", group)
        parts = [part.strip() for part in rest.split(",")]
        login, at, hosts = rest.rpartition("@")
        first = parts[0].rpartition("@")[0]
        if scheme == "unix":
            parts = [rest]
        elif at and "," in login:
            if first and all(part.startswith(first + "@") or _HOST.match(part) for part in parts[1:]):
                pass  # each server with the same login
            elif "@" in parts[0] or _HOST.match(parts[0]):
                raise UsageError(UNREADABLE)  # the end of the login is ambiguous
            else:
                parts = [part.strip() for part in hosts.split(",")]
                parts[0] = login + at + parts[0]
        out.extend([scheme + slashes + parts[0]] + parts[1:])
    return out


def _check(url: str) -> None:
    """Raise `UsageError` for signs of a password that was not escaped: an extra `@`, or an invalid port."""
    try:
        parts = urlsplit(url)
        if parts.netloc.count("@") > 1:
            good = False  # the end of the login is ambiguous
        elif parts.scheme == "unix":
            good = "@" in parts.netloc or ":" not in parts.netloc
        else:
            good = parts.port is None or parts.port > 0
            good = good and "@" not in parts.path + parts.fragment
            if good and not re.match(r"/?[0-9]{0,9}\Z", parts.path):
                raise UsageError("behind the / of an address of Redis stands the number of a database: redis://host:6379/0")
            good = good and ("@" not in parts.query or bool(_SETTINGS.match(parts.query)))
    except UsageError:
        raise
    except ValueError:
        good = False
    if not good:
        raise UsageError(_why_unreadable(url))


def _check_settings(url: str) -> None:
    """Raise `UsageError` for an unknown setting after the `?`, or an invalid value."""
    if "?" not in url:
        return
    # The name is shown only when it cannot be a part of a password that was not escaped.
    path, _, query = url.partition("?")
    shown = "@" in path or "@" not in query
    for pair in filter(None, query.split("&")):
        name, equals, value = pair.partition("=")
        wanted = SETTINGS.get(name)
        if wanted is None or not equals:
            if not shown or not re.match(r"[a-z_]+\Z", name):
                raise UsageError(UNREADABLE)
            near = difflib.get_close_matches(name, SETTINGS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(SETTINGS)}"
            raise UsageError(f"the address of Redis has an unknown setting {name}; {hint}")
        if not _VALUES[wanted].fullmatch(unquote(value)):
            raise UsageError(f"the setting {name} in the address of Redis takes {wanted}")


def _own_login(query: str) -> Tuple[str, str]:
    """Return user and password of the Sentinels from the text after the `?`."""
    found = {"sentinel_user": "", "sentinel_password": ""}
    for pair in filter(None, query.split("&")):
        name, equals, value = pair.partition("=")
        if name not in found or not equals:
            raise UsageError("behind its ? a sentinel address takes sentinel_user=… and sentinel_password=…, "
                             "with & in them as %26")
        if any(c in value for c in "/#?@") or (name == "sentinel_user" and ":" in value):
            raise UsageError(UNREADABLE)
        found[name] = unquote(value)
    return found["sentinel_user"], found["sentinel_password"]


def _sentinel(rest: str, scheme: str) -> Address:
    login, at, rest = rest.rpartition("@")
    if any(c in login for c in "/?#@"):
        raise UsageError(UNREADABLE)
    hosts, slash, path = rest.partition("/")
    path, _, query = path.partition("?")
    own = _own_login(query)
    group, _, db = path.partition("/")
    found: List[Tuple[str, int]] = [_host("redis://" + host.strip(), 26379) for host in hosts.split(",") if host.strip()]
    if not slash or not group or not found:
        raise UsageError(_GROUP)
    if db and not db.isdigit():
        raise UsageError(f"{db!r} is not the number of a database: {_GROUP}/0")
    url = f"{scheme}://{login}{at}localhost/{db or 0}"
    return Address(SENTINEL, url, tuple(found), group, own, scheme == "rediss")
