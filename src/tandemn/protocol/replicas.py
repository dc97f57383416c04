"""What a runner and the control plane say to each other. The runner always calls; it is never called."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field


class ReplicaState(StrEnum):
    PENDING = "pending"
    LAUNCHING = "launching"
    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    COMPLETED = "completed"
    KILLED = "killed"
    SWAPPED_OUT = "swapped_out"
    PREEMPTED = "preempted"
    FAILED = "failed"

    @property
    def has_ended(self) -> bool:
        return self in _ENDED


_ENDED = frozenset(
    {
        ReplicaState.COMPLETED,
        ReplicaState.KILLED,
        ReplicaState.SWAPPED_OUT,
        ReplicaState.PREEMPTED,
        ReplicaState.FAILED,
    }
)


class ReasonCode(StrEnum):
    """Why a replica ended before its work was done; docs/events.md says what each means."""

    HEARTBEAT_TIMEOUT = "heartbeat_timeout"
    CLEAN_EXIT_PENDING_CHUNKS = "clean_exit_pending_chunks"
    SPOT_PREEMPTION = "spot_preemption"
    LAUNCH_CAPACITY_EXHAUSTED = "launch_capacity_exhausted"
    MODEL_LOAD_TIMEOUT = "model_load_timeout"
    STARTUP_OOM = "startup_oom"
    STARTUP_CRASH = "startup_crash"
    KILLED = "killed"
    UNKNOWN = "unknown"


class Market(StrEnum):
    SPOT = "spot"
    ON_DEMAND = "on-demand"
    SERVERLESS = "serverless"


class Assignment(BaseModel):
    """The answer to a runner's first call: all that it needs to know about its job."""

    job_id: str
    replica_id: str
    engine: str
    model: str
    engine_args: list[str] = []
    tp: int = 1
    pp: int = 1
    dp: int = 1
    endpoint: str
    max_output_tokens: int | None = None
    heartbeat_s: float
    flush_s: float
    silence_s: float
    engine_start_s: float
    store_full_s: float = 60.0
    servers: list[str] = []
    """Every control plane that may be called, this one first."""


class EngineReading(BaseModel):
    """The engine's own figures at the last heartbeat; None where it does not tell."""

    model_config = ConfigDict(allow_inf_nan=False)

    running: int = 0
    waiting: int = 0
    kv_cache_use: float | None = None
    """0 to 1."""
    prompt_tokens: int | None = None
    """Since the engine began; so are the next ones, the last two as means."""
    generated_tokens: int | None = None
    tokens_per_s: float | None = None
    """Generated between its last two readings, a few seconds apart."""
    ttft_s: float | None = None
    tpot_s: float | None = None


class GpuReading(BaseModel):
    """One GPU of a replica's machine; None where the driver does not tell."""

    model_config = ConfigDict(allow_inf_nan=False)

    use: float | None = None
    """0 to 1."""
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None


#: GPUs of one machine that are told of at most.
MAX_GPUS = 64


class MachineReading(BaseModel):
    """The machine that a replica runs on, which others may share."""

    cpu_use: float = Field(ge=0, le=1)
    """Of all cores."""
    memory_used_bytes: int
    memory_total_bytes: int
    gpus: list[GpuReading] = Field(default=[], max_length=MAX_GPUS)
    """As many as the machine has, in the driver's order; empty where there is no NVIDIA driver."""


class ChunkProgress(BaseModel):
    """How far a held chunk is; counts are of this lease and include what earlier holders stored."""

    chunk: int
    token: str
    completed: int = 0
    failed: int = 0
    recomputed: int | None = None
    """Answers of the chunk that earlier holders had and lost; None until it knows: such counts are not kept."""


class Heartbeat(BaseModel):
    """Sent every `heartbeat_s`, and at once when the state changes. Renews the leases that it names."""

    state: Literal["starting", "running", "draining"]
    chunks: list[ChunkProgress] = []
    engine: EngineReading | None = None
    machine: MachineReading | None = None
    requests_done: int = 0
    """Answers since the runner began."""
    output_tokens: int = 0
    note: str | None = None
    """What it is doing or waiting for, where that is not plain: `loading the model`, `store is full`."""


class HeartbeatReply(BaseModel):
    lost: list[int] = []
    """Chunks that this replica does not hold any more: stop them."""
    orders: Literal["go_on", "drain", "stop"] = "go_on"
    """drain: finish the chunks held, take no more; stop: store what is finished and end."""
    servers: list[str] = []
    """Every control plane that may be called, this one first; empty: as before."""


class LeaseRequest(BaseModel):
    limit: int = Field(ge=1, le=64)
    wait_s: float = Field(default=0, ge=0, le=30)
    """How long the answer may be held back while there is nothing to give."""
    is_idle: bool = False
    """It has nothing left to compute: it may be given what a peer has leased and not begun. Runners that
    only lease ahead must not: two of them would take the same chunk from each other again and again."""


class PartRef(BaseModel):
    """A segment of finished answers that an earlier holder of the chunk stored."""

    name: str
    url: str
    """Absolute (presigned), or a path on the control plane."""
    size: int


class ChunkLease(BaseModel):
    chunk: int
    token: str
    input_url: str
    """Absolute (presigned), or a path on the control plane; read with a Range header."""
    byte_start: int
    byte_end: int
    first_request: int
    requests: int
    skipped: list[int] = []
    """Byte positions in the input of lines that are no requests (`--skip-invalid`)."""
    parts: list[PartRef] = []
    strikes: dict[int, int] = {}
    """Request (index in the chunk) -> how often the engine died while computing it."""
    computed: int = 0
    """How many answers the last holder had: what `parts` do not hold of them was lost."""
    recomputed: int = 0
    """Answers that were lost by holders before that one."""


class LeaseReply(BaseModel):
    leases: list[ChunkLease] = []
    orders: Literal["go_on", "drain", "stop"] = "go_on"


class UploadTarget(BaseModel):
    """Where to PUT one object."""

    name: str
    url: str


class UploadRequest(BaseModel):
    """Ask where to store a part (`part` set) or the finished chunk (`part` unset)."""

    chunk: int
    token: str
    part: int | None = None


class UploadReply(BaseModel):
    answers: UploadTarget
    errors: UploadTarget | None = None


class CompleteRequest(BaseModel):
    """The chunk's objects are stored: name them in the database, if the lease still stands."""

    chunk: int
    token: str
    completed: int
    failed: int
    recomputed: int = 0
    """Requests of the chunk that were computed again because a holder had lost their answers, by all holders."""
    prompt_tokens: int = 0
    output_tokens: int = 0


class ReleaseRequest(BaseModel):
    chunk: int
    token: str


class EngineDeath(BaseModel):
    """The engine died while its runner lives: which requests were in flight."""

    death_id: str = Field(default_factory=lambda: uuid4().hex)
    """The same death is counted once, however often it is reported."""
    in_flight: dict[int, list[int]]
    """Chunk -> indexes of requests in it."""
    reason: str
    """The end of the engine's log, or its exit status."""


class EngineDeathReply(BaseModel):
    strikes: dict[int, dict[int, int]]
    """Chunk -> request -> strikes so far."""


class Goodbye(BaseModel):
    """The runner's last call."""

    outcome: Literal["completed", "preempted", "killed", "failed"]
    code: str | None = None
    reason: str | None = None
