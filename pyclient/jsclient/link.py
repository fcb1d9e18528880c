"""The connection to Redis, and the only file that imports redis-py.

redis-py has a read timeout of 5 seconds and retries by default. On a blocking read both lose what
arrives: the read that was given up still pops the next result on the server. So here nothing is retried
behind the caller's back, a blocking read waits 2 seconds on the server and far longer on the socket, and
the callers look into the job's hash when a read was cut off.
"""

from __future__ import annotations

import re
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

from . import address, refusals
from .errors import Error, Unavailable, UsageError

#: How long one blocking read waits on the server, in seconds.
SLICE = 2.0
#: How long the socket may be silent. Well above SLICE, so that no read is given up while Redis may answer.
READ_SECONDS = 12.0
CONNECT_SECONDS = 2.5
#: How long a Sentinel may be silent; then the next one is asked.
SENTINEL_SECONDS = 1.5
#: Keys of one BRPOP: more make each wake-up dear for Redis.
MANY = 64

#: The oldest Redis that will do, and what a wait below this many seconds becomes: it takes 0.001 for 0, for ever.
OLDEST_REDIS = (6, 0, 6)
SHORTEST_WAIT = 0.01

_CHUNK = 1000
#: How redis-py names a server in an error.
_NAMED = re.compile(r"(?:connecting to|reading from) (\S+?):([0-9]{1,5})(?=[. ])")
#: Commands that name no key: of a cluster, any server is asked.
KEYLESS = frozenset({"TIME", "ACL", "PING", "HELLO", "INFO"})


