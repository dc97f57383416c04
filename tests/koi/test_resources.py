"""What Koi reads of offers and quotas."""

from __future__ import annotations

from decimal import Decimal

from tests.placement.test_plan import offer

from tandemn.koi.resources import MAX_INSTANCE_TYPES, MAX_PLACES, resources
from tandemn.placement.catalog.offers import table_offers
from tandemn.placement.quota import Quota
from tandemn.protocol.replicas import Market

QUOTA = Quota(region="r1", family="G", market="on-demand", limit=64, used=16, code="L-1")


def test_one_line_an_instance_type_with_its_cheapest_places_and_markets():
    offers = [
        offer(0.4),
        offer(0.3, region="r2"),
        offer(1.0, market=Market.ON_DEMAND),
        offer(0.9, region="r2", market=Market.ON_DEMAND),
        offer(None, region="r3"),
        offer(2.0, gpu="H100", gpus=8),
    ]
    found = resources(offers, [QUOTA], notes=["a note"], now=7.0)
    dear, cheap = found.instances[1], found.instances[0]
    assert (dear.gpu_type, dear.interconnect, dear.cost_per_instance_hour_usd) == ("L4", "PCIe", 0.9)
    assert (cheap.gpu_type, cheap.interconnect, cheap.gpus_per_instance) == ("H100", "NVLink", 8)
    assert cheap.cost_per_instance_hour_usd == 2.0, "its spot price, where no other is known"
    assert [(each.usd_per_hour, each.region, each.market) for each in dear.prices] == [
        (0.3, "r2", "spot"),
        (0.4, "r1", "spot"),
        (0.9, "r2", "on_demand"),
        (1.0, "r1", "on_demand"),
    ]
    [quota] = found.quotas
    assert quota.model_dump() == {
        "family": "G",
        "region": "r1",
        "market": "on_demand",
        "baseline_vcpus": 64,
        "used_vcpus": 16,
    }
    assert (found.snapshot_time, found.notes) == (7.0, ["a note"])


def test_it_does_not_grow_without_end():
    many = [
        offer(number + 1, gpus=kind + 1, region=f"r{number}") for number in range(50) for kind in range(1200)
    ]
    found = resources(many, [QUOTA] * 5000, notes=[], now=0.0)
    assert len(found.instances) == MAX_INSTANCE_TYPES
    assert {len(each.prices) for each in found.instances} == {MAX_PLACES}
    assert len(found.model_dump_json()) < 3 << 20


def test_of_the_packages_own_offers_every_priced_kind_is_there():
    found = resources(table_offers(), [], notes=[], now=0.0)
    kinds = {
        each.instance_type
        for each in table_offers()
        if each.usd_per_hour and each.market != Market.SERVERLESS
    }
    assert {each.instance_type for each in found.instances} == kinds
    assert all(Decimal(str(each.cost_per_instance_hour_usd)) > 0 for each in found.instances)
