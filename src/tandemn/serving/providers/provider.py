"""The seam of every provider of backends.

Everything remote has a name that follows from the service's name, so that whatever a crash left behind is
found again: `ensure` and `delete` are safe to repeat, and need nothing but the plan and the name. Calls
return as soon as the provider has accepted them; what becomes of it is `status`'s business.

A provider serves one market. A deployment has the backend `serverless`, of the spec's `serverless_provider`,
and, unless it is serverless only, the backend `spot`, of the provider that `spot_provider` names for the
spec's `spots_cloud`: on this machine that is `local` and `local-spot`, elsewhere the latter is `skyserve`.
Both may bear the same remote name: each finds and deletes its own only.

Errors say what the caller can do:

    InvalidInput   provider_credentials   sign in again
                   provider_permission    ask for the permission
                   provider_refused       change the spec
    Conflict       provider_conflict      another change is under way, or the name is someone else's
    NotFound       provider_not_found     there is no such backend
    NextOffer      NoCapacity, QuotaExceeded
    Retryable      provider_unavailable   nothing is known to have happened; ask again
    Broken         startup_failed         stop the billing, read the log
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol, Self

from tandemn.prices import Price
from tandemn.protocol.replicas import Market

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tandemn.placement.catalog.offers import Offer
    from tandemn.protocol.deployments import BackendState, DeploymentSpec

#: This machine, as a provider of serverless backends and as a cloud of spot ones.
LOCAL = "local"
#: This machine as a provider of spot backends.
LOCAL_SPOT = "local-spot"
#: Every other cloud's spot instances.
SKYSERVE = "skyserve"
#: What every remote name begins with: `gc` looks for it.
REMOTE_PREFIX = "tandemn-"
#: Longest single call to a provider, in seconds; what takes longer counts as a passing fault.
CALL_S = 60.0
#: Replicas of a serverless backend at most, where `--workers-max` does not say otherwise: a bound on spending.
SERVERLESS_REPLICAS = 3


#: Fields of a plan that JSON must keep exact.
_MONEY = ("usd_per_hour", "on_demand_usd_per_hour")


def _text(amount: Decimal | None) -> str | None:
    return None if amount is None else str(amount)


def _amount(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)


def remote_name(service_name: str) -> str:
    """Name a service's backend at its provider."""
    return f"{REMOTE_PREFIX}{service_name}"


