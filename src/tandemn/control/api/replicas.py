"""What runners call: hello, heartbeat, lease, upload, complete, goodbye. The replica's own token opens it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import Connection

from tandemn.batch.chunk_table import ChunkResult
from tandemn.batch.leases import Lease
from tandemn.batch.queue import Token
from tandemn.control import names
from tandemn.control.api.dependencies import CallingReplica, ServicesNow
from tandemn.control.api.ranges import parse_range
from tandemn.control.inputs import input_of
from tandemn.control.services import Services
from tandemn.control.store import chunks, events, jobs, replicas, samples
from tandemn.control.store.records import JobRecord, ReplicaRecord
from tandemn.errors import Conflict, InvalidInput, LeaseLost, NotAllowed, QueueUnavailable
from tandemn.events import EventKind
from tandemn.objects import ObjectStore
from tandemn.protocol import replicas as protocol
from tandemn.protocol.replicas import ReplicaState

router = APIRouter(prefix="/api/replicas/{replica_id}")

RangeHeader = Annotated[str, Header(alias="Range")]

#: How often a long poll looks for chunks that came free by a lease running out, which nobody announces.
POLL_S = 0.5
#: How long a presigned URL works: longer than any lease is renewed between two requests for one.
URL_S = 6 * 3600
NO_CONTENT = Response(status_code=204)


@router.post("/hello")
async def hello(replica: CallingReplica, services: ServicesNow) -> protocol.Assignment:
    now = services.clock.now()
    job = await services.database.run(jobs.get, replica.job_id)

    def record(connection: Connection) -> None:
        values = {"said_hello_at": now, "last_seen": now}
        if replica.state is ReplicaState.LAUNCHING:
            values["state"] = ReplicaState.STARTING.value  # type: ignore[assignment]
        is_first = replicas.get(connection, replica.replica_id).said_hello_at is None
        if replicas.change(connection, replica.replica_id, **values) and is_first:
            events.append(
                connection,
                EventKind.REPLICA_CALLED,
                now=now,
                job_id=replica.job_id,
                replica_id=replica.replica_id,
            )

    await services.database.run(record)
    services.pulse.beat(replica.job_id)
    settings = services.settings
    assert job.engine is not None, "a replica is launched after planning"
    assert job.endpoint is not None
    return protocol.Assignment(
        job_id=job.job_id,
        replica_id=replica.replica_id,
        engine=job.engine,
        model=job.model,
        engine_args=job.spec.engine_args,
        tp=replica.config["tp"],
        pp=replica.config["pp"],
        dp=replica.config.get("dp", 1),
        endpoint=job.endpoint,
        max_output_tokens=job.spec.max_output_tokens,
        heartbeat_s=settings.heartbeat_s,
        flush_s=settings.flush_s,
        silence_s=settings.silence_s,
        engine_start_s=settings.engine_start_s,
        store_full_s=settings.store_full_s,
        servers=services.leadership.urls,
    )


@router.post("/heartbeat")
async def heartbeat(
    beat: protocol.Heartbeat, replica: CallingReplica, services: ServicesNow
) -> protocol.HeartbeatReply:
    now = services.clock.now()
    beat_s = services.settings.heartbeat_s
    changed = await services.database.run(_record_beat, replica, beat, now, beat_s)
    if changed:
        services.pulse.beat(replica.job_id)
    if replica.kill_requested:
        # Its leases were revoked; it stores what it finished before it ends.
        return protocol.HeartbeatReply(orders="stop", servers=services.leadership.urls)
    tokens = {each.chunk: _token(each.token) for each in beat.chunks}
    try:
        lost = await services.desk.renew(replica.job_id, holder=replica.replica_id, tokens=tokens)
    except QueueUnavailable:
        lost = []  # nobody else can be given its chunks either
    return protocol.HeartbeatReply(lost=lost, orders=_orders(replica), servers=services.leadership.urls)


def _record_beat(
    connection: Connection, replica: ReplicaRecord, beat: protocol.Heartbeat, now: float, beat_s: float
) -> bool:
    """Keep what it said; True where its state changed by it."""
    samples.add(connection, replica, beat, at=now, beat_s=beat_s)
    values: dict[str, object] = {"last_seen": now, "beat": beat.model_dump(mode="json")}
    before = replica.beat
    # Paces only between two beats of a working replica: the time in which it loaded is none of its pace.
    if before and before.state == "running" and replica.last_seen is not None and now > replica.last_seen:
        passed = now - replica.last_seen
        values["beat_rate"] = {
            "requests_per_s": max(0, beat.requests_done - before.requests_done) / passed,
            "tokens_per_s": max(0, beat.output_tokens - before.output_tokens) / passed,
        }
    state = None
    if beat.state == "running" and replica.state in {ReplicaState.LAUNCHING, ReplicaState.STARTING}:
        state = ReplicaState.RUNNING
        events.append(
            connection,
            EventKind.REPLICA_READY,
            now=now,
            job_id=replica.job_id,
            replica_id=replica.replica_id,
        )
    elif beat.state == "draining" and replica.state is ReplicaState.RUNNING:
        state = ReplicaState.DRAINING
    if state is not None:
        values["state"] = state.value
    replicas.change(connection, replica.replica_id, **values)
    for each in beat.chunks:
        if each.recomputed is not None:
            chunks.report_progress(
                connection,
                replica.job_id,
                chunk=each.chunk,
                token=each.token,
                computed=each.completed + each.failed,
                recomputed=each.recomputed,
            )
    return state is not None


@router.post("/lease")
async def lease(
    request: protocol.LeaseRequest, replica: CallingReplica, services: ServicesNow
) -> protocol.LeaseReply:
    """Give chunks, holding the answer back for up to `wait_s` while there are none."""
    end = asyncio.get_running_loop().time() + request.wait_s
    while True:
        orders = _orders(replica)
        if orders != "go_on":
            return protocol.LeaseReply(orders=orders)
        leases: list[Lease] = []
        if services.clock.now() >= services.leasing_from:
            with suppress(Conflict):  # sealed: the order to stop follows
                leases = await services.desk.lease(
                    replica.job_id, holder=replica.replica_id, limit=request.limit, steal=request.is_idle
                )
        if leases:
            job = await services.database.run(jobs.get, replica.job_id)
            return protocol.LeaseReply(
                leases=[await _described(services, job, replica, each) for each in leases]
            )
        left = end - asyncio.get_running_loop().time()
        if left <= 0:
            return protocol.LeaseReply()
        await services.pulse.wait(replica.job_id, min(left, POLL_S))
        replica = await services.database.run(replicas.get, replica.replica_id)
        if replica.state.has_ended:
            return protocol.LeaseReply(orders="stop")


async def _described(
    services: Services, job: JobRecord, replica: ReplicaRecord, lease: Lease
) -> protocol.ChunkLease:
    row = lease.row
    parts = []
    if row.grants > 1:
        async for name, size in services.objects.list(names.parts_folder(job.job_id, row.chunk)):
            url = await services.objects.sign_get(name, URL_S) or _object_path(replica, name)
            parts.append(protocol.PartRef(name=name, url=url, size=size))
    strikes = await services.database.run(chunks.strikes_of, job.job_id, [row.chunk])
    return protocol.ChunkLease(
        chunk=row.chunk,
        token=str(lease.token),
        input_url=await _input_url(services, job, replica),
        byte_start=row.byte_start,
        byte_end=row.byte_end,
        first_request=row.first_request,
        requests=row.requests,
        skipped=list(row.skipped),
        parts=parts,
        strikes=strikes[row.chunk],
        computed=row.computed,
        recomputed=row.recomputed,
    )


async def _input_url(services: Services, job: JobRecord, replica: ReplicaRecord) -> str:
    store, name = input_of(services, job)
    return await store.sign_get(name, URL_S) or f"/api/replicas/{replica.replica_id}/input"


@router.get("/input")
async def read_input(replica: CallingReplica, services: ServicesNow, wanted: RangeHeader = "") -> Response:
    job = await _unfinished(services, replica)
    store, name = input_of(services, job)
    return await _ranged(store, name, wanted)


@router.get("/objects/{name:path}")
async def read_object(
    name: str, replica: CallingReplica, services: ServicesNow, wanted: RangeHeader = ""
) -> Response:
    _check_name(replica, name, ("parts/",))
    await _unfinished(services, replica)
    return await _ranged(services.objects, name, wanted)


async def _unfinished(services: Services, replica: ReplicaRecord) -> JobRecord:
    """Read the replica's job. Raises LeaseLost where it has ended: what there is of it is not the replica's any more."""
    job = await services.database.run(jobs.get, replica.job_id)
    if job.state.has_ended:
        raise LeaseLost(f"job {job.job_id} has ended", object_id=job.job_id)
    return job


async def _ranged(store: ObjectStore, name: str, header: str) -> Response:
    """Answer with the range that was asked for, streamed; the end is the end of the object at most."""
    size = await store.size(name)
    start, end = parse_range(header, size)
    headers = {
        "Content-Range": f"bytes {start}-{max(start, end - 1)}/{size}",
        "Content-Length": str(end - start),
    }
    return StreamingResponse(
        store.stream(name, start, end),
        status_code=206 if header else 200,
        headers=headers,
        media_type="application/octet-stream",
    )


@router.post("/begin", status_code=204)
async def begin(chunk: protocol.ReleaseRequest, replica: CallingReplica, services: ServicesNow) -> Response:
    await services.desk.begin(replica.job_id, chunk=chunk.chunk, token=_token(chunk.token))
    if replica.began_at is None:
        now = services.clock.now()

        def record(connection: Connection) -> None:
            replicas.change(connection, replica.replica_id, began_at=now)
            events.append(
                connection,
                EventKind.REPLICA_BEGAN,
                now=now,
                job_id=replica.job_id,
                replica_id=replica.replica_id,
            )

        await services.database.run(record)
        services.pulse.beat(replica.job_id)
    return NO_CONTENT


@router.post("/upload-target")
async def upload_target(
    request: protocol.UploadRequest, replica: CallingReplica, services: ServicesNow
) -> protocol.UploadReply:
    """Say where an object goes. A finished chunk only while its lease stands; a part also after that:
    what a replica finished before it lost its lease spares the next holder the work.
    """
    job_id, token = replica.job_id, str(_token(request.token))

    async def target(name: str) -> protocol.UploadTarget:
        url = await services.objects.sign_put(name, URL_S) or _object_path(replica, name)
        return protocol.UploadTarget(name=name, url=url)

    if request.part is not None:
        return protocol.UploadReply(
            answers=await target(names.part_object(job_id, request.chunk, token, request.part))
        )
    row = await services.database.run(chunks.get, job_id, request.chunk)
    if row is None or row.done or row.token != token:
        raise LeaseLost(f"chunk {request.chunk} is not held under token {token}", object_id=job_id)
    return protocol.UploadReply(
        answers=await target(names.chunk_object(job_id, request.chunk, token)),
        errors=await target(names.chunk_errors_object(job_id, request.chunk, token)),
    )


@router.put("/objects/{name:path}", status_code=204)
async def write_object(
    name: str, request: Request, replica: CallingReplica, services: ServicesNow
) -> Response:
    _check_name(replica, name, ("parts/", "chunks/"))
    job = await services.database.run(jobs.get, replica.job_id)
    if job.state.has_ended:
        raise Conflict(f"job {job.job_id} has ended", code="job_ended", object_id=job.job_id)
    await services.objects.put_stream(name, request.stream())
    return NO_CONTENT


@router.post("/complete", status_code=204)
async def complete(
    request: protocol.CompleteRequest, replica: CallingReplica, services: ServicesNow
) -> Response:
    result = ChunkResult(
        completed=request.completed,
        failed=request.failed,
        recomputed=request.recomputed,
        prompt_tokens=request.prompt_tokens,
        output_tokens=request.output_tokens,
    )
    await services.desk.complete(
        replica.job_id,
        holder=replica.replica_id,
        chunk=request.chunk,
        token=_token(request.token),
        result=result,
    )
    services.pulse.beat(replica.job_id)
    return NO_CONTENT


@router.post("/release", status_code=204)
async def release(
    request: protocol.ReleaseRequest, replica: CallingReplica, services: ServicesNow
) -> Response:
    await services.desk.release(replica.job_id, chunk=request.chunk, token=_token(request.token))
    services.pulse.beat(replica.job_id)
    return NO_CONTENT


@router.post("/engine-death")
async def engine_death(
    death: protocol.EngineDeath, replica: CallingReplica, services: ServicesNow
) -> protocol.EngineDeathReply:
    now = services.clock.now()

    def record(connection: Connection) -> dict[int, dict[int, int]]:
        # One whose answer was lost, with the control plane perhaps, is reported again.
        if not chunks.has_counted(connection, replica.job_id, death.death_id):
            events.append(
                connection,
                EventKind.ENGINE_DIED,
                now=now,
                job_id=replica.job_id,
                replica_id=replica.replica_id,
                reason=death.reason,
                in_flight={str(chunk): requests for chunk, requests in death.in_flight.items()},
            )
        return chunks.add_strikes(connection, replica.job_id, death.in_flight, death_id=death.death_id)

    return protocol.EngineDeathReply(strikes=await services.database.run(record))


@router.post("/goodbye", status_code=204)
async def goodbye(last_words: protocol.Goodbye, replica: CallingReplica, services: ServicesNow) -> Response:
    now, beat_s = services.clock.now(), services.settings.heartbeat_s

    def record(connection: Connection) -> None:
        said = last_words.model_dump(mode="json")
        replicas.change(connection, replica.replica_id, goodbye=said, last_seen=now)
        if replica.beat is not None and replica.last_seen is not None:
            samples.add(connection, replica, replica.beat, at=replica.last_seen, beat_s=beat_s, is_last=True)

    await services.database.run(record)
    await release_all(services, replica)
    services.pulse.beat(replica.job_id)
    return NO_CONTENT


async def release_all(services: Services, replica: ReplicaRecord) -> list[int]:
    """Give back all that an ended replica held, also what a kill held back for it."""
    freed = await services.desk.revoke(replica.job_id, holder=replica.replica_id)
    return freed + await services.desk.free(replica.job_id, holder=replica.replica_id)


def _orders(replica: ReplicaRecord) -> str:
    return "stop" if replica.kill_requested else replica.orders


def _object_path(replica: ReplicaRecord, name: str) -> str:
    return f"/api/replicas/{replica.replica_id}/objects/{name}"


def _check_name(replica: ReplicaRecord, name: str, folders: tuple[str, ...]) -> None:
    mine = tuple(names.job_folder(replica.job_id) + folder for folder in folders)
    if not name.startswith(mine) or ".." in name:
        raise NotAllowed(f"not an object of this replica's job: {name}", code="object_denied")


def _token(text: str) -> Token:
    try:
        return Token.parse(text)
    except ValueError as exc:
        raise InvalidInput(f"not a lease token: {text[:50]}", code="invalid_token", param="token") from exc
