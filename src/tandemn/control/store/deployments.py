"""Deployments: what is wanted, and how it stands; their parts are rows of their own (`parts.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, RowMapping, delete, select, union_all, update

from tandemn import prices
from tandemn.control.access.rules import LOCAL, LOCAL_CALLER, Caller
from tandemn.control.store import events, parts
from tandemn.control.store.parts import BackendRecord, RouterRecord
from tandemn.control.store.schema import backends, deployments, routers
from tandemn.errors import Conflict, NotFound
from tandemn.events import EventKind
from tandemn.protocol.deployments import BackendState, DeploymentSpec, DeploymentState
from tandemn.serving import lifecycle
from tandemn.serving.lifecycle import Backend, Part, PlanT, Router
from tandemn.serving.providers.provider import BackendPlan
from tandemn.serving.router_host import RouterPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentRecord:
    service_name: str
    state: DeploymentState
    spec: DeploymentSpec
    is_deleting: bool
    warnings: tuple[str, ...]
    backends: tuple[BackendRecord, ...]
    router: RouterRecord | None
    created_at: float
    updated_at: float
    old_key_until: float | None
    owner: str
    over_budget_at: float | None = None
    over_budget_reason: str | None = None

    @property
    def parts(self) -> list[Backend | Router]:
        found: list[Backend | Router] = [each.part for each in self.backends]
        return found + ([self.router.part] if self.router is not None else [])

    def is_draining(self, now: float) -> bool:
        """Whether its backends stay a while for the requests that the router lets finish."""
        if self.over_budget_at is None or now >= self.over_budget_at + lifecycle.DRAIN_S:
            return False
        return self.router is not None and self.router.part.state is not BackendState.DELETED


@dataclass(frozen=True, slots=True, kw_only=True)
class Plans:
    """Where each backend goes, by its name, and the router."""

    backends: Mapping[str, BackendPlan]
    router: RouterPlan | None

    @property
    def warnings(self) -> list[str]:
        of_router = () if self.router is None else self.router.warnings
        return [*(each for plan in self.backends.values() for each in plan.warnings), *of_router]


def submit(
    connection: Connection,
    spec: DeploymentSpec,
    plans: Plans,
    *,
    now: float,
    is_update: bool = False,
    caller: Caller = LOCAL_CALLER,
) -> DeploymentRecord:
    """Record a deployment of the caller's with its parts; the reconciler makes them.

    The same spec again goes on with what a crash or a failure left; another one changes it in place only
    where `is_update` says so. One that the caller does not see stays as it is.

    Raises:
        NotFound: an update of what is not there.
        Conflict: `name_taken`, `deployment_deleting`, or `replacement_needed`: an update that another provider,
            engine or endpoint would have to serve.
    """
    _lock(connection, spec.service_name)
    found = _row(connection, spec.service_name)
    if found is None or DeploymentState(found["state"]).has_ended:
        if is_update:
            raise _not_found(spec.service_name)
        return _create(connection, spec, plans, now, caller)
    _check_owner(found, caller)
    record = _record(connection, found)
    refuse_other(record, spec, is_update=is_update)
    homes = {each.part.name: _home(each.part.plan) for each in record.backends}
    if {name: _home(plan) for name, plan in plans.backends.items()} != homes:
        raise _replacement_needed(record, "another provider or region")
    if record.spec != spec:
        events.append(
            connection,
            EventKind.DEPLOYMENT_UPDATED,
            now=now,
            service_name=spec.service_name,
            actor=caller.name,
            changed=changed_fields(record.spec, spec),
        )
    _replan(connection, record, spec, plans, now)
    connection.execute(
        update(deployments)
        .where(deployments.c.service_name == spec.service_name)
        .values(spec=spec.model_dump(mode="json"), warnings=plans.warnings)
    )
    fold(connection, spec.service_name, now)
    return get(connection, spec.service_name)


def get(connection: Connection, service_name: str, *, owner: str | None = None) -> DeploymentRecord:
    """Read a deployment; with `owner`, another's is not there.

    Raises:
        NotFound: there never was one of that name.
    """
    row = _row(connection, service_name)
    if row is None or owner not in {None, row["owner"]}:
        raise _not_found(service_name)
    return _record(connection, row)


def find(
    connection: Connection, service_name: str, *, caller: Caller = LOCAL_CALLER
) -> DeploymentRecord | None:
    """Read a deployment of which something is left; None where there is none.

    Raises:
        Conflict: the caller does not see it (`name_taken`).
    """
    row = _row(connection, service_name)
    if row is None or DeploymentState(row["state"]).has_ended:
        return None
    _check_owner(row, caller)
    return _record(connection, row)


def all_of(
    connection: Connection, states: Sequence[DeploymentState] = (), *, owner: str | None = None
) -> list[DeploymentRecord]:
    """Read every deployment, or those in these states or of this owner, oldest first."""
    query = select(deployments).order_by(deployments.c.created_at, deployments.c.service_name)
    if owner is not None:
        query = query.where(deployments.c.owner == owner)
    if states:
        query = query.where(deployments.c.state.in_([state.value for state in states]))
    return [_record(connection, row) for row in connection.execute(query).mappings().all()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A part that is to be looked at, and when."""

    service_name: str
    part: str
    version: int
    not_before: float
    is_deleting: bool


