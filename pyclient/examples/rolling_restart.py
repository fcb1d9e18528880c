"""Restart a service on every node of a target, one at a time; stop at the first failure.

    python rolling_restart.py @web nginx
"""

import sys

from jsclient import Client


def main(target: str, service: str) -> int:
    with Client() as client:
        fleet = client.target(target).execute(
            "systemctl", ["restart", service], max_time=60, batch=1, max_failures=0
        )
        for result in fleet.stream(timeout=90):
            print(result.node, "restarted" if result.ok else f"FAILED: {result.sentence()}")
        for node in fleet.skipped:
            print(node, "skipped")
        return 0 if fleet.ok else 1


if __name__ == "__main__":
    if len(sys.argv) <= 2:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
