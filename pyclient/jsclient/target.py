"""Targets: their grammar (`1.10`, `1.10,1.11`, `1.*`, `@web`, `@web,db`, `all`), and the nodes that they match. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Iterable, List, Mapping, Optional, Sequence, Tuple, Union

from .errors import TARGETS, UsageError
from .keys import NodeId
from .nodes import Node

_NODE = re.compile(r"([1-9][0-9]{0,9})[.:]([1-9][0-9]{0,9})\Z")
_GRID = re.compile(r"([1-9][0-9]{0,9})[.:]\*\Z")
_MAX_ID = 2**32 - 1


@dataclass(frozen=True)
class Target:
    """A parsed target. It matches a node that one of its parts names."""

    text: str
    nodes: Tuple[NodeId, ...] = ()
    grids: Tuple[int, ...] = ()
    #: It matches nodes that have all of these roles.
    roles: Tuple[str, ...] = ()
    all_nodes: bool = False

    @property
    def explicit(self) -> bool:
        """Return whether it only names nodes one by one."""
        return bool(self.nodes) and not (self.grids or self.roles or self.all_nodes)

    def matches(self, node: Node) -> bool:
        """Return whether it matches this node."""
        return (
            self.all_nodes
            or node.id in self.nodes
            or node.gid in self.grids
            or (bool(self.roles) and set(self.roles) <= set(node.roles))
        )

    def fanout(self) -> Optional[Tuple[int, List[str]]]:
        """Return grid (0: any) and roles of the one fanout command with the same meaning; `None` when there is none."""
        if self.nodes:
            return None
        if self.all_nodes:
            return 0, ["*"]
        if len(self.grids) == 1 and not self.roles:
            return self.grids[0], ["*"]
        if self.roles and not self.grids:
            return 0, list(self.roles)
        return None


def parse_target(text: Union[str, NodeId, Target]) -> Target:
    """Parse a target; raise `UsageError` with the accepted forms."""
    if isinstance(text, Target):
        return text
    if isinstance(text, tuple) and len(text) == 2:
        text = f"{text[0]}.{text[1]}"
    if not isinstance(text, str) or not text.strip():
        raise UsageError(f"the target is empty; it may be: {TARGETS}")
    nodes: List[NodeId] = []
    grids: List[int] = []
    roles: List[str] = []
    all_nodes = False
    in_roles = False
    for part in text.split(","):
        part = part.strip()
        node, grid = _NODE.match(part), _GRID.match(part)
        if part in ("all", "*", "*.*"):
            all_nodes, in_roles = True, False
        elif node:
            if max(int(node[1]), int(node[2])) > _MAX_ID:
                raise UsageError(f"{part}: the numbers of a node go up to {_MAX_ID}")
            nodes.append(NodeId(int(node[1]), int(node[2])))
            in_roles = False
        elif grid:
            grids.append(int(grid[1]))
            in_roles = False
        elif part.startswith("@") and len(part) > 1:
            roles.append(part[1:])
            in_roles = True
        elif in_roles and part and not part[0].isdigit():
            # "@web,db": the names after a role are roles too.
            roles.append(part)
        else:
            raise UsageError(f"{part or text!r} is not a target; it may be: {TARGETS}")
    if roles and (nodes or grids or all_nodes):
        raise UsageError(f"{text}: roles and nodes do not mix in one target; it may be: {TARGETS}")
    if "*" in roles:
        all_nodes, roles = True, []
    return Target(text, tuple(dict.fromkeys(nodes)), tuple(dict.fromkeys(grids)), tuple(dict.fromkeys(roles)), all_nodes)


def parse_excludes(texts: Union[None, str, Sequence[str]]) -> List[Target]:
    """Parse the targets to leave out: none, one, or a list."""
    if not texts:
        return []
    return [parse_target(text) for text in ([texts] if isinstance(texts, str) else texts)]


@dataclass(frozen=True)
class TargetNodes:
    """The nodes that a target matches at one time."""

    #: Nodes that are online.
    live: List[NodeId]
    #: Known nodes that are offline.
    offline: List[Node]
    #: Named nodes that no controller has seen.
    unknown: List[NodeId]
    #: Those of `live` whose agents have announced their stop and were not seen since.
    stopped: List[Node] = field(default_factory=list)
    #: Those of `unknown` that were revoked, with the time (ms since 1970).
    revoked: Mapping[NodeId, int] = field(default_factory=dict)
    #: Whether nodes that a controller counts as live were moved out of `live`.
    is_narrowed: bool = False

    @property
    def without_stopped(self) -> TargetNodes:
        """Return the same nodes with the stopped ones among the offline ones, for read-only commands."""
        if not self.stopped:
            return self
        stopped = {node.id for node in self.stopped}
        offline = sorted([*self.offline, *self.stopped], key=lambda node: node.id)
        live = [node for node in self.live if node not in stopped]
        return replace(self, live=live, offline=offline, stopped=[], is_narrowed=True)

    @property
    def nodes(self) -> List[NodeId]:
        """Return the live, offline and unknown nodes, sorted."""
        return sorted([*self.live, *(n.id for n in self.offline), *self.unknown])


def match_nodes(target: Target, known: Iterable[Node], exclude: Sequence[Target] = ()) -> TargetNodes:
    """Return the nodes that the target matches and no target of `exclude` matches."""
    known = list(known)
    chosen = [n for n in known if target.matches(n) and not any(t.matches(n) for t in exclude)]
    seen = {n.id for n in known}
    # Only the id of a node that was never seen is known, so roles cannot exclude it.
    unknown = [n for n in target.nodes if n not in seen and not any(t.matches(Node(n.gid, n.nid)) for t in exclude)]
    stopped = [n for n in chosen if n.live and n.stopped]
    return TargetNodes([n.id for n in chosen if n.live], [n for n in chosen if not n.live], unknown, stopped)
