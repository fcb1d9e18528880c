"""Start a long job and print its output while it runs; Ctrl-C ends it.

    python follow_a_job.py 1.1 -- make -C /src
"""

import sys

from jsclient import Client, clean


def main(node: str, *words: str) -> int:
    program, *args = words[1:] if words[0] == "--" else words
    gid, nid = map(int, node.split("."))
    with Client() as client:
        job = client.execute(gid, nid, program, args, stream=True)
        try:
            for line in job.lines():
                print(clean(line.text))
        except KeyboardInterrupt:
            job.kill()
        return job.wait(30).code


if __name__ == "__main__":
    if len(sys.argv) <= 2:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
