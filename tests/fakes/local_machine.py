"""A machine whose disk and process table fail: the folder of a fleet process with a fault at each call in turn."""

import errno
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from tests.fakes.remote_faults import Fault, Faults

from tandemn.protocol.replicas import Market
from tandemn.serving.local.folder import FleetFolder, fleet_folder

#: What the kernel says.
ERRORS = {
    Fault.BROKEN: errno.EIO,
    Fault.CREDENTIALS: errno.EACCES,
    Fault.PERMISSION: errno.EACCES,
    Fault.QUOTA: errno.EDQUOT,
    Fault.CONFLICT: errno.EBUSY,
    Fault.NOT_FOUND: errno.ENOENT,
}
#: What is asked over and over until it is as it should be: noted this often.
NOTED_POLLS = 2


class LocalMachine:
    """Stands where the fakes of the other providers do; what it breaks is real."""

    def __init__(self, home: Path, market: Market) -> None:
        self.home = home
        self.market = market
        self.faults = Faults()
        self._silence = threading.Event()

    def folder(self, remote_name: str) -> FleetFolder:
        real = fleet_folder(self.home, remote_name)
        for name in ("give_order", "take_back", "orders", "start", "signal", "is_running", "living_report"):
            setattr(real, name, self._breaking(name, getattr(real, name)))
        return real

    def _breaking(self, name: str, real: Any) -> Any:
        def call(*args: Any) -> Any:
            if self.faults.calls.count(name) >= NOTED_POLLS:
                return real(*args)
            fault = self.faults.strike(name)
            if fault in ERRORS:
                raise OSError(ERRORS[fault], os.strerror(ERRORS[fault]))
            if fault is Fault.SILENT:
                self._silence.wait(10)
            answer = real(*args)
            if fault is Fault.LOST:
                self._silence.wait(10)
            return answer

        return call

    def release(self) -> None:
        """Let calls that hang return: their threads are waited for."""
        self._silence.set()
        self._silence = threading.Event()

    def left(self) -> list[str]:
        """Every deployment of which an order or a process is there."""
        fleets = self.home / "fleets"
        names = {path.parent.name for path in fleets.glob(f"*/{self.market.value}.json")}
        for process in psutil.process_iter():
            with suppress(psutil.Error, ValueError, IndexError):
                line = process.cmdline()
                folder = Path(line[line.index("--folder") + 1])
                if folder.parent == fleets and process.status() != psutil.STATUS_ZOMBIE:
                    names.add(folder.name)
        return sorted(names)
