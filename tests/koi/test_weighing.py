"""The own plan and the recommendation beside each other, on the package's own offers."""

from __future__ import annotations

from decimal import Decimal

import pytest
from tests.placement.test_plan import plan

from tandemn.errors import Infeasible
from tandemn.koi.recommendation import Choice, Recommendation, Unused
from tandemn.koi.weighing import weigh
from tandemn.placement.catalog.offers import table_offers
from tandemn.protocol.replicas import Market


def choice(gpu="L40S", tp=1, pp=1, replicas=2, market=None, region=None, instance_type=None):
    return Choice(
        gpu=gpu, tp=tp, pp=pp, replicas=replicas, market=market, region=region, instance_type=instance_type
    )


def recommended(first=None, *alternatives):
    return Recommendation(
        decision_id="dec-1",
        choice=first or choice(),
        predicted_tokens_per_s=1000.0,
        alternatives=alternatives,
        said="",
    )


def replan(**fixed):
    def of(each):
        wish = each.wish()
        offers = [offer for offer in table_offers() if each.allows(offer)]
        return plan(
            offers=offers,
            gpu=wish.gpu,
            tp=wish.tp,
            pp=wish.pp,
            replicas=wish.replicas,
            region=wish.region,
            **fixed,
        )

    return of


def first_of(made):
    candidate = made.best.parts[0].candidate
    return candidate.offer.gpu, candidate.tp, candidate.pp, made.best.parts[0].replicas


OWN = plan()


def test_beside_the_own_plan():
    weighed = weigh(OWN, recommended(), replan(), follow=False)
    assert weighed.plan == OWN
    advice = weighed.advice
    assert (advice.is_feasible, advice.is_followed, advice.code) == (True, False, "koi_not_chosen")
    assert advice.expected_usd is not None
    assert advice.expected_usd >= float(OWN.best.expected_usd)


def test_followed_its_alternatives_come_before_the_own_plan():
    h100 = choice("H100", replicas=None, market=Market.ON_DEMAND)
    asked = recommended(choice(), choice("L4", tp=16, replicas=1), h100)
    weighed = weigh(OWN, asked, replan(), follow=True)
    assert weighed.advice.is_followed
    assert first_of(weighed.plan) == ("L40S", 1, 1, 2)
    assert "dec-1" in weighed.plan.best.reason
    reasons = [option.reason for option in weighed.plan.fallbacks]
    alternative, own = (
        reasons.index("Koi's alternative"),
        next(at for at, reason in enumerate(reasons) if reason.startswith("the own plan")),
    )
    assert alternative < own
    assert weighed.plan.fallbacks[alternative].parts[0].candidate.offer.gpu == "H100"
    told = weighed.advice.alternatives
    assert told[0].reason is not None, "this one cannot be had, and says why"
    assert told[1].reason is None
    parts = [option.parts for option in (weighed.plan.best, *weighed.plan.fallbacks)]
    assert all(parts.count(each) == 1 for each in parts), "nothing is tried twice"


@pytest.mark.parametrize(
    ("named", "fixed", "code"),
    [
        (choice("T4", replicas=1), {"model": "Llama-3.1-70B-Instruct"}, "koi_infeasible"),
        (choice(replicas=1, tp=16), {}, "koi_infeasible"),
        (choice(region="mars-1"), {}, "koi_infeasible"),
        (choice(instance_type="g99.huge"), {}, "koi_infeasible"),
        (choice(market=Market.SERVERLESS), {}, "koi_infeasible"),
        (choice("H100", tp=8, replicas=40), {"budget_usd": Decimal("0.01")}, "koi_over_budget"),
        (choice("L4", replicas=1), {"hours": 0.2}, "koi_infeasible"),
    ],
)
def test_of_no_use_the_own_plan_stands_and_it_is_said_why(named, fixed, code):
    weighed = weigh(OWN, recommended(named), replan(**fixed), follow=True)
    assert weighed.plan == OWN
    advice = weighed.advice
    assert (advice.is_feasible, advice.is_followed, advice.code) == (False, False, code)
    assert named.label in advice.reason
    assert advice.gpu == named.gpu, "what was recommended is shown all the same"


def test_no_answer():
    weighed = weigh(
        OWN, Unused(code="koi_timeout", reason="it did not answer within 5 s"), replan(), follow=True
    )
    assert weighed.plan == OWN
    assert (weighed.advice.code, weighed.advice.reason) == ("koi_timeout", "it did not answer within 5 s")


def test_no_own_plan():
    none = Infeasible("no plan meets the deadline")
    with pytest.raises(Infeasible):
        weigh(none, recommended(), replan(), follow=False)
    weighed = weigh(none, recommended(), replan(), follow=True)
    assert first_of(weighed.plan) == ("L40S", 1, 1, 2)