def pending(connection: Connection) -> list[Pending]:
    """Name every part of which something is left."""
    queries = [
        select(
            table.c.service_name,
            table.c.name.label("part"),
            table.c.version,
            table.c.not_before,
            deployments.c.is_deleting,
        )
        .join(deployments, deployments.c.service_name == table.c.service_name)
        .where(table.c.state != BackendState.DELETED.value)
        for table in (backends, routers)
    ]
    return [Pending(**row) for row in connection.execute(union_all(*queries)).mappings()]


def begin_deleting(
    connection: Connection, service_name: str, *, now: float, actor: str = LOCAL
) -> DeploymentRecord:
    """Record the intent to delete; safe to repeat. Waits of failed tries are cut short.

    Raises:
        NotFound: there never was one of that name.
    """
    _lock(connection, service_name)
    record = get(connection, service_name)
    if not record.is_deleting:
        events.append(
            connection, EventKind.DEPLOYMENT_DELETING, now=now, service_name=service_name, actor=actor
        )
    connection.execute(
        update(deployments).where(deployments.c.service_name == service_name).values(is_deleting=True)
    )
    parts.hurry(connection, service_name)
    fold(connection, service_name, now)
    return get(connection, service_name)


def begin_over_budget(connection: Connection, service_name: str, reason: str, *, now: float) -> None:
    """Record that its budget ended a deployment: it drains, then all of it is deleted. Safe to repeat."""
    _lock(connection, service_name)
    record = get(connection, service_name)
    if record.is_deleting:
        return
    connection.execute(
        update(deployments)
        .where(deployments.c.service_name == service_name)
        .values(is_deleting=True, over_budget_at=now, over_budget_reason=reason)
    )
    events.append(
        connection,
        EventKind.BUDGET_REACHED,
        now=now,
        service_name=service_name,
        reason=reason,
        budget_usd=None if record.spec.budget_usd is None else str(record.spec.budget_usd),
    )
    parts.hurry(connection, service_name)
    fold(connection, service_name, now)


def keep_old_key(
    connection: Connection,
    service_name: str,
    *,
    until: float | None,
    now: float,
    actor: str | None = None,
) -> None:
    """Record until when the key before the last rotation is taken; the reconciler tells the router."""
    connection.execute(
        update(deployments)
        .where(deployments.c.service_name == service_name)
        .values(old_key_until=until, updated_at=now)
    )
    if until is not None:
        parts.hurry(connection, service_name)
        events.append(
            connection,
            EventKind.KEY_ROTATED,
            now=now,
            service_name=service_name,
            actor=actor,
            old_key_until=until,
        )


