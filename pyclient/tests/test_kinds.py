"""The client on a Redis Cluster, behind a Sentinel and over TLS, with the real controller and agent."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, List, Optional

import pytest
import redis
from conftest import end, wait_until
from test_real import BIN, free_port

from jsclient import Client, RedisUnavailableError, keys
from jsclient.cli.main import main

pytestmark = [
    pytest.mark.skipif(BIN is None, reason="jsacc and jsagent are not built"),
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed"),
]

#: A failover takes at most this time on a busy machine, in seconds.
FAILOVER = 60.0


class Processes:
    """Programs and their folder, which end with the test."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="jsclient-kinds-"))
        self.children: List[subprocess.Popen[bytes]] = []

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        with open(self.folder / "log", "ab") as log:
            child = subprocess.Popen(words, stdout=log, stderr=log, cwd=self.folder)
        self.children.append(child)
        return child

    def server(self, port: int, *options: str) -> subprocess.Popen[bytes]:
        folder = self.folder / str(port)
        folder.mkdir(exist_ok=True)
        child = self.start("redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder),
                           *options)
        wait_until(lambda: answers(port))
        return child

    def fleet(self, url: str, *options: str) -> None:
        """A controller and the nodes 1.1 and 1.2."""
        port = free_port()
        self.start(str(BIN / "jsacc"), "-p", str(port), "-b", "127.0.0.1", "-r", url, "--state-dir",  # type: ignore[operator]
                   str(self.folder / "state"), "--insecure-http", "--insecure-no-auth", *options)
        for nid in ("1", "2"):
            self.start(str(BIN / "jsagent"), "--gid", "1", "--nid", nid, "--controller",  # type: ignore[operator]
                       f"http://127.0.0.1:{port}", "--data-dir", str(self.folder / f"node{nid}"))

    def close(self) -> None:
        end(self.children)
        shutil.rmtree(self.folder, ignore_errors=True)


def answers(port: int) -> bool:
    connection = redis.Redis(port=port)
    try:
        return bool(connection.ping())
    except redis.AuthenticationError:
        return True
    except redis.ConnectionError:
        return False
    finally:
        connection.close()


def info(port: int, section: str, password: str = "") -> str:
    login = ["-a", password, "--no-auth-warning"] if password else []
    done = subprocess.run(["redis-cli", "-p", str(port), *login, "info", section], capture_output=True, text=True,
                          timeout=20)
    return done.stdout


def clients(port: int) -> List[str]:
    done = subprocess.run(["redis-cli", "-p", str(port), "client", "list"], capture_output=True, text=True, timeout=20)
    return done.stdout.splitlines()


def restrict(ports: Iterable[int], **more: str) -> None:
    """Create the users of docs/how-to/set-up-redis.md with the rules for this kind of Redis."""
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "set-up-redis.md").read_text()
    for user, words in more.items():
        (rule,) = re.findall(rf"^ACL SETUSER ({user} .*)$", page, re.MULTILINE)
        assert f"`{words}`" in page or not words
        for port in ports:
            made = subprocess.run(["redis-cli", "-p", str(port), "ACL", "SETUSER", *rule.replace("PASSWORD", "pw").split(),
                                   *words.split()], check=True, capture_output=True, text=True, timeout=20)
            assert made.stdout == "OK\n", made


def attempt(ask: Callable[[], object]) -> Optional[object]:
    """Return the answer, `None` while Redis is unreachable."""
    try:
        return ask()
    except RedisUnavailableError:
        return None


@pytest.fixture
def processes() -> Iterator[Processes]:
    it = Processes()
    yield it
    it.close()


