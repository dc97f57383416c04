"""The clouds that SkyPilot has, and those of them that let it in."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tandemn.skypilot.environment import SkyPilot

#: Every cloud under which SkyPilot has machines, by its name there.
CLOUDS = (
    "aws",
    "azure",
    "cudo",
    "do",
    "fluidstack",
    "gcp",
    "hyperbolic",
    "ibm",
    "kubernetes",
    "lambda",
    "mithril",
    "nebius",
    "oci",
    "paperspace",
    "primeintellect",
    "runpod",
    "seeweb",
    "shadeform",
    "slurm",
    "ssh",
    "vast",
    "verda",
    "vsphere",
    "yotta",
)


def enabled_clouds(sky: SkyPilot) -> list[str]:
    """Name the clouds that let SkyPilot in; where it has never looked, it looks now. Raises TandemnError."""
    found = sky.call("client.sdk.enabled_clouds")
    if not found:
        sky.call("client.sdk.check", infra_list=None, verbose=False)
        found = sky.call("client.sdk.enabled_clouds")
    return sorted({str(name).lower() for name in found} & set(CLOUDS))
