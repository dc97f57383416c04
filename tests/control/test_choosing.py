"""What a cloud job runs on where earlier jobs have the quota: AWS is moto's, the catalog and the planner are real."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.control.plane import served
from tests.fakes.aws_quotas import LIMITS, Wired, aws_account, launch, service_quotas

from tandemn.control.choosing import choose_in_cloud
from tandemn.control.store import jobs, replicas
from tandemn.errors import Infeasible
from tandemn.fleet.engines.engine import EngineName
from tandemn.placement.quota import QuotaReader
from tandemn.protocol.jobs import JobSpec, ReplicaConfig

LENGTHS = {"mean": 400.0, "p50": 400.0, "p95": 500.0}
LIMITED = {"mean": 64.0, "max": 64.0, "given": 2000}


@pytest.fixture
def quota_in_use():
    """All 96 vCPUs of on-demand G instances in us-east-1 are taken."""
    with aws_account() as session, service_quotas(LIMITS) as url:
        launch(session, "g6.2xlarge", count=12)
        yield Wired(session, url)


async def submitted(plane, owner, **wanted):
    job_id = await plane.new_job(owner)
    asked = {"model": "Qwen/Qwen3-0.6B", "slo_s": 4 * 3600, "cloud": "aws", "gpu": "L4", "on_demand": True}
    spec = JobSpec(**{"input_file_id": "f", "region": "us-east-1"} | asked | wanted)
    values = {"spec": spec.model_dump(mode="json"), "model": spec.model, "cloud": "aws", "requests": 2000}
    statistics = {"prompt_chars": LENGTHS, "output_limits": LIMITED}
    deadline = plane.services.clock.now() + spec.slo_s
    await plane.services.database.run(jobs.change, job_id, statistics=statistics, deadline=deadline, **values)
    return await plane.services.database.run(jobs.get, job_id)


async def test_a_quota_that_other_jobs_use_is_no_reason_to_refuse_one(tmp_path, quota_in_use):
    async with served(tmp_path) as plane:
        clock = plane.services.clock
        services = replace(plane.services, quotas=QuotaReader(clock, quota_in_use))
        job = await submitted(plane, "bob")
        with pytest.raises(Infeasible):
            await choose_in_cloud(services, job, EngineName.VLLM, clock.now())
        other = await submitted(plane, "ann")
        [running] = await services.database.run(
            replicas.request,
            other.job_id,
            group=0,
            config=ReplicaConfig(gpu="L4"),
            launcher="aws",
            count=1,
            now=clock.now(),
            reason="test",
        )
        with pytest.raises(Infeasible):
            await choose_in_cloud(services, job, EngineName.VLLM, clock.now())
        await services.database.run(replicas.change, running, launched_at=clock.now())
        chosen = await choose_in_cloud(services, job, EngineName.VLLM, clock.now())
        assert chosen.groups[0]["config"]["gpu"] == "L4"
        assert "waits for its share of the quota" in chosen.reason


async def test_a_budget_is_kept_where_there_is_no_plan_too(tmp_path):
    async with served(tmp_path) as plane:
        now = plane.services.clock.now()

        async def chosen(**wanted):
            job = await submitted(plane, "bob", model="nobody/knows", **wanted)
            return await choose_in_cloud(plane.services, job, EngineName.VLLM, now)

        priced = await chosen(budget_usd="10")
        assert priced.usd_per_hour is not None
        assert (await chosen(gpu="NEW-GPU")).usd_per_hour is None
        with pytest.raises(Infeasible, match="the price of something in this plan is not known"):
            await chosen(gpu="NEW-GPU", budget_usd="10")
        assert (await chosen(gpu="NEW-GPU", budget_usd="10", force=True)).usd_per_hour is None
