"""Changing a running job's fleet: add, kill, swap, destroy. Each records intent; the reconciler acts.

Nothing undoes a manual change: a kill lowers the number wanted, an add raises it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tandemn.control import submission
from tandemn.control.store import events, jobs, replicas
from tandemn.errors import Conflict, InvalidInput, NotFound
from tandemn.events import EventKind
from tandemn.fleet.engines.engine import EngineName
from tandemn.fleet.reconcile import STOP_GRACE_S, wanted_after
from tandemn.protocol.jobs import (
    AddAnswer,
    AddRequest,
    JobState,
    KillAnswer,
    ReplicaConfig,
    SwapAnswer,
    SwapRequest,
)
from tandemn.protocol.replicas import Market

if TYPE_CHECKING:
    from typing import Any

    from sqlalchemy import Connection

    from tandemn.control.services import Services
    from tandemn.control.store.records import JobRecord, ReplicaRecord

#: States in which a job has a fleet that can be changed.
_CHANGEABLE = frozenset({JobState.WAITING, JobState.LAUNCHING, JobState.RUNNING})


async def add(services: Services, job_id: str, request: AddRequest, *, actor: str) -> AddAnswer:
    """Want more replicas: of the job's current configuration, or of one with the given changes.

    Raises:
        QueueUnavailable: Redis is down; nothing was changed.
    """
    await services.queue.ping()
    now = services.clock.now()

    def record(connection: Connection) -> AddAnswer:
        job = _changeable(connection, job_id)
        config = _changed(job, first_group(job), request, market=_market(request.on_demand))
        groups = [dict(group) for group in job.groups]
        index = next((i for i in open_groups(job) if _same(groups[i], config)), None)
        if index is None:
            index = len(groups)
            groups.append({"config": config.model_dump(mode="json"), "wanted": 0})
        groups[index]["wanted"] += request.replicas
        jobs.change(connection, job.job_id, groups=groups)
        new = replicas.request(
            connection,
            job.job_id,
            group=index,
            config=config,
            launcher=job.cloud or "local",
            count=request.replicas,
            now=now,
            reason="added by request",
        )
        events.append(
            connection,
            EventKind.REPLICAS_ADDED,
            now=now,
            job_id=job.job_id,
            actor=actor,
            new=new,
            replicas_wanted=sum(group["wanted"] for group in groups),
        )
        return AddAnswer(job_id=job.job_id, new=new, config=config)

    answer = await services.database.run(record)
    services.pulse.beat(answer.job_id)
    return answer


async def kill(services: Services, job_id: str, wanted: list[str], *, actor: str) -> KillAnswer:
    """End replicas: their chunks are taken back at once, and they are not replaced.

    Raises:
        QueueUnavailable: Redis is down; nothing was changed.
    """
    await services.queue.ping()
    now = services.clock.now()

    def find(connection: Connection) -> tuple[JobRecord, list[ReplicaRecord]]:
        job = _changeable(connection, job_id)
        fleet = replicas.of_job(connection, job.job_id)
        # All names are checked before anything is done: a mistyped one changes nothing.
        return job, [_named(job, fleet, name) for name in dict.fromkeys(wanted)]

    job, found = await services.database.run(find)
    skipped = {each.replica_id: _why_not_killed(each) for each in found if _why_not_killed(each)}
    reclaimed = 0
    killed = [each.replica_id for each in found if each.replica_id not in skipped]
    for replica_id in killed:
        delay_ms = round(STOP_GRACE_S * 1000)
        reclaimed += len(await services.desk.revoke(job.job_id, holder=replica_id, delay_ms=delay_ms))

    def record(connection: Connection) -> int:
        groups = [dict(group) for group in jobs.get(connection, job.job_id).groups]
        for replica in found:
            if replica.replica_id in killed and replicas.change(
                connection, replica.replica_id, kill_requested=True
            ):
                groups[replica.group]["wanted"] = max(0, groups[replica.group]["wanted"] - 1)
        jobs.change(connection, job.job_id, groups=groups)
        left: int = sum(group["wanted"] for group in groups)
        events.append(
            connection,
            EventKind.REPLICAS_KILLED,
            now=now,
            job_id=job.job_id,
            actor=actor,
            killed=killed,
            chunks_reclaimed=reclaimed,
            replicas_wanted=left,
        )
        return left

    left = await services.database.run(record)
    services.pulse.beat(job.job_id)
    return KillAnswer(
        job_id=job.job_id,
        killed=killed,
        skipped=skipped,
        chunks_reclaimed=reclaimed,
        replicas_wanted=left,
    )


async def swap(services: Services, job_id: str, request: SwapRequest, *, actor: str) -> SwapAnswer:
    """Replace all replicas by others: the new first; the old end once enough of the new compute.

    Raises:
        QueueUnavailable: Redis is down; nothing was changed.
    """
    await services.queue.ping()
    now = services.clock.now()

    def record(connection: Connection) -> SwapAnswer:
        job = _changeable(connection, job_id)
        if job.swap is not None and job.swap["state"] in {"launching", "draining"}:
            raise Conflict(
                f"a swap of {job.job_id} is under way ({job.swap['state']})",
                code="swap_under_way",
                next_step=f"wait for it, or stop it: tandemn swap {job.job_id} --cancel",
                object_id=job.job_id,
            )
        fleet = replicas.of_job(connection, job.job_id)
        old = [each.replica_id for each in fleet if not each.state.has_ended and not each.kill_requested]
        count = request.replicas or max(1, len(old))
        threshold = request.ready_threshold or count
        if threshold > count:
            raise InvalidInput(
                f"--ready-threshold {threshold} is more than the {count} new replicas",
                code="threshold_too_high",
                param="ready_threshold",
            )
        config = _changed(job, first_group(job), request, market=_market(request.on_demand))
        index = len(job.groups)
        groups = [*job.groups, {"config": config.model_dump(mode="json"), "wanted": count}]
        under_way = {
            "state": "launching",
            "reason": "new replicas are being launched",
            "new_group": index,
            "first_group": first_group(job),
            "threshold": threshold,
            "old": old,
        }
        jobs.change(connection, job.job_id, groups=groups, swap=under_way)
        new = replicas.request(
            connection,
            job.job_id,
            group=index,
            config=config,
            launcher=job.cloud or "local",
            count=count,
            now=now,
            reason="swapped in by request",
        )
        events.append(
            connection,
            EventKind.SWAP_BEGAN,
            now=now,
            job_id=job.job_id,
            actor=actor,
            new=new,
            old=old,
            threshold=threshold,
            is_fixed=request.replicas is not None,
        )
        return SwapAnswer(job_id=job.job_id, new=new, old=old, config=config, threshold=threshold)

    answer = await services.database.run(record)
    services.pulse.beat(answer.job_id)
    return answer


async def cancel_swap(services: Services, job_id: str, *, actor: str) -> None:
    """Stop a swap whose old replicas still work: the new ones end, the old ones stay."""
    now = services.clock.now()

    def record(connection: Connection) -> None:
        job = _changeable(connection, job_id)
        if job.swap is None or job.swap["state"] != "launching":
            state = job.swap["state"] if job.swap else "none was begun"
            raise Conflict(
                f"there is no swap of {job.job_id} to cancel ({state})",
                code="no_swap_to_cancel",
                object_id=job.job_id,
            )
        move_swap(connection, job, to="cancelled", reason="cancelled by request", now=now, actor=actor)

    await services.database.run(record)
    services.pulse.beat(job_id)


def move_swap(
    connection: Connection, job: JobRecord, *, to: str, reason: str, now: float, actor: str | None = None
) -> None:
    """Record the swap's next state, and which groups are wanted from then on."""
    assert job.swap is not None, "a swap that moves was begun"
    wanted = wanted_after([group["wanted"] for group in job.groups], new_group=job.swap["new_group"], to=to)
    groups = [group | {"wanted": count} for group, count in zip(job.groups, wanted, strict=True)]
    jobs.change(connection, job.job_id, groups=groups, swap={**job.swap, "state": to, "reason": reason})
    if to in {"failed", "cancelled"}:
        # Marked themselves: the next swap may begin before they have ended.
        for replica in replicas.of_job(connection, job.job_id):
            if replica.group == job.swap["new_group"]:
                replicas.change(connection, replica.replica_id, kill_requested=True)
    kind = EventKind.SWAP_DRAINING if to == "draining" else EventKind.SWAP_ENDED
    events.append(connection, kind, now=now, job_id=job.job_id, actor=actor, state=to, reason=reason)


