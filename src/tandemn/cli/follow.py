"""Following a job until something holds of it, over restarts of the control plane."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tandemn.cli.connection import follow_restart, is_own
from tandemn.cli.output import note
from tandemn.client import UserClient
from tandemn.errors import Retryable, TandemnError
from tandemn.protocol.jobs import JobState, JobStatus

T = TypeVar("T")

#: Between two looks at a job that runs, or tries to reach the control plane.
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
    status: JobStatus | None = None
    while True:
        began = time.monotonic()
        pause_s = 0.0 if status is None else next(pauses, LOOK_S)
        # The control plane answers at once where the state changes: nobody waits for the end of a pause then.
        before, status = status, await look(client, job_id, since=status, wait_s=pause_s)
        if show:
            show(status)
        if until(status):
            return status
        if before is not None and before.state is status.state:
            await asyncio.sleep(pause_s - (time.monotonic() - began))


async def look(
    client: UserClient, job_id: str, *, since: JobStatus | None = None, wait_s: float = 0.0
) -> JobStatus:
    """Return the job's status, at once or when it has left the state of `since`, at the latest after `wait_s`.

    A control plane that is away for a while is waited for.
    """
    return await patiently(
        client,
        lambda: client.job(job_id, wait_s=wait_s, state=since.state if since else None),
        f"`tandemn progress {job_id}` goes on watching",
    )


async def patiently(client: UserClient, ask: Callable[[], Awaitable[T]], next_step: str) -> T:
    """Ask until the control plane answers: it may be restarting.

    Args:
        client: follows it to another address.
        ask: what is asked, anew each time.
        next_step: what to do once it was away for too long.

    Raises:
        TandemnError: what it refused; or it did not answer for two minutes.
    """
    away_since: float | None = None
    while True:
        try:
            return await ask()
        except TandemnError as error:
            if not isinstance(error, Retryable) and is_own(client):
                raise
            now = time.monotonic()
            if away_since is None:
                away_since = now
                note(f"waiting: {error.message}")
            if now - away_since > OUTAGE_S:
                error.next_step = next_step
                raise
            await asyncio.sleep(LOOK_S)
            follow_restart(client)
