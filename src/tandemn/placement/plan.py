"""The plan of a job: the cheapest configuration that meets its deadline, the fallbacks behind it, and why each lost."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from tandemn.errors import Infeasible, InvalidInput
from tandemn.placement.candidates import Candidate, Rejected, Wish, enumerate_candidates
from tandemn.placement.catalog.gpus import gpu_named
from tandemn.placement.remedy import Remedy, find_remedy
from tandemn.placement.solver import Solution, solve, unit_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tandemn.placement.candidates import SpotRisk
    from tandemn.placement.catalog.offers import Offer
    from tandemn.placement.model_shape import ModelShape
    from tandemn.placement.solver import QuotaKey
    from tandemn.placement.throughput import Predictor
    from tandemn.placement.workload import Workload

#: Standard deviations of the predicted rate that a plan keeps in hand: met in nine cases of ten.
MARGIN = 1.28
#: Fallbacks that are kept; launch failures walk them in order.
MAX_FALLBACKS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Some units of one candidate."""

    candidate: Candidate
    units: int
    requests: float

    @property
    def replicas(self) -> int:
        return self.units * self.candidate.replicas

    @property
    def usd_per_hour(self) -> Decimal:
        return self.units * self.candidate.usd_per_hour

    def finish_s(self, *, slow: bool = False) -> float:
        """Seconds until its share is done, start-up included."""
        c = self.candidate
        rate = c.slow_requests_per_s if slow else c.requests_per_s
        return c.start_s + max(self.requests / (self.units * rate), c.slow_request_s if slow else c.request_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way to do the job."""

    parts: tuple[Part, ...]
    expected_usd: Decimal
    expected_finish_s: float
    slow_finish_s: float
    """At the margin that the plan keeps."""
    deadline_s: float
    reason: str

    @property
    def meets_deadline(self) -> bool:
        return self.slow_finish_s <= self.deadline_s * (1 + 1e-6)

    @property
    def margin_s(self) -> float:
        """Between the expected finish and the deadline."""
        return self.deadline_s - self.expected_finish_s

    @property
    def usd_per_hour(self) -> Decimal:
        return sum((part.usd_per_hour for part in self.parts), Decimal(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The option to launch first, those to try when it cannot be had, and what lost for good."""

    best: Option
    fallbacks: tuple[Option, ...]
    losers: tuple[Rejected, ...]
    workload: Workload
    predictor: str
    warnings: tuple[str, ...] = ()


def plan_job(
    shape: ModelShape,
    workload: Workload,
    *,
    deadline_s: float,
    offers: Sequence[Offer],
    quota: Mapping[QuotaKey, int],
    predictor: Predictor,
    wish: Wish | None = None,
    budget_usd: Decimal | None = None,
    risk: SpotRisk | None = None,
) -> Plan:
    """Plan a job.

    Args:
        shape: the model.
        workload: what there is to do.
        deadline_s: seconds from now.
        offers: what can be rented.
        quota: free vCPUs by region, family and market; an absent key is not limited.
        predictor: how fast layouts are.
        wish: what the user fixed.
        budget_usd: the most that it may be expected to cost.
        risk: what is assumed of spot instances.

    Raises:
        Infeasible: nothing meets the deadline or budget; the next step says what would.
        InvalidInput: a wish is impossible.
    """
    wish = _checked(wish or Wish())
    if not (math.isfinite(deadline_s) and deadline_s > 0):
        raise InvalidInput(
            f"a deadline of {deadline_s:g} s is not in the future", code="bad_deadline", param="slo"
        )
    candidates, rejected = enumerate_candidates(
        shape, workload, offers, predictor, wish=wish, margin=MARGIN, risk=risk
    )
    if wish.replicas is not None:
        options = _fixed_options(candidates, workload, deadline_s, quota, wish.replicas)
    else:
        options = _options(candidates, workload, deadline_s, quota)
    singles = sorted(options, key=_rank)
    feasible = [option for option in singles if option.meets_deadline]
    warnings: tuple[str, ...] = ()
    best = _best(candidates, workload, deadline_s, quota, feasible, mix=wish.replicas is None)
    if best is None and wish.force and singles:
        best = singles[0]
        warnings = (
            f"the deadline is expected to be missed by {max(-best.margin_s, 0) / 3600:.1f} h (--force)",
        )
    if best is None or (budget_usd is not None and best.expected_usd > budget_usd and not wish.force):
        if best is not None:
            raise _over_budget(best, budget_usd)
        raise _infeasible(
            shape, workload, deadline_s, candidates=candidates, rejected=rejected, quota=quota, wish=wish
        )
    others = [option for option in singles if option.parts != best.parts]
    fallbacks = [replace(o, reason=_why_behind(o, best)) for o in others if o.meets_deadline][:MAX_FALLBACKS]
    losers = [_late(option) for option in others if not option.meets_deadline]
    return Plan(
        best=best,
        fallbacks=tuple(fallbacks),
        losers=(*losers, *rejected),
        workload=workload,
        predictor=predictor.name,
        warnings=warnings,
    )


def _checked(wish: Wish) -> Wish:
    for name, value in (("tp", wish.tp), ("pp", wish.pp), ("replicas", wish.replicas)):
        if value is not None and value < 1:
            raise InvalidInput(f"--{name} {value} is not a positive number", param=name)
    if wish.gpu is None or wish.gpu == "auto":
        return replace(wish, gpu=None)
    return replace(wish, gpu=gpu_named(wish.gpu).name)


def _options(
    candidates: Sequence[Candidate], workload: Workload, deadline_s: float, quota: Mapping[QuotaKey, int]
) -> list[Option]:
    """The best single configuration of each GPU, market and place."""
    best: dict[tuple[str, str, str], Option] = {}
    for candidate in candidates:
        option = _single(candidate, workload, deadline_s, candidate.allowed(quota))
        if option is None:
            continue
        key = (candidate.offer.gpu, candidate.offer.market.value, candidate.offer.place)
        if key not in best or _rank(option) < _rank(best[key]):
            best[key] = option
    return list(best.values())


def _rank(option: Option) -> tuple[bool, Decimal, float]:
    return (not option.meets_deadline, option.expected_usd, option.expected_finish_s)


def _single(
    candidate: Candidate, workload: Workload, deadline_s: float, allowed: int | None
) -> Option | None:
    capacity = unit_of(candidate, deadline_s).capacity
    wanted = math.ceil(workload.requests / capacity - 1e-9) if capacity > 0 else 1
    units = max(wanted if allowed is None else min(wanted, allowed), 1)
    if allowed == 0:
        return None
    return _option([Part(candidate=candidate, units=units, requests=workload.requests)], deadline_s)


def _fixed_options(
    candidates: Sequence[Candidate],
    workload: Workload,
    deadline_s: float,
    quota: Mapping[QuotaKey, int],
    replicas: int,
) -> list[Option]:
    options = []
    for candidate in candidates:
        units, allowed = candidate.units_of(replicas), candidate.allowed(quota)
        if allowed is None or units <= allowed:
            part = Part(candidate=candidate, units=units, requests=workload.requests)
            options.append(_option([part], deadline_s))
    return options


def _option(parts: list[Part], deadline_s: float, reason: str = "") -> Option:
    cost = sum(
        part.units * part.candidate.usd_to_start + part.requests * part.candidate.usd_per_request
        for part in parts
    )
    return Option(
        parts=tuple(parts),
        expected_usd=Decimal(f"{cost:.4f}"),
        expected_finish_s=max(part.finish_s() for part in parts),
        slow_finish_s=max(part.finish_s(slow=True) for part in parts),
        deadline_s=deadline_s,
        reason=reason,
    )


def _best(
    candidates: Sequence[Candidate],
    workload: Workload,
    deadline_s: float,
    quota: Mapping[QuotaKey, int],
    feasible: Sequence[Option],
    *,
    mix: bool,
) -> Option | None:
    first = feasible[0] if feasible else None
    if mix:
        units = [unit_of(candidate, deadline_s) for candidate in candidates]
        solution = solve(units, workload.requests, quota)
        if solution is not None:
            mixed = _from_solution(candidates, solution, deadline_s)
            # A mix for the sake of a few cents is not worth two kinds of replica.
            if first is None or mixed.expected_usd < first.expected_usd * Decimal("0.99"):
                return mixed
    return None if first is None else replace(first, reason="least expected cost that meets the deadline")


def _from_solution(candidates: Sequence[Candidate], solution: Solution, deadline_s: float) -> Option:
    parts = [
        Part(candidate=candidates[choice.index], units=choice.count, requests=choice.requests)
        for choice in solution.choices
        if choice.requests > 0
    ]
    said = "least expected cost that meets the deadline"
    return _option(parts, deadline_s, said if len(parts) == 1 else f"{said}: a mix, within quota")


def _why_behind(option: Option, best: Option) -> str:
    dearer = float(option.expected_usd / best.expected_usd - 1) if best.expected_usd else 0.0
    candidate, chosen = option.parts[0].candidate.offer, best.parts[0].candidate.offer
    kind = "another market" if candidate.market != chosen.market else "another place"
    if candidate.gpu != chosen.gpu:
        kind = f"{candidate.gpu} instead of {chosen.gpu}"
    return f"{kind}, {dearer:+.0%} cost"


def _late(option: Option) -> Rejected:
    part = option.parts[0]
    offer = part.candidate.offer
    late = (option.slow_finish_s - option.deadline_s) / 3600
    reason = f"{part.units} x {offer.instance_type}, all that quota allows, may finish {late:.1f} h late"
    if part.candidate.start_s >= option.deadline_s:
        reason = f"it takes {part.candidate.start_s / 60:.0f} minutes to start"
    elif part.candidate.start_s + part.candidate.slow_request_s > option.deadline_s:
        reason = f"one request may take {part.candidate.slow_request_s / 60:.0f} minutes after the start"
    return Rejected(what=f"{part.candidate.label} {offer.market} {offer.place}", reason=reason, gpu=offer.gpu)


def _over_budget(best: Option, budget_usd: Decimal | None) -> Infeasible:
    return Infeasible(
        f"the cheapest plan is expected to cost {best.expected_usd:.2f} USD, the budget is {budget_usd} USD",
        code="over_budget",
        next_step=f"raise the budget to {best.expected_usd:.2f} USD, or give a later deadline",
        param="budget",
    )


def _infeasible(
    shape: ModelShape,
    workload: Workload,
    deadline_s: float,
    *,
    candidates: Sequence[Candidate],
    rejected: Sequence[Rejected],
    quota: Mapping[QuotaKey, int],
    wish: Wish,
) -> Infeasible:
    remedy: Remedy = find_remedy(
        shape, workload, deadline_s, candidates, quota, gpu=wish.gpu, replicas=wish.replicas
    )
    if not candidates:
        reason = rejected[0].reason if rejected else "nothing of that kind is offered"
        asked = f" on {wish.gpu}" if wish.gpu else ""
        message = f"{shape.name} cannot be run{asked}: {reason}"
    else:
        message = f"no plan meets the deadline of {deadline_s / 3600:.2g} h"
    return Infeasible(message, next_step=remedy.sentence() or None, param="slo")


def options_as_rows(plan: Plan) -> list[dict[str, Any]]:
    """The plan and its fallbacks, one row per part, with plain values: what the table and `--json` show."""
    rows = []
    for rank, option in enumerate((plan.best, *plan.fallbacks)):
        for part in option.parts:
            candidate, offer = part.candidate, part.candidate.offer
            rows.append(
                {
                    "rank": rank,
                    "gpu": offer.gpu,
                    "tp": candidate.tp,
                    "pp": candidate.pp,
                    "instance_type": offer.instance_type,
                    "instances": part.units * candidate.instances,
                    "replicas": part.replicas,
                    "market": offer.market.value,
                    "provider": offer.provider,
                    "region": offer.region,
                    "zone": offer.zone,
                    "usd_per_hour": float(part.usd_per_hour),
                    "expected_usd": float(option.expected_usd),
                    "expected_finish_s": round(option.expected_finish_s),
                    "slow_finish_s": round(option.slow_finish_s),
                    "margin_s": round(option.margin_s),
                    "tokens_per_s": round(
                        candidate.requests_per_s
                        * part.units
                        * (plan.workload.output_tokens.mean + plan.workload.input_tokens.mean)
                    ),
                    "reason": option.reason,
                    "price_source": offer.source,
                    "price_date": offer.as_of,
                }
            )
    return rows


def to_json(plan: Plan) -> dict[str, Any]:
    """The whole plan as plain JSON values."""
    return {
        "plan": options_as_rows(plan),
        "losers": [{"what": r.what, "gpu": r.gpu, "reason": r.reason} for r in plan.losers],
        "workload": {
            "requests": plan.workload.requests,
            "input_tokens_mean": round(plan.workload.input_tokens.mean, 1),
            "output_tokens_mean": round(plan.workload.output_tokens.mean, 1),
            "context": plan.workload.context,
            "basis": plan.workload.basis,
        },
        "predictor": plan.predictor,
        "warnings": list(plan.warnings),
    }
