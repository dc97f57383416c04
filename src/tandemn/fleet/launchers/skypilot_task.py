"""One replica as a SkyPilot task: pure, as `sky.Task.from_yaml_config` reads it.

The machine installs the wheel of the running version and the pinned engine into an environment of its own, then runs
the runner, which calls back. Nothing needs to reach the machine, so that no port is opened.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tandemn.fleet.engines.engine import EngineName
from tandemn.protocol.replicas import Market

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from tandemn.placement.catalog.offers import Offer
    from tandemn.protocol.jobs import ReplicaConfig

#: What our clusters are called begins with this: `tandemn-job-4f2a…-r0`.
PREFIX = "tandemn-"
#: The version of vLLM that replicas install: the one that the adapter was written against.
VLLM = "vllm==0.32.0"
#: Places that one launch tries: SkyPilot weighs each of them before it begins.
MAX_PLACES = 30
#: The last safety, should nobody end the cluster: so long after the runner ended, in minutes.
IDLE_MINUTES = 10
#: Smallest disk, in GB: the image, the engine's environment (9 GB with CUDA) and its caches.
DISK_GB = 100
#: Clouds whose clusters cannot end themselves: asking for it is an error there.
NO_AUTOSTOP = frozenset({"slurm"})
#: Spot notices come from the instance metadata service here.
NOTICES = frozenset({"aws"})
#: Clouds that have one market only.
NO_SPOT = frozenset({"slurm"})

_ZONE_ID = re.compile(r"[a-z]+\d+-az\d+")

#: Where everything of ours lies on the machine.
HOME = "~/.tandemn"
PYTHON = f"{HOME}/env/bin/python"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """All that a task is made of."""

    cluster: str
    replica_id: str
    config: ReplicaConfig
    engine: EngineName
    server_url: str
    """As the replica sees it."""
    wheel: Path
    places: Sequence[Offer]
    """Where to try, in this order; empty: wherever SkyPilot finds the GPU."""
    cloud: str | None
    """None: any."""
    secrets: Mapping[str, str] = field(default_factory=dict)
    image: str | None = None
    disk_gb: int = DISK_GB


def cluster_name(replica_id: str) -> str:
    """Name the replica's cluster, so that it can be found again by that and says what it is."""
    return PREFIX + replica_id


def places(config: ReplicaConfig, offers: Iterable[Offer], cloud: str | None) -> list[Offer]:
    """Rank the offers that a replica of this configuration may run on: the cheapest first."""
    fitting = [
        offer
        for offer in offers
        if offer.market is config.market
        and offer.gpu == config.gpu
        and offer.gpus == config.gpus_per_node
        and offer.usd_per_hour is not None
        and offer.arch == "x86_64"
        and offer.provider == (cloud or offer.provider)
        and (config.region is None or config.region in {offer.region, offer.zone})
        and (not config.regions or offer.region in config.regions)
    ]
    fitting.sort(key=lambda offer: (offer.usd_per_hour, offer.place, offer.instance_type))
    # The cheapest of those that SkyPilot is told alike.
    first: dict[tuple[str, str], Offer] = {}
    for offer in fitting:
        first.setdefault((place_of_offer(offer), offer.instance_type), offer)
    return list(first.values())[:MAX_PLACES]


def task_config(spec: TaskSpec) -> dict[str, Any]:
    """Render the task."""
    wheel = f"{HOME}/{spec.wheel.name}"
    config: dict[str, Any] = {
        "name": spec.cluster,
        "resources": _resources(spec),
        "envs": _environment(spec),
        "secrets": dict(spec.secrets),
        "file_mounts": {wheel: str(spec.wheel)},
        "setup": _setup(spec, wheel),
        "run": _run(spec),
    }
    if spec.config.nodes > 1:
        config["num_nodes"] = spec.config.nodes
    return config


def _resources(spec: TaskSpec) -> dict[str, Any]:
    common: dict[str, Any] = {"disk_size": spec.disk_gb}
    if spec.image is not None:
        common["image_id"] = spec.image if spec.image.startswith("docker:") else f"docker:{spec.image}"
    named = [_place(offer) for offer in spec.places] or [_anywhere(spec)]
    tried = [common | _autostop(str(place.get("infra", ""))) | place for place in named]
    return tried[0] if len(tried) == 1 else {"ordered": tried}


def place_of_offer(offer: Offer) -> str:
    """Name where an offer is as SkyPilot does: `aws/us-east-1/us-east-1a`.

    A zone that is known by its id only, which AWS accounts name differently, is left to SkyPilot.
    """
    zone = None if offer.zone and _ZONE_ID.fullmatch(offer.zone) else offer.zone
    return "/".join(part for part in (offer.provider, offer.region, zone) if part)


def _place(offer: Offer) -> dict[str, Any]:
    return {
        "infra": place_of_offer(offer),
        "instance_type": offer.instance_type,
        "use_spot": offer.market is Market.SPOT,
    }


def _anywhere(spec: TaskSpec) -> dict[str, Any]:
    config = spec.config
    place: dict[str, Any] = {"accelerators": f"{config.gpu}:{config.gpus_per_node}"}
    if spec.cloud is not None:
        place["infra"] = f"{spec.cloud}/{config.region}" if config.region else spec.cloud
    if spec.cloud not in NO_SPOT:
        place["use_spot"] = config.market is Market.SPOT
    return place


def _autostop(infra: str) -> dict[str, Any]:
    if infra.split("/", 1)[0] in NO_AUTOSTOP:
        return {}
    return {"autostop": {"idle_minutes": IDLE_MINUTES, "down": True}}


def _environment(spec: TaskSpec) -> dict[str, str]:
    environment = {"TANDEMN_VLLM_COMMAND": f"{HOME}/env/bin/vllm"} if _installs_vllm(spec) else {}
    clouds = {offer.provider for offer in spec.places} or {str(spec.cloud)}
    if spec.config.market is Market.SPOT and clouds <= NOTICES:
        environment["TANDEMN_SPOT_NOTICES"] = "true"
    return environment


def _installs_vllm(spec: TaskSpec) -> bool:
    """Whether the task installs vLLM: an image that was named brings its own, on PATH."""
    return spec.engine is EngineName.VLLM and spec.image is None


def _setup(spec: TaskSpec, wheel: str) -> str:
    return installation(wheel, VLLM) if _installs_vllm(spec) else installation(wheel)


def installation(wheel: str, *more: str) -> str:
    """Commands that make the machine's environment of ours, with the wheel and what else is named in it."""
    named = " ".join((wheel, *(shlex.quote(each) for each in more)))
    return f"""set -e
export PATH="$HOME/.local/bin:$PATH"
command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
uv venv --quiet --clear --python '>=3.11,<3.14' {HOME}/env
uv pip install --quiet --python {PYTHON} {named}
"""


def _run(spec: TaskSpec) -> str:
    server, replica = shlex.quote(spec.server_url), shlex.quote(spec.replica_id)
    runner = f"{PYTHON} -m tandemn.runner --server {server} --replica {replica} --work {HOME}/work"
    if spec.config.nodes == 1:
        return f"exec {runner}\n"
    # SkyPilot ends the other nodes' commands when one fails, not when one ends well: the head never ends well, so that
    # no node is left waiting for a head that is gone.
    return f"""head=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)
export TANDEMN_NODES={spec.config.nodes} TANDEMN_HEAD_ADDRESS="$head" TANDEMN_NODE_RANK="$SKYPILOT_NODE_RANK"
status=0
{runner} || status=$?
[ "$SKYPILOT_NODE_RANK" != 0 ] || [ "$status" != 0 ] || status=75
exit "$status"
"""
