"""A job's fleet: load what is recorded and observed, let the pure decisions speak, apply."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, assert_never

import structlog

from tandemn import prices
from tandemn.batch import lifecycle
from tandemn.control import cost
from tandemn.control.groups import fallen_back
from tandemn.control.operations import move_swap
from tandemn.control.reconcilers.orders import record_order
from tandemn.control.store import chunks, events, jobs, replicas
from tandemn.control.tokens import new_token, token_hash
from tandemn.errors import Conflict, NextOffer, Retryable, Superseded, TandemnError
from tandemn.events import EventKind
from tandemn.fleet import reconcile
from tandemn.fleet.launchers.launcher import LaunchSpec, Sighting
from tandemn.fleet.reasons import Ending, reason_code
from tandemn.fleet.reconcile import Presence
from tandemn.fleet.replica import advance
from tandemn.ledger.budget import Advice
from tandemn.protocol.jobs import JobState, ReplicaConfig
from tandemn.protocol.replicas import ReplicaState

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from tandemn.control.reconcilers.sharing import Places
    from tandemn.control.services import Services
    from tandemn.control.store.chunks import ChunkTotals
    from tandemn.control.store.records import JobRecord, ReplicaRecord
    from tandemn.fleet.launchers.launcher import Handle
    from tandemn.ledger.budget import Verdict

_log = structlog.get_logger()


async def step(services: Services, job: JobRecord, places: Places) -> bool:
    """Act on the fleet once, then see whether the job moves on; True: it did."""
    fleet = await services.database.run(replicas.of_job, job.job_id)
    fleet = await _adopt(services, fleet)
    observed = await _observe(services, fleet)
    persist = _may_persist(job) and await _is_within_budget(services, job)
    since = services.listening_since
    facts = _facts(job, fleet, observed, places, persist=persist, listening_since=since)
    decided = reconcile.decide(facts, services.clock.now())
    for action in decided:
        await _apply(services, job, places, {each.replica_id: each for each in fleet}, action)
    if job.state.has_ended or job.state is JobState.ASSEMBLING:
        return False
    return await _move(services, job.job_id)


async def _adopt(services: Services, fleet: list[ReplicaRecord]) -> list[ReplicaRecord]:
    """Find replicas whose launch was recorded but not what became of it: a control plane died in between."""
    adopted = []
    for replica in fleet:
        is_launched = replica.launched_at is not None and not replica.state.has_ended
        if is_launched and replica.handle is None:
            launcher = services.launchers[replica.launcher]
            handle = await asyncio.to_thread(launcher.find, replica.replica_id)
            if handle is not None:
                await services.database.run(replicas.change, replica.replica_id, handle=handle)
                replica = await services.database.run(replicas.get, replica.replica_id)  # noqa: PLW2901
        adopted.append(replica)
    return adopted


async def _observe(services: Services, fleet: list[ReplicaRecord]) -> dict[str, Sighting]:
    sightings: dict[str, Sighting] = {}
    for name, launcher in services.launchers.items():
        mine = [each for each in fleet if each.launcher == name and not each.state.has_ended]
        launched = [each for each in mine if each.handle is not None]
        handles = [each.handle for each in launched if each.handle is not None]
        if handles:
            seen = await asyncio.to_thread(launcher.observe, handles)
            sightings |= {each.replica_id: what for each, what in zip(launched, seen, strict=True)}
            for each, what in zip(launched, seen, strict=True):
                await _record_place(services, each, what)
        for each in mine:
            # Launching, but not to be found: it never came to be.
            sightings.setdefault(each.replica_id, Sighting(presence=Presence.GONE))
    return sightings


async def _record_place(services: Services, replica: ReplicaRecord, seen: Sighting) -> None:
    """Record once where a replica has landed, and what it costs there."""
    assert replica.handle is not None, "it was observed by it"
    if seen.place is None or replica.handle.get("place") == seen.place:
        return
    handle = {**replica.handle, "place": seen.place, "instance_type": seen.instance_type}

    def record(connection: Connection) -> None:
        if replicas.change(connection, replica.replica_id, handle=handle):
            events.append(
                connection,
                EventKind.REPLICA_PLACED,
                now=services.clock.now(),
                job_id=replica.job_id,
                replica_id=replica.replica_id,
                place=seen.place,
                instance_type=seen.instance_type,
                **prices.to_event(seen.price),
            )

    await services.database.run(record)


def _facts(
    job: JobRecord,
    fleet: list[ReplicaRecord],
    observed: dict[str, Sighting],
    places: Places,
    *,
    persist: bool,
    listening_since: float,
) -> reconcile.Fleet:
    return reconcile.Fleet(
        wanted=tuple(group["wanted"] for group in job.groups),
        replicas=tuple(
            _fact(each, observed.get(each.replica_id, Sighting(presence=Presence.GONE)), listening_since)
            for each in fleet
        ),
        swap=_swap_fact(job),
        needs_replicas=job.state in jobs.NEEDS_REPLICAS,
        persist=persist,
        walks=tuple(_walk(group) for group in job.groups),
        quota_returns=places.others_hold(job),
        may_start=places.may_start(job.job_id),
    )


def _walk(group: dict[str, Any]) -> reconcile.Walk | None:
    if "fallbacks" not in group:
        return None
    return reconcile.Walk(
        left=len(group["fallbacks"]),
        since=group.get("since", 0.0),
        tried=tuple(group.get("tried", [])),
    )


def _may_persist(job: JobRecord) -> bool:
    ends_well = job.state is not JobState.CANCELLING and job.outcome in {None, JobState.COMPLETED}
    return job.spec.persist and ends_well


async def _is_within_budget(services: Services, job: JobRecord) -> bool:
    return await services.database.run(_over_budget, job, services.clock.now()) is None


def _swap_fact(job: JobRecord) -> reconcile.Swap | None:
    if job.swap is None:
        return None
    return reconcile.Swap(
        state=job.swap["state"], new_group=job.swap["new_group"], threshold=job.swap["threshold"]
    )


def _fact(replica: ReplicaRecord, seen: Sighting, listening_since: float) -> reconcile.Replica:
    heard = replica.last_seen
    return reconcile.Replica(
        replica_id=replica.replica_id,
        group=replica.group,
        state=replica.state,
        market=ReplicaConfig.model_validate(replica.config).market,
        presence=seen.presence,
        launch_failure=_launch_failure(seen.failure) if seen.failure is not None else None,
        orders=replica.orders,
        kill_requested=replica.kill_requested,
        created_at=replica.created_at,
        not_before=replica.not_before,
        launched_at=replica.launched_at,
        said_hello=replica.said_hello_at is not None,
        began=replica.began_at is not None,
        stopping_at=replica.stopping_at,
        # While no control plane ran, every replica was silent in vain.
        last_seen=max(heard, listening_since) if heard is not None else None,
        ended_at=replica.ended_at,
        goodbye=replica.goodbye,
        requests_done=_requests_done(replica),
        code=replica.code,
        reason=replica.reason,
        condemned=replica.reason_code if not replica.state.has_ended else None,
    )


def _launch_failure(exc: TandemnError | OSError) -> reconcile.LaunchFailure:
    """Describe why a launch failed; what passes is tried again under one code."""
    code = "launch_failed" if isinstance(exc, (Retryable, OSError)) else exc.code
    return reconcile.LaunchFailure(code=code, reason=f"it could not be launched: {exc}")


def _requests_done(replica: ReplicaRecord) -> int:
    """Answers that it gave, at least: it may have completed a chunk since its last report.

    A chunk that was completed by an engine that did nothing but die holds none.
    """
    told = replica.beat.requests_done if replica.beat else 0
    only_died = replica.goodbye is not None and replica.goodbye.code == "engine_died"
    return told if only_died else max(told, replica.chunks_completed)


async def _apply(
    services: Services,
    job: JobRecord,
    places: Places,
    fleet: dict[str, ReplicaRecord],
    action: reconcile.Action,
) -> None:
    match action:
        case reconcile.Start():
            await _launch(services, job, places, fleet[action.replica_id])
        case reconcile.Order():
            await _order(services, fleet[action.replica_id], action)
        case reconcile.Terminate():
            await _terminate(services, fleet[action.replica_id], action)
        case reconcile.End():
            await end(services, fleet[action.replica_id], action)
        case reconcile.Request():
            await _request(services, job, action)
        case reconcile.FallBack():
            await _fall_back(services, job, action)
        case reconcile.GiveUp():
            await give_up(services, job.job_id, code=action.code, reason=action.reason)
        case reconcile.MoveSwap():
            await _move_swap(services, job, action)
        case _:
            assert_never(action)


async def _terminate(services: Services, replica: ReplicaRecord, action: reconcile.Terminate) -> None:
    _log.info("terminating", replica_id=replica.replica_id, reason=action.reason)
    # First recorded, then done: what is gone afterwards must not pass for a preemption.
    values: dict[str, Any] = {"reason": action.reason}
    if action.reason_code is not None:
        values["reason_code"] = action.reason_code.value
    await services.database.run(replicas.change, replica.replica_id, **values)
    if replica.handle is not None:
        await asyncio.to_thread(services.launchers[replica.launcher].terminate, replica.handle)


async def _request(services: Services, job: JobRecord, action: reconcile.Request) -> None:
    await services.database.run(
        replicas.request,
        job.job_id,
        group=action.group,
        config=ReplicaConfig.model_validate(job.groups[action.group]["config"]),
        launcher=job.cloud or "local",
        count=action.count,
        now=services.clock.now(),
        reason=action.reason,
        not_before=action.not_before,
    )


async def _fall_back(services: Services, job: JobRecord, action: reconcile.FallBack) -> None:
    """Make the group's next fallback its configuration; replicas that it has go on beside the new ones."""
    now = services.clock.now()

    def record(connection: Connection) -> None:
        fresh = jobs.get(connection, job.job_id)
        if fresh.groups != job.groups:
            return  # changed meanwhile; the next look decides on what it is then
        groups = [dict(group) for group in fresh.groups]
        fleet = replicas.of_job(connection, job.job_id)
        alive = sum(1 for each in fleet if each.group == action.group and not each.state.has_ended)
        groups[action.group] = group = fallen_back(
            groups[action.group], alive=alive, now=now, reason=action.reason
        )
        jobs.change(connection, job.job_id, groups=groups)
        events.append(
            connection,
            EventKind.PLAN_FELL_BACK,
            now=now,
            job_id=job.job_id,
            group=action.group,
            config=group["config"],
            replicas=group["wanted"],
            reason=action.reason,
        )

    await services.database.run(record)
    services.pulse.beat(job.job_id)


