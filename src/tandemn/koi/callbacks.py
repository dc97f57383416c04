"""Which events Koi is told of, and in which words (PURE). A callback's id says what it is about, not when it was made:
the same thing, told twice, has the same id.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from tandemn.events import EventKind
from tandemn.koi import contract
from tandemn.koi.recommendation import plain
from tandemn.koi.resources import wire_market
from tandemn.protocol.jobs import JobState
from tandemn.protocol.replicas import Market, ReasonCode, ReplicaState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tandemn.koi.contract import Envelope
    from tandemn.protocol.plans import KoiAdvice

#: Events that callbacks are made of; all others cost nothing.
KINDS = frozenset(
    {EventKind.REPLICA_CALLED, EventKind.REPLICA_READY, EventKind.REPLICA_ENDED, EventKind.JOB_ENDED}
)
#: Launches that a `launch-failed` names at most, the latest.
MAX_LAUNCHES = 100

_STATUS: Mapping[JobState, Literal["succeeded", "failed", "cancelled", "expired", "over_budget"]] = {
    JobState.COMPLETED: "succeeded",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
    JobState.EXPIRED: "expired",
    JobState.OVER_BUDGET: "over_budget",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Callback:
    """What is posted, and where."""

    job_id: str
    path: str
    body: Envelope


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldJob:
    """A job that Koi was asked about, as callbacks tell of it."""

    job_id: str
    advice: KoiAdvice
    deadline: float
    created_at: float
    started_at: float | None = None
    requests: int = 0
    completed: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0

    @property
    def decision_id(self) -> str | None:
        """The recommendation that it follows."""
        return self.advice.decision_id if self.advice.is_followed else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldReplica:
    """One of its replicas."""

    replica_id: str
    gpu: str
    tp: int
    pp: int
    dp: int = 1
    market: Market
    region: str | None = None
    instance_type: str | None = None
    launched_at: float | None = None
    was_called: bool = False
    """Whether its runner ever called: its machine was there."""
    reason: str | None = None
    reason_code: ReasonCode | None = None

    @property
    def attempt_index(self) -> int:
        """Its number within the job."""
        number = self.replica_id.rpartition("-r")[2]
        return int(number) if number.isdigit() else 0


def of_replica_event(
    kind: EventKind, data: Mapping[str, Any], job: ToldJob, replica: ToldReplica, now: float
) -> list[Callback]:
    """Tell of something that happened to a replica; `data` is the event's own."""
    match kind:
        case EventKind.REPLICA_CALLED:
            return [_attempted(job, replica, now, failure=None), _launching(job, replica, now)]
        case EventKind.REPLICA_READY:
            return [_started(job, replica, now)]
        case EventKind.REPLICA_ENDED:
            return _ended(data, job, replica, now)
        case _:
            return []


def of_job_end(
    data: Mapping[str, Any], job: ToldJob, replicas: Sequence[ToldReplica], now: float
) -> list[Callback]:
    """Tell that a job has ended, and before that, where it was so, that nothing of it could be launched."""
    state = JobState(data["state"])
    launched = [each for each in replicas if each.launched_at is not None]
    told = []
    if state is JobState.FAILED and launched and not any(each.was_called for each in launched):
        told.append(_launch_failed(data, job, launched, now))
    return [*told, _complete(state, data, job, now)]


