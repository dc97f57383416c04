"""How costs read on a terminal: tables, figures with their labels, and what is left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal

from tandemn.cli import text
from tandemn.prices import usd
from tandemn.protocol.cost import (
    CostView,
    DeploymentCostView,
    DifferenceView,
    FigureView,
    PartView,
    RouteView,
    SavingsView,
)
from tandemn.protocol.jobs import CostReport, JobCostRow, JobStatus

COST_HEADS = (
    "JOB",
    "STATE",
    "MODEL",
    "SPENT",
    "LABEL",
    "PER HOUR NOW",
    "PER MILLION TOKENS",
    "PLANNED",
    "BUDGET",
)
DEPLOYMENT_HEADS = (
    "DEPLOYMENT",
    "SINCE",
    "SPENT",
    "LABEL",
    "PER HOUR NOW",
    "PER MILLION TOKENS",
    "SAVED OF SERVERLESS",
    "SAVED OF ON-DEMAND",
)


def cost_rows(jobs: Iterable[JobCostRow]) -> list[list[str]]:
    """Make the rows of `tandemn cost`."""
    return [
        [
            job.job_id,
            str(job.state),
            job.model,
            _amount(job.cost),
            job.cost.label or "-",
            _or_unknown(job.cost.usd_per_hour),
            _or_dash(job.cost.usd_per_million_tokens),
            _or_dash(job.cost.planned_usd),
            _or_dash(job.cost.budget_usd),
        ]
        for job in jobs
    ]


def cost_total(report: CostReport) -> list[str]:
    """Sum up `tandemn cost`: the total is over all jobs and deployments, shown or not."""
    lines = ["", f"total     {figure(report.total)}, {_or_unknown(report.usd_per_hour)} an hour now"]
    if report.jobs_total > len(report.jobs):
        lines.append(f"          of {text.plural(report.jobs_total, 'job')}, {len(report.jobs):,} shown")
    if report.deployments_total > len(report.deployments):
        count = text.plural(report.deployments_total, "deployment")
        lines.append(f"          of {count}, {len(report.deployments):,} shown")
    return [*lines, f"left out  {', '.join(report.left_out)}"]


def cost_lines(job_id: str, cost: CostView) -> list[str]:
    """Say what one job costs, and how the figures were made."""
    rows = [
        ("job", job_id),
        ("spent", figure(cost)),
        ("now", f"{_or_unknown(cost.usd_per_hour)} an hour"),
        ("since", _moment(cost.since)),
        ("tokens", f"{_or_dash(cost.usd_per_million_tokens)} per million"),
        ("planned", f"{usd(cost.planned_usd)} estimated" if cost.planned_usd is not None else "unknown"),
        ("budget", _or_dash(cost.budget_usd)),
        ("left out", ", ".join(cost.left_out)),
    ]
    lines = [f"{head:<9} {value}" for head, value in rows]
    return [*lines, *_parts(cost.parts)]


def deployment_rows(deployments: Iterable[DeploymentCostView]) -> list[list[str]]:
    """Make the rows of the deployments in `tandemn cost`."""
    return [
        [
            each.service_name + (" (gone)" if each.ended_at is not None else ""),
            _moment(each.since),
            _amount(each),
            each.label or "-",
            _or_unknown(each.usd_per_hour),
            _or_dash(each.usd_per_million_tokens),
            _saved(each.against_serverless),
            _saved(each.against_on_demand),
        ]
        for each in deployments
    ]


def deployment_lines(cost: DeploymentCostView) -> list[str]:
    """Say what one deployment costs, where its requests went, and what it saved."""
    rows = [
        ("service", cost.service_name),
        ("spent", figure(cost)),
        ("now", f"{_or_unknown(cost.usd_per_hour)} an hour"),
        ("since", _moment(cost.since)),
        ("tokens", f"{_or_dash(cost.usd_per_million_tokens)} per million"),
        ("instead", f"{_instead(cost.against_serverless)} all serverless"),
        ("", f"{_instead(cost.against_on_demand)} all on demand"),
        ("budget", _or_dash(cost.budget_usd)),
        ("metered", _moment(cost.metered_at)),
        ("left out", ", ".join(cost.left_out)),
    ]
    lines = [f"{head:<9} {value}" for head, value in rows]
    lines += [f"note      {each}" for each in cost.notes]
    return [*lines, *_parts(cost.parts), *_routes(cost.routes), *_differences(cost.differences)]


def _parts(parts: Sequence[PartView]) -> list[str]:
    if not parts:
        return []
    return [
        "",
        *text.table(
            ("PART", "SPENT", "LABEL", "RUNNING", "BILLED TIME"),
            [
                [each.part, _amount(each), each.label or "-", str(each.running), text.duration(each.seconds)]
                for each in parts
            ],
        ),
    ]


def _routes(routes: Sequence[RouteView]) -> list[str]:
    if not routes:
        return []
    return [
        "",
        *text.table(
            ("BACKEND", "REQUESTS", "SHARE", "TOKENS READ", "TOKENS WRITTEN", "BUSY"),
            [
                [
                    each.backend,
                    f"{each.requests:,}",
                    "-" if each.share is None else f"{each.share:.1%}",
                    f"{each.prompt_tokens:,}",
                    f"{each.completion_tokens:,}"
                    + (
                        f" ({each.estimated_completion_tokens:,} estimated)"
                        if each.estimated_completion_tokens
                        else ""
                    ),
                    text.duration(each.busy_s),
                ]
                for each in routes
            ],
        ),
    ]


def _differences(differences: Sequence[DifferenceView]) -> list[str]:
    return [
        f"bill      {each.account}: {usd(each.billed_usd)} billed, {figure(each.metered)}, "
        f"from {_moment(each.start)} to {_moment(each.end)}"
        for each in differences
    ]


def _saved(savings: SavingsView) -> str:
    return "unknown" if savings.saved_share is None else f"{savings.saved_share:.0%}"


def _instead(savings: SavingsView) -> str:
    if savings.saved_usd is None:
        return f"{_amount(savings.instead)}:"
    share = "" if savings.saved_share is None else f" ({abs(savings.saved_share):.0%})"
    verb = "saved" if savings.saved_usd >= 0 else "more spent than"
    return f"{_amount(savings.instead)} estimated, {usd(abs(savings.saved_usd))}{share} {verb}:"


def _moment(at: float | None) -> str:
    return "-" if at is None else datetime.fromtimestamp(at).astimezone().isoformat(" ", "seconds")


def cost_line(status: JobStatus) -> str:
    """Say on one line what the job cost, beside its plan and its budget."""
    cost = status.cost
    if cost is None:
        return "unknown" if status.cost_usd is None else usd(status.cost_usd)
    parts = [figure(cost)]
    if cost.planned_usd is not None and (cost.planned_usd or cost.at_least_usd):
        parts.append(f"planned {usd(cost.planned_usd)}")
    if cost.budget_usd is not None:
        parts.append(f"budget {usd(cost.budget_usd)}")
    if cost.usd_per_hour != 0:
        parts.append(f"{_or_unknown(cost.usd_per_hour)} an hour now")
    return ", ".join(parts)


def figure(cost: FigureView) -> str:
    """Write a figure with its label; an unknown one with what is known of it."""
    return f"{_amount(cost)} {cost.label}" if cost.label else _amount(cost)


def _amount(cost: FigureView) -> str:
    if cost.usd is not None:
        return usd(cost.usd)
    return f"unknown (at least {usd(cost.at_least_usd)}; {cost.unknown} of unknown price)"


def _or_unknown(amount: Decimal | None) -> str:
    return "unknown" if amount is None else usd(amount)


def _or_dash(amount: Decimal | None) -> str:
    return "-" if amount is None else usd(amount)
