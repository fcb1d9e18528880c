"""`scripts/bench client`: what jsclient costs over plain redis-py, how quickly jsctl starts, and a large fleet."""

import argparse
import fcntl
import json
import os
import pty
import resource
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
import uuid
from pathlib import Path

import redis

from jsclient import Client

#: The node of the bench's stage is 1.10.
NODE = 10
ROOT = Path(__file__).resolve().parents[4]
sys.path.insert(0, str(ROOT / "pyclient" / "tests"))


def raw_push(link):
    job = uuid.uuid4().hex
    link.lpush("cmds_queue", json.dumps({"id": job, "gid": 1, "nid": NODE, "cmd": "ping"}))
    return job


def raw_pop(link, job):
    return json.loads(link.brpop(f"cmds_queue_{job}", 60)[1])["data"]


def raw_serial(link, count):
    for _ in range(count):
        assert raw_pop(link, raw_push(link)) == '"pong"'


def raw_burst(link, count):
    for job in [raw_push(link) for _ in range(count)]:
        raw_pop(link, job)


def our_serial(client, count):
    for _ in range(count):
        assert client.ping(1, NODE) == "pong"


def our_burst(client, count):
    for job in [client.send(1, NODE, "ping") for _ in range(count)]:
        job.wait(60)


def timed(work, *args):
    wall, cpu = time.monotonic(), time.process_time()
    work(*args)
    return time.monotonic() - wall, time.process_time() - cpu


def overhead(url, rounds, count):
    link = redis.Redis.from_url(url, socket_timeout=120)
    client = Client(url)
    for title, raw, ours in (("one after the other", raw_serial, our_serial), ("at once", raw_burst, our_burst)):
        figures = {"redis-py": [], "jsclient": []}
        raw(link, count // 10), ours(client, count // 10)
        for _ in range(rounds):
            figures["redis-py"].append(timed(raw, link, count))
            figures["jsclient"].append(timed(ours, client, count))
        plain, whole = (
            [statistics.median(f[i] for f in figures[name]) * 1000 for i in (0, 1)] for name in ("redis-py", "jsclient")
        )
        print(f"{count} pings {title:20} redis-py {plain[0]:8.0f} ms (cpu {plain[1]:6.0f})"
              f"   jsclient {whole[0]:8.0f} ms (cpu {whole[1]:6.0f})   ratio {whole[0] / plain[0]:.2f}", flush=True)
    client.close()


def jsctl(url, *words):
    command = [sys.executable, "-m", "jsclient.cli", *words]
    started = time.monotonic()
    subprocess.run(command, env={**os.environ, "JSCTL_REDIS": url}, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL, check=True)
    return (time.monotonic() - started) * 1000


class Private:
    """A redis-server of our own."""

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.socket = os.path.join(self.folder.name, "s")
        self.process = subprocess.Popen(
            ["redis-server", "--port", "0", "--unixsocket", self.socket, "--save", "", "--dir", self.folder.name],
            stdout=subprocess.DEVNULL)
        while not os.path.exists(self.socket):
            time.sleep(0.01)
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()


def fleet(socket, nodes):
    """Progress and memory of jsctl while `nodes` answer; the nodes are a thread of this process."""
    from fake import Fake

    fake = Fake(socket)
    for i in range(nodes):
        fake.add(1 + i // 1000, 1 + i % 1000, ["web"])
    fake.programs["echo"] = lambda n, c: {"streams": [f"line of {n[1] % 7}\n" * 20, ""]}
    fake.start()
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    started = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-m", "jsclient.cli", "exec", "all", "--", "echo", "x"],
        env={**os.environ, "JSCTL_REDIS": f"unix://{socket}", "TERM": "xterm-256color"},
        stdout=subprocess.DEVNULL, stderr=slave)
    os.close(slave)
    moments = []
    while child.poll() is None:
        if select.select([master], [], [], 0.02)[0]:
            try:
                os.read(master, 65536)
            except OSError:
                break
            moments.append(time.monotonic())
    child.wait()
    took = time.monotonic() - started
    fake.stop()
    os.close(master)
    gaps = [b - a for a, b in zip(moments, moments[1:])] or [0.0]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return took, max(gaps) * 1000, len(moments), peak, child.returncode


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--redis", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    overhead(args.redis, args.rounds, 100 if args.quick else 1000)
    bare = statistics.median(timed(subprocess.run, [sys.executable, "-c", "pass"])[0] * 1000 for _ in range(args.rounds))
    print(f"python -c pass                       {bare:8.0f} ms")
    helped = statistics.median(jsctl(args.redis, "--help") for _ in range(args.rounds))
    print(f"jsctl --help                         {helped:8.0f} ms   (aim: below 150)")
    many = 1000 if args.quick else 10000
    with Private() as private:
        link = redis.Redis(unix_socket_path=private.socket)
        pipe = link.pipeline()
        now = int(time.time() * 1000)
        for i in range(many):
            pipe.zadd("jsacc:agents", {f"1:{i + 1}": now})
            pipe.hset(f"jsacc:agent:1:{i + 1}", mapping={
                "roles": '["web"]', "hostname": f"host{i}", "os": "linux", "version": "0.1.0",
                "addr": "10.0.0.1", "instance": "abcdef", "ac": "ac", "last_seen": now})
        pipe.execute()
        listed = statistics.median(jsctl(f"unix://{private.socket}", "nodes") for _ in range(args.rounds))
        print(f"jsctl nodes, {many:5} nodes             {listed:8.0f} ms   (aim: below 1000)", flush=True)
    with Private() as private:
        nodes = 500 if args.quick else 5000
        took, gap, updates, peak, code = fleet(private.socket, nodes)
        print(f"jsctl exec all, {nodes} nodes           {took * 1000:8.0f} ms   exit {code}, {updates} updates of the bar,"
              f" longest gap {gap:.0f} ms, peak {peak:.0f} MiB (aim: below 200)")


if __name__ == "__main__":
    main()