class Link:
    """Ordinary and blocking calls; safe for threads, since each call takes a connection of its own.

    `url` is whatever `jsacc -r` takes: one server, several of a cluster, or a group behind Sentinels.
    """

    def __init__(self, url: str, **options: Any) -> None:
        import redis
        from redis.exceptions import RedisClusterException, RedisError

        self._address = address.parse(url)
        self.url = self._address.url
        self.where = self._address.where
        # redis-py's word for a cluster that cannot be reached is no RedisError in every version.
        self._errors = (RedisError, RedisClusterException, OSError)
        self._options = options
        #: Servers of the cluster that are asked for the others.
        self._hosts = self._address.hosts
        self._made: Any = None
        #: Whether it is known that Redis is new enough.
        self.version_known = False
        self._lock = threading.Lock()
        version = tuple(int(part) for part in redis.__version__.split(".")[:2] if part.isdigit())
        # redis-py before 5.3 wants the name of a command.
        self._get_args = () if version >= (5, 3) else ("_",)
        self._attempts = {} if version >= (6, 0) else {"cluster_error_retry_attempts": 0}
        if not self._is_cluster:
            self._made = self._make()

    @property
    def _is_cluster(self) -> bool:
        return self._address.kind == address.CLUSTER

    @property
    def _redis(self) -> Any:
        # A cluster is asked for its servers when it is made, so that waits for the first call.
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made

    def _make(self) -> Any:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        options = {
            "socket_timeout": READ_SECONDS,
            "socket_connect_timeout": CONNECT_SECONDS,
            "retry": Retry(NoBackoff(), 0),
            "decode_responses": False,
            "health_check_interval": 0,
            "protocol": 2,
            **self._options,
        }
        try:
            if self._address.kind == address.SENTINEL:
                return self._sentinel(options)
            if self._is_cluster:
                from redis import cluster

                # Some versions of redis-py say no types of these.
                node: Any = cluster.ClusterNode
                options.update(self._login(), **self._attempts)
                nodes = [node(host, port) for host, port in self._hosts]
                return redis.RedisCluster(startup_nodes=nodes, **options)
            options["retry_on_timeout"] = False
            if self.url.startswith("unix:"):
                # redis-py hands unknown options to the socket's constructor, and a unix socket has no such thing.
                options.pop("socket_keepalive", None)
            made = redis.Redis.from_url(self.url, **options)
            self._try_settings(made.connection_pool)
            return made
        except UsageError:
            raise
        except (ValueError, TypeError):
            raise UsageError(address.UNREADABLE) from None

    @staticmethod
    def _try_settings(pool: Any) -> None:
        # A connection that is made and not opened: one that cannot be made would fail at the first command.
        try:
            pool.connection_class(**pool.connection_kwargs)
        except TypeError as e:
            named = re.search(r"argument '(\w+)'", str(e))
            what = f"setting {named[1]}" if named else "settings"
            raise UsageError(f"the {what} of the connection to Redis cannot be used with this kind of address") from None

    def _login(self) -> Dict[str, Any]:
        """User, password and TLS of the URL, as redis-py calls them; of the servers all but the names."""
        from redis import connection

        parse_url: Any = connection.parse_url
        found: Dict[str, Any] = dict(parse_url(self.url))
        secure = found.pop("connection_class", None) is connection.SSLConnection
        for name in ("host", "port", "path") + (("db",) if self._is_cluster else ()):
            found.pop(name, None)
        return {**found, **({"ssl": True} if secure else {})}

    def _sentinel(self, options: Dict[str, Any]) -> Any:
        from redis import sentinel

        make: Any = sentinel.Sentinel
        # The user and password in front are those of the servers. A Sentinel is asked once, then the next one.
        own = {**options, "socket_timeout": SENTINEL_SECONDS, "socket_connect_timeout": SENTINEL_SECONDS}
        user, password = self._address.own
        own.update({"username": user or None, "password": password} if user or password else {})
        own.update({"ssl": True} if self._address.secure else {})
        options.update(self._login())
        return make(list(self._address.hosts), sentinel_kwargs=own).master_for(self._address.group, **options)

    def close(self) -> None:
        """Closes every connection; the next call makes a new one."""
        with self._lock:
            if self._made is None:
                return
            if self._is_cluster:
                self._made.close()
                self._made = None
            else:
                self._made.connection_pool.disconnect()

    def call(self, *args: Any) -> Any:
        """One command, sent once."""
        self._check_version()
        return self._followed(lambda: self._call(*args))

    def _call(self, *args: Any) -> Any:
        try:
            if self._is_cluster and args[0] in KEYLESS:
                return self._any_server().execute_command(*args)
            return self._redis.execute_command(*args)
        except self._errors as e:
            raise self._translated(e) from e

    def read(self, *args: Any) -> Any:
        """One command that may be done twice; sent a second time when its connection breaks."""
        try:
            return self.call(*args)
        except Unavailable as e:
            if not e.passing or "did not answer" in str(e):
                raise
            return self.call(*args)

    def bulk(self, commands: Sequence[Sequence[Any]]) -> List[Any]:
        """Many commands in few round trips: their plain answers in order, without redis-py's own bookkeeping."""
        self._check_version()
        out: List[Any] = []
        for chunk in _chunks(commands, _CHUNK):
            out.extend(self._followed(lambda: self._bulk(chunk)))  # noqa: B023  # called at once
        return out

    def _bulk(self, chunk: Sequence[Sequence[Any]]) -> List[Any]:
        try:
            return self._spread(chunk) if self._is_cluster else self._piped(self._redis, chunk, _failed)
        except Error:
            raise  # `_spread` has said which server it was
        except self._errors as e:
            raise self._translated(e) from e

    def _followed(self, ask: Callable[[], Any]) -> Any:
        """The answer; from the servers of the whole cluster, once the one that was named turns out to be one of them."""
        try:
            return ask()
        except _Clustered:
            with self._lock:
                if self._address.kind == address.SINGLE:
                    self._address = address.clustered(self._address)
                    self._hosts = self._address.hosts
                    self._made = None  # other threads may be in the midst of a call; it goes with the last of them
            return ask()

    def _check_version(self) -> None:
        """`Unavailable` where Redis is too old; a user who may not ask is not told."""
        if self.version_known:
            return
        hello = self._followed(lambda: self._bulk([("HELLO",)]))[0]
        version = _version(hello)
        if not version and "unknown command" in str(hello):
            try:
                version = _version(self._followed(lambda: self._call("INFO", "server")))
            except Unavailable as e:
                if e.passing:
                    raise
        if _is_too_old(version):
            raise self._too_old(version.decode("ascii", "replace"))
        self.version_known = True

    def _too_old(self, version: str) -> Unavailable:
        oldest = ".".join(map(str, OLDEST_REDIS))
        return Unavailable(f"Redis at {self.where} is {version}; {oldest} or newer is needed")

    def _piped(
        self, server: Any, commands: Sequence[Sequence[Any]], failed: Callable[[Exception, Sequence[Any]], Any]
    ) -> List[Any]:
        """The answers of one server; of a command that it answered with an error, what `failed` makes of that."""
        from redis.exceptions import ResponseError

        pool: Any = server.connection_pool
        connection: Any = pool.get_connection(*self._get_args)
        answers: List[Any] = []
        done = False
        try:
            connection.send_packed_command([_packed(commands)])
            for _ in commands:
                try:
                    answers.append(connection.read_response())
                except ResponseError as e:
                    answers.append(e)
            done = True
        finally:
            if not done:
                connection.disconnect()
            pool.release(connection)
        return [failed(a, c) if isinstance(a, Exception) else a for a, c in zip(answers, commands)]

    def _spread(self, commands: Sequence[Sequence[Any]]) -> List[Any]:
        """The same over the servers of a cluster, each asked once for all that it has."""
        cluster = self._redis
        shares: Dict[str, Tuple[Any, List[int]]] = {}
        for i, command in enumerate(commands):
            node = cluster.get_default_node() if command[0] in KEYLESS else cluster.get_node_from_key(command[1])
            shares.setdefault(node.name, (node, []))[1].append(i)
        out: List[Any] = [None] * len(commands)
        for node, places in shares.values():
            # A slot that has moved away is asked for one by one, which learns its new place too.
            again: Callable[[Exception, Sequence[Any]], Any] = lambda e, command: (  # noqa: E731
                e if command[0] == "HELLO" else cluster.execute_command(*command)
            )
            server = cluster.get_redis_connection(node)
            try:
                answers = self._piped(server, [commands[i] for i in places], again)
            except self._errors as e:
                raise self._translated(e, (str(node.host), int(node.port))) from e
            for i, answer in zip(places, answers):
                out[i] = answer
        return out

    def _any_server(self) -> Any:
        return self._redis.get_redis_connection(self._redis.get_default_node())

    def scan(self, pattern: str) -> List[bytes]:
        """All keys of this pattern, ordered, each once."""
        if self._address.kind == address.SINGLE:
            # A server of a cluster has all of these keys once in a billion times; else it says that it is one.
            self.bulk([("EXISTS", f"jsacc:slot:{i}") for i in range(30)])
        return sorted(set(self._scan(pattern)))

    def _scan(self, pattern: str) -> List[bytes]:
        keys: List[bytes] = []
        try:
            redis = self._redis
            servers = [redis.get_redis_connection(n) for n in redis.get_primaries()] if self._is_cluster else [redis]
            for server in servers:
                cursor: Any = 0
                while True:
                    cursor, some = server.execute_command("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
                    keys.extend(some)
                    if int(cursor) == 0:
                        break
        except self._errors as e:
            raise self._translated(e) from e
        return keys

    def pop(self, keys: Sequence[str], seconds: float) -> Optional[Tuple[bytes, bytes]]:
        """BRPOP for at most `seconds` (never above SLICE); nothing when nothing came."""
        # 0 would mean "for ever" to Redis, and so does 0.001 to Redis 6.0.
        wait = min(max(seconds, SHORTEST_WAIT), self._slice)
        popped: Optional[Tuple[bytes, bytes]] = self._followed(lambda: self._pop(keys, wait))
        return popped

    @property
    def _slice(self) -> float:
        """How long a blocking read waits: well below the time after which its socket is given up."""
        given = self._options.get("socket_timeout", address.setting(self.url, "socket_timeout"))
        try:
            return min(SLICE, float(given) / 2) if given else SLICE
        except (TypeError, ValueError):
            return SLICE

    def _pop(self, keys: Sequence[str], wait: float) -> Optional[Tuple[bytes, bytes]]:
        if self._is_cluster and len(keys) > 1:
            return self._pop_spread(keys, wait)
        try:
            popped: Optional[Tuple[bytes, bytes]] = self._redis.execute_command("BRPOP", *keys, f"{wait:.3f}")
        except self._errors as e:
            raise self._translated(e) from e
        return popped

    def _pop_spread(self, keys: Sequence[str], wait: float) -> Optional[Tuple[bytes, bytes]]:
        # One BRPOP cannot span slots, so the lists are looked at again and again.
        end = time.monotonic() + wait
        pause = 0.005
        while True:
            lengths = self.bulk([("LLEN", key) for key in keys])
            for key, length in zip(keys, lengths):
                raw = self.call("RPOP", key) if length else None
                if raw is not None:
                    return key.encode(), raw
            left = end - time.monotonic()
            if left <= 0:
                return None
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, 0.1)

    def _look_anew(self) -> None:
        """The next call asks which servers the cluster has: one that is gone would be asked for ever."""
        with self._lock:
            if self._made is not None:
                known = tuple((str(node.host), int(node.port)) for node in self._made.get_nodes())
                self._hosts = tuple(dict.fromkeys(self._address.hosts + known))
                # Other threads may be in the midst of a call; it goes with the last of them.
                self._made = None

    def _translated(self, error: BaseException, server: Optional[refusals.Server] = None) -> Error:
        """What went wrong, as an error of this package; of a cluster the servers are asked for anew.

        `server` is the one that was asked, where that is known.
        """
        found = self._said(error, server)
        if self._is_cluster and isinstance(found, Unavailable) and found.passing:
            self._look_anew()
        return found

    def _server(self, reason: str) -> Optional[refusals.Server]:
        """The server that an error of redis-py speaks of, or the only one that there is."""
        named = _NAMED.search(reason)
        if named and named[2]:
            return named[1].strip("[]"), int(named[2])
        return address.server(self._address)

    def _place(self, server: Optional[refusals.Server]) -> str:
        """The address for messages, with the one server of a cluster or group that was asked."""
        if self._address.kind == address.SINGLE or not isinstance(server, tuple):
            return self.where
        part = "a server of the cluster at" if self._is_cluster else "of"
        return f"{address.shown(*server)}, {part} {self.where}"

    def _said(self, error: BaseException, server: Optional[refusals.Server] = None) -> Error:
        from redis import exceptions as r
        from redis.sentinel import MasterNotFoundError

        # redis-py 5.0 has no classes for these where it was told of a single server.
        elsewhere = isinstance(error, (r.MovedError, r.AskError, r.ClusterCrossSlotError)) or (
            isinstance(error, r.ResponseError) and str(error).startswith(("MOVED ", "ASK ", "CROSSSLOT "))
        )
        if elsewhere and not self._is_cluster:
            if self._address.kind == address.SINGLE and not self.url.startswith("unix:"):
                return _Clustered("this is a server of a cluster")
            return Unavailable(f"Redis at {self.where} is a server of a cluster: give its address as host:port")
        if "timeout is not an integer" in str(error):
            return self._too_old("older than 6.0")

        if isinstance(error, MasterNotFoundError):
            # What it says holds everything that a connection was made with, in some versions passwords too.
            if "AuthenticationError" in str(error):
                return Unavailable(f"the sentinels refuse these credentials ({self.where}): check sentinel_user and "
                                   "sentinel_password behind the ? of the address")
            return Unavailable(f"no sentinel names a master: {self.where}", True)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if isinstance(error, (r.AuthenticationError, r.AuthorizationError)) or _is_password(reason):
            reason = reason.rstrip(".")
            return Unavailable(f"Redis at {self.where} refuses these credentials ({reason}): check user and password")
        if isinstance(error, r.NoPermissionError) or reason.startswith("NOPERM"):
            return Unavailable(f"this user of Redis at {self.where} may not do that: {reason}")
        server = server or self._server(reason)
        if isinstance(error, (r.TimeoutError, TimeoutError)):
            if "connecting" in reason.lower():
                return Unavailable(f"cannot reach Redis at {self._place(server)}: no answer within {CONNECT_SECONDS:g} s", True)
            return Unavailable(f"Redis at {self._place(server)} did not answer within {READ_SECONDS:g} s", True)
        if isinstance(error, (r.ClusterError, r.RedisClusterException)) or reason.startswith("CLUSTERDOWN"):
            return Unavailable(f"the cluster at {self.where} cannot serve this now: {_plain(reason)}", True)
        if isinstance(error, (r.ConnectionError, OSError)):
            # Broken after it was made; a server that speaks TLS says nothing before.
            broken = any(word in reason.lower() for word in ("reset", "broken pipe", "closed"))
            said = refusals.words(server) if broken and server and not self._address.url.startswith("rediss:") else ""
            if said:
                return Unavailable(f"Redis at {self._place(server)} takes no connection: {said}", "max number" in said)
            return Unavailable(f"cannot reach Redis at {self._place(server)}: {_plain(reason)}", True)
        return Unavailable(f"Redis at {self.where}: {reason}")


