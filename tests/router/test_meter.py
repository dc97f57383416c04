"""Totals and busy periods: every second of use is in exactly one period, whatever happens in between."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import pytest

from tandemn.errors import Conflict
from tandemn.router import periods as periods_module
from tandemn.router.meter import Meter
from tandemn.router.meter_page import meter_page
from tandemn.router.periods import NUMBERS_SKIPPED, PERIOD_GAP_S, PERIOD_S

UNIX = 1_800_000_000.0


def new_meter():
    meter = Meter(started_at=UNIX)
    meter.periods.unix_offset_s = UNIX
    return meter


def read(meter, now, since=0):
    return json.loads(meter_page(meter, {"modal": "serverless"}, since=since, now=now))


def periods_of(page):
    return [
        (p["start"] - UNIX, p["end"] - UNIX, p["busy_s"], p["inflight_s"], p["peak"], p["requests"])
        for p in page["periods"]
    ]


def test_concurrent_requests_are_one_period_and_short_pauses_do_not_end_it():
    meter = new_meter()
    modal = meter.of("modal", 0.0)
    modal.begin(1.0)
    modal.begin(2.0)
    modal.end(3.0)
    modal.end(4.0)
    modal.begin(4.0 + PERIOD_GAP_S)
    modal.end(6.0)
    modal.begin(8.0)
    page = read(meter, 9.0)
    assert periods_of(page) == [(1.0, 6.0, 4.0, 5.0, 2, 3)]
    (under_way,) = page["under_way"]
    assert (under_way["start"], under_way["end"], under_way["peak"]) == (UNIX + 8, UNIX + 9, 1)
    (backend,) = page["backends"]
    assert backend["inflight_s"] == {"1": 4.0, "2": 1.0}
    assert backend["busy_s"] == 5.0
    assert (backend["market"], backend["requests"], backend["inflight"]) == ("serverless", 4, 1)


def test_a_reader_goes_on_where_it_left_off():
    meter = new_meter()
    modal = meter.of("modal", 0.0)
    modal.begin(0.0)
    modal.end(1.0)
    first = read(meter, 5.0)
    assert [p["number"] for p in first["periods"]] == [1]
    assert read(meter, 6.0, first["next"])["periods"] == []
    modal.begin(7.0)
    modal.end(8.0)
    second = read(meter, 20.0, first["next"])
    assert periods_of(second) == [(7.0, 8.0, 1.0, 1.0, 1, 1)]
    assert len(read(meter, 21.0)["periods"]) == 2
    assert second["under_way"] == []


def test_long_use_is_cut_so_that_its_peaks_can_be_told_apart():
    meter = new_meter()
    modal = meter.of("modal", 0.0)
    modal.begin(0.0)
    for n in range(5):
        modal.begin(1.0 + n)
    for n in range(5):
        modal.end(7.0 + n / 10)
    meter.settle(PERIOD_S + 5)
    meter.settle(2 * PERIOD_S + 10)
    found = periods_of(read(meter, 31.0))
    assert [(p[0], p[1], p[4], p[5]) for p in found] == [(0.0, 15.0, 6, 6), (15.0, 30.0, 1, 0)]


def test_periods_hold_all_use_and_never_overlap(subtests):
    """Checked against a plain simulation of random traffic, with readings, and a kill and restart in between."""
    for seed in range(20):
        with subtests.test(seed=seed):
            check_random_traffic(random.Random(seed))


def check_random_traffic(chance):
    meter = new_meter()
    now, inflight, busy_s, total_s, next_ = 0.0, 0, 0.0, 0.0, 0
    told: list[dict[str, Any]] = []
    for _ in range(400):
        step = chance.choice((0.01, 0.3, 0.9, 1.5, 4.0))
        now += step
        busy_s += step * bool(inflight)
        total_s += step * inflight
        modal = meter.of("modal", now)
        if inflight and chance.random() < 0.5:
            modal.end(now)
            inflight -= 1
        elif chance.random() < 0.5:
            modal.begin(now)
            inflight += 1
        if chance.random() < 0.1:
            page = read(meter, now, next_)
            next_, told = page["next"], told + page["periods"]
        if chance.random() < 0.02:
            saved = meter.encode(now)
            meter, before = new_meter(), meter
            meter.restore(saved, now)
            assert meter.series == before.series
            inflight = 0
    while inflight:
        meter.of("modal", now).end(now)
        inflight -= 1
    page = read(meter, now + 10, next_)
    told += page["periods"]
    assert page["under_way"] == []
    numbers = [p["number"] for p in told]
    assert numbers == sorted(set(numbers))
    assert sum(p["busy_s"] for p in told) == pytest.approx(busy_s, abs=0.001 * len(told))
    assert sum(p["inflight_s"] for p in told) == pytest.approx(total_s, abs=0.001 * len(told))
    assert sum(p["requests"] for p in told) == page["backends"][0]["requests"]
    assert page["backends"][0]["busy_s"] == pytest.approx(busy_s, abs=0.01)
    for one, other in itertools.pairwise(told):
        assert one["end"] <= other["start"] + 0.001
    assert all(p["busy_s"] <= p["end"] - p["start"] + 0.002 for p in told)


def test_a_killed_router_does_not_tell_two_periods_under_one_number():
    meter = new_meter()
    modal = meter.of("modal", 0.0)
    modal.begin(0.0)
    saved = meter.encode(2.0)
    modal.end(3.0)
    told = read(meter, 9.0)
    assert [p["number"] for p in told["periods"]] == [1]
    again = new_meter()
    again.restore(saved, 0.0)
    # What was under way when it was saved ends there; the reader that has heard of it already is told again
    # under a number of its own, and knows by the start that it is the same.
    (same,) = read(again, 10.0, told["next"])["periods"]
    assert same["number"] > NUMBERS_SKIPPED
    assert (same["start"], same["end"]) == (UNIX, UNIX + 2)


def test_the_log_is_bounded_and_says_what_it_lacks(monkeypatch):
    monkeypatch.setattr(periods_module, "MAX_PERIODS", 10)
    monkeypatch.setattr(periods_module, "MAX_PERIODS_AT_ONCE", 4)
    meter = new_meter()
    modal = meter.of("modal", 0.0)
    for n in range(15):
        modal.begin(10.0 * n)
        modal.end(10.0 * n + 1)
    page = read(meter, 150.0)
    assert page["complete_from"] == 6
    numbers = [p["number"] for p in page["periods"]]
    while page["periods"]:
        page = read(meter, 150.0, page["next"])
        numbers += [p["number"] for p in page["periods"]]
    assert numbers == list(range(6, 16))


def test_a_state_file_of_nothing_known_stops_the_router():
    for content in (
        b"",
        b"{}",
        b'{"version":1}',
        b"[]",
        new_meter().encode(0.0).replace(b'"periods"', b'"x"'),
    ):
        with pytest.raises(Conflict, match="cannot be read"):
            new_meter().restore(content, 0.0)
