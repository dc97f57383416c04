"""The wire between Tandemn and Koi, as types: `docs/koi.openapi.yaml` is made of them, a test compares the two.

What we send is strict: no field that is not declared. What we read is untrusted: every field is bounded,
unknown ones are passed over, numbers are numbers and not text.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from tandemn.protocol.replicas import ReasonCode  # noqa: TC001 - pydantic reads annotations at run time

WireMarket = Literal["spot", "on_demand"]
#: Names of GPUs, instance types, regions and decisions are short.
Name = Annotated[str, Field(min_length=1, max_length=128)]
#: An adviser's words: kept in part, for people to read.
Said = Annotated[str, Field(max_length=65536)]
MAX_ALTERNATIVES = 32


class _Sent(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class _Read(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, use_attribute_docstrings=True)


# Resources: the body of `GET /resources` on the control plane, and part of what Koi is asked with.


class PlacePrice(_Sent):
    """What an instance type costs in one place and market."""

    provider: str
    region: str
    market: WireMarket
    usd_per_hour: float = Field(gt=0)


class InstanceType(_Sent):
    """One kind of machine that can be rented."""

    instance_type: str
    gpu_type: str
    gpus_per_instance: int = Field(ge=0)
    vcpus: int = Field(ge=0)
    quota_family: str
    """Whose quota it counts against; empty where none is known."""
    gpu_memory_gb: float = Field(ge=0)
    """Of one GPU."""
    interconnect: Literal["NVLink", "PCIe"]
    cost_per_instance_hour_usd: float = Field(ge=0)
    """The lowest known on-demand price; the lowest spot price where no on-demand one is known."""
    prices: list[PlacePrice]
    """The cheapest places, cheapest first."""


class QuotaLine(_Sent):
    """One quota, in vCPUs."""

    family: str
    region: str
    market: WireMarket
    baseline_vcpus: int = Field(ge=0)
    used_vcpus: int = Field(ge=0)


class Resources(_Sent):
    """What can be rented, and how much of it."""

    snapshot_time: float
    """Unix seconds."""
    instances: list[InstanceType]
    quotas: list[QuotaLine]
    """Where none is listed for a family, none is known: then none limits a plan."""
    notes: list[str]
    """What is not known, in sentences."""


# The recommendation.


class Envelope(_Sent):
    """What everything that is posted has."""

    event_id: str = Field(max_length=160)
    """The same in every try: whoever has seen it may pass over the rest."""
    event_type: str
    emitted_at: float
    """When it happened, in Unix seconds; the same in every try."""
    correlation_id: str
    """The job's id, in everything that concerns it."""


class JobRequest(_Sent):
    """The job that is to be placed."""

    job_id: str | None = None
    """Absent: only a plan is asked for."""
    model_name: str
    task_type: Literal["batch"] = "batch"
    num_requests: int = Field(ge=1)
    avg_input_tokens: int = Field(ge=1)
    avg_output_tokens: int = Field(ge=1)
    slo_deadline_hours: float = Field(gt=0)
    objective: Literal["cheapest"] = "cheapest"
    preferred_gpu_types: list[str] | None = None
    """What the user named; another one is no use."""
    region: str | None = None
    preferred_market: WireMarket | None = None
    cost_roofline_usd: float | None = None
    """The user's budget."""


class DecideRequest(Envelope):
    """`POST /decide`."""

    event_type: Literal["decide_request"] = "decide_request"
    job_request: JobRequest
    resource_map: Resources


class Configuration(_Read):
    """What Koi would run the job on."""

    gpu_type: Name
    tp: int = Field(ge=1, le=64)
    pp: int = Field(ge=1, le=64)
    dp: int = Field(ge=1, le=1000)
    """Replicas."""
    instance_type: Name | None = None
    region: Name | None = None
    market: Literal["spot", "on_demand", "unknown"] | None = None


class Alternative(_Read):
    """What to try where the first cannot be had."""

    gpu_type: Name
    tp: int = Field(default=1, ge=1, le=64)
    pp: int = Field(default=1, ge=1, le=64)
    dp: int | None = Field(default=None, ge=1, le=1000)
    """Absent: as many replicas as the deadline takes."""
    instance_type: Name | None = None
    region: Name | None = None
    planned_market: Literal["spot", "on_demand", "unknown"] | None = None


class Decision(_Read):
    """The answer to `POST /decide`."""

    decision_id: Name = Field(validation_alias=AliasChoices("decision_id", "_decision_id"))
    """Sent back with every callback of the job; `_decision_id` is read, too."""
    config: Configuration
    predicted_tps: float = Field(gt=0)
    """Tokens/s of all replicas, prompts included."""
    planned_market: Literal["spot", "on_demand", "unknown"] | None = None
    alternatives: list[Alternative] = Field(default=[], max_length=MAX_ALTERNATIVES)
    reasoning: Said = ""


