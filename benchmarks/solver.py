"""How long a plan takes: 400 offers in 5 regions, and 3,000 candidate configurations.

python benchmarks/solver.py [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from decimal import Decimal

import numpy as np

from tandemn.placement.candidates import enumerate_candidates
from tandemn.placement.catalog.offers import Offer, table_offers
from tandemn.placement.models import shape_of
from tandemn.placement.plan import plan_job
from tandemn.placement.solver import Unit, solve
from tandemn.placement.throughput import RooflinePredictor
from tandemn.placement.workload import Lengths, Workload
from tandemn.protocol.replicas import Market

REGIONS = ("us-east-1", "us-east-2", "us-west-2", "eu-west-1", "ap-northeast-1")


def offers(count: int, seed: int = 1) -> list[Offer]:
    """As many offers as asked, in five regions, made of the table's instance types at random prices."""
    rng = np.random.default_rng(seed)
    known = [offer for offer in table_offers() if offer.market is Market.ON_DEMAND and offer.usd_per_hour]
    made = []
    for number in range(count):
        base = known[number % len(known)]
        region = REGIONS[number % len(REGIONS)]
        market = Market.SPOT if number % 3 else Market.ON_DEMAND
        share = float(rng.uniform(0.2, 0.7)) if market is Market.SPOT else float(rng.uniform(1.0, 1.4))
        made.append(
            Offer(
                provider="aws",
                region=region,
                zone=f"{region}{'abc'[number % 3]}-{number}",
                instance_type=base.instance_type,
                gpu=base.gpu,
                gpus=base.gpus,
                vcpus=base.vcpus,
                market=market,
                usd_per_hour=base.usd_per_hour and base.usd_per_hour * Decimal(f"{share:.4f}"),
                quota_family=base.quota_family,
                source="made up",
                as_of="2026",
            )
        )
    return made


def quotas() -> dict[tuple[str, str, str], int]:
    return {
        (region, family, market.value): vcpus
        for region in REGIONS
        for family, vcpus in (("G", 384), ("P", 192), ("P5", 192))
        for market in (Market.SPOT, Market.ON_DEMAND)
    }


def plan_400() -> tuple[float, int]:
    lengths = Lengths(mean=1000, p50=1000, p95=2000, largest=2000)
    work = Workload(requests=2_000_000, input_tokens=lengths, output_tokens=lengths, basis="made up")
    shape, rented, predictor = shape_of("Qwen/Qwen3-32B"), offers(400), RooflinePredictor()
    candidates, _ = enumerate_candidates(shape, work, rented, predictor)
    began = time.perf_counter()
    plan_job(shape, work, deadline_s=24 * 3600, offers=rented, quota=quotas(), predictor=predictor)
    return time.perf_counter() - began, len(candidates)


def solve_3000(seed: int) -> float:
    rng = np.random.default_rng(seed)
    limits = quotas()
    keys = sorted(limits)
    units = [
        Unit(
            usd_per_request=float(rng.uniform(0.5, 3.0)) * 1e-3,
            usd_to_start=float(rng.uniform(0.05, 8.0)),
            capacity=float(rng.uniform(500, 40_000)),
            vcpus=int(rng.choice([4, 8, 48, 96, 192])),
            quota=keys[rng.integers(len(keys))],
        )
        for _ in range(3000)
    ]
    began = time.perf_counter()
    assert solve(units, 1_000_000, limits) is not None
    return time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    seconds, candidates = plan_400()
    report = {
        "plan_400_offers_s": round(seconds, 3),
        "plan_400_candidates": candidates,
        "solve_3000_candidates_s": [round(solve_3000(seed), 3) for seed in range(5)],
    }
    if arguments.json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        for name, value in report.items():
            sys.stdout.write(f"{name}: {value}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
