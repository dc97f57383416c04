"""A process of this machine that outlives its starter: at most one for each folder, found again by any other process.

It holds the lock of its folder from before its first instruction until its end: it gets it from whoever starts it,
open and locked. So of two that start it at once one does, and a lock that can be had means that nothing runs. The
leashes of a fleet's engines inherit it: where the fleet was killed, the next one starts when its engines are gone.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import psutil
from pydantic import BaseModel, ValidationError

from tandemn import processes

if TYPE_CHECKING:
    import signal
    from collections.abc import Mapping, Sequence
    from pathlib import Path

#: What ends by itself within this time, in seconds, has not started well.
YOUNG_S = 5.0
#: A log greater than this, in bytes, is put aside when the process starts.
LOG_BYTES = 10_000_000
#: Tries for a lock that somebody may hold just to look, and the wait between them in seconds.
LOCK_TRIES, LOCK_WAIT_S = 5, 0.01


class ProcessRecord(BaseModel):
    """`process.json`: which process it is."""

    pid: int
    started: float
    """`processes.start_time`: a pid alone may have been given to another."""


class Detached:
    """The process of one folder.

    Args:
        folder: holds its lock and record; its command line must name this folder, or something in it.
        log: what it prints is appended here.
    """

    def __init__(self, folder: Path, log: Path) -> None:
        self._folder = folder
        self._log = log

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> bool:
        """Start it; False where it runs."""
        lock = self._lock()
        if lock is None:
            return False
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            self._put_log_aside()
            with self._log.open("ab") as log:
                # A session of its own and nothing inherited but the lock: it must neither die with a terminal
                # nor hold open the pipe of whoever captures our output.
                process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=(lock,),
                    cwd="/",
                    env=environment,
                )
        finally:
            os.close(lock)
        with suppress(psutil.NoSuchProcess):
            self._record(psutil.Process(process.pid))
        # It is reaped when it ends; who waits for it sleeps in the kernel.
        threading.Thread(target=process.wait, name="detached", daemon=True).start()
        return True

    def is_running(self) -> bool:
        """Whether it lives, however young it is."""
        if not self._folder.exists():
            return False
        lock = self._lock()
        if lock is None:
            return True
        os.close(lock)
        return False

    def process(self) -> psutil.Process | None:
        """Return it where it lives."""
        if not self.is_running():
            return None
        return self._recorded() or self._searched()

    def has_died_young(self) -> bool:
        """Whether it has ended by itself as soon as it was started: the next one may do the same."""
        record = self._read_record()
        if record is None or processes.age_s(record.started) > YOUNG_S:
            return False
        return not self.is_running()

    def forget(self) -> None:
        """It has ended in order."""
        (self._folder / "process.json").unlink(missing_ok=True)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal where it lives."""
        process = self.process()
        if process is not None:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _put_log_aside(self) -> None:
        """Keep the log from growing for ever; one older log is kept."""
        with suppress(FileNotFoundError):
            if self._log.stat().st_size > LOG_BYTES:
                self._log.replace(self._log.with_suffix(".log.1"))

    def _recorded(self) -> psutil.Process | None:
        record = self._read_record()
        return None if record is None else processes.living(record.pid, record.started)

    def _read_record(self) -> ProcessRecord | None:
        try:
            return ProcessRecord.model_validate_json((self._folder / "process.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def _searched(self) -> psutil.Process | None:
        """Look for it among all processes: whoever started it died before it wrote down which it is."""
        mine = (str(self._folder), str(self._folder) + os.sep)
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.pid != os.getpid() and any(
                    part == mine[0] or part.startswith(mine[1]) for part in process.cmdline()
                ):
                    self._record(process)
                    return process
        return None

    def _record(self, process: psutil.Process) -> None:
        record = ProcessRecord(pid=process.pid, started=processes.start_time(process.pid))
        replace_file(self._folder / "process.json", record.model_dump_json())

    def _lock(self) -> int | None:
        """Take the lock; None where another process holds it."""
        descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        for _ in range(LOCK_TRIES):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(LOCK_WAIT_S)
            else:
                return descriptor
        os.close(descriptor)
        return None


def replace_file(path: Path, content: str) -> None:
    """Write a file whole, readable by its owner only: a crash leaves the old one or the new one."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(content)
    draft.replace(path)
