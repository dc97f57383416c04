"""Figures of the ledger as answers show them."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from tandemn.protocol.cost import FigureView, PartView

if TYPE_CHECKING:
    from tandemn.ledger.figures import Figure
    from tandemn.ledger.spending import PartSpending

#: Digits of an amount in an answer.
_DIGITS = Decimal("1e-9")


def part_view(part: PartSpending) -> PartView:
    return PartView(
        **figure_view(part.spent).model_dump(),
        part=part.part.value,
        running=part.running,
        seconds=float(part.seconds),
    )


def figure_view(figure: Figure) -> FigureView:
    return FigureView(
        usd=amount(figure.usd),
        at_least_usd=figure.at_least.quantize(_DIGITS),
        unknown=figure.unknown,
        label=figure.label.value if figure.label is not None else None,
    )


def amount(usd: Decimal | None) -> Decimal | None:
    return usd.quantize(_DIGITS) if usd is not None else None
