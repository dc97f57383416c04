"""The meter as Prometheus reads it (text format 0.0.4). Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

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
        yield from _family(f"tandemn_router_{counter}_total", "counter", text)
        for name, backend in meter.backends.items():
            yield f'tandemn_router_{counter}_total{{backend="{name}"}} {backend.counts[counter]}'
    yield from _family("tandemn_router_tokens_total", "counter", "Tokens, as reported by usage or estimated.")
    for name, backend in meter.backends.items():
        yield from _tokens(name, backend)
    yield from _family("tandemn_router_inflight", "gauge", "Requests in flight.")
    for name, backend in meter.backends.items():
        yield f'tandemn_router_inflight{{backend="{name}"}} {backend.inflight}'
    family = "tandemn_router_inflight_seconds_total"
    yield from _family(family, "counter", "Seconds spent at each number of requests in flight.")
    for name, backend in meter.backends.items():
        for level in sorted(backend.inflight_s):
            yield f'{family}{{backend="{name}",concurrency="{level}"}} {backend.inflight_s[level]:.6f}'
    yield from _histograms("tandemn_router_ttft_seconds", "From request to first event.", meter, "ttft")
    yield from _histograms(
        "tandemn_router_itl_seconds",
        "Gap between two reads of a stream, of which every sixteenth is timed.",
        meter,
        "itl",
    )
    yield from _family("tandemn_router_rejected_total", "counter", "Requests that the router itself refused.")
    for reason, count in meter.rejected.items():
        yield f'tandemn_router_rejected_total{{reason="{reason}"}} {count}'
    yield from _family("tandemn_router_backend_state", "gauge", "1 for the state that the backend is in.")
    for name, standing in standings.items():
        for state in State:
            yield f'tandemn_router_backend_state{{backend="{name}",state="{state}"}} {int(state is standing.state)}'


def _family(name: str, kind: str, text: str) -> tuple[str, str]:
    return f"# HELP {name} {text}", f"# TYPE {name} {kind}"


def _tokens(name: str, backend: BackendMeter) -> Iterator[str]:
    counts = backend.counts
    for kind, source, counter in (
        ("prompt", "usage", "prompt_tokens"),
        ("completion", "usage", "completion_tokens"),
        ("completion", "estimated", "estimated_completion_tokens"),
    ):
        yield f'tandemn_router_tokens_total{{backend="{name}",kind="{kind}",source="{source}"}} {counts[counter]}'


def _histograms(family: str, text: str, meter: Meter, field: str) -> Iterator[str]:
    yield from _family(family, "histogram", text)
    for name, backend in meter.backends.items():
        histogram: Histogram = getattr(backend, field)
        below = 0
        for bound, count in zip((*histogram.bounds, "+Inf"), histogram.counts, strict=True):
            below += count
            yield f'{family}_bucket{{backend="{name}",le="{bound}"}} {below}'
        yield f'{family}_sum{{backend="{name}"}} {histogram.total_s:.6f}'
        yield f'{family}_count{{backend="{name}"}} {below}'
