"""The router of one deployment as a SkyPilot task: pure, as `sky.Task.from_yaml_config` reads it.

The machine installs the wheel of the running version and runs the router, again and again while it dies. Table, admin key
and certificate travel as SkyPilot's secrets. Nothing stops the machine by itself: the deployment works on without its
control plane, so that only `destroy`, or `gc`, ends it.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from tandemn.fleet.launchers.skypilot_task import HOME, PREFIX, PYTHON, installation

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tandemn.protocol.deployments import DeploymentSpec
    from tandemn.serving.router_host import RouterSetup

#: What our routers' clusters are called begins with this: `tandemn-router-chat`. Replicas' begin with `tandemn-job-`.
ROUTER_PREFIX = f"{PREFIX}router-"
#: Where it listens, and clients reach it.
HOST, PORT = "0.0.0.0", 8080  # noqa: S104 - the one port of its machine that is open, and guarded by its keys
#: Two vCPUs and 4 GiB: one for the router's only thread, one for everything else. Elsewhere SkyPilot finds one like it.
INSTANCES = {"aws": "c6i.large", "gcp": "e2-standard-2", "azure": "Standard_D2s_v5"}
#: In GB: the image, and next to nothing beside it.
DISK_GB = 64
#: Clouds where no port can be opened: whoever is on their network reaches the router.
NO_PORTS = frozenset({"slurm", "ssh"})
#: How long streams under way may go on after SIGTERM, in seconds: SkyPilot kills 30 s after it.
GRACE_S = 25


def cluster_name(service_name: str) -> str:
    """Name the router's cluster: what `sky status` shows."""
    return ROUTER_PREFIX + service_name


def router_request(spec: DeploymentSpec, region: str | None, certificate: str | None) -> dict[str, Any]:
    """Say what is asked for, without secrets.

    Args:
        spec: of the deployment.
        region: where; None: SkyPilot takes the cheapest.
        certificate: digest of what it serves HTTPS with; None: it serves HTTP.
    """
    cloud = spec.router_cloud
    resources: dict[str, Any] = {"infra": f"{cloud}/{region}" if region else cloud, "disk_size": DISK_GB}
    if cloud in INSTANCES:
        resources["instance_type"] = INSTANCES[cloud]
    else:
        resources |= {"cpus": "2+", "memory": "4+"}
    if cloud not in NO_PORTS:
        resources |= {"use_spot": False, "ports": [PORT]}
    return {"name": cluster_name(spec.service_name), "resources": resources, "certificate": certificate}


def router_task(
    request: Mapping[str, Any], wheel: Path, setup: RouterSetup, pem: bytes | None = None
) -> dict[str, Any]:
    """Render the task.

    Args:
        request: what `router_request` made.
        wheel: of the running version.
        setup: what the router is told.
        pem: certificate and key.
    """
    there = f"{HOME}/{wheel.name}"
    return {
        "name": request["name"],
        "resources": dict(request["resources"]),
        "secrets": {
            "TANDEMN_ROUTER_ADMIN_KEY": setup.admin_key,
            "ROUTER_TABLE": base64.b64encode(setup.table).decode(),
            "ROUTER_PEM": base64.b64encode(pem or b"").decode(),
        },
        "file_mounts": {there: str(wheel)},
        "setup": installation(there),
        "run": _run(is_public=setup.is_public, has_certificate=pem is not None),
    }


def _run(*, is_public: bool, has_certificate: bool) -> str:
    command = f"{PYTHON} -m tandemn.router --host {HOST} --port {PORT} --grace-s {GRACE_S}"
    command += " --table table.json --state meter.json"
    command += " --cert router.pem" if has_certificate else ""
    command += " --public" if is_public else ""
    # One that a former task left here is asked to end, and waited for: it lets its streams finish, and holds the port.
    # Code 2 is a table or certificate that no other try makes better.
    return f"""cd {HOME}
umask 077
former=$(cat router.pid 2>/dev/null) && kill "$former" 2>/dev/null && while kill -0 "$former" 2>/dev/null; do sleep 0.2; done
echo "$ROUTER_TABLE" | base64 -d > table.json
echo "$ROUTER_PEM" | base64 -d > router.pem
unset ROUTER_TABLE ROUTER_PEM
router() {{ echo "$BASHPID" > router.pid; exec {command}; }}
until (router); do
  [ "$?" != 2 ] || exit 2
  sleep 1
done
"""
