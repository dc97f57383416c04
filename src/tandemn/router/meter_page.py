"""The meter as a control plane reads it: totals, and the busy periods since it last asked. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tandemn.router.meter import BackendMeter, Histogram, Meter


def meter_page(meter: Meter, markets: Mapping[str, str], *, since: int, now: float) -> bytes:
    """`/router/meter` as JSON.

    Args:
        meter: settled by this call.
        markets: of the backends in the table; others have been in one and keep their totals.
        since: number of the first busy period that the reader lacks.
        now: monotonic.
    """
    meter.settle(now)
    periods, next_number = meter.periods.since(since)
    page: dict[str, Any] = {
        "series": meter.series,
        "began_at": meter.began_at,
        "started_at": meter.started_at,
        "now": round(now + meter.periods.unix_offset_s, 3),
        "rejected": meter.rejected,
        "backends": [_backend(backend, markets.get(name)) for name, backend in meter.backends.items()],
        "periods": periods,
        "next": next_number,
        "complete_from": meter.periods.complete_from,
        "under_way": meter.under_way(),
    }
    return msgspec.json.encode(page)


def _backend(backend: BackendMeter, market: str | None) -> dict[str, Any]:
    return {
        "name": backend.name,
        "market": market,
        **backend.counts,
        "inflight": backend.inflight,
        "inflight_s": {str(level): round(spent, 6) for level, spent in sorted(backend.inflight_s.items())},
        "busy_s": round(sum(backend.inflight_s.values()), 6),
        "ttft": _histogram(backend.ttft),
        "itl": _histogram(backend.itl),
    }


def _histogram(histogram: Histogram) -> dict[str, Any]:
    return {
        "bounds_s": histogram.bounds,
        "counts": histogram.counts,
        "total_s": round(histogram.total_s, 6),
    }
