"""Which providers and router hosts there are: entry points of `tandemn.providers` and `tandemn.routers`.

Other packages may add theirs.
"""

from __future__ import annotations

import difflib
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from tandemn.errors import InvalidInput
from tandemn.serving import router_host
from tandemn.serving.providers import faults

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tandemn.serving.providers.provider import Provider
    from tandemn.serving.router_host import RouterHost
    from tandemn.skypilot.environment import SkyPilot

GROUP = "tandemn.providers"


def providers() -> Mapping[str, EntryPoint]:
    """Every provider by its name; none is imported."""
    return {point.name: point for point in sorted(entry_points(group=GROUP))}


def hosts() -> Mapping[str, EntryPoint]:
    """Every host of routers by its name; none is imported."""
    return {point.name: point for point in sorted(entry_points(group=router_host.GROUP))}


@runtime_checkable
class OverSkyPilot(Protocol):
    """An adapter that calls SkyPilot."""

    @classmethod
    def over(cls, sky: SkyPilot) -> Any:
        """Open it over an environment that is shared with others, which whoever made it closes."""
        ...


def open_provider(
    name: str, *, project: str | None = None, region: str | None = None, sky: SkyPilot | None = None
) -> Provider:
    """Import a provider's adapter and open it.

    Args:
        name: in the entry-point group.
        project: of the provider, where it has such.
        region: of the provider, where it has such.
        sky: for those that call SkyPilot; None: each has an environment of its own.

    Raises:
        InvalidInput: `unknown_provider`, or nobody is signed in (`provider_credentials`).
        MissingDependency: its SDK is not installed; the message has the line for pip.
    """
    kind = _load(providers(), name, "provider")
    if sky is not None and issubclass(kind, OverSkyPilot):
        return cast("Provider", kind.over(sky))
    return cast("type[Provider]", kind).open(project=project, region=region)


def open_host(name: str, *, sky: SkyPilot | None = None) -> RouterHost:
    """Import a host of routers and open it; `sky` as for `open_provider`.

    Raises:
        InvalidInput: `unknown_provider`.
        MissingDependency: what it needs is not installed.
    """
    kind = _load(hosts(), name, "host of routers")
    if sky is not None and issubclass(kind, OverSkyPilot):
        return cast("RouterHost", kind.over(sky))
    return cast("type[RouterHost]", kind).open()


def _load(known: Mapping[str, EntryPoint], name: str, what: str) -> Any:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise InvalidInput(
            f"there is no {what} {name!r}",
            code="unknown_provider",
            next_step=f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}",
            param="serverless_provider",
        )
    try:
        return known[name].load()
    except ImportError as exc:
        raise faults.missing_sdk(name, exc) from exc
