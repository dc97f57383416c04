"""The time in a fleet process: real, or so many times faster, so that a day can be lived through in minutes."""

from __future__ import annotations

import time


class FleetClock:
    """Counts `speed` seconds for each real one.

    Args:
        speed: 1: real time.
        began: where it begins, in seconds since the Unix epoch.
    """

    def __init__(self, speed: float, began: float) -> None:
        self.speed = speed
        self._began = began
        self._began_monotonic = time.monotonic()

    def now(self) -> float:
        """Seconds since the Unix epoch, as this clock has them."""
        return self._began + (time.monotonic() - self._began_monotonic) * self.speed

    def real(self, seconds: float) -> float:
        """How long so many of its seconds really take."""
        return seconds / self.speed