def everything(client: Client, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Use each kind of call to Redis once."""
    wait_until(lambda: sum(n.live for n in client.nodes()) == 2, 30)
    assert client.ping(1, 1) == "pong"
    assert client.execute(1, 2, "echo hi").wait(20).stdout.strip() == "hi"
    # A fanout, and one job for each node.
    assert len(client.target("all").execute("true").wait(20).raise_for_status().results) == 2
    fleet = client.target("1.1,1.2").execute("echo", ["x"]).wait(20).raise_for_status()
    parts = client.member_ids(fleet.id)
    assert len(fleet.results) == 2 and [p.rsplit(".", 1)[0] for p in parts] == [f"{fleet.id}.1.1", f"{fleet.id}.1.2"]
    assert client.run_script("1.1", source="def action():\n    return 7\n").wait(20).failed == []
    assert len(client.scripts()) == 1
    job = client.execute(1, 1, "sleep", ["60"])
    wait_until(lambda: job.state == "RUNNING")
    assert job.stats()["id"] == job.id and job.kill().ok and job.wait(20).state == "KILLED"
    assert any(it.id == job.id for it in client.jobs()) and client.audit() and client.events()
    assert client.job_info(parts[0]).state == "OK"
    assert main(["--redis", url, "exec", "all", "--json", "--", "echo", "told"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    # jsctl: a job that other command lines show, wait for and end.
    def told(*words: str) -> Any:
        capsys.readouterr()
        assert main(["--redis", url, *words, "--json"]) == 0, words
        return json.loads(capsys.readouterr().out)

    # Live output, of one watch and of several, which a cluster has on several servers.
    numbers = b"".join(b"%d\n" % n for n in range(1, 20001))
    watched = client.execute(1, 1, "seq", ["20000"], stream=True)
    assert b"".join(chunk.data for chunk in watched.stream()) == numbers
    assert b"".join(chunk.data for chunk in watched.attach(tail=1 << 20)) == numbers
    assert b"".join(client.get(1, 2, __file__)) == Path(__file__).read_bytes()
    capsys.readouterr()
    for target in ("1.1,1.2", "all"):
        code, shown = main(["--redis", url, "exec", target, "--no-fold", "--", "echo", "live"]), capsys.readouterr()
        assert code == 0 and sorted(shown.out.splitlines()) == ["1.1 | live", "1.2 | live"], shown
    assert next(iter(client.target("1.1").follow(job=watched.id))).data == "1"

    job = client.execute(1, 2, "sleep", ["60"])
    wait_until(lambda: job.state == "RUNNING")
    assert any(it["id"] == job.id for it in told("top", "all"))
    assert all(job.id in json.dumps(told(*words)) for words in (["ps"], ["jobs"], ["job", job.id]))
    told("kill", job.id)
    capsys.readouterr()
    assert main(["--redis", url, "wait", job.id]) == 1, "it was killed"
    assert job.result is not None and job.result.state == "KILLED"
    assert len(told("nodes")) == 2


def test_cluster_that_loses_a_server_recovers(processes: Processes, capsys: pytest.CaptureFixture[str]) -> None:
    ports = [free_port() for _ in range(6)]
    servers = {
        port: processes.server(port, "--cluster-enabled", "yes", "--cluster-node-timeout", "1500",
                           "--repl-diskless-sync-delay", "0", "--cluster-port", str(free_port()))
        for port in ports
    }
    addresses = [f"127.0.0.1:{port}" for port in ports]
    create = ["redis-cli", "--cluster", "create", *addresses, "--cluster-replicas", "1", "--cluster-yes"]
    subprocess.run(create, check=True, capture_output=True, timeout=60)
    wait_until(lambda: all("connected_slaves:1" in text or "master_link_status:up" in text
                           for text in (info(port, "replication") for port in ports)), FAILOVER)
    restrict(ports, jsacc="+cluster|slots", ops="+cluster|slots +command +info")
    some = ",".join(addresses[:3])
    url = f"redis://ops:pw@{some}"
    with Client(url, timeout=30, by="tester") as client:
        wait_until(lambda: attempt(client.nodes) is not None, FAILOVER)
        processes.fleet(f"redis://jsacc:pw@{some}")
        everything(client, url, capsys)
        # The address of any server is enough, also that of a replica.
        for number, address in enumerate(addresses):
            one = f"redis://ops:pw@{address}"
            with Client(one, timeout=30) as single:
                assert single.scripts() == client.scripts() and len(single.nodes()) == 2
                assert single.ping(1, 1) == "pong" and len(single.target("1.1,1.2").ping().wait(20).results) == 2
            if number in (0, 5):
                with Client(one, timeout=30) as single:
                    single.connection.bulk([("EXPIRE", keys.script_key(it["hash"]), 0) for it in client.scripts()])
                    everything(single, one, capsys)
        # The worst server to lose holds the queue and answers commands without a key.
        cluster = client.connection._redis
        holder = cluster.get_node_from_key("cmds_queue")
        cluster.set_default_node(holder)
        servers[holder.port].kill()
        end = time.monotonic() + FAILOVER
        while attempt(lambda: client.ping(1, 1, timeout=20)) is None:
            assert time.monotonic() < end, "the cluster did not come back"
            time.sleep(0.1)
        fleet = client.target("1.1,1.2").ping().wait(30)
        assert len(fleet.results) == 2, fleet.missing


def test_unreachable_server_of_a_cluster_is_named(processes: Processes, capsys: pytest.CaptureFixture[str]) -> None:
    ports = [free_port() for _ in range(3)]
    servers = {port: processes.server(port, "--cluster-enabled", "yes", "--cluster-node-timeout", "600000",
                                  "--cluster-port", str(free_port())) for port in ports}
    addresses = [f"127.0.0.1:{port}" for port in ports]
    subprocess.run(["redis-cli", "--cluster", "create", *addresses, "--cluster-yes"], check=True, capture_output=True, timeout=60)
    cluster = redis.RedisCluster(host="127.0.0.1", port=ports[0])
    holder = int(cluster.get_node_from_key("jsacc:agents").port)
    cluster.close()
    living = next(port for port in ports if port != holder)
    with Client(f"127.0.0.1:{living}") as client:
        wait_until(lambda: attempt(client.nodes) == [], FAILOVER)
        servers[holder].kill()
        servers[holder].wait()
        # With open connections, and with new ones.
        for ask in (client.nodes, client.nodes, lambda: client.connection.call("ZCARD", "jsacc:agents"), lambda: client.connection.pop(["jsacc:agents"], 1)):
            with pytest.raises(RedisUnavailableError, match=f"^cannot reach Redis at 127.0.0.1:{holder}, a server of the cluster at "):
                ask()
    capsys.readouterr()
    assert main(["--redis", f"127.0.0.1:{living}", "nodes"]) == 1
    assert f"cannot reach Redis at 127.0.0.1:{holder}, a server of the cluster at" in capsys.readouterr().err


def test_sentinel_failover_is_followed(processes: Processes, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, own = free_port(), free_port(), free_port()
    master = processes.server(first, "--repl-diskless-sync-delay", "0")
    processes.server(second, "--replicaof", "127.0.0.1", str(first))
    wait_until(lambda: "master_link_status:up" in info(second, "replication"), FAILOVER)
    settings = processes.folder / "sentinel.conf"
    settings.write_text(f"port {own}\nbind 127.0.0.1\nrequirepass watch\nsentinel monitor group 127.0.0.1 {first} 1\n"
                        "sentinel down-after-milliseconds group 1500\nsentinel failover-timeout group 5000\n")
    processes.start("redis-server", str(settings), "--sentinel")
    wait_until(lambda: "slaves=1" in info(own, "sentinel", "watch"), FAILOVER)
    restrict((first, second), jsacc="+role", ops="")
    # The first server accepts connections and never answers.
    silent = socket.create_server(("127.0.0.1", 0))
    sentinels = f"127.0.0.1:{silent.getsockname()[1]},127.0.0.1:{own}/group?sentinel_password=watch"
    url = f"sentinel://ops:pw@{sentinels}"
    processes.fleet(f"sentinel://jsacc:pw@{sentinels}")
    with Client(url.replace("=watch", "=falsch")) as unauthorized, pytest.raises(RedisUnavailableError, match="credentials") as e:
        unauthorized.nodes()
    assert "falsch" not in str(e.value)
    with Client(url, timeout=60, by="tester") as client, silent:
        begin = time.monotonic()
        client.nodes()
        assert time.monotonic() - begin < 60  # Its own time limit.
        # Each program detects the silent server again, so most of them get another address.
        everything(client, f"sentinel://ops:pw@127.0.0.1:{own}/group?sentinel_password=watch", capsys)
        # A wait during the death of the master ends with the result.
        job = client.execute(1, 2, "sleep", ["10"])
        wait_until(lambda: job.state == "RUNNING")
        waiter = subprocess.Popen([sys.executable, "-m", "jsclient.cli", "--redis", url, "wait", job.id, "--json"],
                                  stdout=subprocess.PIPE, text=True)
        processes.children.append(waiter)  # type: ignore[arg-type]
        wait_until(lambda: any("user=ops" in line and "cmd=brpop" in line for line in clients(first)))
        # Live output goes on at the replica, and is whole.
        live = client.execute(1, 1, "sh", ["-c", "for n in 1 2 3 4 5 6 7 8; do echo $n; sleep 1; done"], stream=True)
        chunks = live.stream()
        assert next(chunks).data == b"1\n"
        master.kill()
        assert b"".join(chunk.data for chunk in chunks) == b"2\n3\n4\n5\n6\n7\n8\n"
        assert job.wait(60).state == "OK"
        out, _ = waiter.communicate(timeout=60)
        assert waiter.returncode == 0 and json.loads(out)
        wait_until(lambda: "role:master" in info(second, "replication"), FAILOVER)
        end = time.monotonic() + FAILOVER
        while attempt(lambda: client.ping(1, 1, timeout=20)) is None:
            assert time.monotonic() < end, "the replica does not serve"
            time.sleep(0.1)
        assert client.execute(1, 2, "echo hi").wait(30).stdout.strip() == "hi"


def test_tls_connects_and_checks_certificates(processes: Processes, capsys: pytest.CaptureFixture[str]) -> None:
    cert, key, port = processes.folder / "cert.pem", processes.folder / "key.pem", free_port()
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
            "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
            "-addext", "basicConstraints=critical,CA:FALSE", "-keyout", str(key), "-out", str(cert)]
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    subprocess.run(make, check=True, capture_output=True, timeout=60)
    plain = free_port()
    processes.server(plain, "--tls-port", str(port), "--tls-cert-file", str(cert), "--tls-key-file", str(key),
                 "--tls-ca-cert-file", str(cert), "--tls-auth-clients", "no", "--requirepass", "geheim")
    url = f"rediss://:geheim@localhost:{port}"
    with Client(url) as unauthorized, pytest.raises(RedisUnavailableError) as e:
        unauthorized.nodes()
    assert "certificate" in str(e.value) and "geheim" not in str(e.value)
    processes.fleet(url, "--redis-ca", str(cert))
    with Client(url, ssl_ca_certs=str(cert), timeout=30, by="tester") as client:
        everything(client, f"{url}?ssl_ca_certs={cert}", capsys)



def test_audit_list_names_the_redis_user(processes: Processes, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    processes.server(port)
    restrict([port], ops="")
    processes.fleet(f"127.0.0.1:{port}")
    url = f"redis://ops:pw@127.0.0.1:{port}"
    with Client(url, timeout=30) as client:
        wait_until(lambda: sum(n.live for n in client.nodes()) == 2, 30)
    capsys.readouterr()
    assert main(["--redis", url, "--as", "alice", "exec", "1.*", "--", "true"]) == 0
    wait_until(lambda: client.audit(1)[0]["results"] == {"OK": 2})
    entry = client.audit(1)[0]
    assert (entry["by"], entry["user"], entry["cmd"], entry["count"]) == ("alice", "ops", "execute", 2)
    assert sorted(entry["targets"]) == ["1:1", "1:2"] and abs(entry["time"] / 1000 - time.time()) < 60
    capsys.readouterr()
    assert main(["--redis", url, "audit"]) == 0
    out = capsys.readouterr().out
    assert "alice/ops" in out and "2 OK" in out and ":pw@" not in out
