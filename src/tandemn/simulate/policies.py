"""What one worker does at each tick: Tandemn's pacing, and the two published policies that it has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tandemn.batch.pacing import Pace, PacedReplica, decide
from tandemn.protocol.replicas import Market

if TYPE_CHECKING:
    from collections.abc import Sequence

#: What a worker may be: None (nothing rented), ON_DEMAND, or the number of a zone (spot).
Place = int | None
ON_DEMAND = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a policy sees; all times in seconds, work in seconds of one worker."""

    elapsed: float
    whole: float
    """From the start to the deadline."""
    total: float
    remaining: float
    place: Place
    warm: float
    """Until the worker at `place` works."""
    open_zones: Sequence[int]
    changeover: float
    tick: float

    @property
    def slack(self) -> float:
        return self.whole - self.elapsed - self.remaining


class Policy(Protocol):
    """Decides for one run; a new one is made for each."""

    def choose(self, view: View) -> Place: ...


class Pacing:
    """Tandemn's own `batch.pacing`, for one replica."""

    def choose(self, view: View) -> Place:
        replicas = []
        if view.place is not None:
            market = Market.ON_DEMAND if view.place == ON_DEMAND else Market.SPOT
            replicas = [PacedReplica(replica_id="worker", market=market, warm_s=view.warm)]
        decision = decide(
            Pace(
                now=view.elapsed,
                started=0.0,
                deadline=view.whole,
                total=view.total,
                remaining=view.remaining,
                rate=1.0,
                wanted=1,
                max_replicas=1,
                replicas=replicas,
                open_zones=[str(zone) for zone in view.open_zones],
                changeover_s=view.changeover,
                interval_s=view.tick,
            )
        )
        if not decision.launches:
            return view.place
        launch = decision.launches[0]
        return ON_DEMAND if launch.zone is None else int(launch.zone)


class Greedy:
    """Spot whenever there is one, idle when not, and on-demand to the end once slack is under two changeovers."""

    def __init__(self) -> None:
        self._safe = False

    def choose(self, view: View) -> Place:
        if self._safe or view.slack < 2 * view.changeover:
            self._safe = True
            return ON_DEMAND
        if view.place is not None:
            return view.place
        return view.open_zones[0] if view.open_zones else None


class UniformProgress:
    """Keep up with a straight line to the deadline ("Can't Be Late", NSDI'24): behind it on-demand fills in.

    Spot is kept while it lasts and taken when idle; on-demand is left only when ahead by two changeovers; slack under
    two changeovers means on-demand to the end.
    """

    def __init__(self) -> None:
        self._safe = False

    def choose(self, view: View) -> Place:
        if self._safe or view.slack < 2 * view.changeover:
            self._safe = True
            return ON_DEMAND
        ahead = (view.total - view.remaining) - view.elapsed * view.total / view.whole
        spot = view.open_zones[0] if view.open_zones else None
        if view.place == ON_DEMAND:
            return ON_DEMAND if ahead < 2 * view.changeover * view.total / view.whole else spot
        if view.place is not None:
            return view.place
        return ON_DEMAND if spot is None and ahead < 0 else spot
