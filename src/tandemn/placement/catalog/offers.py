"""Offers: what can be rented where and for how much, each with its source and date.

SkyPilot's own catalog is the live one where it is present; the package's table stands in where it is not. A price
that is not known is None, never 0.
"""

from __future__ import annotations

import csv
import tomllib
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from tandemn.errors import NotFound
from tandemn.placement.catalog.gpus import gpu_named
from tandemn.protocol.replicas import Market

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Provider, region, zone, instance type, market and price."""

    provider: str
    region: str
    """Empty where the provider chooses (serverless)."""
    zone: str | None = None
    """None: any zone of the region."""
    instance_type: str
    gpu: str
    gpus: int
    vcpus: int = 0
    ram_gib: int = 0
    network_gbps: Decimal | None = None
    arch: str = "x86_64"
    market: Market
    usd_per_hour: Decimal | None
    """Of the whole instance; None: not known."""
    quota_family: str | None = None
    """Whose quota it counts against (AWS: `G` or `P`)."""
    source: str
    as_of: str
    """Date of the price, as exactly as it is known: `2026`, `2026-05` or `2026-05-07`."""
    remark: str = ""
    checked: str = ""
    """The second source that has the same price; empty: none was found."""

    @property
    def usd_per_gpu_hour(self) -> Decimal | None:
        return None if self.usd_per_hour is None else self.usd_per_hour / self.gpus

    @property
    def place(self) -> str:
        """Zone where it is known, else region, else the provider."""
        return self.zone or self.region or self.provider


def money(text: str | None) -> Decimal | None:
    """Read a price; None where it is absent, not a number, or not more than 0 (catalogs write 0 for unknown)."""
    try:
        value = Decimal((text or "").strip())
    except InvalidOperation:
        return None
    return value if value.is_finite() and value > 0 else None


@cache
def table_offers() -> tuple[Offer, ...]:
    """The offers of the package's own tables: AWS, and the serverless providers."""
    instances = {row["instance_type"]: row for row in _rows("aws_instances.csv")}
    priced = list(_rows("aws_prices.csv"))
    offers = [_aws_offer(instances[row["instance_type"]], row) for row in priced]
    known = {(row["instance_type"], row["region"], row["market"]) for row in priced}
    # Where one market's price is known, the other market exists too: its price is unknown, not 0.
    offers += [
        _aws_offer(instances[name], {"region": region, "market": market})
        for name, region in sorted({(row["instance_type"], row["region"]) for row in priced})
        for market in (Market.SPOT, Market.ON_DEMAND)
        if (name, region, market) not in known
    ]
    return (*offers, *serverless_offers())


def _aws_offer(instance: Mapping[str, str], price: Mapping[str, str]) -> Offer:
    return Offer(
        provider="aws",
        region=price["region"],
        instance_type=instance["instance_type"],
        gpu=instance["gpu"],
        gpus=int(instance["gpus"]),
        vcpus=int(instance["vcpus"]),
        ram_gib=int(instance["ram_gib"]),
        network_gbps=Decimal(instance["network_gbps"]),
        arch=instance["arch"],
        market=Market(price["market"]),
        usd_per_hour=money(price.get("usd_per_hour")),
        quota_family=instance["quota_family"],
        source=price.get("source", "price not known"),
        as_of=price.get("as_of", ""),
        checked=price.get("checked", ""),
    )


@cache
def serverless_offers() -> tuple[Offer, ...]:
    """List prices of the serverless providers, for one GPU each."""
    text = resources.files("tandemn.placement.catalog").joinpath("serverless.toml").read_text("utf-8")
    return tuple(
        Offer(
            provider=row["provider"],
            region="",
            instance_type=f"{row['provider']}-{row['gpu']}",
            gpu=row["gpu"],
            gpus=1,
            market=Market.SERVERLESS,
            usd_per_hour=money(row["usd_per_hour"]),
            source=row["source"],
            as_of=row["as_of"],
            remark=row["extra"],
            checked=row["checked"],
        )
        for row in tomllib.loads(text)["offer"]
    )


@cache
def aws_quota_family(instance_type: str) -> str | None:
    """The AWS quota family of an instance type, by its letters: `g` and `vt` share one, `p` has its own."""
    family = instance_type.split(".", 1)[0]
    if family.startswith(("g", "vt")):
        return "G"
    return "P" if family.startswith("p") else None


@cache
def aws_vcpus(instance_type: str) -> int:
    """Count the vCPUs of an AWS GPU instance type; 0 where the table does not have it."""
    known = {row["instance_type"]: int(row["vcpus"]) for row in _rows("aws_instances.csv")}
    return known.get(instance_type, 0)


def _rows(name: str) -> list[dict[str, str]]:
    with resources.files("tandemn.placement.catalog").joinpath(name).open("r", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def gpu_or_none(name: str) -> str | None:
    """The table's name of a GPU that a catalog names, None where the table does not have it."""
    try:
        return gpu_named(name).name
    except NotFound:
        return None