def write(
    connection: Connection,
    service_name: str,
    known: parts.PartRecord[PlanT],
    after: Part[PlanT],
    *,
    now: float,
) -> parts.PartRecord[PlanT]:
    """Write a part's next state over the one that was read.

    Raises:
        StaleRecord: it has changed since.
    """
    # Two parts that are written at a time must not both fold the deployment without the other's news.
    _lock(connection, service_name)
    written = parts.write(connection, service_name, known, after, now=now)
    fold(connection, service_name, now)
    return written


def fold(connection: Connection, service_name: str, now: float) -> None:
    """Let the deployment's state follow its parts'."""
    record = get(connection, service_name)
    router = record.router.part if record.router is not None else None
    state = lifecycle.deployment_state(
        [each.part for each in record.backends],
        router,
        is_deleting=record.is_deleting,
        is_over_budget=record.over_budget_at is not None,
    )
    if state is not record.state:
        reason, code = why(record)
        events.append(
            connection,
            EventKind.DEPLOYMENT_STATE,
            now=now,
            service_name=service_name,
            state=state.value,
            reason=reason,
            code=code,
        )
    connection.execute(
        update(deployments)
        .where(deployments.c.service_name == service_name)
        .values(state=state.value, updated_at=now)
    )


def why(record: DeploymentRecord) -> tuple[str | None, str | None]:
    """Return reason and code of the deployment's state."""
    if record.over_budget_reason is not None:
        return record.over_budget_reason, "over_budget"
    return lifecycle.why(record.parts)


def refuse_other(record: DeploymentRecord, spec: DeploymentSpec, *, is_update: bool) -> None:
    """Refuse a spec that cannot be taken under the name of this deployment.

    Raises:
        Conflict: `deployment_deleting`, `name_taken`, or `replacement_needed`.
    """
    if record.is_deleting:
        raise Conflict(
            f"the deployment {spec.service_name} is being deleted",
            code="deployment_deleting",
            next_step="wait until it is gone, or name this one otherwise",
            object_id=spec.service_name,
        )
    changed = changed_fields(record.spec, spec)
    named = ", ".join("scaling policy" if name == "scaling" else _flag(name) for name in changed)
    if changed and not is_update:
        raise Conflict(
            f"the name {spec.service_name} is taken by a deployment of {record.spec.model} with other settings "
            f"({named})",
            code="name_taken",
            next_step="--update changes it in place; or deploy under another --service-name",
            object_id=spec.service_name,
        )
    if not lifecycle.CHANGEABLE.issuperset(changed):
        raise _replacement_needed(record, named)


def changed_fields(before: DeploymentSpec, after: DeploymentSpec) -> list[str]:
    """Names of what differs between two specs."""
    return [name for name in DeploymentSpec.model_fields if getattr(before, name) != getattr(after, name)]


def _create(
    connection: Connection, spec: DeploymentSpec, plans: Plans, now: float, caller: Caller
) -> DeploymentRecord:
    # What a deleted one left is only its record.
    for table in (backends, routers, deployments):
        connection.execute(delete(table).where(table.c.service_name == spec.service_name))
    connection.execute(
        deployments.insert().values(
            service_name=spec.service_name,
            state=DeploymentState.PLANNED.value,
            spec=spec.model_dump(mode="json"),
            is_deleting=False,
            warnings=plans.warnings,
            created_at=now,
            updated_at=now,
            owner=caller.name,
        )
    )
    for name, plan in plans.backends.items():
        parts.add(connection, spec.service_name, Part(name=name, plan=plan))
    if plans.router is not None:
        parts.add(connection, spec.service_name, Part(name=parts.ROUTER, plan=plans.router))
    events.append(
        connection,
        EventKind.DEPLOYMENT_SUBMITTED,
        now=now,
        service_name=spec.service_name,
        actor=caller.name,
        model=spec.model,
        gpu=spec.gpu,
        backends={name: plan.provider for name, plan in plans.backends.items()},
    )
    for name, plan in plans.backends.items():
        _tell_plan(connection, spec, name, plan, now)
    return get(connection, spec.service_name)


