"""Which bills are read, and when; the provider is the real RunPod adapter against its fake elsewhere."""

from __future__ import annotations

import pytest
from tests.ledger.test_deployment_cost import Event, billed, planned, spot

from tandemn.control.deployment_cost import LoggedLife
from tandemn.control.reconcilers.billing import due
from tandemn.control.store.meters import Life

HOUR = 3600.0


def life(*events):
    return LoggedLife(life=Life(service_name="chat", created_at=0.0), owner="local", events=events)


def made(at, remote_id="app-1"):
    data = {"backend": "modal", "state": "ready", "remote_name": "tandemn-chat", "remote_id": remote_id}
    return Event(at, "backend_state", {**data, "place": None})


def gone(at):
    return Event(at, "backend_state", {"backend": "modal", "state": "deleted", "remote_name": "tandemn-chat"})


START = planned(at=1800.0)


@pytest.mark.parametrize(
    ("events", "now", "periods"),
    [
        # An hour is on the bill one hour after its end.
        ([START, made(1900.0)], 1.9 * HOUR, []),
        ([START, made(1900.0)], 2.1 * HOUR, [(0.0, HOUR)]),
        # The next reading reaches further, from the same start.
        ([START, made(1900.0), billed(2.1 * HOUR, 0.0, HOUR, "1")], 2.5 * HOUR, []),
        ([START, made(1900.0), billed(2.1 * HOUR, 0.0, HOUR, "1")], 3.1 * HOUR, [(0.0, 2 * HOUR)]),
        # What is gone is billed until the hour in which it went.
        ([START, made(1900.0), gone(1.2 * HOUR)], 9 * HOUR, [(0.0, 2 * HOUR)]),
        ([START, made(1900.0), gone(1.2 * HOUR), billed(9 * HOUR, 0.0, 2 * HOUR, "1")], 99 * HOUR, []),
        # One that has no bill is not asked for ever.
        ([START, made(1900.0), gone(1.2 * HOUR)], 70 * HOUR, [(0.0, 2 * HOUR)]),
        ([START, made(1900.0), gone(1.2 * HOUR)], 74 * HOUR, []),
        # Never made: no bill. Spot has no API for it.
        ([START], 9 * HOUR, []),
        ([spot(1800.0)], 9 * HOUR, []),
    ],
)
def test_due(events, now, periods):
    found = list(due(life(*events), now))
    assert [(each.start, each.end) for each in found] == periods
    assert {each.remote.remote_id for each in found} <= {"app-1"}
