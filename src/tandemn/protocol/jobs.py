"""Jobs as the command line and the control plane speak of them."""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tandemn.protocol.cost import CostView, DeploymentCostView, FigureView
from tandemn.protocol.plans import KoiAdvice, is_absent
from tandemn.protocol.replicas import Market, ReasonCode, ReplicaState

Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]

#: What OpenAI allows in a batch's metadata.
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]
#: Longest time that a job may be given, in seconds.
LONGEST_SLO_S = 30 * 86400


class JobState(StrEnum):
    VALIDATING = "validating"
    PLANNING = "planning"
    WAITING = "waiting"
    LAUNCHING = "launching"
    RUNNING = "running"
    CANCELLING = "cancelling"
    ASSEMBLING = "assembling"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    OVER_BUDGET = "over_budget"

    @property
    def has_ended(self) -> bool:
        return self in _ENDED


_ENDED = frozenset(
    {JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED, JobState.OVER_BUDGET}
)


class Priority(StrEnum):
    """How large a job's share is, where jobs want more than there is."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"
    """An administrator's to give: where everybody may say it, it says nothing."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ReplicaConfig(_Strict):
    """What one replica runs on; replicas of one configuration form a group."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gpu: str = "cpu"
    tp: int = Field(default=1, ge=1, le=64)
    pp: int = Field(default=1, ge=1, le=64)
    dp: int = Field(default=1, ge=1, le=64)
    """Copies of the model that one replica runs side by side, to fill a machine of more GPUs than one needs."""
    nodes: int = Field(default=1, ge=1, le=64)
    """Machines that one replica spans."""
    market: Market = Market.SPOT
    region: str | None = None
    """The only region or zone."""
    regions: tuple[str, ...] = ()
    """Regions that the plan found fit; empty: any."""

    @property
    def gpus_per_node(self) -> int:
        return -(-self.tp * self.pp * self.dp // self.nodes)


class JobSpec(_Strict):
    """What the user asked for. Unset means: Tandemn chooses."""

    model: str = Field(min_length=1, max_length=1024)
    input_file_id: str | None = None
    """A file uploaded before; exactly one of this and `input_url`."""
    input_url: str | None = None
    """`s3://…` and the like, read in place."""
    slo_s: float = Field(gt=0, le=LONGEST_SLO_S)
    """Deadline, in seconds from submission."""
    max_output_tokens: int | None = Field(default=None, ge=1)
    cloud: str | None = None
    region: str | None = None
    gpu: str | None = None
    tp: int | None = Field(default=None, ge=1, le=64)
    pp: int | None = Field(default=None, ge=1, le=64)
    replicas: int | None = Field(default=None, ge=1, le=1000)
    on_demand: bool = False
    chunk_size: int | None = Field(default=None, ge=1)
    """Requests a chunk."""
    engine: str | None = None
    engine_args: list[str] = []
    budget_usd: Decimal | None = Field(default=None, gt=0)
    priority: Priority = Priority.NORMAL
    advisor: Literal["own", "koi"] = "own"
    force: bool = False
    persist: bool = False
    """Leave the replicas running when the job ends."""
    skip_invalid: bool = False
    stop_at_deadline: bool = False
    endpoint: Endpoint | None = None
    """Given through the Batch API: every line must agree."""
    model_from_lines: bool = False
    """Given through the Batch API: the lines name the model, and must agree."""
    metadata: Metadata | None = None
    output_expires_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """How long its output is kept once it is assembled, where that is shorter than the control plane keeps any."""


class LineErrorView(BaseModel):
    """One bad input line."""

    line: int | None
    code: str
    message: str
    param: str | None = None


class RequestCounts(BaseModel):
    total: int = 0
    completed: int = 0
    failed: int = 0
    recomputed: int = 0
    """Answers computed more than once, because a replica died before it could store them."""


class ChunkCounts(BaseModel):
    total: int = 0
    pending: int = 0
    leased: int = 0
    completed: int = 0
    failed: int = 0


class ReplicaView(BaseModel):
    replica_id: str
    state: ReplicaState
    gpu: str
    tp: int = 1
    pp: int = 1
    market: Market
    region: str | None = None
    pid: int | None = None
    """Of the runner, where it is a process on this machine."""
    reason: str | None = None
    reason_code: ReasonCode | None = None
    """Why it ended before its work was done, as one of a few."""
    chunks_completed: int = 0
    requests_per_s: float | None = None


class WaitView(BaseModel):
    """What a job waits for, that has fewer replicas than it wants."""

    what: Literal["slots", "clusters", "quota", "capacity", "retry"]
    """Places of this machine or of SkyPilot's that others have; what a cloud does not give; the next try after a failure."""
    reason: str
    replicas_wanted: int
    """More than it has."""
    place_in_line: int | None = None
    """1: it is next. None: no line, it waits for no other job."""
    ahead: list[str] = []
    """Jobs of the same owner that come first."""
    ahead_of_others: int = 0
    """How many jobs of other owners come first."""


