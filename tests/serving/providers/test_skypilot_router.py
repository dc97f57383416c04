"""The host of routers on SkyPilot: real routers, over our real worker process, on a stand-in for SkyPilot's clouds.

`TANDEMN_WRITE_GOLDEN=1 pytest …` writes the golden files anew.
"""

from __future__ import annotations

import asyncio
import json
import os
from decimal import Decimal
from pathlib import Path

import aiohttp
import psutil
import pytest
import yaml
from tests.certificates import self_signed
from tests.fakes.sky import FakeSky, Faults

from tandemn.control.providers import Providers
from tandemn.errors import Conflict, InvalidInput, NotFound, Retryable
from tandemn.protocol.deployments import BackendState
from tandemn.serving.certificate import read_certificate, trusted
from tandemn.serving.providers.adapters import open_host
from tandemn.serving.providers.provider import SKYSERVE
from tandemn.serving.providers.skypilot_router import UNENCRYPTED, SkyPilotRouters
from tandemn.serving.providers.skypilot_router_task import router_request, router_task
from tandemn.serving.router_host import LOCAL_HOST, SKYPILOT_HOST, RouterPlan, RouterSetup, host_name
from tandemn.serving.spec import spec_from_flags
from tandemn.settings import Settings
from tandemn.skypilot.environment import SkyPilot

GOLDEN = Path(__file__).parent / "golden"
FLAGS = {"model": "Qwen/Qwen3-0.6B", "gpu": "L4", "service_name": "one", "router_cloud": "aws"}
SPEC = spec_from_flags(FLAGS)
NAME = "tandemn-router-one"
ADMIN, KEY = "sk-admin-not-to-be-shown", "sk-client-not-to-be-shown"
VMS = """InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,AvailabilityZone,Arch
c6i.large,,,2.0,4.0,,0.085,0.03,us-east-1,use1-az1,x86_64
c6i.large,,,2.0,4.0,,0.080,0.03,us-east-2,use2-az1,x86_64
c6i.large,,,2.0,4.0,,,0.01,eu-west-1,euw1-az1,x86_64
c6i.xlarge,,,4.0,8.0,,0.010,0.01,us-east-1,use1-az1,x86_64
"""


def setup(*names, keys=(KEY,), admin=ADMIN):
    backends = [{"name": name, "market": "serverless", "url": "http://127.0.0.1:9"} for name in names]
    table = {"version": 1, "backends": backends} | ({"keys": list(keys)} if keys else {})
    return RouterSetup(table=json.dumps(table).encode(), admin_key=admin, is_public=not keys)


@pytest.fixture
def fake(tmp_path):
    fake = FakeSky(tmp_path / "fake")
    folder = Path(fake.environment["HOME"], ".sky", "catalogs", "v8", "aws")
    folder.mkdir(parents=True)
    (folder / "vms.csv").write_text(VMS)
    yield fake
    fake.end_all()


class Opened:
    """Hosts as several control planes would open them, one after the other."""

    def __init__(self, fake, home):
        self.fake, self.home = fake, home
        self.hosts = []

    def __call__(self, **more):
        sky = SkyPilot(self.fake.python(), self.home / "sky.log", environment=self.fake.environment)
        self.hosts.append(SkyPilotRouters(sky, Settings(home=self.home, **more), grace_s=0.2))
        return self.hosts[-1]


@pytest.fixture
async def opened(fake, tmp_path):
    opened = Opened(fake, tmp_path / "home")
    yield opened
    for host in opened.hosts:
        await host.close()


@pytest.fixture
def host(opened):
    return opened()


async def becomes(host, remote, state):
    async with asyncio.timeout(60):
        while (status := await host.status(remote)).state is not state:
            await asyncio.sleep(0.05)
    return status


async def up(host, plan, setup):
    """Start it, and return it with its address, as the reconciler records it."""
    remote = await host.ensure(plan, setup)
    status = await becomes(host, remote, BackendState.READY)
    return type(remote)(**{**remote.as_json(), "url": status.url})


async def names_of(remote, admin=ADMIN, ssl=True):
    headers = {"Authorization": f"Bearer {admin}"}
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"{remote.url}/router/health", headers=headers, ssl=ssl) as answer,
    ):
        return [each["name"] for each in (await answer.json())["backends"]]


async def status_with(remote, key):
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"{remote.url}/v1/models", headers=headers) as answer,
    ):
        return answer.status


async def gone(host, name=NAME):
    async with asyncio.timeout(60):
        while not await host.delete(name):
            await asyncio.sleep(0.05)


def routers_on(fake):
    """Routers that run on the cloud's machines."""
    found = []
    for process in psutil.process_iter():
        try:
            line, where = process.cmdline(), process.cwd()
        except psutil.Error:
            continue
        if "tandemn.router" in line and where.startswith(str(fake.folder)):
            found.append(process)
    return found


def test_where_a_router_runs_follows_from_its_spec():
    assert host_name(SPEC) == SKYPILOT_HOST
    assert host_name(spec_from_flags({**FLAGS, "router_cloud": None})) == LOCAL_HOST
    assert isinstance(open_host(SKYPILOT_HOST), SkyPilotRouters)


