"""Deployments and their backends: the journal that a crash is recovered from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, delete, select, update

from tandemn.control.store.schema import backends, deployments
from tandemn.errors import Conflict, NotFound, StaleRecord
from tandemn.protocol.deployments import BackendState, DeploymentSpec, DeploymentState
from tandemn.serving import lifecycle
from tandemn.serving.lifecycle import Backend
from tandemn.serving.providers.provider import BackendPlan, Remote


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendRecord:
    """A backend as it is recorded, and the version that a change must name."""

    backend: Backend
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentRecord:
    service_name: str
    state: DeploymentState
    spec: DeploymentSpec
    is_deleting: bool
    warnings: tuple[str, ...]
    backends: tuple[BackendRecord, ...]
    created_at: float
    updated_at: float


def submit(
    connection: Connection,
    spec: DeploymentSpec,
    plans: Mapping[str, BackendPlan],
    *,
    now: float,
    is_update: bool = False,
) -> DeploymentRecord:
    """Record a deployment with its backends by name; the reconciler creates them.

    The same spec again goes on with what a crash or a failure left; another one changes it in place only
    where `is_update` says so.

    Raises:
        Conflict: `name_taken`, `deployment_deleting`, or `replacement_needed`: an update that another provider
            would have to serve.
    """
    found = _row(connection, spec.service_name)
    if found is None or found["state"] == DeploymentState.DELETED:
        return _create(connection, spec, plans, now)
    if found["is_deleting"]:
        raise Conflict(
            f"the deployment {spec.service_name} is being deleted",
            code="deployment_deleting",
            next_step="wait until it is gone, or name this one otherwise",
            object_id=spec.service_name,
        )
    record = _record(connection, found)
    if record.spec != spec and not is_update:
        raise Conflict(
            f"the name {spec.service_name} is taken by a deployment of {record.spec.model} with other settings",
            code="name_taken",
            next_step="update it in place, or deploy under another name",
            object_id=spec.service_name,
        )
    _replan(connection, record, plans)
    connection.execute(
        update(deployments)
        .where(deployments.c.service_name == spec.service_name)
        .values(
            spec=spec.model_dump(mode="json"),
            warnings=[warning for plan in plans.values() for warning in plan.warnings],
        )
    )
    _fold(connection, spec.service_name, now)
    return get(connection, spec.service_name)


def get(connection: Connection, service_name: str) -> DeploymentRecord:
    """Read a deployment.

    Raises:
        NotFound: there never was one of that name.
    """
    row = _row(connection, service_name)
    if row is None:
        raise NotFound(
            f"there is no deployment {service_name}",
            code="deployment_not_found",
            object_id=service_name,
        )
    return _record(connection, row)


def all_of(connection: Connection, states: Sequence[DeploymentState] = ()) -> list[DeploymentRecord]:
    """Read every deployment, or those in these states, oldest first."""
    query = select(deployments).order_by(deployments.c.created_at, deployments.c.service_name)
    if states:
        query = query.where(deployments.c.state.in_([state.value for state in states]))
    return [_record(connection, row) for row in connection.execute(query).mappings().all()]


def begin_deleting(connection: Connection, service_name: str, *, now: float) -> DeploymentRecord:
    """Record the intent to delete; safe to repeat. Waits of failed tries are cut short.

    Raises:
        NotFound: there never was one of that name.
    """
    get(connection, service_name)
    connection.execute(
        update(deployments).where(deployments.c.service_name == service_name).values(is_deleting=True)
    )
    connection.execute(
        update(backends)
        .where(backends.c.service_name == service_name)
        .values(not_before=0.0, version=backends.c.version + 1)
    )
    _fold(connection, service_name, now)
    return get(connection, service_name)


def write(
    connection: Connection, service_name: str, known: BackendRecord, after: Backend, *, now: float
) -> BackendRecord:
    """Write a backend's next state over the one that was read.

    Raises:
        StaleRecord: it has changed since.
    """
    done = connection.execute(
        update(backends)
        .where(
            backends.c.service_name == service_name,
            backends.c.name == after.name,
            backends.c.version == known.version,
        )
        .values(**_columns(after), version=known.version + 1)
    )
    if done.rowcount != 1:
        raise StaleRecord(f"backend {after.name} of {service_name} has changed", object_id=service_name)
    _fold(connection, service_name, now)
    return BackendRecord(backend=after, version=known.version + 1)


def _create(
    connection: Connection, spec: DeploymentSpec, plans: Mapping[str, BackendPlan], now: float
) -> DeploymentRecord:
    # What a deleted one left is only its record.
    connection.execute(delete(backends).where(backends.c.service_name == spec.service_name))
    connection.execute(delete(deployments).where(deployments.c.service_name == spec.service_name))
    connection.execute(
        deployments.insert().values(
            service_name=spec.service_name,
            state=DeploymentState.PLANNED.value,
            spec=spec.model_dump(mode="json"),
            is_deleting=False,
            warnings=[warning for plan in plans.values() for warning in plan.warnings],
            created_at=now,
            updated_at=now,
        )
    )
    for name, plan in plans.items():
        connection.execute(
            backends.insert().values(
                service_name=spec.service_name, version=0, **_columns(Backend(name=name, plan=plan))
            )
        )
    return get(connection, spec.service_name)


def _replan(connection: Connection, record: DeploymentRecord, plans: Mapping[str, BackendPlan]) -> None:
    known = {each.backend.name: each for each in record.backends}
    homes = {name: _home(each.backend.plan) for name, each in known.items()}
    if {name: _home(plan) for name, plan in plans.items()} != homes:
        raise Conflict(
            f"{record.service_name} would have to move to another provider or region",
            code="replacement_needed",
            next_step="deploy it under another name, then destroy this one",
            object_id=record.service_name,
        )
    for name, plan in plans.items():
        after = lifecycle.replanned(known[name].backend, plan)
        if after is not known[name].backend:
            write(connection, record.service_name, known[name], after, now=record.updated_at)


def _home(plan: BackendPlan) -> tuple[str, str, str]:
    """Where a backend lives: a plan for another home is another backend."""
    return plan.provider, plan.place, plan.remote_name


def _fold(connection: Connection, service_name: str, now: float) -> None:
    """Let the deployment's state follow its backends'."""
    record = get(connection, service_name)
    state = lifecycle.deployment_state(
        [each.backend for each in record.backends], is_deleting=record.is_deleting
    )
    connection.execute(
        update(deployments)
        .where(deployments.c.service_name == service_name)
        .values(state=state.value, updated_at=now)
    )


def _row(connection: Connection, service_name: str) -> RowMapping | None:
    query = select(deployments).where(deployments.c.service_name == service_name)
    return connection.execute(query).mappings().first()


def _record(connection: Connection, row: RowMapping) -> DeploymentRecord:
    query = select(backends).where(backends.c.service_name == row["service_name"]).order_by(backends.c.name)
    return DeploymentRecord(
        service_name=row["service_name"],
        state=DeploymentState(row["state"]),
        spec=DeploymentSpec.model_validate(row["spec"]),
        is_deleting=row["is_deleting"],
        warnings=tuple(row["warnings"]),
        backends=tuple(_backend(each) for each in connection.execute(query).mappings()),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def _backend(row: RowMapping) -> BackendRecord:
    backend = Backend(
        name=row["name"],
        plan=BackendPlan.from_json(row["plan"]),
        state=BackendState(row["state"]),
        is_tried=row["is_tried"],
        is_ensured=row["is_ensured"],
        remote=None if row["remote"] is None else Remote.from_json(row["remote"]),
        reason=row["reason"],
        code=row["code"],
        failures=row["failures"],
        not_before=row["not_before"],
    )
    return BackendRecord(backend=backend, version=row["version"])


def _columns(backend: Backend) -> dict[str, Any]:
    return {
        "name": backend.name,
        "plan": backend.plan.as_json(),
        "state": backend.state.value,
        "is_tried": backend.is_tried,
        "is_ensured": backend.is_ensured,
        "remote": None if backend.remote is None else backend.remote.as_json(),
        "reason": backend.reason,
        "code": backend.code,
        "failures": backend.failures,
        "not_before": backend.not_before,
    }