async def destroy(services: Services, job_id: str, *, actor: str) -> None:
    """End the job if it runs, and every replica of it, those that were to persist too."""
    await submission.request_cancel(services, job_id, actor=actor)

    def record(connection: Connection) -> None:
        job = jobs.get(connection, job_id)
        # A job that is being cancelled ends its replicas itself, and keeps what they finished.
        if job.state.has_ended or job.state is JobState.ASSEMBLING:
            killed = [
                replica.replica_id
                for replica in replicas.of_job(connection, job_id)
                if replicas.change(connection, replica.replica_id, kill_requested=True)
            ]
            if killed:
                events.append(
                    connection,
                    EventKind.REPLICAS_KILLED,
                    now=services.clock.now(),
                    job_id=job_id,
                    actor=actor,
                    killed=killed,
                    chunks_reclaimed=0,
                )

    await services.database.run(record)
    services.pulse.beat(job_id)


def _changeable(connection: Connection, job_id: str) -> JobRecord:
    job = jobs.get(connection, job_id)
    if job.state not in _CHANGEABLE:
        raise Conflict(
            f"job {job.job_id} is {job.state}: its replicas cannot be changed",
            code="job_not_running",
            object_id=job.job_id,
        )
    return job


def first_group(job: JobRecord) -> int:
    """Groups below this one were swapped out; its configuration is the job's own."""
    if job.swap is None:
        return 0
    went_through = job.swap["state"] in {"draining", "done"}
    first: int = job.swap["new_group"] if went_through else job.swap["first_group"]
    return first


