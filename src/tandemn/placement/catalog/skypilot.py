"""SkyPilot's catalog as a feed of offers: `~/.sky/catalogs/v*/<cloud>/vms.csv`, read as it lies there."""

from __future__ import annotations

import csv
import itertools
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from tandemn.placement.catalog.offers import (
    Offer,
    aws_quota_family,
    gpu_or_none,
    money,
    serverless_offers,
    table_offers,
)
from tandemn.protocol.replicas import Market

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

#: Where SkyPilot keeps its catalogs, below the home folder.
CATALOGS = ".sky/catalogs"
#: Rows read of one file at most: AWS's has about 100,000 (2026).
MAX_ROWS = 2_000_000
#: Prices that differ by no more than this, in USD an hour, are one price that was rounded.
_SAME_PRICE = Decimal("0.0005")


def load_offers(catalogs: Path | None) -> tuple[Offer, ...]:
    """Every offer: SkyPilot's for the clouds that it has, the package's table for the rest.

    Args:
        catalogs: SkyPilot's catalog folder (`~/.sky/catalogs`), or None.
    """
    live = tuple(read_catalogs(catalogs)) if catalogs is not None else ()
    clouds = {offer.provider for offer in live}
    table = [offer for offer in table_offers() if offer.market is not Market.SERVERLESS]
    kept = (offer for offer in table if offer.provider not in clouds)
    return (*_checked(live, table), *kept, *serverless_offers())


def _checked(live: Iterable[Offer], table: Iterable[Offer]) -> Iterator[Offer]:
    """Live offers, each with the table's source where that has the same price."""
    known = {_identity(offer): offer for offer in table if offer.usd_per_hour is not None}
    for offer in live:
        twin = known.get(_identity(offer))
        is_same = twin is not None and _are_the_same(offer.usd_per_hour, twin.usd_per_hour)
        yield replace(offer, checked=f"{twin.source}, {twin.as_of}") if twin and is_same else offer


def _are_the_same(a: Decimal | None, b: Decimal | None) -> bool:
    return a is not None and b is not None and abs(a - b) <= _SAME_PRICE


def _identity(offer: Offer) -> tuple[str, str, str, Market]:
    return (offer.provider, offer.region, offer.instance_type, offer.market)


def read_catalogs(catalogs: Path) -> Iterator[Offer]:
    """Offers of the newest schema version present; a file that cannot be read yields none."""
    for newest in _versions(catalogs)[-1:]:
        for file in sorted(newest.glob("*/vms.csv")):
            yield from read_vms(file, provider=file.parent.name)


def _versions(catalogs: Path) -> list[Path]:
    """The schema versions present, oldest first."""
    found = [folder for folder in catalogs.glob("v*") if re.fullmatch(r"v\d+", folder.name)]
    return sorted(found, key=lambda folder: int(folder.name[1:]))


def read_vms(path: Path, *, provider: str) -> list[Offer]:
    """Offers of one `vms.csv`: on-demand by region, spot by zone. Rows without a known GPU are left out."""
    names = _zone_names(path.parent) if provider == "aws" else {}
    try:
        as_of = datetime.fromtimestamp(path.stat().st_mtime, UTC).date().isoformat()
        with path.open(newline="", encoding="utf-8") as file:
            offers: dict[tuple[str, str, str | None, Market], Offer] = {}
            for count, row in enumerate(csv.DictReader(file)):
                if count >= MAX_ROWS:
                    break
                zone = row.get("AvailabilityZone")
                row["AvailabilityZone"] = names.get(zone or "", zone)
                for offer in _offers(row, provider, as_of):
                    offers.setdefault((offer.instance_type, offer.region, offer.zone, offer.market), offer)
            return list(offers.values())
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


def _zone_names(folder: Path) -> dict[str, str]:
    """Zone ids as names, by the table that SkyPilot keeps for the AWS account; empty where it keeps none.

    AWS gives every account its own names for the same zones, so that the catalog has ids (`use1-az1`).
    """
    tables = sorted(folder.glob("az_mappings-*.csv"), key=lambda path: path.stat().st_mtime)
    try:
        with tables[-1].open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            return {row["AvailabilityZone"]: row["AvailabilityZoneName"] for row in rows}
    except (IndexError, KeyError, OSError, UnicodeDecodeError, csv.Error):
        return {}


def _offers(row: Mapping[str, str | None], provider: str, as_of: str) -> Iterator[Offer]:
    gpu = gpu_or_none(row.get("AcceleratorName") or "")
    count = _number(row.get("AcceleratorCount"))
    name, region = row.get("InstanceType") or "", row.get("Region") or ""
    if gpu is None or not name or count < 1 or count != int(count):
        return
    prices = (
        (Market.ON_DEMAND, "Price", None),
        (Market.SPOT, "SpotPrice", row.get("AvailabilityZone") or None),
    )
    for market, column, zone in prices:
        yield Offer(
            provider=provider,
            region=region,
            zone=zone,
            instance_type=name,
            gpu=gpu,
            gpus=int(count),
            vcpus=int(_number(row.get("vCPUs"))),
            ram_gib=int(_number(row.get("MemoryGiB"))),
            arch=row.get("Arch") or "x86_64",
            market=market,
            usd_per_hour=money(row.get(column)),
            quota_family=aws_quota_family(name) if provider == "aws" else None,
            source="SkyPilot catalog",
            as_of=as_of,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a machine costs on demand, GPU or none."""

    region: str
    usd_per_hour: Decimal
    source: str


def find_machine(
    catalogs: Path, *, provider: str, instance_type: str, region: str | None = None
) -> Machine | None:
    """Find where a type of machine is the cheapest on demand; None where SkyPilot's catalog does not tell."""
    versions = _versions(catalogs)
    if not versions:
        return None
    path = versions[-1] / provider / "vms.csv"
    found: list[tuple[Decimal, str]] = []
    try:
        as_of = datetime.fromtimestamp(path.stat().st_mtime, UTC).date().isoformat()
        with path.open(newline="", encoding="utf-8") as file:
            for row in itertools.islice(csv.DictReader(file), MAX_ROWS):
                if row.get("InstanceType") != instance_type or region not in {None, row.get("Region")}:
                    continue
                if price := money(row.get("Price")):
                    found.append((price, row.get("Region") or ""))
    except (OSError, UnicodeDecodeError, csv.Error):
        return None
    if not found:
        return None
    price, where = min(found)
    return Machine(
        region=where,
        usd_per_hour=price,
        source=f"SkyPilot catalog, {instance_type} in {provider}/{where} ({as_of})",
    )


def _number(text: str | None) -> float:
    try:
        return float(Decimal(text or "0"))
    except ArithmeticError:
        return 0.0
