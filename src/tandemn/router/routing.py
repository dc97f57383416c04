"""Where a request goes: the state of each backend, preference, overflow, retry. Pure: `now` is passed in.

Each backend has a `Standing`, moved by what happened to it (an answer, a failure, a probe, a notice). From
all standings and loads `make_plan` ranks the backends in tiers, and `pick` takes the least loaded backend
with room from the first tier that has one. What happens after a failed try is `after_fault`. The proxy only
applies these; readers find the reason of every decision in its `reason`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from tandemn.router.table import Market, Probe

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

#: Failures in a row that open a backend's circuit: one error condemns nobody.
FAILURES_TO_OPEN: Final = 3
#: Seconds that a circuit stays open the first time; doubled each time it opens again without an answer between.
OPEN_S: Final = 1.0
OPEN_MAX_S: Final = 30.0
#: Seconds between pokes at a backend that is not ready: what makes traffic shift within a second.
POKE_S: Final = 0.5
#: Seconds between probes of a ready backend that has answered nothing in between.
PROBE_IDLE_S: Final = 5.0
#: Seconds after the last request for which there is still demand (the window of SkyServe's autoscaler).
DEMAND_S: Final = 60.0
#: Overflow by TTFT begins at this multiple of serverless's median, but not below the floor.
TTFT_FACTOR: Final = 3.0
TTFT_FLOOR_S: Final = 2.0
#: Overflow ends below this share of the limit that began it.
RETURN_SHARE: Final = 0.8
#: Seconds that an overflow by TTFT lasts at least: a queue needs time to drain.
OVERFLOW_HOLD_S: Final = 5.0
#: Tries of one request, over all backends.
MAX_TRIES: Final = 4
#: Times that one stream is resumed; more means that the request itself kills backends.
MAX_RESUMES: Final = 8
#: Seconds that a client is asked to wait where everything is full.
RETRY_AFTER_S: Final = 1


class State(StrEnum):
    COLD = "cold"
    """Nothing answers."""
    WARMING = "warming"
    """Something answers, but not for the model yet."""
    READY = "ready"
    DRAINING = "draining"
    """A notice came: it ends what it has."""
    DOWN = "down"
    """Its circuit is open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is believed of a backend, and why."""

    state: State
    reason: str
    since: float
    failures: int = 0
    """In a row."""
    opens: int = 0
    """Times in a row that the circuit opened."""
    retry_at: float = 0.0
    """While down: when it may be tried again."""


class ProbeResult(StrEnum):
    ABSENT = "absent"
    """No connection."""
    BUSY = "busy"
    """An answer that is not 2xx."""
    WELL = "well"


def first_standing(probing: Probe, *, draining: bool, now: float) -> Standing:
    """What is believed of a backend that has just appeared in the table."""
    if draining:
        return Standing(state=State.DRAINING, reason="notice", since=now)
    if probing is Probe.NEVER:
        return Standing(state=State.READY, reason="starts on demand", since=now)
    return Standing(state=State.COLD, reason="not probed yet", since=now)


def after_notice(standing: Standing, *, draining: bool, probing: Probe, now: float) -> Standing:
    """The table says that the backend drains, or no longer drains."""
    if draining == (standing.state is State.DRAINING):
        return standing
    return first_standing(probing, draining=draining, now=now)


def after_answer(standing: Standing, now: float) -> Standing:
    """It answered a request: whatever was believed, it is ready."""
    if standing.state is State.DRAINING:
        return standing
    if standing.state is State.READY:
        return replace(standing, failures=0, opens=0)
    return Standing(state=State.READY, reason="answered a request", since=now)


def after_failure(standing: Standing, why: str, now: float) -> Standing:
    """A try failed there (no connection, broken, too slow, or a 5xx)."""
    if standing.state is State.DRAINING:
        return standing
    failures = standing.failures + 1
    if standing.state is State.READY and failures < FAILURES_TO_OPEN:
        return replace(standing, failures=failures)
    if standing.state is State.DOWN and now < standing.retry_at:
        return replace(standing, failures=failures)  # one of those that were under way when it opened
    if standing.state in {State.COLD, State.WARMING}:
        return replace(standing, failures=failures)
    pause = min(OPEN_S * 2**standing.opens, OPEN_MAX_S)
    return Standing(
        state=State.DOWN,
        reason=f"{failures} failures in a row, last: {why}",
        since=now,
        failures=failures,
        opens=standing.opens + 1,
        retry_at=now + pause,
    )


def after_probe(standing: Standing, result: ProbeResult, now: float) -> Standing:
    """A poke came back."""
    if standing.state is State.DRAINING or (standing.state is State.DOWN and now < standing.retry_at):
        return standing
    match result:
        case ProbeResult.WELL:
            if standing.state is State.READY:
                return replace(standing, failures=0)
            # `opens` stays until a request is answered: a backend whose probes lie is left alone for longer.
            return Standing(state=State.READY, reason="probe answered", since=now, opens=standing.opens)
        case ProbeResult.BUSY | ProbeResult.ABSENT if standing.state is State.READY:
            return after_failure(standing, f"probe: {result}", now)
        case ProbeResult.BUSY:
            return _become(standing, State.WARMING, "answers, but not for the model yet", now)
        case _:
            return _become(standing, State.COLD, "nothing answers", now)


def _become(standing: Standing, state: State, reason: str, now: float) -> Standing:
    if standing.state is state and standing.reason == reason:
        return standing
    return Standing(state=state, reason=reason, since=now, opens=standing.opens)


def poke_due(
    standing: Standing,
    probing: Probe,
    *,
    last_poke: float,
    last_answer: float,
    last_request: float,
    now: float,
) -> bool:
    """Whether to probe now: never what must sleep, often what is awaited, seldom what is ready and idle."""
    if probing is Probe.NEVER or standing.state is State.DRAINING:
        return False
    if last_poke == -math.inf:
        return True
    if probing is Probe.DEMAND and now - last_request > DEMAND_S:
        return False
    if standing.state is State.READY:
        return now - max(last_poke, last_answer) >= PROBE_IDLE_S
    return now - last_poke >= POKE_S and now >= standing.retry_at


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A backend as the plan sees it."""

    name: str
    market: Market
    standing: Standing
    price: float
    inflight: int
    replicas: int
    room: int | None
    ttft_s: float | None
    """Median of the last seconds; None: nothing measured."""
    waiting_s: float
    """How long the oldest stream in flight has waited for its first byte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overflow:
    """Whether requests go past the cheap backends to serverless."""

    active: bool = False
    reason: str = ""
    since: float = 0.0
    by_ttft: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    name: str
    room: int | None
    replicas: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Backends in order of preference; those of a tier are equal."""

    tiers: tuple[tuple[Choice, ...], ...]
    overflow: Overflow
    reason: str


