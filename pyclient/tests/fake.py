"""A fake controller with its nodes in one thread, for the part of the protocol that the tests need.

It takes commands from `cmds_queue`, keeps the jobs' hashes, and answers. A node is live, or absent (then its
commands stay QUEUED), or deaf (it takes them, they stay RUNNING). `answer` can be replaced for special cases.
"""

from __future__ import annotations

import hashlib
import json
import random
import struct
import threading
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

# The processing list.
TAKEN = "jsacc:fake:taken"
Node = Tuple[int, int]


def now() -> int:
    return int(time.time() * 1000)


class Fake:
    def __init__(self, socket: str) -> None:
        self._socket = socket
        # It finishes commands that it has taken, also over a restart of Redis.
        retry = Retry(ConstantBackoff(0.05), 200)
        self._redis = redis.Redis(unix_socket_path=socket, retry=retry, retry_on_error=[redis.ConnectionError])
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fake", daemon=True)
        self.roles: Dict[Node, List[str]] = {}
        self.absent: set[Node] = set()
        self.deaf: set[Node] = set()
        self.running: Dict[Tuple[str, Node], Dict[str, Any]] = {}
        self.queued: Dict[Tuple[str, Node], Dict[str, Any]] = {}
        self.seen: List[Dict[str, Any]] = []
        self.lost: set[Node] = set()  # nodes whose agents do not start again after a restart
        self.starts = 0
        self.records: Dict[Node, List[Dict[str, Any]]] = {}
        self.schedules: Dict[Node, List[Dict[str, Any]]] = {}
        self.files: Dict[Tuple[Node, str], bytes] = {}
        # The content of each file that nobody has put.
        self.hostname = b"node\n"
        self.delay = 0.0
        self.hash_only = False
        # Whether an answer of the controller for a node names that node; controllers of 0.1.0 do not.
        self.names_nodes = True
        self.beating = True
        self.programs: Dict[str, Callable[[Node, Dict[str, Any]], Dict[str, Any]]] = {
            "echo": lambda n, c: {"streams": [" ".join(c["args"].get("args", [])) + "\n", ""]},
            "cat": lambda n, c: {"streams": [c["data"], ""]},
            "whoami": lambda n, c: {"streams": [f"{n[0]}.{n[1]}\n", ""]},
            "false": lambda n, c: {"state": "ERROR", "code": 1, "streams": ["", "it went wrong\n"]},
            "uname": lambda n, c: {"streams": ["Linux\n", ""]},
        }

    def add(self, gid: int, nid: int, roles: List[str], age: float = 0) -> None:
        """Add a node that was seen `age` seconds ago; above 90 it is absent."""
        node = (gid, nid)
        self.roles[node] = roles
        self.records.setdefault(node, [])
        seen = now() - int(age * 1000)
        self._redis.zadd("jsacc:agents", {f"{gid}:{nid}": seen})
        facts = {"roles": json.dumps(roles), "hostname": f"host{nid}", "os": "linux", "version": "0.1.0",
                 "addr": "127.0.0.1", "instance": "x", "last_seen": seen, "ac": "fake"}
        self._redis.hset(f"jsacc:agent:{gid}:{nid}", mapping=facts)
        if age > 90:
            self.absent.add(node)

    def beat(self, age: float = 0) -> None:
        self._redis.zadd("jsacc:acs", {"fake": now() - int(age * 1000)})

    def start(self) -> None:
        self.beat()
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self._redis.close()

    def arrive(self, gid: int, nid: int) -> None:
        """Make an absent node live; it runs its queued commands."""
        node = (gid, nid)
        self.absent.discard(node)
        if node not in self.roles:
            self.add(gid, nid, [])
        self._redis.zadd("jsacc:agents", {f"{gid}:{nid}": now()})
        for job, n in list(self.queued):
            if n == node:
                self._at_node(node, self.queued.pop((job, n)))

    def end(self, job: str, node: Node) -> None:
        """Let a deaf node answer."""
        self._finish(node, self.running.pop((job, node)), {})

    def expire(self, job: str, node: Node) -> None:
        """Let a command expire before its node has taken it."""
        command = self.queued.pop((job, node), None) or self.running.pop((job, node))
        self._finish(node, command, {"state": "ERROR", "data": "expired before its node took it"}, own=True)

    def started(self, node: Node) -> None:
        """Record a new start of an agent."""
        self.starts += 1
        self._redis.hset(f"jsacc:agent:{node[0]}:{node[1]}", "instance", f"start{self.starts}")

    def record(self, gid: int, nid: int, level: int, data: str, jobid: str = "j", age: float = 0) -> None:
        records = self.records[(gid, nid)]
        records.append({"id": len(records) + 1, "jobid": jobid, "jobdomain": "d", "jobname": "n",
                        "epoch": now() - int(age * 1000), "level": level, "data": data})

    def _run(self) -> None:
        beaten = 0.0
        connection = redis.Redis(unix_socket_path=self._socket)
        while not self._stop.is_set():
            try:
                if self.beating and time.monotonic() - beaten > 1:
                    self.beat()
                    beaten = time.monotonic()
                # As the real one, it takes, executes and then removes a command, so that a restart of Redis loses none.
                taken = connection.lindex(TAKEN, -1) or connection.brpoplpush("cmds_queue", TAKEN, 0.05)
                if taken:
                    self._take(json.loads(taken))
                    connection.rpop(TAKEN)
            except redis.RedisError:
                time.sleep(0.02)
        connection.close()

    def _take(self, command: Dict[str, Any]) -> None:
        self.seen.append(command)
        job = command["id"]
        if command["cmd"] == "cancel":
            return self._cancel(command)
        if command["nid"]:
            nodes = [(command["gid"], command["nid"])]
        elif command.get("nodes"):
            nodes = [(g, n) for g, n in command["nodes"]]
        else:
            want = set(command["roles"]) - {"*"}
            nodes = [n for n, roles in sorted(self.roles.items()) if want <= set(roles) and n not in self.absent
                     and command["gid"] in (0, n[0])]
            if nodes and not command["fanout"]:
                nodes = [random.choice(nodes)]
        targets = json.dumps([f"{g}:{n}" for g, n in nodes])
        fields = {"cmd": json.dumps(command), "created": now(), "targets": targets}
        fields.update({f"{g}:{n}": '{"state": "QUEUED"}' for g, n in nodes})
        self._redis.hset(f"jsacc:job:{job}", mapping=fields)
        if not command.get("quiet"):
            self._redis.lpush("jsacc:jobs", job)
            self._redis.lpush("jsacc:audit", json.dumps({
                "id": job, "cmd": command["cmd"], "args": command["args"], "by": command.get("by"),
                "user": command.get("user"), "targets": json.loads(targets)[:20], "count": len(nodes), "time": now()}))
        if not nodes:
            self._finish((command["gid"], 0), command, {"state": "ERROR", "data": "no live node has these roles"})
        for node in nodes:
            if node in self.absent or node not in self.roles:
                self.queued[(job, node)] = command
            else:
                self._at_node(node, command)

    def _at_node(self, node: Node, command: Dict[str, Any]) -> None:
        self._redis.hset(f"jsacc:job:{command['id']}", f"{node[0]}:{node[1]}", '{"state": "RUNNING"}')
        if node in self.deaf or self._long(command):
            self.running[(command["id"], node)] = command
            return
        if self.delay:
            time.sleep(self.delay)
        self._finish(node, command, self.answer(node, command))

    @staticmethod
    def _long(command: Dict[str, Any]) -> bool:
        return bool(command["cmd"] == "execute" and command["args"].get("cmd") == "sleep")

    def _finish(self, node: Node, command: Dict[str, Any], answer: Dict[str, Any], own: bool = False) -> None:
        """Deliver a result; with `own` the controller answers for the node."""
        named = node if self.names_nodes or not own else (command["gid"], command["nid"])
        result = {"id": command["id"], "gid": named[0], "nid": named[1], "cmd": command["cmd"],
                  "args": command["args"], "data": "", "level": 0, "state": "OK", "code": 0, "time": 3,
                  "starttime": now(), "streams": ["", ""], "critical": "", "tags": command["tags"], **answer}
        # As an agent does: a line feed between lines, and none at the end.
        result["streams"] = [s[:-1] if s.endswith("\n") else s for s in result["streams"]]
        text = json.dumps(result)
        job = command["id"]
        if own:
            # The controller removes a node that it answers for from the targets.
            found: Any = self._redis.hget(f"jsacc:job:{job}", "targets")
            left = [n for n in json.loads(found) if n != f"{node[0]}:{node[1]}"]
            self._redis.hset(f"jsacc:job:{job}", mapping={"targets": json.dumps(left), f"{node[0]}:{node[1]}": text})
        if not self.hash_only:
            self._redis.lpush(f"cmds_queue_{job}", text)
        self._redis.hset(f"jsacc:job:{job}", f"{node[0]}:{node[1]}", text)
        self._redis.hincrby("jsacc:audit:results", f"{job} {result['state']}", 1)

    def _cancel(self, command: Dict[str, Any]) -> None:
        data = command["data"]
        job = (json.loads(data) if isinstance(data, str) else data)["id"]
        self._redis.lpush("jsacc:jobs", command["id"])
        self._redis.lpush("jsacc:audit", json.dumps({"id": command["id"], "cmd": "cancel"}))
        count, why = 0, f"no such job {job}"
        for gid, nid in command.get("nodes") or [(command["gid"], command["nid"])]:
            waiting = self.queued.pop((job, (gid, nid)), None)
            if waiting is not None:
                count += 1
                self._finish((gid, nid), waiting, {"state": "KILLED", "data": "cancelled before its node took it"},
                             own=True)
            elif (job, (gid, nid)) in self.running:
                why = f"job {job} is already with node {gid}:{nid}: kill it instead"
            else:
                why = f"job {job} has ended on node {gid}:{nid}"
        answer = {"level": 20, "data": json.dumps({"cancelled": True, "count": count})}
        answer = answer if count else {"state": "ERROR", "data": why}
        self._finish((command["gid"], command["nid"]), command, answer)

    def answer(self, node: Node, command: Dict[str, Any]) -> Dict[str, Any]:
        """Return the answer of a node to a command."""
        args, data = command["args"], command["data"]
        query: Dict[str, Any] = {}
        if command["cmd"] not in ("execute", "execute_js_py", "execute_js_lua"):
            query = (json.loads(data) if data else {}) if isinstance(data, str) else data

        def good(value: object) -> Dict[str, Any]:
            return {"level": 20, "data": json.dumps(value)}

        cmd = command["cmd"]
        if cmd == "ping":
            return good("pong")
        if cmd == "execute":
            run = self.programs.get(args["cmd"].split()[0])
            if run is None:
                return {"state": "ERROR", "data": f"{args['cmd']}: program not found"}
            return run(node, command)
        if cmd in ("execute_js_py", "execute_js_lua"):
            if "hash" not in args:
                return {"state": "ERROR", "data": f"no script {args['domain']}/{args['name']}"}
            source: Any = self._redis.get(f"jsacc:script:{args['hash']}")
            if source is None:
                return {"state": "ERROR", "data": "unknown script"}
            return self._script(source, data)
        if cmd == "put":
            content: Any = self._redis.get(f"jsacc:script:{args['hash']}")
            assert hashlib.sha256(content).hexdigest() == args["hash"]
            self.files[(node, args["path"])] = content
            return good({"path": args["path"], "size": len(content), "changed": True})
        if cmd == "get":
            content = self.files.get((node, query["path"]), self.hostname)
            facts = {"size": len(content), "mode": "0644", "mtime": 1}
            end = json.dumps({**facts, "sha256": hashlib.sha256(content).hexdigest()}).encode()
            frames = b"".join(struct.pack(">B3xI", kind, len(data)) + data for kind, data in ((1, content), (5, end)))
            self._redis.xadd(f"jsacc:stream:{command['id']}", {"n": f"{node[0]}:{node[1]}", "o": 0, "d": frames})
            return good(facts)
        if cmd == "get_cpu_info":
            return good({"arch": "x86_64", "brand": "b", "physical": 1, "logical": 2, "mhz": 3000,
                         "usage": [1.0, 2.0], "load": [0.1, 0.2, 0.3]})
        if cmd == "get_mem_info":
            return good({"total": 4 << 30, "available": 3 << 30, "used": 1 << 30, "free": 2 << 30,
                         "swap_total": 0, "swap_used": 0})
        if cmd == "get_disk_info":
            return good([{"device": "/dev/sda1", "mount": "/", "fstype": "ext4", "total": 100 << 30,
                          "used": (95 if node == (1, 2) else 10) << 30, "free": 5 << 30, "readonly": False,
                          "removable": False}])
        if cmd == "get_nic_info":
            return good([{"name": "eth0", "mac": "", "mtu": 1500, "addrs": [f"10.0.{node[0]}.{node[1]}/24"],
                          "rx_bytes": 1, "tx_bytes": 2, "rx_errors": 0, "tx_errors": 0}])
        if cmd == "get_os_info":
            return good({"hostname": f"host{node[1]}", "os": "linux", "name": "Debian", "version": "12",
                         "kernel": "6.1", "arch": "x86_64", "uptime": 5, "boottime": 6, "agent": "0.1.0"})
        if cmd in ("kill", "signal", "unschedule", "get_process_stats"):
            found = self.running.get((query["id"], node))
            if found is None:
                return {"state": "ERROR", "data": f"no job {query['id']} runs here"}
            if cmd == "get_process_stats":
                return good(self._entry(query["id"]))
            if cmd == "kill":
                del self.running[(query["id"], node)]
                self._finish(node, found, {"state": "KILLED", "code": 143, "data": "killed"})
            return good(True)
        if cmd == "get_schedules":
            return good(self.schedules.get(node, []))
        if cmd == "get_processes_stats":
            return good([self._entry(j) for j, n in self.running if n == node])
        if cmd == "killall":
            for key in [k for k in self.running if k[1] == node]:
                self._finish(node, self.running.pop(key), {"state": "KILLED", "code": 143, "data": "killed"})
            return good(True)
        if cmd == "restart":
            if node not in self.lost:
                self.started(node)
            return good(True)
        if cmd in ("get_msgs", "del_msgs"):
            found_ = [r for r in self.records[node] if self._matches(r, query)][: query.get("limit", 1000)]
            if cmd == "del_msgs":
                self.records[node] = [r for r in self.records[node] if r not in found_]
                return good({"deleted": len(found_)})
            return good(found_)
        return {"state": "ERROR", "data": f"unknown command {cmd}"}

    @staticmethod
    def _entry(job: str) -> Dict[str, Any]:
        return {"id": job, "cmd": "execute", "domain": "d", "name": "n", "pid": 7, "state": "running", "cpu": 12.5,
                "rss": 1 << 20, "vms": 2 << 20, "read": 0, "written": 0, "processes": 1, "starttime": now() - 5000,
                "restarts": 0}

    @staticmethod
    def _matches(record: Dict[str, Any], query: Dict[str, Any]) -> bool:
        levels = query.get("levels", "*")
        wanted: Optional[set[int]] = None
        if levels != "*":
            wanted = set()
            for part in [str(n) for n in levels] if isinstance(levels, list) else levels.split(","):
                first, _, last = part.partition("-")
                wanted.update(range(int(first), int(last or first) + 1))
        return (
            query.get("jobid", record["jobid"]) == record["jobid"]
            and query.get("timefrom", 0) <= record["epoch"] <= query.get("timeto", 1 << 60)
            and record["id"] > query.get("after", 0)
            and (wanted is None or record["level"] in wanted)
        )

    @staticmethod
    def _script(source: bytes, data: object) -> Dict[str, Any]:
        space: Dict[str, Any] = {}
        exec(compile(source, "script", "exec"), space)
        if "action" not in space:
            return {}
        args = (json.loads(data) if data else {}) if isinstance(data, str) else data
        try:
            return {"level": 20, "data": json.dumps(space["action"](**(args or {})))}
        except Exception as e:
            return {"state": "ERROR", "code": 1, "critical": f"{type(e).__name__}: {e}"}