async def _move_swap(services: Services, job: JobRecord, action: reconcile.MoveSwap) -> None:
    now = services.clock.now()

    def move(connection: Connection) -> None:
        record = jobs.get(connection, job.job_id)
        if record.swap == job.swap:  # else it was cancelled, or another began
            move_swap(connection, record, to=action.to, reason=action.reason, now=now)

    await services.database.run(move)
    services.pulse.beat(job.job_id)


async def _launch(services: Services, job: JobRecord, places: Places, replica: ReplicaRecord) -> None:
    """Take a place and record the intent, launch, record the handle. A death in between is mended by `_adopt`."""
    config = ReplicaConfig.model_validate(replica.config)
    launcher = services.launchers[replica.launcher]
    price = await asyncio.to_thread(launcher.price, config, services.clock.now())
    now = services.clock.now()
    token = new_token()
    advance(replica.state, ReplicaState.LAUNCHING)

    def record(connection: Connection) -> bool:
        fresh = replicas.get(connection, replica.replica_id)
        if fresh.state is not ReplicaState.PENDING:
            return False  # ended or launched meanwhile
        events.append(
            connection,
            EventKind.REPLICA_LAUNCHED,
            now=now,
            job_id=job.job_id,
            replica_id=replica.replica_id,
            config=replica.config,
            launcher=replica.launcher,
            **prices.to_event(price),
        )
        return replicas.change(
            connection,
            replica.replica_id,
            state=ReplicaState.LAUNCHING.value,
            launched_at=now,
            token_hash=token_hash(token),
        )

    if not await places.take(job, replica.replica_id, lambda: services.database.run(record)):
        return
    spec = LaunchSpec(
        replica_id=replica.replica_id,
        job_id=job.job_id,
        config=config,
        engine=job.engine or "",
        server_url=services.server_url,
        other_urls=tuple(services.leadership.urls[1:]),
        token=token,
    )

    def launch() -> Handle:
        # A process that was stopped just before this line may have been replaced meanwhile.
        services.leadership.assert_leading()
        return launcher.launch(spec)

    try:
        handle = await asyncio.to_thread(launch)
    except Superseded:
        raise
    except (TandemnError, OSError) as exc:
        failure = _launch_failure(exc)
        ending = Ending(
            state=ReplicaState.FAILED,
            market=config.market,
            was_ready=False,
            code=failure.code if isinstance(exc, NextOffer) else "launch_failed",
        )
        await end(
            services,
            replica,
            reconcile.End(
                replica_id=replica.replica_id,
                state=ReplicaState.FAILED,
                reason=failure.reason,
                code=failure.code,
                reason_code=reason_code(ending),
            ),
        )
        return
    finally:
        places.is_launched(replica.replica_id)
    await services.database.run(replicas.change, replica.replica_id, handle=handle)


