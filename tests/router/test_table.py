from __future__ import annotations

import json

import pytest

from tandemn.errors import InvalidInput
from tandemn.router.table import Market, Probe, read_table, write_table

GOOD = {"name": "spot", "market": "spot", "url": "http://10.0.0.1:8000/base"}


def read(*backends, **more):
    return read_table(json.dumps({"version": 1, "backends": list(backends), **more}).encode())


def test_a_table_survives_being_written():
    table = read(
        {**GOOD, "headers": {"Modal-Key": "k"}, "concurrency": 4, "replicas": 3}, limits={"silence_s": 5}
    )
    assert read_table(write_table(table)) == table
    (spot,) = table.backends
    assert (spot.market, spot.room, spot.probing) == (Market.SPOT, 12, Probe.DEMAND)


def test_a_serverless_backend_is_never_probed_and_may_start_slowly():
    (backend,) = read({**GOOD, "market": "serverless"}).backends
    assert backend.probing is Probe.NEVER
    assert backend.first_byte_limit_s > 300
    assert backend.room is None


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"market": "cheap"}, "$.backends[0].market"),
        ({"url": "ftp://x"}, "`url`"),
        ({"url": "http://x:99999"}, "$.backends[0]"),
        ({"url": "http://user@x"}, "`url`"),
        ({"url": "http://x/?q"}, "`url`"),
        ({"url": "http://x\r\nHost: y"}, "`url`"),
        ({"replicas": 0}, "$.backends[0].replicas"),
        ({"concurrency": "2"}, "$.backends[0].concurrency"),
        ({"headers": {"A B": "c"}}, "headers"),
        ({"headers": {"A": "c\r\nB: d"}}, "$.backends[0].headers"),
        ({"name": ""}, "$.backends[0].name"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_errors_name_the_key(change, key):
    with pytest.raises(InvalidInput) as caught:
        read({**GOOD, **change})
    assert caught.value.code == "invalid_routing_table"
    assert key in str(caught.value)


@pytest.mark.parametrize("keys", [[], ["a b"], [""], ["a\n"], "abc", ["k"] * 17])
def test_impossible_client_keys_are_refused(keys):
    assert read(GOOD, keys=["sk-1"]).keys == ("sk-1",)
    with pytest.raises(InvalidInput, match="keys"):
        read(GOOD, keys=keys)


def test_a_name_twice_another_version_and_no_json():
    with pytest.raises(InvalidInput, match="given twice"):
        read(GOOD, GOOD)
    with pytest.raises(InvalidInput, match="version"):
        read_table(b'{"version":2,"backends":[]}')
    with pytest.raises(InvalidInput, match="missing required field `backends`"):
        read_table(b'{"version":1}')
    with pytest.raises(InvalidInput, match="not JSON"):
        read_table(b"{")
    with pytest.raises(InvalidInput):
        read_table(b"[" * 100_000)
