"""A stand-in for the `sky` package, at its outermost edge: the same functions, errors and habits, and "clusters" that
are processes of this machine running the task's own setup and run commands.

What there is lies in the folder that FAKE_SKY names, so that it outlives whoever asked for it, as SkyPilot's API server
does. `faults.json` in it says what goes wrong: see `Faults` in `tests/fakes/sky.py`.
"""

import builtins
import enum
import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

from . import exceptions

__version__ = os.environ.get("FAKE_SKY_VERSION", "0.14.1")
FOLDER = Path(os.environ["FAKE_SKY"])


class RequestId(str):
    __slots__ = ()


class StatusRefreshMode(enum.Enum):
    NONE = "NONE"
    AUTO = "AUTO"
    FORCE = "FORCE"


class ClusterStatus(enum.Enum):
    INIT = "INIT"
    UP = "UP"
    STOPPED = "STOPPED"


class Task:
    def __init__(self, config):
        self.config = config

    @staticmethod
    def from_yaml_config(config):
        unknown = set(config) - {
            "name",
            "resources",
            "num_nodes",
            "setup",
            "run",
            "envs",
            "secrets",
            "service",
            "file_mounts",
        }
        if unknown:
            raise ValueError(f"Found unsupported field: {', '.join(sorted(unknown))}")
        return Task(config)


def _request(name, **facts):
    """Record a request, as the API server does."""
    _note(name, facts)
    request_id = RequestId(uuid.uuid4().hex)
    _write(
        f"requests/{request_id}.json",
        {"request_id": request_id, "name": name, "created_at": time.time(), **facts},
    )
    return request_id


def _note(name, facts):
    with (FOLDER / "calls.jsonl").open("a") as file:
        file.write(json.dumps({"name": name, **{k: v for k, v in facts.items() if k != "result"}}) + "\n")


def _write(name, value):
    path = FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}.{uuid.uuid4().hex}.new")
    fresh.write_text(json.dumps(value))
    fresh.rename(path)


def _read(name):
    try:
        return json.loads((FOLDER / name).read_text())
    except FileNotFoundError:
        return None


def _done(name, result=None, error=None):
    return _request(name, status="SUCCEEDED" if error is None else "FAILED", result=result, error=error)


def launch(task, cluster_name, down=False, idle_minutes_to_autostop=None):
    # SkyPilot prints: it must not reach the worker's answers.
    sys.stdout.write(f"Running on cluster: {cluster_name}\n")
    faults = _read("faults.json") or {}
    if "launch" in faults.get("refuse", {}):
        raise getattr(exceptions, faults["refuse"]["launch"])("refused at once")
    request_id = _request(
        "sky.launch",
        status="RUNNING",
        cluster_name=cluster_name,
        down=down,
        idle_minutes=idle_minutes_to_autostop,
    )
    _write(f"tasks/{cluster_name}.json", task.config)
    (FOLDER / "cancelled" / cluster_name).unlink(missing_ok=True)
    machine = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("machine.py")), request_id, cluster_name],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    (FOLDER / "processes" / str(machine.pid)).touch()
    return request_id


def get(request_id):
    while True:
        request = _read(f"requests/{request_id}.json")
        if request is None:
            raise RuntimeError(f"Failed to get request {request_id}: 404")
        if request["status"] == "CANCELLED":
            raise exceptions.RequestCancelled(
                f"Current request ({request_id}) is cancelled by another process."
            )
        if request["status"] == "FAILED":
            error = request["error"]
            where = exceptions if hasattr(exceptions, error["type"]) else builtins
            exc = getattr(where, error["type"])(error["message"])
            exc.failover_history = [
                exceptions.ResourcesUnavailableError(each) for each in error.get("history", [])
            ]
            raise exc
        if request["status"] == "SUCCEEDED":
            return request.get("result")
        time.sleep(0.02)


def api_info():
    faults = _read("faults.json") or {}
    if faults.get("slow_starts"):
        _write("faults.json", {**faults, "slow_starts": faults["slow_starts"] - 1})
        raise RuntimeError("Failed to start SkyPilot API server at http://127.0.0.1:46580")
    return {"status": "healthy"}