async def _order(services: Services, replica: ReplicaRecord, order: reconcile.Order) -> None:
    now = services.clock.now()

    def record(connection: Connection) -> None:
        record_order(connection, replica, orders=order.orders, reason=order.reason, now=now)

    await services.database.run(record)
    services.pulse.beat(replica.job_id)
    if order.orders == "stop" and replica.handle is not None:
        # The signal reaches it at once; the order is what its next call is answered.
        await asyncio.to_thread(services.launchers[replica.launcher].stop, replica.handle)


async def end(services: Services, replica: ReplicaRecord, action: reconcile.End) -> None:
    """Record that a replica has ended, and take back what it holds."""
    now = services.clock.now()
    launcher = services.launchers[replica.launcher]
    left = await asyncio.to_thread(launcher.remains, replica.replica_id)
    ending_code = action.reason_code.value if action.reason_code is not None else None

    def record(connection: Connection) -> bool:
        fresh = replicas.get(connection, replica.replica_id)
        if fresh.state.has_ended:
            return False
        for each in left:
            chunks.report_progress(
                connection,
                replica.job_id,
                chunk=each.chunk,
                token=each.token,
                computed=each.had,
                recomputed=each.recomputed,
            )
        events.append(
            connection,
            EventKind.REPLICA_ENDED,
            now=now,
            job_id=replica.job_id,
            replica_id=replica.replica_id,
            state=action.state.value,
            reason=action.reason,
            code=action.code,
            reason_code=ending_code,
        )
        return replicas.change(
            connection,
            replica.replica_id,
            state=advance(fresh.state, action.state).value,
            reason=action.reason,
            code=action.code,
            reason_code=ending_code,
            ended_at=now,
        )

    if not await services.database.run(record):
        return
    await asyncio.to_thread(launcher.clean, replica.replica_id)
    try:
        await services.desk.revoke(replica.job_id, holder=replica.replica_id)
        await services.desk.free(replica.job_id, holder=replica.replica_id)
    except (Retryable, Conflict) as exc:
        # Its leases run out by themselves.
        _log.warning("leases not taken back", replica_id=replica.replica_id, error=str(exc))
    services.pulse.beat(replica.job_id)


