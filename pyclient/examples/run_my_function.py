"""Run a function of this file on every node of a target; the nodes need Python.

    python run_my_function.py @web /etc
"""

import sys

from jsclient import Client, clean


def largest(folder, count=3):
    """Return size and name of the largest files of a folder. It is sent alone, so it imports its modules itself."""
    import os

    sizes = []
    for entry in os.scandir(folder):
        if entry.is_file(follow_symlinks=False):
            sizes.append((entry.stat().st_size, entry.name))
    return sorted(sizes, reverse=True)[:count]


def main(target: str = "@web", folder: str = "/etc") -> int:
    with Client() as client:
        fleet = client.run_script(target, function=largest, data={"folder": folder}, max_time=30)
        for result in fleet:
            if result.ok:
                for size, name in result.value:
                    print(f"{result.node}  {size:>10}  {clean(name)}")
        fleet.raise_for_status()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
