"""The connection to Redis. Only this module and `_redis_errors` import redis-py.

redis-py by default has a read timeout of 5 seconds and retries. On a blocking read both lose results: the read that
was given up still pops the next result on the server. So nothing is retried here without the caller, a blocking read
waits 2 seconds on the server and far longer on the socket, and callers read the hash of the job when a read broke.
"""

from __future__ import annotations

import re
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from . import _rejection, address
from ._redis_errors import (
    CONNECT_TIMEOUT_SECONDS,
    MIN_REDIS_VERSION,
    SOCKET_TIMEOUT_SECONDS,
    ClusterDetectedError,
    translate,
    version_error,
)
from .errors import Error, RedisUnavailableError, UsageError

#: Longest wait of a blocking read on the server, in seconds.
BLOCKING_READ_SECONDS = 2.0
#: Shortest wait of a blocking read, in seconds: Redis 6.0 takes 0.001 for 0, which means no limit.
MIN_BLOCKING_READ_SECONDS = 0.01
#: A Sentinel may be silent for this time, in seconds; then the next one is asked.
SENTINEL_TIMEOUT_SECONDS = 1.5
#: Most keys of one BRPOP: more make each wake-up expensive for Redis.
MAX_BRPOP_KEYS = 64
#: Commands without a key: in a cluster any server answers them.
KEYLESS = frozenset({"TIME", "ACL", "PING", "HELLO", "INFO"})

#: Commands of one round trip.
_PIPELINE_SIZE = 1000
#: Pauses between reads of lists in several slots of a cluster, in seconds.
_FIRST_POLL_SECONDS = 0.005
_MAX_POLL_SECONDS = 0.1


