"""Print every disk above a limit in percent; exit with 1 when there is one.

    python disk_full.py all 90
"""

import sys

from jsclient import Client, clean


def main(target: str = "all", limit: str = "90") -> int:
    found = 0
    with Client() as client:
        for result in client.target(target).info("disk"):
            for disk in result.value if result.ok else []:
                percent = 100 * disk["used"] / disk["total"] if disk["total"] else 0
                if percent >= float(limit) and not disk["readonly"]:
                    found += 1
                    print(f"{result.node}: {clean(disk['mount'])} is {percent:.0f}% full")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
