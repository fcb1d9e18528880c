"""Write a file to nodes, and reload the service where the file has changed.

    python push_config.py @web ./nginx.conf /etc/nginx/nginx.conf nginx
"""

import sys

from jsclient import Client


def main(target: str, local: str, path: str, service: str) -> int:
    with Client() as client:
        fleet = client.put(target, local, path, mode="0644").wait(60).raise_for_status()
        changed = [node for node, result in fleet.results.items() if result.value["changed"]]
        print(f"{len(changed)} of {len(fleet)} nodes had a different file")
        if changed:
            nodes = ",".join(map(str, changed))
            client.target(nodes).execute("systemctl", ["reload", service]).wait(60).raise_for_status()
            print("reloaded on", nodes)
    return 0


if __name__ == "__main__":
    if len(sys.argv) <= 4:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
