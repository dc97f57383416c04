"""Telling a replica to drain or stop: recorded here, heard by it at its next call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tandemn.control.reconcilers.work import goes_on
from tandemn.control.store import events, replicas
from tandemn.events import EventKind
from tandemn.fleet.replica import advance
from tandemn.protocol.replicas import ReplicaState

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from tandemn.control.store.records import ReplicaRecord


def record_order(
    connection: Connection, replica: ReplicaRecord, *, orders: str, reason: str, now: float
) -> None:
    """Record that a replica is told to drain or stop; it hears so at its next call."""
    values = {"orders": orders, "stopping_at": now, "reason": reason}
    if replica.state is not ReplicaState.DRAINING:
        values["state"] = advance(replica.state, ReplicaState.DRAINING).value
    replicas.change(connection, replica.replica_id, **values)
    events.append(
        connection,
        EventKind.REPLICA_ORDERED,
        now=now,
        job_id=replica.job_id,
        replica_id=replica.replica_id,
        orders=orders,
        reason=reason,
    )


def drain(connection: Connection, replica_id: str, *, reason: str, now: float) -> None:
    """Record that a replica is told to drain, where it lives and nothing has told it to go."""
    replica = replicas.get(connection, replica_id)
    if goes_on(replica):
        record_order(connection, replica, orders="drain", reason=reason, now=now)
