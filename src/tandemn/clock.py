"""Time as a value that is passed in: processes take `SystemClock`, simulations and tests `MockClock`."""

from __future__ import annotations

import time
from typing import Protocol

#: The clock that goes on while the machine sleeps, where there is one: a lease does not wait for a lid to open.
_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def steady() -> float:
    """Seconds that never run backwards, for how long something took; not a time of day."""
    return time.clock_gettime(_STEADY)


class Clock(Protocol):
    """Where the edges of the program read the time; decisions get `now` as an argument."""

    def now(self) -> float:
        """Seconds since the Unix epoch."""
        ...


class SystemClock:
    def now(self) -> float:
        return time.time()


class MockClock:
    """A clock that moves only when told to."""

    def __init__(self, start: float = 1_000_000.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> float:
        """Move forward by `seconds` (not negative) and return the new time."""
        assert seconds >= 0, "a clock does not run backwards"
        self._now += seconds
        return self._now