def ttft_limit_s(candidates: Sequence[Candidate], given: float | None) -> float:
    """TTFT beyond which a cheap backend is passed over."""
    if given is not None:
        return given
    medians = sorted(c.ttft_s for c in candidates if c.market is Market.SERVERLESS and c.ttft_s is not None)
    return max(TTFT_FLOOR_S, TTFT_FACTOR * medians[len(medians) // 2]) if medians else TTFT_FLOOR_S


def next_overflow(
    previous: Overflow, candidates: Sequence[Candidate], ttft_limit: float, now: float
) -> Overflow:
    """Begin, keep or end the overflow; it ends lower than it begins."""
    cheap = [c for c in candidates if c.market is not Market.SERVERLESS and c.standing.state is State.READY]
    if not cheap or all(c.market is not Market.SERVERLESS for c in candidates):
        return Overflow()
    share = RETURN_SHARE if previous.active else 1.0
    if all(c.room is not None and c.inflight >= share * c.room for c in cheap):
        reason = (
            f"{sum(c.inflight for c in cheap)} requests in flight, room for {sum(c.room or 0 for c in cheap)}"
        )
        return _overflow(previous, reason, by_ttft=False, now=now)
    slowness = min(max(c.ttft_s or 0.0, c.waiting_s) for c in cheap)
    if slowness > share * ttft_limit:
        return _overflow(previous, f"TTFT {slowness:.2f} s, limit {ttft_limit:.2f} s", by_ttft=True, now=now)
    if previous.active and previous.by_ttft and now - previous.since < OVERFLOW_HOLD_S:
        return previous
    return Overflow()


def _overflow(previous: Overflow, reason: str, *, by_ttft: bool, now: float) -> Overflow:
    since = previous.since if previous.active and previous.by_ttft == by_ttft else now
    return Overflow(active=True, reason=reason, since=since, by_ttft=by_ttft)


def make_plan(
    candidates: Sequence[Candidate], previous: Overflow, *, spot_ttft_s: float | None, now: float
) -> Plan:
    """Rank the backends: the cheapest ready first; after them, as a last resort, what is not known to work."""
    overflow = next_overflow(previous, candidates, ttft_limit_s(candidates, spot_ttft_s), now)
    ranked: dict[tuple[float, ...], list[Choice]] = {}
    for c in candidates:
        rank = _rank(c, overflow, now)
        if rank is not None:
            choice = Choice(
                name=c.name, room=c.room, replicas=c.replicas, reason=f"{c.market} {c.standing.state}"
            )
            ranked.setdefault(rank, []).append(choice)
    tiers = tuple(tuple(ranked[rank]) for rank in sorted(ranked))
    if not tiers:
        return Plan(tiers=(), overflow=overflow, reason="no backend, or all of them drain")
    first = ", ".join(choice.name for choice in tiers[0])
    reason = f"overflow: {overflow.reason}" if overflow.active else f"cheapest ready: {first}"
    return Plan(tiers=tiers, overflow=overflow, reason=reason)


_MARKET_RANK: Final = {Market.SPOT: 0, Market.ON_DEMAND: 1, Market.SERVERLESS: 2}
_LAST_RESORT: Final = {State.DOWN: 10, State.WARMING: 11, State.COLD: 12}


def _rank(c: Candidate, overflow: Overflow, now: float) -> tuple[float, ...] | None:
    if c.standing.state is State.DRAINING:
        return None
    is_trial = c.standing.state is State.DOWN and c.market is Market.SERVERLESS and now >= c.standing.retry_at
    if c.standing.state is State.READY or is_trial:
        # A serverless backend is never probed, so a request is its trial: the circuit closes by an answer.
        market = _MARKET_RANK[c.market]
        return (-1 if overflow.active and c.market is Market.SERVERLESS else market, c.price)
    return (_LAST_RESORT[c.standing.state], _MARKET_RANK[c.market], c.price)


def pick(plan: Plan, inflight: Mapping[str, int], excluded: Collection[str] = ()) -> Choice | None:
    """The least loaded backend with room, from the first tier that has one."""
    for tier in plan.tiers:
        best: Choice | None = None
        best_load = math.inf
        for choice in tier:
            count = inflight[choice.name]
            if (choice.room is None or count < choice.room) and choice.name not in excluded:
                load = count / choice.replicas
                if load < best_load:
                    best, best_load = choice, load
        if best is not None:
            return best
    return None


class Fault(StrEnum):
    """How a try failed before its first byte reached the client."""

    STALE = "stale"
    """A pooled connection had been closed by its peer meanwhile."""
    REFUSED = "refused"
    CLOSED = "closed"
    GARBAGE = "garbage"
    SLOW = "slow"
    ERROR_STATUS = "error_status"
    BUSY = "busy"
    """429: it is full, not ill."""


class Step(StrEnum):
    SAME = "same"
    """Once more at the same backend, on a fresh connection."""
    ELSEWHERE = "elsewhere"
    """At another backend; where there is none, what `after_fault` is asked next."""
    PASS_ON = "pass_on"  # noqa: S105 -- no password
    """Give the client the answer that came."""
    GIVE_UP = "give_up"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    step: Step
    reason: str


#: Methods that may be repeated although the backend may have acted on them: inference changes nothing.
_REPEATABLE: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"POST"})


