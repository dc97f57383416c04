"""What the control plane leaves for a fleet process to do, and what it tells in return: files of one folder.

Nothing is asked over a connection, so that either side may be dead: an order is a file that is replaced whole or
removed, the status likewise. Orders hold keys, so only their owner reads them.
"""

from __future__ import annotations

from decimal import Decimal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_serializer

from tandemn.fleet.engines.engine import EngineName
from tandemn.protocol.deployments import BackendState, ServerlessScaling, SpotScaling
from tandemn.protocol.replicas import Market


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EngineOrder(_Strict):
    """Which engine every replica runs."""

    engine: EngineName
    model: str
    max_model_len: int
    engine_args: tuple[str, ...] = ()


class SpotOrder(_Strict):
    engine: EngineOrder
    scaling: SpotScaling
    start_delay_s: float = 0.0
    """How long a replica boots before its engine starts; a cloud's machine takes minutes."""


class ServerlessOrder(_Strict):
    engine: EngineOrder
    scaling: ServerlessScaling
    start_delay_s: float = 0.0
    min_containers: int = 0
    max_containers: int = 1


class Order(_Strict):
    """One backend as it should be: one of `spot` and `serverless`."""

    spot: SpotOrder | None = None
    serverless: ServerlessOrder | None = None
    usd_per_hour: Decimal = Decimal(0)
    engine_api_key: SecretStr
    hf_token: SecretStr | None = None

    @field_serializer("engine_api_key", "hf_token", when_used="json")
    def _plain(self, value: SecretStr | None) -> str | None:
        return None if value is None else value.get_secret_value()

    @property
    def engine(self) -> EngineOrder:
        order = self.spot or self.serverless
        assert order is not None, "an order is for one of the two"
        return order.engine

    def scaled(self, least: int) -> Order:
        """The same with at least so many replicas."""
        if self.spot is not None:
            scaling = self.spot.scaling
            most = max(least, scaling.max_replicas)
            scaling = scaling.model_copy(update={"min_replicas": least, "max_replicas": most})
            return self.model_copy(update={"spot": self.spot.model_copy(update={"scaling": scaling})})
        assert self.serverless is not None, "an order is for one of the two"
        most = max(least, self.serverless.max_containers)
        wider = {"min_containers": least, "max_containers": most}
        return self.model_copy(update={"serverless": self.serverless.model_copy(update=wider)})


class ReplicaReport(BaseModel):
    replica_id: str
    state: str
    pid: int | None = None
    inflight: int = 0


class BackendReport(BaseModel):
    state: BackendState
    url: str | None = None
    reason: str | None = None
    ready: int = 0
    replicas: list[ReplicaReport] = Field(default_factory=list)

    def without_load(self) -> BackendReport:
        """What changes seldom: under load, requests in flight change all the time."""
        return self.model_copy(
            update={"replicas": [each.model_copy(update={"inflight": 0}) for each in self.replicas]}
        )


class FleetReport(BaseModel):
    """`status.json`."""

    pid: int
    at: float
    """When it was written, on the fleet's own clock."""
    backends: dict[Market, BackendReport] = Field(default_factory=dict)


def order_name(market: Market) -> str:
    """Name the file of a backend's order."""
    return f"{market.value}.json"
