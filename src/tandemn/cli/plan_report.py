"""A job's plan as people read it."""

from __future__ import annotations

from tandemn.cli.output import note, say
from tandemn.cli.report import koi_line
from tandemn.cli.text import duration, printable, table
from tandemn.protocol.plans import KoiAdvice, PlanAnswer, PlanRow

#: Fallbacks and losers that a person is shown; `--json` has all.
SHOWN = 8


def show(answer: PlanAnswer) -> None:
    """Show a plan, its fallbacks and what lost to a person."""
    work = answer.workload
    say(
        f"{work.requests:,} requests of {work.input_tokens_mean:,.0f} + {work.output_tokens_mean:,.0f} tokens "
        f"on average ({work.basis})"
    )
    heads = ("", "replicas", "configuration", "market", "where", "$/h", "cost $", "time", "margin", "why")
    rows = [row for row in answer.plan if row.rank <= SHOWN]
    say(table(heads, [_cells(row) for row in rows]))
    left = len({row.rank for row in answer.plan}) - len({row.rank for row in rows})
    if left:
        say(f"and {left} more fallbacks (--json has all)")
    for loser in answer.losers[:SHOWN]:
        say(f"not {loser.what}: {loser.reason}")
    if len(answer.losers) > SHOWN:
        say(f"and {len(answer.losers) - SHOWN} more that lost (--json has all)")
    if answer.koi is not None:
        _show_koi(answer.koi)
    note(answer.warnings)
    note(sorted({f"prices: {row.price_source}, {row.price_date}" for row in rows}))


def _show_koi(advice: KoiAdvice) -> None:
    say(f"koi: {printable(koi_line(advice))}")
    for each in advice.alternatives:
        said = "a fallback" if advice.is_followed else "of use"
        say(printable(f"koi, alternative: {each.what}: {each.reason or said}"))
    if advice.said:
        say(printable(f"koi says: {advice.said}"))


def _cells(row: PlanRow) -> tuple[str, ...]:
    layout = f"{row.gpu} tp{row.tp}" + (f" pp{row.pp}" if row.pp > 1 else "")
    return (
        "plan" if row.rank == 0 else str(row.rank),
        str(row.replicas),
        f"{layout} on {row.instances} x {row.instance_type}",
        row.market,
        row.zone or row.region or row.provider,
        f"{row.usd_per_hour:.2f}",
        f"{row.expected_usd:.2f}",
        duration(row.expected_finish_s),
        duration(row.margin_s) if row.margin_s >= 0 else f"-{duration(-row.margin_s)}",
        row.reason,
    )
