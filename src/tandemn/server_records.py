"""How the control planes of a state folder are found: a small file each, written whole, believed while its process lives.

`server.json` names the one that commands find first (the one that leads, where several serve the folder),
`servers/` holds a record of each.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from tandemn import __version__, processes

if TYPE_CHECKING:
    from pathlib import Path


class ServerRecord(BaseModel):
    """One of these files; mode 600."""

    url: str
    """On this machine's loopback."""
    shared_url: str | None = None
    """Where others than this machine reach it, with a key."""
    pid: int
    started: float
    """`processes.start_time`: a pid alone may have been given to another."""
    version: str
    key: str | None = None
    """What this machine's command line shows to it; void when the process ends."""

    @property
    def is_alive(self) -> bool:
        return processes.living(self.pid, self.started) is not None


def main_record(home: Path) -> Path:
    return home / "server.json"


def own_record(home: Path, pid: int) -> Path:
    return home / "servers" / f"{pid}.json"


def living(home: Path) -> list[ServerRecord]:
    """Return the record of every control plane that lives in `home`; the first is the one that leads."""
    found: dict[int, ServerRecord] = {}
    for path in (main_record(home), *sorted((home / "servers").glob("*.json"))):
        record = read(path)
        if record is not None and record.is_alive:
            found.setdefault(record.pid, record)
    return list(found.values())


def read(path: Path) -> ServerRecord | None:
    """Read one file, whether or not its process lives; None where it is none."""
    with suppress(OSError, ValidationError):
        return ServerRecord.model_validate_json(path.read_bytes())
    return None


def of_this_process(url: str, *, shared_url: str | None, key: str) -> ServerRecord:
    """Describe this process, which serves at `url`."""
    return ServerRecord(
        url=url,
        shared_url=shared_url,
        pid=os.getpid(),
        started=processes.start_time(os.getpid()),
        version=__version__,
        key=key,
    )


def write(path: Path, record: ServerRecord) -> None:
    """Write one file whole: whoever may read it has the state folder anyway."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    staged = path.with_name(f"{path.name}.{os.getpid()}")
    staged.unlink(missing_ok=True)
    staged.touch(mode=0o600)
    staged.write_text(record.model_dump_json())
    staged.replace(path)
