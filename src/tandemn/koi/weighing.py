"""The own plan and Koi's recommendation beside each other (PURE): what is feasible, which is followed, and why."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tandemn.errors import Infeasible, InvalidInput
from tandemn.koi.recommendation import Recommendation, Unused
from tandemn.placement.plan import MAX_FALLBACKS
from tandemn.protocol.plans import KoiAdvice, KoiAlternative

if TYPE_CHECKING:
    from collections.abc import Callable

    from tandemn.koi.recommendation import Choice
    from tandemn.placement.plan import Option, Plan

#: Why a feasible recommendation is not followed.
NOT_CHOSEN = "the own plan was asked for; --advisor koi follows the recommendation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """The plan to be launched, and what is told of Koi."""

    plan: Plan
    advice: KoiAdvice


def weigh(
    own: Plan | Infeasible,
    asked: Recommendation | Unused,
    replan: Callable[[Choice], Plan],
    *,
    follow: bool,
) -> Weighed:
    """Follow the recommendation where that is wished and it holds; else the own plan, as if there were no Koi.

    Args:
        own: the own plan, or why there is none.
        asked: what Koi answered.
        replan: plans as if the user had asked for the choice; raises Infeasible or InvalidInput where it fails.
        follow: whether the user asked for Koi.

    Raises:
        Infeasible: there is no own plan, and Koi's is not followed.
    """
    if isinstance(asked, Unused):
        return Weighed(plan=_own(own), advice=unused(asked))
    theirs = _tried(asked.choice, replan)
    if isinstance(theirs, Unused):
        return Weighed(plan=_own(own), advice=unused(theirs, asked))
    alternatives = [each if isinstance(each, Unused) else _tried(each, replan) for each in asked.alternatives]
    plan = _followed(own, theirs, alternatives, asked.decision_id) if follow else _own(own)
    best = theirs.best
    advice = feasible(
        asked,
        is_followed=follow,
        expected_usd=float(best.expected_usd),
        expected_finish_s=round(best.expected_finish_s),
        alternatives=[
            _told(each, outcome) for each, outcome in zip(asked.alternatives, alternatives, strict=True)
        ],
    )
    return Weighed(plan=plan, advice=advice)


def unused(why: Unused, asked: Recommendation | None = None) -> KoiAdvice:
    """Tell why Koi is not used, and what it had recommended, where it did."""
    return KoiAdvice(code=why.code, reason=why.reason, **(_told_choice(asked) if asked is not None else {}))


def feasible(
    asked: Recommendation,
    *,
    is_followed: bool,
    expected_usd: float | None,
    expected_finish_s: float | None = None,
    alternatives: list[KoiAlternative],
) -> KoiAdvice:
    """Tell of a recommendation that could be followed, and whether it is."""
    return KoiAdvice(
        is_feasible=True,
        is_followed=is_followed,
        code=None if is_followed else "koi_not_chosen",
        reason=f"its recommendation {asked.decision_id} is followed" if is_followed else NOT_CHOSEN,
        expected_usd=expected_usd,
        expected_finish_s=expected_finish_s,
        alternatives=alternatives,
        **_told_choice(asked),
    )


def why_not(exc: Infeasible | InvalidInput, choice: Choice) -> Unused:
    """Tell of a recommendation that fails the checks of an override."""
    code = "koi_over_budget" if exc.param in {"budget", "budget_usd"} else "koi_infeasible"
    return Unused(code=code, reason=f"{choice.label}: {exc.message}")


def _tried(choice: Choice, replan: Callable[[Choice], Plan]) -> Plan | Unused:
    try:
        return replan(choice)
    except (Infeasible, InvalidInput) as exc:
        return why_not(exc, choice)


def _own(own: Plan | Infeasible) -> Plan:
    if isinstance(own, Infeasible):
        raise own
    return own


def _followed(
    own: Plan | Infeasible, theirs: Plan, alternatives: list[Plan | Unused], decision_id: str
) -> Plan:
    """Put the recommendation first, the same elsewhere next, then its alternatives, then the own plan."""
    named = [replace(theirs.best, reason=f"Koi's recommendation {decision_id}"), *theirs.fallbacks]
    named += [
        replace(each.best, reason="Koi's alternative")
        for each in alternatives
        if not isinstance(each, Unused)
    ]
    if not isinstance(own, Infeasible):
        named += [replace(own.best, reason=f"the own plan: {own.best.reason}"), *own.fallbacks]
    different: list[Option] = []
    for option in named:
        if all(option.parts != other.parts for other in different):
            different.append(option)
    base = theirs if isinstance(own, Infeasible) else own
    return replace(base, best=different[0], fallbacks=tuple(different[1 : MAX_FALLBACKS + 1]))


def _told(asked: Choice | Unused, outcome: Plan | Unused) -> KoiAlternative:
    if isinstance(asked, Unused):
        return KoiAlternative(what="an alternative", reason=asked.reason)
    return KoiAlternative(what=asked.label, reason=outcome.reason if isinstance(outcome, Unused) else None)


def _told_choice(asked: Recommendation) -> dict[str, object]:
    choice = asked.choice
    return {
        "decision_id": asked.decision_id,
        "gpu": choice.gpu,
        "tp": choice.tp,
        "pp": choice.pp,
        "replicas": choice.replicas,
        "market": choice.market,
        "region": choice.region,
        "instance_type": choice.instance_type,
        "predicted_tokens_per_s": asked.predicted_tokens_per_s,
        "said": asked.said,
    }
