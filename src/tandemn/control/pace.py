"""A job's records, read as what its pace is decided on. Pure."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tandemn.batch.measured_rate import Said, bounded
from tandemn.batch.pacing import Growth, Pace, PacedReplica
from tandemn.control.operations import first_group, open_groups
from tandemn.events import EventKind
from tandemn.fleet.engines.engine import EngineName
from tandemn.fleet.regroup import Bounds, Member, counted, settled
from tandemn.protocol.replicas import Market, ReplicaState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tandemn.batch.pacing import PaceDecision
    from tandemn.control.store.chunks import ChunkTotals
    from tandemn.control.store.records import EventRecord, JobRecord, ReplicaRecord
    from tandemn.protocol.jobs import RequestCounts

#: What is read of the log to know what was planned and what users changed.
LOG_KINDS = (
    EventKind.JOB_PLANNED,
    EventKind.REPLICAS_ADDED,
    EventKind.REPLICAS_KILLED,
    EventKind.SWAP_BEGAN,
    EventKind.SWAP_ENDED,
)
#: From launch to the first answer where none has been measured and no plan says, in seconds: a process on this
#: machine, a machine elsewhere.
LOCAL_START_S, CLOUD_START_S = 10.0, 300.0
#: Spot is taken for unavailable for so long after a replica that was launched on it never came to compute, in seconds.
SPOT_CLOSED_S = 600.0
#: Paid replicas are at most so many times what was planned, and may always be so many more: a rate that is further off
#: than that is for a person to look at.
GROWTH_TIMES, GROWTH_MORE = 4, 3
#: A starting replica that is overdue is taken to need so large a share of the usual start more.
OVERDUE_SHARE = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """A job as its records have it."""

    now: float
    job: JobRecord
    fleet: Sequence[ReplicaRecord]
    totals: ChunkTotals
    requests: RequestCounts
    log: Sequence[EventRecord]
    budget_left_usd: float | None
    """None: no budget limits it."""

    @property
    def planned(self) -> dict[str, Any]:
        """What the plan expects of a replica."""
        return next((event.data for event in self.log if event.kind == EventKind.JOB_PLANNED.value), {})

    @property
    def base(self) -> dict[str, Any]:
        """The job's present configuration."""
        config: dict[str, Any] = self.job.groups[first_group(self.job)]["config"]
        return config

    @property
    def is_local(self) -> bool:
        return (self.job.cloud or "local") == "local"

    @property
    def wanted(self) -> list[int]:
        return [group["wanted"] for group in self.job.groups]

    @property
    def remaining(self) -> int:
        return max(self.job.requests - self.requests.completed - self.requests.failed, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the launcher and this machine allow."""

    room: int
    """Replicas that the job could have beside those that are, by its share."""
    cores: int
    on_demand_usd_per_hour: float | None
    """Of one replica; None: not known, or it does not matter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paced:
    """The question to the pace's decision, and the replicas behind it."""

    pace: Pace
    wanted: tuple[int, ...]
    """Replicas wanted by group, places that cannot be filled given back."""
    members: tuple[Member, ...]
    vacant: tuple[Member, ...]
    """Members that wait for a market that is closed."""


def paced(situation: Situation, measured: float | None, limits: Limits, *, interval_s: float) -> Paced | None:
    """Read the situation; None where users have killed all replicas: that stands.

    Args:
        situation: the records.
        measured: requests per second of one replica; None: too little is known.
        limits: what may be launched.
        interval_s: until the next decision.
    """
    bounds = _bounds(situation.log)
    if bounds.most == 0 or sum(situation.wanted) == 0:
        return None
    by_hand = {name for event in situation.log for name in event.data.get("new", [])}
    members = tuple(_member(each, by_hand) for each in situation.fleet if stays(each))
    is_closed = _is_spot_closed(situation)
    vacant = tuple(each for each in members if is_closed and each.is_pending and each.market is Market.SPOT)
    wanted = settled(situation.wanted, members, vacant)
    there = [each for each in counted(wanted, members) if each not in vacant]
    rate = measured or _unmeasured(situation)
    most = _most(situation, members, limits)
    is_spot = situation.base["market"] == Market.SPOT.value
    last = (situation.job.pace or {}).get("last_growth")
    start_s = _start_s(situation)
    pace = Pace(
        now=situation.now,
        started=situation.job.created_at,
        deadline=situation.job.deadline,
        total=float(situation.job.requests),
        remaining=float(situation.remaining),
        rate=rate,
        wanted=sum(wanted),
        max_replicas=max(most if bounds.most is None else min(most, bounds.most), 1),
        min_replicas=bounds.least,
        replicas=_replicas(situation, members, there, start_s),
        open_zones=[] if is_closed else [situation.job.spec.region or situation.job.cloud or "local"],
        changeover_s=start_s,
        interval_s=interval_s,
        spot_allowed=is_spot,
        # Processes on this machine have one market, whatever it is called.
        on_demand_allowed=not is_spot or (not situation.is_local and _can_pay(situation, rate, limits)),
        is_measured=measured is not None,
        last_growth=Growth(**last) if last else None,
    )
    return Paced(pace=pace, wanted=tuple(wanted), members=members, vacant=vacant)


def said(fleet: Sequence[ReplicaRecord]) -> dict[str, Said]:
    """What living replicas last reported."""
    return {
        each.replica_id: Said(at=each.last_seen, done=each.beat.requests_done, in_flight=_in_flight(each))
        for each in fleet
        if not each.state.has_ended and each.beat is not None and each.last_seen is not None
    }


def stays(replica: ReplicaRecord) -> bool:
    """Whether it lives and nobody has told it to go."""
    return not replica.state.has_ended and not replica.kill_requested and replica.orders == "go_on"


def by_market(situation: Situation, decision: PaceDecision) -> dict[Market, int]:
    """The group of each market's new replicas: the present configuration but for the market; past the last: a new one."""
    job, base = situation.job, situation.base
    found = {Market(base["market"]): first_group(job)}
    for market in {launch.market for launch in decision.launches} - found.keys():
        config = {**base, "market": market.value}
        same = (index for index in open_groups(job) if job.groups[index]["config"] == config)
        found[market] = next(same, len(job.groups))
    return found


def _bounds(log: Sequence[EventRecord]) -> Bounds:
    """What users' own changes leave to pacing; a swap that came to nothing is as if it had not been begun."""
    bounds = before = Bounds()
    for event in log:
        match event.kind:
            case EventKind.REPLICAS_ADDED.value:
                bounds = bounds.added(event.data["replicas_wanted"])
            case EventKind.REPLICAS_KILLED.value if event.data["killed"]:
                bounds = bounds.killed(event.data["replicas_wanted"])
            case EventKind.SWAP_BEGAN.value:
                before = bounds
                bounds = bounds.swapped(len(event.data["new"]), is_fixed=event.data["is_fixed"])
            case EventKind.SWAP_ENDED.value if event.data["state"] in {"failed", "cancelled"}:
                bounds = before
    return bounds


def _member(replica: ReplicaRecord, by_hand: set[str]) -> Member:
    return Member(
        replica_id=replica.replica_id,
        group=replica.group,
        market=Market(replica.config["market"]),
        is_pending=replica.state is ReplicaState.PENDING,
        began=replica.began_at is not None,
        is_by_hand=replica.replica_id in by_hand,
    )


def _is_spot_closed(situation: Situation) -> bool:
    """Whether spot was tried a short while ago and could not be had; on this machine that means nothing."""
    return not situation.is_local and any(
        each.config["market"] == Market.SPOT.value
        and each.state in {ReplicaState.FAILED, ReplicaState.PREEMPTED}
        and each.began_at is None
        and each.ended_at is not None
        and situation.now - each.ended_at < SPOT_CLOSED_S
        for each in situation.fleet
    )


def _replicas(
    situation: Situation, members: Sequence[Member], there: Sequence[Member], start_s: float
) -> list[PacedReplica]:
    launched = {each.replica_id: each.launched_at for each in situation.fleet}
    stand_ins = sum(each.began for each in members) - sum(each.began for each in there)
    replicas = []
    for each in sorted(there, key=lambda member: not member.began):
        warm = 0.0 if each.began else _warm_s(launched[each.replica_id], start_s, situation.now)
        if warm and stand_ins > 0:
            # Whom it replaces works until it does.
            stand_ins, warm = stand_ins - 1, 0.0
        replicas.append(PacedReplica(replica_id=each.replica_id, market=each.market, warm_s=warm))
    return replicas


def _warm_s(launched_at: float | None, start_s: float, now: float) -> float:
    if launched_at is None:
        return start_s
    return max(launched_at + start_s - now, OVERDUE_SHARE * start_s)


def _start_s(situation: Situation) -> float:
    """From launch to the first chunk: as it was with this job, else as it was planned."""
    seen = [
        each.began_at - each.launched_at
        for each in situation.fleet
        if each.began_at is not None and each.launched_at is not None
    ]
    if seen:
        return statistics.median(seen)
    return float(situation.planned.get("start_s") or (LOCAL_START_S if situation.is_local else CLOUD_START_S))


def _unmeasured(situation: Situation) -> float:
    """The plan's rate of one replica, no higher than what has been seen of them allows."""
    began = [each for each in situation.fleet if each.began_at is not None and not each.state.has_ended]
    return bounded(
        float(situation.planned.get("requests_per_s") or situation.job.requests),
        done=sum(each.beat.requests_done for each in began if each.beat is not None),
        in_flight=sum(_in_flight(each) for each in began),
        worked_s=[situation.now - each.began_at for each in began if each.began_at is not None],
    )


def _in_flight(replica: ReplicaRecord) -> int:
    beat = replica.beat
    return beat.engine.running if beat is not None and beat.engine is not None else 0


def _most(situation: Situation, members: Sequence[Member], limits: Limits) -> int:
    """Replicas that there may be: room, chunks to work on, cores, and what a wrong plan may cost."""
    launched = sum(not each.is_pending for each in members)
    most = min(launched + limits.room, situation.totals.total - situation.totals.done)
    if not situation.is_local:
        planned = int(situation.planned.get("replicas") or 1)
        return min(most, max(GROWTH_TIMES * planned, planned + GROWTH_MORE))
    # A simulated engine computes nothing; of the others, more than there are cores only take turns.
    return most if situation.job.engine == EngineName.SIMULATED else min(most, limits.cores)


def _can_pay(situation: Situation, rate: float, limits: Limits) -> bool:
    """Whether the budget lasts for the rest of the work on on-demand: ending over budget is worse than late."""
    left, price = situation.budget_left_usd, limits.on_demand_usd_per_hour
    return left is None or (price is not None and situation.remaining / rate / 3600 * price <= left)
