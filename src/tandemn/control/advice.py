"""Asking Koi at planning: one call, bounded in time; whatever comes of it, the job is planned."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import structlog

from tandemn.errors import Infeasible, InvalidInput
from tandemn.koi import weighing
from tandemn.koi.client import KoiClient
from tandemn.koi.recommendation import Recommendation, Unused, overridden, question, read_answer
from tandemn.koi.resources import local_resources
from tandemn.placement.workload import CHARACTERS_PER_TOKEN
from tandemn.protocol.plans import KoiAdvice, KoiAlternative

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from decimal import Decimal

    from tandemn.control.services import Services
    from tandemn.control.store.records import JobRecord
    from tandemn.koi.contract import Resources
    from tandemn.koi.recommendation import Choice
    from tandemn.protocol.jobs import JobSpec

T = TypeVar("T")

_log = structlog.get_logger()


async def ask(
    services: Services,
    spec: JobSpec,
    resources: Resources,
    *,
    job_id: str | None,
    requests: int,
    input_tokens: float,
    output_tokens: float,
) -> Recommendation | Unused | None:
    """Ask Koi to place a job; None where there is no Koi and none was asked for."""
    url = services.settings.koi_service_url
    if url is None:
        if spec.advisor != "koi":
            return None
        return Unused(code="koi_not_set_up", reason="KOI_SERVICE_URL is not set where the control plane runs")
    asked = question(
        spec,
        resources,
        job_id=job_id,
        event_id=f"{job_id or f'plan-{secrets.token_hex(6)}'}:decide",
        requests=requests,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        now=services.clock.now(),
    )
    async with KoiClient(url, services.settings.koi_timeout_s) as client:
        body = await client.post("/decide", asked.model_dump_json(exclude_none=True).encode())
    answer = body if isinstance(body, Unused) else read_answer(body, spec)
    if isinstance(answer, Unused):
        _log.warning("Koi is not used", job_id=job_id, code=answer.code, reason=answer.reason)
    return answer


async def follow_locally(
    services: Services,
    job: JobRecord,
    own: T,
    choose: Callable[[JobRecord], Awaitable[T]],
    *,
    usd_per_hour: Decimal | None,
    output_tokens: float,
) -> tuple[T, KoiAdvice | None]:
    """Weigh Koi's recommendation against what a job on this machine would run on.

    Args:
        services: as everywhere.
        job: what is planned.
        own: what it runs on without Koi.
        choose: checks the job's flags and makes of them what it runs on; raises where they cannot be met.
        usd_per_hour: of one replica of `own`; None: not known.
        output_tokens: mean of an answer.
    """
    spec = job.spec
    input_tokens = job.statistics.get("prompt_chars", {}).get("mean", 0.0) / CHARACTERS_PER_TOKEN
    gpu = "cpu" if spec.gpu in {None, "auto"} else str(spec.gpu)
    asked = await ask(
        services,
        spec,
        local_resources(
            gpu, (spec.tp or 1) * (spec.pp or 1), float(usd_per_hour or 0), now=services.clock.now()
        ),
        job_id=job.job_id,
        requests=job.requests,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
    )
    if asked is None:
        return own, None
    expected_tokens = round(job.requests * (input_tokens + output_tokens))
    theirs, told = await _weigh_locally(services, job, asked, choose)
    told = told.model_copy(update={"expected_tokens": expected_tokens})
    return (theirs if theirs is not None and told.is_followed else own), told


async def _weigh_locally(
    services: Services,
    job: JobRecord,
    asked: Recommendation | Unused,
    choose: Callable[[JobRecord], Awaitable[T]],
) -> tuple[T | None, KoiAdvice]:
    if isinstance(asked, Unused):
        return None, weighing.unused(asked)
    spec, choice = job.spec, asked.choice
    try:
        _check_slots(choice, services.settings.local_slots)
        theirs = await choose(replace(job, spec=overridden(spec, choice).model_copy(update={"force": False})))
    except (Infeasible, InvalidInput) as exc:
        return None, weighing.unused(weighing.why_not(exc, choice), asked)
    return theirs, weighing.feasible(
        asked,
        is_followed=spec.advisor == "koi",
        expected_usd=None,
        alternatives=[
            KoiAlternative(
                what="an alternative" if isinstance(each, Unused) else each.label,
                reason=each.reason
                if isinstance(each, Unused)
                else "this machine is all there is to launch on",
            )
            for each in asked.alternatives
        ],
    )


def _check_slots(choice: Choice, slots: int) -> None:
    if choice.replicas is not None and choice.replicas > slots:
        raise InvalidInput(f"this machine runs {slots} replicas at most", param="replicas")
