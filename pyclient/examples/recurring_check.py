"""Run a check on a node at an interval in seconds, print the first results, and unschedule it.

    python recurring_check.py 1.1 60 3 -- curl -fsS http://localhost/health
"""

import sys

from jsclient import Client, clean


def main(node: str, every: str, count: str, *words: str) -> int:
    program, *args = words[1:] if words[0] == "--" else words
    gid, nid = map(int, node.split("."))
    with Client() as client:
        job = client.execute(gid, nid, program, args, recurring_period=int(every), name="check")
        # The first run always yields a result, later ones only when they fail or return data.
        for number, result in enumerate(job.results(timeout=int(every) * int(count) + 10), 1):
            print(number, result.state, clean(result.stdout.strip()))
            if number >= int(count):
                break
        job.unschedule()
    return 0


if __name__ == "__main__":
    if len(sys.argv) <= 4:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
