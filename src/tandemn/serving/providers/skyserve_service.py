"""SkyServe: render a deployment's spot fleet as the service that `sky.serve.up` takes. Pure; launching is not here."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from tandemn.errors import InvalidInput
from tandemn.placement.catalog.gpus import gpu_named
from tandemn.serving.engine_arguments import PORT, VLLM_IMAGE, engine_arguments
from tandemn.serving.providers.provider import remote_name

if TYPE_CHECKING:
    from tandemn.protocol.deployments import DeploymentSpec, SpotScaling

#: A replica loads its model before it answers, in seconds.
INITIAL_DELAY_S = 1200
#: Longest answer to one readiness probe, in seconds.
PROBE_TIMEOUT_S = 15
#: Replicas above what is needed, so that a preemption leaves enough.
OVERPROVISION = 1
#: Disk of a replica, in GB: the image and the weights.
DISK_GB = 256


def service_name(spec: DeploymentSpec) -> str:
    """Name the service: what `sky serve status` shows."""
    return remote_name(spec.service_name)


def service_task(spec: DeploymentSpec) -> dict[str, Any]:
    """Render the task with its service section, as `sky.Task.from_yaml_config` reads it.

    The engine's key and HF_TOKEN stand in `secrets` without a value: whoever launches gives them.

    Raises:
        InvalidInput: the spec has no spot backend, or the GPU is unknown.
    """
    if not spec.has_spot:
        raise InvalidInput("--serverless-only has no spot fleet", code="wrong_usage", param="serverless_only")
    infra = f"{spec.spots_cloud}/{spec.region}" if spec.region else spec.spots_cloud
    return {
        "name": service_name(spec),
        "service": {
            "readiness_probe": {
                "path": "/health",
                "initial_delay_seconds": INITIAL_DELAY_S,
                "timeout_seconds": PROBE_TIMEOUT_S,
            },
            "replica_policy": _replica_policy(spec),
            "ports": PORT,
        },
        "resources": {
            "infra": infra,
            "accelerators": {gpu_named(spec.gpu).name: spec.gpu_count},
            "use_spot": True,
            "disk_size": DISK_GB,
            "ports": [PORT],
            "image_id": f"docker:{VLLM_IMAGE}",
        },
        "secrets": {"VLLM_API_KEY": None, "HF_TOKEN": None},
        "run": shlex.join(("vllm", "serve", *engine_arguments(spec))),
    }


def _replica_policy(spec: DeploymentSpec) -> dict[str, Any]:
    spot = spec.scaling.spot
    policy: dict[str, Any] = {
        "min_replicas": spot.min_replicas,
        "max_replicas": spot.max_replicas,
        "target_qps_per_replica": spot.target_qps,
        "upscale_delay_seconds": spot.upscale_delay,
        "downscale_delay_seconds": spot.downscale_delay,
    }
    if spot.on_demand_fallback:
        # An on-demand replica stands in for each spot replica that is being looked for.
        policy["dynamic_ondemand_fallback"] = True
    if spare := spare_replicas(spot):
        policy["num_overprovision"] = spare
    return policy


def spare_replicas(spot: SpotScaling) -> int:
    """How many replicas SkyServe keeps above what the load needs, and above the policy's bounds.

    Only a fleet that is meant to stay up is padded: one spare replica over none would never be at zero.
    """
    return OVERPROVISION if 0 < spot.min_replicas < spot.max_replicas else 0
