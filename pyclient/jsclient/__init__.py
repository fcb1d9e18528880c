"""Commands for a fleet of nodes, through the Redis that its controllers serve.

    from jsclient import Client

    client = Client("redis://localhost:6379")
    print(client.execute(1, 10, "uname", ["-a"]).wait(10).stdout)
    for result in client.target("@web").execute("uptime"):
        print(result.node, result.stdout)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .client import Client
    from .errors import (
        Error,
        FleetFailed,
        Gone,
        JobFailed,
        NobodyMatched,
        NoController,
        Unavailable,
        Undecodable,
        UsageError,
        WaitTimeout,
    )
    from .fleet import Fleet
    from .grants import Grant
    from .job import Job
    from .nodes import Node
    from .targeted import Targeted
    from .text import clean
    from .wire import Command, JobInfo, NodeId, Record, Result

#: That of the programs, in Cargo.toml.
__version__ = "0.2.0-dev"

__all__ = [
    "Client",
    "Command",
    "Error",
    "Fleet",
    "FleetFailed",
    "Gone",
    "Grant",
    "Job",
    "JobFailed",
    "JobInfo",
    "NoController",
    "NobodyMatched",
    "Node",
    "NodeId",
    "Record",
    "Result",
    "Targeted",
    "Unavailable",
    "Undecodable",
    "UsageError",
    "WaitTimeout",
    "clean",
]

_HOMES = {
    "client": ("Client",),
    "targeted": ("Targeted",),
    "fleet": ("Fleet",),
    "grants": ("Grant",),
    "job": ("Job",),
    "nodes": ("Node",),
    "text": ("clean",),
    "wire": ("Command", "JobInfo", "NodeId", "Record", "Result"),
}


def __getattr__(name: str) -> object:
    # Each name is imported when it is first used: `jsctl --help` and a script that only needs the errors
    # need not wait for everything else.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = next((module for module, names in _HOMES.items() if name in names), "errors")
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value
