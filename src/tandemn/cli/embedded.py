"""The control plane of this machine, where no other is named: found, started and stopped by the command line.

`server.json` in the state folder says which process serves and where, `servers/` has a record of each where
others stand by. The control planes write them once they serve; here they are only read, and believed only
while a process of that pid and start time lives. A lock file keeps two commands from starting two. The
server outlives the command that started it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tandemn import __version__, server_records
from tandemn.client import UserClient
from tandemn.errors import Broken, Conflict, InvalidInput, NotAllowed, ServerUnavailable, TandemnError
from tandemn.server_records import ServerRecord
from tandemn.settings import Settings, child_environment, python_executable

#: A fresh control plane makes its database and starts Redis first; a loaded machine is slow at both.
START_S = 60.0
#: The control plane ends Redis and the replicas before itself; after this long it is killed.
STOP_S = 30.0
#: Between two looks at a process that starts or ends.
LOOK_S = 0.05
#: A log greater than this is put aside when the next server starts; one older log is kept.
LOG_BYTES = 10_000_000
#: How much of a dead server's log its error shows.
TAIL_LINES = 15

#: What is started; `--host`, `--port` and the like may be added. It chooses what is not said.
COMMAND = (python_executable(), "-m", "tandemn.control")


def read(home: Path) -> ServerRecord | None:
    """Return the record of the control plane that lives in `home`, the leading one if several do; None: none."""
    return next(iter(server_records.living(home)), None)


async def find(home: Path) -> ServerRecord | None:
    """Return the control plane of `home` once it answers; None where none lives.

    Raises:
        Conflict: it is of another version.
        ServerUnavailable: it lives, but does not answer.
    """
    until = time.monotonic() + START_S
    failure: TandemnError | None = None
    while record := read(home):
        if record.version != __version__:
            raise Conflict(
                f"the control plane of {home} is version {record.version}, this is {__version__}",
                code="version_mismatch",
                next_step="`tandemn server stop` ends it; the next command starts this version",
            )
        if time.monotonic() > until:
            break
        try:
            await _greet(record)
            return record
        except TandemnError as error:
            failure = error  # it may be ending, or very busy
        await asyncio.sleep(4 * LOOK_S)
    if record is None:
        return None
    raise ServerUnavailable(
        f"the control plane of {home} (pid {record.pid}) does not answer",
        next_step=f"read {log_path(home)}; `tandemn server stop` ends it",
    ) from failure


async def ensure(
    settings: Settings, *, arguments: Sequence[str] = (), command: Sequence[str] = COMMAND
) -> ServerRecord:
    """Return the control plane of the state folder; start one, with these arguments, where none lives.

    Raises:
        Broken: it ended before it served (`server_start_failed`); the message has the end of its log.
    """
    home = settings.home_path
    if record := await find(home):
        return record
    async with locked(home):
        # Another command may have started one while this one waited for the lock.
        if record := await find(home):
            return record
        return await _start(settings, [*command, *arguments])


async def add_standby(
    settings: Settings, *, arguments: Sequence[str] = (), command: Sequence[str] = COMMAND
) -> ServerRecord:
    """Start a control plane beside those that live in the state folder, and return it. Raises as `ensure`."""
    async with locked(settings.home_path):
        return await _start(settings, [*command, *arguments, "--standby"])


async def _start(settings: Settings, command: Sequence[str]) -> ServerRecord:
    home = settings.home_path
    log_start = _put_aside(log_path(home))
    process = _spawn(settings, command)
    try:
        return await _await_start(home, process, log_start)
    except BaseException:
        # Also on Ctrl-C: a half-started server that nobody asked for again is not left behind.
        if process.poll() is None:
            process.terminate()
        raise


async def stop(home: Path) -> ServerRecord | None:
    """End every control plane of `home` and wait until they are gone; return the one that led, None: none lived."""
    if read(home) is None:
        return None
    async with locked(home):
        living = server_records.living(home)
        for number, patience_s in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, STOP_S)):
            for record in living:
                _signal(record, number)
            if all([await _await_end(record, patience_s) for record in living]):
                return living[0] if living else None
    raise Broken(
        f"the control plane (pid {living[0].pid}) did not end, not even by SIGKILL", code="server_stop_failed"
    )


@asynccontextmanager
async def locked(home: Path) -> AsyncIterator[None]:
    """Hold the start lock of `home`: one command at a time starts or stops a server."""
    _make_home(home)
    until = time.monotonic() + START_S + STOP_S
    with (home / "start.lock").open("ab") as lock:
        while True:
            try:
                # Not waited for in the kernel: Ctrl-C would not be heard there.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise ServerUnavailable(
                        f"another command has held {home / 'start.lock'} for too long",
                        code="start_lock_held",
                    ) from None
                await asyncio.sleep(LOOK_S)
        yield


def log_path(home: Path) -> Path:
    """Say where the embedded control plane's log is."""
    return home / "logs" / "server.log"


async def _greet(record: ServerRecord) -> None:
    async with UserClient(record.url, record.key) as client:
        await client.server()


def _make_home(home: Path) -> None:
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        log_path(home).parent.mkdir(exist_ok=True)
    except OSError as exc:
        raise InvalidInput(
            f"the state folder {home} cannot be made: {exc.strerror}",
            code="home_unusable",
            next_step="set TANDEMN_HOME to a folder that you may write to",
        ) from exc


def _put_aside(log: Path) -> int:
    """Keep the log from growing for ever; return where the next server's lines will begin in it."""
    size = log.stat().st_size if log.exists() else 0
    if size <= LOG_BYTES:
        return size
    log.replace(log.with_suffix(".log.1"))
    return 0


def _spawn(settings: Settings, command: Sequence[str]) -> subprocess.Popen[bytes]:
    with log_path(settings.home_path).open("ab") as log:
        # A session of its own and no inherited descriptor: it must not die with this terminal, nor hold
        # open the pipe of whoever captures this command's output.
        return subprocess.Popen(  # noqa: S603 - our own interpreter and module
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            close_fds=True,
            cwd="/",
            env=child_environment(settings),
        )


async def _await_start(home: Path, process: subprocess.Popen[bytes], log_start: int) -> ServerRecord:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        for record in server_records.living(home):
            # Also another's: one may have been started by hand at the same moment.
            if record.pid == process.pid or process.poll() is not None:
                await _greet(record)
                return record
        if process.poll() is not None:
            raise _start_failure(home, log_start, f"ended with status {process.returncode} before it served")
        await asyncio.sleep(LOOK_S)
    raise _start_failure(home, log_start, f"did not serve within {START_S:.0f} s")


def _start_failure(home: Path, log_start: int, what: str) -> Broken:
    path = log_path(home)
    lines = path.read_bytes()[log_start:].decode(errors="replace").split("\n")[-TAIL_LINES:]
    tail = " | ".join(line.strip() for line in lines if line.strip())
    return Broken(
        f"the control plane {what}: {tail or 'its log is empty'}",
        code="server_start_failed",
        next_step=f"read {path}",
    )


def _signal(record: ServerRecord, number: signal.Signals) -> None:
    if not record.is_alive:
        return
    try:
        os.kill(record.pid, number)
    except ProcessLookupError:
        return
    except PermissionError as exc:
        raise NotAllowed(
            f"the control plane (pid {record.pid}) belongs to another user", code="not_allowed"
        ) from exc


async def _await_end(record: ServerRecord, patience_s: float) -> bool:
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        if not record.is_alive:
            return True
        await asyncio.sleep(LOOK_S)
    return False
