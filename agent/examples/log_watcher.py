"""Watches a log file: each run reports the lines that are new and match.

    jsctl script run 1.10 ./log_watcher.py --every 30 \\
        --data '{"file": "/var/log/syslog", "pattern": "error|fail"}'

Data: `file`; `pattern` (a regular expression); `level` of the messages (7); `most` lines a run (100);
`state`, the file that remembers the place (default: in the agent's folder); `from_start`, to read what
is there at the first run too. A run that finds nothing writes no result, so a recurring job stays
quiet. A log that was rotated or cut is read from its start.
"""
import hashlib
import json
import os
import re


def load(path):
    try:
        with open(path) as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def save(path, place):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".new", "w") as file:
        json.dump(place, file)
    os.replace(path + ".new", path)


def action(file, pattern="error", level=7, most=100, state=None, from_start=False):
    wanted = re.compile(pattern.encode())
    if state is None:
        name = hashlib.sha256(("%s\n%s" % (file, pattern)).encode()).hexdigest()[:16]
        state = os.path.join(os.environ.get("AGENT_HOME", "/tmp"), "tmp", "log_watcher-%s.json" % name)
    place = load(state)
    matches = []
    with open(file, "rb") as log_file:
        about = os.fstat(log_file.fileno())
        if place is None:
            offset = 0 if from_start else about.st_size
        elif place["inode"] != about.st_ino or place["offset"] > about.st_size:
            offset = 0
        else:
            offset = place["offset"]
        log_file.seek(offset)
        for line in log_file:
            # The last line may still be in the writing.
            if not line.endswith(b"\n") or len(matches) >= most:
                break
            offset += len(line)
            if wanted.search(line):
                matches.append(line.decode("utf-8", "replace").rstrip("\r\n"))
    for line in matches:
        log(level, line)
    stat("matches", len(matches), "c")
    save(state, {"inode": about.st_ino, "offset": offset})
    return {"file": file, "matches": matches} if matches else None
