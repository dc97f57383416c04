"""Who has the places of a launcher, where jobs want more of them than there are: pure.

A place is what one replica takes: a slot of this machine, a cluster. Places are shared max-min fairly between owners, and
an owner's between its jobs, both weighted by priority: the next free place goes where the fewest are held, in proportion.
Between equals, it goes to whom has waited longest, so that none waits for ever. Where none is free, a job
whose owner has more than a fair share is to give one up, if afterwards it still has no less than who gets it: then a move
is never undone by the next one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tandemn.protocol.jobs import Priority

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

#: How many places each gets, in proportion.
WEIGHTS: Mapping[Priority, int] = {Priority.LOW: 1, Priority.NORMAL: 2, Priority.HIGH: 4}
#: Of jobs of one owner that hold as much, the one that was submitted first comes first, and is taken to have been
#: submitted so many seconds earlier. A bounded head start: however many higher ones keep coming, none waits for ever.
HEAD_STARTS_S: Mapping[Priority, float] = {Priority.LOW: -3600.0, Priority.NORMAL: 0.0, Priority.HIGH: 3600.0}
#: Added to every owner's wait, in seconds: where nobody has waited yet, priority decides.
LEAST_WAIT_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a job has of a pool's places, and what it wants."""

    job_id: str
    owner: str
    priority: Priority = Priority.NORMAL
    held: int = 0
    """Places of replicas that stay."""
    wanted: int
    """Places that it could use now, with those that it has."""
    since: float
    """When it was submitted."""
    is_retrying: bool = False
    """Its last replicas failed: it takes what is free, but nobody drains theirs for it."""
    is_fixed: bool = False
    """Nothing may be taken from it: its replicas were told to stay."""

    @property
    def weight(self) -> int:
        return WEIGHTS[self.priority]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """What there is to share."""

    limit: int
    """Places in all."""
    free: int
    """Places that nobody has at this moment, not even a replica that is about to go."""
    served: Mapping[str, float] = field(default_factory=dict)
    """When an owner last got a place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one job is to have."""

    places: int
    may_start: int = 0
    """Places that it may take now."""
    gives_up: int = 0
    """Places that it has, and should give to others."""
    reason: str = ""
    """Why it gives some up."""
    ahead: tuple[str, ...] | None = None
    """Jobs that get their next place before it does; None: it has all that it wants."""


def share(claims: Sequence[Claim], pool: Pool, now: float) -> dict[str, Share]:
    """Decide on every claim, by job."""
    table = _Table(claims, pool, now)
    turns = table.deal(pool.limit - sum(claim.held for claim in claims))
    moves = table.even_out()
    turns += [taker.job_id for _, taker in moves]
    starts: dict[str, int] = {}
    for job_id in turns[: max(pool.free, 0)]:
        starts[job_id] = starts.get(job_id, 0) + 1
    reasons = {giver.job_id: _why(giver, taker) for giver, taker in moves}
    line = table.line(turns, starts)
    return {
        claim.job_id: Share(
            places=table.given[claim.job_id],
            may_start=starts.get(claim.job_id, 0),
            gives_up=max(claim.held - table.given[claim.job_id], 0),
            reason=reasons.get(claim.job_id, ""),
            ahead=tuple(line[: line.index(claim.job_id)]) if claim.job_id in line else None,
        )
        for claim in claims
    }


def most(claims: Sequence[Claim], job_id: str, pool: Pool, now: float) -> int:
    """Return how many places the job would have if it wanted all of them."""
    greedy = [
        replace(claim, wanted=max(pool.limit, claim.held)) if claim.job_id == job_id else claim
        for claim in claims
    ]
    return share(greedy, pool, now)[job_id].places