class _Clustered(Error):
    """The one server that was named is part of a cluster."""


def _version(answer: Any) -> bytes:
    """The version in what HELLO or INFO answered; empty where there is none."""
    if isinstance(answer, (list, tuple)):
        answer = dict(zip(answer[::2], answer[1::2]))
    if isinstance(answer, dict):
        found = next((answer[name] for name in (b"version", "version", "redis_version") if name in answer), b"")
        return found if isinstance(found, bytes) else str(found).encode()
    found_in = re.search(rb"redis_version:([0-9.]+)", answer) if isinstance(answer, bytes) else None
    return found_in[1] if found_in else b""


def _is_too_old(version: bytes) -> bool:
    """Whether a version is before the oldest that will do; one whose first part is no number is not."""
    parts = [int(part) if part.isdigit() else None for part in version.split(b".")[:3]]
    return parts[0] is not None and tuple(part or 0 for part in (*parts, 0, 0)[:3]) < OLDEST_REDIS


def _failed(error: Exception, command: Sequence[Any]) -> Any:
    # A Redis before 6.0 does not know HELLO, and not every user may say it.
    if command[0] == "HELLO":
        return error
    raise error


def _is_password(reason: str) -> bool:
    return any(word in reason for word in ("WRONGPASS", "NOAUTH", "Authentication required", "invalid password", "invalid username-password"))


def _plain(reason: str) -> str:
    # "Error 111 connecting to h:1. Connection refused." says the address a second time.
    head, dot, tail = reason.partition(". ")
    if head.startswith("Error ") and dot and tail:
        return tail.rstrip(".").lower()
    return reason.rstrip(".")


def _packed(commands: Sequence[Sequence[Any]]) -> bytes:
    # redis-py's own packing costs more than Redis' answer when ten thousand keys are read.
    words: Dict[Any, bytes] = {}
    out: List[bytes] = []
    for command in commands:
        out.append(b"*%d\r\n" % len(command))
        for word in command:
            packed = words.get(word)
            if packed is None:
                raw = word if isinstance(word, bytes) else str(word).encode()
                packed = words[word] = b"$%d\r\n%b\r\n" % (len(raw), raw)
            out.append(packed)
    return b"".join(out)


def _chunks(items: Sequence[Sequence[Any]], size: int) -> Iterator[Sequence[Sequence[Any]]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
