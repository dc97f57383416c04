"""The control plane's `/metrics` page as Prometheus reads it (text format 0.0.4). Pure.

Labels name jobs and replicas that live now, in bounded number; what has ended is gone from the page, and stays in
`tandemn metrics JOB`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tandemn.prometheus import family, sample
from tandemn.protocol.deployments import DeploymentState
from tandemn.protocol.jobs import JobState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from tandemn.protocol.replicas import EngineReading, GpuReading, Heartbeat, MachineReading, ReplicaState


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFigures:
    """A job that has not ended."""

    job_id: str
    completed: int
    failed: int
    left: int
    deadline: float
    replica_states: Sequence[ReplicaState]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaFigures:
    """A replica that has not ended."""

    job_id: str
    replica_id: str
    seen_at: float | None
    beat: Heartbeat | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    version: str
    is_leading: bool
    now: float
    job_states: Sequence[JobState]
    deployment_states: Sequence[DeploymentState]
    jobs: Sequence[JobFigures]
    replicas: Sequence[ReplicaFigures]
    jobs_left_out: int
    replicas_left_out: int
    repeated_transactions: int
    callbacks_waiting: int | None
    """For Koi; None: there is none."""


def exposition(page: Page) -> bytes:
    """Write the page."""
    return "\n".join([*_lines(page), ""]).encode()


def _lines(page: Page) -> Iterator[str]:
    yield from family("tandemn_build_info", "gauge", "1; the version is a label.")
    yield sample("tandemn_build_info", 1, version=page.version)
    yield from family("tandemn_leading", "gauge", "1 where this control plane is the one that acts.")
    yield sample("tandemn_leading", int(page.is_leading))
    yield from _states("tandemn_jobs", "Jobs that have not ended, by state.", JobState, page.job_states)
    yield from _states(
        "tandemn_deployments", "Deployments that are not gone.", DeploymentState, page.deployment_states
    )
    yield from family("tandemn_left_out", "gauge", "Live jobs and replicas that this page has no room for.")
    yield sample("tandemn_left_out", page.jobs_left_out, kind="jobs")
    yield sample("tandemn_left_out", page.replicas_left_out, kind="replicas")
    name = "tandemn_database_repeated_total"
    yield from family(name, "counter", "Transactions begun again because another came in their way.")
    yield sample(name, page.repeated_transactions)
    if page.callbacks_waiting is not None:
        yield from family("tandemn_koi_callbacks_waiting", "gauge", "Callbacks that Koi has not taken yet.")
        yield sample("tandemn_koi_callbacks_waiting", page.callbacks_waiting)
    yield from _jobs(page)
    yield from _replicas(page)


def _jobs(page: Page) -> Iterator[str]:
    yield from family("tandemn_job_requests", "gauge", "Requests of a job, by what has become of them.")
    for job in page.jobs:
        for state in ("completed", "failed", "left"):
            yield sample("tandemn_job_requests", getattr(job, state), job_id=job.job_id, state=state)
    name = "tandemn_job_deadline_left_seconds"
    yield from family(name, "gauge", "Until the job's deadline; below 0: it is late.")
    for job in page.jobs:
        yield sample(name, job.deadline - page.now, job_id=job.job_id)
    yield from family("tandemn_job_replicas", "gauge", "Replicas of a job, by state.")
    for job in page.jobs:
        for state, count in sorted(Counter(job.replica_states).items()):
            yield sample("tandemn_job_replicas", count, job_id=job.job_id, state=state)


def _replicas(page: Page) -> Iterator[str]:
    name = "tandemn_replica_silent_seconds"
    yield from family(name, "gauge", "Since the replica's last report.")
    for each in page.replicas:
        if each.seen_at is not None:
            yield sample(name, max(0.0, page.now - each.seen_at), **_of(each))
    beats = [(each, each.beat) for each in page.replicas if each.beat is not None]
    for name, kind, text, of_beat in _BEAT:
        yield from family(name, kind, text)
        for each, beat in beats:
            yield sample(name, of_beat(beat), **_of(each))
    for name, kind, text, of_engine in _ENGINE:
        yield from family(name, kind, text)
        for each, beat in beats:
            if beat.engine is not None and (value := of_engine(beat.engine)) is not None:
                yield sample(name, value, **_of(each))
    machines = [(each, beat.machine) for each, beat in beats if beat.machine is not None]
    yield from _machines(machines)


def _machines(machines: Sequence[tuple[ReplicaFigures, MachineReading]]) -> Iterator[str]:
    for name, text, of_machine in _MACHINE:
        yield from family(name, "gauge", text)
        for each, machine in machines:
            yield sample(name, of_machine(machine), **_of(each))
    gpus = [(each, number, gpu) for each, machine in machines for number, gpu in enumerate(machine.gpus)]
    for name, text, of_gpu in _GPU:
        yield from family(name, "gauge", text)
        for each, number, gpu in gpus:
            if (value := of_gpu(gpu)) is not None:
                yield sample(name, value, **_of(each), gpu=str(number))


_BEAT: tuple[tuple[str, str, str, Callable[[Heartbeat], int]], ...] = (
    (
        "tandemn_replica_requests_total",
        "counter",
        "Requests that the replica has answered.",
        lambda b: b.requests_done,
    ),
    ("tandemn_replica_output_tokens_total", "counter", "Tokens of its answers.", lambda b: b.output_tokens),
)
_ENGINE: tuple[tuple[str, str, str, Callable[[EngineReading], float | None]], ...] = (
    ("tandemn_engine_running_requests", "gauge", "Requests that the engine computes.", lambda e: e.running),
    ("tandemn_engine_waiting_requests", "gauge", "Requests that wait in the engine.", lambda e: e.waiting),
    (
        "tandemn_engine_kv_cache_use_ratio",
        "gauge",
        "Of the engine's KV cache, 0 to 1.",
        lambda e: e.kv_cache_use,
    ),
    ("tandemn_engine_prompt_tokens_total", "counter", "By the engine's count.", lambda e: e.prompt_tokens),
    (
        "tandemn_engine_generated_tokens_total",
        "counter",
        "By the engine's count.",
        lambda e: e.generated_tokens,
    ),
    ("tandemn_engine_ttft_mean_seconds", "gauge", "Mean since the engine began.", lambda e: e.ttft_s),
    ("tandemn_engine_tpot_mean_seconds", "gauge", "Mean since the engine began.", lambda e: e.tpot_s),
)
_MACHINE: tuple[tuple[str, str, Callable[[MachineReading], float]], ...] = (
    ("tandemn_machine_cpu_use_ratio", "Of all cores of the replica's machine, 0 to 1.", lambda m: m.cpu_use),
    ("tandemn_machine_memory_used_bytes", "Of the replica's machine.", lambda m: m.memory_used_bytes),
    ("tandemn_machine_memory_total_bytes", "Of the replica's machine.", lambda m: m.memory_total_bytes),
)
_GPU: tuple[tuple[str, str, Callable[[GpuReading], float | None]], ...] = (
    ("tandemn_gpu_use_ratio", "Of one GPU of the replica's machine, 0 to 1.", lambda g: g.use),
    ("tandemn_gpu_memory_used_bytes", "Of one GPU of the replica's machine.", lambda g: g.memory_used_bytes),
    (
        "tandemn_gpu_memory_total_bytes",
        "Of one GPU of the replica's machine.",
        lambda g: g.memory_total_bytes,
    ),
)


def _of(replica: ReplicaFigures) -> dict[str, str]:
    return {"job_id": replica.job_id, "replica_id": replica.replica_id}


def _states(
    name: str, text: str, kinds: Iterable[JobState | DeploymentState], found: Sequence[str]
) -> Iterator[str]:
    counts = Counter(found)
    yield from family(name, "gauge", text)
    for state in kinds:
        if not state.has_ended:
            yield sample(name, counts[state], state=state.value)