class Connection:
    """Ordinary and blocking calls. Safe for threads: each call takes a connection of the pool.

    `url` has the forms of `jsacc -r`: one server, several of a cluster, or a group behind Sentinels.
    """

    def __init__(self, url: str, **options: Any) -> None:
        import redis
        from redis.exceptions import RedisClusterException, RedisError

        self._address = address.parse(url)
        self.url = self._address.url
        self.where = self._address.where
        # In some versions the error for an unreachable cluster is no RedisError.
        self._errors = (RedisError, RedisClusterException, OSError)
        self._options = options
        #: Servers of the cluster that tell the others.
        self._hosts = self._address.hosts
        self._made: Any = None
        #: Whether the version of Redis was checked.
        self.version_known = False
        self._lock = threading.Lock()
        version = tuple(int(part) for part in redis.__version__.split(".")[:2] if part.isdigit())
        # redis-py before 5.3 requires the name of a command.
        self._get_args = () if version >= (5, 3) else ("_",)
        self._attempts = {} if version >= (6, 0) else {"cluster_error_retry_attempts": 0}
        if not self._is_cluster:
            self._made = self._make()

    @property
    def _is_cluster(self) -> bool:
        return self._address.kind == address.CLUSTER

    @property
    def _redis(self) -> Any:
        # The client of a cluster reads its servers when it is made, so the first call makes it.
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made

    def _make(self) -> Any:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        options = {
            "socket_timeout": SOCKET_TIMEOUT_SECONDS,
            "socket_connect_timeout": CONNECT_TIMEOUT_SECONDS,
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

                # Some versions of redis-py have no types for these.
                node: Any = cluster.ClusterNode
                options.update(self._login(), **self._attempts)
                nodes = [node(host, port) for host, port in self._hosts]
                return redis.RedisCluster(startup_nodes=nodes, **options)
            options["retry_on_timeout"] = False
            if self.url.startswith("unix:"):
                # redis-py passes unknown options to the constructor of the socket; a Unix socket has no such option.
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
        # Makes a connection without opening it, so that invalid settings fail here and not at the first command.
        try:
            pool.connection_class(**pool.connection_kwargs)
        except TypeError as e:
            named = re.search(r"argument '(\w+)'", str(e))
            what = f"setting {named[1]}" if named else "settings"
            raise UsageError(f"the {what} of the connection to Redis cannot be used with this kind of address") from None

    def _login(self) -> Dict[str, Any]:
        """Return user, password and TLS of the URL as options of redis-py, without host and port."""
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
        # User and password before the hosts are those of the servers. A Sentinel is asked once, then the next one.
        own = {**options, "socket_timeout": SENTINEL_TIMEOUT_SECONDS, "socket_connect_timeout": SENTINEL_TIMEOUT_SECONDS}
        user, password = self._address.own
        own.update({"username": user or None, "password": password} if user or password else {})
        own.update({"ssl": True} if self._address.secure else {})
        options.update(self._login())
        return make(list(self._address.hosts), sentinel_kwargs=own).master_for(self._address.group, **options)

    def close(self) -> None:
        """Close all connections; the next call opens a new one."""
        with self._lock:
            if self._made is None:
                return
            if self._is_cluster:
                self._made.close()
                self._made = None
            else:
                self._made.connection_pool.disconnect()

    def call(self, *args: Any) -> Any:
        """Send one command once and return its answer; raise `RedisUnavailableError`."""
        self._check_version()
        return self._retry_as_cluster(lambda: self._call(*args))

    def _call(self, *args: Any) -> Any:
        try:
            if self._is_cluster and args[0] in KEYLESS:
                return self._any_server().execute_command(*args)
            return self._redis.execute_command(*args)
        except self._errors as e:
            raise self._error(e) from e

    def read(self, *args: Any) -> Any:
        """Send one idempotent command and return its answer; send it again when its connection breaks."""
        try:
            return self.call(*args)
        except RedisUnavailableError as e:
            if not e.transient or "did not answer" in str(e):
                raise
            return self.call(*args)

    def bulk(self, commands: Sequence[Sequence[Any]]) -> List[Any]:
        """Send many commands in few round trips and return their raw answers in order."""
        self._check_version()
        out: List[Any] = []
        for chunk in _chunks(commands, _PIPELINE_SIZE):
            out.extend(self._retry_as_cluster(lambda: self._bulk(chunk)))  # noqa: B023  # called at once
        return out

    def _bulk(self, chunk: Sequence[Sequence[Any]]) -> List[Any]:
        try:
            return self._pipe_cluster(chunk) if self._is_cluster else self._pipe(self._redis, chunk, _failed)
        except Error:
            raise  # from `_pipe_cluster`, which knows the server
        except self._errors as e:
            raise self._error(e) from e

    def _retry_as_cluster(self, ask: Callable[[], Any]) -> Any:
        """Return the answer of `ask`; when the server belongs to a cluster, ask again through the cluster."""
        try:
            return ask()
        except ClusterDetectedError:
            with self._lock:
                if self._address.kind == address.SINGLE:
                    self._address = address.clustered(self._address)
                    self._hosts = self._address.hosts
                    self._made = None  # calls of other threads keep it alive until they end
            return ask()

    def _check_version(self) -> None:
        """Raise `RedisUnavailableError` when Redis is too old; skip the check without the right for it."""
        if self.version_known:
            return
        hello = self._retry_as_cluster(lambda: self._bulk([("HELLO",)]))[0]
        version = _version(hello)
        if not version and "unknown command" in str(hello):
            try:
                version = _version(self._retry_as_cluster(lambda: self._call("INFO", "server")))
            except RedisUnavailableError as e:
                if e.transient:
                    raise
        if _is_too_old(version):
            raise version_error(self._address, version.decode("ascii", "replace"))
        self.version_known = True

    def _pipe(
        self, server: Any, commands: Sequence[Sequence[Any]], failed: Callable[[Exception, Sequence[Any]], Any]
    ) -> List[Any]:
        """Return the answers of one server; `failed` replaces the answer of a command that failed."""
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

    def _pipe_cluster(self, commands: Sequence[Sequence[Any]]) -> List[Any]:
        """Return the answers of the servers of a cluster, with one round trip for each."""
        cluster = self._redis
        shares: Dict[str, Tuple[Any, List[int]]] = {}
        for i, command in enumerate(commands):
            node = cluster.get_default_node() if command[0] in KEYLESS else cluster.get_node_from_key(command[1])
            shares.setdefault(node.name, (node, []))[1].append(i)
        out: List[Any] = [None] * len(commands)
        for node, positions in shares.values():
            # A command whose slot has moved is sent alone, which also learns the new server.
            send_alone: Callable[[Exception, Sequence[Any]], Any] = lambda e, command: (  # noqa: E731
                e if command[0] == "HELLO" else cluster.execute_command(*command)
            )
            server = cluster.get_redis_connection(node)
            try:
                answers = self._pipe(server, [commands[i] for i in positions], send_alone)
            except self._errors as e:
                raise self._error(e, (str(node.host), int(node.port))) from e
            for i, answer in zip(positions, answers):
                out[i] = answer
        return out

    def _any_server(self) -> Any:
        return self._redis.get_redis_connection(self._redis.get_default_node())

    def scan(self, pattern: str) -> List[bytes]:
        """Return all keys that match the pattern, sorted, each once."""
        if self._address.kind == address.SINGLE:
            # Detects a cluster: the chance that one of its servers has all of these keys is one in a billion.
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
            raise self._error(e) from e
        return keys

    def pop(self, keys: Sequence[str], seconds: float) -> Optional[Tuple[bytes, bytes]]:
        """Pop one value with BRPOP and return its key and the value.

        `None` when none arrived within `seconds`, which is limited to `MIN_BLOCKING_READ_SECONDS` to
        `BLOCKING_READ_SECONDS`.
        """
        wait = min(max(seconds, MIN_BLOCKING_READ_SECONDS), self._max_blocking_read)
        popped: Optional[Tuple[bytes, bytes]] = self._retry_as_cluster(lambda: self._pop(keys, wait))
        return popped

    def read_streams(
        self, after: Mapping[str, bytes], seconds: float, count: int
    ) -> List[Tuple[str, List[Tuple[bytes, Dict[bytes, bytes]]]]]:
        """Return entries of streams, at most `count` of each, that come after the ids in `after`, by the stream's key.

        Wait for one at most `seconds`, which is limited as for `pop`.
        """
        self._check_version()
        wait = min(max(seconds, MIN_BLOCKING_READ_SECONDS), self._max_blocking_read)
        answer = self._retry_as_cluster(lambda: self._read_streams(after, wait, count))
        return [(key.decode(), [(entry, _fields(raw)) for entry, raw in entries]) for key, entries in answer]

    def _read_streams(self, after: Mapping[str, bytes], wait: float, count: int) -> List[Any]:
        try:
            if not self._is_cluster:
                return _xread(self._redis, after, count, wait)
            if len(after) == 1:
                node = self._redis.get_node_from_key(next(iter(after)))
                return _xread(self._redis.get_redis_connection(node), after, count, wait)
            # One XREAD cannot span slots, so the streams are polled.
            end, pause = time.monotonic() + wait, _FIRST_POLL_SECONDS
            while True:
                found = self._poll_streams(after, count)
                left = end - time.monotonic()
                if found or left <= 0:
                    return found
                time.sleep(min(pause, left))
                pause = min(pause * 1.5, _MAX_POLL_SECONDS)
        except Error:
            raise  # from a server that is known
        except self._errors as e:
            if str(e).startswith("UNBLOCKED") or _has_moved(e):
                # The server has become a replica, or the slot is another one's: the next read finds it.
                if self._is_cluster:
                    self._forget_servers()
                return []
            raise self._error(e) from e

    def _poll_streams(self, after: Mapping[str, bytes], count: int) -> List[Any]:
        """Return what is there now, with one round trip for each server of the cluster."""
        shares: Dict[str, Tuple[Any, List[Tuple[Any, ...]]]] = {}
        for key, entry in after.items():
            node = self._redis.get_node_from_key(key)
            shares.setdefault(node.name, (node, []))[1].append(("XREAD", "COUNT", count, "STREAMS", key, entry))
        found: List[Any] = []
        for node, commands in shares.values():
            try:
                answers = self._pipe(self._redis.get_redis_connection(node), commands, self._moved)
            except self._errors as e:
                raise self._error(e, (str(node.host), int(node.port))) from e
            found.extend(one for answer in answers for one in answer or ())
        return found

    def _moved(self, error: Exception, command: Sequence[Any]) -> None:
        """Read the servers again when the slot of a stream has moved, so that it is found the next time."""
        if not _has_moved(error):
            raise error
        self._forget_servers()

    @property
    def _max_blocking_read(self) -> float:
        """Return the longest blocking read in seconds: at most half the timeout of the socket."""
        given = self._options.get("socket_timeout", address.setting(self.url, "socket_timeout"))
        try:
            return min(BLOCKING_READ_SECONDS, float(given) / 2) if given else BLOCKING_READ_SECONDS
        except (TypeError, ValueError):
            return BLOCKING_READ_SECONDS

    def _pop(self, keys: Sequence[str], wait: float) -> Optional[Tuple[bytes, bytes]]:
        if self._is_cluster and len(keys) > 1:
            return self._pop_cluster(keys, wait)
        try:
            popped: Optional[Tuple[bytes, bytes]] = self._redis.execute_command("BRPOP", *keys, f"{wait:.3f}")
        except self._errors as e:
            raise self._error(e) from e
        return popped

    def _pop_cluster(self, keys: Sequence[str], wait: float) -> Optional[Tuple[bytes, bytes]]:
        # One BRPOP cannot span slots, so the lists are polled.
        end = time.monotonic() + wait
        pause = _FIRST_POLL_SECONDS
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
            pause = min(pause * 1.5, _MAX_POLL_SECONDS)

    def _forget_servers(self) -> None:
        """Make the next call read the servers of the cluster again, so that an offline one is not asked again."""
        with self._lock:
            if self._made is not None:
                known = tuple((str(node.host), int(node.port)) for node in self._made.get_nodes())
                self._hosts = tuple(dict.fromkeys(self._address.hosts + known))
                # Calls of other threads keep it alive until they end.
                self._made = None

    def _error(self, error: BaseException, server: Optional[_rejection.Server] = None) -> Error:
        """Return the error of this package; after a transient one of a cluster its servers are read again."""
        found = translate(self._address, error, server)
        if self._is_cluster and isinstance(found, RedisUnavailableError) and found.transient:
            self._forget_servers()
        return found


def _has_moved(error: BaseException) -> bool:
    is_named = type(error).__name__ in ("MovedError", "AskError", "TryAgainError")
    return is_named or str(error).startswith(("MOVED", "ASK ", "TRYAGAIN"))


def _fields(raw: Any) -> Dict[bytes, bytes]:
    """Return the fields of an entry of a stream, which redis-py has parsed or not."""
    return dict(raw) if isinstance(raw, dict) else dict(zip((raw or ())[::2], (raw or ())[1::2]))


def _xread(server: Any, after: Mapping[str, bytes], count: int, wait: Optional[float]) -> List[Any]:
    block = () if wait is None else ("BLOCK", int(wait * 1000))
    answer = server.execute_command("XREAD", "COUNT", count, *block, "STREAMS", *after, *after.values())
    return list(answer.items() if isinstance(answer, dict) else answer or ())


def _version(answer: Any) -> bytes:
    """Return the version from the answer of HELLO or INFO; empty when it has none."""
    if isinstance(answer, (list, tuple)):
        answer = dict(zip(answer[::2], answer[1::2]))
    if isinstance(answer, dict):
        found = next((answer[name] for name in (b"version", "version", "redis_version") if name in answer), b"")
        return found if isinstance(found, bytes) else str(found).encode()
    found_in = re.search(rb"redis_version:([0-9.]+)", answer) if isinstance(answer, bytes) else None
    return found_in[1] if found_in else b""


def _is_too_old(version: bytes) -> bool:
    """Return whether a version is below `MIN_REDIS_VERSION`; false when its first part is no number."""
    parts = [int(part) if part.isdigit() else None for part in version.split(b".")[:3]]
    return parts[0] is not None and tuple(part or 0 for part in (*parts, 0, 0)[:3]) < MIN_REDIS_VERSION


def _failed(error: Exception, command: Sequence[Any]) -> Any:
    # Redis before 6.0 does not know HELLO, and a user may have no right for it.
    if command[0] == "HELLO":
        return error
    raise error


def _packed(commands: Sequence[Sequence[Any]]) -> bytes:
    # The packing of redis-py takes longer than the answer of Redis when ten thousand keys are read.
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