def spot_provider(spots_cloud: str) -> str:
    """Name the provider of spot backends for `--spots-cloud`."""
    return LOCAL_SPOT if spots_cloud == LOCAL else SKYSERVE


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """What a backend needs and nobody else may see: it is in no plan, record or log."""

    engine_api_key: str = field(repr=False)
    hf_token: str | None = field(default=None, repr=False)

    def values(self) -> tuple[str, ...]:
        return tuple(value for value in (self.engine_api_key, self.hf_token) if value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Who `check` found signed in."""

    provider: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendPlan:
    """What `ensure` will ask for, decided without asking anyone."""

    provider: str
    market: Market
    remote_name: str
    place: str = ""
    """Where the provider keeps it, in the provider's own words (project and region); empty: one place only."""
    request: Mapping[str, Any]
    """The provider's own request, as JSON, without secrets."""
    usd_per_hour: Decimal | None = None
    """List price of one replica while it runs; None: not known."""
    price_source: str = ""
    on_demand_usd_per_hour: Decimal | None = None
    """The same machine on demand, where the backend is spot: what savings are held against. None: not known."""
    engine: str = "vllm"
    """`vllm`, `llamacpp` or `other`: how the router can continue a broken stream there."""
    concurrency: int | None = None
    """Requests in flight that the router gives one replica; None: no limit."""
    most_replicas: int | None = None
    """Of a serverless backend, which starts them for requests that wait; None: as many as `status` tells."""
    warnings: tuple[str, ...] = ()
    """What the provider does otherwise than asked."""

    def price(self, now: float) -> Price | None:
        """What a replica costs that begins under this plan; None: not known, never 0 for it."""
        if self.usd_per_hour is None:
            return None
        return Price(usd_per_hour=self.usd_per_hour, source=self.price_source, at=now)

    def as_json(self) -> dict[str, Any]:
        money = {name: _text(getattr(self, name)) for name in _MONEY}
        return asdict(self) | {"market": self.market.value, **money}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read what `as_json` wrote."""
        money = {name: _amount(value.get(name)) for name in _MONEY}
        read = {"market": Market(value["market"]), "warnings": tuple(value["warnings"]), **money}
        return cls(**{**value, **read})


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A backend that a provider has."""

    provider: str
    remote_name: str
    remote_id: str
    place: str = ""
    url: str | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(**value)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSeen:
    """One replica of a backend, as its provider tells of it."""

    replica_id: str
    state: str
    """The provider's word for it."""
    pid: int | None = None
    """Where it is a process on this machine."""
    began: float | None = None
    """When it began to cost, Unix time; None: the provider does not tell, so it is when it was first seen."""
    ended: float | None = None
    """When it ended; a provider that tells keeps it in its answer for a while. None: it runs."""
    usd_per_hour: Decimal | None = None
    """Where it has a price of its own; None: the plan's, or of a controller: not known."""
    is_controller: bool = False
    """No replica, but this deployment's share of the machine that looks after the replicas."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"usd_per_hour": _text(self.usd_per_hour)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read what `as_json` wrote."""
        return cls(**{**value, "usd_per_hour": _amount(value.get("usd_per_hour"))})


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendStatus:
    state: BackendState
    url: str | None = None
    replicas: int | None = None
    """Ready now; None: the provider does not tell."""
    seen: tuple[ReplicaSeen, ...] = ()
    """Every one that runs or has just ended, where the provider tells them apart."""
    look_s: float | None = None
    """When to look again, where looking costs nothing; None: as seldom as at any provider."""
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a backend cost between two times."""

    usd: Decimal | None
    """None: the provider does not tell."""
    source: str
    """`billed`, `metered`, or why it is not known."""
    replica_seconds: float | None = None
    """Time for which replicas existed, where the provider tells."""


class Provider(Protocol):
    """One provider. Network calls are coroutines, end within `CALL_S` and may be cancelled at any await."""

    name: str
    market: Market

    @classmethod
    def open(cls, *, project: str | None = None, region: str | None = None) -> Self:
        """Make one from what the environment configures; nothing is asked of anyone yet.

        Raises:
            MissingDependency: its SDK is not installed.
            InvalidInput: `provider_credentials`: nobody is signed in.
        """
        ...

    async def check(self) -> Account:
        """Ask who is signed in: the cheapest call that proves that credentials work."""
        ...

    def offers(self) -> Sequence[Offer]:
        """List what can be rented, at list prices."""
        ...

    def plan(self, spec: DeploymentSpec) -> BackendPlan:
        """Decide what to ask for. Pure.

        Raises:
            InvalidInput: what the spec asks for is not to be had here; the message says what is.
        """
        ...

    async def ensure(self, plan: BackendPlan, secrets: Secrets) -> Remote:
        """Create the backend, or make the one of that name what the plan says."""
        ...

    async def find(self, remote_name: str | None = None, place: str = "") -> Sequence[Remote]:
        """Find the backends of that name; without one, all that bear our prefix."""
        ...

    async def status(self, remote: Remote) -> BackendStatus:
        """Look how it is, without waking it: `DELETED` where the provider does not have it."""
        ...

    async def scale(self, remote: Remote, min_replicas: int) -> None:
        """Keep at least so many replicas running."""
        ...

    def auth(self, secrets: Secrets) -> Mapping[str, str]:
        """Headers that the backend asks of the router."""
        ...

    async def delete(self, remote_name: str, place: str = "") -> bool:
        """Delete all backends of that name; True once the provider says that none is left."""
        ...

    async def usage(self, remote: Remote, since: float, until: float) -> Usage:
        """Ask what it cost between two times (Unix seconds)."""
        ...

    async def logs(self, remote: Remote, lines: int) -> Sequence[str]:
        """Read the end of its log; empty where the provider has no API for it."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...