def open_groups(job: JobRecord) -> list[int]:
    """Groups that replicas can be added to: neither swapped out, nor of a swap that came to nothing."""
    swap = job.swap
    closed = swap["new_group"] if swap and swap["state"] in {"failed", "cancelled"} else None
    return [index for index in range(first_group(job), len(job.groups)) if index != closed]


def _changed(
    job: JobRecord, group: int, request: AddRequest | SwapRequest, *, market: Market
) -> ReplicaConfig:
    config = ReplicaConfig.model_validate(job.groups[group]["config"])
    changes: dict[str, Any] = {"market": market}
    asked = {name: value for name in ("gpu", "tp", "pp") if (value := getattr(request, name)) is not None}
    if asked:
        # What a plan found fit for the machines of another shape says nothing of these.
        changes |= {"dp": 1, "nodes": 1, "regions": ()} | asked
    changed = config.model_copy(update=changes)
    check_local(job.cloud, job.engine, changed)
    return changed


def check_local(cloud: str | None, engine: str | None, config: ReplicaConfig) -> None:
    """Raise InvalidInput where this machine cannot be what `config` asks for."""
    if cloud != "local" or engine == EngineName.SIMULATED:
        return
    if config.gpu != "cpu" or config.tp * config.pp != 1:
        asked = f"{config.gpu} x {config.tp * config.pp}"
        raise InvalidInput(
            f"{asked} was asked for, but replicas of this job run on this machine's CPU",
            code="gpu_not_local",
            param="gpu",
            next_step="use --gpu cpu --tp 1; a named GPU needs a cloud that has it",
        )


def _same(group: dict[str, Any], config: ReplicaConfig) -> bool:
    return bool(group["config"] == config.model_dump(mode="json"))


def _market(on_demand: bool) -> Market:  # noqa: FBT001 - it is what the flag says
    return Market.ON_DEMAND if on_demand else Market.SPOT


def _named(job: JobRecord, fleet: list[ReplicaRecord], name: str) -> ReplicaRecord:
    for replica in fleet:
        if name in {replica.replica_id, replica.name}:
            return replica
    have = ", ".join(each.name for each in fleet if not each.state.has_ended) or "none is live"
    raise NotFound(
        f"job {job.job_id} has no replica {name}",
        code="replica_not_found",
        next_step=f"live replicas: {have}",
        object_id=name,
    )


def _why_not_killed(replica: ReplicaRecord) -> str:
    if replica.state.has_ended:
        return f"it has ended: {replica.state}"
    return "it is being killed already" if replica.kill_requested else ""
