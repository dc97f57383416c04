"""What should be done about a job's fleet now: pure, from what is wanted and what is observed.

A job wants groups of replicas (one configuration each). The decision starts what is requested, ends what
is not wanted any more, notices what died, replaces it with backoff, and gives up after too many failures
in a row without progress. It never undoes a manual change: a kill lowers the number wanted.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from tandemn.fleet.reasons import NO_CAPACITY_CODES, Ending, reason_code
from tandemn.protocol.replicas import Goodbye, Market, ReasonCode, ReplicaState

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: A replica whose process cannot be seen, or is frozen, is ended after this long a silence. Its chunks
#: went to others long before, when their leases ran out.
SILENT_S = 90.0
#: First contact of a launched replica: a cloud may take this long to boot and install.
HELLO_S = 1800.0
#: How long a stopping replica has for storing what it finished before it is ended by force.
STOP_GRACE_S = 20.0
#: The same for one that was never heard of: it has nothing to store, and may be a machine that is still booting.
UNHEARD_GRACE_S = 2.0
#: How long a draining replica may work on the chunks that it holds.
DRAIN_GRACE_S = 1800.0
#: Failures in a row, without one answer in between, after which a group is given up.
FAILURES_LIMIT = 4
#: The same, where replicas were taken away before they got anywhere: the market's doing more than ours, but
#: a runner that dies as it starts looks like that, too.
LOSSES_LIMIT = 25
#: The wait before a replacement: doubled with each failure in a row, from the first to the last of these.
BACKOFF_S = (1.0, 60.0)
#: The longest wait where there was nothing to rent: a market that is empty stays so for minutes.
CAPACITY_BACKOFF_S = 300.0

#: Failures that every further replica would repeat: the first one ends the job.
FATAL_CODES = frozenset(
    {
        "model_not_found",
        "missing_dependency",
        "invalid_input",
        "store_full",
        "cloud_credentials",
        "cluster_owner",
        "cluster_mismatch",
        "skypilot_access",
        "skypilot_missing",
        "skypilot_refused",
        "skypilot_version",
    }
)


class Presence(StrEnum):
    """What the launcher sees of a replica's process or cluster."""

    THERE = "there"
    GONE = "gone"
    UNKNOWN = "unknown"
    ELSEWHERE = "elsewhere"
    """On a machine that this control plane cannot look at: only its own calls tell that it lives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchFailure:
    """Why a launch came to nothing, as its launcher saw it after the launch had been taken."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One replica that has not ended, or one that did and counts for failures."""

    replica_id: str
    group: int
    state: ReplicaState
    market: Market
    presence: Presence
    orders: str = "go_on"
    kill_requested: bool = False
    created_at: float
    not_before: float = 0.0
    launched_at: float | None = None
    said_hello: bool = False
    began: bool = False
    """Whether it has begun to compute a chunk."""
    stopping_at: float | None = None
    last_seen: float | None = None
    ended_at: float | None = None
    goodbye: Goodbye | None = None
    requests_done: int = 0
    code: str | None = None
    reason: str | None = None
    condemned: ReasonCode | None = None
    """Why it was ended by force, where that was no order's doing."""
    launch_failure: LaunchFailure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """A swap under way: `launching` until the threshold has begun, then `draining`."""

    state: str
    new_group: int
    threshold: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """How far a group has come on its plan's list of offers."""

    left: int = 0
    """Fallbacks that have not been tried."""
    since: float = 0.0
    """When the present one became the group's: failures of replicas asked for before say nothing about it."""
    tried: tuple[str, ...] = ()
    """What could not be had, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """All that the decision looks at."""

    wanted: tuple[int, ...]
    """Replicas wanted, by group."""
    replicas: tuple[Replica, ...]
    swap: Swap | None = None
    needs_replicas: bool = True
    """False once the job is sealed, cancelled or done: end everything."""
    persist: bool = False
    """Leave running replicas be when they are not needed any more."""
    walks: tuple[Walk | None, ...] = ()
    """By group; None, or a group beyond its end: it was not planned, so that there is no list to walk."""
    quota_returns: bool = False
    """Other jobs run where this one may: what they have of a quota that is used up will be free again."""
    may_start: int = 1_000_000
    """How many more replicas the launcher has room for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Launch a requested replica."""

    replica_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Tell a replica to drain or stop, by its next call and, for a stop, by a signal."""

    replica_id: str
    orders: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminate:
    """End its process or cluster by force; it is recorded as ended only when it is seen to be gone."""

    replica_id: str
    reason: str
    reason_code: ReasonCode | None = None
    """Kept until it is seen to be gone: the reason for which it then has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """Record that it has ended, and take back what it holds."""

    replica_id: str
    state: ReplicaState
    reason: str
    code: str | None = None
    reason_code: ReasonCode | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Ask for a replacement in a group, not to be launched before `not_before`."""

    group: int
    count: int
    not_before: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FallBack:
    """Go on with the group's next fallback: what it was to run on cannot be had."""

    group: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp:
    """The job cannot go on."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveSwap:
    """The swap's next state; `draining` also means: the other groups are wanted no more."""

    to: str
    reason: str


