"""What a job may leave behind: processes, ports, folders, objects, keys in Redis. Read, never guessed."""

from __future__ import annotations

import json
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import psutil
from redis import Redis
from tests.process.house import PATIENCE_S

if TYPE_CHECKING:
    from pathlib import Path

    from tests.process.house import House


def asked(house: House, path: str) -> Any:
    """Ask the control plane itself: a command for each look would take a second."""
    url = json.loads((house.home / "server.json").read_text())["url"]
    with urllib.request.urlopen(f"{url}{path}", timeout=PATIENCE_S) as answer:
        return json.load(answer)


def ended(house: House, job_id: str) -> Any:
    """Wait until the job has ended, and return its status."""
    return until(house, job_id, lambda status: status["ended_at"] is not None)


def until(house: House, job_id: str, condition: Any) -> Any:
    """Wait until `condition(status)` is true, and return that status."""
    end = time.monotonic() + PATIENCE_S
    while not condition(status := asked(house, f"/api/jobs/{job_id}")):
        assert time.monotonic() < end, status
        time.sleep(0.1)
    return status


def redis_keys(house: House) -> list[str]:
    """Every key in the embedded Redis."""
    socket = json.loads((house.home / "redis" / "redis.json").read_text())["socket"]
    with Redis(unix_socket_path=socket) as redis:
        keys: Any = redis.keys("*")
        return sorted(key.decode() for key in keys)


def objects(house: House) -> list[str]:
    """Every file in the embedded object store, unfinished ones included."""
    root = house.home / "objects"
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def folders(house: House) -> list[str]:
    """Every folder below the objects that is not one of the store's own."""
    root = house.home / "objects"
    own = {".staging", "files", "jobs"}
    found = (str(path.relative_to(root)) for path in root.rglob("*") if path.is_dir())
    return sorted(name for name in found if name not in own)


def work(house: House) -> list[Path]:
    """What lies in the replicas' work folders."""
    folder = house.home / "work"
    return sorted(folder.iterdir()) if folder.is_dir() else []


def runners(house: House) -> list[psutil.Process]:
    """Living processes beside the control plane and its Redis."""
    return [
        process
        for process in house.processes()
        if process.pid != house.server_pid() and "redis-server" not in process.name()
    ]


def listeners(house: House) -> set[int]:
    """TCP ports that processes of the house listen on."""
    return {
        connection.laddr.port
        for process in house.processes()
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    }


def server_port(house: House) -> int:
    """The one port that is the control plane's own."""
    return int(json.loads((house.home / "server.json").read_text())["url"].rpartition(":")[2])


def nothing_runs(house: House) -> None:
    """Assert that only the control plane and its Redis are left, and nothing of any job but its output."""
    house.wait_for(lambda: not runners(house), timeout=30)
    assert work(house) == []
    assert redis_keys(house) == []
    assert listeners(house) == {server_port(house)}
    assert not [name for name in objects(house) if not name.startswith(("files/", "jobs/"))]
    leftovers = [
        name for name in objects(house) if name.startswith("jobs/") and not name.endswith("put.jsonl")
    ]
    assert [name for name in leftovers if not name.endswith("/errors.jsonl")] == []
