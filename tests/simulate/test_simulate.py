import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.simulate.traces import write_traces

from tandemn.errors import InvalidInput, NotFound
from tandemn.simulate.clairvoyant import least_usd
from tandemn.simulate.compare import ALL_ZONES, compare, summarise, to_json
from tandemn.simulate.policies import ON_DEMAND, Greedy, Pacing, UniformProgress
from tandemn.simulate.run import Job, run
from tandemn.simulate.traces import Traces, read_traces

TICK = 195.0


def traces_of(*zones):
    return Traces(
        zones=tuple(f"z{i}" for i in range(len(zones))), tick_s=TICK, available=np.array(zones, dtype=bool)
    )


def job(ticks=20, factor=2.0, changeover=300.0):
    return Job(
        work=ticks * TICK,
        whole=ticks * TICK * factor + changeover,
        changeover=changeover,
        spot_usd=0.3,
        on_demand_usd=1.0,
    )


def bound(traces, task):
    return float(least_usd(traces, [0], task)[0])


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    traces = read_traces(write_traces(tmp_path_factory.mktemp("traces")))
    return list(compare(traces, job_hours=(2.0, 12.0), factors=(1.1, 1.5, 3.0), starts=6))


def test_no_deadline_is_missed_and_pacing_beats_both_published_policies(rows):
    summary = summarise(rows)
    assert len(rows) == 4 * 2 * 3
    assert summary.missed == 0
    assert summary.worst_over_better is not None
    assert summary.worst_over_better < 0.05
    assert summary.cost_over_clairvoyant_all_zones is not None
    assert summary.cost_over_clairvoyant_all_zones < 1.15
    assert sum(row.tandemn_usd for row in rows) < sum(min(row.greedy_usd, row.uniform_usd) for row in rows)


def test_nobody_beats_the_bound(rows):
    for row in rows:
        assert row.clairvoyant_usd <= min(row.tandemn_usd, row.greedy_usd, row.uniform_usd) + 1e-9
        assert row.tandemn_usd <= row.on_demand_usd * 1.3


def test_json_is_plain(rows):
    assert json.loads(json.dumps(to_json(rows)))["summary"]["rows"] == len(rows)
    assert any(row["zones"] == ALL_ZONES for row in to_json(rows)["rows"])


def test_always_open_spot_costs_one_start_and_the_work():
    traces = traces_of([1] * 100)
    outcome = run(traces, 0, job(), Pacing())
    assert outcome.usd == pytest.approx((20 * TICK + 300) / 3600 * 0.3)
    assert outcome.launches == 1
    assert bound(traces, job()) == pytest.approx(outcome.usd, rel=0.03)


def test_never_open_spot_costs_on_demand():
    outcome = run(traces_of([0] * 100), 0, job(), Pacing())
    assert outcome.usd == pytest.approx((20 * TICK + 300) / 3600)
    assert not outcome.is_missed


def test_the_bound_waits_for_spot_that_will_come():
    traces = traces_of([0] * 15 + [1] * 85)
    assert bound(traces, job(factor=3.0)) < 0.35 * bound(traces_of([0] * 100), job(factor=3.0))


def test_an_impossible_job_has_no_bound():
    assert bound(traces_of([1] * 100), job(factor=0.5)) == np.inf


@settings(max_examples=60)
@given(
    zones=st.lists(st.lists(st.integers(0, 1), min_size=120, max_size=120), min_size=1, max_size=3),
    factor=st.floats(1.1, 4.0),
)
def test_every_policy_is_in_time_on_any_trace_and_above_the_bound(zones, factor):
    traces, task = traces_of(*zones), job(factor=factor)
    least = bound(traces, task)
    outcome = run(traces, 0, task, Pacing())
    assert not outcome.is_missed
    assert outcome.usd >= least - 1e-9
    for policy in (Greedy(), UniformProgress()):
        assert run(traces, 0, task, policy).usd >= least - 1e-9


def test_a_trace_that_ends_counts_as_no_spot():
    outcome = run(traces_of([1] * 5), 0, job(), Pacing())
    assert outcome.on_demand_s > 0
    assert not outcome.is_missed


def test_jobs_longer_than_the_trace_have_no_row(tmp_path):
    traces = read_traces(write_traces(tmp_path / "t", ticks=200))
    assert list(compare(traces, job_hours=(48.0,), factors=(2.0,), starts=2)) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"metadata": {"gap_seconds": 0}, "data": [1]}',
        '{"metadata": {"gap_seconds": 5}, "data": []}',
    ],
)
def test_broken_traces(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InvalidInput):
        read_traces(tmp_path)


def test_no_traces(tmp_path):
    with pytest.raises(NotFound):
        read_traces(tmp_path)
    with pytest.raises(NotFound):
        read_traces(tmp_path / "none")


def test_different_ticks(tmp_path):
    for name, gap in (("a", 60), ("b", 61)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"metadata": {"gap_seconds": gap}, "data": [1, 0]}))
    with pytest.raises(InvalidInput):
        read_traces(tmp_path)


def test_on_demand_is_no_zone():
    assert ON_DEMAND < 0
