"""A job's figures, now and over its life: `tandemn metrics`."""

from __future__ import annotations

from pydantic import BaseModel

from tandemn.protocol.jobs import JobState
from tandemn.protocol.replicas import EngineReading, MachineReading, Market, ReplicaState


class ReplicaMetrics(BaseModel):
    """What one replica said last."""

    replica_id: str
    state: ReplicaState
    gpu: str
    market: Market
    seen_at: float | None
    """When it said so, Unix seconds; None: it has not called yet."""
    requests_per_s: float | None
    """Between its last two reports; None: not known, or it has ended. So is the next one."""
    tokens_per_s: float | None
    """Of answers."""
    requests_done: int
    """Since its runner began; so are the tokens."""
    output_tokens: int
    engine: EngineReading | None
    """None: its engine does not answer (yet)."""
    machine: MachineReading | None


class SeriesPoint(BaseModel):
    """One replica at one moment; None where that was not told."""

    at: float
    requests_per_s: float | None = None
    """Mean since the point before; so are the tokens."""
    tokens_per_s: float | None = None
    requests_done: int = 0
    output_tokens: int = 0
    running: int | None = None
    waiting: int | None = None
    kv_cache_use: float | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    cpu_use: float | None = None
    memory_used_bytes: int | None = None
    gpu_use: float | None = None
    """Mean of the machine's GPUs."""
    gpu_memory_used_bytes: int | None = None
    """Sum of the machine's GPUs."""


class ReplicaSeries(BaseModel):
    """A replica's points, oldest first."""

    replica_id: str
    step_s: float
    """Between two points, about: it doubles as the series grows."""
    points: list[SeriesPoint]


class JobMetrics(BaseModel):
    """`tandemn metrics JOB --json`."""

    job_id: str
    state: JobState
    engine: str | None
    """`simulated` means that nothing was computed."""
    at: float
    replicas: list[ReplicaMetrics]
    """Those that live; all of them where the job has ended, or one that was asked for."""
    series: list[ReplicaSeries] | None = None
    """Where it was asked for."""
    left_out: int = 0
    """Replicas that are not listed: the oldest of very many."""
