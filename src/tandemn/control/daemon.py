"""The control plane as a process: serves a state folder, is found by `server.json`, ended by SIGTERM.

Ended in order, the last one of a folder takes the local replicas and the Redis along; killed, it leaves both
running, and the next one adopts them.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING

import structlog
import uvicorn

from tandemn import logs, server_records
from tandemn.control.app import create_app, keep_going, open_services
from tandemn.control.connections import Connections, guarded
from tandemn.control.embedded_redis import EmbeddedRedis
from tandemn.control.home import Home
from tandemn.control.listeners import is_loopback, open_doors
from tandemn.control.store import keys
from tandemn.errors import InvalidInput, TandemnError
from tandemn.fleet.reconcile import Presence

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from fastapi import FastAPI

    from tandemn.control.leadership import Leadership
    from tandemn.control.listeners import Tls
    from tandemn.control.services import Services
    from tandemn.server_records import ServerRecord
    from tandemn.settings import LogFormat, Settings

_log = structlog.get_logger()

#: How long open connections may go on after SIGTERM.
DRAIN_S = 3
#: How long local replicas have, after SIGTERM, for storing what they finished.
REPLICAS_S = 12.0
#: How often the certificate's files are looked at: they are renewed every few weeks.
CERTIFICATE_S = 60.0


async def serve(
    settings: Settings, *, host: str, port: int, tls: Tls | None = None, is_standby: bool = False
) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        InvalidInput: a host that is not loopback while nobody has a key (code `public_without_keys`), a port in
            use, or a certificate that is none.
        Broken: another control plane serves this state folder (code `server_running`).
    """
    if tls is not None:
        tls.check()
    _configure_logs(settings.log_format)
    _raise_descriptor_limit()
    with (
        Home(settings.home_path, is_standby=is_standby) as home,
        open_doors(home.folder, host=host, port=port, tls=tls) as doors,
    ):
        async with (
            _redis_ends_with_the_last(home, settings),
            open_services(settings, server_url=doors.local.url) as services,
        ):
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
                record = server_records.of_this_process(
                    doors.local.url,
                    shared_url=doors.shared.url if doors.shared else None,
                    key=services.local_key,
                )
                home.announce(record)
                _log.info("serving", url=record.url, shared_url=record.shared_url, pid=record.pid)
                leading = asyncio.create_task(_lead(home, record, services.leadership), name="server.json")
                await asyncio.wait([*serving, told_to_stop], return_when=asyncio.FIRST_COMPLETED)
                leading.cancel()
            if home.is_last():
                # Nothing is replaced any more, and replicas can still store what they finished.
                await _end_replicas(services)
            for server, _ in servers:
                server.should_exit = True
            await asyncio.gather(*serving[: len(servers)])
            for task in serving[len(servers) :]:
                task.cancel()


@asynccontextmanager
async def _redis_ends_with_the_last(home: Home, settings: Settings) -> AsyncIterator[None]:
    """End the embedded Redis with the last control plane of the folder; also one that is refused before it serves."""
    try:
        yield
    finally:
        if settings.redis_url is None and home.is_last():
            await asyncio.to_thread(EmbeddedRedis(home.folder).stop)


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


def _configure_logs(log_format: LogFormat) -> None:
    # Whatever is sent to a port that is no HTTP would be a line of its own there.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    logs.configure(log_format)


async def _until_started(server: uvicorn.Server) -> None:
    while not server.started:  # noqa: ASYNC110 - uvicorn offers no event
        await asyncio.sleep(0.01)


async def _lead(home: Home, record: ServerRecord, leadership: Leadership) -> None:
    """Be what commands on this machine find first, whenever this process leads."""
    while True:
        term = await leadership.elected()
        home.take_the_lead(record)
        await leadership.lost(term)


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
        if all(each.presence is not Presence.THERE for each in seen):
            return
        await asyncio.sleep(0.1)
    for handle in handles:
        with suppress(OSError):
            await asyncio.to_thread(launcher.terminate, handle)
