"""Connections to a backend: opened with limits, kept alive, pooled, and given up when the peer falls silent."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

    from tandemn.router.table import Backend, Limits

#: Idle connections kept per backend.
MAX_IDLE: Final = 1024
#: Seconds after which an idle connection is closed: below the shortest keep-alive of common servers (uvicorn's
#: is 5 s), or each first request after a pause would meet a connection that its peer is just closing.
IDLE_S: Final = 4.0
#: Bytes waiting for a slow peer before its source is paused.
HIGH_WATER: Final = 128 << 10

#: Events that are passed on before what came meanwhile is read; of 2, 4, 8 and 16 the one with the shortest tail.
EVENTS_AT_ONCE: Final = 4
#: Events that may wait.
MAX_WAITING: Final = 256

#: Connection attempts that failed: what the user can do is the same for all of them.
CONNECT_ERRORS: Final = (OSError, ssl.SSLError, TimeoutError, ssl.CertificateError, UnicodeError)


class Upstream(asyncio.Protocol):
    """One connection to a backend; `feed` takes what arrives, for whoever uses it now."""

    __slots__ = (
        "feed",
        "idle_since",
        "is_patient",
        "is_reused",
        "lost",
        "paused",
        "pool",
        "transport",
        "waiting",
        "write",
    )

    transport: asyncio.Transport
    write: Callable[[bytes], None]

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.waiting = pool.later.waiting
        self.feed: Callable[[bytes], None] | None = None
        self.is_patient = False
        """Whether what comes may wait until all else was read: events of a stream that has begun, up to its end."""
        self.lost: Callable[[Upstream, Exception | None], None] | None = None
        self.paused: Callable[[bool], None] | None = None
        self.is_reused = False
        self.idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's.
        self.transport = cast("asyncio.Transport", transport)
        self.write = self.transport.write
        self.transport.set_write_buffer_limits(HIGH_WATER)
        sock = transport.get_extra_info("socket")
        watch_silence(sock, self.pool.limits.silence_s)
        spare_acks(sock)

    def data_received(self, data: bytes) -> None:
        if self.is_patient:
            waiting = self.waiting
            if not waiting:
                self.pool.later.begin()
            waiting.append((self, data))
            return
        feed = self.feed
        if feed is None:
            self.transport.abort()  # bytes outside an answer: the connection cannot be trusted
        else:
            feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.is_patient:
            self.pool.later.pass_on_all()  # it came before this
        lost = self.lost
        self.feed = self.lost = self.paused = None
        if lost is None:
            self.pool.forget(self)
        else:
            lost(self, exc)

    def pause_writing(self) -> None:
        if self.paused is not None:
            self.paused(True)

    def resume_writing(self) -> None:
        if self.paused is not None:
            self.paused(False)

    def drop(self) -> None:
        """Close at once and without a word to its user: what is still on the way is not wanted."""
        self.feed = self.lost = self.paused = None
        self.is_patient = False
        self.transport.abort()

    def give_back(self, now: float) -> None:
        """Nothing is under way on it: the connection may carry the next request."""
        if self.is_patient and self.pool.later.has_any_of(self):
            self.drop()  # more than the answer came: it would pass for a part of the next one
            return
        self.feed = self.lost = self.paused = None
        self.is_patient = False
        self.is_reused = True
        self.idle_since = now
        self.pool.put(self)


class Later:
    """Events of streams that have begun: they are passed on a few at a time, and between two times all is read that came.

    So whoever waits for a first byte, or to be sent on, waits for a few events of others at most, not for all of them.
    """

    __slots__ = ("_is_due", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[tuple[Upstream, bytes]] = deque()
        """The same one for good: every connection has it at hand."""
        self._is_due = False

    def begin(self) -> None:
        """The first one has come: the loop reads the rest of what has come before it passes any on."""
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._pass_some)

    def _pass_some(self) -> None:
        self._is_due = False
        count = len(self.waiting)
        # Where reading is faster than passing on for long, what waits must stay with those who send it.
        self._pass(EVENTS_AT_ONCE if count <= MAX_WAITING else count)
        if self.waiting:
            self.begin()

    def pass_on_all(self) -> None:
        """Leave nothing waiting."""
        self._pass(len(self.waiting))

    def has_any_of(self, upstream: Upstream) -> bool:
        """Whether something waits that came from there."""
        return any(each is upstream for each, _ in self.waiting)

    def _pass(self, count: int) -> None:
        """Give so many to their connections' users, in the order in which they came."""
        waiting = self.waiting
        for _ in range(min(count, len(waiting))):
            upstream, data = waiting.popleft()
            feed = upstream.feed
            try:
                if feed is None:
                    upstream.transport.abort()
                else:
                    feed(data)
            except Exception as exc:  # noqa: BLE001 -- as the loop does it: one connection ends, the others go on
                asyncio.get_running_loop().call_exception_handler(
                    {"message": "passing an event on failed", "exception": exc, "protocol": upstream}
                )
                upstream.transport.abort()


