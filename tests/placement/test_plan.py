from decimal import Decimal

import pytest

from tandemn.errors import Infeasible, InvalidInput, NotFound
from tandemn.placement.candidates import Wish, enumerate_candidates
from tandemn.placement.catalog.offers import Offer, table_offers
from tandemn.placement.deployments import deployment_options
from tandemn.placement.deployments import to_json as options_json
from tandemn.placement.models import shape_of
from tandemn.placement.plan import options_as_rows, plan_job, to_json
from tandemn.placement.throughput import RooflinePredictor
from tandemn.placement.workload import Lengths, Workload
from tandemn.protocol.replicas import Market

HOUR = 3600.0


def workload(requests=20_000, prompt=1000, answer=300):
    def lengths(mean):
        return Lengths(mean=mean, p50=mean, p95=2 * mean, largest=2 * mean)

    return Workload(
        requests=requests, input_tokens=lengths(prompt), output_tokens=lengths(answer), basis="made up"
    )


def plan(model="Llama-3.1-8B-Instruct", *, hours=4.0, work=None, offers=None, quota=None, **wish):
    budget = wish.pop("budget_usd", None)
    return plan_job(
        shape_of(model),
        work or workload(),
        deadline_s=hours * HOUR,
        offers=table_offers() if offers is None else offers,
        quota=quota or {},
        predictor=RooflinePredictor(),
        wish=Wish(**wish),
        budget_usd=budget,
    )


def offer(price, *, gpu="L4", gpus=1, region="r1", zone=None, market=Market.SPOT, vcpus=4):
    return Offer(
        provider="aws",
        region=region,
        zone=zone,
        instance_type=f"g6.{gpus}x",
        gpu=gpu,
        gpus=gpus,
        vcpus=vcpus,
        market=market,
        usd_per_hour=None if price is None else Decimal(str(price)),
        quota_family="G",
        source="test",
        as_of="2026",
    )


def test_the_plan_meets_its_deadline_with_a_margin_and_fallbacks_rank_by_cost():
    made = plan()
    assert made.best.meets_deadline
    assert made.best.expected_finish_s < made.best.slow_finish_s <= 4 * HOUR * (1 + 1e-6)
    costs = [option.expected_usd for option in made.fallbacks]
    assert costs == sorted(costs)
    assert made.best.expected_usd <= costs[0]
    assert all(option.reason for option in (made.best, *made.fallbacks))


def test_fallbacks_are_other_places_markets_and_gpus():
    made = plan()
    keys = {
        (p.candidate.offer.gpu, p.candidate.offer.market, p.candidate.offer.place)
        for option in made.fallbacks
        for p in option.parts
    }
    assert len({gpu for gpu, _, _ in keys}) > 2
    assert {market for _, market, _ in keys} == {Market.SPOT, Market.ON_DEMAND}


def test_zones_of_one_region_are_fallbacks_of_each_other():
    made = plan(offers=[offer(0.3, zone="r1a"), offer(0.31, zone="r1b")], hours=24)
    assert made.best.parts[0].candidate.offer.zone == "r1a"
    assert made.fallbacks[0].parts[0].candidate.offer.zone == "r1b"


def test_exhausted_quota_moves_the_plan_elsewhere():
    offers = [offer(0.3), offer(0.5, region="r2")]
    free = plan(offers=offers, hours=24)
    full = plan(offers=offers, hours=24, quota={("r1", "G", "spot"): 0})
    assert free.best.parts[0].candidate.offer.region == "r1"
    assert full.best.parts[0].candidate.offer.region == "r2"


def test_a_shorter_deadline_takes_more_replicas_and_costs_no_less():
    offers = [offer(0.3)]
    relaxed, tight = plan(offers=offers, hours=24), plan(offers=offers, hours=2)
    assert tight.best.parts[0].units > relaxed.best.parts[0].units
    assert tight.best.expected_usd >= relaxed.best.expected_usd


def test_unknown_prices_are_not_planned_with():
    made = plan(offers=[offer(None), offer(0.9, region="r2")], hours=24)
    assert made.best.parts[0].candidate.offer.region == "r2"
    assert any(loser.reason == "its price is not known" for loser in made.losers)


def test_overrides_are_kept():
    made = plan(gpu="h100", tp=2, pp=1, on_demand=True, region="us-east-1")
    for option in (made.best, *made.fallbacks):
        for part in option.parts:
            chosen = part.candidate
            assert (chosen.offer.gpu, chosen.tp, chosen.pp, chosen.offer.region) == (
                "H100",
                2,
                1,
                "us-east-1",
            )
            assert chosen.offer.market is Market.ON_DEMAND


def test_fixed_replicas():
    made = plan(gpu="L4", replicas=3, hours=48, offers=[offer(0.3)])
    assert made.best.parts[0].replicas == 3


def test_a_model_that_does_not_fit_names_what_it_fits():
    with pytest.raises(Infeasible, match="2 x A100-80GB") as failed:
        plan("Llama-3.3-70B-Instruct", gpu="A100-80GB", tp=1, pp=1)
    assert failed.value.exit_code == 3


def test_force_skips_the_memory_check():
    made = plan("Llama-3.3-70B-Instruct", gpu="A100-80GB", tp=1, pp=1, force=True, hours=48)
    assert made.best.parts[0].candidate.tp == 1


