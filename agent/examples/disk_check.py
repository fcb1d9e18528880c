"""Disks and inodes: warns before a file system is full.

    jsctl script run 1.10 ./disk_check.py --data '{"warn": 80, "critical": 90}'

Data, all optional: `path` or `paths` (default: every file system on a disk), `warn` and `critical` (percent used).
Result: a list of {path, used, inodes, state}. Status 1 when something is critical, so that a
recurring job (`--every`) delivers a result exactly then.
"""
import os
import sys


def mounts():
    """Where file systems on disks are mounted, each device once."""
    seen = {}
    with open("/proc/mounts") as table:
        for line in table:
            device, path = line.split()[:2]
            if device.startswith("/dev/") and not device.startswith("/dev/loop"):
                seen.setdefault(device, path.replace("\\040", " "))
    return sorted(seen.values()) or ["/"]


def percent(used, total):
    return round(100.0 * used / total, 1) if total else 0.0


def action(path=None, paths=None, warn=80, critical=90):
    found, worst = [], "ok"
    for path in paths or ([path] if path else mounts()):
        disk = os.statvfs(path)
        # Blocks that are kept back for root count as used: nobody else can have them.
        used = disk.f_blocks - disk.f_bfree
        blocks = percent(used, used + disk.f_bavail)
        inodes = percent(disk.f_files - disk.f_ffree, disk.f_files)
        key = "root" if path == "/" else path.strip("/").replace("/", "_")
        stat("disk." + key, blocks)
        stat("inodes." + key, inodes)
        most = max(blocks, inodes)
        state = "critical" if most >= critical else "warning" if most >= warn else "ok"
        if state == "critical":
            log(9, "%s: %s %% of the space and %s %% of the inodes are used" % (path, blocks, inodes))
            worst = state
        elif state == "warning":
            log(7, "%s: %s %% of the space and %s %% of the inodes are used" % (path, blocks, inodes))
        found.append({"path": path, "used": blocks, "inodes": inodes, "state": state})
    result(found)
    if worst == "critical":
        sys.exit(1)
