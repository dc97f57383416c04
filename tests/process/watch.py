"""What tests read of a running house without troubling it: its database, its HTTP API, its processes."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import urllib.request
from collections import Counter
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psutil
from tests.process.house import read_lines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.process.house import House


def query(house: House, sql: str, *values: Any) -> list[dict[str, Any]]:
    """Read the database beside its owner; JSON as text."""
    if url := house.environment.get("TANDEMN_DATABASE_URL"):
        return _query_postgres(url, sql, values)
    with closing(sqlite3.connect(f"file:{house.home}/state.db?mode=ro", uri=True, timeout=30)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(sql, values)]


def _query_postgres(url: str, sql: str, values: tuple[Any, ...]) -> list[dict[str, Any]]:
    import psycopg
    from psycopg.rows import dict_row

    with psycopg.connect(url, row_factory=dict_row) as connection:
        rows = connection.execute(sql.replace("?", "%s"), values).fetchall()
    return [
        {name: json.dumps(each) if isinstance(each, dict | list) else each for name, each in row.items()}
        for row in rows
    ]


def change(house: House, sql: str, *values: Any) -> None:
    """Write to the database beside its owner, which must not be looking."""
    if url := house.environment.get("TANDEMN_DATABASE_URL"):
        import psycopg

        with psycopg.connect(url) as server:
            server.execute(sql.replace("?", "%s"), values)
        return
    with closing(sqlite3.connect(house.home / "state.db", timeout=30)) as connection, connection:
        connection.execute(sql, values)


@contextmanager
def nobody_can_write(house: House) -> Iterator[None]:
    """Hold up whoever would write to the database: a leader's beats with all else."""
    if url := house.environment.get("TANDEMN_DATABASE_URL"):
        import psycopg

        with psycopg.connect(url) as server:
            server.execute("LOCK TABLE control_planes IN EXCLUSIVE MODE")
            yield
            server.rollback()
        return
    with closing(sqlite3.connect(house.home / "state.db", timeout=30)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


def status(house: House, job_id: str) -> dict[str, Any]:
    """As `tandemn status JOB --json`, without a process for it."""
    url = json.loads((house.home / "server.json").read_text())["url"]
    with urllib.request.urlopen(f"{url}/api/jobs/{job_id}", timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def ask(house: House, method: str, path: str, **fields: Any) -> dict[str, Any]:
    """Call the API as a command does, at once: on a busy machine a command takes seconds to start."""
    url = json.loads((house.home / "server.json").read_text())["url"]
    body = json.dumps(fields).encode() if fields else None
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/api/jobs/{path}", method=method, data=body, headers=headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def state(house: House, job_id: str) -> str:
    return str(query(house, "SELECT state FROM jobs WHERE job_id = ?", job_id)[0]["state"])


def wait(house: House, job_id: str, wanted: str) -> dict[str, Any]:
    """Wait until the job has ended in this state; cheaper than a command each time."""
    ends = {"completed", "failed", "cancelled", "expired", "over_budget"}
    try:
        house.wait_for(lambda: state(house, job_id) in ends)
    except AssertionError as exc:
        told = "\n".join(
            f"{each['at']:.1f} {each['kind']} {each['data']}" for each in events(house, job_id)[-40:]
        )
        raise AssertionError(f"the job is {state(house, job_id)}, not {wanted}:\n{told}") from exc
    found = status(house, job_id)
    assert found["state"] == wanted, found
    return found


def events(house: House, job_id: str, *kinds: str) -> list[dict[str, Any]]:
    """Every event of the job of these kinds, oldest first, with its data at the top."""
    found = query(house, "SELECT * FROM events WHERE job_id = ? ORDER BY seq", job_id)
    return [json.loads(each["data"]) | each for each in found if not kinds or each["kind"] in kinds]


def replicas(house: House, job_id: str, *states: str) -> list[dict[str, Any]]:
    found = query(house, "SELECT * FROM replicas WHERE job_id = ? ORDER BY created_at", job_id)
    return [
        each | {"pid": json.loads(each["handle"] or "{}").get("pid"), "config": json.loads(each["config"])}
        for each in found
        if not states or each["state"] in states
    ]


def chunks(house: House, job_id: str) -> list[dict[str, Any]]:
    return query(house, "SELECT * FROM chunks WHERE job_id = ? ORDER BY chunk", job_id)


def computing(house: House, job_id: str) -> list[dict[str, Any]]:
    """Replicas that have begun to compute and go on."""
    return [each for each in replicas(house, job_id, "running") if each["began_at"] is not None]


def done(house: House, job_id: str) -> int:
    """How many chunks are done."""
    return sum(each["done"] for each in chunks(house, job_id))


def kill(pid: int | None, number: int = signal.SIGKILL) -> None:
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def family(pid: int) -> list[psutil.Process]:
    """A runner, its leash and its engine."""
    runner = psutil.Process(pid)
    return [runner, *runner.children(recursive=True)]


def engine_of(pid: int) -> psutil.Process | None:
    """The engine of a runner: its leash's only child."""
    for leash in psutil.Process(pid).children():
        for engine in leash.children():
            return engine
    return None


def kill_server(house: House) -> None:
    """`kill -9` the control plane and wait for its end."""
    process = psutil.Process(house.server_pid())
    process.kill()
    with suppress(psutil.Error):
        process.wait(10)


def redis_pid(house: House) -> int:
    return int(json.loads((house.home / "redis" / "redis.json").read_text())["pid"])


def journal(path: Path) -> Counter[str]:
    """How often each prompt was computed by any engine (`--journal`)."""
    return Counter(path.read_text().split()) if path.exists() else Counter()


def check_output(house: House, job_id: str, ids: list[str]) -> list[dict[str, Any]]:
    """Download: every id exactly once in output or errors, each in input order. Returns the error lines."""
    out = house.home / "out.jsonl"
    done = house.run("download", job_id, "-o", str(out))
    assert done.returncode == 0, done.stderr
    errors_path = out.with_name("out.jsonl.errors.jsonl")
    if not errors_path.exists():
        errors_path = out.with_name("out.errors.jsonl")
    answered = [line["custom_id"] for line in read_lines(out)] if out.exists() else []
    failed = read_lines(errors_path) if errors_path.exists() else []
    failed_ids = [line["custom_id"] for line in failed]
    place = {name: at for at, name in enumerate(ids)}
    assert sorted(answered + failed_ids, key=place.__getitem__) == ids, "an id is missing or there twice"
    for found in (answered, failed_ids):
        assert found == sorted(found, key=place.__getitem__), "not in input order"
    return failed


def check_nothing_left(house: House, job_id: str) -> None:
    """No process, port, temporary folder, stored part or Redis key of an ended job remains."""
    import redis

    living = replicas(house, job_id, "pending", "launching", "starting", "running", "draining")
    assert not living, living
    for process in house.processes():
        line = " ".join(process.cmdline())
        assert job_id not in line, f"still running: {line}"
        assert "tandemn.runner" not in line, f"still running: {line}"
        assert "engines" not in line, f"still running: {line}"
    work = house.home / "work"
    assert not work.exists() or not list(work.iterdir()), list(work.iterdir())
    left = [path for path in (house.home / "objects" / "jobs" / job_id).rglob("*") if path.is_file()]
    assert {path.name for path in left} <= {"output.jsonl", "errors.jsonl"}, left
    record = json.loads((house.home / "redis" / "redis.json").read_text())
    with closing(redis.Redis(unix_socket_path=record["socket"])) as client:
        keys = client.keys(f"*{job_id}*")
    assert not keys, keys


def runners(house: House) -> Counter[str]:
    """How many runners there are of each replica at one moment, the end of the scan: while it goes on, one may follow
    another.
    """
    lines = []
    for process in house.processes():
        with suppress(psutil.Error):
            lines.append(process.cmdline())
    # What a runner starts is called otherwise: its leash and its engine.
    return Counter(
        line[line.index("--replica") + 1] for line in lines if line[1:3] == ["-m", "tandemn.runner"]
    )
