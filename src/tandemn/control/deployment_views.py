"""Deployments as users see them."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tandemn.control.store.deployments import why
from tandemn.protocol.deployments import (
    BackendReplicaView,
    BackendView,
    DeploymentStatus,
    DeploymentSummary,
    RouterView,
)

if TYPE_CHECKING:
    from tandemn.control.store.deployments import DeploymentRecord
    from tandemn.serving.lifecycle import Backend, Router


def status(record: DeploymentRecord) -> DeploymentStatus:
    """Everything about a deployment that `tandemn status` shows."""
    reason, code = why(record)
    return DeploymentStatus(
        service_name=record.service_name,
        owner=record.owner,
        state=record.state,
        reason=reason,
        code=code,
        spec=record.spec,
        endpoint=endpoint_of(record),
        backends=[_backend(each.part) for each in record.backends],
        router=_router(record.router.part) if record.router is not None else None,
        warnings=list(record.warnings),
        old_key_until=record.old_key_until,
        created_at=record.created_at,
        updated_at=record.updated_at,
    )


def summary(record: DeploymentRecord) -> DeploymentSummary:
    """One row of `tandemn list`."""
    return DeploymentSummary(
        service_name=record.service_name,
        owner=record.owner,
        state=record.state,
        reason=why(record)[0],
        model=record.spec.model,
        gpu=record.spec.gpu,
        endpoint=endpoint_of(record),
        backends={each.part.name: each.part.state for each in record.backends},
        created_at=record.created_at,
    )


def endpoint_of(record: DeploymentRecord) -> str | None:
    """Say where clients reach it; None while its router does not run."""
    remote = record.router.part.remote if record.router is not None else None
    if remote is None or remote.url is None or record.spec.router_name is None:
        return remote.url if remote is not None else None
    return _renamed(remote.url, record.spec.router_name)


def _renamed(url: str, name: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=name if parts.port is None else f"{name}:{parts.port}").geturl()


def _backend(backend: Backend) -> BackendView:
    return BackendView(
        name=backend.name,
        market=backend.plan.market,
        provider=backend.plan.provider,
        remote_name=backend.plan.remote_name,
        state=backend.state,
        is_current=backend.is_ensured,
        reason=backend.reason,
        code=backend.code,
        url=backend.remote.url if backend.remote is not None else None,
        price_usd_per_hour=backend.plan.usd_per_hour,
        ready_replicas=backend.replicas,
        replicas=[
            BackendReplicaView(replica_id=each.replica_id, state=each.state, pid=each.pid)
            for each in backend.seen
            if each.ended is None and not each.is_controller
        ],
    )


def _router(router: Router) -> RouterView:
    return RouterView(
        host=router.plan.host,
        remote_name=router.plan.remote_name,
        state=router.state,
        reason=router.reason,
        code=router.code,
        url=router.remote.url if router.remote is not None else None,
        pid=next((each.pid for each in router.seen), None),
        price_usd_per_hour=router.plan.usd_per_hour,
    )
