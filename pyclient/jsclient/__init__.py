"""Commands, scripts and services on large fleets of nodes, over Redis.

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
        JobNotFoundError,
        NoControllerError,
        NoMatchingNodesError,
        RedisUnavailableError,
        ResultDecodeError,
        StreamBrokenError,
        UsageError,
        WaitTimeoutError,
    )
    from .fleet import Fleet
    from .frames import Chunk, Line
    from .grants import Grant
    from .job import Job
    from .keys import NodeId
    from .nodes import Node
    from .result import FleetFailedError, JobFailedError, Result
    from .target_commands import TargetCommands
    from .text import clean
    from .wire import Command, JobInfo, Record

#: The version of the programs in Cargo.toml.
__version__ = "0.2.0-dev"

__all__ = [
    "Chunk",
    "Client",
    "Command",
    "Error",
    "Fleet",
    "FleetFailedError",
    "Grant",
    "Job",
    "JobFailedError",
    "JobInfo",
    "JobNotFoundError",
    "Line",
    "NoControllerError",
    "NoMatchingNodesError",
    "Node",
    "NodeId",
    "Record",
    "RedisUnavailableError",
    "Result",
    "ResultDecodeError",
    "StreamBrokenError",
    "TargetCommands",
    "UsageError",
    "WaitTimeoutError",
    "clean",
]

#: Module of each public name; those of `errors` are not listed.
_MODULES = {
    "client": ("Client",),
    "fleet": ("Fleet",),
    "frames": ("Chunk", "Line"),
    "grants": ("Grant",),
    "job": ("Job",),
    "keys": ("NodeId",),
    "nodes": ("Node",),
    "result": ("FleetFailedError", "JobFailedError", "Result"),
    "target_commands": ("TargetCommands",),
    "text": ("clean",),
    "wire": ("Command", "JobInfo", "Record"),
}


def __getattr__(name: str) -> object:
    # Imports a name at its first use, so that `jsctl --help` and scripts that need only the errors start quickly.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = next((module for module, names in _MODULES.items() if name in names), "errors")
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value
