"""Before money is spent: the plan with its price, and the question whether to go on."""

from __future__ import annotations

import typer

from tandemn.cli import plan_report
from tandemn.cli.output import note
from tandemn.cli.text import duration
from tandemn.client import UserClient
from tandemn.errors import Infeasible, InvalidInput, Retryable
from tandemn.protocol.jobs import JobSpec
from tandemn.protocol.plans import KoiAdvice, PlanAnswer


async def agreed(client: UserClient, spec: JobSpec, *, offers_koi: bool) -> JobSpec | None:
    """Show what a job would run on and ask; return the job as it was agreed to, None where it was not.

    The answer may take as long as it takes.

    Args:
        client: the control plane.
        spec: the job.
        offers_koi: whether Koi's plan may be chosen here, where it has one that holds.

    Raises:
        Infeasible: no plan meets the deadline or budget.
        InvalidInput: nothing can be planned, and no GPU is named.
        Retryable: it cannot be planned now, and no GPU is named.
    """
    try:
        answer = await client.plan(spec)
    except Infeasible:
        raise
    except (InvalidInput, Retryable) as exc:
        if spec.gpu in {None, "auto"} or exc.code not in PLANLESS:
            raise
        note(f"{_named(spec)} on {spec.cloud}; there is no plan, and its price is not known: {exc.message}")
        return spec if typer.confirm("Launch it?", err=True) else None
    plan_report.show(answer)
    if offers_koi and answer.koi is not None and answer.koi.is_feasible:
        match typer.prompt(_choice(answer, answer.koi), default="own", value_proc=_whose, err=True):
            case "own":
                return spec
            case "koi":
                # Seen whole before it is agreed to: its places, its fallbacks, its price.
                koi_first = spec.model_copy(update={"advisor": "koi"})
                return await agreed(client, koi_first, offers_koi=False)
        return None
    return spec if typer.confirm(_question(answer), err=True) else None


#: Why there may be no plan for a GPU that was named, which is launched all the same.
PLANLESS = frozenset(
    {
        "bad_model_config",
        "cannot_plan",
        "hub_unavailable",
        "model_not_found",
        "not_found",
        "unknown_model",
        "unknown_quantisation",
    }
)


def _whose(answer: str) -> str:
    given = answer.strip().lower()
    if given not in {"own", "koi", "none"}:
        raise typer.BadParameter("answer own, koi or none")  # it is asked again
    return given


def _choice(answer: PlanAnswer, advice: KoiAdvice) -> str:
    own = min(answer.plan, key=lambda row: row.rank)
    koi = f"${advice.expected_usd:.2f}" if advice.expected_usd is not None else "an unknown price"
    return f"Whose plan is launched: the own (about ${own.expected_usd:.2f} in all), Koi's (about {koi})? [own/koi/none]"


def _question(answer: PlanAnswer) -> str:
    best = [row for row in answer.plan if row.rank == 0]
    per_hour = sum(row.usd_per_hour for row in best)
    cost, time = best[0].expected_usd, duration(best[0].expected_finish_s)
    return f"Launch it, at ${per_hour:.2f} an hour, about ${cost:.2f} in all over {time}?"


def _named(spec: JobSpec) -> str:
    layout = f"tp{spec.tp or 1}" + (f" pp{spec.pp}" if spec.pp else "")
    return f"{spec.replicas or 1} x {spec.gpu} {layout}, {'on-demand' if spec.on_demand else 'spot'}"
