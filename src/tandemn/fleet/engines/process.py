"""One engine as a child process: start it, wait until it answers, hear of its end, end it.

It ends with its starter whatever happens to that one (see `leash.py`), and its workers end with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import aiohttp

from tandemn.errors import EngineFailed
from tandemn.settings import python_executable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tandemn.fleet.engines.engine import EngineAdapter, EngineSpec

#: How long an engine may take to end by itself when told to; then it is killed.
STOP_GRACE_S = 10.0
#: How much longer the leash may take before it is killed, and its engine with it.
LEASH_GRACE_S = 5.0
#: Between two looks at an engine that is loading: short at first (the small ones are up in 50 ms), then longer.
FIRST_POLL_S, LAST_POLL_S = 0.02, 0.5
#: One health request; an engine that loads may accept connections and not answer.
HEALTH_TIMEOUT_S = 5.0
#: How much of the log goes into an error, in bytes and lines.
LOG_TAIL_BYTES, LOG_TAIL_LINES = 8192, 20


class EngineProcess:
    """One engine, from start to end.

    Args:
        adapter: knows the kind of engine.
        spec: what to serve and where; once it is started, it has the port that was chosen.
        log_path: what the process prints is appended here; the folder is made where it is missing.
        stop_grace_s: see STOP_GRACE_S.
        environment: more that it needs beside ours.
    """

    def __init__(
        self,
        adapter: EngineAdapter,
        spec: EngineSpec,
        log_path: Path,
        *,
        stop_grace_s: float = STOP_GRACE_S,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.adapter = adapter
        self.spec = spec
        self.log_path = log_path
        self._stop_grace_s = stop_grace_s
        self._environment = environment or {}
        self._leash: asyncio.subprocess.Process | None = None
        self._held: socket.socket | None = None
        """Keeps the engine's port from everybody else until it listens."""

    @property
    def url(self) -> str:
        """Where it answers, without a slash at the end."""
        return f"http://{self.spec.host}:{self.spec.port}"

    @property
    def headers(self) -> dict[str, str]:
        """What requests to it must carry."""
        return {"Authorization": f"Bearer {self.spec.api_key}"} if self.spec.api_key else {}

    @property
    def pid(self) -> int | None:
        """Process id of its leash: whoever kills that kills the engine. None before the start."""
        return self._leash.pid if self._leash else None

    @property
    def exit_status(self) -> int | None:
        """None while it runs or before the start; 128 + N where signal N ended it."""
        if self._leash is None or self._leash.returncode is None:
            return None
        status = self._leash.returncode
        return status if status >= 0 else 128 - status

    async def start(self) -> None:
        """Start the process; it is not ready yet.

        Raises:
            InvalidInput, MissingDependency: this machine cannot run it.
            EngineFailed: `engine_start_failed` where the port is in use.
        """
        assert self._leash is None, "an engine process starts once"
        self.adapter.check(self.spec)
        try:
            self._held = _hold_port(self.spec.host, self.spec.port)
        except OSError as exc:
            raise EngineFailed(
                f"port {self.spec.port} of {self.spec.host} is in use",
                code="engine_start_failed",
                next_step="give the engine another port",
            ) from exc
        try:
            self.spec = replace(self.spec, port=self._held.getsockname()[1])
            await self._start()
        except BaseException:
            self._let_go_of_port()
            raise

    async def _start(self) -> None:
        command = [python_executable(), "-m", "tandemn.fleet.engines.leash"]
        command += ["--grace-s", str(self._stop_grace_s), "--", *self.adapter.command(self.spec)]
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._leash = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,  # never written to: its end tells the leash of ours
                stdout=log,
                stderr=log,
                env={**os.environ, **self._environment, **self.adapter.environment(self.spec)},
                start_new_session=True,
            )

    async def wait_ready(self, timeout_s: float) -> None:
        """Return when the engine answers; end it and raise where it does not.

        Raises:
            EngineFailed: `engine_start_failed` as soon as the process ends, `engine_start_timeout` after
                `timeout_s`; the message has the end of the log.
        """
        try:
            await self._wait_healthy(timeout_s)
        finally:
            self._let_go_of_port()

    async def _wait_healthy(self, timeout_s: float) -> None:
        until = time.monotonic() + timeout_s
        poll_s = FIRST_POLL_S
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=HEALTH_TIMEOUT_S)) as session:
            while not await _is_healthy(session, f"{self.url}/health"):
                self._check_alive_while_loading()
                if time.monotonic() > until:
                    await self.stop()
                    raise self._failure(f"is not ready after {timeout_s:g} s", code="engine_start_timeout")
                await asyncio.sleep(poll_s)
                poll_s = min(poll_s * 1.5, LAST_POLL_S)
        # What answered may have died since.
        self._check_alive_while_loading()

    def _check_alive_while_loading(self) -> None:
        if self.exit_status is not None:
            raise self._failure(
                f"ended with status {self.exit_status} while loading", code="engine_start_failed"
            )

    def _failure(self, what: str, *, code: str) -> EngineFailed:
        tail = log_tail(self.log_path)
        return EngineFailed(
            f"engine {self.spec.engine} for {self.spec.model} {what}" + (f":\n{tail}" if tail else ""),
            code=code,
            next_step=f"read {self.log_path}",
        )

    async def wait_dead(self) -> int:
        """Return the exit status when the engine has ended; 128 + N where signal N ended it."""
        assert self._leash is not None, "it was not started"
        await self._leash.wait()
        status = self.exit_status
        assert status is not None, "wait() sets it"
        return status

    async def stop(self) -> None:
        """End it, with its workers: SIGTERM, then SIGKILL when the grace is over. Any number of times."""
        self._let_go_of_port()
        if self._leash is None or self._leash.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._leash.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._leash.wait(), self._stop_grace_s + LEASH_GRACE_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._leash.kill()
            await self._leash.wait()

    def _let_go_of_port(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None


async def _is_healthy(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False


def _hold_port(host: str, port: int) -> socket.socket:
    """Bind a port, any free one where it is 0, so that nobody gets it but a server that asks for it by number.

    A port that is only looked up, or let go of before the engine listens, is given to whoever comes meanwhile: a
    connection of anybody's, or another engine, which would then answer for this one. The kernel gives a bound port
    to none of them; it lets a server bind the same one where both sockets allow that and ours does not listen
    (Linux, `inet_csk_bind_conflict`). Servers ask for SO_REUSEADDR (asyncio, uvicorn) or SO_REUSEPORT (llama.cpp),
    vLLM's for both.

    Raises:
        OSError: it is in use.
    """
    held = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        # As servers do: connections of a former server that linger do not make a port taken.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((host, port))
        # Only now: before, it would have shared the port of another server that allows it.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError:
        held.close()
        raise
    return held


def log_tail(path: Path) -> str:
    """Return the last lines of a log, empty where there is none."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
            text = log.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-LOG_TAIL_LINES:])
