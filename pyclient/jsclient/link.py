"""The connection to Redis, and the only file that imports redis-py.

redis-py has a read timeout of 5 seconds and retries by default. On a blocking read both lose what
arrives: the read that was given up still pops the next result on the server. So here nothing is retried
behind the caller's back, a blocking read waits 2 seconds on the server and far longer on the socket, and
the callers look into the job's hash when a read was cut off.
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple
from urllib.parse import urlsplit

from .errors import Error, Unavailable, UsageError

#: How long one blocking read waits on the server, in seconds.
SLICE = 2.0
#: How long the socket may be silent. Well above SLICE, so that no read is given up while Redis may answer.
READ_SECONDS = 12.0
CONNECT_SECONDS = 2.5
#: Keys of one BRPOP: more make each wake-up dear for Redis.
MANY = 64

_CHUNK = 1000


def normalize(url: str) -> str:
    """A Redis URL from `host:port`, `host`, a path of a socket, or a URL."""
    if not url:
        raise UsageError("the address of Redis is empty: give redis://host:port, unix:///path or host:port")
    if url.startswith("/"):
        return "unix://" + url
    if "://" not in url:
        return "redis://" + url
    if url.split("://", 1)[0] not in ("redis", "rediss", "unix"):
        raise UsageError(f"{masked(url)}: the address of Redis begins with redis://, rediss:// or unix://")
    return url


def masked(url: str) -> str:
    """The address without its password, for messages."""
    try:
        parts = urlsplit(url)
        if parts.scheme == "unix":
            return parts.path
        host = parts.hostname or "localhost"
        port = parts.port or 6379
    except ValueError:
        return "the given address"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Link:
    """Ordinary and blocking calls; safe for threads, since each call takes a connection of its own."""

    def __init__(self, url: str, **options: Any) -> None:
        import redis
        from redis.backoff import NoBackoff
        from redis.exceptions import RedisError
        from redis.retry import Retry

        self.url = normalize(url)
        self.where = masked(self.url)
        self._errors = RedisError
        options = {
            "socket_timeout": READ_SECONDS,
            "socket_connect_timeout": CONNECT_SECONDS,
            "retry": Retry(NoBackoff(), 0),
            "retry_on_timeout": False,
            "decode_responses": False,
            "health_check_interval": 0,
            "protocol": 2,
            **options,
        }
        if self.url.startswith("unix:"):
            # redis-py hands unknown options to the socket's constructor, and a unix socket has no such thing.
            options.pop("socket_keepalive", None)
        try:
            self._redis: Any = redis.Redis.from_url(self.url, **options)
        except (ValueError, TypeError) as e:
            raise UsageError(f"{self.where}: {e}") from None
        # redis-py before 5.3 wants the name of a command.
        version = tuple(int(part) for part in redis.__version__.split(".")[:2] if part.isdigit())
        self._get_args = () if version >= (5, 3) else ("_",)

    def close(self) -> None:
        """Closes every connection; the next call makes a new one."""
        self._redis.connection_pool.disconnect()

    def call(self, *args: Any) -> Any:
        """One command, sent once."""
        try:
            return self._redis.execute_command(*args)
        except (self._errors, OSError) as e:
            raise self._translated(e) from e

    def read(self, *args: Any) -> Any:
        """One command that may be done twice; sent a second time when its connection breaks."""
        try:
            return self.call(*args)
        except Unavailable as e:
            if not e.passing or "did not answer" in str(e):
                raise
            return self.call(*args)

    def many(self, commands: Sequence[Sequence[Any]]) -> List[Any]:
        """Many commands in few round trips, their answers in order; the first error is raised."""
        out: List[Any] = []
        for chunk in _chunks(commands, _CHUNK):
            try:
                pipe = self._redis.pipeline(transaction=False)
                for command in chunk:
                    pipe.execute_command(*command)
                out.extend(pipe.execute())
            except (self._errors, OSError) as e:
                raise self._translated(e) from e
        return out

    def bulk(self, commands: Sequence[Sequence[Any]]) -> List[Any]:
        """As `many` for reads of thousands of keys: the plain answers, without redis-py's own bookkeeping."""
        out: List[Any] = []
        pool: Any = self._redis.connection_pool
        for chunk in _chunks(commands, _CHUNK):
            try:
                connection: Any = pool.get_connection(*self._get_args)
            except (self._errors, OSError) as e:
                raise self._translated(e) from e
            done = False
            try:
                connection.send_packed_command([_packed(chunk)])
                answers = [connection.read_response() for _ in chunk]
                done = True
            except (self._errors, OSError) as e:
                raise self._translated(e) from e
            finally:
                if not done:
                    connection.disconnect()
                pool.release(connection)
            out.extend(answers)
        return out

    def pop(self, keys: Sequence[str], seconds: float) -> Optional[Tuple[bytes, bytes]]:
        """BRPOP for at most `seconds` (never above SLICE); nothing when nothing came."""
        # 0 would mean "for ever" to Redis.
        wait = min(max(seconds, 0.001), SLICE)
        try:
            popped: Optional[Tuple[bytes, bytes]] = self._redis.execute_command("BRPOP", *keys, f"{wait:.3f}")
        except (self._errors, OSError) as e:
            raise self._translated(e) from e
        return popped

    def _translated(self, error: BaseException) -> Error:
        from redis import exceptions as r

        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if isinstance(error, (r.AuthenticationError, r.AuthorizationError)) or _is_password(reason):
            reason = reason.rstrip(".")
            return Unavailable(f"Redis at {self.where} refuses these credentials ({reason}): check user and password")
        if isinstance(error, r.NoPermissionError) or reason.startswith("NOPERM"):
            return Unavailable(f"this user of Redis at {self.where} may not do that: {reason}")
        if isinstance(error, (r.TimeoutError, TimeoutError)):
            if "connecting" in reason.lower():
                return Unavailable(f"cannot reach Redis at {self.where}: no answer within {CONNECT_SECONDS:g} s", True)
            return Unavailable(f"Redis at {self.where} did not answer within {READ_SECONDS:g} s", True)
        if isinstance(error, (r.ConnectionError, OSError)):
            return Unavailable(f"cannot reach Redis at {self.where}: {_plain(reason)}", True)
        return Unavailable(f"Redis at {self.where}: {reason}")


def _is_password(reason: str) -> bool:
    return any(word in reason for word in ("WRONGPASS", "NOAUTH", "invalid password", "invalid username-password"))


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
