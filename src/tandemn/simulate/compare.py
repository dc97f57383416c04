"""All policies side by side on a folder of traces: one row for each zone (and all together), job and deadline."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tandemn.simulate.clairvoyant import least_usd
from tandemn.simulate.policies import Greedy, Pacing, UniformProgress
from tandemn.simulate.run import Job, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tandemn.simulate.policies import Policy
    from tandemn.simulate.traces import Traces

JOB_HOURS, DEADLINE_FACTORS = (2.0, 6.0, 48.0), (1.1, 1.25, 1.5, 2.0, 3.0, 4.0)
#: From launch to the first answer; prices of p3.2xlarge, spot at the 30% of on-demand that it went for then.
CHANGEOVER_S, ON_DEMAND_USD, SPOT_USD = 300.0, 3.06, 0.918
#: Starts per row, spread evenly over the trace.
STARTS = 12
ALL_ZONES = "all zones"
_POLICIES: dict[str, Callable[[], Policy]] = {
    "tandemn": Pacing,
    "greedy": Greedy,
    "uniform": UniformProgress,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Mean cost in USD of one job and deadline over its starts, by policy, and how many were late."""

    zones: str
    job_h: float
    deadline_factor: float
    starts: int
    tandemn_usd: float
    greedy_usd: float
    uniform_usd: float
    clairvoyant_usd: float
    on_demand_usd: float
    """All on-demand."""
    tandemn_missed: int
    greedy_missed: int
    uniform_missed: int

    @property
    def over_better(self) -> float:
        """Tandemn's cost over that of the better published policy, less 1."""
        return self.tandemn_usd / min(self.greedy_usd, self.uniform_usd) - 1

    @property
    def over_clairvoyant(self) -> float:
        """Tandemn's cost over the bound."""
        return self.tandemn_usd / self.clairvoyant_usd


def compare(
    traces: Traces,
    *,
    job_hours: Sequence[float] = JOB_HOURS,
    factors: Sequence[float] = DEADLINE_FACTORS,
    starts: int = STARTS,
    changeover_s: float = CHANGEOVER_S,
    spot_usd: float = SPOT_USD,
    on_demand_usd: float = ON_DEMAND_USD,
) -> Iterator[Row]:
    """Rows, as they are computed; a job that is longer than the trace has none."""
    sets = [(zone, traces.only(zone)) for zone in traces.zones]
    if len(sets) > 1:
        sets.append((ALL_ZONES, traces))
    for name, of in sets:
        for hours in job_hours:
            for factor in factors:
                job = Job(
                    work=hours * 3600,
                    whole=hours * 3600 * factor,
                    changeover=changeover_s,
                    spot_usd=spot_usd,
                    on_demand_usd=on_demand_usd,
                )
                row = _row(name, of, job, starts)
                if row is not None:
                    yield row


def _row(name: str, traces: Traces, job: Job, starts: int) -> Row | None:
    last = traces.ticks - int(job.whole // traces.tick_s) - 1
    if last < 0:
        return None
    begins = sorted({int(begin) for begin in np.linspace(0, last, starts)})
    outcomes = {key: [run(traces, begin, job, new()) for begin in begins] for key, new in _POLICIES.items()}
    mean = {key: float(np.mean([outcome.usd for outcome in runs])) for key, runs in outcomes.items()}
    missed = {key: sum(outcome.is_missed for outcome in runs) for key, runs in outcomes.items()}
    return Row(
        zones=name,
        job_h=job.work / 3600,
        deadline_factor=round(job.whole / job.work, 6),
        starts=len(begins),
        tandemn_usd=mean["tandemn"],
        greedy_usd=mean["greedy"],
        uniform_usd=mean["uniform"],
        clairvoyant_usd=float(least_usd(traces, begins, job).mean()),
        on_demand_usd=(job.work + job.changeover) / 3600 * job.on_demand_usd,
        tandemn_missed=missed["tandemn"],
        greedy_missed=missed["greedy"],
        uniform_missed=missed["uniform"],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The rows in one line. Ratios of mean costs, so that long jobs weigh as they cost."""

    rows: int
    missed: int
    cost_over_clairvoyant_all_zones: float | None
    cost_over_clairvoyant: float | None
    worst_over_better: float | None
    """Of all rows: Tandemn over the better of greedy and uniform progress, less 1."""
    saved_of_on_demand: float | None


def summarise(rows: Sequence[Row]) -> Summary:
    """Fold rows into the figures that are aimed at."""
    everywhere = [row for row in rows if row.zones == ALL_ZONES]
    paid, dear = sum(row.tandemn_usd for row in rows), sum(row.on_demand_usd for row in rows)
    return Summary(
        rows=len(rows),
        missed=sum(row.tandemn_missed for row in rows),
        cost_over_clairvoyant_all_zones=_ratio(everywhere),
        cost_over_clairvoyant=_ratio(rows),
        worst_over_better=max((row.over_better for row in rows), default=None),
        saved_of_on_demand=1 - paid / dear if dear else None,
    )


def _ratio(rows: Sequence[Row]) -> float | None:
    bound = sum(row.clairvoyant_usd for row in rows)
    return sum(row.tandemn_usd for row in rows) / bound if bound else None


def to_json(rows: Sequence[Row]) -> dict[str, Any]:
    """Rows and summary as plain JSON values."""
    shown = [
        {**asdict(row), "over_better": row.over_better, "over_clairvoyant": row.over_clairvoyant}
        for row in rows
    ]
    return {"summary": asdict(summarise(rows)), "rows": shown}
