"""SkyServe's part of the stand-in: services are files; `sky.services` in `tests/fakes/sky.py` moves them on."""

import json

import sky
from sky import exceptions

_CONTROLLER = "sky-serve-controller-1a2b3c"


def _controller():
    return sky._read(f"clusters/{_CONTROLLER}.json")


def up(task, service_name):
    faults = sky._read("faults.json") or {}
    body = json.dumps({"service_name": service_name, "task": "not told"})
    if refused := faults.get("refuse", {}).get("serve.up"):
        return sky._request(
            "sky.serve.up",
            status="FAILED",
            request_body=body,
            error={"type": refused, "message": "nothing to be had"},
        )
    if sky._read(f"services/{service_name}.json") is not None:
        error = {"type": "RuntimeError", "message": "Failed to spin up the service: the name is taken"}
        return sky._request("sky.serve.up", status="FAILED", request_body=body, error=error)
    sky._write(f"tasks/{service_name}.json", task.config)
    if faults.get("boot_s"):
        # The controller boots for minutes; only the request is known meanwhile.
        return sky._request("sky.serve.up", status="RUNNING", request_body=body)
    _register(service_name)
    return sky._request(
        "sky.serve.up", status="SUCCEEDED", request_body=body, result=[service_name, "127.0.0.1:30001"]
    )


def _register(service_name):
    sky._write(f"clusters/{_CONTROLLER}.json", {"name": _CONTROLLER, "status": "UP"})
    (sky.FOLDER / "machines" / _CONTROLLER).touch()
    sky._write(
        f"services/{service_name}.json",
        {"name": service_name, "status": "REPLICA_INIT", "endpoint": None, "replica_info": []},
    )


def update(task, service_name, mode):
    if sky._read(f"services/{service_name}.json") is None:
        error = {"type": "RuntimeError", "message": f"Cannot find service {service_name!r}."}
        return sky._done("sky.serve.update", error=error)
    sky._write(f"tasks/{service_name}.json", task.config)
    return sky._request(
        "sky.serve.update", status="SUCCEEDED", service_name=service_name, mode=mode.name, result=None
    )


def status(service_names):
    faults = sky._read("faults.json") or {}
    if refused := faults.get("refuse", {}).get("serve.status"):
        return sky._done("sky.serve.status", error={"type": refused, "message": "not now"})
    controller = _controller()
    if controller is None or controller["status"] == "STOPPED":
        error = {"type": "ClusterNotUpError", "message": "No live services."}
        return sky._done("sky.serve.status", error=error)
    found = [sky._read(f"services/{path.name}") for path in sorted((sky.FOLDER / "services").glob("*.json"))]
    wanted = [each for each in found if each and (service_names is None or each["name"] in service_names)]
    return sky._done("sky.serve.status", wanted)


def down(service_names=None, all=False, purge=False):  # noqa: A002 - SkyPilot's own name
    if refused := (sky._read("faults.json") or {}).get("refuse", {}).get("serve.down"):
        return sky._done("sky.serve.down", error={"type": refused, "message": "not now"})
    for name in service_names or []:
        service = sky._read(f"services/{name}.json")
        if service is not None:
            sky._write(f"services/{name}.json", {**service, "status": "SHUTTING_DOWN"})
    return sky._request(
        "sky.serve.down", status="SUCCEEDED", service_names=service_names, purge=purge, result=None
    )


def tail_logs(service_name, target, replica_id=None, follow=True, output_stream=None, tail=None):
    if sky._read(f"services/{service_name}.json") is None:
        raise exceptions.ClusterDoesNotExist(f"Service {service_name!r} not found.")
    output_stream.write(f"{target} of {service_name} is up\n")
