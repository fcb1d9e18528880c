"""Who is meant: `1.10`, `1.10,1.11`, `1.*`, `@web`, `@web,db`, `all`. Pure: text and nodes in, nodes out."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Iterable, List, Mapping, Optional, Sequence, Tuple, Union

from .errors import TARGETS, UsageError
from .nodes import Node
from .wire import NodeId

_NODE = re.compile(r"([1-9][0-9]{0,9})[.:]([1-9][0-9]{0,9})\Z")
_GRID = re.compile(r"([1-9][0-9]{0,9})[.:]\*\Z")
_MAX = 2**32 - 1


@dataclass(frozen=True)
class Target:
    """What a target's text says: nodes, whole grids and sets of roles; a node that one of them names is meant."""

    text: str
    nodes: Tuple[NodeId, ...] = ()
    grids: Tuple[int, ...] = ()
    #: Nodes that have every role of the set.
    roles: Tuple[str, ...] = ()
    everyone: bool = False

    @property
    def named(self) -> bool:
        """Whether it consists of nodes that are named one by one."""
        return bool(self.nodes) and not (self.grids or self.roles or self.everyone)

    def means(self, node: Node) -> bool:
        """Whether it means this node."""
        return (
            self.everyone
            or node.id in self.nodes
            or node.gid in self.grids
            or (bool(self.roles) and set(self.roles) <= set(node.roles))
        )

    def fanout(self) -> Optional[Tuple[int, List[str]]]:
        """Grid (0: any) and roles, when one fanout command says exactly the same."""
        if self.nodes:
            return None
        if self.everyone:
            return 0, ["*"]
        if len(self.grids) == 1 and not self.roles:
            return self.grids[0], ["*"]
        if self.roles and not self.grids:
            return 0, list(self.roles)
        return None


def parse(text: Union[str, NodeId, Target]) -> Target:
    """Reads a target; a `UsageError` says what it may be."""
    if isinstance(text, Target):
        return text
    if isinstance(text, tuple) and len(text) == 2:
        text = f"{text[0]}.{text[1]}"
    if not isinstance(text, str) or not text.strip():
        raise UsageError(f"the target is empty; it may be: {TARGETS}")
    nodes: List[NodeId] = []
    grids: List[int] = []
    roles: List[str] = []
    everyone = False
    in_roles = False
    for part in text.split(","):
        part = part.strip()
        node, grid = _NODE.match(part), _GRID.match(part)
        if part in ("all", "*", "*.*"):
            everyone, in_roles = True, False
        elif node:
            if max(int(node[1]), int(node[2])) > _MAX:
                raise UsageError(f"{part}: the numbers of a node go up to {_MAX}")
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
            raise UsageError(f"{part or text!r} is no target; it may be: {TARGETS}")
    if roles and (nodes or grids or everyone):
        raise UsageError(f"{text}: roles and nodes do not mix in one target; it may be: {TARGETS}")
    if "*" in roles:
        everyone, roles = True, []
    return Target(text, tuple(dict.fromkeys(nodes)), tuple(dict.fromkeys(grids)), tuple(dict.fromkeys(roles)), everyone)


def parse_except(texts: Union[None, str, Sequence[str]]) -> List[Target]:
    """Reads `--except`, which may be given more than once."""
    if not texts:
        return []
    return [parse(text) for text in ([texts] if isinstance(texts, str) else texts)]


@dataclass(frozen=True)
class Selection:
    """Whom a target means now."""

    #: Nodes that are there.
    live: List[NodeId]
    #: Nodes that are known and not there.
    offline: List[Node]
    #: Nodes that were named and never seen.
    unknown: List[NodeId]
    #: Those of `live` whose agents said that they stop, and were not seen since.
    stopped: List[Node] = field(default_factory=list)
    #: Those of `unknown` that were revoked, and when (ms).
    revoked: Mapping[NodeId, int] = field(default_factory=dict)
    #: Whether nodes that a controller still counts as live were left out of `live`.
    narrowed: bool = False

    @property
    def present(self) -> Selection:
        """The same with the stopped nodes among those that are not there, for commands that only look."""
        if not self.stopped:
            return self
        away = {node.id for node in self.stopped}
        offline = sorted([*self.offline, *self.stopped], key=lambda node: node.id)
        return replace(self, live=[n for n in self.live if n not in away], offline=offline, stopped=[], narrowed=True)

    @property
    def everybody(self) -> List[NodeId]:
        """All three together, in order."""
        return sorted([*self.live, *(n.id for n in self.offline), *self.unknown])


def select(target: Target, known: Iterable[Node], but: Sequence[Target] = ()) -> Selection:
    """Picks from the known nodes those that are meant, without those of `but`."""
    known = list(known)
    chosen = [n for n in known if target.means(n) and not any(t.means(n) for t in but)]
    seen = {n.id for n in known}
    # Of a node that was never seen nothing is known but its number, so roles cannot leave it out.
    unknown = [n for n in target.nodes if n not in seen and not any(t.means(Node(n.gid, n.nid)) for t in but)]
    stopped = [n for n in chosen if n.live and n.stopped]
    return Selection([n.id for n in chosen if n.live], [n for n in chosen if not n.live], unknown, stopped)
