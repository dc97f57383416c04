"""A fake SkyPilot in an environment of its own: the package in `skypilot/sky`, run by our real worker process."""

import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

PACKAGE = Path(__file__).parent / "skypilot"


@dataclass
class Faults:
    """What goes wrong from now on."""

    boot_s: float = 0.0
    """How long a cluster takes to come up."""
    unavailable: list[str] = field(default_factory=list)
    """Where nothing can be had: `aws`, `aws/us-east-1`, `aws/us-east-1/us-east-1a`."""
    error: dict[str, Any] | None = None
    """What every launch fails of: `{"type": …, "message": …}`."""
    command: str | None = None
    """What SkyPilot says of the clusters' commands: `FAILED_SETUP`."""
    slow_starts: int = 0
    """How often the API server does not come up in time."""
    refuse: dict[str, str] = field(default_factory=dict)
    """Function -> class of the error that it gives."""


class FakeSky:
    """One per test: its folder is what SkyPilot's API server and the clouds know."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("clusters", "machines", "requests", "tasks", "homes", "cancelled", "processes"):
            (folder / name).mkdir(exist_ok=True)
        self.environment = {
            **os.environ,
            "FAKE_SKY": str(folder),
            "PYTHONPATH": str(PACKAGE),
            "HOME": str(folder / "home"),
            "PATH": f"{PACKAGE / 'bin'}:{os.environ['PATH']}",
        }

    def python(self) -> str:
        """An interpreter that has the fake, as TANDEMN_SKYPILOT_PYTHON names it."""
        path = self.folder / "python"
        path.write_text(
            f'#!/bin/sh\nexport FAKE_SKY="{self.folder}" PYTHONPATH="{PACKAGE}"\nexec "{sys.executable}" "$@"\n'
        )
        path.chmod(0o755)
        return str(path)

    def fail(self, faults: Faults) -> None:
        fresh = self.folder / "faults.new"
        fresh.write_text(json.dumps(vars(faults)))
        fresh.rename(self.folder / "faults.json")

    def preempt(self, cluster: str) -> None:
        """The cloud takes it away: SkyPilot's record stays until it looks."""
        (self.folder / "machines" / cluster).unlink()

    def clusters(self) -> list[str]:
        return sorted(path.stem for path in (self.folder / "clusters").glob("*.json"))

    def machines(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "machines").iterdir())

    def task(self, cluster: str) -> dict[str, Any]:
        task: dict[str, Any] = json.loads((self.folder / "tasks" / f"{cluster}.json").read_text())
        return task

    def calls(self) -> list[dict[str, Any]]:
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def end_all(self) -> None:
        """Leave no process behind, of machines that are still coming up neither."""
        (self.folder / "over").touch()
        until(lambda: not any(_lives(int(path.name)) for path in (self.folder / "processes").iterdir()))


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def until(condition: Any, within_s: float = 30.0) -> Any:
    """Wait for a condition to hold, and return what it gave."""
    end = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)
    return value
