"""Every provider through the whole control plane: its API, its reconciler, its journal, and faults at every call.

The provider is the real SDK against its fake on the wire; only the router is scripted, and intervals are short.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from tests.contract.test_providers import REMOTE, REMOTE_NAMES, SPEC, modal_api, rig
from tests.control.plane import served
from tests.fakes.remote_faults import Fault
from tests.fakes.routers import ScriptedHost

from tandemn.client import UserClient
from tandemn.control.app import keep_going
from tandemn.control.reconcilers import deployment_supervisor
from tandemn.errors import InvalidInput, TandemnError
from tandemn.protocol.deployments import DeploymentRequest, DeploymentState, RotateRequest
from tandemn.protocol.keys import Role
from tandemn.protocol.upkeep import CheckState, CollectRequest
from tandemn.serving import lifecycle

__all__ = ["modal_api", "rig"]

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("rig", REMOTE_NAMES, indirect=True)]

#: Nothing here takes longer; a hang is a failure.
PATIENCE_S = 120.0
#: A call whose answer is lost is given up after this time.
CALL_S = 0.3
#: Stands for a GPU that the provider of the test does not have.
NOT_OFFERED = "not offered"


@dataclass
class Stage:
    client: UserClient
    fake: Any
    provider: Any
    routers: ScriptedHost
    services: Any

    @property
    def spec(self):
        spec = SPEC.model_copy(update={"serverless_provider": self.provider.name, "serverless_only": True})
        return spec

    async def deploy(self, spec=None, **fields):
        request = DeploymentRequest(spec=spec or self.spec, **fields)
        return await self.client.deploy(request)

    async def until(self, condition):
        status = await self.client.deployment("one")
        async with asyncio.timeout(PATIENCE_S):
            while not condition(status):
                status = await self.client.deployment("one", since=status.updated_at, wait_s=0.2)
        return status

    async def reach(self, state):
        return await self.until(lambda status: status.state is state)

    async def destroy(self):
        await self.client.destroy_deployment("one")
        return await self.reach(DeploymentState.DELETED)

    def left(self):
        return [*self.fake.left(), *self.routers.running]


async def left_open():
    pass


@asynccontextmanager
async def opened(rig, home):
    """A control plane with this provider and no other, of which nothing acts yet."""
    async with served(home) as plane:
        providers, routers = plane.services.providers, ScriptedHost()
        providers._providers[rig.provider.name, None, None] = rig.provider
        providers._hosts["local"] = routers
        setattr(providers, "close", left_open)  # noqa: B010 - the rig closes its own
        key = await plane.new_key("alice", Role.ADMIN)
        async with UserClient(plane.url, key) as client:
            yield Stage(client, rig.fake, rig.provider, routers, plane.services)


@pytest.fixture
async def asleep(rig, tmp_path, monkeypatch):
    for name in ("BACKOFF_S", "LONGEST_BACKOFF_S", "LOOK_S", "SOON_S"):
        monkeypatch.setattr(lifecycle, name, 0.03)
    monkeypatch.setattr(deployment_supervisor, "BREATH_S", 0.01)
    monkeypatch.setattr(deployment_supervisor, "HALT_S", 0.0)
    monkeypatch.setattr(rig.provider, "_call_s", CALL_S * 10)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    async with opened(rig, tmp_path) as stage:
        yield stage


@pytest.fixture
async def stage(asleep):
    async with keep_going(asleep.services):
        yield asleep


async def test_deploy_status_scale_destroy(stage):
    plan = await stage.client.plan_deployment(DeploymentRequest(spec=stage.spec))
    assert stage.left() == []
    assert [each.remote_name for each in plan.backends] == [REMOTE]
    assert (await stage.deploy()).state is not DeploymentState.FAILED
    status = await stage.reach(DeploymentState.READY)
    (backend,) = status.backends
    assert (backend.state, backend.remote_name, backend.is_current) == ("idle", REMOTE, True)
    assert stage.left() == [REMOTE, REMOTE]
    listed = (await stage.client.list_deployments()).deployments
    assert [(each.service_name, each.state) for each in listed] == [("one", "ready")]

    key = await stage.client.endpoint_key("one")
    assert key.endpoint == f"http://router/{REMOTE}"
    rotated = await stage.client.rotate_key("one", RotateRequest())
    assert rotated.api_key not in (None, key.api_key)

    larger = stage.spec.model_copy(update={"max_model_len": 8192})
    await stage.deploy(larger, is_update=True)
    await stage.until(lambda now: now.spec.max_model_len == 8192 and now.backends[0].is_current)
    assert (await stage.client.deployment("one")).state is DeploymentState.READY
    assert stage.fake.left() == [REMOTE]

    # Scaling by hand, as the seam has it; only Cloud Run does not tell how many run.
    record = status.backends[0]
    (remote,) = await stage.provider.find(REMOTE)
    await stage.provider.scale(remote, 1)
    if stage.provider.name != "cloudrun":
        scaled = await stage.until(lambda now: now.backends[0].state == "ready")
        assert (record.state, scaled.backends[0].ready_replicas) == ("idle", 1)

    await stage.destroy()
    assert stage.left() == []
    async with asyncio.timeout(PATIENCE_S):
        while stage.services.keyring.names():
            await asyncio.sleep(0.02)


async def test_the_same_deploy_again_goes_on_and_another_is_refused(stage):
    await stage.deploy()
    await stage.reach(DeploymentState.READY)
    await stage.deploy()
    assert (await stage.client.deployment("one")).state is DeploymentState.READY
    with pytest.raises(TandemnError) as caught:
        await stage.deploy(stage.spec.model_copy(update={"model": "another/model"}))
    assert caught.value.code == "name_taken"
    assert stage.fake.left() == [REMOTE]
    await stage.destroy()


async def calls_until(stage, act):
    stage.fake.faults.disarm()
    await act()
    calls = list(stage.fake.faults.calls)
    # Looks are repeated for as long as it takes: each is struck once.
    return [place for place, call in enumerate(calls) if call not in calls[:place]]


async def brought_up(stage):
    await stage.deploy()
    await stage.reach(DeploymentState.READY)


async def in_trouble(stage):
    """Deploy under a fault, and wait until it shows: refused, reported, or without harm."""
    try:
        await stage.deploy()
    except TandemnError:
        return
    await stage.until(
        lambda now: now.state is DeploymentState.READY or any(each.code for each in now.backends)
    )


async def test_after_a_fault_at_every_call_the_same_deploy_again_makes_one(stage):
    places = await calls_until(stage, lambda: brought_up(stage))
    await stage.destroy()
    for number, place in enumerate(places):
        # One that passes, and one that the create cannot get over; every kind is met in the providers' own suite.
        fault = (Fault.BROKEN, Fault.CREDENTIALS)[number % 2]
        stage.fake.faults.arm(fault, place=place)
        await in_trouble(stage)
        stage.fake.faults.disarm()
        await brought_up(stage)
        assert stage.left() == [REMOTE, REMOTE], f"{fault} at {place}"
        await stage.destroy()
        assert stage.left() == []


async def test_after_a_lost_answer_at_every_call_destroy_leaves_nothing(stage, monkeypatch):
    """Done at the provider, whose answer is waited for when destroy comes."""
    places = await calls_until(stage, lambda: brought_up(stage))
    await stage.destroy()
    monkeypatch.setattr(stage.provider, "_call_s", CALL_S)
    for place in places:
        stage.fake.faults.arm(Fault.LOST, place=place)
        try:
            await stage.deploy()
            async with asyncio.timeout(PATIENCE_S):
                while not stage.fake.faults.struck:
                    await asyncio.sleep(0.01)
        except TandemnError:
            pass  # it could not even be planned
        assert stage.fake.faults.struck
        stage.fake.faults.disarm()
        if (await stage.client.list_deployments()).deployments:
            await stage.destroy()
        assert stage.left() == [], f"lost at {place}"


async def test_a_fault_at_every_call_of_destroy_is_reported_and_retried(stage):
    async def taken_down():
        await stage.destroy()

    await brought_up(stage)
    places = await calls_until(stage, taken_down)
    for place in places:
        await brought_up(stage)
        stage.fake.faults.arm(Fault.BROKEN, place=place)
        await stage.client.destroy_deployment("one")
        status = await stage.until(
            lambda now: now.state is DeploymentState.DELETED or now.backends[0].code is not None
        )
        if status.state is DeploymentState.DELETED:
            assert stage.fake.left() == []
        else:
            assert status.state is DeploymentState.DELETING
            assert status.backends[0].reason
        stage.fake.faults.disarm()
        await stage.reach(DeploymentState.DELETED)
        assert stage.left() == []


async def test_a_control_plane_that_dies_at_any_call_is_followed_by_one_that_goes_on(asleep):
    """It goes when a call has been answered at the provider, and the answer is not recorded yet."""
    async with keep_going(asleep.services):
        places = await calls_until(asleep, lambda: brought_up(asleep))
        await asleep.destroy()
    for place in places:
        asleep.fake.faults.arm(Fault.LOST, place=place)
        async with keep_going(asleep.services):
            deploying = asyncio.ensure_future(asleep.deploy())
            async with asyncio.timeout(PATIENCE_S):
                while not asleep.fake.faults.struck:
                    await asyncio.sleep(0.005)
        asleep.fake.faults.disarm()
        await asyncio.gather(deploying, return_exceptions=True)
        async with keep_going(asleep.services):
            if (await asleep.client.list_deployments()).deployments:
                await asleep.reach(DeploymentState.READY)
                assert asleep.left() == [REMOTE, REMOTE]
                await asleep.destroy()
            assert asleep.left() == [], f"died at {place}"


async def test_what_no_record_knows_is_found_and_removed_only_when_told(stage):
    await brought_up(stage)
    lost = stage.provider.plan(stage.spec.model_copy(update={"service_name": "lost"}))
    from tests.contract.test_providers import SECRETS

    await stage.provider.ensure(lost, SECRETS)
    report = await stage.client.strays()
    assert [(each.kind, each.remote_name, each.is_gone) for each in report.strays] == [
        ("backend", "tandemn-lost", False)
    ]
    assert stage.fake.left() == ["tandemn-lost", REMOTE]
    stage.fake.faults.arm(Fault.CREDENTIALS)
    report = await stage.client.collect(CollectRequest(remote_names=["tandemn-lost"]))
    assert not report.strays
    assert stage.provider.name in report.not_set_up  # nobody can say what is there
    stage.fake.faults.disarm()
    report = await stage.client.collect(CollectRequest(remote_names=["tandemn-lost", REMOTE]))
    assert [(each.remote_name, each.is_gone) for each in report.strays] == [("tandemn-lost", True)]
    assert stage.fake.left() == [REMOTE]  # what a record knows is never taken for lost
    await stage.destroy()


async def test_check_says_who_is_signed_in(stage):
    (check,) = (await stage.client.check(stage.provider.name)).checks
    assert (check.name, check.state) == (stage.provider.name, CheckState.OK)
    stage.fake.faults.arm(Fault.CREDENTIALS)
    (check,) = (await stage.client.check(stage.provider.name)).checks
    assert (check.state, check.code) == (CheckState.FAILED, "provider_credentials")
    assert check.next_step
    stage.fake.faults.disarm()


async def test_missing_credentials_are_told_at_once_and_nothing_is_made(stage):
    stage.fake.faults.arm(Fault.CREDENTIALS)
    with pytest.raises(InvalidInput) as caught:
        await stage.deploy()
    assert (caught.value.code, caught.value.exit_code) == ("provider_credentials", 2)
    assert (await stage.client.list_deployments()).deployments == []
    stage.fake.faults.disarm()
    assert stage.left() == []


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"gpu": "L5"}, "unknown_gpu"),
        ({"gpu": NOT_OFFERED}, "gpu_not_offered"),
        ({"gpu_count": 16, "tp_size": 16}, "too_many_gpus"),
        ({"serverless_provider": "modla"}, "unknown_provider"),
        ({"serverless_provider": "local-spot"}, "unknown_provider"),
        ({"model": "meta-llama/Llama-3.1-70B-Instruct"}, "does_not_fit"),
    ],
)
async def test_what_cannot_be_served_is_refused_and_nothing_is_made(stage, changes, code):
    if changes.get("gpu") == NOT_OFFERED:
        changes = {"gpu": "A5000" if stage.provider.name == "modal" else "A10G"}
    with pytest.raises(TandemnError) as caught:
        await stage.deploy(stage.spec.model_copy(update=changes))
    assert caught.value.code == code, caught.value
    assert caught.value.exit_code in {2, 3}
    assert (await stage.client.list_deployments(state="all")).deployments == []
    assert stage.left() == []
