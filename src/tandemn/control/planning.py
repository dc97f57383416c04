"""What a job would run on, and why: counts the input, asks the placement, launches nothing."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tandemn.batch.input_process import validate_input
from tandemn.control import advice
from tandemn.control.clouds import ANY
from tandemn.control.inputs import open_input
from tandemn.control.store import files
from tandemn.control.submission import check_spec
from tandemn.errors import Infeasible, InvalidInput, NotAllowed, Retryable
from tandemn.fleet.engines.engine import DEMO_MODEL
from tandemn.koi.recommendation import overridden
from tandemn.koi.resources import resources
from tandemn.koi.weighing import weigh
from tandemn.placement import plan as placement
from tandemn.placement.candidates import Wish
from tandemn.placement.catalog.gpus import gpu_named
from tandemn.placement.quota import free_vcpus
from tandemn.placement.throughput import RooflinePredictor
from tandemn.placement.workload import Lengths, SubmitCounts, within_context, workload_of
from tandemn.protocol.plans import PlanAnswer
from tandemn.settings import hub_cache

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tandemn.batch.input import InputReport
    from tandemn.control.access.rules import Caller
    from tandemn.control.services import Services
    from tandemn.koi.contract import Resources
    from tandemn.koi.recommendation import Choice, Recommendation, Unused
    from tandemn.placement.catalog.offers import Offer
    from tandemn.placement.model_shape import ModelShape
    from tandemn.placement.plan import Plan
    from tandemn.placement.quota import Quota
    from tandemn.placement.workload import Workload
    from tandemn.protocol.jobs import JobSpec
    from tandemn.protocol.plans import KoiAdvice


async def plan(services: Services, spec: JobSpec, caller: Caller) -> PlanAnswer:
    """Plan a job of the caller's without recording it.

    Raises:
        InvalidInput: the input is not valid, or nothing is known of the model or GPU.
        Infeasible: no plan meets the deadline or budget; the next step says what would.
    """
    check_spec(services, spec, caller)
    input_object = None
    if spec.input_file_id is not None:
        file = await services.database.run(files.get, spec.input_file_id, owner=caller.sees)
        input_object = file.object
    if spec.model == DEMO_MODEL:
        raise InvalidInput(
            f"{DEMO_MODEL} runs on this machine, where there is nothing to choose",
            code="cannot_plan",
            next_step="deploy it, or plan a model that runs in a cloud",
            param="model",
        )
    store, name = open_input(services.objects, input_object, spec.input_url)
    index_name = f"plans/{secrets.token_hex(8)}"
    try:
        report = await validate_input(
            store,
            name,
            index_store=services.objects,
            index_name=index_name,
            skip_invalid=spec.skip_invalid,
            model=None if spec.model_from_lines else spec.model,
            hub_cache=hub_cache(),
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
    counts = submit_counts(report.requests, submit_statistics(report), report.url)
    shape = await services.shapes.of(spec.model, may_be_file=caller.sees is None)
    needs = await asyncio.to_thread(needs_of, services, spec, counts, shape)
    planned, koi = await weighed_plan(services, spec, needs, job_id=None)
    return _answer(planned, needs).model_copy(update={"koi": koi})


async def weighed_plan(
    services: Services, spec: JobSpec, needs: Needs, *, job_id: str | None
) -> tuple[Plan, KoiAdvice | None]:
    """Plan what is needed; with Koi, weigh its recommendation against that. Raises Infeasible."""
    own, asked = await asyncio.gather(
        asyncio.to_thread(_own_plan, needs, spec), _ask(services, spec, needs, job_id=job_id)
    )
    if asked is None:
        return _or_raise(own), None
    weighed = await asyncio.to_thread(
        weigh, own, asked, partial(_plan_of_choice, needs, spec), follow=spec.advisor == "koi"
    )
    workload = needs.workload
    tokens = workload.requests * (workload.input_tokens.mean + workload.output_tokens.mean)
    return weighed.plan, weighed.advice.model_copy(update={"expected_tokens": round(tokens)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a plan is made from."""

    shape: ModelShape
    workload: Workload
    offers: tuple[Offer, ...]
    quotas: tuple[Quota, ...]
    warnings: list[str]


def needs_of(services: Services, spec: JobSpec, counts: SubmitCounts, shape: ModelShape) -> Needs:
    """Gather what a plan of counted requests is made from."""
    offers = offers_on(services, spec.cloud)
    quotas, warnings = _quotas(services, offers)
    workload, too_long = within_context(
        workload_of(counts, max_output_tokens=spec.max_output_tokens), shape.max_context
    )
    return Needs(
        shape=shape,
        workload=workload,
        offers=offers,
        quotas=quotas,
        warnings=[*warnings, *([too_long] if too_long else [])],
    )


