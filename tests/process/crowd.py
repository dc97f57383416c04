"""Many jobs of several users at once on one machine: `python -m tests.process.crowd --jobs 20` is `make crowd`.

Each user submits with a key of its own, all at the same moment. Every job must complete with every answer once. Figures go
to stdout as JSON: how long jobs waited, what the control plane took of memory, how many replicas there ever were.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from tests.process import watch
from tests.process.house import House, chat_lines

from tandemn.client import UserClient
from tandemn.protocol.jobs import JobSpec, JobState, JobStatus
from tandemn.protocol.keys import CreateKey, Role

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Of waits shorter than this, in seconds, a ratio says nothing.
LEAST_WAIT_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    jobs: int = 6
    users: int = 3
    requests: int = 60
    slots: int = 2
    """Replicas that the machine may run at a time."""
    engine_slots: int = 8
    decode_step_s: float = 0.02
    max_tokens: int = 16
    patience_s: float = 100.0


@dataclass(slots=True, kw_only=True)
class Figures:
    completed: int = 0
    seconds: float = 0.0
    wait_s_mean: float = 0.0
    """From the submit to the answers."""
    wait_s_max: float = 0.0
    max_over_mean: float = 0.0
    start_s_mean: float = 0.0
    """From the submit to the first request that is computed."""
    start_s_max: float = 0.0
    start_max_over_mean: float = 0.0
    users_wait_s: dict[str, float] | None = None
    """The mean of each user's jobs."""
    replicas_at_once: int = 0
    recomputed: int = 0
    rss_mb_before: int = 0
    rss_mb_peak: int = 0
    """Of the control plane."""
    waits_seen: int = 0
    """Jobs that said while they waited what for."""


class Watch:
    """Looks at the control plane and its replicas while they work."""

    def __init__(self, house: House, admin: UserClient) -> None:
        self._house, self._admin = house, admin
        self._server = psutil.Process(house.server_pid())
        self.rss = self.rss_before = self._server.memory_info().rss
        self.replicas = 0
        self.said: dict[str, str] = {}

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            self.rss = max(self.rss, self._server.memory_info().rss)
            # Not how many processes: what a runner starts has its command line until it has one of its own.
            self.replicas = max(self.replicas, len(await asyncio.to_thread(watch.runners, self._house)))
            for job in (await self._admin.list_jobs(limit=1000, after=None, state="active")).jobs:
                if job.waits is not None and job.waits.place_in_line is not None:
                    self.said[job.job_id] = job.waits.reason
            await asyncio.sleep(0.25)


async def run_crowd(house: House, plan: Plan) -> Figures:
    """Submit all jobs, see them through, check every output."""
    done = house.run("keys", "create", "ops", "--role", "admin")
    assert done.returncode == 0, done.stderr
    url = await asyncio.to_thread(started, house)
    async with UserClient(url, done.stdout.strip()) as admin:
        users = [f"user{number}" for number in range(plan.users)]
        keys = [(await admin.create_key(CreateKey(name=name, role=Role.USER))).key for name in users]
        looks = Watch(house, admin)
        watching = asyncio.create_task(looks.run())
        began = time.monotonic()
        try:
            async with asyncio.timeout(plan.patience_s):
                ended = await asyncio.gather(
                    *(_one(house, plan, url, keys[n % plan.users], n) for n in range(plan.jobs))
                )
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        figures = _figures(ended)
        figures.seconds = round(time.monotonic() - began, 1)
        figures.replicas_at_once, figures.waits_seen = looks.replicas, len(looks.said)
        figures.rss_mb_before, figures.rss_mb_peak = looks.rss_before // 1_000_000, looks.rss // 1_000_000
    return figures


def started(house: House) -> str:
    """Start the control plane; return its URL."""
    done = house.run("server", "start")
    assert done.returncode == 0, done.stderr
    url: str = json.loads((house.home / "server.json").read_text())["url"]
    return url


async def _one(house: House, plan: Plan, url: str, key: str, number: int) -> JobStatus:
    """One user's job, from its upload to its answers."""
    source = house.home / f"in{number}.jsonl"
    source.write_text(chat_lines(plan.requests, max_tokens=plan.max_tokens, prefix=f"j{number}-"))
    async with UserClient(url, key) as user:
        file = await user.upload(source)
        engine = ["--slots", str(plan.engine_slots), "--decode-step-s", str(plan.decode_step_s)]
        spec = JobSpec(
            model="any/model",
            input_file_id=file.id,
            slo_s=4 * 3600,
            cloud="local",
            engine="simulated",
            engine_args=engine,
        )
        status = await user.submit(spec)
        while not status.state.has_ended:
            status = await user.job(status.job_id, wait_s=5.0, state=status.state)
        assert status.state is JobState.COMPLETED, (status.state, status.reason)
        content = b"".join([block async for block in user.output(status.job_id)])
        ids = [json.loads(line)["custom_id"] for line in content.splitlines()]
        assert ids == [f"j{number}-{n}" for n in range(plan.requests)], "not every answer once, in order"
    return status


def _figures(ended: Sequence[JobStatus]) -> Figures:
    waits = [_since(each, each.ended_at) for each in ended]
    starts = [_since(each, each.started_at) for each in ended]
    owners = sorted({each.owner or "" for each in ended})
    return Figures(
        completed=len(ended),
        wait_s_mean=round(statistics.mean(waits), 2),
        wait_s_max=round(max(waits), 2),
        max_over_mean=round(max(waits) / max(statistics.mean(waits), LEAST_WAIT_S), 2),
        start_s_mean=round(statistics.mean(starts), 2),
        start_s_max=round(max(starts), 2),
        start_max_over_mean=round(max(starts) / max(statistics.mean(starts), LEAST_WAIT_S), 2),
        users_wait_s={
            owner: round(
                statistics.mean(_since(each, each.ended_at) for each in ended if each.owner == owner), 2
            )
            for owner in owners
        },
        recomputed=sum(each.requests.recomputed for each in ended),
    )


def _since(status: JobStatus, moment: float | None) -> float:
    assert moment is not None, f"{status.job_id} has ended"
    return moment - status.created_at


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    defaults: dict[str, Any] = asdict(
        Plan(jobs=20, users=4, requests=1000, slots=4, engine_slots=16, patience_s=1800.0)
    )
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    plan = Plan(**vars(parser.parse_args()))
    with tempfile.TemporaryDirectory(prefix="tdm-", ignore_cleanup_errors=True) as home:
        house = House(Path(home), TANDEMN_LOCAL_SLOTS=str(plan.slots))
        try:
            figures = asyncio.run(run_crowd(house, plan))
        finally:
            house.close()
    sys.stdout.write(json.dumps({"plan": asdict(plan), "figures": asdict(figures)}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
