"""The fold: facts in, `State` out, and states combine.

`State` is a join semilattice: every field takes the one of two values that an order prefers, so that
combining is associative and commutative, and a fact that arrives twice counts once. A log may therefore be
split anywhere. What is open at the cut is carried as an item without an end in the earlier state, and as an
end without a beginning in the later one; joined, they are the item. Nothing is priced before `now` is
given, so that no rounding depends on where the cut was.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeVar, assert_never

from tandemn.ledger.billing_rules import RULES
from tandemn.ledger.entries import Billed, Ended, Fact, MeterRead, Repriced, Started
from tandemn.ledger.figures import Figure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from tandemn.prices import Price

K = TypeVar("K")
V = TypeVar("V")

_SECONDS_PER_HOUR = Decimal(3600)


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """What is known of one thing that costs."""

    started: Started | None = None
    """None: only its end was seen so far; it costs nothing until its beginning is."""
    ended_at: float | None = None
    repriced: Mapping[float, Price | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A stretch of an item's billed time at one price; `end` >= `start`."""

    start: Decimal
    end: Decimal
    price: Price | None


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """All that a log says about cost."""

    items: Mapping[str, Item] = field(default_factory=dict)
    meters: Mapping[tuple[str, str, str], MeterRead] = field(default_factory=dict)
    """By owner, meter and backend."""
    bills: Mapping[tuple[str, str, float], Billed] = field(default_factory=dict)
    """By owner, account and beginning of the period."""


def fold(facts: Iterable[Fact]) -> State:
    """Fold a log, or any piece of one, in any order."""
    items: dict[str, Item] = {}
    meters: dict[tuple[str, str, str], MeterRead] = {}
    bills: dict[tuple[str, str, float], Billed] = {}
    for fact in facts:
        match fact:
            case Started():
                _put(items, fact.item, Item(started=fact), _join_items)
            case Ended():
                _put(items, fact.item, Item(ended_at=fact.at), _join_items)
            case Repriced():
                _put(items, fact.item, Item(repriced={fact.at: fact.price}), _join_items)
            case MeterRead():
                _put(meters, (fact.owner, fact.meter, fact.backend), fact, _join_meters)
            case Billed():
                _put(bills, (fact.owner, fact.account, fact.start), fact, _join_bills)
            case _:
                assert_never(fact)
    return State(items=items, meters=meters, bills=bills)


def combine(one: State, other: State) -> State:
    """Return the fold of both logs; `State()` is neutral."""
    return State(
        items=_union(one.items, other.items, _join_items),
        meters=_union(one.meters, other.meters, _join_meters),
        bills=_union(one.bills, other.bills, _join_bills),
    )


def segments(item: Item, now: float) -> list[Segment]:
    """Cut the item's billed time up to `now` by price; empty where it has not begun by then.

    A price change takes effect where the time billed until then ends: a minimum or an increment that has begun
    is paid at the price at which it began, so that what was spent never becomes less.
    """
    started = item.started
    if started is None or started.at > now:
        return []
    rule = RULES[started.rule]
    begin = seconds(started.at)
    until = min(now, item.ended_at) if item.ended_at is not None else now
    stop = begin + rule.billed_s(max(seconds(until) - begin, Decimal(0)))
    prices = {begin: started.price}
    for at in sorted(item.repriced):
        if started.at <= at <= now:
            after = seconds(at) - begin
            prices[begin + (rule.billed_s(after) if after else Decimal(0))] = item.repriced[at]
    cuts = [at for at in prices if at == begin or at < stop]
    ends = [*cuts[1:], stop]
    return [Segment(start=at, end=end, price=prices[at]) for at, end in zip(cuts, ends, strict=True)]


def figure(item: Item, pieces: Iterable[Segment]) -> Figure:
    """Price pieces of the item's time; a piece at an unknown price makes the figure unknown."""
    pieces = list(pieces)
    if not pieces or item.started is None:
        return Figure()
    known = sum(
        (
            (piece.end - piece.start) * piece.price.usd_per_hour / _SECONDS_PER_HOUR
            for piece in pieces
            if piece.price is not None
        ),
        start=Decimal(0),
    )
    has_unknown = any(piece.price is None for piece in pieces)
    return Figure(at_least=known, unknown=int(has_unknown), label=item.started.label)


def is_open(item: Item, now: float) -> bool:
    """Say whether the item runs at `now`."""
    if item.started is None or item.started.at > now:
        return False
    return item.ended_at is None or item.ended_at > now


def seconds(at: float) -> Decimal:
    """Return a time as the decimal that it is written as: sums of binary fractions would depend on order."""
    return Decimal(repr(at))


def _put(into: dict[K, V], key: K, value: V, join: Callable[[V, V], V]) -> None:
    into[key] = join(into[key], value) if key in into else value


def _union(one: Mapping[K, V], other: Mapping[K, V], join: Callable[[V, V], V]) -> dict[K, V]:
    joined = dict(one)
    for key, value in other.items():
        _put(joined, key, value, join)
    return joined


def _join_items(one: Item, other: Item) -> Item:
    starts = [item.started for item in (one, other) if item.started is not None]
    ends = [item.ended_at for item in (one, other) if item.ended_at is not None]
    return Item(
        # Of two beginnings the first counts, of two ends the last: time is rather counted than forgotten.
        started=min(starts, key=_start_order, default=None),
        ended_at=max(ends, default=None),
        repriced=_union(one.repriced, other.repriced, lambda a, b: max(a, b, key=_price_order)),
    )


def _join_meters(one: MeterRead, other: MeterRead) -> MeterRead:
    """Take the higher of each total: a router that died goes on from a slightly older one."""
    levels = dict(one.inflight_s)
    for level, spent in other.inflight_s:
        levels[level] = max(spent, levels.get(level, 0.0))
    return MeterRead(
        owner=one.owner,
        meter=one.meter,
        backend=one.backend,
        requests=max(one.requests, other.requests),
        prompt_tokens=max(one.prompt_tokens, other.prompt_tokens),
        completion_tokens=max(one.completion_tokens, other.completion_tokens),
        estimated_completion_tokens=max(one.estimated_completion_tokens, other.estimated_completion_tokens),
        inflight_s=tuple(sorted(levels.items())),
    )


def _join_bills(one: Billed, other: Billed) -> Billed:
    return max(one, other, key=lambda bill: (bill.at, bill.end, bill.usd, bill.part))


def _start_order(started: Started) -> tuple[Any, ...]:
    price = tuple(-part if isinstance(part, Decimal) else part for part in _price_order(started.price))
    identity = (started.owner, started.part, started.rule, started.label, started.backend, started.account)
    # At the same instant, one with a price before one without.
    return started.at, not price[0], *price[1:], *identity


def _price_order(price: Price | None) -> tuple[bool, Decimal, str, float]:
    """Prefer a known price, then the higher one."""
    if price is None:
        return False, Decimal(0), "", 0.0
    return True, price.usd_per_hour, price.source, price.at