class Pool:
    """The connections of one backend."""

    def __init__(self, backend: Backend, limits: Limits, later: Later) -> None:
        self.later = later
        parts = urlsplit(backend.url)
        self.limits = limits
        self.host = parts.hostname or ""
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self.tls = tls_context(backend.ca_file) if parts.scheme == "https" else None
        self._idle: dict[Upstream, None] = {}
        self._is_closed = False
        self._spare: asyncio.Task[None] | None = None

    def take(self, *, is_busy: bool) -> Upstream | None:
        """The connection that was used last: the least likely to be closed by its peer.

        Where it was the last one and others are in use (`is_busy`), one more is opened beside: the next request
        then need not wait for a connection, which over TLS takes longer than all else here.
        """
        found = None
        while self._idle and found is None:
            upstream, _ = self._idle.popitem()
            if not upstream.transport.is_closing():
                found = upstream
        if is_busy and not self._idle and self._spare is None:
            self._spare = asyncio.get_running_loop().create_task(self._open_spare())
        return found

    async def _open_spare(self) -> None:
        try:
            upstream = await self.open()
        except CONNECT_ERRORS:
            return  # whoever needs one will be told
        finally:
            self._spare = None
        upstream.give_back(monotonic())

    async def open(self) -> Upstream:
        """Connect.

        Raises:
            OSError: or one of `CONNECT_ERRORS`: it could not.
        """
        loop = asyncio.get_running_loop()
        name = self.host if self.tls is not None else None
        async with asyncio.timeout(self.limits.connect_s):
            _, upstream = await loop.create_connection(
                lambda: Upstream(self), self.host, self.port, ssl=self.tls, server_hostname=name
            )
        return upstream

    def put(self, upstream: Upstream) -> None:
        if self._is_closed or len(self._idle) >= MAX_IDLE or upstream.transport.is_closing():
            upstream.transport.abort()
        else:
            self._idle[upstream] = None

    def forget(self, upstream: Upstream) -> None:
        self._idle.pop(upstream, None)

    def close_idle(self, before: float) -> None:
        """Close what has been idle since `before`."""
        for upstream in [u for u in self._idle if u.idle_since <= before]:
            del self._idle[upstream]
            upstream.transport.abort()

    def close(self) -> None:
        """Close idle connections now and busy ones when they are done."""
        self._is_closed = True
        if self._spare is not None:
            self._spare.cancel()
        self.close_idle(float("inf"))


def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """Verifying, TLS 1.2 or later, HTTP/1.1 only."""
    context = ssl.create_default_context(cafile=ca_file)
    context.set_alpn_protocols(["http/1.1"])
    return context


def watch_silence(sock: socket.socket, silence_s: float) -> None:
    """Have the kernel give the peer up after this long: a preempted machine sends no FIN and no RST.

    Keepalive notices it where nothing is under way, TCP_USER_TIMEOUT where bytes wait for an acknowledgement.
    """
    interval = max(1, round(silence_s / 4))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, interval)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(silence_s * 1000))


def spare_acks(sock: socket.socket) -> None:
    """Have the kernel acknowledge every other event, not each one as it is read: a tenth of the CPU that events cost.

    Linux ends this by itself as soon as an acknowledgement had to wait for its timer (40 ms): a backend that waits for
    acknowledgements (Nagle's algorithm) is late by that much once on a connection.
    """
    if hasattr(socket, "TCP_QUICKACK"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
