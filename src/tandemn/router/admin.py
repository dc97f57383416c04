"""The router's own endpoints: `/router/health`, `/router/config`, `/router/meter`, `/metrics`."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

import msgspec

from tandemn.errors import InvalidInput, NotAllowed, NotFound, TandemnError
from tandemn.prometheus import CONTENT_TYPE
from tandemn.router import wire
from tandemn.router.exposition import exposition
from tandemn.router.meter import write_atomically
from tandemn.router.meter_page import meter_page
from tandemn.router.routing import State
from tandemn.router.table import read_table, write_table

if TYPE_CHECKING:
    from tandemn.router.request import Request
    from tandemn.router.router import Router

#: Digits of a busy period's number: more than there will ever be.
MAX_NUMBER_DIGITS: Final = 18

_JSON = b"application/json"


def answer(router: Router, request: Request, body: bytes) -> tuple[int, bytes, bytes]:
    """Status, content type and body for one of the router's own paths."""
    try:
        return _route(router, request, body)
    except OSError as exc:
        error = wire.error_body(
            f"the table was not saved: {exc}", kind="server_error", code="table_not_saved"
        )
        return 503, _JSON, error
    except TandemnError as exc:
        error = wire.error_body(str(exc), kind="invalid_request_error", code=exc.code)
        return exc.http_status, _JSON, error


def _route(router: Router, request: Request, body: bytes) -> tuple[int, bytes, bytes]:
    match request.method, request.path:
        case ((b"GET" | b"HEAD"), b"/router/health"):
            return _health(router, request)
        case ((b"GET" | b"HEAD"), b"/metrics"):
            if not router.may_read(request):
                raise NotAllowed("the router's metrics need its key")
            router.meter.settle(monotonic())
            standings = {name: backend.standing for name, backend in router.backends.items()}
            return 200, CONTENT_TYPE.encode(), exposition(router.meter, standings)
        case ((b"GET" | b"HEAD"), b"/router/meter"):
            if not router.may_read(request):
                raise NotAllowed("the router's meter needs its key")
            markets = {name: backend.spec.market.value for name, backend in router.backends.items()}
            page = meter_page(router.meter, markets, since=_since(request), now=monotonic())
            return 200, _JSON, page
        case b"GET", b"/router/config":
            _check_admin(router, request)
            return 200, _JSON, write_table(router.table)
        case b"PUT", b"/router/config":
            _check_admin(router, request)
            return _replace_table(router, body)
        case _, (b"/router/health" | b"/router/config" | b"/router/meter" | b"/metrics"):
            raise InvalidInput(f"{request.method.decode()} is not possible here", code="method_not_allowed")
        case _:
            raise NotFound(f"the router has no {request.path.decode('latin-1')}")


def _since(request: Request) -> int:
    """The number of the first busy period that the reader lacks."""
    query = parse_qs(request.target.partition(b"?")[2].decode("latin-1"))
    since = query.get("since", ["0"])[-1]
    if not since.isdecimal() or len(since) > MAX_NUMBER_DIGITS:
        raise InvalidInput(f"`since` must be a number, not {since[:40]!r}", code="invalid_since")
    return int(since)


def _check_admin(router: Router, request: Request) -> None:
    if router.keys.admin is None:
        raise NotAllowed(
            "the routing table can only be changed by its file: no admin key is set",
            next_step="set TANDEMN_ROUTER_ADMIN_KEY",
        )
    if not router.is_admin(request):
        raise NotAllowed("the routing table needs the admin key")


def _replace_table(router: Router, body: bytes) -> tuple[int, bytes, bytes]:
    table = read_table(body)
    if router.table_path is not None:
        # First the file: a router that dies after answering must not come back with the old table.
        write_atomically(router.table_path, write_table(table))
    router.apply(table)
    return 200, _JSON, msgspec.json.encode({"backends": [backend.name for backend in table.backends]})


def _health(router: Router, request: Request) -> tuple[int, bytes, bytes]:
    states = [backend.standing.state for backend in router.backends.values()]
    status = "stopping" if router.is_stopping else "ready" if State.READY in states else "not_ready"
    health: dict[str, Any] = {"status": status}
    if router.may_read(request):
        health["plan"] = router.plan.reason
        health["backends"] = [_backend_health(router, name) for name in router.backends]
    return 200, _JSON, msgspec.json.encode(health)


def _backend_health(router: Router, name: str) -> dict[str, Any]:
    backend, now = router.backends[name], monotonic()
    standing = backend.standing
    return {
        "name": name,
        "market": backend.spec.market,
        "state": standing.state,
        "reason": standing.reason,
        "since_s": round(now - standing.since, 3),
        "inflight": backend.meter.inflight,
        "room": backend.spec.room,
        "failures_in_a_row": standing.failures,
        "median_ttft_s": backend.meter.median_ttft_s(now),
    }