Action = Start | Order | Terminate | End | Request | FallBack | GiveUp | MoveSwap


def decide(fleet: Fleet, now: float) -> list[Action]:
    """Return what to do, most urgent first. Safe to apply in part, and to repeat."""
    swap_actions = list(_swap(fleet))
    if swap_actions:
        return swap_actions
    actions: list[Action] = []
    for replica in fleet.replicas:
        if not replica.state.has_ended:
            actions.extend(_one(fleet, replica, now))
    if fleet.needs_replicas:
        actions.extend(_groups(fleet, now))
    return _within_room(actions, fleet.may_start)


def _one(fleet: Fleet, replica: Replica, now: float) -> Iterator[Action]:
    unwanted = _unwanted(fleet, replica)
    if replica.state is ReplicaState.PENDING:
        if unwanted:
            yield _end(replica, unwanted[0], unwanted[2])
        elif replica.not_before <= now:
            yield Start(replica_id=replica.replica_id)
        return
    if replica.presence is Presence.GONE or _is_lost(replica, now):
        yield _ended(replica, unwanted, needs_replicas=fleet.needs_replicas)
        return
    if replica.goodbye is not None:
        # It said goodbye but its process or cluster is still there: that would go on billing.
        yield Terminate(replica_id=replica.replica_id, reason="it has ended; freeing what it ran on")
        return
    overdue, silent = _disobeys(replica, now), _silent(replica, now)
    if overdue:
        yield Terminate(replica_id=replica.replica_id, reason=overdue)
    elif silent:
        yield Terminate(
            replica_id=replica.replica_id, reason=silent, reason_code=ReasonCode.HEARTBEAT_TIMEOUT
        )
    elif unwanted and _stronger(unwanted[1], replica.orders):
        yield Order(replica_id=replica.replica_id, orders=unwanted[1], reason=unwanted[2])


def _is_lost(replica: Replica, now: float) -> bool:
    """Whether a replica that cannot be looked at has taken leave, or has not called for so long that it is given up.

    Should it live after all, its next call is refused, and it ends.
    """
    if replica.presence is not Presence.ELSEWHERE:
        return False
    called = replica.last_seen if replica.said_hello else replica.launched_at
    return replica.goodbye is not None or (called is not None and now - called > SILENT_S)


def _unwanted(fleet: Fleet, replica: Replica) -> tuple[ReplicaState, str, str] | None:
    """Why it should go: the state that it ends in, the order, the reason. None: it should stay."""
    if replica.kill_requested:
        return ReplicaState.KILLED, "stop", "killed by request"
    if not fleet.needs_replicas:
        if fleet.persist and replica.state is not ReplicaState.PENDING:
            return None
        return ReplicaState.COMPLETED, "stop", "the job needs no replica any more"
    swap = fleet.swap
    if swap and swap.state in {"draining", "done"} and replica.group < swap.new_group:
        return ReplicaState.SWAPPED_OUT, "drain", "swapped out"
    if swap and swap.state in {"failed", "cancelled"} and replica.group == swap.new_group:
        return ReplicaState.KILLED, "stop", f"the swap that brought it was {swap.state}"
    return None


def _stronger(orders: str, than: str) -> bool:
    ranks = ("go_on", "drain", "stop")
    return ranks.index(orders) > ranks.index(than)


def _disobeys(replica: Replica, now: float) -> str | None:
    if replica.stopping_at is not None:
        grace = DRAIN_GRACE_S
        if replica.orders == "stop" or not replica.said_hello:
            grace = STOP_GRACE_S if replica.said_hello else UNHEARD_GRACE_S
        if now - replica.stopping_at > grace:
            return f"it did not end within {grace:.0f} s of being told to {replica.orders}"
    return None


