"""Cost from a real database: what was recorded, at a time that the test chooses."""

from __future__ import annotations

from decimal import Decimal

from tandemn import prices
from tandemn.control import cost, views
from tandemn.control.store import events, jobs
from tandemn.events import EventKind
from tandemn.ledger.budget import Advice
from tandemn.prices import Price
from tandemn.protocol.jobs import JobSpec


def add(connection, job_id, now=0.0, budget=None):
    spec = JobSpec(model="demo/tiny", input_file_id="f", slo_s=60, budget_usd=budget)
    jobs.add(connection, job_id=job_id, spec=spec, now=now, input_object="o", cloud="local")


def launch(connection, job_id, name, at, usd, ended=None):
    price = None if usd is None else Price(usd_per_hour=Decimal(usd), source="test", at=at)
    who = {"job_id": job_id, "replica_id": f"{job_id}-{name}"}
    fields = prices.to_event(price)
    config = {"gpu": "cpu", "market": "spot"}
    events.append(
        connection, EventKind.REPLICA_LAUNCHED, now=at, config=config, launcher="local", **who, **fields
    )
    if ended is not None:
        events.append(connection, EventKind.REPLICA_ENDED, now=ended, state="completed", **who)


def test_every_job_and_the_total(database):
    def write(connection):
        for number, usd in enumerate(["36", "36", None]):
            add(connection, f"job-{number}", now=float(number))
            launch(connection, f"job-{number}", "r0", 10.0, usd, ended=110.0)

    database.run_sync(write)
    report = database.run_sync(cost.report, limit=2, now=500.0)
    assert [(row.job_id, row.cost.usd) for row in report.jobs] == [("job-2", None), ("job-1", Decimal(1))]
    assert (report.jobs_total, report.total.usd, report.total.at_least_usd) == (3, None, Decimal(2))
    assert (report.total.unknown, report.usd_per_hour) == (1, Decimal(0))


def test_no_job_at_all(database):
    report = database.run_sync(cost.report, limit=5, now=0.0)
    assert (report.jobs, report.jobs_total, report.total.usd) == ([], 0, Decimal(0))


def test_status_says_what_a_job_costs_now(database):
    def write(connection):
        add(connection, "job-1")
        launch(connection, "job-1", "r0", 0.0, "36", ended=100.0)
        launch(connection, "job-1", "r1", 50.0, "72")

    database.run_sync(write)
    status = database.run_sync(views.status, "job-1", now=150.0)
    assert status.cost_usd == Decimal(3)
    assert status.cost is not None
    assert (status.cost.label, status.cost.usd_per_hour, status.cost.since) == ("metered", Decimal(72), 0.0)
    assert [(part.part, part.running, part.seconds) for part in status.cost.parts] == [("local", 1, 200.0)]
    later = database.run_sync(views.status, "job-1", now=250.0)
    assert later.cost_usd == Decimal(5)


def test_the_verdict_keeps_what_ending_costs(database):
    def write(connection):
        add(connection, "job-1", budget=Decimal("1.22"))
        launch(connection, "job-1", "r0", 0.0, "36")
        return jobs.get(connection, "job-1")

    job = database.run_sync(write)
    assert cost.SHUTDOWN_S == 22
    advice = [database.run_sync(cost.verdict, job, now=now).advice for now in (99.0, 100.0, 122.0)]
    assert advice == [Advice.GO_ON, Advice.DRAIN, Advice.OVER_BUDGET]
