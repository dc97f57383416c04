"""Processes known by pid and start time, and the machine that they are on: a pid alone may be another's by now."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path

import psutil

#: Two readings of one process's start time may differ by this much, in seconds.
SAME_START_S = 0.02


def host_id() -> str:
    """Name the place whose pids these are: machine, boot and pid namespace (a container has its own)."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    return "/".join(parts)


def living(pid: int, started: float) -> psutil.Process | None:
    """Return the living process of this pid and start time; a zombie has ended, its parent has just not asked."""
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) < SAME_START_S
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None
