"""SkyServe's part of the stand-in: services are files; `sky.services` in `tests/fakes/sky.py` moves them on."""

import json

from .. import FOLDER, _done, _read, _request, _write, exceptions  # noqa: TID252 - `sky` is this very package

_CONTROLLER = "sky-serve-controller-1a2b3c"


def _controller():
    return _read(f"clusters/{_CONTROLLER}.json")


def up(task, service_name):
    faults = _read("faults.json") or {}
    body = json.dumps({"service_name": service_name, "task": "not told"})
    if refused := faults.get("refuse", {}).get("serve.up"):
        return _request(
            "sky.serve.up",
            status="FAILED",
            request_body=body,
            error={"type": refused, "message": "nothing to be had"},
        )
    if _read(f"services/{service_name}.json") is not None:
        error = {"type": "RuntimeError", "message": "Failed to spin up the service: the name is taken"}
        return _request("sky.serve.up", status="FAILED", request_body=body, error=error)
    _write(f"tasks/{service_name}.json", task.config)
    if faults.get("boot_s"):
        # The controller boots for minutes; only the request is known meanwhile.
        return _request("sky.serve.up", status="RUNNING", request_body=body)
    _register(service_name)
    return _request(
        "sky.serve.up", status="SUCCEEDED", request_body=body, result=[service_name, "127.0.0.1:30001"]
    )


def _register(service_name):
    handle = {"cloud": "aws", "region": "us-east-1", "instance_type": "m6i.xlarge", "use_spot": False}
    _write(f"clusters/{_CONTROLLER}.json", {"name": _CONTROLLER, "status": "UP", "handle": handle})
    (FOLDER / "machines" / _CONTROLLER).touch()
    _write(
        f"services/{service_name}.json",
        {"name": service_name, "status": "REPLICA_INIT", "endpoint": None, "replica_info": []},
    )


def update(task, service_name, mode):
    if _read(f"services/{service_name}.json") is None:
        error = {"type": "RuntimeError", "message": f"Cannot find service {service_name!r}."}
        return _done("sky.serve.update", error=error)
    _write(f"tasks/{service_name}.json", task.config)
    return _request(
        "sky.serve.update", status="SUCCEEDED", service_name=service_name, mode=mode.name, result=None
    )


def status(service_names):
    faults = _read("faults.json") or {}
    if refused := faults.get("refuse", {}).get("serve.status"):
        return _done("sky.serve.status", error={"type": refused, "message": "not now"})
    controller = _controller()
    if controller is None or controller["status"] == "STOPPED":
        error = {"type": "ClusterNotUpError", "message": "No live services."}
        return _done("sky.serve.status", error=error)
    found = [_read(f"services/{path.name}") for path in sorted((FOLDER / "services").glob("*.json"))]
    wanted = [each for each in found if each and (service_names is None or each["name"] in service_names)]
    return _done("sky.serve.status", wanted)


def down(service_names=None, all=False, purge=False):  # noqa: A002 - SkyPilot's own name
    if refused := (_read("faults.json") or {}).get("refuse", {}).get("serve.down"):
        return _done("sky.serve.down", error={"type": refused, "message": "not now"})
    for name in service_names or []:
        service = _read(f"services/{name}.json")
        if service is not None:
            _write(f"services/{name}.json", {**service, "status": "SHUTTING_DOWN"})
    return _request(
        "sky.serve.down", status="SUCCEEDED", service_names=service_names, purge=purge, result=None
    )


def tail_logs(service_name, target, replica_id=None, follow=True, output_stream=None, tail=None):
    if _read(f"services/{service_name}.json") is None:
        raise exceptions.ClusterDoesNotExist(f"Service {service_name!r} not found.")
    output_stream.write(f"{target} of {service_name} is up\n")
