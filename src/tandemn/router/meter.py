"""What the router counts, and how that survives a restart.

Every figure is a running total per backend. The state file holds totals, never increments, and is replaced
atomically: whichever file a restart finds, it goes on from exactly what that file says, so nothing is ever
counted twice, and at most the last interval is missing after a kill. A lock keeps two routers off one file.
"""

from __future__ import annotations

import fcntl
import os
import threading
from bisect import bisect_left
from collections import deque
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tandemn.errors import Conflict
from tandemn.router.periods import PERIOD_GAP_S, PERIOD_S, Period, PeriodLog

if TYPE_CHECKING:
    from pathlib import Path

#: Upper bounds of the TTFT buckets, in seconds: from a warm small model to a cold start.
TTFT_BOUNDS_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
#: Upper bounds of the buckets of the gap between two events, in seconds.
ITL_BOUNDS_S: Final = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0)
#: Concurrency beyond this is counted as this: it bounds the number of series.
MAX_CONCURRENCY: Final = 512
#: TTFT samples kept for the routing decision, and for how many seconds they count.
RECENT_TTFT: Final = 64
RECENT_TTFT_S: Final = 10.0
#: Version of the state file.
STATE_VERSION: Final = 2

COUNTERS: Final = (
    "requests",
    "streams",
    "failures",
    "retries",
    "resumes",
    "resume_failures",
    "cancelled",
    "overflowed",
    "prompt_tokens",
    "completion_tokens",
    "estimated_completion_tokens",
)


class Histogram:
    __slots__ = ("bounds", "counts", "total_s")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total_s = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total_s += seconds