async def give_up(services: Services, job_id: str, *, code: str, reason: str) -> None:
    """End the job as failed; the answers that are finished are kept."""
    now = services.clock.now()

    def record(connection: Connection) -> None:
        jobs.move(
            connection,
            job_id,
            to=JobState.CANCELLING,
            frm=(JobState.PLANNING, JobState.WAITING, JobState.LAUNCHING, JobState.RUNNING),
            now=now,
            reason=reason,
            code=code,
            outcome=JobState.FAILED.value,
            cancelling_at=now,
        )

    await services.database.run(record)
    services.pulse.beat(job_id)


async def _move(services: Services, job_id: str) -> bool:
    """Let the job's own lifecycle decide on what is recorded now."""
    now = services.clock.now()

    def load_and_move(connection: Connection) -> bool:
        job = jobs.get(connection, job_id)
        over_budget = _over_budget(connection, job, now)
        totals, fleet = chunks.totals(connection, job_id), replicas.of_job(connection, job_id)
        facts = _job_facts(job, totals, fleet, over_budget)
        move = lifecycle.decide(facts, now)
        if move is None:
            return False
        if move.to is JobState.ASSEMBLING:
            assert move.outcome is not None, "a sealed job has an outcome"
            # A job that failed keeps the reason for which it did.
            reason = job.reason if job.code and job.reason else move.reason
            return jobs.seal(connection, job_id, outcome=move.outcome, now=now, reason=reason)
        values: dict[str, Any] = {}
        if move.to is JobState.RUNNING and job.started_at is None:
            values["started_at"] = now
        if move.to is JobState.CANCELLING:
            values |= {"outcome": move.outcome.value if move.outcome else None, "cancelling_at": now}
        if move.outcome is JobState.OVER_BUDGET and over_budget is not None:
            values["code"] = JobState.OVER_BUDGET.value
            _tell_over_budget(connection, job, over_budget, now)
        return jobs.move(
            connection, job_id, to=move.to, frm=(job.state,), now=now, reason=move.reason, **values
        )

    moved = await services.database.run(load_and_move)
    if moved:
        services.pulse.beat(job_id)
    return moved


