"""AWS as far as it can be had on one machine: moto's server for its APIs, and catalogs of our own table's prices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import boto3
import psutil
from tests.skypilot.slurm import _free_ports, catalogs

from tandemn.placement.catalog.offers import table_offers

if TYPE_CHECKING:
    from pathlib import Path

#: Regions of the catalog, with the prefix of their zone ids, as moto has them.
REGIONS = {"us-east-1": "use1", "us-east-2": "use2", "us-west-2": "usw2"}
HEAD = "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,AvailabilityZone,Arch"
IMAGES = ("skypilot:custom-gpu-ubuntu-cuda13", "skypilot:custom-gpu-ubuntu", "skypilot:custom-cpu-ubuntu")
#: SkyPilot's name of its instances' role and profile.
ROLE = "skypilot-v1"
KEY = {
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "moto",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def vms_csv() -> str:
    """Our own table as the catalog that SkyPilot would fetch: spot at a third where we know no spot price."""
    rows = [HEAD]
    found: dict[tuple[str, str], dict[str, str]] = {}
    for offer in table_offers():
        if offer.provider == "aws" and offer.usd_per_hour is not None and offer.arch == "x86_64":
            found.setdefault((offer.instance_type, offer.region), {})[offer.market.value] = str(
                offer.usd_per_hour
            )
    by_type = {offer.instance_type: offer for offer in table_offers() if offer.provider == "aws"}
    for (name, region), prices in found.items():
        offer = by_type[name]
        on_demand = prices.get("on-demand", "")
        spot = prices.get("spot") or (f"{float(on_demand) / 3:.4f}" if on_demand else "")
        gpu = f"\"{{'Gpus': [{{'Name': '{offer.gpu}'}}]}}\""
        rows += [
            f"{name},{offer.gpu},{offer.gpus}.0,{offer.vcpus}.0,{offer.ram_gib}.0,{gpu},{on_demand},{spot},"
            f"{region},{REGIONS[region]}-az{zone},x86_64"
            for zone in (1, 2)
            if region in REGIONS
        ]
    # What routers run on: no GPU.
    rows += [f"c6i.large,,,2.0,4.0,,0.085,0.03,{region},{REGIONS[region]}-az1,x86_64" for region in REGIONS]
    return "\n".join(rows) + "\n"


def _add_role(iam: Any) -> None:
    """Have the role that SkyPilot makes once an account: moto refuses its policy, which names no version."""
    trust = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    iam.create_role(RoleName=ROLE, AssumeRolePolicyDocument=document)
    iam.create_instance_profile(InstanceProfileName=ROLE)
    iam.add_role_to_instance_profile(InstanceProfileName=ROLE, RoleName=ROLE)


def _open_to_the_internet(ec2: Any) -> None:
    """Give the default VPC the gateway that Amazon's has, and moto's has not: SkyPilot takes no private subnet."""
    [vpc] = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    gateway = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc["VpcId"])
    tables = ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [vpc["VpcId"]]}])["RouteTables"]
    for table in tables:
        ec2.create_route(
            RouteTableId=table["RouteTableId"], DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway
        )


class Aws:
    """moto's server, and a home folder in which SkyPilot knows of nothing but AWS."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        catalogs(folder, {"aws": vms_csv()})
        self.port = _free_ports(1, above=21000)
        self.api_port = _free_ports(1, above=47000)
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            **{
                name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "TANDEMN_"))
            },
            **KEY,
            "HOME": str(folder),
            "AWS_ENDPOINT_URL": self.url,
            "SKYPILOT_API_SERVER_LOCAL_PORT": str(self.api_port),
            "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        }
        with (folder / "moto.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
                stdout=log,
                stderr=log,
                env=dict(os.environ),
            )
        end = time.monotonic() + 60
        while not self._answers():
            assert time.monotonic() < end, (folder / "moto.log").read_text()
            time.sleep(0.2)
        _add_role(self.client("iam", "us-east-1"))
        for region in REGIONS:
            _open_to_the_internet(self.client("ec2", region))
        images = folder / ".sky" / "catalogs" / "v8" / "aws" / "images.csv"
        images.write_text(self._images_csv())

    def client(self, service: str, region: str) -> Any:
        return boto3.client(
            service,
            region_name=region,
            endpoint_url=self.url,
            aws_access_key_id=KEY["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEY["AWS_SECRET_ACCESS_KEY"],
        )

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.url}/moto-api/data.json", timeout=5).close()
        except (urllib.error.URLError, OSError):
            return False
        return True

    def _images_csv(self) -> str:
        """The images that SkyPilot boots, registered here under its tags."""
        rows = ["Tag,Region,OS,OSVersion,ImageId,CreationDate,BaseImageId"]
        for region in REGIONS:
            ec2 = self.client("ec2", region)
            disk = {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 50}}
            for tag in IMAGES:
                image = ec2.register_image(
                    Name=tag.replace(":", "-"), RootDeviceName="/dev/sda1", BlockDeviceMappings=[disk]
                )["ImageId"]
                rows.append(f"{tag},{region},ubuntu,22.04,{image},20260101,")
        return "\n".join(rows) + "\n"

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        for process in psutil.process_iter():
            with suppress(psutil.Error, ProcessLookupError):
                if f"--port={self.api_port}" in " ".join(process.cmdline()):
                    os.killpg(process.pid, 9)
