"""Which serverless provider serves a deployment: the one that is named, else the cheapest that can. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from tandemn.errors import InvalidInput
from tandemn.placement.catalog.gpus import gpu_named
from tandemn.serving.spec import CPU

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tandemn.protocol.deployments import DeploymentSpec
    from tandemn.serving.providers.provider import BackendPlan, Provider


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The plan to follow, and why."""

    plan: BackendPlan
    reason: str
    others: tuple[str, ...] = ()
    """Why each other provider was left."""


def choose_provider(
    spec: DeploymentSpec, configured: Mapping[str, Provider], left: Mapping[str, str] | None = None
) -> Choice:
    """Plan with every configured provider and take the cheapest.

    Args:
        spec: what to serve.
        configured: providers that somebody is signed in to, by name; only the named one where the spec names one.
        left: why the others are not configured, by name.

    Raises:
        InvalidInput: the GPU is unknown, or nobody who is configured offers it.
    """
    gpu = spec.gpu if spec.gpu == CPU else gpu_named(spec.gpu).name
    plans: list[BackendPlan] = []
    why = dict(left or {})
    for name, provider in sorted(configured.items()):
        try:
            plans.append(provider.plan(spec))
        except InvalidInput as exc:
            if spec.serverless_provider == name:
                raise
            why[name] = exc.message
    reasons = tuple(f"{name}: {reason}" for name, reason in sorted(why.items()))
    if not plans:
        raise InvalidInput(
            f"no serverless provider can serve {gpu}: {'; '.join(reasons) or 'none is configured'}",
            code="no_serverless_provider",
            next_step="sign in to one that offers it; docs/providers.md says how",
            param="serverless_provider",
        )
    # An unknown price is no low one.
    best = min(plans, key=lambda plan: (plan.usd_per_hour is None, plan.usd_per_hour or Decimal(0)))
    if spec.serverless_provider == best.provider:
        reason = "it was asked for"
    elif best.usd_per_hour is None:
        reason = "its price is not known, nor any other's"
    else:
        reason = f"${best.usd_per_hour} an hour is the lowest list price of {gpu} ({best.price_source})"
    dearer = tuple(
        f"{plan.provider}: ${plan.usd_per_hour} an hour"
        if plan.usd_per_hour is not None
        else f"{plan.provider}: its price is not known"
        for plan in plans
        if plan is not best
    )
    return Choice(plan=best, reason=reason, others=(*dearer, *reasons))