class BackendMeter:
    """Running totals of one backend."""

    __slots__ = (
        "_busy_s",
        "_changed_at",
        "_log",
        "_peak",
        "_requests_before",
        "_start",
        "_total_s",
        "counts",
        "inflight",
        "inflight_s",
        "itl",
        "name",
        "recent_ttft",
        "ttft",
    )

    def __init__(self, name: str, now: float, log: PeriodLog) -> None:
        self.name = name
        self.counts = dict.fromkeys(COUNTERS, 0)
        self.ttft = Histogram(TTFT_BOUNDS_S)
        self.itl = Histogram(ITL_BOUNDS_S)
        self.inflight = 0
        self.inflight_s: dict[int, float] = {}
        """Seconds spent at each number of requests in flight above none."""
        self.recent_ttft: deque[tuple[float, float]] = deque(maxlen=RECENT_TTFT)
        self._changed_at = now
        self._log = log
        # The busy period under way; `_peak` is 0 where there is none.
        self._start = now
        self._peak = 0
        self._busy_s = 0.0
        self._total_s = 0.0
        self._requests_before = 0

    def begin(self, now: float) -> None:
        """A try starts at this backend."""
        if self.inflight:
            self._account(now)
            if now - self._start >= PERIOD_S:
                self._cut(now)
        else:
            if self._peak and now - self._changed_at > PERIOD_GAP_S:
                self._close()
            self._changed_at = now
        self.inflight += 1
        if not self._peak:
            self._open(now)
        elif self.inflight > self._peak:
            self._peak = self.inflight
        self.counts["requests"] += 1

    def end(self, now: float) -> None:
        """A try is over, well or badly."""
        self._account(now)
        self.inflight -= 1

    def settle(self, now: float) -> None:
        """Account for the time since the last change, and end the period that is over or long enough."""
        if self.inflight:
            self._account(now)
            if now - self._start >= PERIOD_S:
                self._cut(now)
        elif self._peak and now - self._changed_at > PERIOD_GAP_S:
            self._close()

    def _account(self, now: float) -> None:
        """Only while requests are in flight: `_changed_at` stays at the end of the last one."""
        passed_s = now - self._changed_at
        level = min(self.inflight, MAX_CONCURRENCY)
        self.inflight_s[level] = self.inflight_s.get(level, 0.0) + passed_s
        self._busy_s += passed_s
        self._total_s += passed_s * self.inflight
        self._changed_at = now

    def _cut(self, now: float) -> None:
        self._close()
        self._open(now)

    def _open(self, now: float) -> None:
        self._start = now
        self._peak = self.inflight
        self._busy_s = self._total_s = 0.0
        self._requests_before = self.counts["requests"]

    def _close(self) -> None:
        period = self.under_way()
        assert period is not None, "closed only while there is one"
        self._log.add(period)
        self._peak = 0

    def under_way(self) -> Period | None:
        """The busy period as it stood when last settled; None where there is none."""
        if not self._peak:
            return None
        offset_s = self._log.unix_offset_s
        return Period(
            backend=self.name,
            start=round(self._start + offset_s, 3),
            end=round(self._changed_at + offset_s, 3),
            busy_s=round(self._busy_s, 3),
            inflight_s=round(self._total_s, 3),
            peak=self._peak,
            requests=self.counts["requests"] - self._requests_before,
        )

    def first_byte(self, seconds: float, now: float) -> None:
        """A stream's first event came after `seconds`."""
        self.ttft.add(seconds)
        self.recent_ttft.append((now, seconds))

    def median_ttft_s(self, now: float) -> float | None:
        """Median over the last seconds; None where nothing was measured."""
        recent = sorted(seconds for at, seconds in self.recent_ttft if now - at <= RECENT_TTFT_S)
        return recent[len(recent) // 2] if recent else None

    def as_state(self) -> dict[str, Any]:
        return {
            "counts": self.counts,
            "ttft": {"counts": self.ttft.counts, "total_s": self.ttft.total_s},
            "itl": {"counts": self.itl.counts, "total_s": self.itl.total_s},
            "inflight_s": {str(level): seconds for level, seconds in self.inflight_s.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from saved totals; unknown counters of another version are left out."""
        self.counts.update({name: int(n) for name, n in state["counts"].items() if name in self.counts})
        for histogram, saved in ((self.ttft, state["ttft"]), (self.itl, state["itl"])):
            if len(saved["counts"]) == len(histogram.counts):
                histogram.counts = [int(n) for n in saved["counts"]]
                histogram.total_s = float(saved["total_s"])
        self.inflight_s = {int(level): float(seconds) for level, seconds in state["inflight_s"].items()}


class Meter:
    """All totals: per backend, and of requests that met none."""

    def __init__(self, *, started_at: float = 0.0) -> None:
        self.series = token_hex(8)
        """Names this series of totals: one that begins again from zero has another name."""
        self.began_at = started_at
        """When the series began, Unix time."""
        self.started_at = started_at
        """The same of this process."""
        self.backends: dict[str, BackendMeter] = {}
        self.periods = PeriodLog()
        self.rejected: dict[str, int] = {}

    def of(self, name: str, now: float) -> BackendMeter:
        """The backend's totals, which outlive its place in the table."""
        found = self.backends.get(name)
        if found is None:
            found = self.backends[name] = BackendMeter(name, now, self.periods)
        return found

    def reject(self, reason: str) -> None:
        self.rejected[reason] = self.rejected.get(reason, 0) + 1

    def settle(self, now: float) -> None:
        """Bring all totals up to now."""
        for backend in self.backends.values():
            backend.settle(now)

    def under_way(self) -> list[Period]:
        """The busy periods that have not ended yet, as they stood when last settled."""
        found = [backend.under_way() for backend in self.backends.values()]
        return [period for period in found if period is not None]

    def encode(self, now: float) -> bytes:
        """The state file's content."""
        self.settle(now)
        backends = {name: backend.as_state() for name, backend in self.backends.items()}
        return msgspec.json.encode(
            {
                "version": STATE_VERSION,
                "series": self.series,
                "began_at": self.began_at,
                "backends": backends,
                "rejected": self.rejected,
                "periods": self.periods.as_state(self.under_way()),
            }
        )

    def restore(self, content: bytes, now: float) -> None:
        """Go on from a state file.

        Raises:
            Conflict: it is not one of this version; it is better to stop than to lose what it says.
        """
        try:
            state = msgspec.json.decode(content)
            state = {STATE_VERSION: state}[state["version"]]
            self.series, self.began_at = str(state["series"]), float(state["began_at"])
            for name, saved in state["backends"].items():
                self.of(name, now).restore(saved)
            self.rejected = {str(reason): int(n) for reason, n in state["rejected"].items()}
            self.periods.restore(state["periods"])
        except (msgspec.DecodeError, ValueError, KeyError, TypeError, AttributeError) as exc:
            raise Conflict(
                f"the router's state file cannot be read: {exc!r}",
                code="router_state_unreadable",
                next_step="move it away to start from zero",
            ) from exc


class StateFile:
    """Where totals survive; held by one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        self._order = threading.Lock()
        self._is_final = False

    def open(self) -> bytes | None:
        """Take the lock and return the content, None where there is none yet.

        Raises:
            Conflict: another router holds it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(lock)
            raise Conflict(f"another router uses {self.path}", code="router_state_in_use") from exc
        self._lock = lock
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None

    def save(self, content: bytes, *, is_final: bool = False) -> None:
        """Replace the file; what is saved after the final totals, by a thread that was late, is dropped."""
        with self._order:
            if not self._is_final:
                self._is_final = is_final
                write_atomically(self.path, content)

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path`, readable by its owner only, so that a crash leaves the old file or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
