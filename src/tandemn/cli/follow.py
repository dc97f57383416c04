"""Following a job until something holds of it, over restarts of the control plane."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from tandemn.cli.connection import follow_restart
from tandemn.cli.output import note
from tandemn.client import UserClient
from tandemn.errors import Retryable
from tandemn.protocol.jobs import JobState, JobStatus

#: Between two looks at a job that runs.
LOOK_S = 0.5
#: A job is looked at more often at first: small inputs are validated, and small jobs done, within a second.
FIRST_LOOKS_S = (0.05, 0.05, 0.1, 0.1, 0.2, 0.3)
#: How long the control plane may be away (it restarts, Redis restarts) before the wait is given up.
OUTAGE_S = 120.0


def has_ended(status: JobStatus) -> bool:
    """Say whether the job has ended."""
    return status.state.has_ended


def is_planned(status: JobStatus) -> bool:
    """Say whether the input, the model and the engine have been judged: the rest is computing."""
    return status.state not in {JobState.VALIDATING, JobState.PLANNING}


async def follow(
    client: UserClient,
    job_id: str,
    *,
    until: Callable[[JobStatus], bool] = has_ended,
    show: Callable[[JobStatus], None] | None = None,
) -> JobStatus:
    """Look at the job until `until` holds; `show` is given every look.

    Raises:
        Retryable: the control plane did not answer for two minutes.
    """
    pauses = iter(FIRST_LOOKS_S)
    while True:
        status = await look(client, job_id)
        if show:
            show(status)
        if until(status):
            return status
        await asyncio.sleep(next(pauses, LOOK_S))


async def look(client: UserClient, job_id: str) -> JobStatus:
    """Return the job's status; wait for a control plane that is away for a while."""
    away_since: float | None = None
    while True:
        try:
            return await client.job(job_id)
        except Retryable as error:
            now = time.monotonic()
            if away_since is None:
                away_since = now
                note(f"waiting: {error.message}")
            if now - away_since > OUTAGE_S:
                error.next_step = f"`tandemn progress {job_id}` goes on watching"
                raise
            await asyncio.sleep(LOOK_S)
            follow_restart(client)
