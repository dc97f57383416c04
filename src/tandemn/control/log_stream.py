"""Replicas' logs as one stream, each line led by its replica's short name."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tandemn.control.store import jobs, replicas
from tandemn.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tandemn.control.services import Services
    from tandemn.control.store.records import ReplicaRecord

#: How often a followed log is read again.
FOLLOW_S = 1.0
#: Lines read at a time of a log that is followed: a faster log loses lines, and says so.
FOLLOW_LINES = 5000


async def stream_logs(
    services: Services, job_id: str, *, replica: str | None, tail: int, follow: bool
) -> AsyncIterator[bytes]:
    """Return the last `tail` lines of each log, and with `follow` what comes after, until the job ends.

    Raises:
        NotFound: the job has no such replica.
    """
    chosen = await _chosen(services, job_id, replica)
    return _stream(services, job_id, replica, chosen, tail=tail, follow=follow)


async def _chosen(services: Services, job_id: str, replica: str | None) -> list[ReplicaRecord]:
    fleet = await services.database.run(replicas.of_job, job_id)
    if replica is None:
        return fleet
    chosen = [each for each in fleet if replica in {each.replica_id, each.name}]
    if not chosen:
        raise NotFound(f"job {job_id} has no replica {replica}", code="replica_not_found", object_id=replica)
    return chosen


async def _stream(
    services: Services,
    job_id: str,
    replica: str | None,
    chosen: list[ReplicaRecord],
    *,
    tail: int,
    follow: bool,
) -> AsyncIterator[bytes]:
    seen: dict[str, list[str]] = {}
    while True:
        # Asked before the logs are read: what a replica wrote last is not missed.
        is_last = not follow or (await services.database.run(jobs.get, job_id)).state.has_ended
        for each in chosen:
            launcher = services.launchers[each.launcher]
            count = tail if each.replica_id not in seen else FOLLOW_LINES
            lines = await asyncio.to_thread(launcher.log_tail, each.replica_id, max(count, 1))
            fresh = after(seen.get(each.replica_id, []), lines) if each.replica_id in seen else lines[:tail]
            seen[each.replica_id] = lines
            for line in fresh:
                yield f"{each.name} {line}\n".encode()
        if is_last:
            return
        await asyncio.sleep(FOLLOW_S)
        chosen = await _chosen(services, job_id, replica)


def after(before: list[str], now: list[str]) -> list[str]:
    """Return the lines of `now` that come after those of `before`, found by its last lines."""
    if not before:
        return now
    anchor = before[-3:]
    for end in range(len(now), 0, -1):
        if now[max(0, end - len(anchor)) : end] == anchor[-end:]:
            return now[end:]
    return ["... some lines were left out: the log grows faster than it is read ...", *now]
