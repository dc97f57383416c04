"""A job under everything at once: `python -m tests.process.storm --requests 20000` is `make soak`.

Replicas are killed with `kill -9` every few seconds, one more is added, one is killed by command, all are
swapped, and the control plane is killed and started again, twice. Figures go to stdout as JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.process import watch
from tests.process.house import House, chat_lines

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    requests: int = 2000
    replicas: int = 4
    chunk_size: int = 50
    slots: int = 8
    decode_step_s: float = 0.02
    max_tokens: int = 16
    kill_every_s: float = 4.0
    seed: int = 0
    patience_s: float = 300.0


@dataclass(slots=True, kw_only=True)
class Figures:
    requests: int = 0
    seconds: float = 0.0
    replicas_killed: int = 0
    replicas_used: int = 0
    control_plane_restarts: int = 0
    computed: int = 0
    """By all engines, as their journal says."""
    recomputed_by_engines: int = 0
    recomputed_reported: int = 0
    allowed: float = 0.0
    """What may be recomputed at most: the last flush interval's of every killed replica."""
    chunks_refused: int = 0
    queue_rebuilt: int = 0
    leases_per_chunk: float = 0.0


def run_storm(house: House, plan: Plan) -> Figures:
    """Run the job to its end, check its output, and say what happened."""
    chance = random.Random(plan.seed)
    source, journal = house.home / "in.jsonl", house.home / "journal"
    source.write_text(chat_lines(plan.requests, max_tokens=plan.max_tokens))
    engine = ["--slots", plan.slots, "--decode-step-s", plan.decode_step_s, "--journal", journal]
    job = house.submit(
        *("any/model", str(source), "--slo", "4h", "--engine", "simulated", "--cloud", "local"),
        *("--gpu", "L4", "--replicas", str(plan.replicas), "--chunk-size", str(plan.chunk_size)),
        *("--", *map(str, engine)),
    )
    figures = Figures(requests=plan.requests)
    began = time.monotonic()
    acts = _acts(house, job, figures)
    next_kill = began + plan.kill_every_s
    chunks = len(watch.chunks(house, job)) or plan.requests // plan.chunk_size
    while watch.state(house, job) not in {"completed", "failed", "cancelled", "expired"}:
        assert time.monotonic() - began < plan.patience_s, watch.status(house, job)
        share = watch.done(house, job) / chunks
        if acts and share >= acts[0][0]:
            acts.pop(0)[1]()
        if time.monotonic() >= next_kill:
            running = watch.computing(house, job)
            if running and share < 0.95:
                watch.kill(chance.choice(running)["pid"])
                figures.replicas_killed += 1
            next_kill = time.monotonic() + plan.kill_every_s * chance.uniform(0.5, 1.5)
        time.sleep(0.1)
    figures.seconds = round(time.monotonic() - began, 1)
    assert not acts, "the job was over before all had happened"
    _count(house, job, plan, figures, watch.journal(journal))
    return figures


def _acts(house: House, job: str, figures: Figures) -> list[tuple[float, Callable[[], object]]]:
    """What happens once, by the share of chunks that are done."""

    def restart() -> None:
        watch.kill_server(house)
        started = house.run("server", "start")
        assert started.returncode == 0, started.stderr
        figures.control_plane_restarts += 1

    def kill() -> None:
        living = watch.replicas(house, job, "running", "starting", "launching")
        watch.ask(house, "POST", f"{job}/kill", replicas=[living[-1]["replica_id"]])

    return [
        (0.05, lambda: watch.ask(house, "POST", f"{job}/add", replicas=1)),
        (0.1, restart),
        (0.2, lambda: watch.ask(house, "POST", f"{job}/swap", gpu="L40S")),
        (0.35, kill),
        (0.45, restart),
    ]


def _count(house: House, job: str, plan: Plan, figures: Figures, computed: dict[str, int]) -> None:
    status = watch.status(house, job)
    assert status["state"] == "completed", status
    assert status["requests"]["completed"] == plan.requests, status["requests"]
    failed = watch.check_output(house, job, [f"r{number}" for number in range(plan.requests)])
    assert failed == []
    figures.replicas_used = len(watch.replicas(house, job))
    assert len(computed) == plan.requests, "the engines did not compute every request"
    figures.computed = sum(computed.values())
    figures.recomputed_by_engines = figures.computed - plan.requests
    figures.recomputed_reported = status["requests"]["recomputed"]
    figures.chunks_refused = len(watch.events(house, job, "chunk_refused"))
    figures.queue_rebuilt = len(watch.events(house, job, "queue_rebuilt"))
    rows = watch.chunks(house, job)
    figures.leases_per_chunk = round(sum(row["grants"] for row in rows) / len(rows), 2)
    per_second = plan.slots / (plan.decode_step_s * plan.max_tokens)
    # The last flush interval's, what was being stored, and what was computed but not yet read from the engine.
    figures.allowed = round(figures.replicas_killed * (per_second * (3.0 + 1.0) + plan.slots), 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, kind in (
        ("requests", int),
        ("replicas", int),
        ("chunk-size", int),
        ("slots", int),
        ("seed", int),
    ):
        parser.add_argument(f"--{name}", type=kind)
    for name in ("decode-step-s", "kill-every-s", "patience-s"):
        parser.add_argument(f"--{name}", type=float)
    given = {key: value for key, value in vars(parser.parse_args()).items() if value is not None}
    plan = Plan(**{"requests": 20_000, "chunk_size": 200, "slots": 16, "patience_s": 3600.0, **given})
    with tempfile.TemporaryDirectory(prefix="tdm-", ignore_cleanup_errors=True) as home:
        house = House(Path(home))
        try:
            figures = run_storm(house, plan)
        finally:
            house.close()
    sys.stdout.write(json.dumps({"plan": asdict(plan), "figures": asdict(figures)}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
