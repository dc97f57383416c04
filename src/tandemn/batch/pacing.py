"""Keep a running job's pace to its deadline: more or fewer replicas, spot or on-demand. Pure.

Measured throughput replaces the prediction. Slack is the time that would be left if all wanted replicas worked
from now on; waiting for spot and every change of machine spend it, working spends none. So it is spent on waiting
only down to a reserve for the changes that are still to come: that keeps spot usable until the end, where a policy
that waits until it must not would be stuck on on-demand.

It says what should be; it launches nothing. What users changed by hand stands: the caller sets the least and the most
replicas accordingly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tandemn.protocol.replicas import Market

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Spot runs last a few hours: one trip to on-demand and back is reserved for each such stretch that is left.
TRIP_EVERY_S = 2 * 3600.0
#: Share of the time left by which a job must be ahead before a replica is released: rates are noisy.
AHEAD_SHARE = 0.2
#: Share of the time left by which a job has to be ahead at the measured rate, or replicas are added.
NOISE_SHARE = 0.1
#: Replicas were added in vain where they brought less than this share of what they should have.
VAIN_SHARE = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class PacedReplica:
    """A replica that this job's pace may count on."""

    replica_id: str
    market: Market
    zone: str | None = None
    warm_s: float = 0.0
    """Seconds until it works; 0: it does."""
    usd_per_hour: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """How a job stood when replicas were last added to it."""

    working: int
    requests_per_s: float
    """Of all of them together, measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Where a job stands; times in seconds, work in requests."""

    now: float
    started: float
    deadline: float
    total: float
    remaining: float
    rate: float
    """Requests per second of one replica: measured where there is a measurement, else the plan's slow figure."""
    wanted: int
    """Replicas that the plan, or the last decision, asked for."""
    max_replicas: int
    replicas: Sequence[PacedReplica]
    open_zones: Sequence[str]
    """Zones where spot may be had now, best first."""
    changeover_s: float
    """From launch to the first answer."""
    interval_s: float
    """Until the next decision, at the latest."""
    spot_allowed: bool = True
    on_demand_allowed: bool = True
    min_replicas: int = 1
    """What the user added by hand is not released."""
    is_measured: bool = False
    """Whether `rate` is."""
    last_growth: Growth | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A replica to start; `instead_of` is drained once it works (in a simulation: at once)."""

    market: Market
    zone: str | None = None
    instead_of: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PaceDecision:
    wanted: int
    launches: tuple[Launch, ...]
    releases: tuple[str, ...]
    slack_s: float
    is_late: bool
    """Even this is not expected to make it."""
    reason: str


def decide(pace: Pace) -> PaceDecision:
    """Say what the job's fleet should be from now until the next decision."""
    if pace.remaining <= 0:
        ids = tuple(replica.replica_id for replica in pace.replicas)
        return _decision(pace, 0, (), ids, "all work is done")
    wanted = _wanted(pace)
    slack = _slack(pace, wanted)
    if len(pace.replicas) > wanted:
        surplus = sorted(pace.replicas, key=_value)[: len(pace.replicas) - wanted]
        ids = tuple(replica.replica_id for replica in surplus)
        return _decision(pace, wanted, (), ids, f"{_time(slack)} ahead: {len(ids)} fewer will do")
    launches = [*_moves(pace, slack), *_missing(pace, wanted, slack)]
    return _decision(pace, wanted, tuple(launches), (), _reason(pace, wanted, slack, launches))


def _value(replica: PacedReplica) -> tuple[bool, bool, float]:
    """Order of release: on-demand before spot, what does not work yet first, the dearest first."""
    return (replica.market is Market.SPOT, replica.warm_s <= 0, -replica.usd_per_hour)


def _slack(pace: Pace, replicas: int) -> float:
    """Time that is left over if `replicas` work from now on."""
    return pace.deadline - pace.now - pace.remaining / (pace.rate * replicas)


def _finish_s(pace: Pace, replicas: int) -> float:
    """Seconds until all is done by `replicas`: those that there are once they are warm, the others from a cold start."""
    warm = sorted(replica.warm_s for replica in pace.replicas)[:replicas]
    starts = sorted([*warm, *[pace.changeover_s] * (replicas - len(warm))])
    finish = math.inf
    for count in range(1, replicas + 1):
        # With the `count` soonest at work; later ones do not matter where it is over before they are warm.
        finish = (pace.remaining / pace.rate + sum(starts[:count])) / count
        if count < replicas and finish <= starts[count]:
            break
    return finish


def _wanted(pace: Pace) -> int:
    """Fewest replicas that make it from where they are; fewer than now only when far ahead."""
    least = max(pace.min_replicas, 1)
    most = max(pace.max_replicas, least)
    wanted, left = max(pace.wanted, least), pace.deadline - pace.now
    while wanted < most and _is_short(pace, wanted, _growth_margin(pace)):
        wanted += 1
    while wanted > least and _slack(pace, wanted - 1) >= _reserve(pace, wanted - 1) + AHEAD_SHARE * left:
        wanted -= 1
    return min(wanted, most)


def _is_short(pace: Pace, replicas: int, margin: float) -> bool:
    """Whether one more than `replicas` is needed to be `margin` seconds early, and would be of use."""
    left, finish = pace.deadline - pace.now, _finish_s(pace, replicas)
    is_useful = left > 0 and finish > pace.changeover_s and not _was_vain(pace)
    return is_useful and left - finish < margin


