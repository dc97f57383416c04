"""What can be rented and how much of it, as Koi reads it (PURE): from offers and quotas."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from tandemn.koi.contract import InstanceType, PlacePrice, QuotaLine, Resources, WireMarket
from tandemn.placement.catalog.gpus import gpus
from tandemn.protocol.replicas import Market

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tandemn.placement.catalog.offers import Offer
    from tandemn.placement.quota import Quota

#: Places listed of one instance type, the cheapest; SkyPilot's catalog has a hundred of some.
MAX_PLACES = 12
#: Instance types listed, the cheapest a GPU: all clouds of SkyPilot's catalog together have some 400 (2026).
MAX_INSTANCE_TYPES = 1000
#: Quotas listed; AWS has five of some 30 regions.
MAX_QUOTAS = 1000


def wire_market(market: Market) -> WireMarket:
    """Name a market as Koi does."""
    return "spot" if market is Market.SPOT else "on_demand"


def resources(
    offers: Iterable[Offer], quotas: Sequence[Quota], *, notes: Sequence[str], now: float
) -> Resources:
    """List what `offers` have that has a price, one line an instance type, and the quotas that are known."""
    kinds: dict[tuple[str, str], list[Offer]] = defaultdict(list)
    for offer in offers:
        if offer.market is not Market.SERVERLESS and offer.usd_per_hour is not None:
            kinds[(offer.provider, offer.instance_type)].append(offer)
    lines = sorted(
        (_instance_type(places) for places in kinds.values()),
        key=lambda line: (
            line.cost_per_instance_hour_usd / max(line.gpus_per_instance, 1),
            line.instance_type,
        ),
    )
    return Resources(
        snapshot_time=now,
        instances=lines[:MAX_INSTANCE_TYPES],
        quotas=[
            QuotaLine(
                family=quota.family,
                region=quota.region,
                market=wire_market(Market(quota.market)),
                baseline_vcpus=quota.limit,
                used_vcpus=quota.used,
            )
            for quota in quotas[:MAX_QUOTAS]
        ],
        notes=list(notes),
    )


def _instance_type(places: list[Offer]) -> InstanceType:
    first, gpu = places[0], gpus()[places[0].gpu]
    prices = sorted(
        {(float(place.usd_per_hour or 0), place.region, wire_market(place.market)) for place in places}
    )
    on_demand = [usd for usd, _, market in prices if market == "on_demand"]
    return InstanceType(
        instance_type=first.instance_type,
        gpu_type=first.gpu,
        gpus_per_instance=first.gpus,
        vcpus=first.vcpus,
        quota_family=first.quota_family or "",
        gpu_memory_gb=gpu.memory_gb,
        interconnect="NVLink" if gpu.nvlink_gb_s else "PCIe",
        cost_per_instance_hour_usd=on_demand[0] if on_demand else prices[0][0],
        prices=[
            PlacePrice(provider=first.provider, region=region, market=market, usd_per_hour=usd)
            for usd, region, market in prices[:MAX_PLACES]
        ],
    )


def local_resources(gpu: str, gpus_per_replica: int, usd_per_hour: float, *, now: float) -> Resources:
    """Describe this machine, where it is what a job runs on: a replica is what it rents out."""
    known = gpus().get(gpu)
    return Resources(
        snapshot_time=now,
        instances=[
            InstanceType(
                instance_type="local",
                gpu_type=gpu,
                gpus_per_instance=gpus_per_replica,
                vcpus=0,
                quota_family="",
                gpu_memory_gb=known.memory_gb if known is not None else 0,
                interconnect="PCIe",
                cost_per_instance_hour_usd=usd_per_hour,
                prices=[],
            )
        ],
        quotas=[],
        notes=["replicas are processes on the control plane's machine"],
    )