# Callbacks.


class _OfReplica(Envelope):
    job_id: str
    """The replica's id."""
    group_id: str
    """The job's id."""
    decision_id: str | None = None
    """The recommendation that the job follows; absent where it follows none."""
    gpu_type: str
    instance_type: str = "unknown"
    region: str = "unknown"
    market: WireMarket
    tp: int
    pp: int
    dp: int = Field(ge=1)
    """Copies of the model that this replica runs side by side on its machine."""
    attempt_index: int = Field(ge=0)
    """Counts the job's replicas from 0."""


class ConfigAttempted(Envelope):
    """`POST /job/config-attempted`: a machine was asked for, and was or was not to be had."""

    event_type: Literal["config_attempted"] = "config_attempted"
    job_id: str
    """The job's id."""
    group_id: str
    decision_id: str | None = None
    gpu_type: str
    instance_type: str = "unknown"
    region: str = "unknown"
    market: WireMarket
    tp: int
    pp: int
    dp: int = Field(ge=1)
    """Copies of the model side by side on the machine."""
    launched: bool
    failure_reason: str = Field(default="", max_length=2000)
    time_to_launch: float = Field(default=0.0, ge=0)
    """Seconds from the launch to the runner's first call, or to its failure."""
    attempt_index: int = Field(ge=0)


class Launching(_OfReplica):
    """`POST /job/launching`: its machine is there and its runner has called; the model is not loaded yet."""

    event_type: Literal["job_launching"] = "job_launching"


class LaunchHeartbeat(_OfReplica):
    """`POST /job/launch-heartbeat`: the launch goes on."""

    event_type: Literal["launch_heartbeat"] = "launch_heartbeat"
    phase: Literal["launching", "starting"]
    """launching: its machine is awaited; starting: the model is loaded."""
    message: str = Field(max_length=2000)
    timestamp: float


class Started(Envelope):
    """`POST /job/started`: a replica's engine answers."""

    event_type: Literal["job_started"] = "job_started"
    job_id: str
    """The replica's id."""
    replica_id: str
    group_id: str
    """The job's id."""
    decision_id: str | None = None
    gpu_type: str
    instance_type: str = "unknown"
    region: str = "unknown"
    market: WireMarket
    tp: int
    pp: int
    dp: int = Field(ge=1)
    """Copies of the model that this replica runs side by side on its machine."""
    slo_deadline_hours: float
    """Left until the deadline; below 0 where it is past."""
    total_tokens: int = Field(ge=0)
    """Expected of the whole job."""
    predicted_tps: float = 0.0
    """As recommended, of all replicas; 0 where the job follows no recommendation."""
    is_fallback: bool
    """Whether it is another configuration than the recommended one."""


class LaunchFailed(Envelope):
    """`POST /job/launch-failed`: the job ends, and not one of its replicas could be launched."""

    event_type: Literal["launch_failed"] = "launch_failed"
    job_id: str
    group_id: str
    decision_id: str | None = None
    configs_tried: list[dict[str, Any]] = Field(max_length=100)
    failure_reasons: list[str] = Field(max_length=100)
    """Of each of `configs_tried`."""
    total_time_seconds: float = Field(ge=0)
    reason_code: ReasonCode
    reason_detail: str = Field(max_length=2000)


class ReplicaFailed(Envelope):
    """`POST /job/replica-failed`: a replica ended before its work was done."""

    event_type: Literal["replica_failed"] = "replica_failed"
    job_id: str
    """The replica's id."""
    replica_id: str
    group_id: str
    """The job's id."""
    decision_id: str | None = None
    instance_type: str = "unknown"
    region: str = "unknown"
    market: WireMarket
    status: Literal["failed", "preempted", "killed"]
    reason: str = Field(max_length=2000)
    reason_code: ReasonCode
    reason_detail: str = Field(max_length=2000)


class JobComplete(Envelope):
    """`POST /job/complete`: the job has ended."""

    event_type: Literal["job_complete"] = "job_complete"
    job_id: str
    group_id: str
    decision_id: str | None = None
    status: Literal["succeeded", "failed", "cancelled", "expired", "over_budget"]
    metrics: dict[str, float | int]
    """requests_total, requests_completed, requests_failed, output_tokens, prompt_tokens, elapsed_hours, and
    throughput_tokens_per_sec over the time in which it computed."""
    reason_detail: str | None = Field(default=None, max_length=2000)
