"""Token buckets as a function of time: no clock is waited for."""

from hypothesis import given
from hypothesis import strategies as st

from tandemn.control.access.rates import Bucket, Buckets, Rate, take

RATE = Rate(per_s=10.0, burst=5.0)


def test_a_burst_is_free_and_then_the_rate_holds():
    bucket = None
    for _ in range(5):
        taken = take(bucket, RATE, 100.0)
        assert taken.wait_s == 0
        bucket = taken.bucket
    refused = take(bucket, RATE, 100.0)
    assert refused.wait_s == 0.1
    assert take(refused.bucket, RATE, 100.11).wait_s == 0
    # A rest fills it up to the burst, not beyond.
    assert take(bucket, RATE, 1e6).bucket.tokens == 4.0


def test_a_clock_that_is_set_back_gives_and_takes_nothing():
    bucket = Bucket(tokens=2.5, at=100.0)
    assert take(bucket, RATE, 50.0).bucket == Bucket(tokens=1.5, at=50.0)


@given(
    st.lists(st.floats(0, 0.5), max_size=200),
    st.floats(0.5, 50),
    st.floats(1, 20),
)
def test_never_more_than_burst_and_rate_allow(pauses, per_s, burst):
    rate, now, bucket, allowed = Rate(per_s=per_s, burst=burst), 0.0, None, 0
    for pause in pauses:
        now += pause
        taken = take(bucket, rate, now)
        bucket = taken.bucket
        allowed += taken.wait_s == 0
        if taken.wait_s:
            assert take(bucket, rate, now + taken.wait_s + 1e-6).wait_s == 0
    assert allowed <= burst + now * per_s + 1e-6


def test_a_bucket_each_and_bounded_memory():
    buckets = Buckets(Rate(per_s=1.0, burst=1.0), kept=3)
    assert [buckets.take(name, 0.0) for name in "aabb"] == [0, 1.0, 0, 1.0]
    for name in "cdef":
        buckets.take(name, 0.0)
    assert len(buckets._buckets) == 3
    assert buckets.wait("a", 0.0) == 0  # forgotten: full again
    assert buckets.wait("f", 0.0) == 1.0
