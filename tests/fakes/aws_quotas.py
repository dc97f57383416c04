"""An AWS account with quotas: moto's EC2, and Service Quotas on the wire, which moto does not know of EC2."""

from __future__ import annotations

import json
import os
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

import boto3.session
from moto import mock_aws
from tests.fakes.http_service import served

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from email.message import Message

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

    def answer(_: str, headers: Message, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        told = _REGION.search(headers["Authorization"])
        here = limits.get(told[1], limits) if told else limits
        code = json.loads(body)["QuotaCode"]
        status = 200
        said: dict[str, Any] = {"Quota": {"QuotaCode": code, "Value": here.get(code)}}
        if code not in here:
            status, said = 400, {"__type": "NoSuchResourceException", "Message": "no such quota"}
        return status, {"Content-Type": "application/x-amz-json-1.1"}, json.dumps(said).encode()

    with served(answer) as url:
        yield url


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
