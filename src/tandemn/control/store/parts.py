"""The parts of a deployment, its backends and its router, as rows: the journal that a crash is recovered from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic

from sqlalchemy import select, update

from tandemn.control.store import events
from tandemn.control.store.schema import backends, routers
from tandemn.errors import StaleRecord
from tandemn.events import EventKind
from tandemn.protocol.deployments import BackendState
from tandemn.serving.lifecycle import Backend, Part, PlanT, Router
from tandemn.serving.providers.provider import BackendPlan, Remote, ReplicaSeen
from tandemn.serving.router_host import RouterPlan

if TYPE_CHECKING:
    from sqlalchemy import Connection, RowMapping, Table

#: The one router of a deployment.
ROUTER = "router"


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRecord(Generic[PlanT]):
    """A part as it is recorded, and the version that a change must name."""

    part: Part[PlanT]
    version: int
    pushed: str | None = None
    """Digest of the table that a router has."""


BackendRecord = PartRecord[BackendPlan]
RouterRecord = PartRecord[RouterPlan]


def backends_of(connection: Connection, service_name: str) -> tuple[BackendRecord, ...]:
    """Read a deployment's backends, by name."""
    return tuple(
        PartRecord(part=Part(plan=BackendPlan.from_json(row["plan"]), **_fields(row)), version=row["version"])
        for row in _rows(connection, backends, service_name)
    )


def router_of(connection: Connection, service_name: str) -> RouterRecord | None:
    """Read a deployment's router; deployments of an older version have none."""
    for row in _rows(connection, routers, service_name):
        router = Part(plan=RouterPlan.from_json(row["plan"]), **_fields(row))
        return PartRecord(part=router, version=row["version"], pushed=row["pushed"])
    return None


def add(connection: Connection, service_name: str, part: Backend | Router) -> None:
    """Record a new part."""
    table = _table(part)
    connection.execute(table.insert().values(service_name=service_name, version=0, **_columns(part)))


def write(
    connection: Connection,
    service_name: str,
    known: PartRecord[PlanT],
    after: Part[PlanT],
    *,
    now: float,
) -> PartRecord[PlanT]:
    """Write a part's next state over the one that was read, and what changed as an event.

    Raises:
        StaleRecord: it has changed since.
    """
    values, pushed = _columns(after), known.pushed
    if isinstance(after.plan, RouterPlan) and after.is_ensured and not known.part.is_ensured:
        # It was started with the table of that moment: whether that is the last one that was pushed is not known.
        values["pushed"] = pushed = None
    _change(connection, service_name, known, after, values)
    _tell(connection, service_name, known.part, after, now)
    return PartRecord(part=after, version=known.version + 1, pushed=pushed)


def write_pushed(
    connection: Connection,
    service_name: str,
    known: RouterRecord,
    digest: str,
    names: list[str],
    *,
    now: float,
) -> None:
    """Record which table the router has.

    Raises:
        StaleRecord: the router's record has changed since.
    """
    _change(connection, service_name, known, known.part, {"pushed": digest})
    events.append(connection, EventKind.TABLE_PUSHED, now=now, service_name=service_name, backends=names)


def hurry(connection: Connection, service_name: str) -> None:
    """Cut the waits of failed tries short, and make whatever is under way stale."""
    for table in (backends, routers):
        connection.execute(
            update(table)
            .where(table.c.service_name == service_name)
            .values(not_before=0.0, version=table.c.version + 1)
        )


def _change(
    connection: Connection,
    service_name: str,
    known: PartRecord[PlanT],
    after: Part[PlanT],
    values: dict[str, Any],
) -> None:
    table = _table(after)
    done = connection.execute(
        update(table)
        .where(
            table.c.service_name == service_name,
            table.c.name == after.name,
            table.c.version == known.version,
        )
        .values(**values, version=known.version + 1)
    )
    if done.rowcount != 1:
        raise StaleRecord(f"{after.name} of {service_name} has changed", object_id=service_name)


def _tell(
    connection: Connection, service_name: str, before: Part[PlanT], after: Part[PlanT], now: float
) -> None:
    plan = after.plan
    facts: dict[str, Any] = {"remote_name": plan.remote_name, "place": plan.place or None}
    facts["remote_id"] = None if after.remote is None else after.remote.remote_id
    if isinstance(plan, BackendPlan):
        kind = EventKind.BACKEND_STATE
        facts |= {"backend": after.name, "provider": plan.provider, "market": plan.market.value}
    else:
        kind = EventKind.ROUTER_STATE
        facts |= {"provider": plan.host}
    if (before.state, before.code) != (after.state, after.code) or (
        after.code is not None and before.reason != after.reason
    ):
        price = None if plan.usd_per_hour is None else str(plan.usd_per_hour)
        facts |= {"state": after.state.value, "reason": after.reason, "code": after.code}
        facts |= {"price_usd_per_hour": price, "price_source": plan.price_source or None}
        events.append(connection, kind, now=now, service_name=service_name, **facts)
    if isinstance(plan, BackendPlan) and (before.replicas, _lives(before)) != (after.replicas, _lives(after)):
        running = [one for one in after.seen if one.ended is None]
        events.append(
            connection,
            EventKind.BACKEND_REPLICAS,
            now=now,
            service_name=service_name,
            backend=after.name,
            market=plan.market.value,
            ready=after.replicas,
            replicas=[one.replica_id for one in running],
            began={one.replica_id: one.began for one in after.seen if one.began is not None},
            ended={one.replica_id: one.ended for one in after.seen if one.ended is not None},
            prices={one.replica_id: str(one.usd_per_hour) for one in running if one.usd_per_hour is not None},
            controllers=[one.replica_id for one in running if one.is_controller],
        )


def _lives(part: Part[PlanT]) -> list[tuple[str, bool]]:
    return [(one.replica_id, one.ended is None) for one in part.seen]


def _table(part: Backend | Router) -> Table:
    return backends if isinstance(part.plan, BackendPlan) else routers


def _rows(connection: Connection, table: Table, service_name: str) -> list[RowMapping]:
    query = select(table).where(table.c.service_name == service_name).order_by(table.c.name)
    return list(connection.execute(query).mappings())


def _fields(row: RowMapping) -> dict[str, Any]:
    return {
        "name": row["name"],
        "state": BackendState(row["state"]),
        "is_tried": row["is_tried"],
        "is_ensured": row["is_ensured"],
        "remote": None if row["remote"] is None else Remote.from_json(row["remote"]),
        "replicas": row["replicas"],
        "seen": tuple(ReplicaSeen.from_json(one) for one in row["seen"]),
        "reason": row["reason"],
        "code": row["code"],
        "failures": row["failures"],
        "not_before": row["not_before"],
    }


def _columns(part: Backend | Router) -> dict[str, Any]:
    return {
        "name": part.name,
        "plan": part.plan.as_json(),
        "state": part.state.value,
        "is_tried": part.is_tried,
        "is_ensured": part.is_ensured,
        "remote": None if part.remote is None else part.remote.as_json(),
        "replicas": part.replicas,
        "seen": [one.as_json() for one in part.seen],
        "reason": part.reason,
        "code": part.code,
        "failures": part.failures,
        "not_before": part.not_before,
    }
