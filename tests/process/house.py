"""A state folder with everything in it for real: control plane, Redis, runners, engines. Ends what it starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

import psutil
from tests import postgres_server

#: Nothing in these tests may take longer; a hang is a failure.
PATIENCE_S = 120.0


class House:
    """Runs the command line against its own state folder."""

    command = (sys.executable, "-m", "tandemn.cli")

    def __init__(self, home: Path, **environment: str) -> None:
        self.home = home
        self.environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("TANDEMN_", "AWS_", "KOI_")) or key == "TANDEMN_LOCAL_ROUTER_PORT"
        } | {"TANDEMN_HOME": str(home), **environment}
        if postgres_server.IS_WANTED:
            self.environment.setdefault("TANDEMN_DATABASE_URL", postgres_server.fresh_database())

    def run(self, *arguments: str, timeout: float = PATIENCE_S) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        return subprocess.run(
            [*self.command, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            cwd=self.home,
        )

    def json(self, *arguments: str) -> Any:
        """Run a reading command and parse what it says."""
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Begin a command that goes on beside the test."""
        return subprocess.Popen(
            [*self.command, *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.home,
        )

    def submit(self, *arguments: str) -> str:
        done = self.run("deploy", "--json", *arguments)
        assert done.returncode == 0, done.stderr
        job_id: str = json.loads(done.stdout)["job_id"]
        return job_id

    def status(self, job_id: str) -> dict[str, Any]:
        status: dict[str, Any] = self.json("status", job_id)
        return status

    def wait(self, job_id: str, *states: str, timeout: float = PATIENCE_S) -> dict[str, Any]:
        """Wait until the job is in one of the states; an end in another one fails at once."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            status = self.status(job_id)
            if status["state"] in states:
                return status
            over = status["state"] in {"completed", "failed", "cancelled", "expired"}
            assert not over, f"{status['state']}: {status['reason']}"
            time.sleep(0.2)
        raise AssertionError(f"{job_id} did not get to {states}: {self.status(job_id)}")

    def wait_for(self, condition: Any, timeout: float = PATIENCE_S) -> Any:
        """Wait until `condition()` is true, and return what it is."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if found := condition():
                return found
            time.sleep(0.1)
        raise AssertionError(f"it never came true: {condition}")

    def server_pid(self) -> int:
        return int(json.loads((self.home / "server.json").read_text())["pid"])

    def processes(self) -> list[psutil.Process]:
        """Every living process of this state folder."""
        mine = str(self.home)
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.pid != os.getpid() and (
                    process.environ().get("TANDEMN_HOME") == mine
                    or any(mine in part for part in process.cmdline())
                    # Redis, which shortens its command line.
                    or process.cwd().startswith(mine + os.sep)
                ):
                    found.append(process)
        return found

    def close(self) -> None:
        """Stop everything, by force where it does not end; fails where something had to be forced."""
        self.run("server", "stop")
        deadline = time.monotonic() + 10
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        for process in left:
            with suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        assert not left, f"still running after `server stop`: {left}"


def chat_lines(count: int, *, max_tokens: int = 16, model: str | None = None, prefix: str = "r") -> str:
    """Requests of which each asks for something else."""
    lines = []
    for number in range(count):
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": f"Number {number}, please."}],
            "max_tokens": max_tokens,
            "temperature": 0,
        }
        if model:
            body["model"] = model
        line = {
            "custom_id": f"{prefix}{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": body,
        }
        lines.append(json.dumps(line))
    return "\n".join(lines) + "\n"


def read_lines(path: Path) -> list[dict[str, Any]]:
    with path.open() as lines:
        return [json.loads(line) for line in lines]
