"""How each provider turns running time into billed time.

All of them bill the container or machine, not its requests: however many share it, its time counts once,
from its start (loading the model included) to its end (the idle scaledown window included). They differ in
the least time and in how they round.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import TYPE_CHECKING, Final

from tandemn.ledger.entries import RuleName

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class BillingRule:
    """Seconds lived -> seconds billed."""

    minimum_s: Decimal = Decimal(0)
    increment_s: Decimal = Decimal(0)
    """Rounded up to a multiple of this; 0: not rounded."""

    def billed_s(self, lived_s: Decimal) -> Decimal:
        """Return the seconds to pay for; never fewer than were lived."""
        seconds = max(lived_s, self.minimum_s, Decimal(0))
        if not self.increment_s:
            return seconds
        return (seconds / self.increment_s).to_integral_value(ROUND_CEILING) * self.increment_s


RULES: Final[Mapping[RuleName, BillingRule]] = {
    # This machine, and whatever else has no rule of its own.
    RuleName.EXACT: BillingRule(),
    # Linux instances: by the second, at least 60 (aws.amazon.com/ec2/pricing, read 2026-11). That AWS waives the
    # first hour of a spot instance that it takes back itself is left out: only its bill can tell who ended it.
    RuleName.EC2: BillingRule(minimum_s=Decimal(60), increment_s=Decimal(1)),
    # No minimum and no increments (modal.com/docs/guide/billing, read 2026-11).
    RuleName.MODAL: BillingRule(),
    # From a worker's start until it has fully stopped, rounded up to the second
    # (docs.runpod.io/serverless/pricing, read 2026-11).
    RuleName.RUNPOD: BillingRule(increment_s=Decimal(1)),
    # GPUs are billed by instance: its whole life (cloud.google.com/run/docs/configuring/billing-settings, read
    # 2026-11), rounded up to 100 ms. The minute at least is from memory of cloud.google.com/run/pricing, which
    # could not be read: it makes figures rather too high than too low.
    RuleName.CLOUD_RUN: BillingRule(minimum_s=Decimal(60), increment_s=Decimal("0.1")),
}
