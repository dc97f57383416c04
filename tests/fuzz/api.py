"""The control plane's API, from its own OpenAPI document, against a real server process: schemathesis makes up
the requests. No answer may be a 5xx, none may fail to come, and memory stays bounded.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import psutil
from tests.process.house import House, chat_lines

#: An answer that has not come by then is a hang; a long poll is held back for 30 s.
HANG_S = 45
#: Memory of the control plane; it begins at some 140 MB.
RSS_BYTES = 600_000_000
#: Made-up requests to each operation before the next one has its turn.
EXAMPLES = 25
#: Of what went wrong, so many characters are shown.
TOLD = 20_000


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.fuzz.api")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int)
    options = parser.parse_args()
    house = House(
        Path(tempfile.mkdtemp(prefix="tdm-")), TANDEMN_LOCAL_SLOTS="2", AWS_EC2_METADATA_DISABLED="true"
    )
    try:
        started = house.run("server", "start")
        assert started.returncode == 0, started.stderr
        return _fuzz(house, options.seconds, options.seed)
    finally:
        try:
            house.close()
        finally:
            shutil.rmtree(house.home, ignore_errors=True)


def _fuzz(house: House, seconds: int, seed: int | None) -> int:
    record = json.loads((house.home / "server.json").read_text())
    server = psutil.Process(record["pid"])
    highest = [0]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            highest[0] = max(highest[0], server.memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        cases, problems = _rounds(house, record, seconds, seed or random.SystemRandom().randrange(10**9))
    finally:
        over.set()
        watching.join()
    if highest[0] > RSS_BYTES:
        problems.append(f"the control plane took {highest[0]} bytes")
    log = (house.home / "logs" / "server.log").read_text(errors="replace")
    if "request failed" in log or "Traceback" in log:
        problems.append(log[-TOLD:])
    began = time.monotonic()
    if house.run("list", "--json").returncode != 0 or time.monotonic() - began > HANG_S:
        problems.append("it does not answer any more")
    for problem in problems:
        print(problem, file=sys.stderr)
    result = {"part": "api", "seconds": seconds, "cases": cases, "failures": len(problems)}
    print(json.dumps({**result, "rss_mb": highest[0] // 1_000_000}))
    return int(bool(problems))


def _rounds(house: House, record: dict[str, str], seconds: int, seed: int) -> tuple[int, list[str]]:
    """Go over all operations again and again, with other seeds; return how many cases, and what was wrong.

    Every other round names objects that are there, so that the requests get beyond the question whether they are.
    """
    # Beside the interpreter that runs this: another `st` on PATH is none of ours.
    command = [
        str(Path(sys.executable).with_name("st")),
        "--no-color",
        "run",
        f"{record['url']}/openapi.json",
    ]
    command += ["--request-timeout", str(HANG_S), "--phases", "coverage,fuzzing", "--workers", "2"]
    command += ["--max-examples", str(EXAMPLES), "--checks", "not_a_server_error"]
    command += ["--generation-allow-x00", "true", "--continue-on-failure", "--warnings", "off"]
    end, cases = time.monotonic() + seconds, 0
    while (left := end - time.monotonic()) > 0:
        there = _objects(house, record) if seed % 2 else None
        (house.home / "schemathesis.toml").write_text(_config(record["key"], there))
        done = subprocess.run(
            [*command, "--max-time", str(max(1, round(left))), "--seed", str(seed)],
            capture_output=True,
            text=True,
            check=False,
            cwd=house.home,
        )
        found = re.search(r"(\d+) generated", done.stdout)
        cases += int(found[1]) if found else 0
        if done.returncode != 0:
            return cases, [f"seed {seed}: " + (done.stdout + done.stderr)[-TOLD:]]
        seed += 1
    return cases, []


def _objects(house: House, record: dict[str, str]) -> dict[str, str]:
    """Make a file, and a job that runs for a while; its replica's own token is read where it was given."""
    (house.home / "in.jsonl").write_text(chat_lines(200, max_tokens=1000))
    job_id = house.submit(
        "any/model", "in.jsonl", "--slo", "1h", "--engine", "simulated", "--", "--decode-step-s", "1"
    )
    status = house.wait(job_id, "running")
    replica = status["replicas"][0]
    request = urllib.request.Request(
        f"{record['url']}/v1/files?limit=1", headers={"Authorization": f"Bearer {record['key']}"}
    )
    with urllib.request.urlopen(request) as answer:
        file_id = json.load(answer)["data"][0]["id"]
    token = psutil.Process(replica["pid"]).environ()["TANDEMN_REPLICA_TOKEN"]
    return {"job_id": job_id, "file_id": file_id, "replica_id": replica["replica_id"], "token": token}


def _config(key: str, there: dict[str, str] | None) -> str:
    """Write schemathesis's configuration: who calls, and which objects the paths name."""
    lines = ["[headers]", f'Authorization = "Bearer {key}"']
    if there is not None:
        names = {"job_id": "job_id", "batch_id": "job_id", "file_id": "file_id", "replica_id": "replica_id"}
        lines += ["[parameters]", *(f'"path.{name}" = "{there[kept]}"' for name, kept in names.items())]
        lines += ["[[operations]]", 'include-path-regex = "^/api/replicas/"']
        lines += [f'headers = {{ Authorization = "Bearer {there["token"]}" }}']
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
