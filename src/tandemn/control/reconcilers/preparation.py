"""A new job: validate its input, plan it, split it. Every step may be repeated after a crash."""

from __future__ import annotations

import asyncio
import math
import os
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import structlog

from tandemn.batch.input_process import load_index, validate_input
from tandemn.batch.split import chunk_size, split
from tandemn.control import advice, names
from tandemn.control.access.restrictions import check_model
from tandemn.control.choosing import Chosen, choose_in_cloud
from tandemn.control.cost import SHUTDOWN_S
from tandemn.control.inputs import input_of
from tandemn.control.operations import check_local
from tandemn.control.pace import LOCAL_START_S
from tandemn.control.planning import submit_statistics
from tandemn.control.reconcilers import fleet
from tandemn.control.store import chunks, events, jobs, keys, replicas
from tandemn.errors import InvalidInput, TandemnError
from tandemn.events import EventKind
from tandemn.fleet.engines.adapters import adapters, choose
from tandemn.fleet.engines.engine import EngineName, EngineSpec
from tandemn.ledger import budget
from tandemn.protocol.jobs import JobState, LineErrorView, ReplicaConfig
from tandemn.protocol.keys import Role
from tandemn.protocol.replicas import Market
from tandemn.settings import hub_cache

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from tandemn.batch.input import InputReport
    from tandemn.batch.split import ChunkRange
    from tandemn.control.services import Services
    from tandemn.control.store.records import JobRecord

_log = structlog.get_logger()

#: Tokens a second that one local replica is taken to generate until it has shown what it does; it decides
#: how large chunks are and what the job is expected to cost, nothing else. The demo model makes some 15,000 on one core, real ones on a CPU fewer.
LOCAL_TOKENS_PER_S = {EngineName.LLAMACPP: 8000.0, EngineName.VLLM: 2000.0, EngineName.SIMULATED: 8000.0}
#: Output of a request whose limit is not known, in tokens.
USUAL_OUTPUT_TOKENS = 256


async def validate(services: Services, job: JobRecord) -> bool:
    """Read every line; on to planning, or to failed with all that is wrong."""
    store, name = await asyncio.to_thread(input_of, services, job)
    report = await validate_input(
        store,
        name,
        index_store=services.objects,
        index_name=names.index_object(job.job_id),
        skip_invalid=job.spec.skip_invalid,
        model=None if job.spec.model_from_lines else job.spec.model,
        hub_cache=hub_cache(),
    )
    problems = [
        LineErrorView(line=each.line or None, code=each.code, message=each.message, param=each.param)
        for each in report.errors
    ]
    total = report.error_count
    role = await services.database.run(keys.role_of, job.owner)
    mismatch = _mismatch(job, report, role) if report.is_valid else None
    if mismatch:
        problems, total = [mismatch], 1
    refused = mismatch is not None or not report.is_valid
    now = services.clock.now()

    def record(connection: Connection) -> bool:
        jobs.change(
            connection,
            job.job_id,
            line_errors=[each.model_dump() for each in problems],
            line_errors_total=total,
        )
        if refused:
            return jobs.move(
                connection,
                job.job_id,
                to=JobState.FAILED,
                frm=(JobState.VALIDATING,),
                now=now,
                reason=_why_refused(problems, total),
                code="invalid_input_file",
            )
        model = report.models[0] if job.spec.model_from_lines else job.spec.model
        return jobs.move(
            connection,
            job.job_id,
            to=JobState.PLANNING,
            frm=(JobState.VALIDATING,),
            now=now,
            reason="choosing replicas",
            requests=report.requests,
            endpoint=report.url,
            model=model,
            statistics=_statistics(report),
        )

    moved = await services.database.run(record)
    if refused:
        await services.objects.delete_prefix(names.job_folder(job.job_id))
    services.pulse.beat(job.job_id)
    return moved


def _mismatch(job: JobRecord, report: InputReport, role: Role) -> LineErrorView | None:
    """What the Batch API asks of the lines beside their being valid."""
    if job.spec.endpoint is not None and report.url != job.spec.endpoint:
        return LineErrorView(
            line=None,
            code="endpoint_mismatch",
            message=f"the batch is for {job.spec.endpoint}, but the lines say {report.url}",
            param="url",
        )
    if job.spec.model_from_lines and (len(report.models) != 1 or report.has_unnamed_model):
        named = ", ".join(report.models) or "none"
        return LineErrorView(
            line=None,
            code="mixed_models" if report.models else "missing_model",
            message=f"every line must name one and the same model in body.model; named here: {named}",
            param="body.model",
        )
    if job.spec.model_from_lines:
        try:
            check_model(report.models[0], role)
        except InvalidInput as exc:
            return LineErrorView(line=None, code=exc.code, message=exc.message, param="body.model")
    return None


