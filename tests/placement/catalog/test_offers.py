import csv
import gzip
import json
import os
from datetime import date
from decimal import Decimal
from importlib import resources
from pathlib import Path

import moto
import pytest

from tandemn.placement.catalog.gpus import gpus
from tandemn.placement.catalog.offers import aws_vcpus, money, table_offers
from tandemn.placement.catalog.skypilot import load_offers, read_catalogs, read_vms
from tandemn.protocol.replicas import Market

VMS = """InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,AvailabilityZone,Arch
g6.xlarge,L4,1.0,4.0,16.0,,0.8048,0.31,us-east-1,us-east-1a,x86_64
g6.xlarge,L4,1.0,4.0,16.0,,0.8048,0.29,us-east-1,us-east-1b,x86_64
g6.xlarge,L4,1.0,4.0,16.0,,0.9,,eu-west-1,eu-west-1a,x86_64
p5.48xlarge,H100,8.0,192.0,2048.0,,,0.0,us-east-1,us-east-1a,x86_64
g6f.large,L4,0.125,2.0,8.0,,0.2,0.06,us-east-1,us-east-1a,x86_64
inf2.xlarge,Inferentia2,1.0,4.0,16.0,,0.7,0.2,us-east-1,us-east-1a,x86_64
m5.large,,,2.0,8.0,,0.096,0.04,us-east-1,us-east-1a,x86_64
"""


@pytest.fixture
def catalogs(tmp_path):
    for version, text in (("v7", "broken"), ("v8", VMS)):
        folder = tmp_path / version / "aws"
        folder.mkdir(parents=True)
        (folder / "vms.csv").write_text(text)
        os.utime(folder / "vms.csv", (1_760_000_000, 1_760_000_000))
    return tmp_path


def test_table_is_dated_and_never_free():
    for offer in table_offers():
        assert offer.gpu in gpus()
        if offer.usd_per_hour is None:
            assert offer.source == "price not known"
        else:
            assert offer.usd_per_hour > 0
            assert isinstance(offer.usd_per_hour, Decimal)
            assert offer.source
            assert offer.as_of


@pytest.mark.parametrize(
    ("text", "price"),
    [
        ("1.5", Decimal("1.5")),
        ("0", None),
        ("0.0", None),
        ("", None),
        (None, None),
        ("nan", None),
        ("-1", None),
        ("x", None),
    ],
)
def test_an_unknown_price_is_unknown(text, price):
    assert money(text) == price


def test_skypilot_catalog_replaces_the_table_of_its_clouds(catalogs):
    offers = load_offers(catalogs)
    aws = [offer for offer in offers if offer.provider == "aws"]
    assert {offer.source for offer in aws} == {"SkyPilot catalog"}
    assert {offer.as_of for offer in aws} == {"2025-10-09"}
    assert any(offer.market is Market.SERVERLESS for offer in offers)
    assert {offer.gpu for offer in aws} == {"L4", "H100"}


def test_spot_is_by_zone_on_demand_by_region(catalogs):
    offers = [offer for offer in load_offers(catalogs) if offer.instance_type == "g6.xlarge"]
    spot = {offer.zone: offer.usd_per_hour for offer in offers if offer.market is Market.SPOT}
    assert spot == {"us-east-1a": Decimal("0.31"), "us-east-1b": Decimal("0.29"), "eu-west-1a": None}
    on_demand = {offer.region: offer.usd_per_hour for offer in offers if offer.market is Market.ON_DEMAND}
    assert on_demand == {"us-east-1": Decimal("0.8048"), "eu-west-1": Decimal("0.9")}


def test_unknown_and_zero_prices_of_a_catalog_are_unknown(catalogs):
    h100 = [offer for offer in load_offers(catalogs) if offer.gpu == "H100" and offer.provider == "aws"]
    assert [offer.usd_per_hour for offer in h100] == [None, None]
    assert {offer.quota_family for offer in h100} == {"P"}


def test_a_catalog_that_cannot_be_read_yields_the_table(tmp_path):
    folder = tmp_path / "v8" / "aws"
    folder.mkdir(parents=True)
    (folder / "vms.csv").write_bytes(b"\xff\xfe\x00")
    assert load_offers(tmp_path) == load_offers(None)
    assert read_vms(tmp_path / "none.csv", provider="aws") == []


def test_vcpus_of_the_table():
    assert aws_vcpus("g5.2xlarge") == 8
    assert aws_vcpus("nothing") == 0