def _silent(replica: Replica, now: float) -> str | None:
    if not replica.said_hello:
        if replica.launched_at is not None and now - replica.launched_at > HELLO_S:
            return f"launched, but not heard of within {HELLO_S:.0f} s"
    elif replica.last_seen is not None and now - replica.last_seen > SILENT_S:
        return f"silent for {SILENT_S:.0f} s"
    return None


def _ended(replica: Replica, unwanted: tuple[ReplicaState, str, str] | None, *, needs_replicas: bool) -> End:
    """Name the state in which a replica that is gone has ended."""
    goodbye = replica.goodbye
    outcome = goodbye.outcome if goodbye is not None else None
    said = goodbye.reason if goodbye is not None else None
    if goodbye is not None and outcome == "failed":
        said = said or "it failed without saying why"
        return _end(replica, ReplicaState.FAILED, said, code=goodbye.code or "replica_failed")
    if unwanted is not None:
        return _end(replica, unwanted[0], unwanted[2])
    failure = replica.launch_failure
    if failure is not None:
        return _end(replica, ReplicaState.FAILED, failure.reason, code=failure.code)
    if outcome == "completed" and replica.orders == "go_on" and needs_replicas:
        left = "it ended in order while chunks were left"
        return _end(replica, ReplicaState.FAILED, left, code="replica_left")
    if replica.orders != "go_on" or outcome == "completed":
        return _end(replica, ReplicaState.COMPLETED, "finished as ordered")
    if outcome == "preempted":
        return _end(replica, ReplicaState.PREEMPTED, said or "taken away with notice")
    forced = f"{replica.reason}; ended by force" if replica.condemned is not None else None
    if replica.market is Market.SPOT:
        return _end(replica, ReplicaState.PREEMPTED, forced or "gone without notice")
    lost = forced or "its process or cluster is gone"
    return _end(replica, ReplicaState.FAILED, lost, code="replica_lost")


def _end(replica: Replica, state: ReplicaState, reason: str, code: str | None = None) -> End:
    ending = Ending(
        state=state,
        market=replica.market,
        was_ready=replica.began or replica.state in {ReplicaState.RUNNING, ReplicaState.DRAINING},
        code=code,
        text=reason,
        condemned=replica.condemned if replica.goodbye is None else None,
    )
    return End(
        replica_id=replica.replica_id,
        state=state,
        reason=reason,
        code=code,
        reason_code=reason_code(ending),
    )


def _groups(fleet: Fleet, now: float) -> Iterator[Action]:
    for group, wanted in enumerate(fleet.wanted):
        members = [replica for replica in fleet.replicas if replica.group == group]
        live = sum(1 for replica in members if _fills_a_place(replica))
        missing = wanted - live
        if missing <= 0:
            continue
        walk = fleet.walks[group] if group < len(fleet.walks) else None
        told = members if walk is None else [each for each in members if each.created_at >= walk.since]
        failures = failures_in_a_row(told)
        last = failures[-1] if failures else None
        if walk is not None and last is not None and last.code in NO_CAPACITY_CODES:
            if walk.left:
                yield FallBack(group=group, reason=last.reason or "none could be had")
                continue
            quota_returns = fleet.quota_returns and last.code == "quota_exceeded"
            if not quota_returns and not _has_worked(members) and not any(map(_was_had, fleet.replicas)):
                # Where others are still being launched, their verdict is awaited: asking again meanwhile would let
                # replicas that fail one after another keep each other's hope alive for ever.
                if all(replica.state.has_ended for replica in fleet.replicas):
                    yield _given_up(walk, last)
                continue
        if last is not None and _is_hopeless(failures) and (_is_fatal(last) or not _has_worked(members)):
            # The other groups may still do the work; the job is given up with its last hope.
            if live == 0 and not _others_alive(fleet, group):
                yield GiveUp(code=last.code or "replica_failed", reason=_why_given_up(last, len(failures)))
            continue
        wait = _wait_s(failures)
        since = last.ended_at if last is not None and last.ended_at is not None else now
        yield Request(
            group=group, count=missing, not_before=since + wait, reason="replaces one that was lost"
        )


def _wait_s(row: list[Replica]) -> float:
    if not row:
        return 0.0
    longest = CAPACITY_BACKOFF_S if _lacked_capacity(row[-1]) else BACKOFF_S[1]
    return float(min(BACKOFF_S[0] * 2 ** (len(row) - 1), longest))


def _fills_a_place(replica: Replica) -> bool:
    """Whether a replica counts as one of those wanted: it lives, and nobody has told it to go."""
    return not replica.state.has_ended and not replica.kill_requested and replica.orders == "go_on"