def _why_refused(problems: list[LineErrorView], total: int) -> str:
    first = problems[0]
    where = f"line {first.line}: " if first.line else ""
    more = f" (and {total - 1} more)" if total > 1 else ""
    return f"the input is not valid: {where}{first.message}{more}"


def _statistics(report: InputReport) -> dict[str, object]:
    return submit_statistics(report) | {
        "bytes": report.bytes,
        "has_images": report.has_images,
        "skipped": report.skipped,
    }


async def plan(services: Services, job: JobRecord) -> bool:
    """Choose engine and replicas, cut the input into chunks, and open the queue."""
    engine = choose(job.model, EngineName(job.spec.engine) if job.spec.engine else None)
    if (job.cloud or "local") == "local":
        chosen = await _choose_here(services, job, engine)
    else:
        chosen = await choose_in_cloud(services, job, engine, services.clock.now())
    told: dict[str, Any] = {"koi": chosen.koi.model_dump(mode="json")} if chosen.koi is not None else {}
    rate = chosen.requests_per_s or _requests_per_s(job, engine)
    index = await load_index(services.objects, names.index_object(job.job_id))
    size = job.spec.chunk_size or chunk_size(
        job.requests,
        requests_per_s=rate,
        # Those that pacing may add find chunks, too.
        replicas=max(chosen.count, job.spec.replicas or _most_replicas(services, job, engine)),
    )
    ranges = await asyncio.to_thread(split, index, size)
    now = services.clock.now()

    def record(connection: Connection) -> bool:
        if jobs.get(connection, job.job_id).state is not JobState.PLANNING:
            return False  # cancelled meanwhile
        chunks.replace_all(connection, job.job_id, (_row(each) for each in ranges))
        for number, group in enumerate(chosen.groups):
            replicas.request(
                connection,
                job.job_id,
                group=number,
                config=ReplicaConfig.model_validate(group["config"]),
                launcher=job.cloud or "local",
                count=group["wanted"],
                now=now,
                reason="planned",
            )
        events.append(
            connection,
            EventKind.JOB_PLANNED,
            now=now,
            job_id=job.job_id,
            engine=engine.value,
            config=chosen.groups[0]["config"],
            replicas=chosen.count,
            chunks=len(ranges),
            chunk_size=size,
            requests_per_s=rate,
            start_s=chosen.start_s,
            cost_usd=str(chosen.cost_usd) if chosen.cost_usd is not None else None,
            usd_per_hour=str(chosen.usd_per_hour) if chosen.usd_per_hour is not None else None,
            reason=chosen.reason,
            **told,
        )
        return jobs.move(
            connection,
            job.job_id,
            to=JobState.WAITING,
            frm=(JobState.PLANNING,),
            now=now,
            reason="waiting for replicas",
            engine=engine.value,
            groups=chosen.groups,
            **told,
        )

    moved = await services.database.run(record)
    if moved:
        await services.desk.open(job.job_id)
        await services.objects.delete(names.index_object(job.job_id))
    services.pulse.beat(job.job_id)
    return moved


async def _choose_here(services: Services, job: JobRecord, engine: EngineName) -> Chosen:
    """Choose replicas on this machine, and hear what Koi would."""
    own = await _choose(services, job, engine)
    chosen, koi = await advice.follow_locally(
        services,
        job,
        own,
        lambda wished: _choose(services, wished, engine),
        usd_per_hour=own.usd_per_hour / own.count if own.usd_per_hour is not None else None,
        output_tokens=_output_tokens(job),
    )
    return replace(chosen, koi=koi)


async def _choose(services: Services, job: JobRecord, engine: EngineName) -> Chosen:
    """Make of the job's flags what it runs on; raise where that cannot be, or costs too much."""
    config = _config(job)
    await asyncio.to_thread(_check_engine, services, job, engine, config)
    count = job.spec.replicas or _enough(services, job, engine)
    cost_usd, usd_per_hour = await _expected_cost(services, job, engine, config, count)
    if not job.spec.force:
        budget.check_plan(cost_usd, usd_per_hour, budget_usd=job.spec.budget_usd, shutdown_s=SHUTDOWN_S)
    return Chosen(
        groups=[{"config": config.model_dump(mode="json"), "wanted": count}],
        requests_per_s=_requests_per_s(job, engine),
        start_s=LOCAL_START_S,
        cost_usd=cost_usd,
        usd_per_hour=usd_per_hour,
        reason="this machine",
    )


