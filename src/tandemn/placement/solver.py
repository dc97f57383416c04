"""How many of which: the least expected cost that meets the deadline under quota, as a MILP solved by HiGHS.

    minimise   sum_j  (usd_per_request_j * w_j  +  usd_to_start_j * n_j)
    subject to sum_j w_j = requests
               w_j <= n_j * slow_rate_j * (deadline - start_j)       work is done in time even when slow
               sum_{j in quota q} vcpus_j * n_j <= limit_q
               n_j whole, w_j >= 0

A unit is paid while it has work and released after: pacing does that, so cost is linear in the work given to each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import highspy
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tandemn.placement.candidates import Candidate

    QuotaKey = tuple[str, str, str]

#: Distance from the optimum at which the search stops, relative; and the longest search, after which the best found
#: is taken.
GAP, SEARCH_S = 1e-6, 3.0
#: Units of one candidate at most; no job needs more, and the solver likes bounds.
MAX_UNITS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What the solver sees of a candidate."""

    usd_per_request: float
    usd_to_start: float
    capacity: float
    """Requests that one unit surely answers before the deadline."""
    vcpus: int
    quota: QuotaKey | None
    limit: int = MAX_UNITS


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How many of one candidate, and how much of the work each kind gets."""

    index: int
    count: int
    requests: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    choices: tuple[Choice, ...]
    cost_usd: float


def unit_of(candidate: Candidate, deadline_s: float) -> Unit:
    """A candidate's figures under a deadline, seconds from now."""
    working_s = deadline_s - candidate.start_s
    return Unit(
        usd_per_request=candidate.usd_per_request,
        usd_to_start=candidate.usd_to_start,
        capacity=candidate.slow_requests_per_s * working_s if working_s >= candidate.slow_request_s else 0.0,
        vcpus=candidate.vcpus,
        quota=candidate.quota_key,
    )


def solve(units: Sequence[Unit], requests: float, quota: Mapping[QuotaKey, int]) -> Solution | None:
    """The cheapest counts, or None where no counts meet the deadline.

    Args:
        units: what can be rented.
        requests: how many have to be answered.
        quota: vCPUs that are free, by region, family and market; a key that is absent is not limited.
    """
    kept = _undominated(units, quota)
    if not kept:
        return None
    bounds = [_bound(units[i], requests, quota) for i in kept]
    counts = _highs([units[i] for i in kept], bounds, requests, quota)
    if counts is None:
        return None
    return allocate(units, dict(zip(kept, counts, strict=True)), requests)


def allocate(units: Sequence[Unit], counts: Mapping[int, int], requests: float) -> Solution | None:
    """Give the work to the counted units, cheapest work first; None where they cannot do it all in time."""
    left, cost, choices = requests, 0.0, []
    for index in sorted((i for i, n in counts.items() if n), key=lambda i: units[i].usd_per_request):
        unit, count = units[index], counts[index]
        share = min(left, count * unit.capacity)
        left -= share
        cost += count * unit.usd_to_start + share * unit.usd_per_request
        choices.append(Choice(index=index, count=count, requests=share))
    # HiGHS keeps rows to 1e-6; less than a request in a hundred thousand is far inside the margin.
    if left > requests * 1e-5:
        return None
    return Solution(choices=tuple(choices), cost_usd=cost)


def _bound(unit: Unit, requests: float, quota: Mapping[QuotaKey, int]) -> int:
    bound = min(unit.limit, math.ceil(requests / unit.capacity))
    if unit.quota is not None and unit.quota in quota and unit.vcpus:
        bound = min(bound, quota[unit.quota] // unit.vcpus)
    return bound


def _undominated(units: Sequence[Unit], quota: Mapping[QuotaKey, int]) -> list[int]:
    """Indices of units that no other unit replaces one for one at no more cost and no more quota."""
    by_quota: dict[QuotaKey | None, list[int]] = {}
    for index, unit in enumerate(units):
        if unit.capacity > 0 and unit.limit > 0:
            by_quota.setdefault(unit.quota if unit.quota in quota else None, []).append(index)
    kept: list[int] = []
    for key, members in by_quota.items():
        chosen: list[int] = []
        members.sort(key=lambda i: (units[i].usd_per_request, units[i].usd_to_start, -units[i].capacity))
        for index in members:
            if not any(_dominates(units[other], units[index], limited=key is not None) for other in chosen):
                chosen.append(index)
        kept += chosen
    return sorted(kept)


def _dominates(a: Unit, b: Unit, *, limited: bool) -> bool:
    return (
        a.usd_per_request <= b.usd_per_request
        and a.usd_to_start <= b.usd_to_start
        and a.capacity >= b.capacity
        and (not limited or a.vcpus <= b.vcpus)
        and a.limit == MAX_UNITS
    )


def _highs(
    units: Sequence[Unit], bounds: Sequence[int], requests: float, quota: Mapping[QuotaKey, int]
) -> list[int] | None:
    size = len(units)
    model = highspy.Highs()  # type: ignore[no-untyped-call] # its constructor has no annotations
    model.setOptionValue("output_flag", False)
    model.setOptionValue("mip_rel_gap", GAP)
    model.setOptionValue("time_limit", SEARCH_S)
    # Work is counted in shares of the job, so that coefficients stay near 1.
    for unit, bound in zip(units, bounds, strict=True):
        model.addVar(0.0, float(bound))
        model.changeColCost(model.getNumCol() - 1, unit.usd_to_start)
    for unit in units:
        model.addVar(0.0, 1.0)
        model.changeColCost(model.getNumCol() - 1, unit.usd_per_request * requests)
    whole = np.arange(size, dtype=np.int32)
    model.changeColsIntegrality(size, whole, np.full(size, highspy.HighsVarType.kInteger))
    model.addRow(1.0, 1.0, size, whole + size, np.ones(size))
    for j, unit in enumerate(units):
        columns, values = np.array([j, size + j], dtype=np.int32), np.array([-unit.capacity / requests, 1.0])
        model.addRow(-highspy.kHighsInf, 0.0, 2, columns, values)
    for key in sorted({unit.quota for unit in units if unit.quota in quota and unit.quota is not None}):
        members = np.array([j for j, unit in enumerate(units) if unit.quota == key], dtype=np.int32)
        vcpus = np.array([units[j].vcpus for j in members], dtype=np.float64)
        model.addRow(-highspy.kHighsInf, float(quota[key]), len(members), members, vcpus)
    model.run()
    solution = model.getSolution()
    if model.getInfo().primal_solution_status != highspy.kSolutionStatusFeasible:
        return None
    return [round(value) for value in list(solution.col_value)[:size]]
