"""The control plane as a process: one per state folder, found by `server.json`, ended by SIGTERM.

Ended in order it takes its local replicas and its Redis along; killed, it leaves both running, and the
next one adopts them.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import resource
import signal
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import psutil
import structlog
import uvicorn

from tandemn import __version__
from tandemn.control.app import create_app, keep_going, open_services
from tandemn.control.connections import Connections, guarded
from tandemn.control.embedded_redis import EmbeddedRedis
from tandemn.control.listeners import is_loopback, open_doors
from tandemn.control.store import keys
from tandemn.errors import Broken, InvalidInput, TandemnError
from tandemn.fleet.reconcile import Presence

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fastapi import FastAPI

    from tandemn.control.listeners import Doors, Tls
    from tandemn.control.services import Services
    from tandemn.settings import Settings

_log = structlog.get_logger()

#: How long open connections may go on after SIGTERM.
DRAIN_S = 3
#: How long local replicas have, after SIGTERM, for storing what they finished.
REPLICAS_S = 12.0
#: How often the certificate's files are looked at: they are renewed every few weeks.
CERTIFICATE_S = 60.0


async def serve(settings: Settings, *, host: str, port: int, tls: Tls | None = None) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        InvalidInput: a host that is not loopback while nobody has a key (code `public_without_keys`), a port in
            use, or a certificate that is none.
        Broken: another control plane serves this state folder (code `server_running`).
    """
    if tls is not None:
        tls.check()
    home = settings.home_path
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    _configure_logs()
    _raise_descriptor_limit()
    with _alone(home), open_doors(home, host=host, port=port, tls=tls) as doors:
        async with open_services(settings, server_url=doors.local.url) as services:
            await _check_keys(services, host)
            app = create_app(services)
            protocol = guarded(Connections())
            servers = [(_server(app, protocol), doors.local)]
            if doors.shared is not None:
                servers.append((_server(app, protocol, tls), doors.shared))
            told_to_stop = _stop_signal()
            serving = [
                asyncio.create_task(server.serve(sockets=[door.listener]), name="server")
                for server, door in servers
            ]
            if tls is not None:
                serving.append(asyncio.create_task(_keep_certificate(servers[-1][0], tls), name="tls"))
            async with keep_going(services):
                for server, _ in servers:
                    await _until_started(server)
                _announce(home, doors, services.local_key)
                await asyncio.wait([*serving, told_to_stop], return_when=asyncio.FIRST_COMPLETED)
            # Nothing is replaced any more, and replicas can still store what they finished.
            await _end_replicas(services)
            for server, _ in servers:
                server.should_exit = True
            await asyncio.gather(*serving[: len(servers)])
            for task in serving[len(servers) :]:
                task.cancel()
        if settings.redis_url is None:
            await asyncio.to_thread(EmbeddedRedis(home).stop)
        (home / "server.json").unlink(missing_ok=True)


def _server(app: FastAPI, protocol: type[asyncio.Protocol], tls: Tls | None = None) -> _Server:
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=DRAIN_S,
        timeout_keep_alive=75,
        ssl_certfile=str(tls.cert) if tls else None,
        ssl_keyfile=str(tls.key) if tls and tls.key else None,
    )
    return _Server(config)


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


async def _check_keys(services: Services, host: str) -> None:
    """Raise InvalidInput where whoever reaches this address could do everything."""
    if not is_loopback(host) and not await services.database.run(keys.is_one_live):
        raise InvalidInput(
            f"refusing to serve on {host} without keys",
            code="public_without_keys",
            param="host",
            next_step="`tandemn keys create NAME --role admin` makes the first one; or serve on 127.0.0.1",
        )


def _raise_descriptor_limit() -> None:
    """Take as many file descriptors as this process may: shells commonly allow 1,024 of them at first."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _configure_logs() -> None:
    # Whatever is sent to a port that is no HTTP would be a line of its own there.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
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


async def _until_started(server: uvicorn.Server) -> None:
    while not server.started:  # noqa: ASYNC110 - uvicorn offers no event
        await asyncio.sleep(0.01)


def _announce(home: Path, doors: Doors, local_key: str) -> None:
    """Write `server.json` once the server answers: whoever may read it has the state folder anyway."""
    shared_url = doors.shared.url if doors.shared else None
    record = {
        "url": doors.local.url,
        "shared_url": shared_url,
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
    _log.info("serving", url=doors.local.url, shared_url=shared_url, pid=os.getpid())


async def _keep_certificate(server: uvicorn.Server, tls: Tls) -> None:
    """Take a renewed certificate into use: new connections get it, nobody is disturbed."""
    known = tls.stamp()
    while True:
        await asyncio.sleep(CERTIFICATE_S)
        try:
            if (stamp := tls.stamp()) != known:
                tls.check()  # both files, before either is in use
                assert server.config.ssl is not None, "it serves TLS"
                server.config.ssl.load_cert_chain(tls.cert, tls.key)
                known = stamp
                _log.info("the certificate was renewed", cert=str(tls.cert))
        except (TandemnError, OSError) as exc:
            _log.warning("the new certificate cannot be used; the old one stays", error=str(exc))


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
