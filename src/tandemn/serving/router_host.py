"""The seam of what runs a deployment's router: a process on this machine, or a small VM.

As with providers (`providers/provider.py`, whose errors hold here, too), names follow from the service's name,
and `ensure` and `delete` are safe to repeat. A router outlives the control plane that started it, serves from
its last table, and is adopted by the next one. Hosts are found through the entry-point group `tandemn.routers`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol, Self

from tandemn.serving.providers.provider import LOCAL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tandemn.protocol.deployments import BackendState, DeploymentSpec
    from tandemn.serving.providers.provider import Account, Remote

GROUP = "tandemn.routers"
#: A process on this machine.
LOCAL_HOST = "local"
#: A small machine in a cloud.
SKYPILOT_HOST = "skypilot"


def host_name(spec: DeploymentSpec) -> str:
    """Name the host of a deployment's router."""
    return LOCAL_HOST if spec.router_cloud == LOCAL else SKYPILOT_HOST


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterPlan:
    """What `ensure` will ask for, decided without asking anyone."""

    host: str
    """The name of the host, in its entry-point group."""
    remote_name: str
    place: str = ""
    """Where the host keeps it, in its own words; empty: one place only."""
    request: Mapping[str, Any] = field(default_factory=dict)
    """The host's own request, as JSON, without secrets."""
    usd_per_hour: Decimal | None = None
    """None: not known. A process on this machine costs 0."""
    price_source: str = ""
    warnings: tuple[str, ...] = ()
    """What the user should know of it."""

    def as_json(self) -> dict[str, Any]:
        price = None if self.usd_per_hour is None else str(self.usd_per_hour)
        return asdict(self) | {"usd_per_hour": price}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read what `as_json` wrote."""
        price = value["usd_per_hour"]
        read = {
            "usd_per_hour": None if price is None else Decimal(price),
            "warnings": tuple(value.get("warnings", ())),
        }
        return cls(**{**value, **read})


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSetup:
    """What a router is told when it starts, and whenever something of it changes; all of it is secret."""

    table: bytes = field(repr=False)
    """The routing table (`docs/router.md`), with the clients' keys; JSON."""
    admin_key: str = field(repr=False)
    is_public: bool = False
    """It asks its clients for no key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterStatus:
    state: BackendState
    """`READY` once it answers `/router/health`, whatever its backends do; `DELETED` where there is none."""
    url: str | None = None
    """Where clients reach it, without a path."""
    pid: int | None = None
    """Where it is a process on this machine."""
    reason: str | None = None
    look_s: float | None = None
    """When to look again, where looking costs nothing."""


class RouterHost(Protocol):
    """One way to run routers. Network calls are coroutines, end within `CALL_S` and may be cancelled at any await."""

    name: str

    @classmethod
    def open(cls) -> Self:
        """Make one from what the environment configures; nothing is asked of anyone yet."""
        ...

    async def check(self) -> Account:
        """Prove that routers can be run here."""
        ...

    def plan(self, spec: DeploymentSpec) -> RouterPlan:
        """Decide what to ask for. Pure."""
        ...

    async def ensure(self, plan: RouterPlan, setup: RouterSetup) -> Remote:
        """Start the router of that name, or adopt the one that runs, and give it this setup."""
        ...

    async def push(self, remote: Remote, setup: RouterSetup) -> None:
        """Give a running router another table, while requests run.

        Raises:
            NotFound: it does not run; `ensure` starts it.
        """
        ...

    async def find(self, remote_name: str | None = None, place: str = "") -> Sequence[Remote]:
        """Find the routers of that name; without one, all that bear our prefix."""
        ...

    async def status(self, remote: Remote) -> RouterStatus: ...

    async def delete(self, remote_name: str, place: str = "") -> bool:
        """End all routers of that name, letting streams under way finish; True once none is left."""
        ...

    async def logs(self, remote: Remote, lines: int) -> Sequence[str]:
        """Read the end of its log."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...
