"""What all connections share: the table, each backend's standing and load, the plan, keys, and the meter.

It applies the decisions of `routing`: it notes what happened, asks for a new plan when that may change the
order, and pokes backends that may be coming up. Requests use the last plan, so choosing costs next to nothing.
"""

from __future__ import annotations

import asyncio
import hmac
import math
from dataclasses import dataclass
from time import monotonic, time
from typing import TYPE_CHECKING, Final

from tandemn.router import admin, routing, wire
from tandemn.router.kept import Total
from tandemn.router.meter import Meter
from tandemn.router.probe import probe
from tandemn.router.request import HeadReader
from tandemn.router.routing import Candidate, Fault, Overflow, Plan, Standing, State
from tandemn.router.table import Backend, Limits, Market, RoutingTable
from tandemn.router.upstream import IDLE_S, Later, Pool

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from tandemn.router.downstream import Client
    from tandemn.router.exchange import Exchange
    from tandemn.router.request import Request
    from tandemn.router.stream import Shape, Stream

#: Seconds between looks at limits, probes and overflow.
TICK_S: Final = 0.1
#: Seconds of silence after which a client's connection without a request under way is closed.
CLIENT_IDLE_S: Final = 300.0
#: Shapes of events that are shared: by model, kind of request and length of its id.
MAX_SHAPES: Final = 1024
#: Seconds between looks at idle connections and stalled streams.
SWEEP_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Who may do what; an absent client key opens the endpoint to all."""

    client: str | None = None
    admin: str | None = None


class BackendRuntime:
    """A backend of the table and what the router knows of it."""

    __slots__ = (
        "_fields",
        "_prefix",
        "counts",
        "last_answer",
        "last_poke",
        "meter",
        "pool",
        "probing",
        "router",
        "spec",
        "standing",
        "waiting",
    )

    def __init__(self, router: Router, spec: Backend, limits: Limits, now: float) -> None:
        self.router = router
        self.spec = spec
        self.meter = router.meter.of(spec.name, now)
        self.counts = self.meter.counts
        self.pool = Pool(spec, limits, router.later)
        self.standing = routing.first_standing(spec.probing, draining=spec.draining, now=now)
        self.last_poke = -math.inf
        self.last_answer = -math.inf
        self.probing: asyncio.Task[None] | None = None
        self.waiting: dict[Exchange, float] = {}
        """Tries without a first byte yet, the oldest first."""
        self._prefix, self._fields = wire_prefix(spec)

    def wire(self, request: Request, target: bytes, end: bytes) -> bytes:
        """The request as this backend gets it; `end` is the framing, the blank line and the body."""
        if request.authorization is not None and self.router.passes_authorization:
            end = b"Authorization: %b\r\n%b" % (request.authorization, end)
        return b"".join((request.method, b" ", self._prefix, target, self._fields, request.fields, end))

    def begin(self, exchange: Exchange, now: float) -> None:
        self.meter.begin(now)
        self.waiting[exchange] = now

    def end(self, exchange: Exchange, now: float) -> None:
        self.meter.end(now)
        self.waiting.pop(exchange, None)

    def answered(self, now: float) -> None:
        self.last_answer = now
        standing = self.standing
        if standing.state is not State.READY or standing.failures or standing.opens:
            self.become(routing.after_answer(standing, now))

    def failed(self, why: str, now: float) -> None:
        self.counts["failures"] += 1
        self.become(routing.after_failure(self.standing, why, now))

    def become(self, standing: Standing) -> None:
        if standing is not self.standing:
            is_new = standing.state is not self.standing.state
            self.standing = standing
            if is_new:
                self.router.replan()


def wire_prefix(spec: Backend) -> tuple[bytes, bytes]:
    """The path before each target, and everything from the target's end to the client's own fields."""
    scheme, _, rest = spec.url.partition("://")
    host, slash, path = rest.partition("/")
    default_port = ":443" if scheme == "https" else ":80"
    host = host.removesuffix(default_port)
    own = "".join(f"{name}: {value}\r\n" for name, value in spec.headers.items() if name.lower() != "host")
    host = next((value for name, value in spec.headers.items() if name.lower() == "host"), host)
    prefix = (slash + path).rstrip("/")
    return prefix.encode(), f" HTTP/1.1\r\nHost: {host}\r\n{own}".encode("latin-1")


class Router:
    def __init__(self, table: RoutingTable, keys: Keys, *, table_path: Path | None = None) -> None:
        self.keys = keys
        self.table_path = table_path
        self.table = table
        self.meter = Meter(started_at=round(time(), 3))
        self.backends: dict[str, BackendRuntime] = {}
        self.heads = HeadReader()
        self.clients: set[Client] = set()
        self.streams: set[Stream] = set()
        self.kept = Total()
        self.later = Later()
        self._shapes: dict[Shape, Shape] = {}
        self.is_stopping = False
        self.last_request = -math.inf
        self.ticked_at = 0.0
        """The time to within a tick, for what needs no better."""
        self.replaced_fields: frozenset[bytes] = frozenset()
        self.passes_authorization = False
        """An open router leaves authorization to backends that want the client's own."""
        self.plan = Plan(tiers=(), overflow=Overflow(), reason="")
        self._first: BackendRuntime | None = None
        """Where the plan leaves no choice: found without looking any further."""
        self._expected: tuple[bytes, ...] = _bearers(table, keys)
        """What clients may show; empty: the endpoint is open to all."""
        self._expected_admin = f"Bearer {keys.admin}".encode() if keys.admin is not None else None
        self._tick()

    # --- the table --------------------------------------------------------------------------------------

    def apply(self, table: RoutingTable) -> None:
        """Use this table from now on; requests under way end where they are."""
        now = monotonic()
        before = self.backends
        self.table = table
        self._expected = _bearers(table, self.keys)
        self.backends = {}
        for spec in table.backends:
            old = before.pop(spec.name, None)
            if old is not None and _is_same_place(old.spec, spec) and old.pool.limits == table.limits:
                old.spec = spec
                old.standing = routing.after_notice(
                    old.standing, draining=spec.draining, probing=spec.probing, now=now
                )
                self.backends[spec.name] = old
            else:
                if old is not None:
                    before[spec.name] = old
                self.backends[spec.name] = BackendRuntime(self, spec, table.limits, now)
        for old in before.values():
            old.pool.close()
            if old.probing is not None:
                old.probing.cancel()
        fields = {name.lower().encode() for spec in table.backends for name in spec.headers}
        self.replaced_fields = frozenset(fields)
        self.heads = HeadReader(fields)  # what the old one knows was read under the old table
        self.passes_authorization = not self._expected and b"authorization" not in fields
        self.replan()

    def same_shape(self, shape: Shape) -> Shape:
        """One object for all streams whose events look alike: it stays in the processor's cache."""
        if len(self._shapes) >= MAX_SHAPES:
            self._shapes.clear()
        return self._shapes.setdefault(shape, shape)

    # --- choosing ---------------------------------------------------------------------------------------

    def replan(self) -> None:
        """Rank the backends anew."""
        now = monotonic()
        candidates = [self._candidate(backend, now) for backend in self.backends.values()]
        given = self.table.limits.spot_ttft_s
        self.plan = plan = routing.make_plan(candidates, self.plan.overflow, spot_ttft_s=given, now=now)
        is_alone = bool(plan.tiers) and len(plan.tiers[0]) == 1 and not plan.overflow.active
        self._first = self.backends[plan.tiers[0][0].name] if is_alone else None

    def _candidate(self, backend: BackendRuntime, now: float) -> Candidate:
        spec = backend.spec
        oldest = next((at for exchange, at in backend.waiting.items() if exchange.ask is not None), now)
        return Candidate(
            name=spec.name,
            market=spec.market,
            standing=backend.standing,
            price=spec.price_usd_per_hour or 0.0,
            inflight=backend.meter.inflight,
            replicas=spec.replicas,
            room=spec.room,
            ttft_s=backend.meter.median_ttft_s(now),
            waiting_s=now - oldest,
        )

    def choose(self, excluded: Collection[str], now: float) -> BackendRuntime | None:
        """The backend for the next try; None where all are full, tried or absent."""
        self.last_request = now
        first = self._first
        if first is not None and not excluded:
            room = first.spec.room
            if room is None or first.meter.inflight < room:
                return first
        inflight = {name: backend.meter.inflight for name, backend in self.backends.items()}
        choice = routing.pick(self.plan, inflight, excluded)
        if choice is None:
            return None
        backend = self.backends[choice.name]
        if not excluded and backend.spec.market is Market.SERVERLESS:
            if choice not in self.plan.tiers[0]:
                self.replan()  # the cheap ones are full: let the overflow begin
            if self.plan.overflow.active:
                backend.counts["overflowed"] += 1
        return backend

    def why_refused(self) -> tuple[str, int, str, int]:
        """Code, status, message and Retry-After where no backend was found."""
        if self.plan.tiers:
            return "overloaded", 429, "every backend is at its limit", routing.RETRY_AFTER_S
        return (
            "no_backend",
            503,
            f"no backend can take the request: {self.plan.reason}",
            routing.RETRY_AFTER_S,
        )

    # --- keys and own endpoints -------------------------------------------------------------------------

    def why_unauthorized(self, request: Request) -> bytes | None:
        """The answer's body where the request has no valid key."""
        if not self._expected or self._has_key(request):
            return None
        return wire.error_body(
            "missing or wrong API key: send `Authorization: Bearer KEY`",
            kind="invalid_request_error",
            code="invalid_api_key",
        )

    def is_admin(self, request: Request) -> bool:
        expected = self._expected_admin
        return expected is not None and hmac.compare_digest(request.authorization or b"", expected)

    def may_read(self, request: Request) -> bool:
        """Whether figures and states may be shown: to anyone where there is no key at all."""
        if not self._expected and self._expected_admin is None:
            return True
        return self._has_key(request) or self.is_admin(request)

    def _has_key(self, request: Request) -> bool:
        shown, has_key = request.authorization or b"", False
        for expected in self._expected:
            # Every one of them is compared: the time taken must not tell which was nearly right.
            has_key |= hmac.compare_digest(shown, expected)
        return has_key

    def own_endpoint(self, request: Request, body: bytes) -> tuple[int, bytes, bytes]:
        """Status, content type and body of one of the router's own paths."""
        return admin.answer(self, request, body)

    # --- time passes ------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Until cancelled: probes, limits, overflow."""
        swept = monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            now = self._tick()
            self._poke(now)
            for backend in list(self.backends.values()):
                self._give_up_slow(backend, now)
            if now - swept >= SWEEP_S:
                swept = now
                self._sweep(now)
            self.replan()

    def _tick(self) -> float:
        now = self.ticked_at = monotonic()
        # Again and again: a machine's clock may be set after the router has started on it.
        self.meter.periods.unix_offset_s = time() - now
        return now

    def _poke(self, now: float) -> None:
        for backend in self.backends.values():
            if backend.probing is None and routing.poke_due(
                backend.standing,
                backend.spec.probing,
                last_poke=backend.last_poke,
                last_answer=backend.last_answer,
                last_request=self.last_request,
                now=now,
            ):
                backend.last_poke = now
                backend.probing = asyncio.get_running_loop().create_task(self._probe(backend))

    async def _probe(self, backend: BackendRuntime) -> None:
        try:
            result = await probe(backend)
            backend.become(routing.after_probe(backend.standing, result, monotonic()))
        finally:
            backend.probing = None

    def _give_up_slow(self, backend: BackendRuntime, now: float) -> None:
        stream_limit, answer_limit = backend.spec.first_byte_limit_s, self.table.limits.answer_s
        shortest = min(stream_limit, answer_limit)
        slow = []
        for exchange, since in backend.waiting.items():
            if now - since < shortest:
                break
            limit = stream_limit if exchange.ask is not None else answer_limit
            is_sent = exchange.incoming is None or exchange.incoming.is_complete
            if now - since >= limit and exchange.upstream is not None and is_sent:
                slow.append((exchange, limit))
        for exchange, limit in slow:
            exchange.fault(Fault.SLOW, f"no answer within {limit:g} s", is_sent=True)

    def _sweep(self, now: float) -> None:
        for backend in self.backends.values():
            backend.pool.close_idle(now - IDLE_S)
        for client in [c for c in self.clients if c.exchange is None and now - c.heard_at > CLIENT_IDLE_S]:
            client.transport.abort()
        stall = self.table.limits.stall_s
        if stall is None:
            return
        for stream in [s for s in self.streams if s.silent_s(now) > stall]:
            if stream.exchange.upstream is not None:
                stream.broken(f"nothing came for {stall:g} s")


def _is_same_place(old: Backend, new: Backend) -> bool:
    return (old.url, old.headers, old.ca_file, old.probing) == (
        new.url,
        new.headers,
        new.ca_file,
        new.probing,
    )


def _bearers(table: RoutingTable, keys: Keys) -> tuple[bytes, ...]:
    clients = table.keys or ((keys.client,) if keys.client is not None else ())
    return tuple(f"Bearer {key}".encode() for key in clients)
