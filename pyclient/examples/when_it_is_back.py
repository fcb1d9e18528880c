"""Queue a command for a node that may be offline, for an hour at most, and wait for its result.

    python when_it_is_back.py 1.10 -- apt-get -y upgrade
"""

import sys

from jsclient import Client, WaitTimeoutError


def main(node: str, *words: str) -> int:
    program, *args = words[1:] if words[0] == "--" else words
    gid, nid = map(int, node.split("."))
    with Client() as client:
        job = client.execute(gid, nid, program, args, expires=3600)
        while True:
            try:
                result = job.wait(timeout=5)
                break
            except WaitTimeoutError as e:
                print(e)
            except KeyboardInterrupt:
                print("withdrawn" if job.cancel() else "too late, it has started")
                return 1
        print(result.sentence())
        return 0 if result.ok else 1


if __name__ == "__main__":
    if len(sys.argv) <= 2:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
