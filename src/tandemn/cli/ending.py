"""Ending deployments: ask for it, and wait until every provider has said that nothing is left."""

from __future__ import annotations

import asyncio
import sys
import time

from tandemn.cli.deployment_steps import Steps, follow
from tandemn.cli.job import forget_interrupt
from tandemn.cli.output import note
from tandemn.client import UserClient
from tandemn.errors import Broken
from tandemn.protocol.deployments import DeploymentState, DeploymentStatus

#: How long the providers are waited for; the control plane goes on after that.
WAIT_S = 1800.0


async def end_deployments(client: UserClient, names: list[str], *, as_json: bool) -> list[DeploymentStatus]:
    """End these deployments, beside each other; return how they stand when all are gone.

    Raises:
        Broken: some are still there after half an hour (`destroy_unfinished`); they are still being deleted.
    """
    # All of them are asked for before any is waited for: Ctrl-C must not leave the last ones running.
    begun = [await client.destroy_deployment(name) for name in names]
    stream = sys.stderr if as_json else sys.stdout
    waits = [
        follow(
            client,
            status,
            until=lambda seen: seen.state is not DeploymentState.DELETING,
            show=Steps(stream, status.service_name if len(begun) > 1 else None),
        )
        for status in begun
    ]
    began = time.monotonic()
    try:
        async with asyncio.timeout(WAIT_S):
            return list(await asyncio.gather(*waits))
    except TimeoutError as exc:
        raise Broken(
            f"not everything is gone after {time.monotonic() - began:.0f} s",
            code="destroy_unfinished",
            next_step="it is still being deleted; `tandemn list --state deleting` shows what is left",
        ) from exc
    except asyncio.CancelledError:
        forget_interrupt()
        note("interrupted: the deletion goes on without this command")
        note("`tandemn list --state deleting` shows what is left")
        raise KeyboardInterrupt from None
