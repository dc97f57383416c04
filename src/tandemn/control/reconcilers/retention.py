"""Removes what has expired: files, outputs, and what a crash left of either. Never of a job that has not ended."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from tandemn.control import names, series
from tandemn.control.retention import DAY_S, kept_since
from tandemn.control.store import files, jobs, replicas, samples
from tandemn.errors import Conflict, NotFound, Superseded, TandemnError
from tandemn.fleet.launchers.skypilot import log_path

if TYPE_CHECKING:
    from tandemn.control.services import Services
    from tandemn.control.store.records import FileRecord

_log = structlog.get_logger()

#: Between two sweeps.
SWEEP_S = 60.0
#: Files, and jobs, that one sweep looks at: the next one has the rest.
AT_A_TIME = 500
#: How long an upload or a removal may be under way before what it left is taken for a crash's.
LEFT_OVER_S = DAY_S


class Retention:
    """The leader's task."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._is_halted = False

    async def run(self) -> None:
        """Sweep until cancelled or halted."""
        while not self._is_halted:
            try:
                await sweep(self._services)
            except Superseded:
                raise
            except TandemnError as exc:
                _log.warning("what has expired cannot be removed now", error=str(exc))
            await asyncio.sleep(SWEEP_S)

    async def halt(self) -> None:
        """Begin no sweep any more; one that is under way may be cut off anywhere."""
        self._is_halted = True


async def sweep(services: Services) -> int:
    """Remove what has expired by now; return how many files, jobs and series that were."""
    now = services.clock.now()
    since = kept_since(now, services.settings.retention_days)
    removed = 0
    run = services.database.run
    for file in await run(files.expired, now=now, kept_since=since, limit=AT_A_TIME):
        try:
            await run(files.hide, file.file_id, now=now, actor=None, reason="expired")
        except (Conflict, NotFound):
            continue  # a job reads it since, or its owner was faster
        await remove(services, file)
        removed += 1
    for file in await run(files.left_over, before=now - LEFT_OVER_S, limit=AT_A_TIME):
        await remove(services, file)
        removed += 1
    if since is not None:
        for job_id in await run(jobs.unpurged, ended_before=since, limit=AT_A_TIME):
            await services.objects.delete_prefix(names.job_folder(job_id))
            for each in await run(replicas.of_job, job_id):
                log = log_path(services.settings.home_path, each.replica_id)
                await asyncio.to_thread(log.unlink, missing_ok=True)
            await run(jobs.change, job_id, purged_at=now)
            removed += 1
    kept_days = min(series.KEPT_DAYS, services.settings.retention_days or series.KEPT_DAYS)
    before = now - kept_days * DAY_S
    return removed + await run(samples.forget_ended, before=before, limit=AT_A_TIME)


async def remove(services: Services, file: FileRecord) -> None:
    """Remove a hidden file's object, then its row; safe to repeat."""
    await services.objects.delete(file.object)
    await services.database.run(files.forget, file.file_id)
