"""Which samples are kept, and what they tell."""

from __future__ import annotations

import itertools
import random

import pytest

from tandemn.control import series
from tandemn.control.series import POINTS, Keep, Standing, figures, keeps, points_of, thinned
from tandemn.protocol.replicas import EngineReading, GpuReading, Heartbeat, MachineReading

BEAT_S = 5.0


def lived(seconds, *, seed=0):
    """The moments that are kept of a replica that reported for so long, its beats a little irregular."""
    chance = random.Random(seed)
    kept: list[float] = []
    step_s, at = BEAT_S, 0.0
    while at < seconds:
        standing = Standing(count=len(kept), last_at=kept[-1], step_s=step_s) if kept else None
        decided = keeps(standing, at=at, beat_s=BEAT_S, is_last=False)
        if decided is not None:
            step_s = decided.step_s
            kept = [*kept[::2], at] if decided.thins else [*kept, at]
        at += BEAT_S * chance.uniform(0.97, 1.03)
    return kept, step_s


@pytest.mark.parametrize("hours", [0.4, 0.6, 5, 80])
def test_a_series_is_bounded_and_covers_the_whole_life(hours):
    kept, step_s = lived(hours * 3600)
    assert len(kept) <= POINTS
    assert len(kept) >= min(POINTS // 2, hours * 3600 / BEAT_S * 0.9)
    assert kept[0] == 0.0
    assert hours * 3600 - kept[-1] <= step_s + BEAT_S
    gaps = [after - before for before, after in itertools.pairwise(kept)]
    assert max(gaps) < 1.5 * step_s + BEAT_S


def test_a_short_job_keeps_every_heartbeat():
    kept, step_s = lived(600)
    assert step_s == BEAT_S
    assert len(kept) > 600 / BEAT_S * 0.95


def test_the_last_word_is_kept_before_its_time_and_once():
    standing = Standing(count=3, last_at=100.0, step_s=80.0)
    assert keeps(standing, at=105.0, beat_s=BEAT_S, is_last=False) is None
    assert keeps(standing, at=105.0, beat_s=BEAT_S, is_last=True) == Keep(step_s=80.0, thins=False)
    assert keeps(standing, at=100.0, beat_s=BEAT_S, is_last=True) is None


@pytest.mark.parametrize(("count", "most"), [(0, 5), (3, 5), (100, 7), (100, 2), (100, 1), (100, 0)])
def test_thinned_keeps_the_ends(count, most):
    points = list(range(count))
    told = list(thinned(points, most))
    assert len(told) == min(count, most)
    assert told == sorted(set(told))
    if most >= 2 and count:
        assert (told[0], told[-1]) == (0, count - 1)


def test_rates_are_means_over_the_step_and_none_where_a_runner_began_anew():
    samples = [
        (10.0, {"requests_done": 0, "output_tokens": 0}),
        (20.0, {"requests_done": 5, "output_tokens": 500}),
        (40.0, {"requests_done": 25, "output_tokens": 1500}),
        (50.0, {"requests_done": 1, "output_tokens": 10}),
    ]
    points = points_of(samples)
    assert [point.requests_per_s for point in points] == [None, 0.5, 1.0, None]
    assert [point.tokens_per_s for point in points] == [None, 50.0, 50.0, None]


def test_what_a_heartbeat_does_not_tell_is_absent():
    assert figures(Heartbeat(state="starting")) == {"requests_done": 0, "output_tokens": 0}
    machine = MachineReading(
        cpu_use=0.123456,
        memory_used_bytes=10,
        memory_total_bytes=20,
        gpus=[
            GpuReading(use=0.5, memory_used_bytes=3),
            GpuReading(use=1.0, memory_used_bytes=4),
            GpuReading(),
        ],
    )
    engine = EngineReading(running=3, waiting=0, ttft_s=0.25)
    told = figures(Heartbeat(state="running", engine=engine, machine=machine, requests_done=7))
    assert told == {
        "requests_done": 7,
        "output_tokens": 0,
        "running": 3,
        "waiting": 0,
        "ttft_s": 0.25,
        "cpu_use": 0.1235,
        "memory_used_bytes": 10,
        "gpu_use": 0.75,
        "gpu_memory_used_bytes": 7,
    }
    assert points_of([(1.0, told)])[0].kv_cache_use is None


def test_a_machine_without_gpus_tells_none():
    machine = MachineReading(cpu_use=0, memory_used_bytes=1, memory_total_bytes=2)
    assert series.gpu_use(machine) is None
    assert series.gpu_memory_used(machine) is None
