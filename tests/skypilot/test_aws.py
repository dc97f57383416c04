"""The AWS path as far as it goes without AWS: credentials, catalog, zones, quota, spot prices, the optimizer's order, and
the instance that SkyPilot asks EC2 for. moto answers for AWS; nothing can be reached by SSH there, which is where it ends.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path

import pytest
import yaml
from tests.fakes.sky import until
from tests.fleet.test_skypilot_task import TASKS, spec
from tests.serving.providers.test_skypilot_router import FLAGS, setup
from tests.skypilot.aws import KEY, Aws
from tests.skypilot.slurm import PYTHON, told

from tandemn.clock import SystemClock
from tandemn.errors import NextOffer
from tandemn.fleet.launchers.launcher import LaunchSpec
from tandemn.fleet.launchers.skypilot import SkyPilotLauncher
from tandemn.fleet.launchers.skypilot_task import place_of_offer, places, task_config
from tandemn.fleet.launchers.skypilot_watch import Watch
from tandemn.fleet.launchers.tunnels import Tunnels
from tandemn.fleet.reconcile import Presence
from tandemn.placement.catalog.skypilot import read_catalogs
from tandemn.placement.quota import QuotaReader, free_vcpus
from tandemn.protocol.jobs import ReplicaConfig
from tandemn.protocol.replicas import Market
from tandemn.serving.providers.skypilot_router import SkyPilotRouters
from tandemn.serving.providers.skypilot_router_task import router_task
from tandemn.serving.spec import spec_from_flags
from tandemn.settings import Settings
from tandemn.skypilot.clouds import enabled_clouds
from tandemn.skypilot.environment import SkyPilot, task

pytestmark = pytest.mark.skypilot

CONFIG = ReplicaConfig(gpu="L4", market=Market.SPOT)
#: A launch on moto, its end included.
LAUNCH_S = 600.0


class Site:
    def __init__(self, aws: Aws, folder: Path) -> None:
        self.aws = aws
        self.sky = SkyPilot(str(PYTHON), folder / "sky.log", environment=aws.environment)
        self.watch = Watch(
            self.sky,
            Tunnels(self.sky, folder / "tunnels.log"),
            "https://tandemn.example",
            keep_log=lambda cluster: None,
            on_change=lambda: None,
        )
        self.launcher = SkyPilotLauncher(self.sky, self.watch, cloud="aws", home=folder, offers=self.offers)

    def offers(self):
        return list(read_catalogs(self.aws.folder / ".sky" / "catalogs"))

    def places(self, config: ReplicaConfig = CONFIG):
        return places(config, self.offers(), "aws")

    def instances(self, region: str):
        answer = self.aws.client("ec2", region).describe_instances()
        return [
            each
            for reservation in answer["Reservations"]
            for each in reservation["Instances"]
            if each["State"]["Name"] not in {"terminated", "shutting-down"}
        ]


@pytest.fixture(scope="module")
def site():
    folder = Path(tempfile.mkdtemp(prefix="tdm-aws-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        aws = Aws(folder / "home")
        stack.callback(aws.close)
        site = Site(aws, folder)
        stack.callback(site.sky.close)
        stack.callback(site.watch.close)
        # Credentials are checked, and the account's names of zones are asked for.
        assert enabled_clouds(site.sky) == ["aws"]
        site.sky.call(
            "launch", within_s=LAUNCH_S, task=task(_task(spec(places=[]))), cluster_name="t", dryrun=True
        )
        yield site


def _task(given):
    """As it is launched, but for the wheel, which lies elsewhere here."""
    config = task_config(given)
    return config | {"file_mounts": {"~/.tandemn/x.whl": __file__}}


def test_zones_are_named_as_the_account_does(site):
    names = {each.zone for each in site.offers() if each.market is Market.SPOT and each.region == "us-east-1"}
    assert names
    assert all(name.startswith("us-east-1") for name in names)


@pytest.mark.parametrize("name", [name for name in TASKS if name.startswith("aws")])
def test_tasks_are_accepted_by_skypilot_itself(name, site):
    given = TASKS[name]
    ranked = site.places(given.config)
    assert ranked
    config = _task(spec(config=given.config, places=ranked, engine=given.engine))
    site.sky.call("launch", within_s=LAUNCH_S, task=task(config), cluster_name="t", dryrun=True)


def test_a_routers_machine_is_accepted_by_skypilot_itself(site, tmp_path):
    host = SkyPilotRouters(site.sky, Settings(home=tmp_path))
    plan = host.plan(spec_from_flags({**FLAGS, "router_cloud": "aws"}))
    assert plan.usd_per_hour == Decimal("0.085")
    config = router_task(plan.request, Path(__file__), setup("a"))
    site.sky.call("launch", within_s=LAUNCH_S, task=task(config), cluster_name="t", dryrun=True)


def test_skypilot_takes_the_first_of_our_places(site):
    """Its optimizer would take the cheapest of a set; of a list in order it takes the first, whatever it costs."""
    dear_first = site.places()[::-1]
    config = _task(spec(places=dear_first))
    [chosen, *_] = config["resources"]["ordered"]
    site.launcher._offers = lambda: dear_first
    assert chosen["infra"] == place_of_offer(dear_first[0])


def test_quota_is_read(site, monkeypatch):
    for name, value in {**KEY, "AWS_ENDPOINT_URL": site.aws.url}.items():
        monkeypatch.setenv(name, value)
    quotas = free_vcpus(QuotaReader(SystemClock()).read(["us-east-1"]))
    assert all(count >= 0 for count in quotas.values())
    assert all(region == "us-east-1" for region, _, _ in quotas)


def test_the_cheapest_spot_place_is_asked_of_ec2_and_let_go_again(site):
    first = site.places()[0]
    launch = LaunchSpec(
        replica_id="job-1-r0",
        job_id="job-1",
        config=CONFIG,
        engine="vllm",
        server_url="https://tandemn.example",
        token="a-token",
    )
    price = site.launcher.price(CONFIG, 1.0)
    assert price.usd_per_hour == first.usd_per_hour > Decimal(0)
    handle = site.launcher.launch(launch)
    [instance] = until(lambda: site.instances(first.region), LAUNCH_S)
    told(f"EC2 was asked for {instance['InstanceType']} in {instance['Placement']['AvailabilityZone']}")
    assert instance["InstanceType"] == first.instance_type
    assert instance["Placement"]["AvailabilityZone"] == first.zone
    assert instance["InstanceLifecycle"] == "spot"
    tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
    assert any(value.startswith("tandemn-job-1-r0") for value in tags.values()), tags
    site.launcher.terminate(handle)
    until(lambda: site.launcher.observe([handle])[0].presence is Presence.GONE, LAUNCH_S)
    assert site.instances(first.region) == []


def test_a_gpu_that_aws_does_not_rent_is_for_the_next_offer(site):
    config = yaml.safe_load("{name: t, resources: {infra: aws, accelerators: 'L4:7'}, run: 'true'}")
    with pytest.raises(NextOffer):
        site.sky.call("launch", within_s=LAUNCH_S, task=task(config), cluster_name="t", dryrun=True)
