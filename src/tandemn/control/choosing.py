"""What a cloud job's fleet begins with: the plan's groups, or the GPU that the user named where nothing can be planned."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tandemn.control.clouds import ANY
from tandemn.control.groups import planned_groups
from tandemn.control.planning import needs_of, offers_on, submit_counts, weighed_plan, with_whole_quotas
from tandemn.control.store import replicas
from tandemn.errors import Infeasible, InvalidInput, NotFound, Retryable
from tandemn.fleet.engines.engine import EngineName
from tandemn.ledger import budget
from tandemn.placement.catalog.gpus import gpu_named
from tandemn.protocol.jobs import ReplicaConfig
from tandemn.protocol.replicas import Market

if TYPE_CHECKING:
    from decimal import Decimal

    from tandemn.control.services import Services
    from tandemn.control.store.records import JobRecord
    from tandemn.protocol.plans import KoiAdvice

#: Least time that a plan is given, in seconds: one that is late already is still planned, and said to be late.
LEAST_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What a job runs on."""

    groups: list[dict[str, Any]]
    requests_per_s: float | None
    """Of one replica of the first group, expected; None: nothing is known of it."""
    start_s: float | None
    """Until the first answer, expected."""
    cost_usd: Decimal | None
    """Expected of the whole job; None: not known, as is the next one."""
    usd_per_hour: Decimal | None
    reason: str
    koi: KoiAdvice | None = None

    @property
    def count(self) -> int:
        """Replicas to begin with."""
        return sum(group["wanted"] for group in self.groups)


async def choose_in_cloud(services: Services, job: JobRecord, engine: EngineName, now: float) -> Chosen:
    """Plan a recorded job: the groups that it begins with, and what each falls back to.

    A plan needs to know the model and what is rented; where it does not, a GPU that the user names is taken as it is.

    Raises:
        InvalidInput: nothing is known, and no GPU is named.
        Infeasible: no plan meets the deadline or budget.
    """
    spec = job.spec.model_copy(
        update={"cloud": job.cloud, "model": job.model, "slo_s": max(job.deadline - now, LEAST_S)}
    )
    is_named = spec.gpu not in {None, "auto"}
    offers = await asyncio.to_thread(offers_on, services, job.cloud)
    if engine is not EngineName.VLLM or not offers:
        if not is_named:
            raise InvalidInput(
                f"a job on {job.cloud} with engine {engine} cannot be planned: too little is known",
                code="cannot_plan",
                next_step="name a GPU: --gpu L4",
                param="gpu",
            )
        return await asyncio.to_thread(_as_named, services, job, now)
    counts = submit_counts(job.requests, job.statistics, job.endpoint)
    try:
        # A file of this machine's is none of a cloud's.
        shape = await services.shapes.of(spec.model, may_be_file=False)
    except (InvalidInput, Retryable):
        if not is_named:
            raise
        return await asyncio.to_thread(_as_named, services, job, now)
    needs = await asyncio.to_thread(needs_of, services, spec, counts, shape)
    reason = ""
    try:
        planned, koi = await weighed_plan(services, spec, needs, job_id=job.job_id)
    except Infeasible:
        # A quota that other jobs use is shared with them: it is no reason to refuse this one.
        if not await services.database.run(replicas.others_run_on, job.cloud or ANY, job_id=job.job_id):
            raise
        planned, koi = await weighed_plan(services, spec, with_whole_quotas(needs), job_id=job.job_id)
        reason = "; it waits for its share of the quota that other jobs use"
    first = planned.best.parts[0].candidate
    return Chosen(
        groups=planned_groups(planned, region=spec.region),
        requests_per_s=first.requests_per_s,
        start_s=first.start_s,
        cost_usd=planned.best.expected_usd,
        usd_per_hour=planned.best.usd_per_hour,
        reason="; ".join((planned.best.reason + reason, *needs.warnings, *planned.warnings)),
        koi=koi,
    )


def _as_named(services: Services, job: JobRecord, now: float) -> Chosen:
    """Take the GPU that the user named, in the number named, or one.

    Raises:
        Infeasible: there is a budget, and no price by which it could be kept.
    """
    spec = job.spec
    count = spec.replicas or 1
    config = ReplicaConfig(
        gpu=_gpu_name(str(spec.gpu)),
        tp=spec.tp or 1,
        pp=spec.pp or 1,
        market=Market.ON_DEMAND if spec.on_demand else Market.SPOT,
        region=spec.region,
    )
    price = services.launchers[job.cloud or ANY].price(config, now)
    if not spec.force:
        budget.check_prices([None if price is None else price.usd_per_hour], budget_usd=spec.budget_usd)
    return Chosen(
        groups=[{"config": config.model_dump(mode="json"), "wanted": count, "fallbacks": []}],
        requests_per_s=None,
        start_s=None,
        cost_usd=None,
        usd_per_hour=None if price is None else price.usd_per_hour * count,
        reason="the GPU that was named: too little is known for a plan",
    )


def _gpu_name(name: str) -> str:
    """Our name of a GPU; one that is not in the table is the cloud's to know."""
    try:
        return gpu_named(name).name
    except NotFound:
        return name
