"""What a router tells is written down once, however often and in whatever pieces it is read."""

from __future__ import annotations

from tandemn.control.store import meters
from tandemn.control.store.meters import Life
from tandemn.protocol.router import MeterPage

LIFE = Life(service_name="chat", created_at=1.5)


def period(start, end, peak=1, number=1, backend="modal"):
    return {
        "backend": backend,
        "start": start,
        "end": end,
        "peak": peak,
        "inflight_s": peak * (end - start),
        "requests": peak,
        "number": number,
    }


def page(*periods, series="a", requests=0, next_number=1, complete_from=0, under_way=()):
    return MeterPage.model_validate(
        {
            "series": series,
            "backends": [
                {
                    "name": "modal",
                    "requests": requests,
                    "completion_tokens": 5,
                    "estimated_completion_tokens": 2,
                    "inflight_s": {"1": 4.0, "3": 2.0},
                    "failures": 0,
                }
            ],
            "periods": periods,
            "next": next_number,
            "complete_from": complete_from,
            "under_way": under_way,
        }
    )


def take(database, each, since=0, now=100.0):
    database.run_sync(meters.take, LIFE, each, since=since, now=now)


def read(database):
    return database.run_sync(meters.read, LIFE)


def spans(database):
    return [(each.start, each.end, each.peak) for each in read(database).periods.get("modal", ())]


def test_a_page_is_written_down_and_read_again(database):
    assert read(database).read_at is None
    take(database, page(period(0, 10, 3), requests=3, next_number=2))
    found = read(database)
    assert spans(database) == [(0, 10, 3)]
    (total,) = found.totals
    assert (total.requests, total.completion_tokens, total.estimated_completion_tokens) == (3, 7, 2)
    assert total.inflight_s == ((1, 4.0), (3, 2.0))
    assert (found.read_at, found.is_complete) == (100.0, True)
    assert database.run_sync(meters.latest_series, LIFE) == ("a", 2)


def test_a_period_under_way_is_replaced_by_what_becomes_of_it(database):
    take(database, page(under_way=[period(0, 4, 1, 0)]))
    take(database, page(under_way=[period(0, 7, 2, 0)]))
    assert spans(database) == [(0, 7, 2)]
    take(database, page(period(0, 10, 2), next_number=2))
    assert spans(database) == [(0, 10, 2)]


def test_a_killed_router_tells_periods_again_under_other_numbers(database):
    take(database, page(period(0, 10), period(10, 20, number=2), requests=9, next_number=3))
    # Its last save was older: one is told again, shorter, under a higher number.
    take(database, page(period(10, 15, number=1_000_003), next_number=1_000_004, requests=8), since=3)
    assert spans(database) == [(0, 10, 1), (10, 20, 1)]


def test_totals_that_begin_anew_are_another_series(database):
    take(database, page(period(0, 10), requests=9, next_number=2))
    take(database, page(period(50, 60), series="b", requests=4, next_number=2), now=200.0)
    assert sum(each.requests for each in read(database).totals) == 13
    assert spans(database) == [(0, 10, 1), (50, 60, 1)]
    assert database.run_sync(meters.latest_series, LIFE) == ("b", 2)


def test_periods_that_were_dropped_unread_are_known_to_be_missing(database):
    take(database, page(period(0, 10, number=7), next_number=8, complete_from=5))
    assert not read(database).is_complete
    # For good: what is missing does not come back.
    take(database, page(next_number=8, complete_from=5), since=8)
    assert not read(database).is_complete


def test_a_long_log_is_shortened_and_loses_no_container(database, monkeypatch):
    monkeypatch.setattr(meters, "PERIODS_KEPT", 10)
    for start in range(0, 600, 10):
        take(database, page(period(float(start), start + 9.0, 1 + start % 3), next_number=2))
    found = spans(database)
    assert len(found) <= 20
    assert found[0][0] == 0
    assert found[-1][1] == 599
    assert sum(each.requests for each in read(database).periods["modal"]) == sum(
        1 + start % 3 for start in range(0, 600, 10)
    )


def test_another_deployment_of_that_name_has_its_own_meter(database):
    take(database, page(period(0, 10), requests=9, next_number=2))
    later = database.run_sync(meters.read, Life(service_name="chat", created_at=99.0))
    assert later.totals == ()
