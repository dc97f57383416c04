"""Which samples of a replica are kept, and what a series tells (PURE).

A series has so many points at most, however long it grows: when it is full every second point goes, and the step
doubles. A short job keeps every heartbeat, a job of days one in some minutes; rates are means over the whole step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from tandemn.protocol.metrics import SeriesPoint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tandemn.protocol.replicas import Heartbeat, MachineReading

#: Points of one replica at most, some 100 KB; half as many at least once it was full.
POINTS = 360
#: Points of one job that are told at a time at most: some 5 MB of JSON.
POINTS_TOLD = 20_000
#: Days that series are kept after their job's end; as long as other things of it, where those go sooner.
KEPT_DAYS = 30.0
#: Heartbeats come a little early at times: a sample is due a tenth of the step before its time.
_EARLY = 0.1

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What there is of a replica's series."""

    count: int
    last_at: float
    step_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Keep the sample, and remember the step by it."""

    step_s: float
    thins: bool
    """Whether every second point goes before."""


def keeps(standing: Standing | None, *, at: float, beat_s: float, is_last: bool) -> Keep | None:
    """Decide whether a sample is kept; None: the series is dense enough.

    Args:
        standing: what there is; None: nothing.
        at: when the sample was taken.
        beat_s: how often replicas report: the finest step.
        is_last: no other sample will follow, so that it is kept before its time.
    """
    if standing is None:
        return Keep(step_s=beat_s, thins=False)
    early = at - standing.last_at < standing.step_s * (1 - _EARLY)
    if at <= standing.last_at or (early and not is_last):
        return None
    is_full = standing.count >= POINTS
    return Keep(step_s=standing.step_s * 2 if is_full else standing.step_s, thins=is_full)


def thinned(points: Sequence[T], most: int) -> Sequence[T]:
    """Return `most` of the points at most, evenly chosen, the first and the last among them."""
    if len(points) <= most:
        return points
    if most < 2:
        return points[-most:] if most else []
    return [points[round(index * (len(points) - 1) / (most - 1))] for index in range(most)]


def figures(beat: Heartbeat) -> dict[str, float | int]:
    """What of a heartbeat is kept; what it does not tell is absent."""
    told: dict[str, Any] = {"requests_done": beat.requests_done, "output_tokens": beat.output_tokens}
    if beat.engine is not None:
        named = ("running", "waiting", "kv_cache_use", "ttft_s", "tpot_s")
        told |= {name: getattr(beat.engine, name) for name in named}
    if beat.machine is not None:
        told |= {
            "cpu_use": beat.machine.cpu_use,
            "memory_used_bytes": beat.machine.memory_used_bytes,
            "gpu_use": gpu_use(beat.machine),
            "gpu_memory_used_bytes": gpu_memory_used(beat.machine),
        }
    return {name: _short(value) for name, value in told.items() if value is not None}


def gpu_use(machine: MachineReading) -> float | None:
    """Mean over the machine's GPUs that tell; None: none does."""
    told = [gpu.use for gpu in machine.gpus if gpu.use is not None]
    return sum(told) / len(told) if told else None


def gpu_memory_used(machine: MachineReading) -> int | None:
    """Sum over the machine's GPUs that tell; None: none does."""
    told = [gpu.memory_used_bytes for gpu in machine.gpus if gpu.memory_used_bytes is not None]
    return sum(told) if told else None


def points_of(samples: Sequence[tuple[float, Mapping[str, Any]]]) -> list[SeriesPoint]:
    """Make points of a replica's samples, oldest first: with the rates that their counts mean."""
    points: list[SeriesPoint] = []
    for at, told in samples:
        point = SeriesPoint(at=at, **told)
        if points and at > points[-1].at:
            before, passed_s = points[-1], at - points[-1].at
            # A runner that began anew counts from 0 again.
            if point.requests_done >= before.requests_done and point.output_tokens >= before.output_tokens:
                point.requests_per_s = (point.requests_done - before.requests_done) / passed_s
                point.tokens_per_s = (point.output_tokens - before.output_tokens) / passed_s
        points.append(point)
    return points


def _short(value: float) -> float | int:
    return value if isinstance(value, int) else float(f"{value:.4g}")
