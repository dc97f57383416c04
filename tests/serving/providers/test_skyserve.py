"""The adapter of SkyServe, over our real worker process, against a stand-in for SkyPilot at its outermost edge."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from tests.fakes.sky import FakeSky, Faults

from tandemn.errors import Conflict, InvalidInput, Retryable
from tandemn.placement.catalog.offers import Offer
from tandemn.protocol.deployments import BackendState
from tandemn.protocol.replicas import Market
from tandemn.serving.providers.provider import Secrets
from tandemn.serving.providers.skyserve import SkyServe
from tandemn.serving.spec import spec_from_flags
from tandemn.skypilot.environment import SkyPilot

SECRETS = Secrets(engine_api_key="sk-engine-not-to-be-shown", hf_token="hf_not-to-be-shown")
SPEC = spec_from_flags({"model": "Qwen/Qwen3-0.6B", "gpu": "L4", "service_name": "one"})
NAME = "tandemn-one"


def offer(instance, market, usd, region="us-east-1"):
    return Offer(
        provider="aws",
        region=region,
        instance_type=instance,
        gpu="L4",
        gpus=1,
        market=market,
        usd_per_hour=None if usd is None else Decimal(usd),
        source="test",
        as_of="2026-11-25",
    )


OFFERS = (
    offer("g6.xlarge", Market.SPOT, "0.40"),
    offer("g6.2xlarge", Market.SPOT, "0.30", "us-west-2"),
    offer("g6.4xlarge", Market.SPOT, None),
    offer("g6.xlarge", Market.ON_DEMAND, "0.80"),
)


class Rig:
    def __init__(self, fake, provider):
        self.fake, self.provider = fake, provider

    def move(self, **facts):
        """What SkyServe's controller makes of the service."""
        path = self.fake.folder / "services" / f"{NAME}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))

    def gone(self):
        (self.fake.folder / "services" / f"{NAME}.json").unlink()

    def services(self):
        return [path.stem for path in (self.fake.folder / "services").glob("*.json")]

    def task(self):
        return json.loads((self.fake.folder / "tasks" / f"{NAME}.json").read_text())

    def called(self, name):
        calls = [json.loads(line) for line in (self.fake.folder / "calls.jsonl").read_text().splitlines()]
        return [each for each in calls if each["name"] == name]

    async def ensure(self):
        return await self.provider.ensure(self.provider.plan(SPEC), SECRETS)


@pytest.fixture
async def rig(tmp_path):
    fake = FakeSky(tmp_path / "sky")
    for folder in ("services", "home"):
        (fake.folder / folder).mkdir(exist_ok=True)
    provider = SkyServe(
        SkyPilot(fake.python(), tmp_path / "worker.log", environment=fake.environment), OFFERS
    )
    yield Rig(fake, provider)
    await provider.close()


def test_the_plan_has_the_cheapest_spot_machine_and_the_same_on_demand(rig):
    plan = rig.provider.plan(SPEC)
    assert (plan.usd_per_hour, plan.on_demand_usd_per_hour) == (Decimal("0.30"), Decimal("0.80"))
    assert "us-west-2" in plan.price_source
    here = rig.provider.plan(SPEC.model_copy(update={"region": "us-east-1"}))
    assert here.usd_per_hour == Decimal("0.40")
    nowhere = rig.provider.plan(SPEC.model_copy(update={"region": "mars-1"}))
    assert nowhere.usd_per_hour is None
    assert "not-to-be-shown" not in json.dumps(plan.as_json())


def test_more_than_the_balancer_can_pass_on_is_warned_of(rig):
    spot = SPEC.scaling.spot.model_copy(update={"target_qps": 100.0})
    wide = SPEC.model_copy(update={"scaling": SPEC.scaling.model_copy(update={"spot": spot})})
    assert "300 requests a second" in rig.provider.plan(wide).warnings[0]
    assert rig.provider.plan(SPEC).warnings == ()


async def test_deploy_look_update_destroy(rig):
    remote = await rig.ensure()
    assert rig.task()["secrets"] == {"VLLM_API_KEY": SECRETS.engine_api_key, "HF_TOKEN": SECRETS.hf_token}
    assert (await rig.provider.status(remote)).state is BackendState.PROVISIONING
    replicas = [
        {"name": "tandemn-one-1", "status": "READY", "launched_at": 100},
        {"name": "tandemn-one-2", "status": "PREEMPTED", "launched_at": None},
        {"name": "tandemn-one-3", "status": "STARTING", "launched_at": 130},
    ]
    rig.move(status="READY", endpoint="http://127.0.0.1:30001", replica_info=replicas)
    status = await rig.provider.status(remote)
    assert (status.state, status.url, status.replicas) == (BackendState.READY, "http://127.0.0.1:30001", 1)
    assert [(each.replica_id, each.began) for each in status.seen if not each.is_controller] == [
        ("tandemn-one-1", 100.0),
        ("tandemn-one-3", 130.0),
    ]
    rig.move(status="NO_REPLICA", replica_info=[])
    assert (await rig.provider.status(remote)).state is BackendState.IDLE
    # The same again is an update in place: its URL stays.
    assert (await rig.ensure()).url == "http://127.0.0.1:30001"
    assert [each["mode"] for each in rig.called("sky.serve.update")] == ["ROLLING"]
    assert await rig.provider.logs(remote, 10) == ["controller of tandemn-one is up"]
    # Deleted only when SkyServe does not list it any more.
    assert not await rig.provider.delete(NAME)
    assert not await rig.provider.delete(NAME)
    assert len(rig.called("sky.serve.down")) == 1
    rig.gone()
    assert await rig.provider.delete(NAME)
    assert (await rig.provider.status(remote)).state is BackendState.DELETED


