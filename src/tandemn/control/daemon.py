"""The control plane as a process: one per state folder, found by `server.json`, ended by SIGTERM.

Ended in order it takes its local replicas and its Redis along; killed, it leaves both running, and the
next one adopts them.
"""

from __future__ import annotations

import asyncio
import fcntl
import ipaddress
import json
import os
import signal
import socket
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psutil
import structlog
import uvicorn

from tandemn import __version__
from tandemn.control.app import create_app, keep_going, open_services
from tandemn.control.embedded_redis import EmbeddedRedis
from tandemn.errors import Broken, InvalidInput
from tandemn.fleet.reconcile import Presence
from tandemn.settings import EMBEDDED_PORT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tandemn.control.services import Services
    from tandemn.settings import Settings

_log = structlog.get_logger()

#: How long open connections may go on after SIGTERM.
DRAIN_S = 3
#: How long local replicas have, after SIGTERM, for storing what they finished.
REPLICAS_S = 12.0


async def serve(settings: Settings, *, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        InvalidInput: a host that is not loopback (code `public_without_keys`), or a port in use.
        Broken: another control plane serves this state folder (code `server_running`).
    """
    _refuse_public(host)
    home = settings.home_path
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    _configure_logs()
    with _alone(home), _listening(host, _ports(home, port)) as listener:
        url = f"http://{_bracketed(host)}:{listener.getsockname()[1]}"
        async with open_services(settings, server_url=url) as services:
            server = _Server(
                uvicorn.Config(
                    create_app(services),
                    log_config=None,
                    access_log=False,
                    lifespan="off",
                    timeout_graceful_shutdown=DRAIN_S,
                    timeout_keep_alive=75,
                )
            )
            told_to_stop = _stop_signal()
            serving = asyncio.create_task(server.serve(sockets=[listener]), name="server")
            async with keep_going(services):
                await _announce(home, url, services.local_key, server)
                await asyncio.wait([serving, told_to_stop], return_when=asyncio.FIRST_COMPLETED)
            # Nothing is replaced any more, and replicas can still store what they finished.
            await _end_replicas(services)
            server.should_exit = True
            await serving
        if settings.redis_url is None:
            await asyncio.to_thread(EmbeddedRedis(home).stop)
        (home / "server.json").unlink(missing_ok=True)


class _Server(uvicorn.Server):
    """uvicorn, without its signal handlers: what ends, and in which order, is decided here."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _stop_signal() -> asyncio.Future[None]:
    """Return what is done when SIGTERM or SIGINT comes."""
    loop = asyncio.get_running_loop()
    told = loop.create_future()

    def tell() -> None:
        if not told.done():
            told.set_result(None)

    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, tell)
    return told


def _refuse_public(host: str) -> None:
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise InvalidInput(
            f"refusing to serve on {host} without keys",
            code="public_without_keys",
            param="host",
            next_step="serve on 127.0.0.1",
        )


def _configure_logs() -> None:
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"]),
        ]
    )


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Hold the state folder's lock: two reconcilers on one SQLite would launch everything twice."""
    descriptor = os.open(home / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise Broken(
                f"another control plane serves {home}",
                code="server_running",
                next_step="`tandemn server status` shows it",
            ) from exc
        yield
    finally:
        os.close(descriptor)


def _ports(home: Path, port: int) -> list[int]:
    """Return the ports to try: the one asked for; else a killed predecessor's, the usual one, any."""
    if port:
        return [port]
    try:
        before = urlsplit(json.loads((home / "server.json").read_bytes())["url"]).port
    except (OSError, ValueError, KeyError, TypeError):
        before = None
    # Its replicas live on and know no other address.
    return [before, EMBEDDED_PORT, 0] if before else [EMBEDDED_PORT, 0]


@contextmanager
def _listening(host: str, ports: list[int]) -> Iterator[socket.socket]:
    """Bind the first of these ports that can be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in ports:
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, candidate))
            listener.listen(2048)
        except OSError as exc:
            listener.close()
            if candidate == ports[-1]:
                raise InvalidInput(
                    f"cannot listen on {host}:{candidate}: {exc.strerror}",
                    code="port_unavailable",
                    param="port",
                    next_step="choose another --port",
                ) from exc
            continue
        with listener:
            yield listener
        return


async def _announce(home: Path, url: str, local_key: str, server: uvicorn.Server) -> None:
    """Write `server.json` once the server answers: whoever may read it has the state folder anyway."""
    while not server.started:  # noqa: ASYNC110 - uvicorn offers no event
        await asyncio.sleep(0.01)
    record = {
        "url": url,
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
        "version": __version__,
        "key": local_key,
    }
    staged = home / f"server.json.{os.getpid()}"
    staged.unlink(missing_ok=True)
    staged.touch(mode=0o600)
    staged.write_text(json.dumps(record))
    staged.replace(home / "server.json")
    _log.info("serving", url=url, pid=os.getpid())


async def _end_replicas(services: Services) -> None:
    """Give every local replica notice, wait for them, then use force."""
    launcher = services.launchers["local"]
    handles = await asyncio.to_thread(launcher.living)
    for handle in handles:
        await asyncio.to_thread(launcher.stop, handle)
    end = asyncio.get_running_loop().time() + REPLICAS_S
    while asyncio.get_running_loop().time() < end:
        seen = await asyncio.to_thread(launcher.observe, handles)
        if Presence.THERE not in seen:
            return
        await asyncio.sleep(0.1)
    for handle in handles:
        with suppress(OSError):
            await asyncio.to_thread(launcher.terminate, handle)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
