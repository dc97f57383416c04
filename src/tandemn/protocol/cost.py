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
