"""Ends deployments whose budget is used up."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog

from tandemn.control import deployment_cost
from tandemn.control.store import deployments
from tandemn.errors import TandemnError
from tandemn.ledger import budget
from tandemn.ledger.budget import Advice
from tandemn.protocol.deployments import DeploymentState
from tandemn.serving.lifecycle import DRAIN_S

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from tandemn.clock import Clock
    from tandemn.control.services import Pulse
    from tandemn.control.store.database import Database
    from tandemn.control.store.deployments import DeploymentRecord

_log = structlog.get_logger()

#: Between two looks: as often as meters are read.
LOOK_S = 5.0
#: How long taking a deployment down takes at the most beside draining: what that costs is kept of the budget.
SHUTDOWN_S = DRAIN_S + 60.0


class BudgetKeeper:
    """A task of the leader."""

    def __init__(self, database: Database, clock: Clock, pulse: Pulse, *, look_s: float = LOOK_S) -> None:
        self._database = database
        self._clock = clock
        self._pulse = pulse
        self._look_s = look_s

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            with suppress(TandemnError):
                await self.look()
            await asyncio.sleep(self._look_s)

    async def halt(self) -> None:
        """What is over its budget still is at the next leader's look."""

    async def look(self) -> None:
        """Look at every deployment that has a budget."""
        states = [state for state in DeploymentState if not state.has_ended]
        for record in await self._database.run(deployments.all_of, states):
            if record.spec.budget_usd is not None and not record.is_deleting:
                await self._judge(record)

    async def _judge(self, record: DeploymentRecord) -> None:
        now = self._clock.now()
        verdict = await self._database.run(_verdict, record, now)
        if verdict.advice is Advice.GO_ON:
            return
        _log.warning("a budget is reached", service_name=record.service_name, reason=verdict.reason)
        await self._database.run(
            deployments.begin_over_budget, record.service_name, verdict.reason, now=self._clock.now()
        )
        self._pulse.beat(record.service_name)


def _verdict(connection: Connection, record: DeploymentRecord, now: float) -> budget.Verdict:
    cost = deployment_cost.priced(connection, record, now=now)
    return budget.decide(
        cost.spent, cost.spending.usd_per_hour, budget_usd=record.spec.budget_usd, shutdown_s=SHUTDOWN_S
    )
