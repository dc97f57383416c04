"""The folder of a fleet process: orders, report and record, and whether the process lives.

The process holds the lock of its folder from before its first instruction until its end: it gets it from whoever
starts it. So of two that start it at once one does, and a lock that can be had means that nothing runs.
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
from pydantic import ValidationError

from tandemn.protocol.replicas import Market
from tandemn.serving.local.orders import FleetReport, Order, ProcessRecord, order_name, replace_file
from tandemn.settings import child_environment, python_executable

if TYPE_CHECKING:
    import signal
    from pathlib import Path

    from tandemn.settings import Settings

#: The backends that a fleet process can have.
MARKETS = (Market.SPOT, Market.SERVERLESS)
#: Process start times are read with this much tolerance, in seconds.
SAME_START_S = 0.02
#: Tries for a lock that somebody may hold just to look, and the wait between them in seconds.
LOCK_TRIES, LOCK_WAIT_S = 5, 0.01


class FleetFolder:
    """One deployment's folder on this machine.

    Args:
        path: of the folder; it is made when the first order comes.
        logs: where the process and its replicas log.
    """

    def __init__(self, path: Path, logs: Path) -> None:
        self.path = path
        self.logs = logs
        self.lifetimes = path / "lifetimes.jsonl"
        self.notices = path / "notices"
        self._seen: dict[Market, tuple[int, int, int]] | None = None

    # --- orders ---

    def orders(self) -> dict[Market, bytes]:
        """Read every order that there is."""
        found = {}
        for market in MARKETS:
            with suppress(FileNotFoundError):
                found[market] = (self.path / order_name(market)).read_bytes()
        return found

    def changed_orders(self) -> dict[Market, bytes] | None:
        """Read the orders where one of them has changed since the last call; None: none has."""
        seen = {}
        for market in MARKETS:
            with suppress(FileNotFoundError):
                stat = (self.path / order_name(market)).stat()
                seen[market] = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if seen == self._seen:
            return None
        self._seen = seen
        return self.orders()

    @staticmethod
    def read_order(content: bytes) -> Order:
        """Raises ValidationError."""
        return Order.model_validate_json(content)

    def give_order(self, market: Market, order: Order) -> None:
        """Say how a backend should be; the process finds it by itself."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        content = order.model_dump_json()
        if self.orders().get(market) != content.encode():
            replace_file(self.path / order_name(market), content)

    def take_back(self, market: Market) -> None:
        """Say that there should be no such backend."""
        (self.path / order_name(market)).unlink(missing_ok=True)

    # --- what is told ---

    def report(self) -> FleetReport | None:
        """Read the last report, be it of a process that has ended; None where there is none that can be read."""
        try:
            return FleetReport.model_validate_json((self.path / "status.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def living_report(self) -> FleetReport | None:
        """Read the report of the process that lives; None where it has not written one yet."""
        report, record = self.report(), self._record()
        return report if report is not None and record is not None and report.pid == record.pid else None

    def write_report(self, report: FleetReport) -> None:
        replace_file(self.path / "status.json", report.model_dump_json())

    def take_notices(self) -> list[str]:
        """Return the replicas that were announced to be preempted, each once."""
        found = []
        with suppress(FileNotFoundError):
            for path in list(self.notices.iterdir()):
                path.unlink(missing_ok=True)
                found.append(path.name)
        return found

    # --- the process ---

    def start(self, settings: Settings) -> bool:
        """Start the process; False where it runs."""
        lock = self._lock()
        if lock is None:
            return False
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
            command = [python_executable(), "-m", "tandemn.serving.local"]
            command += ["--folder", str(self.path), "--logs", str(self.logs)]
            with (self.logs / "fleet.log").open("ab") as log:
                process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                    [*command, "--lock", str(lock)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=(lock,),
                    cwd="/",
                    env=child_environment(settings),
                )
        finally:
            os.close(lock)
        with suppress(psutil.NoSuchProcess):
            self.record_process(process.pid)
        # It is reaped when it ends; who waits for it sleeps in the kernel.
        threading.Thread(target=process.wait, name="fleet", daemon=True).start()
        return True

    def record_process(self, pid: int) -> None:
        """Write down which process it is: its starter does, and it does itself, should the other have died."""
        record = ProcessRecord(pid=pid, started=psutil.Process(pid).create_time())
        replace_file(self.path / "process.json", record.model_dump_json())

    def is_running(self) -> bool:
        """Whether the process lives, however young it is."""
        if not self.path.exists():
            return False
        lock = self._lock()
        if lock is None:
            return True
        os.close(lock)
        return False

    def signal(self, number: signal.Signals) -> None:
        """Send the process a signal, where it lives and is known."""
        record = self._record()
        if record is None:
            return
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(record.pid)
            if abs(process.create_time() - record.started) < SAME_START_S:
                process.send_signal(number)

    def _record(self) -> ProcessRecord | None:
        try:
            return ProcessRecord.model_validate_json((self.path / "process.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def _lock(self) -> int | None:
        """Take the lock; None where another process holds it."""
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        for _ in range(LOCK_TRIES):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(LOCK_WAIT_S)
            else:
                return descriptor
        os.close(descriptor)
        return None


def fleet_folder(home: Path, remote_name: str) -> FleetFolder:
    """The folder of a deployment."""
    return FleetFolder(home / "fleets" / remote_name, home / "logs" / "fleets" / remote_name)


def fleet_names(home: Path, prefix: str) -> list[str]:
    """Name every folder that there is, in use or not, whose name begins so."""
    return sorted(path.name for path in (home / "fleets").glob(f"{prefix}*") if path.is_dir())