def after_fault(
    fault: Fault, *, method: bytes, tries: int, is_sent: bool, is_kept: bool, has_other: bool
) -> Verdict:
    """What to do with a request whose try failed before its first byte went out.

    Args:
        fault: how it failed.
        method: of the request.
        tries: made so far, this one included.
        is_sent: whether the backend may have seen the request.
        is_kept: whether the whole request can be sent again.
        has_other: whether a backend that was not tried has room.
    """
    answered = fault in {Fault.ERROR_STATUS, Fault.BUSY}
    last = Step.PASS_ON if answered else Step.GIVE_UP
    step, reason = last, f"{fault}: no other backend"
    if not is_kept:
        reason = "the request was too long to be kept"
    elif is_sent and method not in _REPEATABLE:
        reason = f"{method.decode('latin-1')} must not be repeated"
    elif fault is Fault.STALE:
        step, reason = Step.SAME, "the pooled connection was closed"
    elif tries >= MAX_TRIES:
        reason = f"{tries} tries failed"
    elif has_other:
        step, reason = Step.ELSEWHERE, f"{fault}: another backend has room"
    elif fault is Fault.CLOSED and tries == 1:
        # Behind one URL there may be several replicas (SkyServe's balancer): the next try may meet another.
        step, reason = Step.SAME, "closed before the answer; no other backend"
    return Verdict(step=step, reason=reason)
