"""What a deployment would be made of, and why: asks providers who is signed in, makes nothing."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tandemn.control.access import restrictions
from tandemn.control.store import deployments
from tandemn.control.store.deployments import Plans, changed_fields
from tandemn.errors import InvalidInput, MissingDependency, Retryable, TandemnError
from tandemn.ledger import budget
from tandemn.placement.catalog.gpus import gpu_named
from tandemn.placement.catalog.skypilot import CATALOGS, load_offers
from tandemn.placement.deployments import DeploymentOption, deployment_options, to_json
from tandemn.placement.throughput import RooflinePredictor
from tandemn.protocol.deployments import (
    BackendPlanView,
    DeploymentPlan,
    DeploymentRequest,
    DeploymentSpec,
    RouterPlanView,
)
from tandemn.protocol.replicas import Market
from tandemn.serving.choice import Choice, choose_provider
from tandemn.serving.providers.adapters import providers
from tandemn.serving.providers.provider import LOCAL, LOCAL_SPOT, SKYSERVE, spot_provider
from tandemn.serving.router_host import host_name
from tandemn.serving.spec import AUTO, CPU

if TYPE_CHECKING:
    from tandemn.control.access.rules import Caller
    from tandemn.control.providers import Providers
    from tandemn.control.services import Services
    from tandemn.control.store.deployments import DeploymentRecord
    from tandemn.placement.model_shape import ModelShape
    from tandemn.serving.providers.provider import BackendPlan, Provider

#: Names of the backends.
SERVERLESS, SPOT = "serverless", "spot"
#: How long a provider may take to say who is signed in, in seconds; one that does not answer is left out.
CHECK_S = 20.0
#: Never chosen where no provider is named: this machine, and what rents spot instances.
_ONLY_BY_NAME = frozenset({LOCAL, LOCAL_SPOT, SKYSERVE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """Everything that recording a deployment takes, and what a user is shown of it."""

    spec: DeploymentSpec
    """With what was left open filled in."""
    plans: Plans
    view: DeploymentPlan


async def plan(
    services: Services, request: DeploymentRequest, caller: Caller, *, is_look: bool = False
) -> Planned:
    """Plan a deployment of the caller's without recording it.

    A deployment that is there already keeps the GPU and the provider that were chosen for it.

    Args:
        services: what the control plane has.
        request: what is asked for.
        caller: who asks.
        is_look: nothing will be recorded: where nobody is signed in anywhere, the plan has no backends, and says so.

    Raises:
        InvalidInput: nobody can serve it as it is asked for, or nobody is signed in.
        Conflict: the name is taken by a deployment with other settings.
        Infeasible: the model does not fit the GPU (`does_not_fit`), or a budget cannot be kept.
    """
    spec = request.spec
    restrictions.check_model(spec.model, caller.role)
    runs_here = spec.gpu == CPU or LOCAL in {spec.serverless_provider, spec.spots_cloud}
    restrictions.check_engine_args(spec.engine_args, caller.role, runs_here=runs_here)
    record = await services.database.run(deployments.find, spec.service_name, caller=caller)
    spec = _kept(spec, record)
    if record is not None:
        deployments.refuse_other(record, spec, is_update=request.is_update)
    shape, notes = await _shape(services, spec, caller)
    options = () if shape is None else await asyncio.to_thread(_options, spec, shape, force=request.force)
    spec = _with_gpu(spec, options)
    choice: Choice | None = None
    backends: dict[str, BackendPlan] = {}
    try:
        choice, backends = await _placed(services.providers, spec, is_new=record is None)
        spec = spec.model_copy(update={"serverless_provider": choice.plan.provider})
    except InvalidInput as exc:
        if not (is_look and options and exc.code == "no_serverless_provider"):
            raise
        notes = [*notes, str(exc)]
    host = await services.providers.host(host_name(spec))
    # In a thread: a price is looked up in SkyPilot's catalogs.
    router = await asyncio.to_thread(host.plan, spec)
    plans = Plans(backends=backends, router=router)
    if not request.force:
        prices = [*(each.usd_per_hour for each in backends.values()), router.usd_per_hour]
        budget.check_prices(prices, budget_usd=spec.budget_usd)
    view = _view(spec, plans, choice, record)
    more = {"warnings": [*view.warnings, *notes], "options": to_json(options)}
    return Planned(spec=spec, plans=plans, view=view.model_copy(update=more))


async def _placed(
    opened: Providers, spec: DeploymentSpec, *, is_new: bool
) -> tuple[Choice, dict[str, BackendPlan]]:
    """Choose where each backend goes."""
    choice = await _choose(opened, spec, is_new=is_new)
    backends = {SERVERLESS: choice.plan}
    if spec.has_spot:
        backends[SPOT] = await _spot(opened, spec, is_new=is_new)
    return choice, backends


def _kept(spec: DeploymentSpec, record: DeploymentRecord | None) -> DeploymentSpec:
    """Write the GPU as the catalog does, and fill in what was chosen before, where the choice is left open now."""
    chosen: dict[str, object] = {}
    if spec.gpu not in {CPU, AUTO}:
        chosen["gpu"] = gpu_named(spec.gpu).name
    if record is not None and spec.gpu == AUTO:
        before = record.spec
        chosen = {"gpu": before.gpu, "gpu_count": before.gpu_count, "tp_size": before.tp_size}
    if record is not None and spec.serverless_provider is None:
        chosen["serverless_provider"] = record.spec.serverless_provider
    return spec.model_copy(update=chosen)


async def _shape(
    services: Services, spec: DeploymentSpec, caller: Caller
) -> tuple[ModelShape | None, list[str]]:
    """The model's sizes, where they are needed and known, and what could not be found out."""
    if spec.gpu == CPU:
        return None, []
    try:
        return await services.shapes.of(spec.model, may_be_file=caller.sees is None), []
    except (InvalidInput, Retryable) as exc:
        if spec.gpu == AUTO:
            raise
        return None, [f"whether the model fits {spec.gpu_count} x {spec.gpu} is not known: {exc.message}"]


