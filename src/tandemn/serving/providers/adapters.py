"""Which providers there are: the entry points of the group `tandemn.providers`, ours and other packages'."""

from __future__ import annotations

import difflib
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, cast

from tandemn.errors import InvalidInput
from tandemn.serving.providers import faults

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tandemn.serving.providers.provider import Provider

GROUP = "tandemn.providers"


def providers() -> Mapping[str, EntryPoint]:
    """Every provider by its name; none is imported."""
    return {point.name: point for point in sorted(entry_points(group=GROUP))}


def open_provider(name: str, *, project: str | None = None, region: str | None = None) -> Provider:
    """Import a provider's adapter and open it.

    Raises:
        InvalidInput: `unknown_provider`, or nobody is signed in (`provider_credentials`).
        MissingDependency: its SDK is not installed; the message has the line for pip.
    """
    known = providers()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise InvalidInput(
            f"there is no provider {name!r}",
            code="unknown_provider",
            next_step=f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}",
            param="serverless_provider",
        )
    try:
        kind = cast("type[Provider]", known[name].load())
    except ImportError as exc:
        raise faults.missing_sdk(name, exc) from exc
    return kind.open(project=project, region=region)
