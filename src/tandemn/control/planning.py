"""What a job would run on, and why: counts the input, asks the placement, launches nothing."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from tandemn.batch.input_process import validate_input
from tandemn.control.inputs import open_input
from tandemn.control.store import files
from tandemn.errors import InvalidInput, NotAllowed, Retryable
from tandemn.placement import plan as placement
from tandemn.placement.candidates import Wish
from tandemn.placement.catalog.gpus import gpu_named
from tandemn.placement.catalog.skypilot import load_offers
from tandemn.placement.models import shape_of
from tandemn.placement.quota import QuotaReader, free_vcpus
from tandemn.placement.throughput import RooflinePredictor
from tandemn.placement.workload import Lengths, SubmitCounts, workload_of
from tandemn.protocol.plans import PlanAnswer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tandemn.batch.input import InputReport
    from tandemn.control.access.rules import Caller
    from tandemn.control.services import Services
    from tandemn.placement.catalog.offers import Offer
    from tandemn.placement.plan import Plan
    from tandemn.protocol.jobs import JobSpec

#: Where SkyPilot keeps its catalogs.
SKYPILOT_CATALOGS = Path("~/.sky/catalogs")


async def plan(services: Services, spec: JobSpec, caller: Caller) -> PlanAnswer:
    """Plan a job of the caller's without recording it.

    Raises:
        InvalidInput: the input is not valid, or nothing is known of the model or GPU.
        Infeasible: no plan meets the deadline or budget; the next step says what would.
    """
    input_object = None
    if spec.input_file_id is not None:
        file = await services.database.run(files.get, spec.input_file_id, owner=caller.sees)
        input_object = file.object
    store, name = open_input(services.objects, input_object, spec.input_url)
    index_name = f"plans/{secrets.token_hex(8)}"
    try:
        report = await validate_input(
            store,
            name,
            index_store=services.objects,
            index_name=index_name,
            skip_invalid=spec.skip_invalid,
        )
    finally:
        await services.objects.delete(index_name)
    if not report.is_valid:
        first = report.errors[0]
        raise InvalidInput(
            f"line {first.line} of the input is not valid: {first.message}"
            + (f" (and {report.error_count - 1} more)" if report.error_count > 1 else ""),
            code=first.code,
            param="input",
        )
    return await asyncio.to_thread(_plan, services, spec, report)


def _plan(services: Services, spec: JobSpec, report: InputReport) -> PlanAnswer:
    offers = load_offers(SKYPILOT_CATALOGS.expanduser())
    if spec.cloud is not None:
        offers = tuple(offer for offer in offers if offer.provider == spec.cloud)
    quota, warnings = _quota(services, offers)
    planned: Plan = placement.plan_job(
        shape_of(spec.model),
        workload_of(_counts(report), max_output_tokens=spec.max_output_tokens),
        deadline_s=spec.slo_s,
        offers=offers,
        quota=quota,
        predictor=RooflinePredictor(),
        wish=_wish(spec),
        budget_usd=spec.budget_usd,
    )
    answer = PlanAnswer.model_validate(placement.to_json(planned))
    return answer.model_copy(update={"warnings": [*answer.warnings, *warnings]})


def _wish(spec: JobSpec) -> Wish:
    named = None if spec.gpu in {None, "auto"} else gpu_named(str(spec.gpu)).name
    return Wish(
        gpu=named,
        tp=spec.tp,
        pp=spec.pp,
        replicas=spec.replicas,
        region=spec.region,
        on_demand=spec.on_demand,
        force=spec.force,
    )


def _counts(report: InputReport) -> SubmitCounts:
    prompts, limits = report.prompt_chars, report.output_limits
    return SubmitCounts(
        requests=report.requests,
        # The longest prompt is not counted at submit; twice the 95th percentile stands for it.
        characters=Lengths(
            mean=prompts.mean, p50=prompts.p50, p95=prompts.p95, largest=max(2 * prompts.p95, prompts.p50)
        ),
        answer_limits=Lengths(mean=limits.mean, p50=limits.mean, p95=limits.max, largest=limits.max),
        with_limit=limits.given,
        is_embedding=report.url == "/v1/embeddings",
    )


def _quota(services: Services, offers: Sequence[Offer]) -> tuple[dict[tuple[str, str, str], int], list[str]]:
    """Read what may still be launched; without AWS access a plan says that it does not know."""
    regions = sorted({offer.region for offer in offers if offer.provider == "aws" and offer.region})
    try:
        return free_vcpus(QuotaReader(services.clock).read(regions)), []
    except (InvalidInput, NotAllowed, Retryable) as exc:
        return {}, [f"AWS quotas are not known, so none limits this plan ({exc.message})"]
