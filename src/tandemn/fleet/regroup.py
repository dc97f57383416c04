"""What a decision on a job's pace means for its groups of replicas. Pure.

A group's number wanted is what the fleet's own decision keeps up, so pacing only moves those numbers, asks for replicas,
and tells surplus ones to drain: at once where they were released, and only when their successors compute where they were
replaced. What users change by hand stands: it bounds what pacing may want.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tandemn.errors import Broken

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tandemn.batch.pacing import PaceDecision
    from tandemn.protocol.replicas import Market


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How many replicas pacing may want; `most` None: users have set no limit."""

    least: int = 1
    most: int | None = None

    def added(self, wanted: int) -> Bounds:
        """A user added replicas; `wanted` is the number from then on."""
        return Bounds(least=wanted, most=None if self.most is None else max(self.most, wanted))

    def killed(self, wanted: int) -> Bounds:
        """A user killed some."""
        return Bounds(least=min(self.least, wanted), most=wanted)

    def swapped(self, wanted: int, *, is_fixed: bool) -> Bounds:
        """A user swapped all for `wanted` others; `is_fixed`: and said how many."""
        return Bounds(least=wanted, most=wanted if is_fixed else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A living replica that has not been told to go."""

    replica_id: str
    group: int
    market: Market
    is_pending: bool
    began: bool
    """Whether it has begun to compute."""
    is_by_hand: bool = False
    """Whether a user added it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Regrouping:
    """What is to change; empty: nothing."""

    wanted: tuple[int, ...]
    """By group; one longer than before where a group for the other market is needed."""
    requests: Mapping[int, int]
    """Group -> replicas to ask for."""
    drains: tuple[str, ...]
    drops: tuple[str, ...]
    """Replicas that were asked for and are not launched yet."""


def counted(wanted: Sequence[int], members: Iterable[Member]) -> list[Member]:
    """The members that fill the groups' places, the best first; others are on their way out."""
    kept: list[Member] = []
    for group, mine in _by_group(members).items():
        kept += mine[: wanted[group] if group < len(wanted) else 0]
    return kept


def settled(wanted: Sequence[int], members: Sequence[Member], vacant: Sequence[Member]) -> list[int]:
    """Numbers wanted with places given back to those who still compute where their successors cannot be had."""
    there = {member.replica_id for member in counted(wanted, members)}
    still = [member for member in members if member.began and member.replica_id not in there]
    given = list(wanted)
    for old, new in zip(still, vacant, strict=False):
        given[new.group] -= 1
        given[old.group] += 1
    return given


def regroup(
    wanted: Sequence[int],
    members: Sequence[Member],
    decision: PaceDecision,
    *,
    by_market: Mapping[Market, int],
    vacant: Sequence[Member] = (),
) -> Regrouping:
    """Turn a decision into numbers wanted, requests and drains.

    Args:
        wanted: replicas wanted, by group.
        members: living replicas that have not been told to go.
        decision: what the pace asks for.
        by_market: the group that each market's new replicas belong to; one past the last is a new one.
        vacant: members that wait for a market that is closed: the decision took them for missing.
    """
    target = [*wanted, *[0] * (max(by_market.values()) + 1 - len(wanted))]
    group_of = {member.replica_id: member.group for member in members}
    for replica_id in decision.releases:
        target[group_of[replica_id]] -= 1
    places = _vacancies(wanted, members, vacant)
    for launch in decision.launches:
        new = by_market[launch.market]
        if launch.instead_of is not None:
            target[group_of[launch.instead_of]] -= 1
            target[new] += 1
        elif places[new]:
            places[new] -= 1  # the group's own replacement is on its way
        else:
            other = next((group for group, free in places.items() if free), None)
            if other is not None:
                places[other] -= 1
                target[other] -= 1
            target[new] += 1
    if min(target) < 0:
        raise Broken(f"a pace decision left a group with {min(target)} replicas", code="internal_error")
    if len(target) > len(wanted) and target[-1] == 0:
        target.pop()
    return _changes(target, list(wanted), members)


def _vacancies(wanted: Sequence[int], members: Sequence[Member], vacant: Sequence[Member]) -> dict[int, int]:
    """Places by group that the decision saw nobody in."""
    waiting = {member.replica_id for member in vacant}
    there = [member for member in counted(wanted, members) if member.replica_id not in waiting]
    free: dict[int, int] = defaultdict(int)
    for group, count in enumerate(wanted):
        free[group] = max(count - sum(member.group == group for member in there), 0)
    return free


def _changes(target: list[int], before: list[int], members: Sequence[Member]) -> Regrouping:
    groups = _by_group(members)
    requests, drains, drops = {}, [], []
    began = sum(member.began for member in members)
    for group, count in enumerate(target):
        mine = groups.get(group, [])
        more = count - max(before[group] if group < len(before) else 0, len(mine))
        if more > 0:
            requests[group] = more
        for member in reversed(mine[count:]):
            if member.is_pending:
                drops.append(member.replica_id)
            elif began - member.began >= sum(target):
                # Enough of the others compute: nothing is lost by its going.
                drains.append(member.replica_id)
                began -= member.began
    return Regrouping(wanted=tuple(target), requests=requests, drains=tuple(drains), drops=tuple(drops))


def _by_group(members: Iterable[Member]) -> dict[int, list[Member]]:
    """Members by group, those to be kept longest first: what users added, what computes, the oldest."""
    groups: dict[int, list[Member]] = {}
    for member in members:
        groups.setdefault(member.group, []).append(member)
    for mine in groups.values():
        mine.sort(key=lambda member: (not member.is_by_hand, not member.began, member.is_pending))
    return groups
