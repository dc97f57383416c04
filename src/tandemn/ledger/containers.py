"""Which containers a backend's busy periods needed (PURE): a serverless provider's scaling, replayed.

Requests share a container up to its concurrency, so its time is counted once for all of them. A container lives
from the request that started it, through its cold start, to the end of the scaledown window after the last request
that needed it. A router's meter tells periods instead of requests (docs/router.md): how many requests were in flight
at the most, from when until when. A period in which `peak` were in flight needed `ceil(peak / concurrency)` of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from tandemn.ledger.entries import Ended, Fact, Label, Part, RuleName, Started

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from tandemn.prices import Price


@dataclass(frozen=True, slots=True, kw_only=True)
class BusyPeriod:
    """A stretch of time in which requests were in flight, Unix times."""

    start: float
    end: float
    peak: int
    """Most requests in flight at once."""
    inflight_s: float = 0.0
    """Seconds in flight, summed over the requests."""
    requests: int = 0
    """Begun in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerlessTerms:
    """How a provider scales and bills."""

    concurrency: int
    """Requests that a container takes at a time."""
    scaledown_s: float
    rule: RuleName
    cold_start_s: float = 0.0
    """Added where a log did not wait for this provider's containers; 0 for a log that did."""

    def __post_init__(self) -> None:
        assert self.concurrency > 0, "a container takes requests"


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The life of one container, Unix times."""

    number: int
    """Of those that run beside each other, from 1."""
    start: float
    end: float


def containers(
    periods: Iterable[BusyPeriod], terms: ServerlessTerms | Callable[[float], ServerlessTerms]
) -> list[Span]:
    """Replay the periods, which may touch but not overlap; the fullest container is filled first.

    Args:
        periods: in any order.
        terms: those of all of them, or of a period that begins at a time: an update changes them.
    """
    ordered = sorted(periods, key=lambda each: (each.start, each.end))
    under = [(each, terms(each.start) if callable(terms) else terms) for each in ordered]
    needed = [-(-each.peak // its.concurrency) for each, its in under]
    spans: list[Span] = []
    for number in range(1, max(needed, default=0) + 1):
        current: Span | None = None
        for (period, its), count in zip(under, needed, strict=True):
            if count < number:
                continue
            end = period.end + its.scaledown_s
            if current is not None and period.start <= current.end:
                current = replace(current, end=max(current.end, end))
                continue
            if current is not None:
                spans.append(current)
            current = Span(number=number, start=period.start, end=end + its.cold_start_s)
        if current is not None:
            spans.append(current)
    return sorted(spans, key=lambda span: (span.start, span.number))


def container_facts(
    spans: Iterable[Span],
    *,
    owner: str,
    backend: str,
    rule: RuleName,
    price: Price | None,
    account: str,
    until: float | None = None,
) -> Iterator[Fact]:
    """Write containers as facts: their requests were observed, so their time counts as metered.

    A container that still runs has an end to come; with more periods it comes later, under the same name. None
    outlives its backend, which was gone at `until`.
    """
    for span in spans:
        item = f"{owner}/{backend}/{span.number}@{span.start!r}"
        yield Started(
            at=span.start,
            item=item,
            owner=owner,
            part=Part.SERVERLESS,
            price=price,
            rule=rule,
            label=Label.METERED,
            backend=backend,
            account=account,
        )
        yield Ended(at=span.end if until is None else max(span.start, min(span.end, until)), item=item)


def together(of_backends: Iterable[Sequence[BusyPeriod]]) -> list[BusyPeriod]:
    """Lay the periods of several backends over each other, as if one had served all of it.

    Where they overlap, the peak of all lies between the highest peak and the sum of them; it is taken as the
    greater of the highest one and the sum of the means, so that what one backend would have cost is rather too little
    than too much.
    """
    edges: dict[float, list[tuple[int, BusyPeriod]]] = {}
    for periods in of_backends:
        for period in periods:
            edges.setdefault(period.start, []).append((1, period))
            edges.setdefault(period.end, []).append((-1, period))
    under_way: dict[int, BusyPeriod] = {}
    laid: list[BusyPeriod] = []
    for at, until in pairwise([*sorted(edges), float("inf")]):
        for sign, period in edges[at]:
            if sign > 0 and period.end > period.start:
                under_way[id(period)] = period
            else:
                under_way.pop(id(period), None)
        if under_way:
            mean = sum(_mean(each) for each in under_way.values())
            peak = max(*(each.peak for each in under_way.values()), round(mean))
            laid.append(BusyPeriod(start=at, end=until, peak=peak, inflight_s=mean * (until - at)))
    return laid


def coarser(periods: Sequence[BusyPeriod]) -> list[BusyPeriod]:
    """Join each two neighbours into one, so that a long log stays short: what needed containers still does.

    Time between them counts as busy from then on, and the higher peak as that of both.
    """
    ordered = sorted(periods, key=lambda each: (each.start, each.end))
    pairs = [ordered[index : index + 2] for index in range(0, len(ordered), 2)]
    return [
        BusyPeriod(
            start=pair[0].start,
            end=max(each.end for each in pair),
            peak=max(each.peak for each in pair),
            inflight_s=sum(each.inflight_s for each in pair),
            requests=sum(each.requests for each in pair),
        )
        for pair in pairs
    ]


def busy_container_s(inflight_s: Mapping[int, float], concurrency: int) -> float:
    """Return the container seconds that a meter's levels need at the least: without cold starts and idle time."""
    assert concurrency > 0, "a container takes requests"
    return sum(-(-level // concurrency) * spent for level, spent in inflight_s.items())


def _mean(period: BusyPeriod) -> float:
    return period.inflight_s / (period.end - period.start)
