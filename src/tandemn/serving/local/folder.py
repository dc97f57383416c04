"""The folder of a fleet process: its orders, its report, and the process itself."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from pydantic import ValidationError

from tandemn.fleet.engines.process import log_tail
from tandemn.protocol.replicas import Market
from tandemn.serving.local.detached import Detached, replace_file
from tandemn.serving.local.orders import FleetReport, Order, order_name
from tandemn.settings import child_environment, python_executable

if TYPE_CHECKING:
    import signal
    from pathlib import Path

    from tandemn.settings import Settings

#: The backends that a fleet process can have.
MARKETS = (Market.SPOT, Market.SERVERLESS)


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
        self._process = Detached(path, logs / "fleet.log")
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
        report, process = self.report(), self._process.process()
        return report if report is not None and process is not None and report.pid == process.pid else None

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
        command = [python_executable(), "-m", "tandemn.serving.local"]
        command += ["--folder", str(self.path), "--logs", str(self.logs)]
        return self._process.start(command, child_environment(settings))

    def is_running(self) -> bool:
        """Whether the process lives, however young it is."""
        return self._process.is_running()

    def why_not_up(self) -> str | None:
        """What it said last, where it ended as soon as it was started; None: it did not."""
        if not self._process.has_died_young():
            return None
        return (log_tail(self.logs / "fleet.log").splitlines() or ["it said nothing"])[-1]

    def forget_process(self) -> None:
        """It has ended in order."""
        self._process.forget()

    def signal(self, number: signal.Signals) -> None:
        """Send the process a signal, where it lives."""
        self._process.signal(number)


def fleet_folder(home: Path, remote_name: str) -> FleetFolder:
    """The folder of a deployment."""
    return FleetFolder(home / "fleets" / remote_name, home / "logs" / "fleets" / remote_name)


def fleet_names(home: Path, prefix: str) -> list[str]:
    """Name every folder that there is, in use or not, whose name begins so."""
    return sorted(path.name for path in (home / "fleets").glob(f"{prefix}*") if path.is_dir())
