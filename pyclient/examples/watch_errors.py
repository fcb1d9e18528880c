"""Print warnings, errors and critical messages of all nodes as they are written, until Ctrl-C.

    python watch_errors.py all
"""

import sys
import time

from jsclient import Client, clean

NAMES = {7: "warning", 8: "error", 9: "CRITICAL"}


def main(target: str = "all", seconds: str = "inf") -> int:
    end = time.monotonic() + float(seconds)
    with Client() as client:
        records = client.target(target).follow(levels="7-9", until=lambda: time.monotonic() > end)
        try:
            for record in records:
                print(f"{record.node} {NAMES[record.level]:8} {clean(record.jobname or record.jobid)}: {clean(record.data)}")
        except KeyboardInterrupt:
            pass
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
