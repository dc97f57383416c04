"""How fast a replica of a job really is, from what replicas say they have done.

Answers come in bursts where all of a batch are equally long, so time is measured between moments at which a count rose,
never from an arbitrary one, and over at least a batch: two bursts a minute apart are a burst a minute, whenever somebody
looks. Kept in memory: a control plane that restarts measures again.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: Rises of one replica's count that are kept: some minutes of a steady stream, some rounds of long answers.
RISES_KEPT = 24
#: Answers that make a measurement, with more where more are computed at a time: fewer say little.
ANSWERS_NEEDED = 10
#: A replica without a rise for so many times its longest wait between two has slowed down, or is stuck.
STALLED = 2.0
#: Replicas of one job that are measured at most; the mean over so many is the mean.
REPLICAS_MEASURED = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a replica said last: answers since it began, requests that it computes, and when it said so."""

    at: float
    done: int
    in_flight: int = 0


class RateMeter:
    """Remembers when the counts of one job's replicas rose."""

    def __init__(self) -> None:
        self._rises: dict[str, list[Said]] = {}

    def hear(self, said: Mapping[str, Said]) -> None:
        """Take in what the living replicas said last; those that are not named any more are forgotten."""
        kept = dict(sorted(said.items())[:REPLICAS_MEASURED])
        self._rises = {name: self._rises.get(name, []) for name in kept}
        for name, now in kept.items():
            rises = self._rises[name]
            if now.done > 0 and (not rises or now.done > rises[-1].done):
                rises.append(now)
                del rises[:-RISES_KEPT]

    def requests_per_s(self, now: float) -> float | None:
        """Requests per second of one replica, the mean over those that have shown it; None: too little is known."""
        told = [rises for rises in self._rises.values() if len(rises) > 1]
        spans = [_span(rises, now) for rises in told]
        answers, seconds = sum(done for done, _ in spans), sum(time for _, time in spans)
        needed = max(ANSWERS_NEEDED, sum(rises[-1].in_flight for rises in told))
        return answers / seconds if answers >= needed and seconds > 0 else None


def _span(rises: list[Said], now: float) -> tuple[int, float]:
    """Answers between the first rise and the last, and the time that they took."""
    first, last = rises[0], rises[-1]
    longest = max(b.at - a.at for a, b in itertools.pairwise(rises))
    is_stalled = now - last.at > STALLED * longest
    return last.done - first.done, (now if is_stalled else last.at) - first.at


def bounded(planned: float, *, done: int, in_flight: int, worked_s: Iterable[float]) -> float:
    """The planned rate as far as experience allows it, where there is too little for a measurement.

    Args:
        planned: requests per second of one replica.
        done: answers so far.
        in_flight: requests under way, which count as if they were all but answered.
        worked_s: seconds that each replica has worked.
    """
    seconds = sum(worked_s)
    return min(planned, (done + in_flight + ANSWERS_NEEDED) / seconds) if seconds > 0 else planned