def _options(spec: DeploymentSpec, shape: ModelShape, *, force: bool) -> tuple[DeploymentOption, ...]:
    """GPUs that the model fits."""
    is_auto = spec.gpu == AUTO
    return deployment_options(
        shape,
        load_offers(Path.home() / CATALOGS),
        RooflinePredictor(),
        context=spec.max_model_len,
        gpu=None if is_auto else spec.gpu,
        gpu_count=None if is_auto else spec.gpu_count,
        # What a quantised copy takes is not known here.
        force=force or spec.quantization is not None,
    )


def _with_gpu(spec: DeploymentSpec, options: tuple[DeploymentOption, ...]) -> DeploymentSpec:
    """Take the cheapest GPU that somebody has serverless, where the choice is left open."""
    if spec.gpu != AUTO:
        return spec
    best = next((each for each in options if each.serverless_provider is not None), None)
    if best is None:
        raise InvalidInput(
            f"no serverless provider has a GPU that {spec.model} fits",
            code="no_serverless_provider",
            next_step=f"`tandemn plan --model {spec.model} --gpu auto` shows what it fits",
            param="gpu",
        )
    return spec.model_copy(update={"gpu": best.gpu, "gpu_count": best.gpu_count, "tp_size": best.gpu_count})


async def _choose(opened: Providers, spec: DeploymentSpec, *, is_new: bool) -> Choice:
    if spec.serverless_provider is None:
        return await _cheapest(opened, spec)
    provider = await opened.provider(spec.serverless_provider, spec)
    if provider.market is not Market.SERVERLESS:
        raise InvalidInput(
            f"{provider.name} has no serverless backends",
            code="unknown_provider",
            next_step="leave --serverless-provider out, or name one of docs/providers.md",
            param="serverless_provider",
        )
    choice = choose_provider(spec, {provider.name: provider})
    if is_new:
        await _signed_in(provider)
    return choice


async def _cheapest(opened: Providers, spec: DeploymentSpec) -> Choice:
    """Choose among the providers that can serve it and that somebody is signed in to."""
    names = [name for name in providers() if name not in _ONLY_BY_NAME]
    asked = await asyncio.gather(*(_able(opened, name, spec) for name in names))
    able: dict[str, Provider] = {}
    left: dict[str, str] = {}
    for name, answer in zip(names, asked, strict=True):
        if isinstance(answer, TandemnError):
            left[name] = answer.message
        elif answer is not None:
            able[name] = answer
    return choose_provider(spec, able, left)


async def _able(opened: Providers, name: str, spec: DeploymentSpec) -> Provider | TandemnError | None:
    """Return the provider where it can serve the spec and somebody is signed in, else why not."""
    try:
        provider = await opened.provider(name, spec)
        if provider.market is not Market.SERVERLESS:
            return None
        provider.plan(spec)
        await _signed_in(provider)
    except TandemnError as exc:
        return exc
    return provider


async def _signed_in(provider: Provider) -> None:
    """Find out now what the first create would find out.

    Raises:
        TandemnError: what the provider says, or that it does not answer.
    """
    try:
        async with asyncio.timeout(CHECK_S):
            await provider.check()
    except TimeoutError as exc:
        raise InvalidInput(
            f"{provider.name} did not say within {CHECK_S:g} s who is signed in",
            code="provider_unavailable",
            next_step=f"`tandemn check --provider {provider.name}` tries again",
        ) from exc


async def _spot(opened: Providers, spec: DeploymentSpec, *, is_new: bool) -> BackendPlan:
    name = spot_provider(spec.spots_cloud)
    if name not in providers():
        raise MissingDependency(
            f"spot backends on {spec.spots_cloud} need the provider {name}, which is not installed",
            next_step="--serverless-only does without",
            param="spots_cloud",
        )
    provider = await opened.provider(name, spec)
    planned = provider.plan(spec)
    if is_new:
        await _signed_in(provider)
    return planned


def _view(
    spec: DeploymentSpec, plans: Plans, choice: Choice | None, record: DeploymentRecord | None
) -> DeploymentPlan:
    router = plans.router
    assert router is not None, "a plan has a router"
    return DeploymentPlan(
        service_name=spec.service_name,
        spec=spec,
        state=record.state if record is not None else None,
        changed=changed_fields(record.spec, spec) if record is not None else [],
        backends=[
            BackendPlanView(
                name=name,
                market=each.market,
                provider=each.provider,
                remote_name=each.remote_name,
                place=each.place or None,
                price_usd_per_hour=each.usd_per_hour,
                price_source=each.price_source or None,
                least_replicas=spec.scaling.spot.min_replicas if name == SPOT else 0,
                most_replicas=each.most_replicas
                or (spec.scaling.spot.max_replicas if name == SPOT else None),
                reason=choice.reason if name == SERVERLESS and choice is not None else None,
            )
            for name, each in plans.backends.items()
        ],
        router=RouterPlanView(
            host=router.host,
            remote_name=router.remote_name,
            price_usd_per_hour=router.usd_per_hour,
            price_source=router.price_source or None,
        ),
        left_out=list(choice.others) if choice is not None else [],
        warnings=plans.warnings,
    )
