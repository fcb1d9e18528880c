"""Count the failed ones of the last jobs by their command.

    python failed_lately.py 1000
"""

import sys
from collections import defaultdict

from jsclient import Client, clean


def main(count: str = "1000") -> int:
    failed = defaultdict(list)
    with Client() as client:
        for job in client.jobs(int(count)):
            for node, result in job.results.items():
                if not result.ok:
                    failed[str(result.args.get("cmd") or result.cmd)].append((node, result))
    for command, results in sorted(failed.items(), key=lambda item: -len(item[1])):
        nodes = sorted({str(node) for node, _ in results})
        print(f"{len(results):>4}  {clean(command)}  on {', '.join(nodes)}: {results[0][1].sentence()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
