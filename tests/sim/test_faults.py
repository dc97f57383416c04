"""Whole jobs under seeded faults; a failing seed is in the message and reproduces with `TANDEMN_SIM_SEED`."""

from __future__ import annotations

import os

import pytest
from tests.sim.world import JOB, Settings, World

from tandemn.protocol.jobs import JobState

#: `make sim` runs thousands.
SEEDS = int(os.environ.get("TANDEMN_SIM_SEEDS", "200"))
FIRST = int(os.environ.get("TANDEMN_SIM_SEED", "0"))
#: Seeds run together in one test: a test each would be more noise than news.
BATCH = 20


def check(world: World) -> None:
    """I1, I2, I3 and I6, on a world that has ended."""
    say = f"seed {world.seed}"
    rows = world.table.rows(JOB)
    if world.outcome is JobState.COMPLETED:
        assert all(row.done for row in rows), say
    # The assembly: of a chunk that is not done, what was stored is kept, and the rest become error lines.
    lines = 0
    for row in rows:
        stored = {request for chunk, request in world.stored if chunk == row.chunk}
        assert stored <= set(range(row.requests)), say
        unanswered = 0 if row.done else row.requests - len(stored)
        lines += (len(world.objects[row.chunk, row.token or ""]) if row.done else len(stored)) + unanswered
        assert row.done or world.outcome is JobState.CANCELLED, say
        if row.done:
            assert row.token is not None, say
            assert world.objects[row.chunk, row.token] == frozenset(range(row.requests)), say
    assert lines == sum(row.requests for row in rows), say
    assert not any(machine.alive for machine in world.machines.values()), f"{say}: something still runs"


def settings_of(seed: int) -> Settings:
    """Worlds of all sizes: mostly small, every twentieth with hundreds of replicas."""
    if seed % 20 == 19:
        return Settings(replicas=200, chunks=300, requests=6)
    if seed % 3 == 0:
        return Settings(replicas=4, chunks=25, kill_rate=0.05, flush_all_rate=0.02, restart_rate=0.03)
    return Settings(replicas=12, chunks=40, requests=12, poison=seed % 4)


def disturb(world: World) -> None:
    """What people do meanwhile."""
    seed = world.seed
    if seed % 7 == 3:
        world.at(60, world.cancel)
    if seed % 5 == 1:
        world.at(40, world.kill_any)
    if seed % 4 == 2:
        world.at(35, world.swap)
    if seed % 6 == 4:
        world.at(30, world.add)
        world.at(50, world.kill_any)


@pytest.mark.parametrize("first", range(FIRST, FIRST + SEEDS, BATCH))
def test_every_request_is_answered_once_whatever_dies(first):
    faults = 0
    for seed in range(first, min(first + BATCH, FIRST + SEEDS)):
        world = World(seed, settings_of(seed))
        disturb(world)
        world.go()
        check(world)
        faults += sum(world.counts.values())
    assert faults > 0, "a world in which nothing goes wrong shows nothing"


def test_graceful_stops_alone_compute_nothing_twice():
    settings = Settings(
        kill_rate=0,
        pause_rate=0,
        lost_reply=0,
        lost_call=0,
        restart_rate=0,
        flush_all_rate=0,
        notice_rate=0.05,
    )
    for seed in range(10):
        world = World(seed, settings)
        world.go()
        check(world)
        assert max(world.computed.values()) == 1, f"seed {seed}"


def test_the_same_seed_is_the_same_world():
    first, second = World(7, settings_of(7)), World(7, settings_of(7))
    first.go()
    second.go()
    assert (first.now, first.computed, first.counts) == (second.now, second.computed, second.counts)
