"""Addresses of Redis, in all forms that `jsacc -r` takes."""

from __future__ import annotations

import itertools
import re
from typing import Any, Tuple

import pytest

from jsclient import Client, UsageError
from jsclient.address import CLUSTER, SENTINEL, SINGLE, parse


@pytest.mark.parametrize(
    "text,kind,url,hosts,where",
    [
        ("localhost:6379", SINGLE, "redis://localhost:6379", (), "localhost:6379"),
        ("db.example", SINGLE, "redis://db.example", (), "db.example:6379"),
        ("rediss://u:p@h:1/2", SINGLE, "rediss://u:p@h:1/2", (), "h:1"),
        ("redis://[::1]:7", SINGLE, "redis://[::1]:7", (), "[::1]:7"),
        ("unix:///run/r.sock?db=1", SINGLE, "unix:///run/r.sock?db=1", (), "/run/r.sock"),
        ("/run/a,b.sock", SINGLE, "unix:///run/a,b.sock", (), "/run/a,b.sock"),
        ("a:1,b", CLUSTER, "redis://a:1", (("a", 1), ("b", 6379)), "a:1, b:6379"),
        ("rediss://me:pw@a:1, rediss://b:2", CLUSTER, "rediss://me:pw@a:1", (("a", 1), ("b", 2)), "a:1, b:2"),
        ("sentinel://me:pw@s1,s2:5/main/4", SENTINEL, "redis://me:pw@localhost/4", (("s1", 26379), ("s2", 5)),
         "main of the sentinels s1:26379, s2:5"),
        ("redis://:ge,heim@h:1", SINGLE, "redis://:ge,heim@h:1", (), "h:1"),
        ("redis://me:ge,he,im@a:1,b:2", CLUSTER, "redis://me:ge,he,im@a:1", (("a", 1), ("b", 2)), "a:1, b:2"),
        ("redis://me:pw@a:1,me:pw@b:2", CLUSTER, "redis://me:pw@a:1", (("a", 1), ("b", 2)), "a:1, b:2"),
        ("redis://a:1,redis://:p,w@b:2", CLUSTER, "redis://a:1", (("a", 1), ("b", 2)), "a:1, b:2"),
        ("redis://:p%2Fw%40@h:1", SINGLE, "redis://:p%2Fw%40@h:1", (), "h:1"),
        ("unix:///r.sock?password=ge,heim", SINGLE, "unix:///r.sock?password=ge,heim", (), "/r.sock"),
        ("rediss://h:1?ssl_ca_certs=/a@b.pem", SINGLE, "rediss://h:1?ssl_ca_certs=/a@b.pem", (), "h:1"),
        ("unix:///r.sock?password=a+b&db=1", SINGLE, "unix:///r.sock?password=a%2Bb&db=1", (), "/r.sock"),
        ("sentinel://:p,w@s1/main", SENTINEL, "redis://:p,w@localhost/0", (("s1", 26379),),
         "main of the sentinels s1:26379"),
        ("sentinels://me:pw@s1/main/2?sentinel_user=you&sentinel_password=p%26w", SENTINEL, "rediss://me:pw@localhost/2",
         (("s1", 26379),), "main of the sentinels s1:26379"),
        ("sentinel://s1/main", SENTINEL, "redis://localhost/0", (("s1", 26379),), "main of the sentinels s1:26379"),
    ],
)
def test_every_form_of_an_address_is_parsed(text: str, kind: str, url: str, hosts: Tuple[Any, ...], where: str) -> None:
    it = parse(text)
    assert (it.kind, it.url, it.hosts, it.where) == (kind, url, hosts, where)


@pytest.mark.parametrize("text", ["", ",", " ", "http://x", "a:1,unix:///x", "sentinel://h", "sentinel:///g",
                                  "sentinel://h/g/x", "sentinel://h/g?geheim", "sentinel://h/g?sentinel_password=a&geheim",
                                  "sentinel://h/g?sentinel_password=a@geheim", "sentinels://h",
                                  "a:1,redis://:geheim@b:x"])
def test_malformed_addresses_name_the_accepted_forms_and_hide_passwords(text: str) -> None:
    with pytest.raises(UsageError) as e:
        Client(text)
    assert "geheim" not in str(e.value) and len(str(e.value)) > 20


UNREADABLE = "the address cannot be read; write , / # ? @ in the password as %2C %2F %23 %3F %40"


@pytest.mark.parametrize("scheme", ["redis://", "rediss://", "", "unix://", "sentinel://", "sentinels://"])
def test_no_part_of_a_password_is_shown(scheme: str) -> None:
    marks = [",", "/", "#", "?", "@", "@,", "/@", "#,", ":", "[", "]"]
    logins = [":qge{}qhe", ":4711{}8150", "wwu:qge{}qhe", "wwu:4711{}8150", "wwu:4711:{}8150"]
    hosts = ["host:6379", "host", "host,h2", "host,h2:1/g", "host:x", "host:1,h2:x"]
    for mark, login, host in itertools.product(marks, logins, hosts):
        text = f"{scheme}{login.format(mark)}@{host}"
        try:
            connection = Client(text).connection
            connection._login()
        except UsageError as e:
            said = str(e)
            starts = ("a sentinel address names", "several addresses", "behind the / of", "the port in the address")
            assert said == UNREADABLE or said.startswith(starts), text
            continue
        except ValueError:  # of `_login` for a cluster, which is asked for within `_make`
            with pytest.raises(UsageError, match="%2C"):
                connection._make()
        shown = connection.where + repr(connection._address.hosts)
        assert not any(part in shown for part in ("qge", "qhe", "4711", "8150", "wwu")), (text, shown)


