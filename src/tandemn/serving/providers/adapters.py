"""Which providers and router hosts there are: entry points of `tandemn.providers` and `tandemn.routers`.

Other packages may add theirs.
"""

from __future__ import annotations

import difflib
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, cast

from tandemn.errors import InvalidInput
from tandemn.serving import router_host
from tandemn.serving.providers import faults

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tandemn.serving.providers.provider import Provider
    from tandemn.serving.router_host import RouterHost

GROUP = "tandemn.providers"


def providers() -> Mapping[str, EntryPoint]:
    """Every provider by its name; none is imported."""
    return {point.name: point for point in sorted(entry_points(group=GROUP))}


def hosts() -> Mapping[str, EntryPoint]:
    """Every host of routers by its name; none is imported."""
    return {point.name: point for point in sorted(entry_points(group=router_host.GROUP))}


def open_provider(name: str, *, project: str | None = None, region: str | None = None) -> Provider:
    """Import a provider's adapter and open it.

    Raises:
        InvalidInput: `unknown_provider`, or nobody is signed in (`provider_credentials`).
        MissingDependency: its SDK is not installed; the message has the line for pip.
    """
    kind = cast("type[Provider]", _load(providers(), name, "provider"))
    return kind.open(project=project, region=region)


def open_host(name: str) -> RouterHost:
    """Import a host of routers and open it.

    Raises:
        InvalidInput: `unknown_provider`.
        MissingDependency: what it needs is not installed.
    """
    return cast("type[RouterHost]", _load(hosts(), name, "host of routers")).open()


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