def rows(name):
    with resources.files("tandemn.placement.catalog").joinpath(name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def aws_says():
    """What AWS answers to DescribeInstanceTypes, as moto carries it."""
    path = Path(moto.__file__).parent / "ec2" / "resources" / "instance_types.json.gz"
    return json.loads(gzip.decompress(path.read_bytes()))


def test_counts_are_those_of_the_second_source(aws_says):
    """Every row that says so is compared again with what it names, figure by figure."""
    compared = 0
    for row in rows("aws_instances.csv"):
        if not row["checked"]:
            continue
        told = aws_says[row["instance_type"]]
        gpus_told = sum(each["Count"] for each in told["GpuInfo"]["Gpus"])
        assert int(row["gpus"]) == gpus_told, row
        assert int(row["vcpus"]) == told["VCpuInfo"]["DefaultVCpus"], row
        assert int(row["ram_gib"]) * 1024 == told["MemoryInfo"]["SizeInMiB"], row
        assert row["arch"] in told["ProcessorInfo"]["SupportedArchitectures"], row
        of_card = told["GpuInfo"]["Gpus"][0]["MemoryInfo"]["SizeInMiB"] / 1024
        # AWS tells the card's memory, CUDA what is left of it after ECC and the driver: up to a tenth less.
        assert 0.9 * of_card < gpus()[row["gpu"]].memory_gib <= 1.001 * of_card, row
        compared += 1
    assert compared >= 60


def test_rows_say_where_they_are_from_and_when_they_were_checked():
    for row in (*rows("aws_instances.csv"), *rows("aws_prices.csv")):
        assert row["source"], row
        assert row["as_of"], row
        assert bool(row["checked"]) == bool(row["checked_on"]), row
        if row["checked_on"]:
            assert date.fromisoformat(row["checked_on"]) >= date(2026, 11, 1), row
            assert row["checked"] != row["source"], row


def test_a_price_of_a_known_instance_stands_once():
    names = {row["instance_type"] for row in rows("aws_instances.csv")}
    seen = [(row["instance_type"], row["region"], row["market"]) for row in rows("aws_prices.csv")]
    assert len(seen) == len(set(seen))
    assert {name for name, _, _ in seen} <= names


def test_spot_is_cheaper_than_on_demand_and_more_gpus_are_dearer():
    priced = [o for o in table_offers() if o.usd_per_hour is not None]
    prices = {(o.instance_type, o.region, o.market): o.usd_per_hour or Decimal(0) for o in priced}
    for (name, region, market), price in prices.items():
        dear = prices.get((name, region, Market.ON_DEMAND))
        assert market is not Market.SPOT or dear is None or price < dear
    by_size = {(o.instance_type.split(".")[0], o.region, o.market, o.gpus): o.usd_per_hour for o in priced}
    for (family, region, market, count), price_of_fewer in by_size.items():
        of_eight = by_size.get((family, region, market, 8))
        if of_eight is not None and price_of_fewer is not None and count < 8:
            assert price_of_fewer < of_eight


def test_a_live_price_that_the_table_has_too_is_confirmed(catalogs):
    of_type = [offer for offer in load_offers(catalogs) if offer.instance_type == "g6.xlarge"]
    confirmed = {(offer.region, offer.market): bool(offer.checked) for offer in of_type}
    assert confirmed["us-east-1", Market.ON_DEMAND]
    assert not confirmed["eu-west-1", Market.ON_DEMAND]
    assert not confirmed["us-east-1", Market.SPOT]


def test_zone_ids_become_the_accounts_own_names(tmp_path):
    folder = tmp_path / "v8" / "aws"
    folder.mkdir(parents=True)
    (folder / "vms.csv").write_text(
        "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,AvailabilityZone,Arch\n"
        "g6.xlarge,L4,1,4,16,,0.8,0.3,us-east-1,use1-az6,x86_64\n"
        "g6.xlarge,L4,1,4,16,,0.8,0.4,us-east-1,use1-az9,x86_64\n"
    )
    spot = [offer.zone for offer in read_catalogs(tmp_path) if offer.market is Market.SPOT]
    assert spot == ["use1-az6", "use1-az9"]
    (folder / "az_mappings-1234.csv").write_text(
        "AvailabilityZoneName,AvailabilityZone\nus-east-1a,use1-az6\n"
    )
    spot = [offer.zone for offer in read_catalogs(tmp_path) if offer.market is Market.SPOT]
    assert spot == ["us-east-1a", "use1-az9"]
