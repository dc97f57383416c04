"""When a callback is tried again, and when not."""

from __future__ import annotations

import pytest

from tandemn.koi.delivery import BACKOFF_S, REFUSALS, Again, Drop, after_failure

NOW = 1000.0


def verdict(tries, *, age=0.0, is_refused=False):
    return after_failure(tries=tries, emitted_at=NOW - age, now=NOW, keep_s=3600, is_refused=is_refused)


def test_the_waits_grow_to_a_limit():
    waits = [verdict(tries).not_before - NOW for tries in (1, 2, 3, 6, 7, 100, 10_000)]
    assert waits == [1.0, 2.0, 4.0, 32.0, BACKOFF_S[1], BACKOFF_S[1], BACKOFF_S[1]]


@pytest.mark.parametrize(
    ("tries", "age", "is_refused", "kept"),
    [
        (1, 0, False, True),
        (10_000, 3599, False, True),
        (1, 3600, False, False),
        (REFUSALS - 1, 0, True, True),
        (REFUSALS, 0, True, False),
        (REFUSALS, 0, False, True),
    ],
)
def test_what_is_kept_and_what_is_dropped(tries, age, is_refused, kept):
    found = verdict(tries, age=age, is_refused=is_refused)
    assert isinstance(found, Again if kept else Drop)
    if isinstance(found, Drop):
        assert found.reason
