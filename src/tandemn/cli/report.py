"""What a job's status says to a person, and to a shell as an exit code (PURE)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import assert_never

from tandemn.cli import cost_report, text
from tandemn.prices import usd
from tandemn.protocol.jobs import (
    JobState,
    JobStatus,
    JobSummary,
    PaceView,
    Priority,
    ReplicaView,
    RequestCounts,
    SwapView,
    WaitView,
)
from tandemn.protocol.plans import KoiAdvice

#: How many line errors a terminal is shown; `status JOB --json` has all that the control plane kept.
SHOWN_ERRORS = 100


def exit_code(status: JobStatus) -> int:
    """Say how a command that waited for this job ends: 0 done or under way, 1 failed, 2 bad input, 3 not in time."""
    match status.state:
        case JobState.COMPLETED:
            return 0
        case JobState.EXPIRED | JobState.OVER_BUDGET:
            return 3
        case JobState.CANCELLED:
            return 1
        case JobState.FAILED:
            if has_bad_input(status):
                return 2
            return 3 if status.code == "infeasible" else 1
        case (
            JobState.VALIDATING
            | JobState.PLANNING
            | JobState.WAITING
            | JobState.LAUNCHING
            | JobState.RUNNING
            | JobState.CANCELLING
            | JobState.ASSEMBLING
        ):
            return 0
        case _:
            assert_never(status.state)


def has_bad_input(status: JobStatus) -> bool:
    """Say whether the job ended because lines of its input are wrong: nothing was launched."""
    return status.state is JobState.FAILED and status.errors_total > 0 and status.started_at is None


def input_errors(status: JobStatus, name: str) -> list[str]:
    """Name every bad line as `file:line: what [code]`, up to a limit."""
    shown = status.errors[:SHOWN_ERRORS]
    lines = [
        f"{text.printable(name)}{'' if error.line is None else f':{error.line}'}: "
        f"{text.printable(error.message)} [{error.code}]"
        for error in shown
    ]
    if status.errors_total > len(shown):
        lines.append(f"… and {status.errors_total - len(shown):,} more")
    return lines


def progress_line(status: JobStatus, now: float) -> str:
    """Say on one line how far the job is."""
    parts = [f"{status.state} {done_of(status.requests)}"]
    if status.requests.failed:
        parts.append(f"{status.requests.failed:,} failed")
    parts += [*rates(status), *pace(status, now)]
    if status.replicas:
        parts.append(replica_counts(status.replicas))
    if status.cost is not None and (status.cost.at_least_usd or status.cost.unknown):
        parts.append(f"cost {cost_report.figure(status.cost)}")
    if status.waits:
        parts.append(wait_line(status.waits))
    if status.swap and status.swap.state in {"launching", "draining"}:
        parts.append(swap_line(status.swap))
    if status.pace and status.pace.acted_because and not status.state.has_ended:
        parts.append(f"pacing: {status.pace.acted_because}")
    return ", ".join(parts)


def status_lines(status: JobStatus, now: float) -> list[str]:
    """Say all that matters about a job, under heads."""
    rows = [
        ("job", status.job_id),
        ("state", _with_reason(str(status.state), status.reason, status.code)),
        *([("waits", wait_line(status.waits))] if status.waits else []),
        *([("priority", str(status.priority))] if status.priority is not Priority.NORMAL else []),
        ("model", status.model if status.engine is None else f"{status.model} on {status.engine}"),
        ("requests", _requests(status.requests)),
        ("chunks", _chunks(status)),
        ("pace", ", ".join(rates(status)) or "-"),
        ("deadline", ", ".join(pace(status, now)) or "-"),
        ("tokens", f"{status.prompt_tokens:,} read, {status.output_tokens:,} written"),
        ("cost", cost_report.cost_line(status)),
    ]
    if status.pace and not status.state.has_ended:
        rows.append(("pacing", pacing_line(status.pace)))
    if status.swap:
        rows.append(("swap", swap_line(status.swap)))
    if status.koi:
        rows.append(("koi", koi_line(status.koi)))
    if status.errors_total:
        rows.append(("bad lines", f"{status.errors_total:,} in the input"))
    lines = [f"{head:<9} {text.printable(value)}" for head, value in rows]
    return [*lines, "", *replica_table(status.replicas)] if status.replicas else lines


def final_lines(status: JobStatus, output: str | None) -> list[str]:
    """Report a job that has ended: what came of it, how fast it was, where the answers are."""
    began, ended = status.started_at or status.created_at, status.ended_at or status.created_at
    took_s = max(ended - status.created_at, 0.0)
    busy_s = max(ended - began, 1e-9)
    requests = status.requests
    lines = [_with_reason(f"{status.job_id} {status.state}", status.reason, status.code)]
    lines.append(f"requests  {_requests(requests)}")
    lines.append(f"duration  {text.duration(took_s)}{', late' if status.is_late else ''}")
    if requests.completed and status.started_at is not None:
        per_s = text.rate((requests.completed + requests.failed) / busy_s)
        lines.append(
            f"pace      {per_s} requests/s, {text.rate(status.output_tokens / busy_s)} output tokens/s"
        )
    if status.cost_usd is not None or status.cost is not None:
        lines.append(f"cost      {cost_report.cost_line(status)}")
    if output is not None:
        lines.append(f"output    {output}")
    elif requests.completed:
        lines.append(f"output    `tandemn download {status.job_id} -o FILE` fetches it")
    return [text.printable(line) for line in lines]


def summary_rows(jobs: Iterable[JobSummary], now: float) -> list[list[str]]:
    """Make the rows of `tandemn list`."""
    return [
        [
            job.job_id,
            str(job.state),
            job.model,
            done_of(job.requests),
            f"{text.duration(now - job.created_at)} ago",
            "late" if job.is_late else ("" if job.ended_at else f"in {text.duration(job.deadline - now)}"),
            str(job.priority),
            wait_line(job.waits) if job.waits else job.reason or "",
        ]
        for job in jobs
    ]


SUMMARY_HEADS = ("JOB", "STATE", "MODEL", "REQUESTS", "CREATED", "DEADLINE", "PRIORITY", "REASON")


def done_of(requests: RequestCounts) -> str:
    """Write `1,240/20,000 (6.2%)`; `-` before the input has been counted."""
    done = requests.completed + requests.failed
    return f"{done:,}/{requests.total:,} ({done / requests.total:.1%})" if requests.total else "-"


def rates(status: JobStatus) -> list[str]:
    """Write the present requests/s and tokens/s, where they are known."""
    named = ((status.requests_per_s, "requests/s"), (status.tokens_per_s, "tokens/s"))
    return [f"{text.rate(value)} {unit}" for value, unit in named if value is not None]


def pace(status: JobStatus, now: float) -> list[str]:
    """Set the expected end against the deadline."""
    left_s = status.deadline - now
    if status.state.has_ended:
        return ["late"] if status.is_late else []
    deadline = f"deadline in {text.duration(left_s)}" if left_s >= 0 else f"{text.duration(-left_s)} late"
    if status.eta_s is None:
        return [deadline]
    slack_s = left_s - status.eta_s
    verdict = "before" if slack_s >= 0 else "after"
    return [f"ends in {text.duration(status.eta_s)} ({text.duration(abs(slack_s))} {verdict} the deadline)"]


def replica_counts(replicas: Sequence[ReplicaView]) -> str:
    """Count the replicas by state: `2 running, 1 starting`; those that ended only where none lives."""
    living = [replica for replica in replicas if not replica.state.has_ended]
    counts = Counter(str(replica.state) for replica in living or replicas)
    return "replicas: " + ", ".join(f"{count} {state}" for state, count in counts.items())


def replica_table(replicas: Sequence[ReplicaView]) -> list[str]:
    """Lay out the replicas, one a line."""
    return text.table(
        ("REPLICA", "STATE", "GPU", "TP/PP", "MARKET", "REGION", "PID", "CHUNKS", "REQUESTS/S", "REASON"),
        [
            [
                replica.replica_id,
                str(replica.state),
                replica.gpu,
                f"{replica.tp}/{replica.pp}",
                str(replica.market),
                replica.region or "-",
                "-" if replica.pid is None else str(replica.pid),
                f"{replica.chunks_completed:,}",
                "-" if replica.requests_per_s is None else text.rate(replica.requests_per_s),
                _with_reason_code(replica),
            ]
            for replica in replicas
        ],
    )


def koi_line(advice: KoiAdvice) -> str:
    """Say what Koi recommended, and what came of it."""
    parts = []
    if advice.gpu is not None:
        count = f"{advice.replicas} x " if advice.replicas is not None else ""
        where = [str(each) for each in (advice.market, advice.region, advice.instance_type) if each]
        parts.append(" ".join([f"{count}{advice.gpu} tp{advice.tp} pp{advice.pp}", *where]))
    if advice.predicted_tokens_per_s is not None:
        parts.append(f"{text.rate(advice.predicted_tokens_per_s)} tokens/s by its own figures")
    if advice.expected_usd is not None:
        parts.append(f"{usd(Decimal(str(advice.expected_usd)))} by ours")
    if advice.expected_finish_s is not None:
        parts.append(f"done in {text.duration(advice.expected_finish_s)} by ours")
    verdict = advice.reason if advice.is_followed else f"not followed: {advice.reason}"
    return f"{', '.join([*parts, verdict])}{f' [{advice.code}]' if advice.code else ''}"


def _with_reason_code(replica: ReplicaView) -> str:
    code = f"[{replica.reason_code}]" if replica.reason_code is not None else ""
    return f"{replica.reason or ''} {code}".strip()


def pacing_line(pace: PaceView) -> str:
    """Say what was last decided on the number of replicas, and why."""
    last = f"; last change: {pace.acted_because}" if pace.acted_because and pace.acted_at != pace.at else ""
    return f"{text.plural(pace.replicas_wanted, 'replica')} wanted: {pace.reason}{last}"


def swap_line(swap: SwapView) -> str:
    """Say how a swap stands."""
    return f"swap {swap.state}: {swap.ready} of {swap.threshold} new replicas at work; {swap.reason}"


def wait_line(waits: WaitView) -> str:
    """Say what a job waits for, its place in line, and who is ahead of it."""
    if waits.place_in_line is None:
        return waits.reason
    ahead = [*waits.ahead]
    if waits.ahead_of_others:
        ahead.append(text.plural(waits.ahead_of_others, "job") + " of other owners")
    behind = f", behind {', '.join(ahead)}" if ahead else ""
    return f"{waits.reason}; number {waits.place_in_line} in line{behind}"


def _requests(requests: RequestCounts) -> str:
    parts = [f"{requests.completed:,} completed", f"{requests.failed:,} failed"]
    if requests.recomputed:
        parts.append(f"{requests.recomputed:,} recomputed")
    return f"{', '.join(parts)} of {requests.total:,}"


def _chunks(status: JobStatus) -> str:
    chunks = status.chunks
    return (
        f"{chunks.completed:,} completed, {chunks.leased:,} leased, {chunks.pending:,} pending, "
        f"{chunks.failed:,} failed of {chunks.total:,}"
    )


def _with_reason(what: str, reason: str | None, code: str | None) -> str:
    if not reason:
        return what
    return f"{what}: {reason}{f' [{code}]' if code else ''}"
