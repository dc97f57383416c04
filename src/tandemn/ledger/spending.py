"""What one job or deployment has spent, by part, with the provider's bill where there is one."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from tandemn.ledger.entries import Label, Part
from tandemn.ledger.figures import NOTHING, Figure, total
from tandemn.ledger.fold import Segment, figure, is_open, seconds, segments

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tandemn.ledger.entries import Billed
    from tandemn.ledger.fold import Item, State

#: What no figure contains, and every view says so.
LEFT_OUT: Final = ("storage", "network traffic")
#: A bill that differs from what was metered by more than this share of it is shown.
SHOWN_DIFFERENCE: Final = Decimal("0.05")


@dataclass(frozen=True, slots=True, kw_only=True)
class PartSpending:
    part: Part
    spent: Figure
    usd_per_hour: Figure
    running: int
    """How many run now."""
    seconds: Decimal
    """Billed time, summed over the things that ran."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A bill beside what was metered for the same account and period."""

    account: str
    start: float
    end: float
    billed_usd: Decimal
    metered: Figure
    share: Decimal | None
    """(billed - metered) / metered; None where the metered figure is 0 or unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    spent: Figure
    parts: tuple[PartSpending, ...]
    usd_per_hour: Figure
    """At this moment."""
    since: float | None
    """When the first thing began to cost; None: nothing has yet."""
    differences: tuple[Difference, ...]
    """Bills that are off by more than SHOWN_DIFFERENCE."""


def spending(state: State, owner: str, now: float) -> Spending:
    """Sum up what `owner` has to pay at `now`."""
    mine = sorted(
        (name, item)
        for name, item in state.items.items()
        if item.started is not None and item.started.owner == owner and item.started.at <= now
    )
    items = [item for _, item in mine]
    bills = _bills(state, owner, now)
    parts = tuple(
        each for part in Part if (each := _part(part, items, bills, now)).running or each.spent != NOTHING
    )
    compared = [_difference(bill, _of_account(items, bill), now) for bill in bills]
    return Spending(
        spent=total(each.spent for each in parts),
        parts=parts,
        usd_per_hour=total(each.usd_per_hour for each in parts),
        since=min(
            (item.started.at for item in items if item.started is not None),
            default=None,
        ),
        differences=tuple(filter(_is_shown, compared)),
    )


def _part(part: Part, items: Sequence[Item], bills: Sequence[Billed], now: float) -> PartSpending:
    of_part = [item for item in items if item.started is not None and item.started.part is part]
    lived = [(item, segments(item, now)) for item in of_part]
    open_ = [pieces[-1] for item, pieces in lived if is_open(item, now)]
    billed = [Figure(at_least=bill.usd, label=Label.BILLED) for bill in bills if bill.part is part]
    unbilled = [figure(item, _outside(pieces, _of_item(bills, item))) for item, pieces in lived]
    return PartSpending(
        part=part,
        spent=total([*billed, *unbilled]),
        usd_per_hour=total(_rate(piece) for piece in open_),
        running=len(open_),
        seconds=sum((each.end - each.start for _, pieces in lived for each in pieces), start=Decimal(0)),
    )


def _rate(piece: Segment) -> Figure:
    if piece.price is None:
        return Figure(unknown=1, label=Label.METERED)
    return Figure(at_least=piece.price.usd_per_hour, label=Label.METERED)


def _bills(state: State, owner: str, now: float) -> list[Billed]:
    """Return the owner's bills, of overlapping ones of an account only the first and longest."""
    found: list[Billed] = []
    for bill in sorted(state.bills.values(), key=lambda bill: (bill.account, bill.start, -bill.end)):
        if bill.owner != owner or bill.at > now or bill.end <= bill.start:
            continue
        if found and found[-1].account == bill.account and bill.start < found[-1].end:
            continue
        found.append(bill)
    return found


def _of_item(bills: Sequence[Billed], item: Item) -> list[Billed]:
    account = item.started.account if item.started is not None else ""
    return [bill for bill in bills if account and bill.account == account]


def _of_account(items: Sequence[Item], bill: Billed) -> list[Item]:
    return [item for item in items if item.started is not None and item.started.account == bill.account]


def _outside(pieces: Iterable[Segment], bills: Sequence[Billed]) -> list[Segment]:
    """Cut away what the bills cover."""
    left = list(pieces)
    for bill in bills:
        start, end = seconds(bill.start), seconds(bill.end)
        left = [
            each
            for piece in left
            for each in (
                [piece]
                if piece.end <= start or piece.start >= end
                else [
                    *_clip(piece, piece.start, start),
                    *_clip(piece, end, piece.end),
                ]
            )
        ]
    return left


def _clip(piece: Segment, start: Decimal, end: Decimal) -> list[Segment]:
    start, end = max(piece.start, start), min(piece.end, end)
    return [Segment(start=start, end=end, price=piece.price)] if end > start else []


def _difference(bill: Billed, items: Sequence[Item], now: float) -> Difference:
    start, end = seconds(bill.start), seconds(bill.end)
    metered = total(
        figure(item, [cut for piece in segments(item, now) for cut in _clip(piece, start, end)])
        for item in items
    )
    usd = metered.usd
    return Difference(
        account=bill.account,
        start=bill.start,
        end=bill.end,
        billed_usd=bill.usd,
        metered=metered,
        share=(bill.usd - usd) / usd if usd else None,
    )


def _is_shown(difference: Difference) -> bool:
    if difference.share is None:
        return difference.billed_usd != difference.metered.at_least
    return abs(difference.share) > SHOWN_DIFFERENCE
