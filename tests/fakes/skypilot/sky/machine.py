"""One "cluster": provisions after a while, runs setup and run in a folder of its own, and dies with its file."""

import contextlib
import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(os.environ["FAKE_SKY"])


def main(request_id, name):
    sys.path.insert(0, str(Path(__file__).parents[1]))
    sky = importlib.import_module("sky")
    task = sky._read(f"tasks/{name}.json")
    faults = sky._read("faults.json") or {}
    request = sky._read(f"requests/{request_id}.json")
    resources = task["resources"]
    offers = resources.get("ordered") or resources.get("any_of") or [resources]
    offer, history = None, []
    for each in offers:
        infra = each.get("infra") or ""
        if any(f"{infra}/".startswith(f"{place}/") for place in faults.get("unavailable", [])):
            history.append(f"Failed to acquire resources in {infra}: out of capacity")
        else:
            offer = each
            break
    where = (offer or {}).get("infra", "").split("/")
    cloud, region, zone = (where + [None] * 3)[:3]
    record = {
        "name": name,
        "status": "INIT",
        "launched_at": int(time.time()),
        "cloud": cloud,
        "region": region,
        "handle": None,
    }
    if request["status"] == "CANCELLED":
        return  # the API server ends the process of a request that is cancelled: nothing comes of it any more
    sky._write(f"clusters/{name}.json", record)
    up_at = time.monotonic() + faults.get("boot_s", 0)
    while time.monotonic() < up_at:
        if is_over() or not (FOLDER / "clusters" / f"{name}.json").exists():
            return
        time.sleep(0.1)
    request = sky._read(f"requests/{request_id}.json")
    if request["status"] == "CANCELLED":
        return  # a cluster that was on its way stays: it is for `down` to end it
    error = faults.get("error")
    if offer is None or error:
        (FOLDER / "clusters" / f"{name}.json").unlink(missing_ok=True)
        if not error:
            error = {
                "type": "ResourcesUnavailableError",
                "message": "Failed to provision",
                "history": history,
            }
        sky._write(f"requests/{request_id}.json", {**request, "status": "FAILED", "error": error})
        return
    if sky._read(f"clusters/{name}.json") is None:
        return  # ended while it came up
    machine = FOLDER / "machines" / name
    is_new = not machine.exists()
    machine.parent.mkdir(parents=True, exist_ok=True)
    machine.write_text(str(os.getpid()))
    handle = {
        "cloud": cloud,
        "region": region,
        "zone": zone,
        "use_spot": offer.get("use_spot"),
        "instance_type": offer.get("instance_type"),
    }
    ports = open_ports(offer.get("ports") or [], name, sky)
    sky._write(f"clusters/{name}.json", {**record, "status": "UP", "handle": handle})
    sky._write(f"requests/{request_id}.json", {**request, "status": "SUCCEEDED", "result": [1, handle]})
    run(task, name, machine, ports, is_new=is_new)


def is_over():
    """Whether the test is over: nothing of it must go on."""
    return (FOLDER / "over").exists() or not FOLDER.exists()


def open_ports(wanted, name, sky):
    """Give a machine's ports numbers of their own here: it has no address of its own. They last as long as it does."""
    known = sky._read(f"ports/{name}.json")
    if known is None:
        known = {}
        for port in wanted:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                known[str(port)] = f"127.0.0.1:{free.getsockname()[1]}"
        if known:
            sky._write(f"ports/{name}.json", known)
    return {port: where.rpartition(":")[2] for port, where in known.items()}


def run(task, name, machine, ports, *, is_new):
    home = FOLDER / "homes" / name
    if is_new:
        shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True, exist_ok=True)
    for there, here in (task.get("file_mounts") or {}).items():
        target = home / there.replace("~/", "")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(here, target) if Path(here).is_dir() else shutil.copy(here, target)
    # What the task's setup installs on a real machine: here it is this test's own environment.
    python = home / ".tandemn" / "env" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    # Listening on all addresses of the machine is listening on loopback here, on the port that its own stands for.
    words = "".join(f'words=("${{words[@]/#{port}/{own}}}")\n' for port, own in ports.items())
    python.write_text(
        f'#!/bin/bash\nwords=("${{@/#0.0.0.0/127.0.0.1}}")\n{words}exec "{sys.executable}" "${{words[@]}}"\n'
    )
    python.chmod(0o755)
    environment = {
        **os.environ,
        "HOME": str(home),
        **(task.get("envs") or {}),
        **(task.get("secrets") or {}),
        "SKYPILOT_NODE_RANK": "0",
        "SKYPILOT_NODE_IPS": "127.0.0.1",
    }
    script = (
        f"{task.get('setup') or ''}\n{task['run']}\n" if os.environ.get("FAKE_SKY_SETUP") else task["run"]
    )
    with (home / "run.log").open("ab") as log:
        process = subprocess.Popen(
            ["bash", "-c", script],
            cwd=home,
            env=environment,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    # The machine is there as long as its file: `down` and preemption remove it. The job may end before.
    told = False
    while machine.exists() and not is_over():
        process.poll()
        if (FOLDER / "cancelled" / name).exists() and not told:
            told = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
