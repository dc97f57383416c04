"""A cloud with a spot market, in simulated time: the control plane's own reconcilers drive it through the launcher's seam.

Replicas boot, compute at a rate, report as runners do, and are taken when spot closes. Work is done on the job's chunk
table, chunk by chunk.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, dataclass, fields
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from sqlalchemy import update

from tandemn.batch.leases import LeaseDesk
from tandemn.batch.memory_queue import MemoryQueue
from tandemn.clock import MockClock
from tandemn.control.reconcilers import fleet
from tandemn.control.reconcilers.pacing import Pacer
from tandemn.control.reconcilers.sharing import Places
from tandemn.control.services import Services
from tandemn.control.store import chunks, events, jobs, replicas, schema
from tandemn.control.store.chunk_table import SqlChunkTable
from tandemn.control.store.database import Database
from tandemn.errors import NoCapacity
from tandemn.events import EventKind
from tandemn.fleet.launchers.launcher import Sighting
from tandemn.fleet.reconcile import Presence
from tandemn.objects import ObjectStore
from tandemn.prices import Price
from tandemn.protocol.jobs import JobSpec, JobState, ReplicaConfig
from tandemn.protocol.replicas import EngineReading, Heartbeat, Market, ReplicaState
from tandemn.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tandemn.fleet.launchers.launcher import Handle, LaunchSpec
    from tandemn.protocol.jobs import JobStatus

JOB, CLOUD = "job-1", "cloudy"
USD_PER_HOUR = {Market.SPOT: Decimal(1), Market.ON_DEMAND: Decimal(3)}
REQUESTS_PER_CHUNK = 10


@dataclass(slots=True)
class Machine:
    market: Market
    launched_at: float
    done: float = 0.0
    ended_at: float | None = None


class Queue(MemoryQueue):
    async def ping(self) -> None:
        pass


class Leads:
    """The only control plane there is."""

    urls = ("http://127.0.0.1:9",)

    def assert_leading(self) -> None:
        pass


class SpotCloud:
    """The launcher."""

    name = CLOUD
    pool, limit = "clusters", 100

    def __init__(self, clock: MockClock, spot: Callable[[float], bool]) -> None:
        self.clock, self.spot = clock, spot
        self.machines: dict[str, Machine] = {}

    def alive(self) -> dict[str, Machine]:
        return {name: each for name, each in self.machines.items() if each.ended_at is None}

    def check(self) -> None:
        """It is always there."""

    def room(self) -> int:
        return self.limit - len(self.alive())

    def price(self, config: ReplicaConfig, now: float) -> Price:
        return Price(usd_per_hour=USD_PER_HOUR[config.market], source="test", at=now)

    def launch(self, spec: LaunchSpec) -> Handle:
        if spec.config.market is Market.SPOT and not self.spot(self.clock.now()):
            raise NoCapacity("no spot")
        self.machines[spec.replica_id] = Machine(market=spec.config.market, launched_at=self.clock.now())
        return {"name": spec.replica_id}

    def find(self, replica_id: str) -> Handle | None:
        return {"name": replica_id} if replica_id in self.alive() else None

    def living(self) -> list[Handle]:
        return [{"name": name} for name in self.alive()]

    def observe(self, handles: Sequence[Handle]) -> list[Sighting]:
        alive = self.alive()
        return [
            Sighting(presence=Presence.THERE if each["name"] in alive else Presence.GONE) for each in handles
        ]

    def stop(self, handle: Handle) -> None:
        self.terminate(handle)

    def terminate(self, handle: Handle) -> None:
        self.end(handle["name"])

    def end(self, name: str) -> None:
        if (machine := self.machines[name]).ended_at is None:
            machine.ended_at = self.clock.now()

    def remains(self, replica_id: str) -> list[Any]:
        return []

    def clean(self, replica_id: str) -> None:
        pass

    def log_tail(self, replica_id: str, lines: int) -> list[str]:
        return []


class World:
    """One paced job on a spot cloud."""

    def __init__(
        self,
        folder: Path,
        *,
        requests: int,
        deadline_s: float,
        rate: float,
        planned_rate: float | None = None,
        replicas_planned: int = 1,
        start_s: float = 40.0,
        tick_s: float = 20.0,
        spot: Callable[[float], bool] = lambda _: True,
        **spec: Any,
    ) -> None:
        """Plan the job as the planner would have: `rate` is what one replica really does, a second."""
        self.clock = MockClock(0.0)
        self.tick_s, self.rate, self.start_s = tick_s, rate, start_s
        self.cloud = SpotCloud(self.clock, spot)
        self.database = Database(f"sqlite:///{folder / 'state.db'}")
        self.database.migrate()
        queue: Any = Queue(self.clock)
        # What a job's fleet and pace never look at is left out.
        unused: dict[str, Any] = dict.fromkeys(field.name for field in fields(Services) if _is_needed(field))
        self.services = Services(
            **unused
            | {
                "settings": Settings(home=folder, pace_s=tick_s),
                "clock": self.clock,
                "database": self.database,
                "objects": ObjectStore.open(folder),
                "queue": queue,
                "desk": LeaseDesk(queue, SqlChunkTable(self.database, self.clock), lease_ms=60_000),
                "launchers": {CLOUD: self.cloud},
                "leadership": Leads(),
                "server_url": "http://nowhere",
                "listening_since": 0.0,
            }
        )
        self.places = Places(self.services)
        self.pacer = Pacer(self.services, self.places)
        self.database.run_sync(
            _plan,
            JobSpec(model="m", input_file_id="f", slo_s=deadline_s, cloud=CLOUD, **spec),
            requests=requests,
            count=replicas_planned,
            planned={"requests_per_s": planned_rate or rate, "start_s": start_s},
        )

    def close(self) -> None:
        self.database.close()

    @property
    def job(self) -> Any:
        return self.database.run_sync(jobs.get, JOB)

    def status(self) -> JobStatus:
        from tandemn.control import views

        return self.database.run_sync(views.status, JOB, now=self.clock.now())

    def paced(self) -> list[dict[str, Any]]:
        found = self.database.run_sync(events.of_kinds, [EventKind.JOB_PACED], job_id=JOB)
        return [each.data for each in found]

    async def run(self, *, until: Callable[[World], bool] = lambda _: False, most_s: float = 1e6) -> float:
        """Go on until the job has all its answers, or `until`; return the time."""
        while self.clock.now() < most_s and not until(self):
            if self.job.state is JobState.ASSEMBLING:
                break
            await self.tick()
        return self.clock.now()

    async def tick(self) -> None:
        self.clock.advance(self.tick_s)
        self._work()
        await self.places.look()
        while await fleet.step(self.services, self.job, self.places):
            pass
        await self.pacer.step(JOB)

    def usd(self) -> float:
        now = self.clock.now()
        return sum(
            ((each.ended_at or now) - each.launched_at) / 3600 * float(USD_PER_HOUR[each.market])
            for each in self.cloud.machines.values()
        )

    def _work(self) -> None:
        now = self.clock.now()
        for name, machine in self.cloud.alive().items():
            if machine.market is Market.SPOT and not self.cloud.spot(now):
                self.cloud.end(name)
                continue
            worked = min(now - machine.launched_at - self.start_s, self.tick_s)
            if worked > 0:
                machine.done += worked * self.rate
                self.database.run_sync(self._report, name, machine, now)
        self.database.run_sync(self._complete)

    def _report(self, connection: Any, name: str, machine: Machine, now: float) -> None:
        replica = replicas.get(connection, name)
        beat = Heartbeat(state="running", requests_done=int(machine.done), engine=EngineReading(running=4))
        values: dict[str, Any] = {"last_seen": now, "beat": beat.model_dump(mode="json")}
        if replica.said_hello_at is None:
            values |= {"said_hello_at": now, "began_at": now, "state": ReplicaState.RUNNING.value}
        replicas.change(connection, name, **values)
        if replica.orders != "go_on":
            self.cloud.end(name)  # chunks are short here: it drains within a tick

    def _complete(self, connection: Any) -> None:
        """Chunks are done in order, by whomever."""
        done = int(sum(each.done for each in self.cloud.machines.values()) // REQUESTS_PER_CHUNK)
        connection.execute(
            update(schema.chunks)
            .where(schema.chunks.c.chunk < done, ~schema.chunks.c.done)
            .values(done=True, completed=schema.chunks.c.requests)
        )


def _is_needed(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _plan(connection: Any, spec: JobSpec, *, requests: int, count: int, planned: dict[str, Any]) -> None:
    config = ReplicaConfig(gpu="L4", market=Market.ON_DEMAND if spec.on_demand else Market.SPOT)
    jobs.add(connection, job_id=JOB, spec=spec, now=0.0, input_object="o", cloud=CLOUD)
    rows = [
        {"chunk": i, "byte_start": i, "byte_end": i + 1, "first_request": i, "requests": REQUESTS_PER_CHUNK}
        for i in range(requests // REQUESTS_PER_CHUNK)
    ]
    chunks.replace_all(connection, JOB, rows)
    jobs.change(
        connection,
        JOB,
        state=JobState.WAITING.value,
        requests=requests,
        engine="vllm",
        groups=[{"config": config.model_dump(mode="json"), "wanted": count}],
    )
    replicas.request(
        connection, JOB, group=0, config=config, launcher=CLOUD, count=count, now=0.0, reason="planned"
    )
    events.append(connection, EventKind.JOB_PLANNED, now=0.0, job_id=JOB, replicas=count, **planned)
