"""One job on one worker through a trace: what it costs, and whether it is in time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tandemn.simulate.policies import ON_DEMAND, View

if TYPE_CHECKING:
    from tandemn.simulate.policies import Place, Policy
    from tandemn.simulate.traces import Traces


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Work of one worker and its deadline, seconds; prices by hour; a start costs `changeover` paid idle seconds."""

    work: float
    whole: float
    """From the start to the deadline."""
    changeover: float
    spot_usd: float
    on_demand_usd: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    usd: float
    seconds: float
    launches: int
    on_demand_s: float
    is_missed: bool


def run(traces: Traces, start: int, job: Job, policy: Policy) -> Outcome:
    """Run a job from tick `start`. The trace must reach as far as the job takes (its end counts as no spot)."""
    tick = traces.tick_s
    remaining, elapsed, index = job.work, 0.0, start
    place: Place = None
    warm = usd = dear = 0.0
    launches = 0
    while remaining > 1e-6:
        column = traces.available[:, index] if index < traces.ticks else None
        zones = [] if column is None else [int(zone) for zone in column.nonzero()[0]]
        if place is not None and place != ON_DEMAND and place not in zones:
            place = None
        chosen = policy.choose(
            View(
                elapsed=elapsed,
                whole=job.whole,
                total=job.work,
                remaining=remaining,
                place=place,
                warm=warm if place is not None else 0.0,
                open_zones=zones,
                changeover=job.changeover,
                tick=tick,
            )
        )
        if chosen != place:
            place, warm = chosen, job.changeover
            launches += chosen is not None
        spent = tick
        if place is not None:
            starting = min(warm, tick)
            done = min(tick - starting, remaining)
            spent = starting + done if done >= remaining else tick
            warm, remaining = warm - starting, remaining - done
            usd += spent / 3600 * (job.on_demand_usd if place == ON_DEMAND else job.spot_usd)
            dear += spent if place == ON_DEMAND else 0.0
        elapsed += spent
        index += 1
    return Outcome(
        usd=usd,
        seconds=elapsed,
        launches=launches,
        on_demand_s=dear,
        is_missed=elapsed > job.whole + 1e-6,
    )
