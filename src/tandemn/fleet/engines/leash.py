"""Hold an engine on a leash: `python -m tandemn.fleet.engines.leash --grace-s N -- COMMAND…`.

The engine must not outlive whoever started the leash, not even where that one is killed with SIGKILL
and can do nothing any more. So the leash stays between the two: it reads a pipe of which its starter
alone holds the writing end, and ends the engine's whole process group (workers included) when the pipe
closes, when it is told to by SIGTERM, and when the engine itself ends. Where the leash is killed too, the
kernel kills the engine (Linux only).

Its exit status is the engine's, or 128 + the signal that ended it. Standard library only: it must start fast.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

#: `prctl` option of <linux/prctl.h>: the signal that the kernel sends when the parent dies.
PR_SET_PDEATHSIG = 1
#: Command not found or not executable, as shells report it.
CANNOT_START = 127


def main() -> int:
    """Run the command named on the command line; return the exit status that is to be ours."""
    option, grace, separator, *command = sys.argv[1:]
    if option != "--grace-s" or separator != "--" or not command:
        print("usage: leash --grace-s N -- COMMAND…", file=sys.stderr)  # noqa: T201 - it is a program
        return 2
    wakeup = _wake_on_signals()
    _wake_with_starter()
    leash = os.getpid()
    try:
        # Single-threaded here, so that running code between fork and exec is safe.
        engine = subprocess.Popen(  # noqa: S603 - running the given command is its purpose
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: _die_with(leash),  # noqa: PLW1509
        )
    except OSError as error:
        print(f"cannot start {command[0]}: {error.strerror}", file=sys.stderr)  # noqa: T201 - it goes to the log
        return CANNOT_START
    return _hold(engine, wakeup, float(grace))


def _wake_on_signals() -> int:
    """Make SIGTERM, SIGINT and SIGCHLD readable as bytes of the descriptor that is returned."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    return reader


def _wake_with_starter() -> None:
    """Ask the kernel to wake us when our starter dies: where we are stopped, we would not see the pipe close."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGCONT)


def _die_with(leash: int) -> None:
    """Ask the kernel to kill this process with its parent; die now where that is dead already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != leash:
            os._exit(CANNOT_START)


def _hold(engine: subprocess.Popen[bytes], wakeup: int, grace_s: float) -> int:
    kill_at: float | None = None
    while engine.poll() is None:
        wait_s = None if kill_at is None else max(0.0, kill_at - time.monotonic())
        ready, _, _ = select.select([sys.stdin.fileno(), wakeup], [], [], wait_s)
        if sys.stdin.fileno() in ready or not ready:
            break  # The starter is gone, or the grace is over.
        told = os.read(wakeup, 512) if wakeup in ready else b""
        if kill_at is None and (signal.SIGTERM in told or signal.SIGINT in told):
            kill_at = time.monotonic() + grace_s
            engine.terminate()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(engine.pid, signal.SIGKILL)
    status = engine.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
