"""The routing table of a deployment, made of what is known of its backends. Pure; the router's page has its format.

Its backends are those that may answer now or soon: whether one does is the router's to find out. The table
holds the keys of clients and backends, so it is a secret.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from tandemn.protocol.deployments import BackendState
from tandemn.protocol.replicas import Market

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tandemn.protocol.deployments import DeploymentSpec
    from tandemn.serving.lifecycle import Backend

#: The router's format.
VERSION = 1
#: The router's own limit on an answer that is not streamed, in seconds: a shorter policy does not lower it.
ANSWER_S = 600

#: Nothing is sent there any more, or not yet.
_ABSENT = frozenset({BackendState.PLANNED, BackendState.DELETING, BackendState.DELETED})


def routing_table(
    spec: DeploymentSpec,
    backends: Sequence[Backend],
    headers: Mapping[str, Mapping[str, str]],
    client_keys: Sequence[str],
) -> bytes:
    """Make the table, as JSON; equal inputs make equal bytes.

    Args:
        spec: what the deployment is.
        backends: its backends as they are known now.
        headers: what each backend asks of the router, by the backend's name.
        client_keys: what clients may show; the first is the present one, none: the endpoint is public.
    """
    table: dict[str, Any] = {
        "version": VERSION,
        "backends": [
            _entry(spec, backend, headers[backend.name]) for backend in backends if is_routed(backend)
        ],
        "limits": {"answer_s": max(ANSWER_S, spec.scaling.serverless.timeout)},
    }
    if spec.spot_ttft_limit is not None:
        table["limits"]["spot_ttft_s"] = spec.spot_ttft_limit
    if client_keys:
        table["keys"] = list(client_keys)
    return json.dumps(table, sort_keys=True).encode()


def digest(table: bytes) -> str:
    """Tell tables apart without keeping what they hold."""
    return hashlib.sha256(table).hexdigest()


def is_routed(backend: Backend) -> bool:
    """Whether the router is told of it."""
    return backend.remote is not None and backend.remote.url is not None and backend.state not in _ABSENT


def _entry(spec: DeploymentSpec, backend: Backend, headers: Mapping[str, str]) -> dict[str, Any]:
    plan = backend.plan
    assert backend.remote is not None, "only what has a URL is routed"
    # A serverless backend starts replicas for requests that wait: its room is that of all it may have.
    replicas = plan.most_replicas if plan.market is Market.SERVERLESS else backend.replicas
    entry: dict[str, Any] = {
        "name": backend.name,
        "market": plan.market.value,
        "url": backend.remote.url,
        "headers": dict(headers),
        "engine": plan.engine,
        "replicas": max(1, replicas or 1),
        "max_model_len": spec.max_model_len,
    }
    if plan.concurrency is not None:
        entry["concurrency"] = plan.concurrency
    if plan.usd_per_hour is not None:
        entry["price_usd_per_hour"] = float(plan.usd_per_hour)
    return entry
