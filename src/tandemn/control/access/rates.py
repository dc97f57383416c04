"""Token buckets (PURE): who calls too often waits; a burst is free."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

#: Buckets kept by one `Buckets`; beyond, the one that was used longest ago is forgotten, and is full again.
BUCKETS_KEPT = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """What may be taken from a bucket."""

    per_s: float
    burst: float
    """How many at once, after a rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    tokens: float
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    bucket: Bucket
    wait_s: float
    """0: a token was taken; else there is none before so many seconds have passed."""


def take(bucket: Bucket | None, rate: Rate, now: float) -> Taken:
    """Take one token, or say how long there is none; None is a bucket that nobody used yet."""
    if bucket is None:
        bucket = Bucket(tokens=rate.burst, at=now)
    # A clock that was set back gives nothing, and takes nothing away.
    passed = max(0.0, now - bucket.at)
    tokens = min(rate.burst, bucket.tokens + passed * rate.per_s)
    if tokens >= 1.0:
        return Taken(bucket=Bucket(tokens=tokens - 1.0, at=now), wait_s=0.0)
    return Taken(bucket=Bucket(tokens=tokens, at=now), wait_s=(1.0 - tokens) / rate.per_s)


class Buckets:
    """A bucket for each name, of one rate; memory is bounded."""

    def __init__(self, rate: Rate, *, kept: int = BUCKETS_KEPT) -> None:
        self._rate = rate
        self._kept = kept
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def take(self, name: str, now: float) -> float:
        """Take a token of `name`'s; return 0, or for how many seconds there is none."""
        taken = take(self._buckets.get(name), self._rate, now)
        self._buckets[name] = taken.bucket
        self._buckets.move_to_end(name)
        if len(self._buckets) > self._kept:
            self._buckets.popitem(last=False)
        return taken.wait_s

    def wait(self, name: str, now: float) -> float:
        """Say for how many seconds `name` has no token, and take none."""
        return take(self._buckets.get(name), self._rate, now).wait_s
