"""The afternoon of a deployment: metered cost against the truth that the provider kept; `make day` has the whole day."""

from __future__ import annotations

import pytest
from tests.process.conftest import built
from tests.process.day import Day, live_a_day, settings

pytestmark = pytest.mark.slow


def test_what_is_metered_is_what_was_lived():
    day = Day(hours=8, hour_s=5.0, begins=9)
    with built(**settings(day)) as house:
        figures = live_a_day(house, day)
    assert figures.requests > 100
    assert figures.failed == 0
    assert figures.preemptions >= 1
    assert 0 < figures.spot_share < 1
    assert figures.serverless_lived > 0
    # One per cent of the whole day (`make day`); a few ends that are some tenths late weigh more in a short one.
    assert abs(figures.off) <= 0.05, figures
