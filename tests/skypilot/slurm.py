"""Real SkyPilot over a real Slurm on this machine: `tools/skypilot_slurm` sets it up, this starts and ends one.

Slurm runs in namespaces of its own, over a root folder of its own that it only reads; SkyPilot has a home folder of its
own and an API server on a port of its own. What a test starts is gone when the house is closed.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "tools" / "skypilot_slurm"
CACHE = ROOT / ".cache" / "skypilot-slurm"
PYTHON = CACHE / "sky" / "bin" / "python"
#: GPUs that SkyPilot knows without its catalogs, which it would fetch from where these tests do not reach.
ACCELERATORS = {"H100": 80, "L40S": 48, "L4": 24, "A100": 40, "A100-80GB": 80, "T4": 16}
READY_S = 120.0


class Slurm:
    """Two nodes, one with "H100"s and one with "L40S"s, behind one login."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.key = folder / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key)], check=True)
        self.port = _free_ports(4)
        log = folder / "slurm.log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    *("unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child=KILL"),
                    str(TOOLS / "enter.sh"),
                    *(str(CACHE / "root"), str(folder), str(self.port), str(CACHE / "uv-cache")),
                ],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        end = time.monotonic() + READY_S
        while "READY" not in log.read_text(errors="replace"):
            assert self._process.poll() is None, log.read_text(errors="replace")
            assert time.monotonic() < end, log.read_text(errors="replace")
            time.sleep(0.2)

    def run(self, *command: str) -> str:
        """Run a command on the login node."""
        options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")
        done = subprocess.run(
            [
                *("ssh", "-F", "/dev/null", "-i", str(self.key), "-p", str(self.port + 3)),
                *(part for option in options for part in ("-o", option)),
                "root@127.0.0.1",
                " ".join(command),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout

    def jobs(self) -> dict[str, str]:
        """Slurm's jobs: id -> partition."""
        rows = self.run("squeue", "-h", "-o", "'%i %P'").splitlines()
        return dict(row.split() for row in rows)

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class SkyHome:
    """A home folder in which SkyPilot knows of one Slurm, and of nothing else."""

    def __init__(self, folder: Path, slurm: Slurm) -> None:
        self.folder = folder
        (folder / ".slurm").mkdir(parents=True)
        (folder / ".slurm" / "config").write_text(
            f"Host loopback\n  HostName 127.0.0.1\n  Port {slurm.port + 3}\n  User root\n"
            f"  IdentityFile {slurm.key}\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n"
        )
        catalogs(folder)
        self.port = _free_ports(1, above=47000)
        self.environment = {
            "HOME": str(folder),
            "TANDEMN_SKYPILOT_PYTHON": str(PYTHON),
            "SKYPILOT_API_SERVER_LOCAL_PORT": str(self.port),
            "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        }

    def sky(self, *arguments: str, timeout: float = 600) -> str:
        """Run SkyPilot's own command line."""
        environment = {**os.environ, **self.environment}
        done = subprocess.run(
            [str(CACHE / "sky" / "bin" / "sky"), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def close(self) -> None:
        """End the API server of this home, and no other."""
        for process in psutil.process_iter():
            with suppress(psutil.Error, ProcessLookupError):
                line = " ".join(process.cmdline())
                if "sky.server.server" in line and f"--port={self.port}" in line:
                    os.killpg(process.pid, signal.SIGKILL)
        for process in _processes_of(self.folder):
            with suppress(psutil.Error):
                process.kill()


def catalogs(home: Path, clouds: dict[str, str] | None = None) -> None:
    """Lay down what SkyPilot would fetch: its table of GPUs, and the clouds' `vms.csv` where they are given."""
    folder = home / ".sky" / "catalogs" / "v8"
    (folder / "common").mkdir(parents=True, exist_ok=True)
    known = "".join(f"{name},\"['AWS', 'GCP', 'Slurm']\"\n" for name in sorted(ACCELERATORS))
    (folder / "common" / "accelerators.csv").write_text(f"AcceleratorName,Clouds\n{known}")
    memory = "".join(f"{name},{size},NVIDIA\n" for name, size in ACCELERATORS.items())
    (folder / "common" / "metadata.csv").write_text(f"GPU,MemoryGB,Manufacturer\n{memory}")
    for cloud, text in (clouds or {}).items():
        (folder / cloud).mkdir(exist_ok=True)
        (folder / cloud / "vms.csv").write_text(text)


def _processes_of(home: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("HOME") == str(home):
                found.append(process)
    return found


def _free_ports(count: int, above: int = 17000) -> int:
    """The first of `count` free ports in a row."""
    for first in range(above + os.getpid() % 1000, above + 3000, count):
        sockets = []
        try:
            for port in range(first, first + count):
                probe = socket.socket()
                sockets.append(probe)
                probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        finally:
            for probe in sockets:
                probe.close()
        return first
    raise AssertionError("no free ports")


def told(text: str) -> None:
    """Tell a figure, where `make test-skypilot` shows what tests print."""
    sys.stdout.write(f"\n{text}\n")
    sys.stdout.flush()
