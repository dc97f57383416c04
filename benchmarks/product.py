"""The product as a user has it: a control plane with a state folder of its own, and the real command line."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tandemn import settings
from tandemn.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

#: A command that says nothing for so long hangs.
LIMIT_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A running control plane."""

    home: Path
    pid: int

    @property
    def environment(self) -> dict[str, str]:
        return settings.child_environment(Settings(home=self.home, server_url=None))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start one `tandemn` command; its output can be read."""
        return subprocess.Popen(
            [sys.executable, "-m", "tandemn.cli", *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> str:
        """Run one `tandemn` command; return what it printed. Raises RuntimeError where it failed."""
        return finish(self.start(*arguments))

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json"))


def finish(command: subprocess.Popen[str]) -> str:
    """Wait for a command; return what it printed. Raises RuntimeError where it failed."""
    printed, complaints = command.communicate(timeout=LIMIT_S)
    if command.returncode:
        raise RuntimeError(f"{command.args!r} ended with {command.returncode}: {complaints}{printed}")
    return printed


@contextmanager
def control_plane(folder: Path | None = None) -> Iterator[Product]:
    """Start a control plane in a new state folder (below `folder`), and end it."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="tandemn-") as name:
        home = Path(name)
        starting = Product(home=home, pid=0)
        starting.run("server", "start")
        try:
            yield Product(home=home, pid=starting.json("server", "status")["pid"])
        finally:
            starting.run("server", "stop")
