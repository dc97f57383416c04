"""A deployment whose router has a machine of its own: real routers on a stand-in for SkyPilot's clouds, a provider on the wire."""

import asyncio
from dataclasses import replace
from decimal import Decimal

from tests.control.plane import served
from tests.control.test_deployments import desk  # noqa: F401 - a fixture
from tests.serving.providers.test_skypilot_router import (  # noqa: F401 - fixtures
    FLAGS,
    NAME,
    fake,
    names_of,
    opened,
    routers_on,
    setup,
    up,
)

from tandemn.control import checks, deployment_cost, deployment_views, strays
from tandemn.ledger.entries import Part
from tandemn.protocol.deployments import DeploymentState
from tandemn.protocol.upkeep import CheckState
from tandemn.serving.keyring import KeyUse
from tandemn.serving.providers.skypilot_router import SkyPilotRouters
from tandemn.serving.spec import spec_from_flags

SPEC = spec_from_flags({**FLAGS, "router_name": "chat.example.com", "serverless_provider": "runpod"})


async def becomes(desk, state):  # noqa: F811 - a fixture
    async with asyncio.timeout(60):
        while (record := await desk.step()).state is not state:
            await asyncio.sleep(0.1)
    return record


async def test_its_life_over_two_control_planes(desk, fake, opened):  # noqa: F811 - fixtures
    def controlled_by(host):
        async def of_name(_name):
            return host

        desk.routers, desk.hands = host, replace(desk.hands, host=of_name)

    controlled_by(opened())
    await desk.submit(SPEC.model_copy(update={"serverless_only": True}))
    record = await becomes(desk, DeploymentState.READY)
    remote = record.router.part.remote
    admin = desk.hands.keyring.key("one", KeyUse.ADMIN).get_secret_value()
    # Started with what was known then, and told the rest since.
    assert await names_of(remote, admin) == ["serverless"]
    port = remote.url.rpartition(":")[2]
    assert deployment_views.endpoint_of(record) == f"http://chat.example.com:{port}"
    shown = deployment_views.status(record).router
    assert shown is not None
    assert shown.url == remote.url
    [process] = routers_on(fake)

    # Another control plane finds it as it is; in between it needed none.
    controlled_by(opened())
    await becomes(desk, DeploymentState.READY)
    assert [each.pid for each in routers_on(fake)] == [process.pid]

    # The machine goes: another one is made, and told all that this one knew.
    fake.preempt(NAME)
    async with asyncio.timeout(60):
        while [each.pid for each in routers_on(fake)] in ([], [process.pid]):
            await desk.step()
            await asyncio.sleep(0.1)
    again = (await becomes(desk, DeploymentState.READY)).router.part.remote
    assert await names_of(again, admin) == ["serverless"]

    cost = await desk.database.run(deployment_cost.priced, record, now=desk.hands.clock.now())
    [router] = [each for each in cost.spending.parts if each.part is Part.ROUTER]
    assert router.usd_per_hour.usd == Decimal("0.080")
    assert router.spent.usd > 0

    await desk.destroy()
    await becomes(desk, DeploymentState.DELETED)
    assert fake.machines() == []
    assert routers_on(fake) == []
    assert desk.fake.left() == []


async def test_gc_ends_a_machine_that_no_record_knows(fake, tmp_path, monkeypatch):  # noqa: F811 - a fixture
    async with served(tmp_path, skypilot_python=fake.python()) as plane:
        host = await plane.services.providers.host("skypilot")
        await up(host, host.plan(SPEC), setup("a"))
        found = await strays.find(plane.services)
        assert [(each.kind, each.provider, each.remote_name) for each in found.strays] == [
            ("router", "skypilot", NAME)
        ]
        assert isinstance(host, SkyPilotRouters)
        host._grace_s = 0.2
        monkeypatch.setattr(strays, "TRY_S", 0.3)
        collected = await strays.collect(plane.services, [NAME])
        assert [each.is_gone for each in collected.strays] == [True]
    assert fake.machines() == []


async def test_a_control_plane_without_skypilot_lacks_nothing(tmp_path):
    async with served(tmp_path, skypilot_python=str(tmp_path / "none")) as plane:
        report = await checks.check(plane.services)
    states = {each.name: each.state for each in report.checks}
    assert states["router:local"] is CheckState.OK
    assert states["router:skypilot"] is CheckState.NOT_SET_UP
