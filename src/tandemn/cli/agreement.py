"""Before money is spent: the plan with its price, and the question whether to go on."""

from __future__ import annotations

import typer

from tandemn.cli import plan_report
from tandemn.cli.output import note
from tandemn.cli.text import duration
from tandemn.client import UserClient
from tandemn.errors import Infeasible, InvalidInput
from tandemn.protocol.jobs import JobSpec
from tandemn.protocol.plans import PlanAnswer


async def agrees(client: UserClient, spec: JobSpec) -> bool:
    """Show what a job would run on and ask; the answer may take as long as it takes.

    Raises:
        Infeasible: no plan meets the deadline or budget.
        InvalidInput: nothing can be planned, and no GPU is named.
    """
    try:
        answer = await client.plan(spec)
    except Infeasible:
        raise
    except InvalidInput as exc:
        if spec.gpu in {None, "auto"} or exc.code not in PLANLESS:
            raise
        note(f"{_named(spec)} on {spec.cloud}; there is no plan, and its price is not known: {exc.message}")
        return typer.confirm("Launch it?", err=True)
    plan_report.show(answer)
    return typer.confirm(_question(answer), err=True)


#: Why there may be no plan for a GPU that was named, which is launched all the same.
PLANLESS = frozenset({"unknown_model", "model_not_found", "cannot_plan", "bad_model_config", "not_found"})


def _question(answer: PlanAnswer) -> str:
    best = [row for row in answer.plan if row.rank == 0]
    per_hour = sum(row.usd_per_hour for row in best)
    cost, time = best[0].expected_usd, duration(best[0].expected_finish_s)
    return f"Launch it, at ${per_hour:.2f} an hour, about ${cost:.2f} in all over {time}?"


def _named(spec: JobSpec) -> str:
    layout = f"tp{spec.tp or 1}" + (f" pp{spec.pp}" if spec.pp else "")
    return f"{spec.replicas or 1} x {spec.gpu} {layout}, {'on-demand' if spec.on_demand else 'spot'}"