def _over_budget(connection: Connection, job: JobRecord, now: float) -> Verdict | None:
    """Why the job's budget does not let it go on; None: it does, or there is none."""
    if job.spec.budget_usd is None:
        return None
    verdict = cost.verdict(connection, job, now=now)
    return None if verdict.advice is Advice.GO_ON else verdict


def _tell_over_budget(connection: Connection, job: JobRecord, verdict: Verdict, now: float) -> None:
    events.append(
        connection,
        EventKind.BUDGET_REACHED,
        now=now,
        job_id=job.job_id,
        budget_usd=str(job.spec.budget_usd),
        spent_usd=str(verdict.spent_usd),
        usd_per_hour=str(verdict.usd_per_hour),
        reason=verdict.reason,
    )


def _job_facts(
    job: JobRecord, totals: ChunkTotals, fleet: list[ReplicaRecord], over_budget: Verdict | None
) -> lifecycle.Facts:
    live = [each for each in fleet if not each.state.has_ended]
    return lifecycle.Facts(
        state=job.state,
        deadline=job.deadline,
        stop_at_deadline=job.spec.stop_at_deadline,
        cancelling_at=job.cancelling_at,
        outcome=job.outcome,
        chunks_total=totals.total,
        chunks_done=totals.done,
        replicas_live=len(live),
        replicas_started=sum(1 for each in live if each.launched_at is not None),
        replicas_begun=sum(1 for each in live if each.began_at is not None),
        over_budget=over_budget.reason if over_budget is not None else None,
    )
