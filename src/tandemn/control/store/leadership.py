"""The seat of the control plane that leads, and the record of each that serves."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from sqlalchemy import Connection, delete, insert, select, update

from tandemn.control.election import Seat
from tandemn.control.store.records import record
from tandemn.control.store.schema import control_planes, seat
from tandemn.errors import Superseded


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlane:
    """A control plane that serves this state, by its own last word."""

    server_id: str
    url: str
    """Where replicas and users reach it."""
    host: str
    """The machine and pid namespace that its pid is of."""
    pid: int
    started: float
    version: str
    beat: int = 0
    seen_at: float = 0.0
    """By its own clock; for people to read."""


def beat(connection: Connection, me: ControlPlane, *, now: float) -> tuple[Seat, list[ControlPlane]]:
    """Count my beat up; return the seat, and every control plane's record, mine too."""
    found = connection.execute(
        update(control_planes)
        .where(control_planes.c.server_id == me.server_id)
        .values(beat=control_planes.c.beat + 1, seen_at=now)
    ).rowcount
    if not found:
        connection.execute(insert(control_planes).values(**asdict(me) | {"beat": 1, "seen_at": now}))
    return the_seat(connection), all_of(connection)


def the_seat(connection: Connection) -> Seat:
    row = connection.execute(select(seat.c.term, seat.c.holder)).one()
    return Seat(term=row.term, holder=row.holder)


def all_of(connection: Connection) -> list[ControlPlane]:
    rows = connection.execute(select(control_planes).order_by(control_planes.c.server_id))
    return [record(ControlPlane, row) for row in rows]


def claim(connection: Connection, server_id: str, *, term: int) -> int | None:
    """Take the seat as it was under `term`; the new term, or None where another was faster."""
    taken = connection.execute(
        update(seat).where(seat.c.term == term).values(term=term + 1, holder=server_id)
    ).rowcount
    return term + 1 if taken else None


def leave(connection: Connection, server_id: str) -> None:
    """Give up the seat, where it is held, and the record."""
    connection.execute(update(seat).where(seat.c.holder == server_id).values(holder=None))
    forget(connection, [server_id])


def forget(connection: Connection, server_ids: list[str]) -> None:
    connection.execute(delete(control_planes).where(control_planes.c.server_id.in_(server_ids)))


def check_term(connection: Connection, term: int) -> None:
    """Raise Superseded (code `not_leading`) where another term has begun: what is being done is another's now."""
    current = connection.execute(select(seat.c.term)).scalar_one()
    if current != term:
        raise Superseded(
            f"this control plane led under term {term}, and term {current} has begun", code="not_leading"
        )