def _was_had(replica: Replica) -> bool:
    """Whether a living replica is more than asked for: its market had what it runs on."""
    is_asked_for = replica.state in {ReplicaState.PENDING, ReplicaState.LAUNCHING} and not replica.said_hello
    return not replica.state.has_ended and not is_asked_for


def _given_up(walk: Walk, last: Replica) -> GiveUp:
    """What to do where the market has nothing of all that a plan has."""
    tried = "; ".join((*walk.tried, last.reason or "none could be had"))
    return GiveUp(code=last.code or "no_capacity", reason=f"nothing that the plan has could be had: {tried}")


def failures_in_a_row(members: list[Replica]) -> list[Replica]:
    """The group's latest ended replicas that failed or vanished before giving one answer, oldest first.

    One that ended after giving answers breaks the row, unless it failed of what all others would fail of, too.
    """
    row: list[Replica] = []
    ended = [replica for replica in members if replica.state.has_ended]
    for replica in sorted(ended, key=lambda each: each.ended_at or 0.0, reverse=True):
        if replica.requests_done > 0 and not _is_fatal(replica):
            break
        if replica.state in {ReplicaState.FAILED, ReplicaState.PREEMPTED}:
            row.append(replica)
    return row[::-1]


def _is_hopeless(row: list[Replica]) -> bool:
    """Whether a row of failures says that the next replica would fail, too.

    A market that had nothing to rent says nothing of the next hour: such a job waits, or is paced to another market.
    """
    row = [replica for replica in row if not _lacked_capacity(replica)]
    failed = sum(replica.state is ReplicaState.FAILED for replica in row)
    return bool(row) and (_is_fatal(row[-1]) or failed >= FAILURES_LIMIT or len(row) >= LOSSES_LIMIT)


def _lacked_capacity(replica: Replica) -> bool:
    return replica.state is ReplicaState.FAILED and replica.code in NO_CAPACITY_CODES


def _is_fatal(replica: Replica) -> bool:
    return replica.state is ReplicaState.FAILED and replica.code in FATAL_CODES


def _has_worked(members: list[Replica]) -> bool:
    return any(replica.requests_done for replica in members)


def _others_alive(fleet: Fleet, group: int) -> bool:
    return any(replica.group != group and not replica.state.has_ended for replica in fleet.replicas)


def _why_given_up(last: Replica, count: int) -> str:
    times = f"{count} replicas in a row failed" if count > 1 else "a replica failed"
    if _is_fatal(last):
        return f"{times} in a way that every other one would, too: {last.reason}"
    return f"{times} before giving an answer; the last one: {last.reason}"


def _swap(fleet: Fleet) -> Iterator[Action]:
    swap = fleet.swap
    if swap is None or not fleet.needs_replicas:
        return
    if swap.state == "launching":
        members = [replica for replica in fleet.replicas if replica.group == swap.new_group]
        begun = sum(1 for replica in members if replica.began and not replica.state.has_ended)
        failures = failures_in_a_row(members)
        # New replicas may be killed by hand meanwhile: the threshold is never more than what is left of them.
        wanted = fleet.wanted[swap.new_group]
        if wanted == 0:
            yield MoveSwap(to="cancelled", reason="its new replicas were killed; the old replicas go on")
        elif begun >= min(swap.threshold, wanted):
            yield MoveSwap(to="draining", reason=f"{begun} new replicas have begun processing")
        elif _is_hopeless(failures):
            reason = f"{_why_given_up(failures[-1], len(failures))}; the old replicas go on"
            yield MoveSwap(to="failed", reason=reason)
    elif swap.state == "draining":
        old = [each for each in fleet.replicas if each.group < swap.new_group]
        if all(replica.state.has_ended for replica in old):
            yield MoveSwap(to="done", reason="every old replica has ended")


def wanted_after(wanted: Sequence[int], *, new_group: int, to: str) -> list[int]:
    """Return the replicas wanted by group once a swap has moved to the state `to`."""
    if to == "draining":
        return [0 if group < new_group else count for group, count in enumerate(wanted)]
    if to in {"failed", "cancelled"}:
        return [0 if group == new_group else count for group, count in enumerate(wanted)]
    return list(wanted)


def _within_room(actions: list[Action], room: int) -> list[Action]:
    kept: list[Action] = []
    for action in actions:
        if isinstance(action, Start):
            if room <= 0:
                continue
            room -= 1
        kept.append(action)
    return kept
