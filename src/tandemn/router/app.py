"""Start and stop of the router process."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import signal
import ssl
import sys
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Final

import msgspec
import uvloop

from tandemn.errors import Conflict, InvalidInput, NotFound
from tandemn.router.downstream import Client
from tandemn.router.meter import StateFile
from tandemn.router.router import Keys, Router
from tandemn.router.table import RoutingTable, read_table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: Seconds between saves of the counters: what a kill can lose.
SAVE_S: Final = 5.0
#: Seconds that streams under way get to finish after SIGTERM.
GRACE_S: Final = 600.0
#: Connections that may wait to be accepted.
BACKLOG: Final = 4096
LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    host: str = "127.0.0.1"
    port: int = 8080
    """0: any free one; the ready line says which."""
    table: Path
    state: Path | None = None
    """Where counters survive; None: beside the table."""
    cert: Path | None = None
    key: Path | None = None
    grace_s: float = GRACE_S
    is_public: bool = False
    """Serve others than this machine although no key is set."""


def run(options: Options, keys: Keys, announce: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then finish the streams under way.

    Args:
        options: where to listen, and with which files.
        keys: who may do what.
        announce: gets one JSON line once connections are accepted; by default it is printed.

    Raises:
        InvalidInput: the table, the certificate or the combination of options is wrong.
        Conflict: the port or the state file is in use.
    """
    is_open = keys.client is None and _load(options.table).keys is None
    if is_open and options.host not in LOOPBACK and not options.is_public:
        raise InvalidInput(
            f"serving {options.host} without a key would be open to anyone",
            code="router_key_missing",
            next_step="set TANDEMN_ROUTER_KEY, or say --public",
        )
    _raise_file_limit()
    uvloop.run(_serve(options, keys, announce or _print_line))


def _raise_file_limit() -> None:
    """A stream takes two descriptors, and the usual soft limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _print_line(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def _serve(options: Options, keys: Keys, announce: Callable[[str], None]) -> None:
    loop = asyncio.get_running_loop()
    router = Router(_load(options.table), keys, table_path=options.table)
    state = StateFile(options.state or options.table.with_name(options.table.name + ".meter"))
    saved = state.open()
    try:
        if saved is not None:
            router.meter.restore(saved, monotonic())
        router.apply(router.table)
        server = await _listen(loop, router, options)
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, _reload, router, options.table)
        tasks = [asyncio.create_task(router.watch()), asyncio.create_task(_keep_saving(router, state))]
        port = server.sockets[0].getsockname()[1]
        announce(msgspec.json.encode({"ready": True, "host": options.host, "port": port}).decode())
        # What lives until the end needs no collector; per-request objects form no cycles.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        await stop.wait()
        await _stop(loop, server, router, options.grace_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        state.save(router.meter.encode(monotonic()), is_final=True)
        state.close()


def _load(path: Path) -> RoutingTable:
    try:
        return read_table(path.read_bytes())
    except FileNotFoundError as exc:
        raise NotFound(f"no routing table {path}") from exc


def _reload(router: Router, path: Path) -> None:
    """SIGHUP: read the table's file again; a bad one changes nothing."""
    try:
        router.apply(_load(path))
    except InvalidInput as exc:
        sys.stderr.write(f"routing table not reloaded: {exc}\n")


async def _listen(loop: asyncio.AbstractEventLoop, router: Router, options: Options) -> asyncio.Server:
    context = None
    if options.cert is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(options.cert, options.key)
        except (OSError, ssl.SSLError) as exc:
            raise InvalidInput(f"certificate {options.cert}: {exc}", code="invalid_certificate") from exc
        context.set_alpn_protocols(["http/1.1"])
    try:
        return await loop.create_server(
            lambda: Client(router), options.host, options.port, ssl=context, backlog=BACKLOG
        )
    except OSError as exc:
        raise Conflict(f"cannot listen on {options.host}:{options.port}: {exc}", code="port_in_use") from exc


async def _keep_saving(router: Router, state: StateFile) -> None:
    while True:
        await asyncio.sleep(SAVE_S)
        content = router.meter.encode(monotonic())
        with contextlib.suppress(OSError):  # a full disk must not end the service; the next save may work
            await asyncio.to_thread(state.save, content)


async def _stop(
    loop: asyncio.AbstractEventLoop, server: asyncio.Server, router: Router, grace_s: float
) -> None:
    """Refuse what is new, let what is under way finish, then close."""
    hurry = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, hurry.set)
    router.is_stopping = True
    server.close()
    for client in list(router.clients):
        if client.exchange is None and client.incoming is None:
            client.transport.close()
    deadline = monotonic() + grace_s
    while router.clients and monotonic() < deadline and not hurry.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(hurry.wait(), 0.05)
    for client in list(router.clients):
        client.transport.abort()
    await asyncio.sleep(0)