def _replan(
    connection: Connection, record: DeploymentRecord, spec: DeploymentSpec, plans: Plans, now: float
) -> None:
    for known in record.backends:
        plan = plans.backends[known.part.name]
        _take(connection, record.service_name, known, plan, now)
        if (plan, spec) != (known.part.plan, record.spec):
            _tell_plan(connection, spec, known.part.name, plan, now)
    if record.router is not None and plans.router is not None:
        _take(connection, record.service_name, record.router, plans.router, now)


def _take(
    connection: Connection, service_name: str, known: parts.PartRecord[PlanT], plan: PlanT, now: float
) -> None:
    after = lifecycle.replanned(known.part, plan)
    if after is not known.part:
        parts.write(connection, service_name, known, after, now=now)


def _tell_plan(
    connection: Connection, spec: DeploymentSpec, name: str, plan: BackendPlan, now: float
) -> None:
    """Tell what a backend costs and how it scales from here on: the ledger reads nothing else of it."""
    on_demand = plan.on_demand_usd_per_hour
    events.append(
        connection,
        EventKind.BACKEND_PLANNED,
        now=now,
        service_name=spec.service_name,
        backend=name,
        provider=plan.provider,
        market=plan.market.value,
        remote_name=plan.remote_name,
        concurrency=spec.scaling.serverless.concurrency,
        scaledown_s=spec.scaling.serverless.scaledown_window,
        on_demand_usd_per_hour=None if on_demand is None else str(on_demand),
        **prices.to_event(plan.price(now)),
    )


def _home(plan: BackendPlan) -> tuple[str, str, str]:
    """Where a backend lives: a plan for another home is another backend."""
    return plan.provider, plan.place, plan.remote_name


def _check_owner(row: RowMapping, caller: Caller) -> None:
    if caller.sees not in {None, row["owner"]}:
        raise Conflict(
            f"the name {row['service_name']} is taken",
            code="name_taken",
            next_step="deploy under another --service-name",
            object_id=row["service_name"],
        )


def _replacement_needed(record: DeploymentRecord, what: str) -> Conflict:
    return Conflict(
        f"{record.service_name} would have to be made anew for this ({what})",
        code="replacement_needed",
        next_step="deploy it under another name, then destroy this one",
        object_id=record.service_name,
    )


def _flag(name: str) -> str:
    return "--budget" if name == "budget_usd" else f"--{name.replace('_', '-')}"


def _not_found(service_name: str) -> NotFound:
    return NotFound(
        f"there is no deployment {service_name}",
        code="deployment_not_found",
        next_step="`tandemn list` shows them",
        object_id=service_name,
    )


def _lock(connection: Connection, service_name: str) -> None:
    """Hold the deployment's row where the database has row locks: what is read decides what is written."""
    name = deployments.c.service_name
    connection.execute(select(name).where(name == service_name).with_for_update())


def _row(connection: Connection, service_name: str) -> RowMapping | None:
    query = select(deployments).where(deployments.c.service_name == service_name)
    return connection.execute(query).mappings().first()


def _record(connection: Connection, row: RowMapping) -> DeploymentRecord:
    name = row["service_name"]
    return DeploymentRecord(
        service_name=name,
        state=DeploymentState(row["state"]),
        spec=DeploymentSpec.model_validate(row["spec"]),
        is_deleting=row["is_deleting"],
        warnings=tuple(row["warnings"]),
        backends=parts.backends_of(connection, name),
        router=parts.router_of(connection, name),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        old_key_until=row["old_key_until"],
        over_budget_at=row["over_budget_at"],
        over_budget_reason=row["over_budget_reason"],
        owner=row["owner"],
    )
