"""Deployments on a real database and a provider on the wire, with a death at every step."""

import stat
from dataclasses import replace

import pytest
from aiohttp import web
from tests.fakes.remote_faults import Fault
from tests.fakes.runpod_api import KEY, RunPodApi

from tandemn.clock import MockClock
from tandemn.control.reconcilers import deployments as reconciler
from tandemn.control.reconcilers.deployments import Hands
from tandemn.control.store import deployments as store
from tandemn.control.store.database import Database
from tandemn.errors import Conflict, NotFound, StaleRecord
from tandemn.protocol.deployments import BackendState, DeploymentState
from tandemn.serving import lifecycle
from tandemn.serving.keyring import Keyring
from tandemn.serving.providers.runpod import RunPod
from tandemn.serving.spec import spec_from_flags

SPEC = spec_from_flags({"model": "Qwen/Qwen3-0.6B", "gpu": "L4", "service_name": "one"})


class Desk:
    def __init__(self, hands, fake, provider):
        self.hands, self.fake, self.provider, self.database = hands, fake, provider, hands.database

    def plans(self, spec=SPEC):
        return {"serverless": self.provider.plan(spec)}

    async def submit(self, spec=SPEC, **kwargs):
        return await self.database.run(store.submit, spec, self.plans(spec), now=0.0, **kwargs)

    async def destroy(self):
        return await self.database.run(store.begin_deleting, "one", now=0.0)

    async def step(self):
        self.hands.clock.advance(lifecycle.LONGEST_BACKOFF_S)
        return await reconciler.step(self.hands, "one")

    async def steps(self, until, limit=12):
        for _ in range(limit):
            record = await self.step()
            if record.state is until:
                return record
        raise AssertionError(f"still {record}")


@pytest.fixture
async def desk(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    database = Database(f"sqlite:///{tmp_path / 'state.db'}")
    database.migrate()
    fake = RunPodApi()
    runner = web.AppRunner(fake.app(), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    provider = RunPod(KEY, f"http://127.0.0.1:{runner.addresses[0][1]}/v2", call_s=3)
    hands = Hands(
        database=database,
        clock=MockClock(),
        keyring=Keyring(tmp_path / "keys"),
        provider=lambda _record, _backend: provider,
    )
    yield Desk(hands, fake, provider)
    await provider.close()
    await runner.cleanup()
    database.close()


async def test_deploy_then_destroy(desk, tmp_path):
    record = await desk.submit()
    assert record.state is DeploymentState.PLANNED
    assert any("330" in warning for warning in record.warnings)
    record = await desk.steps(DeploymentState.READY)
    (only,) = record.backends
    assert only.backend.remote.url.startswith("https://")
    key = tmp_path / "keys" / "one"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert (await desk.destroy()).state is DeploymentState.DELETING
    assert (await desk.steps(DeploymentState.DELETED)).is_deleting
    assert desk.fake.left() == []
    assert not key.exists()


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
    moved = {"serverless": replace(desk.provider.plan(SPEC), provider="modal")}
    with pytest.raises(Conflict) as caught:
        await desk.database.run(store.submit, SPEC, moved, now=0.0, is_update=True)
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
        assert "500" in record.backends[0].backend.reason
        assert desk.fake.left() == ["tandemn-one"]
    desk.fake.faults.disarm()
    await desk.steps(DeploymentState.DELETED)
    assert desk.fake.left() == []


async def test_a_create_that_cannot_be_is_failed_with_the_reason_and_tried_again_by_the_same_deploy(desk):
    await desk.submit()
    desk.fake.faults.arm(Fault.CREDENTIALS)
    record = await desk.steps(DeploymentState.FAILED)
    assert record.backends[0].backend.code == "provider_credentials"
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
    after = lifecycle.intended(stale.backend, lifecycle.Action.ENSURE)
    with pytest.raises(StaleRecord):
        await desk.database.run(store.write, "one", stale, after, now=0.0)


async def test_listing_by_state(desk):
    await desk.submit()
    planned = await desk.database.run(store.all_of, [DeploymentState.PLANNED])
    assert [record.service_name for record in planned] == ["one"]
    assert await desk.database.run(store.all_of, [DeploymentState.READY]) == []
    assert planned[0].backends[0].backend.state is BackendState.PLANNED


def test_a_key_is_made_once(tmp_path):
    first = Keyring(tmp_path / "keys").key("one")
    assert Keyring(tmp_path / "keys").key("one") == first
    assert Keyring(tmp_path / "keys").key("two") != first
    assert sorted(path.name for path in (tmp_path / "keys").iterdir()) == ["one", "two"]
    assert first.get_secret_value() not in repr(first)


async def test_one_backend_that_breaks_does_not_leave_another_half_moved(desk):
    """A fault of our own in one backend is raised only when its sibling's call has been recorded."""
    plan = desk.provider.plan(SPEC)
    plans = {"broken": replace(plan, remote_name="tandemn-other"), "serverless": plan}
    await desk.database.run(store.submit, SPEC, plans, now=0.0)

    def provider(_record, backend):
        if backend.name == "broken":
            raise RuntimeError("a bug")
        return desk.provider

    desk.hands = replace(desk.hands, provider=provider)
    with pytest.raises(RuntimeError, match="a bug"):
        await desk.step()
    record = await desk.database.run(store.get, "one")
    states = {each.backend.name: each.backend.is_ensured for each in record.backends}
    assert states == {"broken": False, "serverless": True}
