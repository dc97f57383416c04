"""SkyServe's own balancer behind our router, and SkyPilot's own validation of what we render; `make test-skypilot`."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.fakes.router_rig import Rig, ask, backend, metrics, wait_for
from tests.ports import free_port
from tests.skypilot.slurm import PYTHON, catalogs, told

from tandemn.serving.providers.skypilot_router_task import router_request, router_task
from tandemn.serving.providers.skyserve_service import service_task
from tandemn.serving.router_host import RouterSetup
from tandemn.serving.spec import spec_from_flags

pytestmark = pytest.mark.skypilot

#: Requests under way at a time while a replica is killed, and for how long they go on, in seconds.
CLIENTS, LOAD_S = 16, 12.0


class Controller:
    """What SkyServe's controller tells its balancer: which replicas are ready. It learns of a death late, as there."""

    def __init__(self, urls: list[str]) -> None:
        controller = self
        self.urls = urls
        self.seen = 0

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                controller.seen += len(body["request_aggregator"].get("timestamps", []))
                content = json.dumps({"replica_info": {url: {} for url in controller.urls}}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def rig(tmp_path):
    rig = Rig(tmp_path)
    yield rig
    rig.end()


@pytest.fixture
def balancer(tmp_path, rig):
    """The real one, over two replicas: its URL, its controller, and the replicas."""
    replicas = [rig.vllm(gap_ms=5), rig.vllm(gap_ms=5)]
    controller = Controller([each.url for each in replicas])
    port = free_port()
    argv = [str(PYTHON), "-m", "sky.serve.load_balancer", "--controller-addr", controller.url]
    with (tmp_path / "balancer.log").open("ab") as log:
        process = subprocess.Popen([*argv, "--load-balancer-port", str(port)], stdout=log, stderr=log)
    try:
        # It asks its controller for the first time after five seconds.
        wait_for(lambda: answers(port), 60)
        yield f"http://127.0.0.1:{port}", controller, replicas
    finally:
        process.kill()
        process.wait()
        controller.server.shutdown()


def answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        return bool(ask(port, path="/health", method="GET")[0] == 200)
    return False


def test_a_replica_is_killed_under_load_and_no_request_fails(rig, balancer):
    url, controller, replicas = balancer
    serverless = rig.vllm(gap_ms=5)
    router = rig.router(backend("spot", url, "spot"), backend("serverless", serverless.url))
    wait_for(lambda: ask(router.port, {"messages": [{"role": "user", "content": "hi"}]})[0] == 200)
    outcomes: list[str] = []
    until = time.monotonic() + LOAD_S

    def client(number: int) -> None:
        while time.monotonic() < until:
            is_stream = number % 2 == 0
            body = {
                "messages": [{"role": "user", "content": f"{number}"}],
                "max_tokens": 40,
                "stream": is_stream,
            }
            status, _, content = ask(router.port, body)
            is_whole = content.rstrip().endswith(b"data: [DONE]") and b'"error"' not in content
            outcomes.append(
                "ok" if status == 200 and (is_whole or not is_stream) else f"{status} {content[-200:]!r}"
            )

    clients = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for each in clients:
        each.start()
    time.sleep(LOAD_S / 3)
    replicas[0].kill()
    time.sleep(LOAD_S / 3)
    # By now SkyServe would have noticed, too.
    controller.urls = [replicas[1].url]
    for each in clients:
        each.join()
    failed = [each for each in outcomes if each != "ok"]
    counted = metrics(router.port)
    counts = {
        name: value for name, value in counted.items() if "resumes_total" in name or "retries_total" in name
    }
    told(f"{len(outcomes)} requests, {len(failed)} failed; {counts}")
    assert not failed, failed[:3]
    assert len(outcomes) > 100
    assert controller.seen > 0, "what its autoscaler scales by went through it"


#: What routers run on, as the clouds' catalogs have it.
MACHINES = """InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,AvailabilityZone,Arch
{instance},,,2.0,8.0,,0.085,0.03,{region},{zone},x86_64
"""
PLACES = {
    "aws": {"instance": "c6i.large", "region": "us-east-1", "zone": "use1-az1"},
    "gcp": {"instance": "e2-standard-2", "region": "us-central1", "zone": "us-central1-a"},
}
POLICY = {"gpu": "L4", "model": "Qwen/Qwen3-0.6B", "service_name": "one"}


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_services_are_accepted_by_skypilots_own_validation(cloud, tmp_path):
    config = service_task(spec_from_flags({**POLICY, "spots_cloud": cloud}))
    config["secrets"] = {"VLLM_API_KEY": "x", "HF_TOKEN": ""}
    check = (
        "import json, sys, sky; from sky.serve import serve_utils; "
        "task = sky.Task.from_yaml_config(json.load(sys.stdin)); task.validate(skip_file_mounts=True); "
        "serve_utils.validate_service_task(task, pool=False); print(task.service)"
    )
    is_accepted(check, config, tmp_path)


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_routers_machines_are_accepted_by_skypilots_own_validation(cloud, tmp_path):
    request = router_request(spec_from_flags({**POLICY, "router_cloud": cloud}), None, None)
    config = router_task(request, Path(__file__), RouterSetup(table=b"{}", admin_key="x"))
    check = (
        "import json, sys, sky; task = sky.Task.from_yaml_config(json.load(sys.stdin)); "
        "task.validate(); print(task.resources)"
    )
    is_accepted(check, config, tmp_path)


def is_accepted(check, config, home):
    catalogs(home, {cloud: MACHINES.format(**names) for cloud, names in PLACES.items()})
    found = subprocess.run(
        [str(PYTHON), "-c", check],
        input=json.dumps(config),
        env={**os.environ, "HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-2000:]
