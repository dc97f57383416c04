"""Rows as values. JSON columns stay plain; whoever owns them gives them their type."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

from tandemn.protocol.jobs import JobSpec, JobState
from tandemn.protocol.plans import KoiAdvice
from tandemn.protocol.replicas import Goodbye, Heartbeat, ReasonCode, ReplicaState

if TYPE_CHECKING:
    from sqlalchemy import Row

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    file_id: str
    filename: str
    purpose: str
    bytes: int
    object: str
    created_at: float
    job_id: str | None
    owner: str
    expires_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    job_id: str
    state: JobState
    outcome: JobState | None
    reason: str | None
    code: str | None
    spec: JobSpec
    endpoint: str | None
    model: str
    engine: str | None
    cloud: str | None
    input_object: str | None
    input_url: str | None
    created_at: float
    deadline: float
    started_at: float | None
    cancelling_at: float | None
    assembling_at: float | None
    ended_at: float | None
    epoch: int
    requests: int
    line_errors: list[dict[str, Any]]
    line_errors_total: int
    statistics: dict[str, Any]
    groups: list[dict[str, Any]]
    next_replica: int
    swap: dict[str, Any] | None
    koi: KoiAdvice | None
    pace: dict[str, Any] | None
    waits: dict[str, Any] | None
    output_file_id: str | None
    error_file_id: str | None
    completed: int
    failed: int
    owner: str
    purged_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkRecord:
    job_id: str
    chunk: int
    byte_start: int
    byte_end: int
    first_request: int
    requests: int
    skipped: list[int] | None
    done: bool
    token: str | None
    holder: str | None
    grants: int
    computed: int
    completed: int
    failed: int
    recomputed: int
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaRecord:
    replica_id: str
    job_id: str
    group: int
    state: ReplicaState
    reason: str | None
    code: str | None
    reason_code: ReasonCode | None
    config: dict[str, Any]
    launcher: str
    handle: dict[str, Any] | None
    token_hash: str | None
    orders: str
    kill_requested: bool
    created_at: float
    not_before: float
    launched_at: float | None
    said_hello_at: float | None
    began_at: float | None
    stopping_at: float | None
    last_seen: float | None
    ended_at: float | None
    goodbye: Goodbye | None
    beat: Heartbeat | None
    beat_rate: dict[str, float] | None
    chunks_completed: int

    @property
    def name(self) -> str:
        """The short name, `r0`, unique within the job."""
        return self.replica_id.rpartition("-")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRecord:
    seq: int
    at: float
    kind: str
    job_id: str | None
    service_name: str | None
    replica_id: str | None
    actor: str | None
    data: dict[str, Any]


def job_record(row: Row[Any]) -> JobRecord:
    values = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it
    values["state"] = JobState(values["state"])
    values["outcome"] = JobState(values["outcome"]) if values["outcome"] else None
    values["koi"] = KoiAdvice.model_validate(values["koi"]) if values["koi"] else None
    values["spec"] = JobSpec.model_validate(values["spec"])
    return _record(JobRecord, values)


def replica_record(row: Row[Any]) -> ReplicaRecord:
    values = dict(row._mapping)  # noqa: SLF001
    values["state"] = ReplicaState(values["state"])
    values["reason_code"] = ReasonCode(values["reason_code"]) if values["reason_code"] else None
    values["goodbye"] = Goodbye.model_validate(values["goodbye"]) if values["goodbye"] else None
    values["beat"] = Heartbeat.model_validate(values["beat"]) if values["beat"] else None
    return _record(ReplicaRecord, values)


def record(kind: type[T], row: Row[Any]) -> T:
    """Make a record whose columns need no conversion."""
    return _record(kind, dict(row._mapping))  # noqa: SLF001


def _record(kind: type[T], values: dict[str, Any]) -> T:
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]  # every T is a dataclass
    return kind(**{name: value for name, value in values.items() if name in names})
