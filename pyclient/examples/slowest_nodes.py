"""Print the response time of each node, the slowest first.

    python slowest_nodes.py all
"""

import sys
import time

from jsclient import Client


def main(target: str = "all") -> int:
    with Client() as client:
        took = {}
        started = time.monotonic()
        fleet = client.target(target).ping()
        for result in fleet.stream(timeout=10):
            took[result.node] = (time.monotonic() - started) * 1000
        for node in fleet.missing:
            print(f"{node}  no answer")
        for node, ms in sorted(took.items(), key=lambda item: -item[1])[:20]:
            print(f"{node}  {ms:.1f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
