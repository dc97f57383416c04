"""Keep a running job's pace to its deadline: more or fewer replicas, spot or on-demand. Pure.

Measured throughput replaces the prediction. Slack is the time that would be left if all wanted replicas worked
from now on; waiting for spot and every change of machine spend it, working spends none. So it is spent on waiting
only down to a reserve for the changes that are still to come: that keeps spot usable until the end, where a policy
that waits until it must not would be stuck on on-demand.

It says what should be; it launches nothing, and what users added or killed by hand is not its business: the caller
leaves those replicas out.
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
AHEAD_SHARE = 0.1


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
    """Even the most that may run, on on-demand, is not expected to make it."""
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
        return _decision(pace, wanted, (), ids, f"{slack / 60:.0f} minutes ahead: {len(ids)} fewer will do")
    launches = [*_moves(pace, slack), *_missing(pace, wanted, slack)]
    return _decision(pace, wanted, tuple(launches), (), _reason(pace, wanted, slack, launches))


def _value(replica: PacedReplica) -> tuple[bool, bool, float]:
    """Order of release: on-demand before spot, what does not work yet first, the dearest first."""
    return (replica.market is Market.SPOT, replica.warm_s <= 0, -replica.usd_per_hour)


def _slack(pace: Pace, replicas: int) -> float:
    """Time that is left over if `replicas` work from now on."""
    return pace.deadline - pace.now - pace.remaining / (pace.rate * replicas)


def _wanted(pace: Pace) -> int:
    """Fewest replicas that can still make it from a cold start; fewer than now only when far ahead."""
    wanted = max(pace.wanted, 1)
    while wanted < pace.max_replicas and _slack(pace, wanted) < _needed_slack(pace, wanted):
        wanted += 1
    left = pace.deadline - pace.now
    while wanted > 1 and _slack(pace, wanted - 1) >= _reserve(pace, wanted - 1) + AHEAD_SHARE * left:
        wanted -= 1
    return min(wanted, max(pace.max_replicas, 1))


def _needed_slack(pace: Pace, replicas: int) -> float:
    # Replicas that work need no changeover; those that would have to be added do.
    working = sum(replica.warm_s <= 0 for replica in pace.replicas)
    return 0.0 if working >= replicas else pace.changeover_s


def _reserve(pace: Pace, replicas: int) -> float:
    """Slack that waiting may not touch: one changeover, one trip, and a trip for each stretch of time left.

    The trips never get more than their share of the slack that the job began with, spread evenly over its time.
    """
    left, whole = pace.deadline - pace.now, pace.deadline - pace.started
    trip = 2 * pace.changeover_s
    begun = max(whole - pace.total / (pace.rate * replicas), 0.0)
    even = begun * left / whole if whole > 0 else 0.0
    return pace.changeover_s + trip + min(trip * left / TRIP_EVERY_S, even)


def _moves(pace: Pace, slack: float) -> list[Launch]:
    """On-demand replicas to swap for spot, and spot ones that will not be up in time to swap for on-demand."""
    moves = []
    zones = list(pace.open_zones) if pace.spot_allowed else []
    for replica in pace.replicas:
        if replica.market is Market.SPOT and slack - replica.warm_s < pace.changeover_s:
            moves.append(Launch(market=Market.ON_DEMAND, instead_of=replica.replica_id))
        elif replica.market is Market.ON_DEMAND and zones and slack >= 2 * pace.changeover_s:
            # Back to on-demand costs a second changeover should spot be lost while it starts.
            moves.append(Launch(market=Market.SPOT, zone=zones[0], instead_of=replica.replica_id))
    return moves


def _missing(pace: Pace, wanted: int, slack: float) -> list[Launch]:
    count = wanted - len(pace.replicas)
    if count <= 0:
        return []
    if pace.spot_allowed and pace.open_zones and slack >= 2 * pace.changeover_s:
        # Spread over zones: they are lost together less often.
        zones = [pace.open_zones[i % len(pace.open_zones)] for i in range(count)]
        return [Launch(market=Market.SPOT, zone=zone) for zone in zones]
    if pace.spot_allowed and slack - pace.interval_s >= _reserve(pace, wanted):
        return []
    return [Launch(market=Market.ON_DEMAND) for _ in range(count)]


def _reason(pace: Pace, wanted: int, slack: float, launches: Sequence[Launch]) -> str:
    minutes = f"{slack / 60:.0f} minutes of slack"
    if slack < 0:
        return f"{wanted} replicas, {-slack / 60:.0f} minutes late at the measured rate"
    if any(launch.instead_of and launch.market is Market.SPOT for launch in launches):
        return f"spot is back: on-demand is swapped for it ({minutes})"
    if any(launch.market is Market.ON_DEMAND for launch in launches):
        return f"on-demand, to be in time ({minutes})"
    if launches:
        return f"{len(launches)} on spot ({minutes})"
    if len(pace.replicas) < wanted:
        return f"waiting for spot ({minutes})"
    return f"on pace ({minutes})"


def _decision(
    pace: Pace, wanted: int, launches: tuple[Launch, ...], releases: tuple[str, ...], reason: str
) -> PaceDecision:
    slack = _slack(pace, wanted) if wanted else pace.deadline - pace.now
    late = wanted >= pace.max_replicas and slack < 0 and not math.isclose(slack, 0.0, abs_tol=1e-6)
    return PaceDecision(
        wanted=wanted, launches=launches, releases=releases, slack_s=slack, is_late=late, reason=reason
    )
