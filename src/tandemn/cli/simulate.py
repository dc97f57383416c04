"""`tandemn simulate`: pacing on recorded spot traces, beside the published policies. Needs no control plane."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tandemn.cli import options
from tandemn.cli.output import emit, say
from tandemn.simulate.compare import (
    CHANGEOVER_S,
    DEADLINE_FACTORS,
    JOB_HOURS,
    ON_DEMAND_USD,
    SPOT_USD,
    STARTS,
    Row,
    compare,
    summarise,
    to_json,
)
from tandemn.simulate.traces import read_traces

_HEADER = (
    f"{'zones':<24}{'job h':>6}{'x':>6}{'tandemn':>9}{'greedy':>9}{'uniform':>9}{'bound':>9}"
    f"{'/better':>9}{'/bound':>8}{'late':>6}"
)


app = typer.Typer(rich_markup_mode=None)


@app.command("simulate")
def simulate_command(
    *,
    trace: Annotated[Path, typer.Option("--trace", help="Folder of spot traces (*.json).")],
    job_hours: Annotated[
        list[float] | None, typer.Option("--job-hours", min=0.01, help="Repeatable.")
    ] = None,
    deadline_factor: Annotated[
        list[float] | None,
        typer.Option("--deadline-factor", min=1.0, help="Repeatable; of the job's own time."),
    ] = None,
    starts: Annotated[
        int, typer.Option("--starts", min=1, help="Starts per row, spread over the trace.")
    ] = STARTS,
    changeover: Annotated[
        float, typer.Option("--changeover", min=0.0, help="Seconds from launch to the first answer.")
    ] = CHANGEOVER_S,
    spot_usd: Annotated[float, typer.Option("--spot-usd", min=0.0, help="Spot price an hour.")] = SPOT_USD,
    on_demand_usd: Annotated[
        float, typer.Option("--on-demand-usd", min=0.0, help="On-demand price an hour.")
    ] = ON_DEMAND_USD,
    as_json: options.AsJson = False,
    _verbose: options.Verbose = False,
) -> None:
    """Replay the deadline pacing on spot traces: mean cost in USD, by zone, job and deadline.

    A trace is a JSON file of one zone: {"metadata": {"gap_seconds": 195}, "data": [0, 1, 1]}.

    Examples:
        tandemn simulate --trace traces
        tandemn simulate --trace traces --job-hours 6 --deadline-factor 1.5 --json
    """
    rows: list[Row] = []
    if not as_json:
        say(_HEADER)
    for row in compare(
        read_traces(trace),
        job_hours=tuple(job_hours or JOB_HOURS),
        factors=tuple(deadline_factor or DEADLINE_FACTORS),
        starts=starts,
        changeover_s=changeover,
        spot_usd=spot_usd,
        on_demand_usd=on_demand_usd,
    ):
        rows.append(row)
        if not as_json:
            say(_line(row))
    if as_json:
        emit(to_json(rows))
        return
    summary = summarise(rows)
    say(f"missed deadlines: {summary.missed}")
    for label, value in (
        ("cost over the clairvoyant bound, all zones", summary.cost_over_clairvoyant_all_zones),
        ("cost over the clairvoyant bound, every row", summary.cost_over_clairvoyant),
        ("worst row over the better of greedy and uniform", summary.worst_over_better),
        ("saved of all on-demand", summary.saved_of_on_demand),
    ):
        if value is not None:
            say(f"{label}: {value:.3f}")


def _line(row: Row) -> str:
    return (
        f"{row.zones[:23]:<24}{row.job_h:>6g}{row.deadline_factor:>6g}{row.tandemn_usd:>9.2f}{row.greedy_usd:>9.2f}"
        f"{row.uniform_usd:>9.2f}{row.clairvoyant_usd:>9.2f}{row.over_better:>+9.1%}{row.over_clairvoyant:>8.3f}"
        f"{row.tandemn_missed:>6}"
    )