def with_whole_quotas(needs: Needs) -> Needs:
    """Take the quotas as if nothing ran."""
    return replace(needs, quotas=tuple(replace(quota, used=0) for quota in needs.quotas))


def offers_on(services: Services, cloud: str | None) -> tuple[Offer, ...]:
    """What can be rented there, by the catalogs that there are."""
    return tuple(services.clouds.offers(cloud))


def _own_plan(needs: Needs, spec: JobSpec) -> Plan | Infeasible:
    try:
        return _plan(needs, spec, _wish(spec), needs.offers)
    except Infeasible as exc:
        return exc


def _or_raise(plan: Plan | Infeasible) -> Plan:
    if isinstance(plan, Infeasible):
        raise plan
    return plan


def _plan_of_choice(needs: Needs, spec: JobSpec, choice: Choice) -> Plan:
    """Plan as if the user had asked for Koi's choice by flags, and without --force."""
    wish = _wish(overridden(spec, choice).model_copy(update={"force": False}))
    return _plan(needs, spec, wish, tuple(offer for offer in needs.offers if choice.allows(offer)))


def _plan(needs: Needs, spec: JobSpec, wish: Wish, offers: Sequence[Offer]) -> Plan:
    return placement.plan_job(
        needs.shape,
        needs.workload,
        deadline_s=spec.slo_s,
        offers=offers,
        quota=free_vcpus(needs.quotas),
        predictor=RooflinePredictor(),
        wish=wish,
        budget_usd=spec.budget_usd,
    )


def _answer(plan: Plan, needs: Needs) -> PlanAnswer:
    answer = PlanAnswer.model_validate(placement.to_json(plan))
    return answer.model_copy(update={"warnings": [*answer.warnings, *needs.warnings]})


async def _ask(
    services: Services, spec: JobSpec, needs: Needs, *, job_id: str | None
) -> Recommendation | Unused | None:
    wish, workload = _wish(spec), needs.workload
    return await advice.ask(
        services,
        spec,
        resources(
            (offer for offer in needs.offers if wish.allows(offer)),
            needs.quotas,
            notes=needs.warnings,
            now=services.clock.now(),
        ),
        job_id=job_id,
        requests=workload.requests,
        input_tokens=workload.input_tokens.mean,
        output_tokens=workload.output_tokens.mean,
    )


async def resources_at_hand(services: Services) -> Resources:
    """List everything that can be rented, and the quotas that are known."""

    def read() -> Resources:
        offers = offers_on(services, ANY)
        quotas, notes = _quotas(services, offers)
        return resources(offers, quotas, notes=notes, now=services.clock.now())

    return await asyncio.to_thread(read)


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


def submit_statistics(report: InputReport) -> dict[str, Any]:
    """What is kept of a validated input, for `submit_counts`."""
    tokens = report.prompt_tokens
    return {
        "prompt_chars": asdict(report.prompt_chars),
        "messages_mean": report.messages_mean,
        "prompt_tokens": asdict(tokens) if tokens is not None else None,
        "output_limits": asdict(report.output_limits),
    }


def submit_counts(requests: int, statistics: Mapping[str, Any], endpoint: str | None) -> SubmitCounts:
    """What validation counted, as the placement takes it."""
    prompts, limits = statistics["prompt_chars"], statistics["output_limits"]
    tokens = statistics.get("prompt_tokens") or {}
    return SubmitCounts(
        requests=requests,
        characters=Lengths(
            mean=prompts["mean"],
            p50=prompts["p50"],
            p95=prompts["p95"],
            # Jobs that an earlier version took in have no longest: twice the 95th percentile stands for it.
            largest=prompts.get("max", max(2 * prompts["p95"], prompts["p50"])),
        ),
        answer_limits=Lengths(
            mean=limits["mean"], p50=limits["mean"], p95=limits["max"], largest=limits["max"]
        ),
        with_limit=limits["given"],
        messages_mean=statistics.get("messages_mean", 1.0),
        tokens_per_character=tokens.get("per_character"),
        counted=tokens.get("prompts", 0),
        longest_tokens=tokens.get("longest"),
        is_embedding=endpoint == "/v1/embeddings",
    )


def _quotas(services: Services, offers: Sequence[Offer]) -> tuple[tuple[Quota, ...], list[str]]:
    """Read what may still be launched; without AWS access a plan says that it does not know."""
    regions = sorted({offer.region for offer in offers if offer.provider == "aws" and offer.region})
    try:
        return services.quotas.read(regions), []
    except (InvalidInput, NotAllowed, Retryable) as exc:
        return (), [f"AWS quotas are not known, so none limits this plan ({exc.message})"]