class JobStatus(BaseModel):
    """`tandemn status JOB --json`."""

    job_id: str
    owner: str | None = None
    """Name of the key that it was submitted with; `local` without keys."""
    state: JobState
    reason: str | None = None
    """Why it is in this state, in a sentence; for a failed job the cause and the next step."""
    code: str | None = None
    """Stable code of the reason, where it is an error."""
    priority: Priority = Priority.NORMAL
    waits: WaitView | None = None
    """None: it has the replicas that it wants, or wants none yet."""
    model: str
    engine: str | None = None
    requests: RequestCounts = RequestCounts()
    chunks: ChunkCounts = ChunkCounts()
    replicas: list[ReplicaView] = []
    requests_per_s: float | None = None
    tokens_per_s: float | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    eta_s: float | None = None
    """Seconds until the last answer at the present pace."""
    deadline: float
    """Unix time."""
    is_late: bool = False
    created_at: float
    started_at: float | None = None
    """When the first replica began to compute."""
    ended_at: float | None = None
    cost_usd: Decimal | None = None
    """None: unknown."""
    cost: CostView | None = None
    """How `cost_usd` comes about."""
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: list[LineErrorView] = []
    errors_total: int = 0
    swap: SwapView | None = None
    koi: KoiAdvice | None = Field(default=None, exclude_if=is_absent)
    """Where Koi was asked at planning, or should have been."""
    pace: PaceView | None = None
    """None: the number of replicas is the user's own, or nothing has been decided yet."""


class PaceView(BaseModel):
    """The last decision on a job's pace: what its fleet should be, and why."""

    at: float
    reason: str
    replicas_wanted: int
    requests_per_s_each: float
    """Of one replica, as the decision took it."""
    is_measured: bool
    """False: nothing has been measured yet; the rate is the plan's."""
    slack_s: float
    """Time that is left over if all wanted replicas work from now on."""
    is_late: bool
    acted_at: float | None = None
    """When the fleet was last changed by it."""
    acted_because: str | None = None
    last_growth: dict[str, float] | None = None
    """Replicas at work, and requests per second of all, when some were last added."""


class SwapView(BaseModel):
    """A swap under way, or how the last one ended."""

    state: Literal["launching", "draining", "done", "failed", "cancelled"]
    reason: str
    new: list[str]
    old: list[str]
    ready: int
    """New replicas that have begun processing."""
    threshold: int


class JobSummary(BaseModel):
    """One row of `tandemn list`."""

    job_id: str
    owner: str | None = None
    state: JobState
    priority: Priority = Priority.NORMAL
    waits: WaitView | None = None
    model: str
    requests: RequestCounts
    created_at: float
    deadline: float
    is_late: bool = False
    ended_at: float | None = None
    reason: str | None = None


class JobList(BaseModel):
    jobs: list[JobSummary]
    next_after: str | None = None
    """Pass as `after` for the next page."""


class JobCostRow(BaseModel):
    """One row of `tandemn cost`."""

    job_id: str
    owner: str | None = None
    state: JobState
    model: str
    created_at: float
    cost: CostView


class CostReport(BaseModel):
    """`tandemn cost --json`."""

    jobs: list[JobCostRow]
    """The newest."""
    jobs_total: int
    """How many there are, shown or not."""
    deployments: list[DeploymentCostView] = []
    """The newest, with those that are gone."""
    deployments_total: int = 0
    total: FigureView
    """Over all of them."""
    usd_per_hour: Decimal | None
    """At this moment, over all; None: something that runs has no known price."""
    left_out: list[str] = []
    """What no figure here contains."""


class AddRequest(_Strict):
    replicas: int = Field(ge=1, le=1000)
    gpu: str | None = None
    tp: int | None = Field(default=None, ge=1, le=64)
    pp: int | None = Field(default=None, ge=1, le=64)
    on_demand: bool = False


class AddAnswer(BaseModel):
    job_id: str
    new: list[str]
    config: ReplicaConfig


class KillRequest(_Strict):
    replicas: list[str] = Field(min_length=1, max_length=1000)


class KillAnswer(BaseModel):
    job_id: str
    killed: list[str]
    skipped: dict[str, str]
    """Replica -> why nothing was done to it."""
    chunks_reclaimed: int
    replicas_wanted: int
    """How many replicas the job wants from now on."""


class SwapRequest(_Strict):
    gpu: str | None = None
    tp: int | None = Field(default=None, ge=1, le=64)
    pp: int | None = Field(default=None, ge=1, le=64)
    replicas: int | None = Field(default=None, ge=1, le=1000)
    ready_threshold: int | None = Field(default=None, ge=1)
    on_demand: bool = False


class SwapAnswer(BaseModel):
    job_id: str
    new: list[str]
    old: list[str]
    config: ReplicaConfig
    threshold: int


class EventView(BaseModel):
    seq: int
    at: float
    kind: str
    job_id: str | None = None
    service_name: str | None = None
    replica_id: str | None = None
    actor: str | None = None
    data: dict[str, Any] = {}


class EventList(BaseModel):
    events: list[EventView]
    next_after: int | None = None


class ControlPlaneView(BaseModel):
    """One of the control planes that serve the same state."""

    url: str
    pid: int
    version: str
    is_leading: bool
    """It does what acts: launches, ends, assembles. The others serve, and one of them takes over when it dies."""


class ServerStatus(BaseModel):
    """`tandemn server status --json`."""

    url: str
    pid: int
    version: str
    control_planes: list[ControlPlaneView] = []
    """Every one that is alive, this one first."""


JobStatus.model_rebuild()
