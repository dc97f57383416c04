"""The seam of every launcher: whoever starts and ends the machines or processes that replicas are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tandemn.errors import TandemnError
    from tandemn.fleet.reconcile import Presence
    from tandemn.fleet.remains import Remains
    from tandemn.prices import Price
    from tandemn.protocol.jobs import ReplicaConfig

#: What a launcher needs to find its replica again; it alone reads it. JSON.
Handle = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """One replica to be launched. Its name is deterministic: launching twice must not give two."""

    replica_id: str
    job_id: str
    config: ReplicaConfig
    engine: str
    server_url: str
    other_urls: tuple[str, ...] = ()
    """Further control planes, for when that one does not answer."""
    token: str
    """The replica's own key; a secret: never on a command line or in a log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """What is seen of a replica: whether it is there, where it landed, and why it never came to be."""

    presence: Presence
    failure: TandemnError | None = None
    """Why its launch failed, where it is gone for that; None: it is there, or vanished."""
    place: str | None = None
    """Cloud, region and zone, once they are known."""
    instance_type: str | None = None
    price: Price | None = None
    """What it costs there, where that is known by now."""


class Launcher(Protocol):
    """Calls may block for long; they are made in threads. Errors: NextOffer, Retryable, InvalidInput, Broken."""

    name: str
    pool: str
    """What its replicas take places of, in the plural; launchers of one pool share it."""
    limit: int
    """How many places the pool has."""

    def check(self) -> None:
        """Raise InvalidInput or MissingDependency where nothing can be launched here at all; quick."""
        ...

    def room(self) -> int:
        """How many more replicas could be launched now."""
        ...

    def price(self, config: ReplicaConfig, now: float) -> Price | None:
        """What a replica of this configuration costs if it is launched now; None: not known, never 0 for it."""
        ...

    def launch(self, spec: LaunchSpec) -> Handle:
        """Start it and return as soon as it has an identity; readiness is the runner's own word."""
        ...

    def find(self, replica_id: str) -> Handle | None:
        """Find a replica by its name: the record may have been lost between launch and write."""
        ...

    def living(self) -> list[Handle]:
        """Find every replica of this state folder that is there, whether or not it was recorded."""
        ...

    def observe(self, handles: Sequence[Handle]) -> list[Sighting]:
        """Look, for each handle, whether it is still there. Does not wait for clouds: what was seen last is told."""
        ...

    def stop(self, handle: Handle) -> None:
        """Give it notice: it stores what it finished and ends."""
        ...

    def terminate(self, handle: Handle) -> None:
        """End it by force; what it ran on is freed. Safe to repeat."""
        ...

    def remains(self, replica_id: str) -> list[Remains]:
        """Read what an ended replica had computed; empty where its disk is gone, or it left in order."""
        ...

    def clean(self, replica_id: str) -> None:
        """Remove what an ended replica left on this machine, but for its log."""
        ...

    def log_tail(self, replica_id: str, lines: int) -> list[str]:
        """Read the end of its log; empty where there is none."""
        ...