VMS = """InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,AvailabilityZone,Arch
m6i.xlarge,,,4.0,16.0,,0.192,0.06,us-east-1,use1-az1,x86_64
m6i.xlarge,,,4.0,16.0,,0.100,0.06,us-east-2,use2-az1,x86_64
"""


async def test_the_controllers_machine_is_paid_by_the_services_that_share_it(rig):
    async def controller():
        status = await rig.provider.status(remote)
        return [(each.replica_id, each.usd_per_hour) for each in status.seen if each.is_controller]

    remote = await rig.ensure()
    assert await controller() == [("controller", None)], "a price that is not known is not 0"
    folder = rig.fake.folder / "home" / ".sky" / "catalogs" / "v8" / "aws"
    folder.mkdir(parents=True)
    (folder / "vms.csv").write_text(VMS)
    assert await controller() == [("controller", Decimal("0.192"))]
    for name in ("tandemn-two", "tandemn-three", "of-somebody-else"):
        (rig.fake.folder / "services" / f"{name}.json").write_text(
            json.dumps({"name": name, "status": "READY"})
        )
    assert await controller() == [("controller 1/3", Decimal("0.064"))]


async def test_who_is_signed_in_is_what_sky_check_finds(rig):
    assert (await rig.provider.check()).detail == "SkyPilot on aws"


async def test_nothing_was_ever_made(rig):
    assert await rig.provider.find() == []
    assert await rig.provider.delete(NAME)


async def test_while_the_controller_boots_only_the_request_is_known(rig):
    rig.fake.fail(Faults(boot_s=60))
    remote = await rig.ensure()
    assert (await rig.provider.status(remote)).state is BackendState.PROVISIONING
    # One that died after the call asks again: the request under way is found by the service's name.
    await rig.ensure()
    assert len(rig.called("sky.serve.up")) == 1
    assert [each.remote_name for each in await rig.provider.find()] == [NAME]
    # Destroyed meanwhile: the request is cancelled, and only then is there nothing.
    assert not await rig.provider.delete(NAME)
    assert await rig.provider.delete(NAME)
    assert rig.services() == []


async def test_a_service_that_did_not_come_up_says_why(rig):
    rig.fake.fail(Faults(refuse={"serve.up": "ResourcesUnavailableError"}))
    remote = await rig.ensure()
    status = await rig.provider.status(remote)
    assert status.state is BackendState.FAILED
    assert "nothing to be had" in str(status.reason)
    assert await rig.provider.delete(NAME)


async def test_replicas_that_fail_are_looked_for_again_until_none_comes(rig):
    remote = await rig.ensure()
    failed = {"name": "tandemn-one-1", "status": "FAILED_PROVISION", "launched_at": None}
    coming = {"name": "tandemn-one-2", "status": "PROVISIONING", "launched_at": 5}
    rig.move(status="FAILED", replica_info=[failed, coming])
    status = await rig.provider.status(remote)
    assert (status.state, [each.replica_id for each in status.seen]) == (
        BackendState.PROVISIONING,
        ["tandemn-one-2", "controller"],
    )
    rig.move(status="FAILED", replica_info=[failed])
    assert (await rig.provider.status(remote)).state is BackendState.FAILED


async def test_a_cleanup_that_failed_is_never_taken_for_gone(rig):
    await rig.ensure()
    rig.move(status="FAILED_CLEANUP")
    with pytest.raises(Conflict, match="may be billed"):
        await rig.provider.delete(NAME)
    with pytest.raises(Conflict):
        await rig.ensure()


@pytest.mark.parametrize("call", ["serve.status", "serve.down"])
async def test_a_delete_that_fails_is_reported_and_tried_again(rig, call):
    await rig.ensure()
    rig.fake.fail(Faults(refuse={call: "ApiServerConnectionError"}))
    with pytest.raises(Retryable):
        await rig.provider.delete(NAME)
    rig.fake.fail(Faults())
    assert not await rig.provider.delete(NAME)
    rig.gone()
    assert await rig.provider.delete(NAME)


async def test_a_controller_that_cannot_be_reached_is_not_one_that_is_gone(rig):
    remote = await rig.ensure()
    rig.fake.fail(Faults(refuse={"serve.status": "ClusterNotUpError"}))
    with pytest.raises(Retryable):
        await rig.provider.status(remote)
    with pytest.raises(Retryable):
        await rig.provider.delete(NAME)


async def test_scaling_by_hand_is_refused_with_what_to_do(rig):
    remote = await rig.ensure()
    with pytest.raises(InvalidInput, match="policy"):
        await rig.provider.scale(remote, 2)
    assert rig.provider.auth(SECRETS) == {"Authorization": f"Bearer {SECRETS.engine_api_key}"}
    assert (await rig.provider.usage(remote, 0, 1)).usd is None
