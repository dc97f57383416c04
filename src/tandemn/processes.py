"""Processes known by pid and start time, and the machine that they are on: a pid alone may be another's by now."""

from __future__ import annotations

import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

#: Two readings of one process's start time may differ by this much, in seconds.
_SAME_START_S = 0.02


def host_id() -> str:
    """Name the place whose pids these are: machine, boot and pid namespace (a container has its own)."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    return "/".join(parts)


def start_time(pid: int) -> float:
    """Return when a process started, in seconds by a clock that nobody sets: on Linux, since the machine's boot.

    psutil adds the boot's time of day to it, which moves by a second whenever the clock is corrected across one:
    every process would then seem to be another.

    Source: proc_pid_stat(5), field 22.

    Raises:
        psutil.NoSuchProcess: no such process.
    """
    if sys.platform != "linux":
        return psutil.Process(pid).create_time()
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        raise psutil.NoSuchProcess(pid) from None
    # The name, in parentheses, may hold anything; the second field after it is the third of all.
    ticks = int(stat[stat.rindex(b")") + 2 :].split(None, 20)[19])
    return ticks / os.sysconf("SC_CLK_TCK")


def age_s(started: float) -> float:
    """Return how long ago a process started whose `start_time` this is, in seconds."""
    now = time.time() if sys.platform != "linux" else time.clock_gettime(time.CLOCK_BOOTTIME)
    return now - started


def living(pid: int, started: float) -> psutil.Process | None:
    """Return the living process of this pid and `start_time`; a zombie has ended, its parent has just not asked."""
    try:
        process = psutil.Process(pid)
        same = abs(start_time(pid) - started) < _SAME_START_S
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return None
