"""When each backend was busy: a bounded log that a reader fetches from where it left off. Pure.

What a serverless container costs depends on when it was in use, not on how many requests shared it. So the log
holds periods, not requests: stretches of time in which a backend had requests in flight almost without a pause,
cut into pieces, each with its peak. From them a reader works out how many containers there were, and until when.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Seconds without a request that do not end a period: far below any provider's scaledown window.
PERIOD_GAP_S: Final = 1.0
#: Seconds after which a period is cut, so that its peak says when the peak was.
PERIOD_S: Final = 10.0
#: Periods kept, of about 150 bytes each: two backends that are never idle fill this in 22 hours.
MAX_PERIODS: Final = 16384
#: Periods in one answer.
MAX_PERIODS_AT_ONCE: Final = 2048
#: A restart passes over this many numbers: a router that was killed may have told some that were not saved yet.
NUMBERS_SKIPPED: Final = 1_000_000


class Period(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of time in which one backend was busy."""

    backend: str
    start: float
    """Unix time of its first request."""
    end: float
    """Unix time at which its last request ended, or at which it was cut: then the next one begins there."""
    busy_s: float
    """Seconds with any request in flight."""
    inflight_s: float
    """Seconds that its requests were in flight, summed over the requests."""
    peak: int
    """Most requests in flight at once."""
    requests: int
    """Begun in it."""


class NumberedPeriod(Period, frozen=True, kw_only=True):
    number: int


class PeriodLog:
    """The last periods of all backends, numbered in the order in which they ended."""

    def __init__(self) -> None:
        self.next_number = 1
        self.complete_from = 0
        """Every period with this number or a higher one is still here."""
        self.unix_offset_s = 0.0
        """What turns the clock that periods are measured by into Unix time."""
        self._periods: deque[NumberedPeriod] = deque()

    def add(self, period: Period) -> None:
        """Give the period the next number, and drop the oldest where there are too many."""
        self._periods.append(NumberedPeriod(**msgspec.structs.asdict(period), number=self.next_number))
        self.next_number += 1
        if len(self._periods) > MAX_PERIODS:
            self._periods.popleft()
            self.complete_from = self._periods[0].number

    def since(self, number: int) -> tuple[list[NumberedPeriod], int]:
        """The periods from `number` on, not more than one answer may hold, and the number to go on from."""
        found: list[NumberedPeriod] = []
        for period in reversed(self._periods):
            if period.number < number:
                break
            found.append(period)
        found.reverse()
        if len(found) > MAX_PERIODS_AT_ONCE:
            return found[:MAX_PERIODS_AT_ONCE], found[MAX_PERIODS_AT_ONCE].number
        return found, self.next_number

    def as_state(self, under_way: Iterable[Period]) -> dict[str, object]:
        """What the state file keeps; periods under way end there, as far as a restart knows."""
        return {
            "next_number": self.next_number,
            "complete_from": self.complete_from,
            "ended": list(self._periods),
            "under_way": list(under_way),
        }

    def restore(self, state: dict[str, object]) -> None:
        """Go on from `as_state`."""
        saved = msgspec.convert(state, _SavedLog)
        self._periods = deque(saved.ended)
        self.complete_from = saved.complete_from
        self.next_number = saved.next_number + NUMBERS_SKIPPED
        for period in saved.under_way:
            self.add(period)


class _SavedLog(msgspec.Struct, kw_only=True):
    next_number: int
    complete_from: int
    ended: list[NumberedPeriod]
    under_way: list[Period]
