"""A job's figures as people read them (PURE)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tandemn.cli.text import duration, plural, rate, size, table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tandemn.protocol.metrics import JobMetrics, ReplicaMetrics, ReplicaSeries, SeriesPoint
    from tandemn.protocol.replicas import GpuReading, MachineReading

_NONE = "-"
_NOW = (
    *("REPLICA", "STATE", "REQUESTS/S", "TOKENS/S", "RUNNING", "WAITING", "KV CACHE", "TTFT", "TPOT"),
    *("CPU", "MEMORY", "GPU", "GPU MEMORY", "SEEN"),
)
_LIFE = (
    *("REPLICA", "POINTS", "OVER", "REQUESTS", "TOKENS/S", "PEAK", "RUNNING", "PEAK", "WAITING", "KV CACHE"),
    *("CPU", "GPU"),
)


def present(metrics: JobMetrics) -> list[str]:
    """What the replicas said last."""
    simulated = "; simulated: nothing is computed" if metrics.engine == "simulated" else ""
    head = f"job {metrics.job_id}: {metrics.state}, engine {metrics.engine or 'not chosen yet'}{simulated}"
    if not metrics.replicas:
        return [head, "no replica lives; --replica R shows one that has ended"]
    lines = [head, *table(_NOW, [_now(each, metrics.at) for each in metrics.replicas])]
    if metrics.left_out:
        lines.append(f"and {plural(metrics.left_out, 'older replica')}")
    return lines


def past(metrics: JobMetrics) -> list[str]:
    """Means and peaks over the replicas' lives."""
    kept = [each for each in metrics.series or [] if each.points]
    if not kept:
        return ["nothing was kept of the past: no replica reported, or it was too long ago"]
    return table(_LIFE, [_life(each) for each in kept])


def _now(replica: ReplicaMetrics, at: float) -> list[str]:
    engine, machine = replica.engine, replica.machine
    return [
        replica.replica_id,
        str(replica.state),
        _rate(replica.requests_per_s),
        _rate(replica.tokens_per_s),
        str(engine.running) if engine else _NONE,
        str(engine.waiting) if engine else _NONE,
        _percent(engine.kv_cache_use if engine else None),
        _time(engine.ttft_s if engine else None),
        _time(engine.tpot_s if engine else None),
        _percent(machine.cpu_use if machine else None),
        _memory(machine),
        _gpus(machine),
        _gpu_memory(machine.gpus if machine else ()),
        f"{duration(max(0.0, at - replica.seen_at))} ago" if replica.seen_at is not None else "never",
    ]


def _life(series: ReplicaSeries) -> list[str]:
    points = series.points
    over_s = points[-1].at - points[0].at
    tokens = points[-1].output_tokens
    mean = (tokens - points[0].output_tokens) / over_s if over_s > 0 else None
    return [
        series.replica_id,
        str(len(points)),
        duration(over_s),
        f"{points[-1].requests_done:,}",
        _rate(mean if mean is None or mean >= 0 else None),
        _rate(_peak(points, "tokens_per_s")),
        _rate(_mean(points, "running")),
        _rate(_peak(points, "running")),
        _rate(_mean(points, "waiting")),
        _percent(_peak(points, "kv_cache_use")),
        _percent(_mean(points, "cpu_use")),
        _percent(_mean(points, "gpu_use")),
    ]


def _told(points: Iterable[SeriesPoint], name: str) -> list[float]:
    return [value for point in points if (value := getattr(point, name)) is not None]


def _mean(points: Iterable[SeriesPoint], name: str) -> float | None:
    told = _told(points, name)
    return sum(told) / len(told) if told else None


def _peak(points: Iterable[SeriesPoint], name: str) -> float | None:
    return max(_told(points, name), default=None)


def _rate(value: float | None) -> str:
    return _NONE if value is None else rate(value)


def _percent(value: float | None) -> str:
    return _NONE if value is None else f"{value:.0%}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return _NONE
    return duration(seconds) if seconds >= 1 else f"{seconds * 1000:.3g}ms"


def _memory(machine: MachineReading | None) -> str:
    return f"{size(machine.memory_used_bytes)} of {size(machine.memory_total_bytes)}" if machine else _NONE


def _gpus(machine: MachineReading | None) -> str:
    told = [_percent(gpu.use) for gpu in machine.gpus] if machine else []
    return " ".join(told) or _NONE


def _gpu_memory(gpus: Iterable[GpuReading]) -> str:
    used = [gpu.memory_used_bytes for gpu in gpus if gpu.memory_used_bytes is not None]
    total = [gpu.memory_total_bytes for gpu in gpus if gpu.memory_total_bytes is not None]
    return f"{size(sum(used))} of {size(sum(total))}" if used and total else _NONE
