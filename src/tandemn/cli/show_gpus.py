"""`tandemn show-gpus`: what can be rented, compared. Needs no control plane."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tandemn.cli import options
from tandemn.cli.output import emit, note, say
from tandemn.placement.catalog.skypilot import load_offers
from tandemn.placement.gpu_table import GpuRow, show_gpus, to_json
from tandemn.protocol.replicas import Market

app = typer.Typer(rich_markup_mode=None)


@app.command("show-gpus")
def show_gpus_command(
    *,
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="Only this GPU, with every place that has it.")
    ] = None,
    provider: Annotated[str | None, typer.Option("--provider", help="Only this provider.")] = None,
    spot: Annotated[bool, typer.Option("--spot", help="Only spot prices.")] = False,
    catalogs: Annotated[
        Path | None,
        typer.Option(
            "--catalogs", metavar="DIR", help="SkyPilot's catalogs; ~/.sky/catalogs where not given."
        ),
    ] = None,
    as_json: options.AsJson = False,
    _verbose: options.Verbose = False,
) -> None:
    """Compare GPUs: memory, speed, and the lowest known price of each provider and market.

    Examples:
        tandemn show-gpus
        tandemn show-gpus --gpu L40S --spot
    """
    rows = show_gpus(
        load_offers(catalogs or Path.home() / ".sky" / "catalogs"),
        gpu=gpu,
        provider=provider,
        market=Market.SPOT if spot else None,
        every_offer=gpu is not None,
    )
    if as_json:
        emit({"gpus": to_json(rows)})
        return
    say(_lines(rows))
    sources = sorted({f"{row.source}, {row.as_of}" for row in rows if row.as_of})
    note([f"prices: {source}" for source in sources])
    if any(row.unconfirmed for row in rows):
        note(["? no second source confirms it (--json names the sources)"])


def _lines(rows: tuple[GpuRow, ...]) -> list[str]:
    """Columns as wide as what is in them, whatever the terminal: a cut price is worse than a wrapped line."""
    header = ("GPU", "GB", "GB/s", "TFLOPS", "provider", "market", "$/GPU-h", "saves", "instance", "place")
    table = [header, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(header))]
    numbers = {1, 2, 3, 6, 7}
    return [
        "  ".join(
            cell.rjust(width) if i in numbers else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    ]


def _cells(row: GpuRow) -> tuple[str, ...]:
    return (
        row.gpu,
        _marked(row, "memory_gb", str(row.memory_gb)),
        _marked(row, "bandwidth_gb_s", f"{row.bandwidth_gb_s:.0f}"),
        _marked(row, "bf16_tflops", f"{row.bf16_tflops:.0f}"),
        row.provider,
        row.market,
        "unknown"
        if row.usd_per_gpu_hour is None
        else _marked(row, "usd_per_gpu_hour", f"{row.usd_per_gpu_hour:.4f}"),
        "" if row.saves is None else f"{row.saves:.0%}",
        "" if row.market == Market.SERVERLESS else f"{row.gpus} in {row.instance_type}",
        row.place,
    )


def _marked(row: GpuRow, name: str, text: str) -> str:
    """A figure with a question mark where no second source confirms it; the others keep its column straight."""
    return f"{text}{'?' if name in row.unconfirmed else ' '}"
