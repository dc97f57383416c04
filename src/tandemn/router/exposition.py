"""The meter as Prometheus reads it (text format 0.0.4). Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tandemn.prometheus import family, sample
from tandemn.router.routing import Standing, State

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tandemn.router.meter import BackendMeter, Histogram, Meter

_HELP: Final = {
    "requests": "Tries sent to the backend, retries and resumes included.",
    "streams": "Streamed answers begun.",
    "failures": "Tries that failed, before or after the first byte.",
    "retries": "Tries repeated elsewhere after this backend failed.",
    "resumes": "Streams continued elsewhere after this backend broke them.",
    "resume_failures": "Streams that this backend broke and that could not be continued.",
    "cancelled": "Tries given up because the client had gone.",
    "overflowed": "Requests that this backend took because cheaper ones were full or slow.",
}


def exposition(meter: Meter, standings: Mapping[str, Standing]) -> bytes:
    """The `/metrics` page."""
    return "\n".join([*_lines(meter, standings), ""]).encode()


def _lines(meter: Meter, standings: Mapping[str, Standing]) -> Iterator[str]:
    for counter, text in _HELP.items():
        yield from family(f"tandemn_router_{counter}_total", "counter", text)
        for name, backend in meter.backends.items():
            yield sample(f"tandemn_router_{counter}_total", backend.counts[counter], backend=name)
    yield from family("tandemn_router_tokens_total", "counter", "Tokens, as reported by usage or estimated.")
    for name, backend in meter.backends.items():
        yield from _tokens(name, backend)
    yield from family("tandemn_router_inflight", "gauge", "Requests in flight.")
    for name, backend in meter.backends.items():
        yield sample("tandemn_router_inflight", backend.inflight, backend=name)
    seconds = "tandemn_router_inflight_seconds_total"
    yield from family(seconds, "counter", "Seconds spent at each number of requests in flight.")
    for name, backend in meter.backends.items():
        for level, spent_s in sorted(backend.inflight_s.items()):
            yield sample(seconds, f"{spent_s:.6f}", backend=name, concurrency=str(level))
    yield from _histograms("tandemn_router_ttft_seconds", "From request to first event.", meter, "ttft")
    yield from _histograms(
        "tandemn_router_itl_seconds",
        "Gap between two reads of a stream, of which every sixteenth is timed.",
        meter,
        "itl",
    )
    yield from family("tandemn_router_rejected_total", "counter", "Requests that the router itself refused.")
    for reason, count in meter.rejected.items():
        yield sample("tandemn_router_rejected_total", count, reason=reason)
    yield from family("tandemn_router_backend_state", "gauge", "1 for the state that the backend is in.")
    for name, standing in standings.items():
        for state in State:
            is_in = int(state is standing.state)
            yield sample("tandemn_router_backend_state", is_in, backend=name, state=state.value)


def _tokens(name: str, backend: BackendMeter) -> Iterator[str]:
    counts = backend.counts
    for kind, source, counter in (
        ("prompt", "usage", "prompt_tokens"),
        ("completion", "usage", "completion_tokens"),
        ("completion", "estimated", "estimated_completion_tokens"),
    ):
        told = counts[counter]
        yield sample("tandemn_router_tokens_total", told, backend=name, kind=kind, source=source)


def _histograms(times: str, text: str, meter: Meter, field: str) -> Iterator[str]:
    yield from family(times, "histogram", text)
    for name, backend in meter.backends.items():
        histogram: Histogram = getattr(backend, field)
        below = 0
        for bound, count in zip((*histogram.bounds, "+Inf"), histogram.counts, strict=True):
            below += count
            yield sample(f"{times}_bucket", below, backend=name, le=str(bound))
        yield sample(f"{times}_sum", f"{histogram.total_s:.6f}", backend=name)
        yield sample(f"{times}_count", below, backend=name)
