"""Which containers a request log would have needed (PURE): a serverless provider's scaling, replayed.

Requests share a container up to its concurrency, so its time is counted once for all of them. A container
lives from the request that started it, through its cold start, to the end of the scaledown window after
its last request.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tandemn.ledger.entries import RuleName


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedRequest:
    """One line of a request log."""

    at: float
    """When it arrived, Unix time."""
    seconds: float
    """How long it was worked on, without waiting for a container."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerlessTerms:
    """How a provider scales and bills."""

    concurrency: int
    """Requests that a container takes at a time."""
    scaledown_s: float
    cold_start_s: float
    rule: RuleName


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The life of one container, Unix times."""

    start: float
    end: float


@dataclass(slots=True)
class _Container:
    start: float
    ready: float
    last_end: float
    ends: list[float] = field(default_factory=list)

    def free_up(self, now: float) -> None:
        while self.ends and self.ends[0] <= now:
            heapq.heappop(self.ends)

    def take(self, request: ServedRequest) -> None:
        end = max(request.at, self.ready) + request.seconds
        heapq.heappush(self.ends, end)
        self.last_end = max(self.last_end, end)


def containers(requests: Iterable[ServedRequest], terms: ServerlessTerms) -> list[Span]:
    """Replay the log; a request goes to the fullest container that has room, so that others can scale down."""
    assert terms.concurrency > 0, "a container takes requests"
    live: list[_Container] = []
    over: list[_Container] = []
    for request in sorted(requests, key=lambda each: (each.at, each.seconds)):
        still: list[_Container] = []
        for container in live:
            container.free_up(request.at)
            gone = not container.ends and container.last_end + terms.scaledown_s < request.at
            (over if gone else still).append(container)
        live = still
        with_room = [each for each in live if len(each.ends) < terms.concurrency]
        chosen = max(with_room, key=lambda each: len(each.ends), default=None)
        if chosen is None:
            ready = request.at + terms.cold_start_s
            chosen = _Container(start=request.at, ready=ready, last_end=ready)
            live.append(chosen)
        chosen.take(request)
    spans = [Span(start=each.start, end=each.last_end + terms.scaledown_s) for each in [*over, *live]]
    return sorted(spans, key=lambda span: (span.start, span.end))


def busy_container_s(inflight_s: Mapping[int, float], concurrency: int) -> float:
    """Return the container seconds that a meter's levels need at the least: without cold starts and idle time."""
    assert concurrency > 0, "a container takes requests"
    return sum(-(-level // concurrency) * spent for level, spent in inflight_s.items())