def test_a_deadline_that_cannot_be_met_names_the_nearest():
    with pytest.raises(Infeasible, match=r"a deadline of [\d.]+ h") as failed:
        plan(hours=0.02)
    hours = float(str(failed.value.next_step).split("a deadline of ")[1].split(" h")[0])
    assert plan(hours=hours * 1.03).best.meets_deadline


@pytest.mark.parametrize("replicas", [1, 2, 5])
def test_the_nearest_deadline_is_that_of_the_replicas_that_were_asked_for(replicas):
    wish = {"offers": [offer(0.3)], "gpu": "L4", "replicas": replicas}
    with pytest.raises(Infeasible, match=r"a deadline of [\d.]+ h") as failed:
        plan(hours=0.2, **wish)
    hours = float(str(failed.value.next_step).split("a deadline of ")[1].split(" h")[0])
    assert plan(hours=hours * 1.03, **wish).best.meets_deadline
    with pytest.raises(Infeasible):
        plan(hours=hours * 0.95, **wish)


def test_the_quota_that_would_do_is_that_of_the_replicas_that_were_asked_for():
    wish = {"offers": [offer(0.3)], "gpu": "L4", "replicas": 6, "hours": 48}
    with pytest.raises(Infeasible, match="vCPUs of spot G quota in r1") as failed:
        plan(quota={("r1", "G", "spot"): 4}, **wish)
    needed = int(str(failed.value.next_step).split(" instead of ")[0].rsplit(" ", 1)[1])
    assert plan(quota={("r1", "G", "spot"): needed}, **wish).best.parts[0].replicas == 6
    with pytest.raises(Infeasible):
        plan(quota={("r1", "G", "spot"): needed - 1}, **wish)


def test_force_plans_what_is_late_and_says_so():
    made = plan(offers=[offer(0.3)], quota={("r1", "G", "spot"): 4}, hours=0.5, force=True)
    assert "missed" in made.warnings[0]


def test_short_quota_names_the_quota_that_would_do():
    quota = {("r1", "G", "spot"): 4}
    with pytest.raises(Infeasible, match="vCPUs of spot G quota in r1") as failed:
        plan(offers=[offer(0.3)], quota=quota, hours=1)
    needed = int(str(failed.value.next_step).split(" instead of ")[0].rsplit(" ", 1)[1])
    assert plan(offers=[offer(0.3)], quota={("r1", "G", "spot"): needed}, hours=1).best.meets_deadline


def test_budget():
    with pytest.raises(Infeasible, match="budget"):
        plan(budget_usd=Decimal("0.01"))


@pytest.mark.parametrize("wish", [{"tp": 0}, {"replicas": -1}])
def test_impossible_wishes(wish):
    with pytest.raises(InvalidInput):
        plan(**wish)


def test_unknown_gpu_and_past_deadline():
    with pytest.raises(NotFound, match="H100"):
        plan(gpu="H10")
    for hours in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InvalidInput):
            plan(hours=hours)


def test_nothing_offered():
    with pytest.raises(Infeasible):
        plan(offers=[])


def test_pipeline_stages_take_whole_instances():
    found, _ = enumerate_candidates(
        shape_of("Qwen3-32B"), workload(), [offer(0.3)], RooflinePredictor(), wish=Wish(tp=1, pp=8)
    )
    assert [(c.instances, c.replicas, c.vcpus, c.usd_per_hour) for c in found] == [(8, 1, 32, Decimal("2.4"))]


def test_an_instance_runs_as_many_replicas_as_it_has_gpus_for():
    big = offer(4, gpu="H100", gpus=8)
    found, _ = enumerate_candidates(
        shape_of("Qwen3-32B"), workload(), [big], RooflinePredictor(), wish=Wish(tp=2, pp=1)
    )
    assert [(c.instances, c.replicas) for c in found] == [(1, 4)]


def test_json_has_plain_values():
    made = to_json(plan())
    row = made["plan"][0]
    assert row["rank"] == 0
    assert isinstance(row["expected_usd"], float)
    assert {"market", "region", "margin_s", "reason", "replicas"} <= set(row)
    assert made["losers"]


def test_rows_of_embeddings():
    rows = options_as_rows(plan("Qwen3-Embedding-0.6B", work=workload(100_000, 500, 0), hours=2))
    assert rows[0]["tokens_per_s"] > 0


def test_auto_gpu_of_a_deployment():
    options = deployment_options(
        shape_of("Llama-3.1-8B-Instruct"), table_offers(), RooflinePredictor(), context=4096
    )
    assert len(options) > 5
    costs = [option.usd_per_million_tokens for option in options if option.usd_per_million_tokens]
    assert costs == sorted(costs)
    assert all(option["gpu_count"] >= 1 for option in options_json(options))


def test_a_deployment_takes_as_few_gpus_as_fit():
    (option,) = deployment_options(
        shape_of("Llama-3.3-70B-Instruct"), table_offers(), RooflinePredictor(), context=4096, gpu="A100-80GB"
    )
    assert option.gpu_count == 2


def test_a_deployment_that_does_not_fit():
    with pytest.raises(Infeasible, match="2 x A100-80GB"):
        deployment_options(
            shape_of("Llama-3.3-70B-Instruct"),
            table_offers(),
            RooflinePredictor(),
            context=4096,
            gpu="A100-80GB",
            gpu_count=1,
        )
