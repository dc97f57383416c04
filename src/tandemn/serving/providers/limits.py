"""What a provider can and cannot do, checked against a spec before anyone is asked. Pure."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tandemn.errors import InvalidInput
from tandemn.placement.catalog.gpus import gpu_named
from tandemn.placement.catalog.offers import serverless_offers

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal

    from tandemn.placement.catalog.offers import Offer
    from tandemn.protocol.deployments import DeploymentSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """One provider's."""

    provider: str
    gpus: Mapping[str, str]
    """The provider's name of each GPU, by ours."""
    most_gpus: Mapping[str, int] = field(default_factory=dict)
    """Of one replica, where it is not `most_gpus_default`."""
    most_gpus_default: int = 8
    regions: frozenset[str] | None = None
    """None: any name is passed on."""
    longest_request_s: int | None = None
    concurrency: int = 10_000
    idle_s: tuple[int, int] = (1, 86_400)

    def gpu(self, spec: DeploymentSpec) -> str:
        """Return the provider's name of the spec's GPU.

        Raises:
            InvalidInput: `unknown_gpu`, `gpu_not_offered` or `too_many_gpus`.
        """
        name = gpu_named(spec.gpu).name
        if name not in self.gpus:
            near = difflib.get_close_matches(name, self.gpus, n=3, cutoff=0.4)
            raise InvalidInput(
                f"{self.provider} does not offer the GPU {name}",
                code="gpu_not_offered",
                next_step=f"near ones are {', '.join(near)}" if near else f"it has {', '.join(self.gpus)}",
                param="gpu",
            )
        most = self.most_gpus.get(name, self.most_gpus_default)
        if spec.gpu_count > most:
            raise InvalidInput(
                f"{self.provider} gives a replica {most} {name} at most, not {spec.gpu_count}",
                code="too_many_gpus",
                param="gpu_count",
            )
        return self.gpus[name]

    def region(self, region: str | None) -> str | None:
        """Check a region's name.

        Raises:
            InvalidInput: `unknown_region`.
        """
        if region is None or self.regions is None or region in self.regions:
            return region
        near = difflib.get_close_matches(region, self.regions, n=3, cutoff=0.4)
        raise InvalidInput(
            f"{self.provider} has no GPUs in the region {region}",
            code="unknown_region",
            next_step=f"try {', '.join(near or sorted(self.regions))}",
            param="region",
        )

    def clamped(self, spec: DeploymentSpec) -> tuple[int, int, int, tuple[str, ...]]:
        """Return timeout, idle window and concurrency as the provider can have them, and what was changed."""
        wanted = spec.scaling.serverless
        warnings = []
        timeout = wanted.timeout
        if self.longest_request_s is not None and timeout > self.longest_request_s:
            timeout = self.longest_request_s
            warnings.append(
                f"{self.provider} ends a request after {timeout} s: serverless.timeout is {timeout}, "
                f"not {wanted.timeout}"
            )
        least, most = self.idle_s
        idle = min(max(wanted.scaledown_window, least), most)
        if idle != wanted.scaledown_window:
            warnings.append(
                f"{self.provider} takes an idle window of {least} to {most} s: serverless.scaledown_window "
                f"is {idle}, not {wanted.scaledown_window}"
            )
        concurrency = min(wanted.concurrency, self.concurrency)
        if concurrency != wanted.concurrency:
            warnings.append(
                f"{self.provider} takes {self.concurrency} requests at once at most: serverless.concurrency "
                f"is {concurrency}, not {wanted.concurrency}"
            )
        return timeout, idle, concurrency, tuple(warnings)

    def offers(self) -> tuple[Offer, ...]:
        """The catalog's offers of this provider."""
        return tuple(offer for offer in serverless_offers() if offer.provider == self.provider)

    def price(self, spec: DeploymentSpec) -> tuple[Decimal | None, str]:
        """List price of one replica an hour, and where and when it was seen."""
        name = gpu_named(spec.gpu).name
        for offer in self.offers():
            if offer.gpu == name and offer.usd_per_gpu_hour is not None:
                return offer.usd_per_gpu_hour * spec.gpu_count, f"{offer.source}, {offer.as_of}"
        return None, ""