def pulses(launched_at: float | None, *, now: float, every_s: float) -> int:
    """How often it should have been told until now that a launch goes on."""
    return int(max(0.0, now - launched_at) // every_s) if launched_at is not None else 0


def heartbeat(
    job: ToldJob, replica: ToldReplica, number: int, *, every_s: float, note: str | None
) -> Callback:
    """Tell for the `number`-th time that a launch goes on."""
    assert replica.launched_at is not None, "a launch that goes on has begun"
    # Not the present: whoever tells it again after a restart says the same.
    at = replica.launched_at + number * every_s
    body = contract.LaunchHeartbeat(
        **_envelope(job, f"{replica.replica_id}:launch_heartbeat:{number}", at),
        **_of_replica(job, replica),
        phase="starting" if replica.was_called else "launching",
        message=plain(note or ""),
        timestamp=at,
    )
    return _callback("/job/launch-heartbeat", job, body)


def _attempted(job: ToldJob, replica: ToldReplica, now: float, *, failure: str | None) -> Callback:
    body = contract.ConfigAttempted(
        **_envelope(job, f"{replica.replica_id}:config_attempted", now),
        job_id=job.job_id,
        group_id=job.job_id,
        decision_id=job.decision_id,
        **_place(replica),
        **_layout(replica),
        launched=failure is None,
        failure_reason=failure or "",
        time_to_launch=max(0.0, now - replica.launched_at) if replica.launched_at is not None else 0.0,
        attempt_index=replica.attempt_index,
    )
    return _callback("/job/config-attempted", job, body)


def _launching(job: ToldJob, replica: ToldReplica, now: float) -> Callback:
    body = contract.Launching(
        **_envelope(job, f"{replica.replica_id}:job_launching", now), **_of_replica(job, replica)
    )
    return _callback("/job/launching", job, body)


def _started(job: ToldJob, replica: ToldReplica, now: float) -> Callback:
    advice = job.advice
    recommended = (advice.gpu, advice.tp, advice.pp)
    body = contract.Started(
        **_envelope(job, f"{replica.replica_id}:job_started", now),
        job_id=replica.replica_id,
        replica_id=replica.replica_id,
        group_id=job.job_id,
        decision_id=job.decision_id,
        **_place(replica),
        **_layout(replica),
        slo_deadline_hours=(job.deadline - now) / 3600,
        total_tokens=advice.expected_tokens or 0,
        predicted_tps=(advice.predicted_tokens_per_s or 0.0) if advice.is_followed else 0.0,
        is_fallback=advice.is_followed and recommended != (replica.gpu, replica.tp, replica.pp),
    )
    return _callback("/job/started", job, body)


def _ended(data: Mapping[str, Any], job: ToldJob, replica: ToldReplica, now: float) -> list[Callback]:
    code, reason = data.get("reason_code"), plain(data.get("reason") or "")
    if code is None or replica.launched_at is None:
        return []
    if not replica.was_called:
        # Whoever killed it before it was there has not learnt whether it could be had.
        return [] if code == ReasonCode.KILLED else [_attempted(job, replica, now, failure=reason or code)]
    state = ReplicaState(data["state"])
    body = contract.ReplicaFailed(
        **_envelope(job, f"{replica.replica_id}:replica_failed", now),
        job_id=replica.replica_id,
        replica_id=replica.replica_id,
        group_id=job.job_id,
        decision_id=job.decision_id,
        instance_type=replica.instance_type or "unknown",
        region=replica.region or "unknown",
        market=wire_market(replica.market),
        status=cast("Literal['failed', 'preempted', 'killed']", state.value),
        reason=reason,
        reason_code=ReasonCode(code),
        reason_detail=reason,
    )
    return [_callback("/job/replica-failed", job, body)]


def _launch_failed(
    data: Mapping[str, Any], job: ToldJob, launched: Sequence[ToldReplica], now: float
) -> Callback:
    latest = launched[-MAX_LAUNCHES:]
    begun = min(each.launched_at for each in launched if each.launched_at is not None)
    body = contract.LaunchFailed(
        **_envelope(job, f"{job.job_id}:launch_failed", now),
        job_id=job.job_id,
        group_id=job.job_id,
        decision_id=job.decision_id,
        configs_tried=[{**_place(each), **_layout(each)} for each in latest],
        failure_reasons=[plain(each.reason or "") for each in latest],
        total_time_seconds=max(0.0, now - begun),
        reason_code=latest[-1].reason_code or ReasonCode.UNKNOWN,
        reason_detail=plain(data.get("reason") or ""),
    )
    return _callback("/job/launch-failed", job, body)


def _complete(state: JobState, data: Mapping[str, Any], job: ToldJob, now: float) -> Callback:
    busy_s = now - job.started_at if job.started_at is not None else 0.0
    tokens = job.prompt_tokens + job.output_tokens
    body = contract.JobComplete(
        **_envelope(job, f"{job.job_id}:job_complete", now),
        job_id=job.job_id,
        group_id=job.job_id,
        decision_id=job.decision_id,
        status=_STATUS[state],
        metrics={
            "requests_total": job.requests,
            "requests_completed": job.completed,
            "requests_failed": job.failed,
            "prompt_tokens": job.prompt_tokens,
            "output_tokens": job.output_tokens,
            "elapsed_hours": max(0.0, now - job.created_at) / 3600,
            "throughput_tokens_per_sec": tokens / busy_s if busy_s > 0 else 0.0,
        },
        reason_detail=plain(data["reason"]) if data.get("reason") else None,
    )
    return _callback("/job/complete", job, body)


def _callback(path: str, job: ToldJob, body: Envelope) -> Callback:
    return Callback(job_id=job.job_id, path=path, body=body)


def _envelope(job: ToldJob, event_id: str, now: float) -> dict[str, Any]:
    return {"event_id": event_id, "emitted_at": now, "correlation_id": job.job_id}


def _place(replica: ToldReplica) -> dict[str, Any]:
    return {
        "gpu_type": replica.gpu,
        "instance_type": replica.instance_type or "unknown",
        "region": replica.region or "unknown",
        "market": wire_market(replica.market),
    }


def _layout(replica: ToldReplica) -> dict[str, int]:
    return {"tp": replica.tp, "pp": replica.pp, "dp": replica.dp}


def _of_replica(job: ToldJob, replica: ToldReplica) -> dict[str, Any]:
    return {
        "job_id": replica.replica_id,
        "group_id": job.job_id,
        "decision_id": job.decision_id,
        **_place(replica),
        **_layout(replica),
        "attempt_index": replica.attempt_index,
    }
