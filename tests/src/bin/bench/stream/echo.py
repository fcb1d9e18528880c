"""Types into a shell on a node, and prints as JSON how long each key took to be shown, in milliseconds."""

import json
import os
import pty
import select
import sys
import time

node, count = sys.argv[1], int(sys.argv[2])
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.executable, [sys.executable, "-m", "jsclient.cli", "shell", node, "--", "sh", "-c", "echo ready; cat"])


def shown(mark):
    """Wait until the mark is shown."""
    seen = b""
    while mark not in seen:
        ready, _, _ = select.select([terminal], [], [], 60)
        some = os.read(terminal, 65536) if ready else b""
        if not some:
            sys.exit(f"{mark} was not shown, but {seen}")
        seen += some


shown(b"ready")
delays = []
for number in range(count):
    key = b"abcdefghijklmnopqrstuvwxyz"[number % 26 :][:1]
    start = time.perf_counter()
    os.write(terminal, key)
    shown(key)
    delays.append(1e3 * (time.perf_counter() - start))
    if number % 26 == 25:
        os.write(terminal, b"\r")
        shown(b"z\r\n")
    # Nobody types faster.
    time.sleep(0.03)
os.write(terminal, b"\r\x04")
_, status = os.waitpid(pid, 0)
if status:
    sys.exit(f"jsctl shell ended with {os.waitstatus_to_exitcode(status)}")
print(json.dumps(delays))
