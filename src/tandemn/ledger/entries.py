"""The facts that the ledger folds: what began and ended to cost, what was metered, what was billed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from decimal import Decimal

    from tandemn.prices import Price


class Part(StrEnum):
    """What the money went to."""

    LOCAL = "local"
    SPOT = "spot"
    ON_DEMAND = "on-demand"
    SERVERLESS = "serverless"
    ROUTER = "router"
    CONTROLLER = "controller"


class Label(StrEnum):
    """How far a figure can be trusted, the most first."""

    BILLED = "billed"
    """The provider's own figure."""
    METERED = "metered"
    """Time that was observed, at a price that was read."""
    ESTIMATED = "estimated"
    """Time that was worked out, not observed."""


class RuleName(StrEnum):
    """By whose rule running time becomes billed time; see billing_rules.py."""

    EXACT = "exact"
    EC2 = "ec2"
    MODAL = "modal"
    RUNPOD = "runpod"
    CLOUD_RUN = "cloudrun"


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A machine, process or container began to cost: from launch, so that its cold start is included."""

    at: float
    item: str
    """Unique for good: what ends and begins again is another item."""
    owner: str
    """The job or deployment that pays."""
    part: Part
    price: Price | None
    """None: not known."""
    rule: RuleName = RuleName.EXACT
    label: Label = Label.METERED
    """METERED where its beginning and end are observed, else ESTIMATED."""
    backend: str = ""
    """The backend of a deployment that it serves."""
    account: str = ""
    """What a provider's bill would name it under; empty: no bill will come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """It is gone: what launched it said so."""

    at: float
    item: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Repriced:
    """From `at` on, the item runs at another price; at its very beginning: the price became known later."""

    at: float
    item: str
    price: Price | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterRead:
    """A router's running totals for one backend; reading them twice changes nothing."""

    owner: str
    meter: str
    """One series of totals. A router that begins again from zero is another meter."""
    backend: str
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated_completion_tokens: int = 0
    """How many of the completion tokens were counted from events rather than told by the engine."""
    inflight_s: tuple[tuple[int, float], ...] = ()
    """Seconds spent at each number of requests in flight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Billed:
    """A provider's figure for one account and period, as read at `at`; a later reading replaces it."""

    at: float
    owner: str
    account: str
    part: Part
    start: float
    end: float
    """How far the figure reaches; for a period under way, no further than it was complete when read."""
    usd: Decimal
    """Not negative: credits are no saving of ours, so adapters leave them out."""

    def __post_init__(self) -> None:
        assert self.usd >= 0, "a bill is not negative"


Fact = Started | Ended | Repriced | MeterRead | Billed