def status(cluster_names=None, refresh=StatusRefreshMode.NONE, all_users=False):
    records = []
    for path in sorted((FOLDER / "clusters").glob("*.json")):
        record = _read(f"clusters/{path.name}")
        if record is None or (cluster_names is not None and record["name"] not in cluster_names):
            continue
        if refresh is StatusRefreshMode.FORCE and not _exists(record):
            path.unlink(missing_ok=True)
            continue
        records.append(record)
    faults = _read("faults.json") or {}
    if "status" in faults.get("refuse", {}):
        return _done("sky.status", error={"type": faults["refuse"]["status"], "message": "not now"})
    return _done("sky.status", records)


def _exists(record):
    return record["status"] == "INIT" or (FOLDER / "machines" / record["name"]).exists()


def api_status(request_ids=None, all_status=False, limit=None, fields=None, cluster_name=None):
    found = [_read(f"requests/{path.name}") for path in sorted((FOLDER / "requests").glob("*.json"))]
    live = {"PENDING", "RUNNING"}
    return [
        {
            "request_id": each["request_id"],
            "name": each["name"],
            "status": each["status"],
            "cluster_name": each.get("cluster_name"),
            "request_body": each.get("request_body", "{}"),
            "created_at": each.get("created_at"),
        }
        for each in found
        if each is not None
        and (request_ids is None or each["request_id"] in request_ids)
        and (all_status or request_ids is not None or each["status"] in live)
        and (cluster_name is None or each.get("cluster_name") == cluster_name)
    ]


def api_cancel(request_ids=None, silent=False):
    for request_id in request_ids or []:
        request = _read(f"requests/{request_id}.json")
        if request and request["status"] == "RUNNING":
            _write(f"requests/{request_id}.json", {**request, "status": "CANCELLED"})
    return _done("sky.api_cancel", list(request_ids or []))


def down(cluster_name, purge=False):
    if (_read("faults.json") or {}).get("refuse", {}).get("down"):
        return _done(
            "sky.down", error={"type": "RuntimeError", "message": "Failed to tear down the cluster."}
        )
    if _read(f"clusters/{cluster_name}.json") is None:
        message = f"Cluster {cluster_name!r} does not exist."
        return _done("sky.down", error={"type": "ClusterDoesNotExist", "message": message})
    (FOLDER / "machines" / cluster_name).unlink(missing_ok=True)
    (FOLDER / "clusters" / f"{cluster_name}.json").unlink(missing_ok=True)
    return _done("sky.down")


def cancel(cluster_name, all=False, job_ids=None):  # noqa: A002 - SkyPilot's own name
    if _read(f"clusters/{cluster_name}.json") is None:
        message = f"Cluster {cluster_name!r} does not exist."
        return _done("sky.cancel", error={"type": "ClusterDoesNotExist", "message": message})
    _write(f"cancelled/{cluster_name}", True)
    return _done("sky.cancel")


def job_status(cluster_name, job_ids=None):
    if _read(f"clusters/{cluster_name}.json") is None:
        message = f"Cluster {cluster_name!r} does not exist."
        return _done("sky.job_status", error={"type": "ClusterDoesNotExist", "message": message})
    is_cancelled = (FOLDER / "cancelled" / cluster_name).exists()
    command = (_read("faults.json") or {}).get("command") or ("CANCELLED" if is_cancelled else "RUNNING")
    return _done("sky.job_status", {"1": command})


def endpoints(cluster, port=None):
    """Clusters' ports are ports of this machine: `machine.py` has picked them."""
    opened = _read(f"ports/{cluster}.json")
    if opened is None:
        error = {"type": "RuntimeError", "message": "No endpoints exposed yet."}
        return _done("sky.endpoints", error=error)
    return _done(
        "sky.endpoints", {each: where for each, where in opened.items() if port in (None, int(each))}
    )


def tail_logs(cluster_name, job_id, follow, tail=0, output_stream=None):
    if _read(f"clusters/{cluster_name}.json") is None:
        raise exceptions.ClusterDoesNotExist(f"Cluster {cluster_name!r} does not exist.")
    log = FOLDER / "homes" / cluster_name / "run.log"
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    output_stream.write("".join(lines[-tail:]))
    return 0