def _requests_per_s(job: JobRecord, engine: EngineName) -> float:
    return LOCAL_TOKENS_PER_S[engine] / _output_tokens(job)


def _most_replicas(services: Services, job: JobRecord, engine: EngineName) -> int:
    """How many the job may come to have where its user has not said."""
    if (job.cloud or "local") != "local":
        return 1
    slots = services.settings.local_slots
    return slots if engine is EngineName.SIMULATED else min(slots, os.cpu_count() or 1)


def _enough(services: Services, job: JobRecord, engine: EngineName) -> int:
    """Fewest replicas that meet the deadline at the rate that is expected of each; pacing corrects it."""
    working_s = max(job.deadline - services.clock.now() - LOCAL_START_S, 1.0)
    wanted = math.ceil(job.requests / _requests_per_s(job, engine) / working_s)
    return max(1, min(wanted, _most_replicas(services, job, engine)))


async def _expected_cost(
    services: Services, job: JobRecord, engine: EngineName, config: ReplicaConfig, count: int
) -> tuple[Decimal | None, Decimal | None]:
    """Expect USD in all, and USD an hour while `count` replicas run; None where no price is known."""
    launcher = services.launchers[job.cloud or "local"]
    price = await asyncio.to_thread(launcher.price, config, services.clock.now())
    if price is None:
        return None, None
    busy_s = job.requests * _output_tokens(job) / LOCAL_TOKENS_PER_S[engine]
    cost_usd = price.usd_per_hour * Decimal(repr(busy_s)) / 3600
    return cost_usd, price.usd_per_hour * count


def _config(job: JobRecord) -> ReplicaConfig:
    spec = job.spec
    return ReplicaConfig(
        gpu=spec.gpu or "cpu",
        tp=spec.tp or 1,
        pp=spec.pp or 1,
        market=Market.ON_DEMAND if spec.on_demand else Market.SPOT,
        region=spec.region,
    )


def _check_engine(services: Services, job: JobRecord, engine: EngineName, config: ReplicaConfig) -> None:
    """Refuse now what every replica would find out: no such model, no such engine, no such GPU here."""
    check_local(job.cloud, engine, config)
    spec = EngineSpec(
        engine=engine,
        model=job.model,
        port=0,
        tp=config.tp,
        pp=config.pp,
        extra_args=tuple(job.spec.engine_args),
    )
    adapters(services.settings)[engine].check(spec)


def _output_tokens(job: JobRecord) -> float:
    limits = job.statistics.get("output_limits", {})
    if job.spec.max_output_tokens is not None:
        return job.spec.max_output_tokens
    return float(limits.get("mean") or USUAL_OUTPUT_TOKENS) if limits.get("given") else USUAL_OUTPUT_TOKENS


def _row(each: ChunkRange) -> dict[str, object]:
    return {
        "chunk": each.index,
        "byte_start": each.byte_start,
        "byte_end": each.byte_end,
        "first_request": each.first_request,
        "requests": each.requests,
        "skipped": list(each.skipped) or None,
    }


async def fail(services: Services, job_id: str, cause: Exception) -> None:
    """End a job whose step cannot succeed; what it has is kept, what it runs is ended."""
    code = cause.code if isinstance(cause, TandemnError) else "internal_error"
    reason = str(cause) if isinstance(cause, TandemnError) else f"{type(cause).__name__}: {cause}"
    now = services.clock.now()
    job = await services.database.run(jobs.get, job_id)

    def record(connection: Connection) -> None:
        jobs.move(
            connection,
            job_id,
            to=JobState.FAILED,
            frm=(JobState.VALIDATING, JobState.PLANNING, JobState.ASSEMBLING),
            now=now,
            reason=reason,
            code=code,
        )

    await services.database.run(record)
    await fleet.give_up(services, job_id, code=code, reason=reason)
    if job.state in {JobState.VALIDATING, JobState.PLANNING}:
        await _clear(services, job_id, [names.job_folder(job_id)])
    elif job.state is JobState.ASSEMBLING:
        # Finished chunks are kept: where the output could not be written, they are the answers.
        await _clear(services, job_id, names.unanswered_folders(job_id))
    services.pulse.beat(job_id)


async def _clear(services: Services, job_id: str, folders: Sequence[str]) -> None:
    """Remove what a failed job has in store and queue; what fails may be what ended it."""
    for folder in folders:
        try:
            await services.objects.delete_prefix(folder)
        except TandemnError as exc:
            _log.warning("not removed", job_id=job_id, folder=folder, error=str(exc))
    try:
        await services.desk.forget(job_id)
    except TandemnError as exc:
        _log.warning("queue not dropped", job_id=job_id, error=str(exc))
