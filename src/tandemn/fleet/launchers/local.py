"""Replicas as processes on this machine: `--cloud local`.

Each is `python -m tandemn.runner --replica-id ID` in a session of its own, so that it outlives the control
plane and is adopted by the next one. It is known by pid and process start time, and found again by the id
on its command line.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
from collections import deque
from contextlib import suppress
from decimal import Decimal
from typing import TYPE_CHECKING

import psutil

from tandemn.fleet import remains
from tandemn.fleet.launchers.launcher import Sighting
from tandemn.fleet.reconcile import Presence
from tandemn.prices import Price
from tandemn.processes import living, start_time
from tandemn.settings import python_executable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tandemn.fleet.launchers.launcher import Handle, LaunchSpec
    from tandemn.fleet.remains import Remains
    from tandemn.protocol.jobs import ReplicaConfig


class LocalLauncher:
    """Launches runners below `home`: `work/ID` while they live, `logs/replicas/ID.log` for good.

    Args:
        home: the state folder.
        slots: how many may run at a time.
        usd_per_hour: what one is taken to cost.
        on_end: called, in a thread of its own, whenever a runner that this launcher started has ended.
    """

    name = "local"
    pool = "slots"

    def __init__(
        self,
        home: Path,
        slots: int,
        *,
        usd_per_hour: Decimal | None = None,
        on_end: Callable[[], None] | None = None,
    ) -> None:
        self._home = home
        self.limit = slots
        self._usd_per_hour = usd_per_hour
        self._on_end = on_end
        #: Our own children, to be reaped; adopted ones are init's.
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def check(self) -> None:
        """This machine is always there."""

    def room(self) -> int:
        self._reap()
        return max(0, self.limit - sum(1 for _ in self._runners()))

    def price(self, config: ReplicaConfig, now: float) -> Price:
        """This machine is there anyway: a replica of any configuration is free, where nothing else is set."""
        del config
        if self._usd_per_hour is None:
            return Price(usd_per_hour=Decimal(0), source="local machine", at=now)
        return Price(usd_per_hour=self._usd_per_hour, source="TANDEMN_LOCAL_USD_PER_HOUR", at=now)

    def launch(self, spec: LaunchSpec) -> Handle:
        work = self._work(spec.replica_id)
        work.mkdir(parents=True, exist_ok=True)
        log = self.log_path(spec.replica_id)
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {
            "TANDEMN_HOME": str(self._home),
            "TANDEMN_REPLICA_TOKEN": spec.token,
        }
        command = [python_executable(), "-m", "tandemn.runner"]
        for url in (spec.server_url, *spec.other_urls):
            command += ["--server", url]
        command += ["--replica", spec.replica_id, "--home", str(self._home), "--work", str(work)]
        with log.open("ab") as output:
            process = subprocess.Popen(  # noqa: S603 - our own module
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd=work,
                env=environment,
            )
        self._children[process.pid] = process
        handle = _handle(psutil.Process(process.pid))
        if self._on_end is not None:
            # A thread that sleeps in the kernel: whoever waits for the job's end need not wait for a tick, too.
            threading.Thread(target=self._await_end, args=(process,), name="replica", daemon=True).start()
        return handle

    def _await_end(self, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        assert self._on_end is not None, "only started where there is one"
        self._on_end()

    def find(self, replica_id: str) -> Handle | None:
        # Also one that was launched from another state folder on the same database: ids are unique.
        for process in _all_runners():
            with suppress(psutil.Error):
                if replica_id in process.cmdline():
                    return _handle(process)
        return None

    def living(self) -> list[Handle]:
        found = []
        for process in self._runners():
            with suppress(psutil.Error):
                found.append(_handle(process))
        return found

    def observe(self, handles: Sequence[Handle]) -> list[Sighting]:
        self._reap()
        return [Sighting(presence=_presence(handle)) for handle in handles]

    def stop(self, handle: Handle) -> None:
        process = _process(handle)
        if process:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)

    def terminate(self, handle: Handle) -> None:
        process = _process(handle)
        if process:
            # The engine dies with its runner: it asked the kernel for that.
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def remains(self, replica_id: str) -> list[Remains]:
        return list(remains.read(self._work(replica_id) / remains.SPOOL))

    def clean(self, replica_id: str) -> None:
        shutil.rmtree(self._work(replica_id), ignore_errors=True)

    def log_tail(self, replica_id: str, lines: int) -> list[str]:
        with suppress(FileNotFoundError), self.log_path(replica_id).open(errors="replace") as log:
            return [line.rstrip("\n") for line in deque(log, maxlen=lines)]
        return []

    def log_path(self, replica_id: str) -> Path:
        return self._home / "logs" / "replicas" / f"{replica_id}.log"

    def _work(self, replica_id: str) -> Path:
        return self._home / "work" / replica_id

    def _runners(self) -> list[psutil.Process]:
        """Every living runner of this home."""
        mine = str(self._home / "work") + os.sep
        found = []
        for process in _all_runners():
            with suppress(psutil.Error):
                if any(each.startswith(mine) for each in process.cmdline()):
                    found.append(process)
        return found

    def _reap(self) -> None:
        for pid, child in list(self._children.items()):
            if child.poll() is not None:
                del self._children[pid]


def _all_runners() -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if "tandemn.runner" in process.cmdline():
                yield process


def _handle(process: psutil.Process) -> Handle:
    return {"pid": process.pid, "started": start_time(process.pid), "host": socket.gethostname()}


def _presence(handle: Handle) -> Presence:
    if _is_elsewhere(handle):
        return Presence.ELSEWHERE
    return Presence.THERE if _process(handle) else Presence.GONE


def _is_elsewhere(handle: Handle) -> bool:
    """Whether another machine launched it, whose control plane may be gone: its pid means nothing here."""
    return bool(handle.get("host", socket.gethostname()) != socket.gethostname())


def _process(handle: Handle) -> psutil.Process | None:
    """Return the living process that the handle means."""
    return None if _is_elsewhere(handle) else living(handle["pid"], handle["started"])