class _Table:
    """The places as they are being dealt."""

    def __init__(self, claims: Sequence[Claim], pool: Pool, now: float) -> None:
        self._claims = claims
        self._now = now
        self._served = dict(pool.served)
        self.given = {claim.job_id: claim.held for claim in claims}
        self._owned: dict[str, int] = {}
        self._weights: dict[str, int] = {}
        for claim in claims:
            self._owned[claim.owner] = self._owned.get(claim.owner, 0) + claim.held
            self._weights[claim.owner] = max(self._weights.get(claim.owner, 0), claim.weight)

    def deal(self, places: int) -> list[str]:
        """Give away free places, one by one; return whose turn it was."""
        turns = []
        for _ in range(places):
            taker = self._next(self._unmet())
            if taker is None:
                break
            self._give(taker, 1)
            turns.append(taker.job_id)
        return turns

    def even_out(self) -> list[tuple[Claim, Claim]]:
        """Move places while that makes it fairer; return from whom to whom."""
        moves = []
        while move := self._move():
            giver, taker = move
            self._give(giver, -1)
            self._give(taker, 1)
            moves.append(move)
        return moves

    def line(self, turns: Sequence[str], starts: Mapping[str, int]) -> list[str]:
        """Order the jobs that want another place and cannot have it now by when they will get it."""
        coming = [job_id for number, job_id in enumerate(turns) if number >= sum(starts.values())]
        line = list(dict.fromkeys(coming))
        left = [claim for claim in self._unmet() if claim.job_id not in line]
        while taker := self._next(left):
            self._count(taker, 1)
            left.remove(taker)
            line.append(taker.job_id)
        return line

    def _move(self) -> tuple[Claim, Claim] | None:
        unmet = [claim for claim in self._unmet() if not claim.is_retrying]
        owners = {claim.owner for claim in unmet}
        return self._move_between_owners(unmet, set(owners)) or self._move_within_owner(unmet, owners)

    def _move_between_owners(self, unmet: Sequence[Claim], owners: set[str]) -> tuple[Claim, Claim] | None:
        while taker := self._next([claim for claim in unmet if claim.owner in owners]):
            giver = self._loser(claim for claim in self._claims if claim.owner != taker.owner)
            if giver is not None and self._is_fairer(
                self._owned[giver.owner],
                self._weights[giver.owner],
                self._owned[taker.owner],
                self._weights[taker.owner],
            ):
                return giver, taker
            owners.remove(taker.owner)
        return None

    def _move_within_owner(self, unmet: Sequence[Claim], owners: set[str]) -> tuple[Claim, Claim] | None:
        for owner in sorted(owners):
            giver = self._loser(claim for claim in self._claims if claim.owner == owner)
            for taker in sorted((claim for claim in unmet if claim.owner == owner), key=self._jobs_rank):
                if giver is not None and self._is_fairer(
                    self.given[giver.job_id], giver.weight, self.given[taker.job_id], taker.weight
                ):
                    return giver, taker
        return None

    @staticmethod
    def _is_fairer(giver: int, giver_weight: int, taker: int, taker_weight: int) -> bool:
        """Whether the giver, with one place less, still has no less than the taker with one more."""
        return (giver - 1) * taker_weight >= (taker + 1) * giver_weight

    def _unmet(self) -> list[Claim]:
        return [claim for claim in self._claims if self.given[claim.job_id] < claim.wanted]

    def _next(self, unmet: Sequence[Claim]) -> Claim | None:
        """Whose turn it is: of the owner that has least, the job that has least."""
        if not unmet:
            return None
        oldest: dict[str, float] = {}
        for claim in unmet:
            oldest[claim.owner] = min(oldest.get(claim.owner, claim.since), claim.since)
        owner = min(oldest, key=lambda each: (*self._owners_rank(each, oldest[each]), each))
        return min((claim for claim in unmet if claim.owner == owner), key=self._jobs_rank)

    def _owners_rank(self, owner: str, since: float) -> tuple[float, float]:
        weight = self._weights[owner]
        waited_s = self._now - max(since, self._served.get(owner, since))
        return self._owned[owner] / weight, -weight * (waited_s + LEAST_WAIT_S)

    def _jobs_rank(self, claim: Claim) -> tuple[float, float, str]:
        submitted = claim.since - HEAD_STARTS_S[claim.priority]
        return self.given[claim.job_id] / claim.weight, submitted, claim.job_id

    def _loser(self, claims: Iterable[Claim]) -> Claim | None:
        """Who is to give a place up: of the owner that has most, the job that has most; of equals the youngest."""
        able = [claim for claim in claims if self.given[claim.job_id] and not claim.is_fixed]
        return max(
            able,
            key=lambda claim: (
                (self._owned[claim.owner] - 1) / self._weights[claim.owner],
                claim.owner,
                (self.given[claim.job_id] - 1) / claim.weight,
                claim.since,
                claim.job_id,
            ),
            default=None,
        )

    def _give(self, claim: Claim, count: int) -> None:
        self.given[claim.job_id] += count
        self._count(claim, count)

    def _count(self, claim: Claim, count: int) -> None:
        self._owned[claim.owner] += count
        if count > 0:
            self._served[claim.owner] = self._now


def _why(giver: Claim, taker: Claim) -> str:
    """Say whom a place goes to, naming no job that is another owner's."""
    if taker.owner != giver.owner:
        return "gives its place to a job of another owner, who has less than a fair share"
    return f"gives its place to {taker.job_id}, which has less than a fair share"
