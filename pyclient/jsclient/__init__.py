"""Commands for a fleet of nodes, through the Redis that its controllers serve.

    from jsclient import Client

    client = Client("redis://localhost:6379")
    print(client.execute(1, 10, "uname", ["-a"]).wait(10).stdout)
    for result in client.target("@web").execute("uptime"):
        print(result.node, result.stdout)
"""

from .client import Client, Targeted
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
from .job import Job
from .nodes import Node
from .wire import Command, JobInfo, NodeId, Record, Result

__version__ = "0.1.0"

__all__ = [
    "Client",
    "Command",
    "Error",
    "Fleet",
    "FleetFailed",
    "Gone",
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
]
