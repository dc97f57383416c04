"""A real PostgreSQL of this machine's packages, on a unix socket in a folder of its own: started, used, ended by pid.

PostgreSQL refuses to run as root, so there it runs as the packages' own user.
"""

from __future__ import annotations

import atexit
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:
    from collections.abc import Iterator

#: A cold machine makes a cluster in seconds; a busy one takes longer.
START_S = 120.0
#: Who it runs as where the tests run as root.
USER = "postgres"


class Postgres:
    """A running server; `database()` is the URL of a fresh database on it."""

    def __init__(self, folder: Path, bin_folder: Path, user: str) -> None:
        self._folder = folder
        self._bin = bin_folder
        self._user = user

    def database(self) -> str:
        name = f"t{uuid4().hex[:12]}"
        self.run("createdb", name)
        return f"postgresql://{self._user}@/{name}?host={self._folder}"

    def run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [self._bin / program, "-h", self._folder, "-U", self._user, *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=START_S,
        )
        return done.stdout


#: The same tests on the other database: `make test-postgres`.
IS_WANTED = os.environ.get("TANDEMN_TEST_DATABASE") == "postgres"
_shared = ExitStack()
_servers: list[Postgres] = []


def fresh_database() -> str:
    """Return the URL of an empty database, on a server that all tests of this process share."""
    if not _servers:
        _servers.append(_shared.enter_context(running()))
        atexit.register(end_shared)
    return _servers[0].database()


def end_shared() -> None:
    """End that server, if one was started."""
    _servers.clear()
    _shared.close()


@contextmanager
def running() -> Iterator[Postgres]:
    """Start a server, and end it with all that it wrote."""
    folder = Path(tempfile.mkdtemp(prefix="tdm-pg-", dir="/tmp"))
    user = USER if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    bin_folder = programs()
    folder.chmod(0o755)
    data = folder / "data"
    data.mkdir(mode=0o700)
    if os.geteuid() == 0:
        for path in (folder, data):
            shutil.chown(path, user)
    run_as = user if os.geteuid() == 0 else None
    try:
        subprocess.run(
            [bin_folder / "initdb", "-D", data, "-U", user, "--auth=trust", "--no-sync", "-E", "UTF8"],
            check=True,
            capture_output=True,
            cwd=folder,
            user=run_as,
        )
        settings = {"listen_addresses": "", "unix_socket_directories": str(folder), "max_connections": "60"}
        # As where it is used, but that a power cut is no part of these tests.
        settings |= {"fsync": "off", "shared_buffers": "64MB"}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [bin_folder / "postgres", "-D", data, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                start_new_session=True,
                user=run_as,
            )
        try:
            postgres = Postgres(folder, bin_folder, user)
            _wait(postgres, server, folder / "log")
            yield postgres
        finally:
            server.send_signal(signal.SIGQUIT)  # at once: its data goes with it
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def missing() -> str | None:
    """What has to be installed before a server can be started here."""
    try:
        programs()
        if os.geteuid() == 0:
            pwd.getpwnam(USER)
    except (FileNotFoundError, KeyError):
        return "no PostgreSQL server on this machine: apt-get install postgresql (the tests start one of their own)"
    return None


def programs() -> Path:
    """Where `postgres`, `pg_dump` and the like are: the newest of Debian's versions, else what is on PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda each: int(each.parts[-3]))
    if found:
        return found[-1].parent
    if (on_path := shutil.which("postgres")) is None:
        raise FileNotFoundError("postgres")
    return Path(on_path).resolve().parent


def _wait(postgres: Postgres, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text(errors="replace")
        try:
            postgres.run("psql", "-d", "postgres", "-c", "SELECT 1")
        except subprocess.CalledProcessError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"PostgreSQL did not start: {log.read_text(errors='replace')}")
