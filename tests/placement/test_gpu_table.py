from decimal import Decimal

import pytest

from tandemn.errors import InvalidInput, NotFound
from tandemn.placement.catalog.offers import table_offers
from tandemn.placement.gpu_table import show_gpus, to_json
from tandemn.protocol.replicas import Market


def test_one_row_per_gpu_provider_and_market_cheapest_first():
    rows = show_gpus(table_offers())
    assert len({(row.gpu, row.provider, row.market) for row in rows}) == len(rows)
    l4 = [row.usd_per_gpu_hour for row in rows if row.gpu == "L4"]
    known = [price for price in l4 if price is not None]
    assert known == sorted(known)


def test_unknown_prices_are_shown_last_and_as_null():
    rows = show_gpus(table_offers(), gpu="T4g")
    assert rows[-1].usd_per_gpu_hour is None
    assert to_json(rows)[-1]["usd_per_gpu_hour"] is None


def test_spot_is_compared_with_on_demand():
    (row,) = show_gpus(table_offers(), gpu="H200", provider="aws", market=Market.SPOT)
    assert row.usd_per_gpu_hour == Decimal("1.4699")
    assert row.saves == pytest.approx(1 - 11.759 / 63.296, abs=1e-3)


def test_every_place_of_one_gpu():
    few = show_gpus(table_offers(), gpu="L4")
    many = show_gpus(table_offers(), gpu="L4", every_offer=True)
    assert len(many) > len(few)
    assert {row.gpu for row in many} == {"L4"}


def test_unknown_names():
    with pytest.raises(NotFound, match="L40S"):
        show_gpus(table_offers(), gpu="L40X")
    with pytest.raises(InvalidInput, match="modal"):
        show_gpus(table_offers(), provider="nocloud")
