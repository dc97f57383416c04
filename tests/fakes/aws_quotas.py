"""An AWS account with quotas: moto's EC2, and Service Quotas on the wire, which moto does not know of EC2."""

from __future__ import annotations

import json
import os
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from unittest import mock

import boto3.session
from moto import mock_aws

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: vCPUs by code, in every region; P on demand is there and empty, P spot is not told.
LIMITS = {"L-DB2E81BA": 96.0, "L-3819A6DF": 64.0, "L-417A185B": 0.0}
#: A request says its region in what it signs.
_REGION = re.compile(r"Credential=[^/]+/\d+/([a-z0-9-]+)/")
_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_SESSION_TOKEN": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "MOTO_EC2_LOAD_DEFAULT_AMIS": "false",  # reading them takes seconds
}


@contextmanager
def aws_account() -> Iterator[Any]:
    """A session of an account in which nothing runs."""
    with mock.patch.dict(os.environ, _CREDENTIALS), mock_aws():
        yield boto3.session.Session()


def launch(
    session: Any, instance_type: str, region: str = "us-east-1", *, cores: int = 4, count: int = 1
) -> None:
    """Launch instances on demand, with two vCPUs a core; moto reports no instance as a spot one."""
    session.client("ec2", region_name=region).run_instances(
        ImageId="ami-12345678",
        MinCount=count,
        MaxCount=count,
        InstanceType=instance_type,
        CpuOptions={"CoreCount": cores, "ThreadsPerCore": 2},
    )


@contextmanager
def service_quotas(limits: Mapping[str, Any]) -> Iterator[str]:
    """Serve `limits`, by code, or by region and code; yield the address."""

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            told = _REGION.search(self.headers["Authorization"])
            here = limits.get(told[1], limits) if told else limits
            code = asked["QuotaCode"]
            if code in here:
                self._answer(200, {"Quota": {"QuotaCode": code, "Value": here[code]}})
            else:
                self._answer(400, {"__type": "NoSuchResourceException", "Message": "no such quota"})

        def _answer(self, status: int, body: Any) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.1")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Wired:
    """A session whose Service Quotas is the server above."""

    def __init__(self, session: Any, url: str) -> None:
        self.session = session
        self.url = url
        self.regions: list[str] = []

    def client(self, name: str, *, region_name: str, config: Any) -> Any:
        endpoint = {}
        if name == "service-quotas":
            self.regions.append(region_name)
            endpoint = {"endpoint_url": self.url}
        return self.session.client(name, region_name=region_name, config=config, **endpoint)