def test_comma_belongs_to_the_password_where_it_cannot_separate() -> None:
    assert Client("redis://:ge,heim@127.0.0.1:1").connection._login()["password"] == "ge,heim"
    for text in ("redis://me:12,x@h", "redis://us,er:pw@h", "redis://:x@a,y@b"):
        with pytest.raises(UsageError, match="%2C %2F %23 %3F %40"):
            Client(text)


def test_environment_variable_names_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JSCTL_REDIS", "redis://:geheim@there:7")
    assert Client().connection.where == "there:7"
    assert Client("here:8").connection.where == "here:8"
    for unset in (lambda: monkeypatch.setenv("JSCTL_REDIS", ""), lambda: monkeypatch.delenv("JSCTL_REDIS")):
        unset()
        assert Client().connection.where == "localhost:6379"


def test_tls_and_logins_apply_to_every_kind() -> None:
    import redis

    client = Client("sentinel://me:pw@127.0.0.1:1/main/4")
    options = client.connection._redis.connection_pool.connection_kwargs
    assert (options["username"], options["password"], options["db"]) == ("me", "pw", 4)
    client = Client("sentinels://me:pw@127.0.0.1:1/main?sentinel_user=you&sentinel_password=p%26w", ssl_ca_certs="/no/file")
    pool = client.connection._redis.connection_pool
    (sentinel,) = [it.connection_pool for it in pool.sentinel_manager.sentinels]
    for it, login in ((pool, ("me", "pw")), (sentinel, ("you", "p&w"))):
        assert issubclass(it.connection_class, redis.SSLConnection)
        assert (it.connection_kwargs["username"], it.connection_kwargs["password"]) == login
        assert it.connection_kwargs["ssl_ca_certs"] == "/no/file"
    secure = Client("rediss://:pw@127.0.0.1:1", ssl_ca_certs="/no/such/file").connection._redis.connection_pool
    assert issubclass(secure.connection_class, redis.SSLConnection)
    assert secure.connection_kwargs["ssl_ca_certs"] == "/no/such/file"


def test_plus_in_a_socket_password_is_kept() -> None:
    options = Client("unix:///r.sock?password=a+b%2Bc").connection._redis.connection_pool.connection_kwargs
    assert options["password"] == "a+b+c"


@pytest.mark.parametrize("text,told", [
    ("redis://h?sokcet_timeout=5", "unknown setting sokcet_timeout; did you mean socket_timeout?"),
    ("redis://h?db=x", "the setting db in the address of Redis takes a whole number"),
    ("a:1,redis://b:2?frob=1", "unknown setting frob"),
    ("redis://:x?geheim=z@h", "the address cannot be read"),
    ("redis://h?", ""),
    ("redis://h?socket_timeout=5&db=2", ""),
])
def test_settings_in_an_address_are_checked(text: str, told: str) -> None:
    if not told:
        Client(text)
        return
    with pytest.raises(UsageError, match=re.escape(told)) as e:
        Client(text)
    assert "geheim" not in str(e.value)


def test_unusable_settings_raise_usage_error() -> None:
    with pytest.raises(UsageError, match="setting sokcet_timeout of the connection"):
        Client("redis://h", sokcet_timeout=5)


def test_blocking_read_is_shorter_than_the_socket_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jsclient._connection.BLOCKING_READ_SECONDS", 2.0)
    asked: list[float] = []
    for text, options, most in (("redis://h", {}, 2.0), ("redis://h?socket_timeout=1", {}, 0.5),
                                ("h", {"socket_timeout": 3}, 1.5)):
        connection = Client(text, **options).connection
        monkeypatch.setattr(connection._redis, "execute_command", lambda *words: asked.append(float(words[-1])))
        connection.pop(["a"], 60)
        # 0 means no limit, and Redis 6.0 takes a millisecond for 0.
        connection.pop(["a"], 0)
        assert asked[-2:] == [most, 0.01]


@pytest.mark.parametrize("port", ["0", "65536", "40000000", "-1", "x"])
@pytest.mark.parametrize("text", ["h:P", "redis://h:P", "rediss://:pw@[::1]:P/1", "a:1,b:P", "sentinel://s:P/main",
                                  "sentinels://s,t:P/main"])
def test_port_out_of_range_is_refused(text: str, port: str) -> None:
    with pytest.raises(UsageError, match="^the port in the address of Redis is not a number from 1 to 65535$"):
        parse(text.replace("P", port))


@pytest.mark.parametrize("text", ["redis://:70000/x@h:1", "redis://u:70000#@h", "redis://u:p@h:1/70000@x"])
def test_part_of_a_password_is_not_taken_for_a_port(text: str) -> None:
    with pytest.raises(UsageError, match="%2C"):
        parse(text)


@pytest.mark.parametrize("text", [
    "redis://user:ge@heim@localhost", "rediss://:ge@heim@h:1/2", "user:ge@heim@h:1", "redis://me:ge@heim@a:1,b:2",
    "redis://me:ge@heim@a:1,me:ge@heim@b:2", "unix://me:ge@heim@/run/r.sock", "sentinel://me:ge@heim@s1,s2/main",
])
def test_unescaped_at_in_a_password_is_refused_with_advice(text: str) -> None:
    with pytest.raises(UsageError, match="%40") as e:
        Client(text)
    assert "heim" not in str(e.value)
    assert Client("redis://user:ge%40heim@localhost").connection._login()["password"] == "ge@heim"
