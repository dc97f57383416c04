import os
from decimal import Decimal

import pytest

from tandemn.placement.catalog.gpus import gpus
from tandemn.placement.catalog.offers import aws_vcpus, money, table_offers
from tandemn.placement.catalog.skypilot import load_offers, read_vms
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
