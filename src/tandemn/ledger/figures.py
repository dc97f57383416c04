"""Sums of money that remember how far they can be trusted, and what they lack."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from tandemn.ledger.entries import Label

if TYPE_CHECKING:
    from collections.abc import Iterable

_STRENGTH: Final = {Label.ESTIMATED: 0, Label.METERED: 1, Label.BILLED: 2}
_MILLION: Final = Decimal(1_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """USD, or USD per hour. Adding keeps the weakest label; what has no price makes the whole unknown."""

    at_least: Decimal = Decimal(0)
    """What the priced things cost; the whole where nothing is unknown."""
    unknown: int = 0
    """How many things cost something that is not known."""
    label: Label | None = None
    """None: there was nothing to pay for."""

    @property
    def usd(self) -> Decimal | None:
        """The figure, or None where a part of it is not known: never 0 in its stead."""
        return None if self.unknown else self.at_least

    def __add__(self, other: Figure) -> Figure:
        return Figure(
            at_least=self.at_least + other.at_least,
            unknown=self.unknown + other.unknown,
            label=weakest(self.label, other.label),
        )


NOTHING: Final = Figure()


def total(figures: Iterable[Figure]) -> Figure:
    """Add up; an empty sum is NOTHING."""
    return sum(figures, start=NOTHING)


def weakest(one: Label | None, other: Label | None) -> Label | None:
    """Return the label of a sum of figures with these labels."""
    labels = [label for label in (one, other) if label is not None]
    return min(labels, key=_STRENGTH.__getitem__, default=None)


def per_million(figure: Figure, tokens: int) -> Decimal | None:
    """Return USD per million tokens; None where the figure is unknown or there were no tokens."""
    return figure.usd * _MILLION / tokens if figure.usd is not None and tokens > 0 else None
