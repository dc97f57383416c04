"""What routers metered: running totals, and the busy periods from which containers are worked out.

A deployment's name may be given again after it is gone, so all of it is kept by name and `life`: when the deployment was
made. It outlives the deployment's own record, for what was spent stays spent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, func, select, update

from tandemn.control.store.schema import busy_periods, meter_series, meter_totals
from tandemn.ledger.containers import BusyPeriod, coarser
from tandemn.ledger.entries import MeterRead

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import ColumnElement, Connection, RowMapping, Table

    from tandemn.protocol.router import MeterPage, PeriodRead

#: Periods kept of one backend of one deployment, twice this at most: three days without a pause. Older ones are
#: joined in pairs.
PERIODS_KEPT = 25_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """One deployment: its name, and when it was made."""

    service_name: str
    created_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Metered:
    """All that was read of one deployment's routers."""

    totals: tuple[MeterRead, ...]
    periods: Mapping[str, Sequence[BusyPeriod]]
    """By backend; those under way as they stood at the last reading."""
    read_at: float | None
    """When a router was read last; None: never."""
    is_complete: bool
    """No period was dropped before it was read."""


def position(connection: Connection, life: Life, series: str) -> int:
    """From which period on a router's log has not been read."""
    query = select(meter_series.c.next_number).where(
        *_is(meter_series, life), meter_series.c.series == series
    )
    return connection.execute(query).scalar() or 0


def latest_series(connection: Connection, life: Life) -> tuple[str, int] | None:
    """The series that was read last, and where its reading goes on."""
    query = (
        select(meter_series.c.series, meter_series.c.next_number)
        .where(*_is(meter_series, life))
        .order_by(meter_series.c.read_at.desc())
        .limit(1)
    )
    row = connection.execute(query).first()
    return None if row is None else (row.series, row.next_number)


def take(connection: Connection, life: Life, page: MeterPage, *, since: int, now: float) -> None:
    """Write down what a router told when it was asked for periods from `since` on; twice is once."""
    for backend in page.backends:
        _put(
            connection,
            meter_totals,
            {**_key(life), "series": page.series, "backend": backend.name},
            {"totals": backend.totals()},
        )
    for period in sorted(page.periods, key=lambda each: each.start):
        _take_period(connection, life, period)
    where = {**_key(life), "series": page.series}
    query = select(meter_series.c.is_complete).where(
        *_is(meter_series, life), meter_series.c.series == page.series
    )
    was_complete = connection.execute(query).scalar()
    values = {
        "next_number": page.next,
        "read_at": now,
        "is_complete": was_complete is not False and (since >= page.complete_from),
        "under_way": [each.model_dump() for each in page.under_way],
    }
    _put(connection, meter_series, where, values)
    for name in {period.backend for period in page.periods}:
        _shorten(connection, life, name)


def read(connection: Connection, life: Life) -> Metered:
    """Read everything of one deployment."""
    totals = [
        MeterRead(owner=owner_of(life), meter=row.series, backend=row.backend, **_totals(row.totals))
        for row in connection.execute(select(meter_totals).where(*_is(meter_totals, life)))
    ]
    periods: dict[str, list[BusyPeriod]] = {}
    query = select(busy_periods).where(*_is(busy_periods, life)).order_by(busy_periods.c.start)
    for row in connection.execute(query).mappings():
        periods.setdefault(row["backend"], []).append(_period(row))
    series = connection.execute(
        select(meter_series).where(*_is(meter_series, life)).order_by(meter_series.c.read_at)
    ).all()
    for each in series[-1:]:
        for under_way in each.under_way:
            periods.setdefault(under_way["backend"], []).append(_period(under_way))
    return Metered(
        totals=tuple(totals),
        periods=periods,
        read_at=max((each.read_at for each in series), default=None),
        is_complete=all(each.is_complete for each in series),
    )


def owner_of(life: Life) -> str:
    """Name a deployment in the ledger: another one may have had the name before."""
    return f"{life.service_name}@{life.created_at!r}"


def _take_period(connection: Connection, life: Life, period: PeriodRead) -> None:
    """Keep the longer one of two that begin at the same time: a router that was killed may tell one again."""
    key = {**_key(life), "backend": period.backend, "start": period.start}
    found = connection.execute(select(busy_periods.c.end).filter_by(**key)).scalar()
    values = period.model_dump(exclude={"backend", "start", "number", "busy_s"})
    if found is None:
        connection.execute(busy_periods.insert().values(**key, **values))
    elif found < period.end:
        connection.execute(update(busy_periods).filter_by(**key).values(**values))


def _shorten(connection: Connection, life: Life, backend: str) -> None:
    of_backend = (*_is(busy_periods, life), busy_periods.c.backend == backend)
    count = connection.execute(select(func.count()).select_from(busy_periods).where(*of_backend)).scalar_one()
    if count <= 2 * PERIODS_KEPT:
        return
    query = select(busy_periods).where(*of_backend).order_by(busy_periods.c.start).limit(count - PERIODS_KEPT)
    old = [_period(row) for row in connection.execute(query).mappings()]
    connection.execute(delete(busy_periods).where(*of_backend, busy_periods.c.start <= old[-1].start))
    connection.execute(
        busy_periods.insert(),
        [
            {
                **_key(life),
                "backend": backend,
                "start": each.start,
                "end": each.end,
                "peak": each.peak,
                "inflight_s": each.inflight_s,
                "requests": each.requests,
            }
            for each in coarser(old)
        ],
    )


def _put(connection: Connection, table: Table, key: dict[str, Any], values: dict[str, Any]) -> None:
    """Insert or update; only the leader writes here, so nobody comes between."""
    if connection.execute(update(table).filter_by(**key).values(**values)).rowcount == 0:
        connection.execute(table.insert().values(**key, **values))


def _key(life: Life) -> dict[str, Any]:
    return {"service_name": life.service_name, "life": life.created_at}


def _is(table: Table, life: Life) -> tuple[ColumnElement[bool], ...]:
    return table.c.service_name == life.service_name, table.c.life == life.created_at


def _period(row: Mapping[str, Any] | RowMapping) -> BusyPeriod:
    return BusyPeriod(
        start=row["start"],
        end=row["end"],
        peak=row["peak"],
        inflight_s=row["inflight_s"],
        requests=row["requests"],
    )


def _totals(stored: Mapping[str, Any]) -> dict[str, Any]:
    levels = sorted((int(level), spent) for level, spent in stored["inflight_s"].items())
    return {**stored, "inflight_s": tuple(levels)}
