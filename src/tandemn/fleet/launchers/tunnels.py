"""Reverse SSH tunnels over SkyPilot's own SSH access: how replicas reach a control plane that listens on loopback only.

SkyPilot writes an SSH configuration for each of its clusters; `ssh -R` over it makes the control plane appear on a
loopback port of every node. A tunnel that breaks is opened again, later and later while it fails. Each `ssh` is held on
a leash and dies with the control plane: the next one opens its own.
"""

from __future__ import annotations

import hashlib
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

import structlog

from tandemn.settings import python_executable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_log = structlog.get_logger()

#: Ports of the nodes' loopback that tunnels take: below those that kernels give out by themselves. Where several
#: replicas share a machine (Slurm), each needs one of its own, so that it is picked by the replica's name.
PORTS = range(20000, 32000)
#: Wait before a broken tunnel is opened again, doubled while it fails, from the first to the last of these, in seconds.
BACKOFF_S = (2.0, 60.0)
#: A tunnel that held so long was a good one: the next wait is the first again, in seconds.
HELD_S = 30.0
#: How long SkyPilot may take to write a cluster's SSH configuration, in seconds.
CONFIGURE_S = 120.0
#: The leash gives `ssh` this long to end, in seconds.
GRACE_S = 2
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class Shell(Protocol):
    """Where SkyPilot's clusters can be reached from: `environment.SkyPilot` is one."""

    @property
    def environment(self) -> Mapping[str, str]: ...

    @property
    def home(self) -> Path: ...

    @property
    def python(self) -> str: ...


@dataclass(slots=True)
class _Tunnel:
    node: str
    server_port: int
    port: int
    process: subprocess.Popen[bytes] | None = None
    opened_at: float = 0.0
    failures: int = 0
    not_before: float = 0.0

    @property
    def cluster(self) -> str:
        return self.node.rpartition("-worker")[0] or self.node


def needs_tunnel(server_url: str) -> bool:
    """Whether replicas elsewhere cannot reach this address."""
    return urlsplit(server_url).hostname in LOOPBACK


def port_of(replica_id: str) -> int:
    """The port of the nodes' loopback at which a replica finds its control plane."""
    digest = hashlib.sha256(replica_id.encode()).digest()
    return PORTS[int.from_bytes(digest[:4], "big") % len(PORTS)]


def url_for(replica_id: str, server_url: str) -> str:
    """The control plane's address as a replica elsewhere sees it."""
    return f"http://127.0.0.1:{port_of(replica_id)}" if needs_tunnel(server_url) else server_url


def node_names(cluster: str, nodes: int) -> list[str]:
    """Name a cluster's nodes as SkyPilot's SSH configuration does."""
    return [cluster, *(f"{cluster}-worker{number}" for number in range(1, nodes))]


class Tunnels:
    """All tunnels of a control plane; `keep` is called every few seconds with those that there should be.

    Args:
        shell: SkyPilot's environment.
        log: what `ssh` says.
    """

    def __init__(self, shell: Shell, log: Path) -> None:
        self._shell = shell
        self._log = log
        self._tunnels: dict[str, _Tunnel] = {}
        self._lock = threading.Lock()

    def keep(self, wanted: Mapping[str, tuple[int, int]]) -> None:
        """Open what is missing or broken, close what is not wanted any more.

        Args:
            wanted: node -> the control plane's port, and the port at which the node should find it.
        """
        with self._lock:
            for node in [each for each in self._tunnels if each not in wanted]:
                _close(self._tunnels.pop(node))
            for node, (server_port, port) in wanted.items():
                self._tunnels.setdefault(node, _Tunnel(node, server_port, port))
            now = time.monotonic()
            due = [tunnel for tunnel in self._tunnels.values() if _is_due(tunnel, now)]
            self._configure(due)
            for tunnel in due:
                self._open(tunnel, now)

    def close(self) -> None:
        """End them all."""
        self.keep({})

    def _open(self, tunnel: _Tunnel, now: float) -> None:
        folder = self._shell.home / ".sky" / "generated"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        command = ["ssh", "-F", str(folder / "ssh" / tunnel.cluster), "-N"]
        key = folder / "ssh-keys" / f"{tunnel.cluster}.key"
        if key.exists():
            # The configuration says ~, which ssh takes for the home of the user's account, whatever HOME says.
            command += ["-i", str(key)]
        for option in (
            "BatchMode=yes",
            "ExitOnForwardFailure=yes",
            "ServerAliveInterval=5",
            "ServerAliveCountMax=3",
            "ConnectTimeout=30",
            "LogLevel=ERROR",
        ):
            command += ["-o", option]
        command += ["-R", f"127.0.0.1:{tunnel.port}:127.0.0.1:{tunnel.server_port}", tunnel.node]
        leash = [python_executable(), "-m", "tandemn.fleet.engines.leash", "--grace-s", str(GRACE_S), "--"]
        with self._log.open("ab") as log:
            tunnel.process = subprocess.Popen(  # noqa: S603 - ssh, with names that we gave
                [*leash, *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=dict(self._shell.environment),
                start_new_session=True,
            )
        tunnel.opened_at = now
        _log.info("tunnel opened", node=tunnel.node, port=tunnel.port)

    def _configure(self, due: Sequence[_Tunnel]) -> None:
        """Have SkyPilot write SSH configurations, as its own command line does for a person."""
        folder = self._shell.home / ".sky" / "generated" / "ssh"
        # After a failure the address may be another one.
        stale = {each.cluster for each in due if each.failures > 1 or not (folder / each.cluster).exists()}
        if not stale:
            return
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(  # noqa: S603 - SkyPilot's own command line
                [self._shell.python, "-c", _SKY, "status", *sorted(stale)],
                env=dict(self._shell.environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=CONFIGURE_S,
                check=False,
            )


#: The `sky` command, run by the Python that has it: the script itself may be anywhere.
_SKY = "from sky.cli import cli; cli()"


def _is_due(tunnel: _Tunnel, now: float) -> bool:
    """Whether it is to be opened now; one that broke since the last look is given a time first."""
    if tunnel.process is not None:
        if tunnel.process.poll() is None:
            return False
        held_s = now - tunnel.opened_at
        tunnel.failures = 1 if held_s > HELD_S else tunnel.failures + 1
        wait_s = min(BACKOFF_S[0] * 2 ** (tunnel.failures - 1), BACKOFF_S[1])
        tunnel.not_before = now + wait_s
        _log.info("tunnel broke", node=tunnel.node, held_s=round(held_s), again_in_s=wait_s)
        _close(tunnel)
    return now >= tunnel.not_before


def _close(tunnel: _Tunnel) -> None:
    process, tunnel.process = tunnel.process, None
    if process is not None:
        assert process.stdin is not None
        process.stdin.close()  # the leash lets go and ends it
        try:
            process.wait(2 * GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