def _margin(pace: Pace) -> float:
    return NOISE_SHARE * (pace.deadline - pace.now) if pace.is_measured else 0.0


def _growth_margin(pace: Pace) -> float:
    """How early the job should be before replicas are added to it."""
    on_spot = any(replica.market is Market.SPOT for replica in pace.replicas) and pace.on_demand_allowed
    if not (on_spot and pace.is_measured):
        return _margin(pace)
    # Another replica is as cheap as the others; on-demand, where there is no time left to lose a spot one, is not.
    return max(_margin(pace), 2 * pace.changeover_s)


def _was_vain(pace: Pace) -> bool:
    """Whether the replicas added last work, and the job is hardly faster for it: something else is its bound."""
    working, before = sum(replica.warm_s <= 0 for replica in pace.replicas), pace.last_growth
    if before is None or not pace.is_measured or before.working < 1 or working <= before.working:
        return False
    gained = pace.rate * working / before.requests_per_s - 1
    return gained < VAIN_SHARE * (working / before.working - 1)


def _reserve(pace: Pace, replicas: int) -> float:
    """Slack that waiting may not touch: one changeover, one trip, and a trip for each stretch of time left.

    The trips never get more than their share of the slack that the job began with, spread evenly over its time.
    """
    left, whole = pace.deadline - pace.now, pace.deadline - pace.started
    trip = 2 * pace.changeover_s
    begun = max(whole - pace.total / (pace.rate * replicas), 0.0)
    even = begun * left / whole if whole > 0 else 0.0
    return pace.changeover_s + trip + min(trip * left / TRIP_EVERY_S, even)


def _is_lost(pace: Pace, slack: float) -> bool:
    """Whether the deadline cannot be met any more: then there is nothing that on-demand could buy while spot works."""
    return slack < -NOISE_SHARE * max(pace.deadline - pace.now, 0.0)


def _moves(pace: Pace, slack: float) -> list[Launch]:
    """On-demand replicas to swap for spot, and spot ones that will not be up in time to swap for on-demand."""
    moves = []
    zones = list(pace.open_zones) if pace.spot_allowed else []
    may_pay = pace.on_demand_allowed and not _is_lost(pace, slack)
    for replica in pace.replicas:
        if replica.market is Market.SPOT and may_pay and slack - replica.warm_s < pace.changeover_s:
            moves.append(Launch(market=Market.ON_DEMAND, instead_of=replica.replica_id))
        elif replica.market is Market.ON_DEMAND and zones and slack >= 2 * pace.changeover_s:
            # Back to on-demand costs a second changeover should spot be lost while it starts.
            moves.append(Launch(market=Market.SPOT, zone=zones[0], instead_of=replica.replica_id))
    return moves


def _missing(pace: Pace, wanted: int, slack: float) -> list[Launch]:
    count = wanted - len(pace.replicas)
    if count <= 0:
        return []
    on_spot = slack >= 2 * pace.changeover_s or not pace.on_demand_allowed or _is_lost(pace, slack)
    if pace.spot_allowed and pace.open_zones and on_spot:
        # Spread over zones: they are lost together less often.
        zones = [pace.open_zones[i % len(pace.open_zones)] for i in range(count)]
        return [Launch(market=Market.SPOT, zone=zone) for zone in zones]
    can_wait = slack - pace.interval_s >= _reserve(pace, wanted) or not pace.on_demand_allowed
    if pace.spot_allowed and can_wait:
        return []
    # Spot would have been taken for all of them; on-demand only for those without which it is late.
    needed = 0 if pace.replicas else 1
    while needed < count and _is_short(pace, len(pace.replicas) + needed, _margin(pace)):
        needed += 1
    return [Launch(market=Market.ON_DEMAND) for _ in range(needed)]


def _reason(pace: Pace, wanted: int, slack: float, launches: Sequence[Launch]) -> str:
    spare = f"{_time(slack)} of slack"
    if slack < 0:
        vain = ", and more of them brought nothing" if _was_vain(pace) else ""
        return f"{_count(wanted)}, {_time(-slack)} late at the {_rate_is(pace)} rate{vain}"
    if wanted > pace.wanted:
        return (
            f"{_count(wanted)} instead of {pace.wanted}, to be in time at the {_rate_is(pace)} rate ({spare})"
        )
    if any(launch.instead_of and launch.market is Market.SPOT for launch in launches):
        return f"spot is back: on-demand is swapped for it ({spare})"
    if any(launch.market is Market.ON_DEMAND for launch in launches):
        return f"on-demand, to be in time ({spare})"
    if launches:
        return f"{len(launches)} on spot ({spare})"
    if len(pace.replicas) < wanted:
        return f"waiting for spot ({spare})"
    return f"on pace ({spare})"


def _rate_is(pace: Pace) -> str:
    return "measured" if pace.is_measured else "planned"


def _count(replicas: int) -> str:
    return "1 replica" if replicas == 1 else f"{replicas} replicas"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def _decision(
    pace: Pace, wanted: int, launches: tuple[Launch, ...], releases: tuple[str, ...], reason: str
) -> PaceDecision:
    slack = _slack(pace, wanted) if wanted else pace.deadline - pace.now
    late = slack < 0 and not math.isclose(slack, 0.0, abs_tol=1e-6)
    return PaceDecision(
        wanted=wanted, launches=launches, releases=releases, slack_s=slack, is_late=late, reason=reason
    )
