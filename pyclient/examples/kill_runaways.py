"""Print and kill every job that uses more than a limit, in percent of one core.

    python kill_runaways.py all 95
"""

import sys

from jsclient import Client, clean


def main(target: str = "all", limit: str = "95") -> int:
    with Client() as client:
        for result in client.target(target).processes():
            for entry in result.value if result.ok else []:
                if entry["cpu"] > float(limit):
                    print(f"{result.node}: ending {clean(entry['id'])} ({entry['cpu']:.0f}% cpu)")
                    client.kill(*result.node, entry["id"])
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
