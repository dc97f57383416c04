"""Deployments on a real database and a provider on the wire, with a death at every step."""

import asyncio
import json
import stat
from dataclasses import replace
from decimal import Decimal

import pytest
from aiohttp import web
from tests.fakes.remote_faults import Fault
from tests.fakes.routers import ScriptedHost
from tests.fakes.runpod_api import KEY, RunPodApi

from tandemn.clock import MockClock
from tandemn.control.reconcilers import deployments as reconciler
from tandemn.control.reconcilers.deployment_budgets import BudgetKeeper
from tandemn.control.reconcilers.deployments import Hands
from tandemn.control.services import Pulse
from tandemn.control.store import deployments as store
from tandemn.control.store import events, meters
from tandemn.control.store.deployments import Plans
from tandemn.control.store.meters import Life
from tandemn.errors import Conflict, NotFound, Retryable, StaleRecord
from tandemn.protocol.deployments import BackendState, DeploymentState
from tandemn.protocol.router import MeterPage, PeriodRead
from tandemn.serving import lifecycle
from tandemn.serving.keyring import Keyring, KeyUse
from tandemn.serving.providers.runpod import RunPod
from tandemn.serving.spec import spec_from_flags

SPEC = spec_from_flags({"model": "Qwen/Qwen3-0.6B", "gpu": "L4", "service_name": "one"})


class Desk:
    def __init__(self, hands, fake, provider, routers):
        self.hands, self.fake, self.provider, self.routers = hands, fake, provider, routers
        self.database = hands.database

    def plans(self, spec=SPEC):
        return Plans(backends={"serverless": self.provider.plan(spec)}, router=self.routers.plan(spec))

    async def submit(self, spec=SPEC, **kwargs):
        return await self.database.run(store.submit, spec, self.plans(spec), now=0.0, **kwargs)

    async def destroy(self):
        return await self.database.run(store.begin_deleting, "one", now=0.0)

    async def record(self):
        return await self.database.run(store.get, "one")

    async def step(self):
        """Every part moves once, as under the supervisor, but in a time that is told."""
        self.hands.clock.advance(lifecycle.LONGEST_BACKOFF_S)
        names = [part.name for part in (await self.record()).parts]
        await asyncio.gather(*(reconciler.move(self.hands, "one", name) for name in names))
        await reconciler.push(self.hands, "one")
        return await self.record()

    async def steps(self, until, limit=12):
        for _ in range(limit):
            record = await self.step()
            if record.state is until:
                return record
        raise AssertionError(f"still {record}")

    def left(self):
        return [*self.fake.left(), *self.routers.running]

    def table(self):
        return json.loads(self.routers.running["tandemn-one"].table)


