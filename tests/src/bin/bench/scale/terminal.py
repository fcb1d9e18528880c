"""Runs `jsctl` on a terminal, and prints as JSON its time, its memory and what its progress bar has shown."""

import json
import os
import pty
import re
import resource
import sys
import time

# Flags come before the words after `--`.
words = sys.argv[1:]
at = words.index("--timeout")
flags, words = words[at:], words[:at]
place = words.index("--") if "--" in words else len(words)
command = [sys.executable, "-m", "jsclient.cli", *words[:place], *flags, *words[place:]]

start = time.monotonic()
pid, terminal = pty.fork()
if pid == 0:
    os.execv(command[0], command)
shown = bytearray()
steps = set()
while True:
    try:
        some = os.read(terminal, 65536)
    except OSError:
        break
    if not some:
        break
    shown = shown[-4096:] + some
    steps.update(re.findall(rb"([0-9]+) of [0-9]+ returned", bytes(shown)))
_, status = os.waitpid(pid, 0)
tail = shown[-1000:].decode("utf-8", "replace")
ok = re.search(r"([0-9]+) OK, 0 failed", tail)
print(json.dumps({
    "code": os.waitstatus_to_exitcode(status),
    "ok": int(ok[1]) if ok else 0,
    "seconds": time.monotonic() - start,
    "megabytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000,
    "steps": len(steps),
    "tail": tail,
}))
