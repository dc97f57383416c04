import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandemn.batch.measured_rate import RISES_KEPT, RateMeter, Said, bounded


def hear(meter, times, count, *, name="r0", in_flight=0):
    for at in times:
        meter.hear({name: Said(at=at, done=count(at), in_flight=in_flight)})


def test_a_steady_stream():
    meter = RateMeter()
    hear(meter, range(5, 300, 5), lambda at: 3 * at)
    assert meter.requests_per_s(300.0) == pytest.approx(3.0)


def test_too_few_answers_are_no_measurement():
    meter = RateMeter()
    hear(meter, range(5, 60, 5), lambda at: at // 10)
    assert meter.requests_per_s(60.0) is None
    assert RateMeter().requests_per_s(0.0) is None


@pytest.mark.parametrize("beat", [3, 5, 7])
def test_bursts_are_measured_from_burst_to_burst_whenever_one_looks(beat):
    """64 answers together, once a minute; they are all one knows until the next 64."""
    meter = RateMeter()
    rates = []
    for at in range(beat, 1200, beat):
        meter.hear({"r0": Said(at=at, done=64 * (at // 60), in_flight=64)})
        if (rate := meter.requests_per_s(at)) is not None:
            rates.append(rate)
    assert len(rates) > 100
    assert max(rates) < 1.2 * 64 / 60
    assert min(rates) > 0.8 * 64 / 60


def test_a_burst_that_two_reports_share_is_not_taken_for_a_pace():
    meter = RateMeter()
    meter.hear({"r0": Said(at=60, done=30, in_flight=64)})
    meter.hear({"r0": Said(at=65, done=64, in_flight=64)})
    assert meter.requests_per_s(66) is None


def test_a_replica_that_is_stuck_has_slowed_down():
    meter = RateMeter()
    hear(meter, range(5, 100, 5), lambda at: 2 * at)
    assert meter.requests_per_s(100) == pytest.approx(2.0)
    assert (meter.requests_per_s(1000) or 0) < 0.3


def test_the_time_before_the_first_answer_is_not_part_of_the_pace():
    meter = RateMeter()
    hear(meter, range(5, 300, 5), lambda at: max(0, at - 200) * 4)
    assert meter.requests_per_s(300) == pytest.approx(4.0)


def test_replicas_that_are_gone_are_forgotten():
    meter = RateMeter()
    hear(meter, range(5, 100, 5), lambda at: 10 * at)
    hear(meter, range(100, 200, 5), lambda at: at, name="r1")
    assert meter.requests_per_s(200) == pytest.approx(1.0)


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 50)), max_size=80))
def test_it_is_bounded_and_never_negative(steps):
    meter, at, done = RateMeter(), 0.0, 0
    for wait, more in steps:
        at, done = at + wait, done + more
        meter.hear({"r0": Said(at=at, done=done)})
    rate = meter.requests_per_s(at)
    assert rate is None or rate > 0
    assert all(len(rises) <= RISES_KEPT for rises in meter._rises.values())


def test_a_plan_is_believed_until_what_is_seen_refutes_it():
    assert bounded(5.0, done=0, in_flight=0, worked_s=[]) == 5.0
    assert bounded(5.0, done=0, in_flight=4, worked_s=[1.0]) == 5.0
    assert bounded(5.0, done=6, in_flight=4, worked_s=[50.0, 50.0]) == pytest.approx(0.2)
