import itertools
import math

import numpy as np
import pytest

from tandemn.placement.solver import Unit, allocate, solve

KEYS = [("r1", "G", "spot"), ("r1", "P", "spot"), ("r2", "G", "spot")]


def random_instance(seed):
    rng = np.random.default_rng(seed)
    units = [
        Unit(
            usd_per_request=float(rng.uniform(0.5, 2.0)),
            usd_to_start=float(rng.uniform(0.0, 60.0)),
            capacity=float(rng.uniform(20.0, 120.0)) if rng.random() > 0.1 else 0.0,
            vcpus=int(rng.choice([4, 8, 48])),
            quota=KEYS[rng.integers(len(KEYS))] if rng.random() > 0.3 else None,
            limit=int(rng.integers(1, 5)),
        )
        for _ in range(int(rng.integers(1, 5)))
    ]
    quota = {key: int(rng.choice([0, 8, 24, 96, 200])) for key in KEYS if rng.random() > 0.3}
    return units, float(rng.uniform(30.0, 300.0)), quota


def allowed(units, counts, quota):
    return all(
        sum(n * unit.vcpus for unit, n in zip(units, counts, strict=True) if unit.quota == key) <= limit
        for key, limit in quota.items()
    )


def brute_force(units, requests, quota):
    best = math.inf
    for counts in itertools.product(*(range(unit.limit + 1) for unit in units)):
        if allowed(units, counts, quota):
            solution = allocate(units, dict(enumerate(counts)), requests)
            if solution is not None:
                best = min(best, solution.cost_usd)
    return best


@pytest.mark.parametrize("block", range(8))
def test_equals_brute_force_on_200_random_instances(block):
    for seed in range(block * 25, block * 25 + 25):
        units, requests, quota = random_instance(seed)
        expected = brute_force(units, requests, quota)
        solution = solve(units, requests, quota)
        found = math.inf if solution is None else solution.cost_usd
        assert found == pytest.approx(expected, rel=1e-5), f"seed {seed}"
        if solution is not None:
            counts = [0] * len(units)
            for choice in solution.choices:
                counts[choice.index] = choice.count
            assert allowed(units, counts, quota), f"seed {seed}"


def test_nothing_to_rent():
    assert solve([], 10, {}) is None


def test_quota_of_zero_moves_the_plan_elsewhere():
    def unit(cost, region):
        key = (region, "G", "spot")
        return Unit(usd_per_request=cost, usd_to_start=1.0, capacity=100.0, vcpus=4, quota=key)

    units = [unit(1.0, "near"), unit(1.5, "far")]
    near = solve(units, 100, {})
    far = solve(units, 100, {("near", "G", "spot"): 0})
    assert near is not None
    assert far is not None
    assert [choice.index for choice in near.choices] == [0]
    assert [choice.index for choice in far.choices] == [1]


def test_a_short_quota_makes_a_mix():
    def unit(cost, region):
        return Unit(
            usd_per_request=cost, usd_to_start=0.1, capacity=100.0, vcpus=4, quota=(region, "G", "spot")
        )

    solution = solve([unit(1.0, "near"), unit(1.5, "far")], 300, {("near", "G", "spot"): 8})
    assert solution is not None
    assert {choice.index: choice.count for choice in solution.choices} == {0: 2, 1: 1}
    assert math.fsum(choice.requests for choice in solution.choices) == pytest.approx(300)
