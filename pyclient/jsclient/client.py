"""The client of one Redis and of all nodes behind its controllers."""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Union

from . import keys, scripts
from ._session import TargetLike
from ._timeouts import DEFAULT, Timeout
from .errors import NoMatchingNodesError
from .fleet import Fleet
from .grants import grant_fields, write_grants
from .job import Job, nodes_of
from .keys import NodeId
from .node_commands import NodeCommands
from .queries import Queries
from .target import parse_excludes, parse_target
from .target_commands import TargetCommands


class Client(Queries, NodeCommands):
    """Sends commands to nodes through Redis. Safe for threads; connections are opened when needed.

    `url`: `redis://user:pw@host:port/db`, `rediss://…`, `unix:///path`, or `host:port`; several separated by commas
    for a cluster; `sentinel://host,host/group`. Default: the environment variable `JSCTL_REDIS`, else localhost.
    `timeout`: seconds that methods wait for a node by default; `None` waits without limit. `by`: the name for the
    audit list, by default the login name. `options` are passed to redis-py (`ssl_ca_certs=…`, for example).
    """

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client of {self.connection.where}>"

    # Many nodes.

    def target(
        self, target: TargetLike, *, exclude: Union[None, str, Sequence[str]] = None, any: bool = False
    ) -> TargetCommands:
        """Return the nodes of a target: `client.target("@web").execute("uname")` runs a program on all of them.

        `exclude` is one target or several that are left out. `any` picks one random node of those that are online.
        Raise `UsageError` when a target cannot be parsed.
        """
        return TargetCommands(self, parse_target(target), parse_excludes(exclude), any)

    def run_script(
        self,
        target: TargetLike,
        *,
        path: Optional[str] = None,
        source: Optional[str] = None,
        function: Optional[Callable[..., Any]] = None,
        language: Optional[str] = None,
        data: Any = "",
        **options: Any,
    ) -> Fleet:
        """Run a script (`path` or `source`) or a Python function on every node of a target.

        The source is stored in Redis under its hash; each node fetches it once. A function `action` in it (or the
        given function) is called with `data`, and its return value is the `value` of the result. `language` is
        `py` or `lua`. Raise `UsageError` for a syntax error or for a function that uses names from outside.
        """
        script = scripts.load_script(path, source, function, language)
        return self.target(target).run_script(script, data=data, **options)

    def put(self, target: TargetLike, local: Union[str, bytes], path: str, **options: Any) -> Fleet:
        """Write a file (a local path, or bytes; of those at most 16 MiB) to `path` on every node of a target."""
        return self.target(target).put(local, path, **options)

    # Jobs.

    def job(self, job_id: str) -> Job:
        """Return the job with this id, which is not looked up yet; its methods raise `JobNotFoundError`."""
        return Job(self, keys.check_id(job_id), found=True)

    def cancel(self, job_id: str, timeout: Timeout = DEFAULT) -> Dict[NodeId, str]:
        """Withdraw a job from the nodes that have not taken it; it ends `KILLED` there.

        Return for each node an empty text when it was withdrawn, else the reason why not. Raise `JobNotFoundError`
        when Redis does not know the job.
        """
        info = self.job_info(job_id)
        return self._withdraw({node: job_id for node in info.open or nodes_of(info)}, timeout)

    # Grants.

    def grant(
        self,
        target: TargetLike,
        *,
        roles: Iterable[str] = (),
        labels: Union[Mapping[str, str], Iterable[str]] = (),
        hosts: Iterable[str] = (),
        remove: bool = False,
    ) -> Dict[NodeId, List[str]]:
        """Grant roles, labels (`{"site": "ams"}` or `["site=ams"]`) and host names to the nodes of a target.

        With `remove` take them back. Controllers use a grant that a node claims within seconds, and notice a removal
        within minutes. Return for each node the changed fields (`role:web`). Raise `NoMatchingNodesError`, without
        a change, when a node was never seen.
        """
        changed_fields = grant_fields(roles, labels, hosts)
        chosen = self.select(parse_target(target))
        # A node that was enrolled with grants has them before it is seen.
        exist = self.connection.bulk([("EXISTS", keys.grant_hash(node)) for node in chosen.unknown])
        never_seen = [node for node, exists in zip(chosen.unknown, exist) if not exists]
        if never_seen or not chosen.nodes:
            reason = self.target(target).explain_no_nodes(dataclasses.replace(chosen, unknown=never_seen))
            raise NoMatchingNodesError(
                f"{reason}; nothing was changed: start its agent first, or name roles to jsacc enroll"
            )
        return write_grants(self, chosen.nodes, changed_fields, remove)