async def test_one_worker_of_skypilot_serves_all_that_call_it(fake, tmp_path):
    sky = SkyPilot(fake.python(), tmp_path / "sky.log", environment=fake.environment)
    providers = Providers(sky)
    host, skyserve = await providers.host(SKYPILOT_HOST), await providers.provider(SKYSERVE)
    assert (await host.check()).detail == (await skyserve.check()).detail
    worker = sky._worker
    await providers.close()
    assert sky._worker is worker is not None
    assert worker.process.poll() is None, "whoever opened it closes it"
    sky.close()


@pytest.mark.parametrize(
    ("flags", "param"),
    [
        ({"router_cloud": "asw"}, "router_cloud"),
        ({"router_cloud": None, "router_region": "us-east-1"}, "router_region"),
        ({"router_cloud": None, "router_name": "chat.example.com"}, "router_name"),
        ({"router_name": "https://chat.example.com"}, "router_name"),
        ({"spots_cloud": "local"}, "router_cloud"),
        ({"gpu": "cpu"}, "router_cloud"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(flags, param):
    with pytest.raises(InvalidInput) as caught:
        spec_from_flags({**FLAGS, **flags})
    assert caught.value.param == param


def test_the_plan_has_the_cheapest_places_price(host):
    plan = host.plan(SPEC)
    assert (plan.host, plan.remote_name) == (SKYPILOT_HOST, NAME)
    assert plan.usd_per_hour == Decimal("0.080")
    assert plan.request["resources"]["infra"] == "aws/us-east-2"
    assert "c6i.large in aws/us-east-2" in plan.price_source
    assert plan.warnings == (UNENCRYPTED,)
    assert RouterPlan.from_json(json.loads(json.dumps(plan.as_json()))) == plan
    there = host.plan(spec_from_flags({**FLAGS, "region": "us-east-1"}))
    assert (there.usd_per_hour, there.request["resources"]["infra"]) == (Decimal("0.085"), "aws/us-east-1")


@pytest.mark.parametrize(
    "more", [{"router_region": "eu-west-1"}, {"router_cloud": "gcp"}, {"router_cloud": "oci"}]
)
def test_a_price_that_is_not_known_is_not_made_up(host, more):
    assert host.plan(spec_from_flags({**FLAGS, **more})).usd_per_hour is None


@pytest.mark.parametrize("cloud", ["aws", "gcp", "oci", "slurm"])
def test_what_skypilot_is_given(cloud):
    request = router_request(spec_from_flags({**FLAGS, "router_cloud": cloud}), None, None)
    wheel = Path("/wheels/tandemn-0.1.0-py3-none-any.whl")
    pem = b"PEM" if cloud == "gcp" else None
    task = router_task(request, wheel, setup(keys=() if cloud == "oci" else (KEY,)), pem)
    path = GOLDEN / f"router_{cloud}.yaml"
    if os.environ.get("TANDEMN_WRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(task, sort_keys=False, width=120))
    assert task == yaml.safe_load(path.read_text())


async def test_its_life(host, fake, opened):
    assert (await host.check()).detail == "SkyPilot on aws"
    plan = host.plan(SPEC)
    remote = await up(host, plan, setup("a"))
    assert await names_of(remote) == ["a"]
    assert [await status_with(remote, key) for key in (None, KEY)] == [401, 502]
    [process] = routers_on(fake)
    line = " ".join(process.cmdline())
    assert ADMIN not in line
    assert KEY not in line
    folder = Path(process.cwd())
    assert {(folder / name).stat().st_mode & 0o777 for name in ("table.json", "router.pem")} == {0o600}
    assert "TANDEMN_ROUTER_TABLE" not in process.environ()

    await host.push(remote, setup("a", "b", keys=(KEY, "sk-new")))
    assert await names_of(remote) == ["a", "b"]
    assert await status_with(remote, "sk-new") == 502

    # Another control plane adopts it, whoever started it.
    other = opened()
    assert [each.remote_name for each in await other.find()] == [NAME]
    again = await other.ensure(plan, setup("c"))
    assert again.url == remote.url
    assert [each.pid for each in routers_on(fake)] == [process.pid]
    assert await names_of(remote) == ["c"]
    assert len([each for each in fake.calls() if each["name"] == "sky.launch"]) == 1

    await gone(other)
    assert not fake.machines()
    assert (await host.status(remote)).state is BackendState.DELETED
    assert await host.find() == []
    assert await host.delete(NAME)
    with pytest.raises(Retryable):
        await host.push(remote, setup("a"))


async def test_a_launch_under_way_is_adopted_and_can_be_cancelled(host, fake, opened):
    fake.fail(Faults(boot_s=60))
    plan = host.plan(SPEC)
    remote = await host.ensure(plan, setup("a"))
    assert remote.url is None
    with pytest.raises(NotFound):
        await host.push(remote, setup("a"))
    other = opened()
    assert [each.remote_name for each in await other.find()] == [NAME]
    await other.ensure(plan, setup("a"))
    assert (await other.status(remote)).state is BackendState.PROVISIONING
    assert len([each for each in fake.calls() if each["name"] == "sky.launch"]) == 1
    await gone(other)
    assert fake.clusters() == []


async def test_it_is_started_again_when_it_dies_with_its_last_table(host, fake):
    remote = await up(host, host.plan(SPEC), setup("a"))
    await host.push(remote, setup("b"))
    [process] = routers_on(fake)
    process.kill()
    async with asyncio.timeout(30):
        while not [each for each in routers_on(fake) if each.pid != process.pid]:
            await asyncio.sleep(0.05)
    await becomes(host, remote, BackendState.READY)
    assert await names_of(remote) == ["b"]


async def test_a_machine_that_was_taken_away_is_gone_and_made_again(host, fake):
    plan = host.plan(SPEC)
    remote = await up(host, plan, setup("a"))
    fake.preempt(NAME)
    await becomes(host, remote, BackendState.DELETED)
    assert await names_of(await up(host, plan, setup("b"))) == ["b"]


async def test_another_admin_key_is_taken_by_starting_it_again_on_its_machine(host, fake):
    plan = host.plan(SPEC)
    remote = await up(host, plan, setup("a", admin="sk-former"))
    [former] = routers_on(fake)
    with pytest.raises(Conflict) as caught:
        await host.push(remote, setup("b"))
    assert ADMIN not in str(caught.value)
    await host.ensure(plan, setup("b"))
    async with asyncio.timeout(60):
        while [each.pid for each in routers_on(fake)] in ([], [former.pid]):
            await asyncio.sleep(0.05)
    await becomes(host, remote, BackendState.READY)
    assert await names_of(remote) == ["b"]
    assert fake.machines() == [NAME]


async def test_what_cannot_be_launched_says_what_was_tried(host, fake):
    fake.fail(Faults(unavailable=["aws"]))
    remote = await host.ensure(host.plan(SPEC), setup("a"))
    status = await becomes(host, remote, BackendState.FAILED)
    assert "aws/us-east-2" in status.reason
    await gone(host)


async def test_a_machine_that_cannot_be_set_up_is_told_with_its_log(host, fake):
    remote = await up(host, host.plan(SPEC), setup("a"))
    fake.fail(Faults(command="FAILED_SETUP"))
    for process in routers_on(fake):
        process.parent().kill()
        process.kill()
    status = await becomes(host, remote, BackendState.FAILED)
    assert status.reason.startswith("FAILED_SETUP: ")
    await gone(host)


async def test_a_down_that_fails_is_no_end(host, fake):
    remote = await up(host, host.plan(SPEC), setup("a"))
    fake.fail(Faults(refuse={"down": "RuntimeError"}))
    with pytest.raises(Retryable):
        await gone(host)
    fake.fail(Faults())
    await gone(host)
    assert (await host.status(remote)).state is BackendState.DELETED


def certificate(folder, name):
    """A certificate of its own, with its key in a file beside it."""
    made, key = self_signed(folder, subject=name, alias=f"DNS:{name}", file=name)
    return {"router_cert": made, "router_cert_key": key}


async def test_it_serves_https_with_the_certificate_of_the_settings_and_takes_a_new_one(
    opened, fake, tmp_path
):
    files = certificate(tmp_path, "chat.example.com")
    host = opened(**files)
    plan = host.plan(SPEC)
    assert plan.warnings == ()
    assert "PRIVATE" not in json.dumps(plan.as_json())
    remote = await up(host, plan, setup("a"))
    assert remote.url.startswith("https://")
    assert await names_of(remote, ssl=trusted(Settings(**files))) == ["a"]
    await host.push(remote, setup("b"))

    # Whoever has another certificate does not take it for its router.
    renewed = certificate(tmp_path, "other.example.com")
    other = opened(**renewed)
    assert other.plan(SPEC) != plan
    with pytest.raises(Retryable) as caught:
        await other.push(remote, setup("c"))
    assert "certificate" in str(caught.value)
    await other.ensure(other.plan(SPEC), setup("c"))
    await becomes(other, remote, BackendState.READY)
    assert await names_of(remote, ssl=trusted(Settings(**renewed))) == ["c"]
    await gone(other)


def test_a_certificate_that_cannot_be_used_is_refused_before_anything_is_made(opened, tmp_path):
    files = certificate(tmp_path, "chat.example.com")
    other = certificate(tmp_path, "other.example.com")
    for wrong in (
        {"router_cert": tmp_path / "none.pem"},
        {"router_cert": files["router_cert"]},
        {"router_cert": files["router_cert"], "router_cert_key": other["router_cert_key"]},
    ):
        with pytest.raises(InvalidInput) as caught:
            opened(**wrong).plan(SPEC)
        assert caught.value.code == "invalid_certificate"
    found = read_certificate(Settings(**files))
    assert found is not None
    assert b"PRIVATE KEY" in found.pem
    assert "PRIVATE" not in repr(found)
