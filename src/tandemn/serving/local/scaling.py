"""How many replicas a local deployment runs, and when one that failed is started again. Pure: `now` is passed in.

Spot follows the requests of the last minute, serverless the requests in flight. A decision carries its reason.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tandemn.protocol.deployments import SpotScaling

#: Traffic is the greater of two averages, in seconds: the short one sees a rise at once, the long one forgets
#: a pause slowly (60 s is the window of SkyServe's autoscaler).
SHORT_S, LONG_S = 5.0, 60.0
#: Wait before a replica that did not come up is started again, doubled by each further failure, in seconds.
BACKOFF_S = 1.0
LONGEST_BACKOFF_S = 60.0
#: Failed starts in a row after which the backend is said to have failed.
FAILED_STARTS = 3


class Traffic:
    """Counts requests by second over the last minute."""

    def __init__(self) -> None:
        self._counts: deque[tuple[int, int]] = deque()
        self.last_request = -math.inf

    def note(self, now: float) -> None:
        """A request came."""
        self.last_request = now
        second = math.floor(now)
        if self._counts and self._counts[-1][0] == second:
            self._counts[-1] = (second, self._counts[-1][1] + 1)
        else:
            self._counts.append((second, 1))
        while self._counts[0][0] <= second - LONG_S:
            self._counts.popleft()

    def still_busy(self, now: float) -> None:
        """A request is under way: whatever answers it is in use."""
        self.last_request = now

    def rate(self, now: float) -> float:
        """Requests per second."""
        return max(self._over(SHORT_S, now), self._over(LONG_S, now))

    def _over(self, window_s: float, now: float) -> float:
        # The second that runs is not over yet.
        first = math.floor(now) - window_s + 1
        return sum(count for second, count in self._counts if second >= first) / (now - first)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How many spot replicas there should be, why, and for how long traffic has asked for more or fewer."""

    target: int = 0
    reason: str = "nothing was asked yet"
    above_since: float | None = None
    below_since: float | None = None


def next_scale(policy: SpotScaling, scale: Scale, *, rate: float, last_request: float, now: float) -> Scale:
    """Say how many spot replicas there should be.

    Args:
        policy: its bounds and delays.
        scale: what was said before.
        rate: requests per second.
        last_request: when one was last under way; -inf: never.
        now: the time.
    """
    least, most = policy.min_replicas, policy.max_replicas
    kept = min(max(scale.target, least), most)
    if kept != scale.target:
        # The policy itself says so: no delay is waited for.
        return Scale(target=kept, reason=f"the policy wants {least} to {most}")
    silence = now - last_request
    if silence >= policy.downscale_delay:
        # The delay has passed already: it began with the last request.
        if scale.target == least:
            return Scale(target=least, reason=scale.reason)
        return Scale(target=least, reason=f"no request for {policy.downscale_delay} s")
    need = min(max(math.ceil(rate / policy.target_qps), 1, least), most)
    reason = f"{rate:.2f} requests/s, {policy.target_qps:g} a replica"
    if need > scale.target:
        since = now if scale.above_since is None else scale.above_since
        if now - since >= policy.upscale_delay:
            return Scale(target=need, reason=reason)
        return replace(scale, above_since=since, below_since=None)
    if need < scale.target:
        since = now if scale.below_since is None else scale.below_since
        if now - since >= policy.downscale_delay:
            return Scale(target=need, reason=reason)
        return replace(scale, above_since=None, below_since=since)
    return replace(scale, above_since=None, below_since=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A living replica as the decisions see it."""

    replica_id: str
    is_ready: bool
    is_current: bool
    """It runs what the plan says now."""
    inflight: int = 0
    idle_since: float = 0.0
    """When its last request ended, or when it became ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What to start and what to end; what ends finishes the requests that it has."""

    start: int = 0
    end: tuple[str, ...] = ()
    reason: str = ""


def spot_change(members: Sequence[Member], target: int) -> Change:
    """Bring a spot fleet to its target. Replicas of a former plan go when their successors are ready."""
    current = [member for member in members if member.is_current]
    former = [member for member in members if not member.is_current]
    ready = sum(member.is_ready for member in current)
    surplus = len(current) - target
    ending: list[Member] = []
    if surplus > 0:
        # Those that answer nobody yet first, then the least busy.
        ending += sorted(current, key=lambda m: (m.is_ready, m.inflight))[:surplus]
    kept_former = max(0, target - ready)
    ending += sorted(former, key=lambda m: (m.is_ready, m.inflight))[: max(0, len(former) - kept_former)]
    return Change(
        start=max(0, -surplus),
        end=tuple(member.replica_id for member in ending),
        reason=f"{target} wanted, {len(members)} there",
    )


def serverless_change(
    members: Sequence[Member],
    *,
    waiting: int,
    concurrency: int,
    least: int,
    most: int,
    scaledown_window: float,
    now: float,
) -> Change:
    """Start containers for the requests that wait, end those that have been idle for the window.

    Args:
        members: containers that live and take requests.
        waiting: requests that have no container yet.
        concurrency: requests at once that one container takes.
        least: containers to keep, whatever comes.
        most: containers at once.
        scaledown_window: seconds of idleness after which one ends.
        now: the time.
    """
    current = [member for member in members if member.is_current]
    former = [member for member in members if not member.is_current]
    busy = sum(member.inflight for member in current) + waiting
    wanted = min(max(math.ceil(busy / concurrency), least), most)
    # One that serves a former plan goes as soon as it has finished what it has: those that wait get a new one.
    ending = [member.replica_id for member in former]
    idle = sorted(
        (m for m in current if m.is_ready and not m.inflight and now - m.idle_since >= scaledown_window),
        key=lambda m: m.idle_since,
    )
    spare = len(current) - max(wanted, least)
    ending += [member.replica_id for member in idle[: max(0, spare)]]
    return Change(
        start=max(0, wanted - len(current)),
        end=tuple(ending),
        reason=f"{busy} requests, {concurrency} a container",
    )


def backoff_s(failures: int) -> float:
    """How long to wait after so many failed starts in a row, in seconds."""
    return 0.0 if failures < 1 else min(BACKOFF_S * 2 ** min(failures - 1, 10), LONGEST_BACKOFF_S)
