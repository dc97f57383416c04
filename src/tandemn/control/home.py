"""Which control planes serve a state folder: usually one; more where they were asked to stand by.

Each holds the folder's lock, shared once it is in, and has a record in `servers/`. `server.json` is the record
by which the command line finds the folder's control plane: the one that leads, where that is one of them.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, Self

import psutil

from tandemn import server_records
from tandemn.errors import Broken

if TYPE_CHECKING:
    from pathlib import Path

    from tandemn.server_records import ServerRecord


class Home:
    """This process's place in a state folder; enter it to hold the lock.

    Args:
        folder: the state folder.
        is_standby: whether others may be in it already.
    """

    def __init__(self, folder: Path, *, is_standby: bool) -> None:
        self.folder = folder
        self._is_standby = is_standby
        self._lock = -1
        self._own = server_records.own_record(folder, os.getpid())
        self._main = server_records.main_record(folder)

    def __enter__(self) -> Self:
        """Raises Broken (code `server_running`) where another is in it, and this one is no standby."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = os.open(self.folder / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not self._is_standby:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(self._lock, fcntl.LOCK_SH)
        except BlockingIOError as exc:
            os.close(self._lock)
            raise Broken(
                f"another control plane serves {self.folder}",
                code="server_running",
                next_step="`tandemn server status` shows it; --standby starts another beside it",
            ) from exc
        return self

    def __exit__(self, *_: object) -> None:
        self._own.unlink(missing_ok=True)
        main = server_records.read(self._main)
        if main is not None and main.pid == os.getpid():
            self._main.unlink(missing_ok=True)
        os.close(self._lock)

    def is_last(self) -> bool:
        """Whether no other is in the folder; asked when this one ends: from then on nobody else comes in."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def announce(self, record: ServerRecord) -> None:
        """Say that this process serves, and where."""
        self._forget_the_dead()
        server_records.write(self._own, record)
        if not self._is_standby:
            self.take_the_lead(record)

    def take_the_lead(self, record: ServerRecord) -> None:
        """Be the one that commands on this machine find first."""
        server_records.write(self._main, record)

    def _forget_the_dead(self) -> None:
        for path in self._own.parent.glob("*.json"):
            if not psutil.pid_exists(int(path.stem)):
                path.unlink(missing_ok=True)