@pytest.fixture
async def desk(tmp_path, monkeypatch, database):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    fake = RunPodApi()
    runner = web.AppRunner(fake.app(), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    provider = RunPod(KEY, f"http://127.0.0.1:{runner.addresses[0][1]}/v2", call_s=3)
    routers = ScriptedHost()

    async def opened(_name, _spec):
        return provider

    async def host(_name):
        return routers

    async def no_meter(_record):
        raise Retryable("the router does not answer", code="router_unavailable")

    hands = Hands(
        database=database,
        clock=MockClock(),
        keyring=Keyring(tmp_path / "keys"),
        provider=opened,
        host=host,
        last_reading=no_meter,
    )
    yield Desk(hands, fake, provider, routers)
    await provider.close()
    await runner.cleanup()
    database.close()


async def test_deploy_then_destroy(desk, tmp_path):
    record = await desk.submit()
    assert record.state is DeploymentState.PLANNED
    assert any("330" in warning for warning in record.warnings)
    record = await desk.steps(DeploymentState.READY)
    (only,) = record.backends
    assert only.part.remote.url.startswith("https://")
    keys = tmp_path / "keys" / "one"
    assert {path.name for path in keys.iterdir()} == {"engine", "endpoint", "admin"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys.iterdir()} == {0o600}
    assert (await desk.destroy()).state is DeploymentState.DELETING
    assert (await desk.steps(DeploymentState.DELETED)).is_deleting
    assert desk.left() == []


async def test_the_same_again_goes_on_and_another_under_its_name_is_refused(desk):
    await desk.submit()
    await desk.steps(DeploymentState.READY)
    assert (await desk.submit()).state is DeploymentState.READY
    other = SPEC.model_copy(update={"max_model_len": 8192})
    with pytest.raises(Conflict) as caught:
        await desk.submit(other)
    assert caught.value.code == "name_taken"
    record = await desk.submit(other, is_update=True)
    assert (record.state, record.spec) == (DeploymentState.READY, other)
    await desk.steps(DeploymentState.READY)
    assert "8192" in next(iter(desk.fake.endpoints.values()))["args"]
    assert desk.fake.left() == ["tandemn-one"]


async def test_an_update_does_not_move_house(desk):
    await desk.submit()
    other = {"serverless": replace(desk.provider.plan(SPEC), provider="modal")}
    moved = Plans(backends=other, router=desk.routers.plan(SPEC))
    with pytest.raises(Conflict) as caught:
        await desk.database.run(
            store.submit, SPEC.model_copy(update={"max_model_len": 99}), moved, now=0.0, is_update=True
        )
    assert caught.value.code == "replacement_needed"


async def test_while_it_is_deleted_its_name_is_taken_and_then_free(desk):
    await desk.submit()
    await desk.steps(DeploymentState.READY)
    await desk.destroy()
    with pytest.raises(Conflict) as caught:
        await desk.submit()
    assert caught.value.code == "deployment_deleting"
    await desk.steps(DeploymentState.DELETED)
    assert (await desk.submit()).state is DeploymentState.PLANNED
    await desk.steps(DeploymentState.READY)


async def test_destroy_before_anything_was_made_calls_nobody(desk):
    await desk.submit()
    await desk.destroy()
    await desk.steps(DeploymentState.DELETED)
    assert desk.fake.faults.calls == []


async def test_what_never_was_is_not_found(desk):
    with pytest.raises(NotFound) as caught:
        await desk.destroy()
    assert caught.value.code == "deployment_not_found"


async def test_a_delete_that_fails_is_reported_retried_and_never_taken_for_gone(desk):
    await desk.submit()
    await desk.steps(DeploymentState.READY)
    await desk.destroy()
    desk.fake.faults.arm(Fault.BROKEN, call="DELETE serverless/ID")
    for _ in range(15):
        record = await desk.step()
        assert record.state is DeploymentState.DELETING
        assert "500" in record.backends[0].part.reason
        assert desk.fake.left() == ["tandemn-one"]
    desk.fake.faults.disarm()
    await desk.steps(DeploymentState.DELETED)
    assert desk.fake.left() == []


async def test_a_create_that_cannot_be_is_failed_with_the_reason_and_tried_again_by_the_same_deploy(desk):
    await desk.submit()
    desk.fake.faults.arm(Fault.CREDENTIALS)
    record = await desk.steps(DeploymentState.FAILED)
    assert record.backends[0].part.code == "provider_credentials"
    assert KEY not in repr(record)
    desk.fake.faults.disarm()
    assert (await desk.submit()).state is DeploymentState.PLANNED
    await desk.steps(DeploymentState.READY)


class Death(BaseException):
    """What kill -9 looks like from within: nothing after it runs."""


@pytest.mark.parametrize("fatal_write", range(3))
@pytest.mark.parametrize("is_destroyed", [False, True])
async def test_death_around_any_write_leaves_nothing_unknown(desk, monkeypatch, fatal_write, is_destroyed):
    await desk.submit()
    real, count = store.write, 0

    def write(*args, **kwargs):
        nonlocal count
        count += 1
        if count - 1 == fatal_write:
            raise Death
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(store, "write", write)
        with pytest.raises(Death):
            await desk.steps(DeploymentState.FAILED)
    if is_destroyed:
        await desk.destroy()
        await desk.steps(DeploymentState.DELETED)
        assert desk.fake.left() == []
    else:
        await desk.steps(DeploymentState.READY)
        assert desk.fake.left() == ["tandemn-one"]


async def test_a_destroy_that_comes_while_a_create_is_under_way_wins(desk):
    record = await desk.submit()
    stale = record.backends[0]
    await desk.destroy()
    after = lifecycle.intended(stale.part, lifecycle.Action.ENSURE)
    with pytest.raises(StaleRecord):
        await desk.database.run(store.write, "one", stale, after, now=0.0)


async def test_listing_by_state(desk):
    await desk.submit()
    planned = await desk.database.run(store.all_of, [DeploymentState.PLANNED])
    assert [record.service_name for record in planned] == ["one"]
    assert await desk.database.run(store.all_of, [DeploymentState.READY]) == []
    assert planned[0].backends[0].part.state is BackendState.PLANNED


def test_a_key_is_made_once(tmp_path):
    first = Keyring(tmp_path / "keys").key("one", KeyUse.ENGINE)
    assert Keyring(tmp_path / "keys").key("one", KeyUse.ENGINE) == first
    assert Keyring(tmp_path / "keys").key("one", KeyUse.ADMIN) != first
    assert Keyring(tmp_path / "keys").key("two", KeyUse.ENGINE) != first
    assert sorted(path.name for path in (tmp_path / "keys" / "one").iterdir()) == ["admin", "engine"]
    assert Keyring(tmp_path / "keys").names() == ["one", "two"]
    assert first.get_secret_value() not in repr(first)


async def test_the_router_learns_of_a_backend_and_of_nobodys_secret_but_its_own(desk, tmp_path):
    await desk.submit()
    await desk.steps(DeploymentState.READY)
    table = desk.table()
    (entry,) = table["backends"]
    assert (entry["name"], entry["market"]) == ("serverless", "serverless")
    assert entry["headers"] == {"Authorization": f"Bearer {KEY}"}
    assert table["keys"] == [(tmp_path / "keys" / "one" / "endpoint").read_text().strip()]
    pushes = desk.routers.calls.count("push")
    for _ in range(3):
        await desk.step()
    assert desk.routers.calls.count("push") == pushes  # what has not changed is not pushed


async def test_a_router_that_died_is_started_again_and_told_all(desk):
    await desk.submit()
    await desk.steps(DeploymentState.READY)
    desk.routers.running.clear()
    states = {(await desk.step()).state for _ in range(4)}
    assert DeploymentState.READY in states
    assert desk.routers.starts == 2
    assert [entry["name"] for entry in desk.table()["backends"]] == ["serverless"]


async def test_a_push_that_fails_is_reported_and_tried_again(desk):
    await desk.submit()
    desk.routers.faults["push"] = Retryable("no answer", code="provider_unavailable")
    for _ in range(4):
        record = await desk.step()
    assert record.router.part.reason == "no answer"
    del desk.routers.faults["push"]
    await desk.step()
    assert [entry["name"] for entry in desk.table()["backends"]] == ["serverless"]
    record = await desk.step()
    assert record.router.part.reason is None


async def test_a_rotated_key_leaves_the_old_one_its_time(desk):
    await desk.submit()
    await desk.steps(DeploymentState.READY)
    (old,) = desk.table()["keys"]
    new = desk.hands.keyring.rotate("one").get_secret_value()
    until = desk.hands.clock.now() + 1.5 * lifecycle.LONGEST_BACKOFF_S
    await desk.database.run(store.keep_old_key, "one", until=until, now=0.0)
    await desk.step()
    assert desk.table()["keys"] == [new, old]
    await desk.step()
    assert desk.table()["keys"] == [new]
    assert desk.hands.keyring.old_endpoint_key("one") is None
    assert (await desk.record()).old_key_until is None


async def test_a_public_endpoint_asks_for_no_key(desk):
    await desk.submit(SPEC.model_copy(update={"public": True}))
    await desk.steps(DeploymentState.READY)
    assert "keys" not in desk.table()
    assert desk.routers.running["tandemn-one"].is_public


async def test_what_cannot_be_changed_in_place_is_refused_by_its_flag(desk):
    await desk.submit()
    await desk.steps(DeploymentState.READY)
    with pytest.raises(Conflict, match="--public") as caught:
        await desk.submit(SPEC.model_copy(update={"public": True}), is_update=True)
    assert caught.value.code == "replacement_needed"
    with pytest.raises(NotFound):
        await desk.submit(SPEC.model_copy(update={"service_name": "two"}), is_update=True)


async def test_what_did_not_start_is_deleted_and_made_again_by_the_same_deploy(desk):
    await desk.submit()
    await desk.steps(DeploymentState.READY)
    record = await desk.record()
    part = replace(record.backends[0].part, state=BackendState.FAILED, code=lifecycle.STARTUP_FAILED)
    await desk.database.run(store.write, "one", record.backends[0], part, now=0.0)
    record = await desk.steps(DeploymentState.FAILED)
    record = await desk.step()
    assert desk.fake.left() == []
    assert record.backends[0].part.code == lifecycle.STARTUP_FAILED
    await desk.submit()
    await desk.steps(DeploymentState.READY)
    assert desk.fake.left() == ["tandemn-one"]


async def test_what_did_not_start_is_deleted_with_its_last_words_kept(desk, monkeypatch):
    async def logs(_remote, lines):
        return ["starting", "CUDA out of memory"][-lines:]

    monkeypatch.setattr(desk.provider, "logs", logs)  # RunPod keeps its workers' logs for its console
    await desk.submit()
    await desk.steps(DeploymentState.READY)
    desk.fake.unhealthy = 2
    for _ in range(lifecycle.FAILED_LOOKS + 3):
        record = await desk.step()
    assert desk.fake.left() == []
    part = record.backends[0].part
    assert (part.state, part.code) == (BackendState.DELETED, lifecycle.STARTUP_FAILED)
    assert part.reason == "2 workers are unhealthy; its last words: starting | CUDA out of memory"


async def test_what_a_create_left_that_failed_for_good_is_removed(desk):
    """Its answer was lost, and then the account was: it exists, bills, and nobody wrote its id down."""
    await desk.submit()
    desk.fake.faults.arm(Fault.LOST, call="POST serverless")
    await desk.step()
    assert desk.fake.left() == ["tandemn-one"]
    desk.fake.faults.arm(Fault.PERMISSION)
    record = await desk.steps(DeploymentState.FAILED)
    assert record.backends[0].part.code == "provider_permission"
    desk.fake.faults.disarm()
    for _ in range(3):
        record = await desk.step()
    assert desk.fake.left() == []
    part = record.backends[0].part
    assert (part.state, part.code) == (BackendState.DELETED, "provider_permission")
    assert record.state is DeploymentState.FAILED
    await desk.submit()
    await desk.steps(DeploymentState.READY)


async def test_every_change_is_an_event(desk):
    await desk.submit()
    await desk.steps(DeploymentState.READY)
    await desk.destroy()
    await desk.steps(DeploymentState.DELETED)
    found = await desk.database.run(events.of_deployment, "one", after=0, limit=100)
    kinds = {each.kind for each in found}
    assert kinds >= {"deployment_submitted", "backend_state", "router_state", "table_pushed"}
    states = [each.data["state"] for each in found if each.kind == "deployment_state"]
    assert (states[-3:], found[-1].service_name) == (["ready", "deleting", "deleted"], "one")
    assert KEY not in repr(found)


async def test_over_budget_it_drains_before_its_backends_go_and_its_name_is_free_again(desk):
    await desk.submit()
    await desk.steps(DeploymentState.READY)
    clock, routers = desk.hands.clock, desk.routers
    over = store.begin_over_budget
    await desk.database.run(over, "one", "the budget of $1.00 is used up", now=clock.now())
    await desk.database.run(over, "one", "again", now=clock.now() + 1)
    record = await desk.record()
    assert (record.state, record.over_budget_reason) == (
        DeploymentState.DELETING,
        "the budget of $1.00 is used up",
    )
    # The router lets requests finish, and takes its time: until then the backend stays.
    routers.faults["delete"] = Retryable("it still answers", code="provider_unavailable")
    await reconciler.move(desk.hands, "one", "router")
    await reconciler.move(desk.hands, "one", "serverless")
    assert desk.fake.left()
    clock.advance(lifecycle.DRAIN_S)
    await reconciler.move(desk.hands, "one", "serverless")
    assert not desk.fake.left()
    routers.faults.clear()
    record = await desk.steps(DeploymentState.OVER_BUDGET)
    assert not desk.left()
    logged = await desk.database.run(events.of_deployment, "one", after=0, limit=100)
    assert [each.data["reason"] for each in logged if each.kind == "budget_reached"] == [
        "the budget of $1.00 is used up"
    ]
    assert (await desk.submit()).state is DeploymentState.PLANNED


async def test_the_keeper_ends_what_has_spent_its_budget_and_nothing_else(desk):
    clock = desk.hands.clock
    spec = SPEC.model_copy(update={"budget_usd": Decimal(1)})
    await desk.submit(spec)
    await desk.steps(DeploymentState.READY)
    keeper = BudgetKeeper(desk.database, clock, Pulse())
    await keeper.look()
    assert not (await desk.record()).is_deleting
    # A dollar of RunPod's L4 is an hour and a half; busy from the beginning on.
    life = Life(service_name="one", created_at=0.0)
    page = MeterPage(
        series="a",
        backends=[],
        periods=[PeriodRead(backend="serverless", start=0.0, end=7200.0, peak=1)],
        next=2,
        complete_from=0,
        under_way=[],
    )
    await desk.database.run(meters.take, life, page, since=0, now=7200.0)
    clock.advance(7200.0)
    await keeper.look()
    record = await desk.record()
    assert record.is_deleting
    assert "the budget of $1.00 is used up" in str(record.over_budget_reason)


async def test_a_router_that_was_started_again_is_told_the_table_of_now(desk):
    """A machine takes minutes to start: the table of the moment when it was asked for may be an old one, by then."""
    await desk.submit()
    await desk.steps(DeploymentState.READY)
    del desk.routers.running["tandemn-one"]
    desk.routers.calls.clear()
    for _ in range(4):
        await desk.step()
    after = desk.routers.calls[desk.routers.calls.index("ensure") :]
    assert after.count("push") == 1
