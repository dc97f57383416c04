"""What would make an infeasible job feasible: the nearest deadline, quota or GPU."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tandemn.placement.candidates import MIN_CONTEXT, TP_SIZES
from tandemn.placement.catalog.gpus import gpus
from tandemn.placement.memory import check_fit
from tandemn.placement.solver import solve, unit_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tandemn.placement.candidates import Candidate
    from tandemn.placement.model_shape import ModelShape
    from tandemn.placement.solver import QuotaKey
    from tandemn.placement.workload import Workload

#: Deadlines are searched up to this many times the asked one, to 2%.
_FARTHEST, _PRECISION = 4096.0, 1.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """Any one of these would do; None: it does not help."""

    deadline_s: float | None = None
    quota: tuple[QuotaKey, int, int] | None = None
    """Region, family and market; vCPUs that are free; vCPUs that are needed."""
    layout: tuple[str, int] | None = None
    """GPU and how many of them the model fits on."""

    def sentence(self) -> str:
        """The remedies, for people; empty where there is none."""
        said = []
        if self.deadline_s is not None:
            said.append(f"a deadline of {self.deadline_s / 3600:.2f} h")
        if self.quota is not None:
            (region, family, market), free, needed = self.quota
            said.append(f"{needed} instead of {free} vCPUs of {market} {family} quota in {region}")
        if self.layout is not None:
            said.append(f"{self.layout[1]} x {self.layout[0]}")
        return f"feasible with {', or '.join(said)}" if said else ""


def find_remedy(
    shape: ModelShape,
    workload: Workload,
    deadline_s: float,
    candidates: Sequence[Candidate],
    quota: Mapping[QuotaKey, int],
    *,
    gpu: str | None = None,
    replicas: int | None = None,
) -> Remedy:
    """Look for the nearest change that makes the job feasible; `gpu` and `replicas` are what the user asked for."""
    if not candidates:
        return Remedy(layout=smallest_layout(shape, max(workload.context, MIN_CONTEXT), gpu))
    return Remedy(
        deadline_s=_nearest_deadline(candidates, workload, deadline_s, quota, replicas),
        quota=_nearest_quota(candidates, workload, deadline_s, quota, replicas),
    )


def smallest_layout(shape: ModelShape, context: int, gpu: str | None = None) -> tuple[str, int] | None:
    """Where the model fits with `context` tokens: fewest of `gpu` in one instance, else the least memory of any."""
    fitting = [
        (name != gpu, tp * kind.memory_gib, tp, name)
        for name, kind in gpus().items()
        for tp in TP_SIZES
        if check_fit(shape, kind, tp=tp, context=context).fits
    ]
    if not fitting:
        return None
    _, _, tp, name = min(fitting)
    return name, tp


def _nearest_deadline(
    candidates: Sequence[Candidate],
    workload: Workload,
    deadline_s: float,
    quota: Mapping[QuotaKey, int],
    replicas: int | None,
) -> float | None:
    def feasible(deadline: float) -> bool:
        if replicas is not None:
            return any(_does(each, workload, deadline, quota, replicas) for each in candidates)
        units = [unit_of(candidate, deadline) for candidate in candidates]
        return solve(units, workload.requests, quota) is not None

    high = deadline_s
    while not feasible(high):
        high *= 2
        if high > deadline_s * _FARTHEST:
            return None
    low = max(high / 2, deadline_s)
    while high / low > _PRECISION:
        middle = math.sqrt(high * low)
        low, high = (low, middle) if feasible(middle) else (middle, high)
    return high


def _does(
    candidate: Candidate, workload: Workload, deadline_s: float, quota: Mapping[QuotaKey, int], replicas: int
) -> bool:
    """Whether so many replicas of one kind are in time, and within quota."""
    units, allowed = candidate.units_of(replicas), candidate.allowed(quota)
    is_within = allowed is None or units <= allowed
    return is_within and units * unit_of(candidate, deadline_s).capacity >= workload.requests


def _nearest_quota(
    candidates: Sequence[Candidate],
    workload: Workload,
    deadline_s: float,
    quota: Mapping[QuotaKey, int],
    replicas: int | None,
) -> tuple[QuotaKey, int, int] | None:
    best: tuple[int, QuotaKey, int] | None = None
    for candidate in candidates:
        key = candidate.quota_key
        capacity = unit_of(candidate, deadline_s).capacity
        if key is None or key not in quota or capacity <= 0:
            continue
        units = math.ceil(workload.requests / capacity)
        if replicas is not None:
            if units > candidate.units_of(replicas):
                continue  # so many are too slow, quota or not
            units = candidate.units_of(replicas)
        needed = units * candidate.vcpus
        more = needed - quota[key]
        if best is None or (more, key) < best[:2]:
            best = (more, key, needed)
    return None if best is None else (best[1], quota[best[1]], best[2])
