"""The router of one deployment as a process on this machine: its folder, and the process itself.

All that is needed to start it again lies in the folder, so that whoever finds it dead can: the control plane, or
the deployment's fleet process where the control plane is dead, too.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from tandemn.serving.local.detached import Detached, replace_file
from tandemn.settings import child_environment, python_executable

if TYPE_CHECKING:
    import signal
    from pathlib import Path

    import psutil

    from tandemn.settings import Settings

HOST = "127.0.0.1"
#: How many ports are tried.
PORTS = 1000
#: How long streams under way may go on when it is told to end, in seconds.
GRACE_S = 30.0


class RouterRecord(BaseModel):
    """`router.json`: how it is started; as long as it is there, the router should run."""

    port: int
    admin_key: str


class RouterFolder:
    """One router's folder.

    Args:
        settings: of this machine.
        remote_name: of the router.
    """

    def __init__(self, settings: Settings, remote_name: str) -> None:
        self.path = routers(settings.home_path) / remote_name
        self.log = settings.home_path / "logs" / "routers" / f"{remote_name}.log"
        self.table = self.path / "table.json"
        self._meter = self.path / "meter.json"
        self._settings = settings
        self._process = Detached(self.path, self.log)

    def record(self) -> RouterRecord | None:
        """Read how it should run; None where it should not."""
        try:
            return RouterRecord.model_validate_json((self.path / "router.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def want(self, table: bytes, admin_key: str) -> RouterRecord:
        """Say that it should run, with this table from its next start on; it keeps its port where that can be."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(self.table, table.decode())
        known = self.record()
        if known is None and not self.is_running():
            # What a deployment of the same name counted, which is gone, is not this one's.
            self._meter.unlink(missing_ok=True)
        if known is not None and (self.is_running() or _is_free(known.port)):
            record = RouterRecord(port=known.port, admin_key=admin_key)
        else:
            record = RouterRecord(port=self._free_port(), admin_key=admin_key)
        if record != known:
            replace_file(self.path / "router.json", record.model_dump_json())
        return record

    def forget(self) -> None:
        """Say that it should not run."""
        (self.path / "router.json").unlink(missing_ok=True)

    def start(self) -> bool:
        """Start it; False where it runs, or should not."""
        record = self.record()
        if record is None:
            return False
        command = [python_executable(), "-m", "tandemn.router", "--host", HOST, "--port", str(record.port)]
        command += ["--table", str(self.table), "--state", str(self._meter)]
        command += ["--grace-s", str(GRACE_S)]
        environment = child_environment(self._settings)
        # What clients show stands in the table; without any, the endpoint is public.
        environment.pop("TANDEMN_ROUTER_KEY", None)
        return self._process.start(command, {**environment, "TANDEMN_ROUTER_ADMIN_KEY": record.admin_key})

    def is_running(self) -> bool:
        return self._process.is_running()

    def process(self) -> psutil.Process | None:
        return self._process.process()

    def signal(self, number: signal.Signals) -> None:
        self._process.signal(number)

    def _free_port(self) -> int:
        # One that starts at this moment, or has died and will be started again, does not listen yet.
        taken = set()
        for folder in routers(self._settings.home_path).glob("*/router.json"):
            with suppress(OSError, ValidationError):
                taken.add(RouterRecord.model_validate_json(folder.read_bytes()).port)
        first = self._settings.local_router_port
        ports = range(first, min(first + PORTS, 1 << 16))
        for port in ports:
            if port not in taken and _is_free(port):
                return port
        raise OSError(f"no port from {ports[0]} to {ports[-1]} is free (TANDEMN_LOCAL_ROUTER_PORT)")


def routers(home: Path) -> Path:
    """The folder of all routers' folders."""
    return home / "routers"


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: connections of a former server that linger do not make a port taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True
