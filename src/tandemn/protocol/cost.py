"""What something costs, as the command line and the control plane speak of it."""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

from pydantic import BaseModel

#: Billed by the provider; metered: observed time at a price that was read; estimated: worked out. A sum
#: carries its weakest.
Label = Literal["billed", "metered", "estimated"]


class FigureView(BaseModel):
    usd: Decimal | None
    """None: something in it has no known price."""
    at_least_usd: Decimal
    """What the priced things cost; equal to `usd` where that is known."""
    unknown: int = 0
    """How many things are in it whose price is not known."""
    label: Label | None = None
    """None: there was nothing to pay for."""


class PartView(FigureView):
    part: str
    """local, spot, on-demand, serverless, router or controller."""
    running: int
    seconds: float
    """Billed time, summed over the things that ran."""


class CostView(FigureView):
    """What a job has cost so far."""

    parts: list[PartView] = []
    usd_per_hour: Decimal | None = None
    """At this moment; None: something that runs has no known price."""
    since: float | None = None
    """When the first thing began to cost, Unix time."""
    usd_per_million_tokens: Decimal | None = None
    """Over tokens read and written."""
    planned_usd: Decimal | None = None
    """What the plan expected; estimated."""
    budget_usd: Decimal | None = None
    left_out: list[str] = []
    """What no figure here contains."""


class RouteView(BaseModel):
    """What a deployment's router sent to one backend."""

    backend: str
    market: str | None = None
    requests: int
    share: float | None = None
    """Of all requests."""
    prompt_tokens: int
    completion_tokens: int
    estimated_completion_tokens: int
    """How many of those were counted from events, where no usage came."""
    busy_s: float
    """Time with at least one request in flight."""


class SavingsView(BaseModel):
    """Another way of serving the same requests; worked out, so always estimated."""

    instead: FigureView
    saved_usd: Decimal | None = None
    """Negative: the other way would have been cheaper. None: one of the two is not known."""
    saved_share: float | None = None
    """Of what the other way would have cost."""


class DifferenceView(BaseModel):
    """A provider's bill that is more than 5% off what was metered for the same time."""

    account: str
    start: float
    end: float
    billed_usd: Decimal
    metered: FigureView
    share: float | None = None


class DeploymentCostView(FigureView):
    """`tandemn cost --service-name S --json`: what a deployment has cost so far."""

    service_name: str
    owner: str | None = None
    created_at: float
    """One of several that had the name is told by this."""
    ended_at: float | None = None
    parts: list[PartView] = []
    usd_per_hour: Decimal | None = None
    """At this moment; None: something that runs has no known price."""
    since: float | None = None
    """When the first thing began to cost, Unix time."""
    routes: list[RouteView] = []
    usd_per_million_tokens: Decimal | None = None
    """Over tokens read and written."""
    against_serverless: SavingsView
    against_on_demand: SavingsView
    budget_usd: Decimal | None = None
    differences: list[DifferenceView] = []
    metered_at: float | None = None
    """When the router's meter was read last; None: never."""
    notes: list[str] = []
    left_out: list[str] = []
    """What no figure here contains."""
