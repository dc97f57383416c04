"""One suite for every provider: the real SDK against a fake on the wire, with a fault at every call in turn.

This machine is a provider, too: there the calls are the disk's and the process table's, and what they do is real.
"""

import asyncio
import json
import signal
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import grpc
import pytest
from aiohttp import web
from tests.fakes.local_machine import LocalMachine
from tests.fakes.remote_faults import Fault
from tests.fakes.runpod_api import KEY, RunPodApi

from tandemn.errors import Conflict, InvalidInput, NotFound, QuotaExceeded, Retryable, TandemnError
from tandemn.protocol.deployments import BackendState
from tandemn.protocol.replicas import Market
from tandemn.serving.providers import local as local_provider
from tandemn.serving.providers.adapters import providers
from tandemn.serving.providers.local import Local
from tandemn.serving.providers.provider import Provider, Remote, Secrets
from tandemn.serving.providers.runpod import RunPod
from tandemn.serving.spec import spec_from_flags
from tandemn.settings import Settings

REMOTE_NAMES = ["modal", "runpod", "cloudrun"]
LOCAL_NAMES = ["local", "local-spot"]
NAMES = [*REMOTE_NAMES, *LOCAL_NAMES]
SECRETS = Secrets(engine_api_key="sk-engine-not-to-be-shown", hf_token="hf_not-to-be-shown")
SPEC = spec_from_flags({"model": "Qwen/Qwen3-0.6B", "gpu": "L4", "service_name": "one"})
LOCAL_SPEC = spec_from_flags({"model": "demo/tiny", "gpu": "cpu", "service_name": "one"}, cloud="local")
REMOTE = "tandemn-one"
#: Longer than any answer of a fake takes; a silent one is waited for so long.
CALL_S = 3.0


@dataclass
class Rig:
    provider: Provider
    fake: Any

    @property
    def is_local(self):
        return isinstance(self.provider, Local)

    @property
    def spec(self):
        return LOCAL_SPEC if self.is_local else SPEC

    @property
    def plan(self):
        return self.provider.plan(self.spec)

    async def ensure(self) -> Remote:
        return await self.provider.ensure(self.plan, SECRETS)

    async def delete(self) -> bool:
        return await self.provider.delete(REMOTE, self.plan.place)

    async def remove(self) -> None:
        """Delete as the lifecycle does: again, until the provider says that it is gone."""
        self.fake.faults.disarm()
        for _ in range(5):
            if await self.delete():
                return
        raise AssertionError(f"still there: {self.fake.left()}")


@pytest.fixture(scope="session")
def modal_api(tmp_path_factory):
    from tests.fakes.modal_api import TOKEN_ID, TOKEN_SECRET, ModalApi

    fake = ModalApi()
    with pytest.MonkeyPatch.context() as patch:
        # The SDK reads its file when it is imported, and its client is one for the process.
        patch.setenv("MODAL_CONFIG_PATH", str(tmp_path_factory.mktemp("modal") / "none.toml"))
        patch.setenv("MODAL_TOKEN_ID", TOKEN_ID)
        patch.setenv("MODAL_TOKEN_SECRET", TOKEN_SECRET)
        patch.setenv("MODAL_SERVER_URL", fake.start())
        yield fake
        fake.stop()


@pytest.fixture(params=NAMES)
async def rig(request, tmp_path, monkeypatch):
    if request.param == "modal":
        from tandemn.serving.providers.modal import Modal

        fake = request.getfixturevalue("modal_api")
        fake.reset()
        opened = Modal.open()
        opened._call_s = CALL_S
        yield Rig(opened, fake)
        await opened.close()
    elif request.param in LOCAL_NAMES:
        market = Market.SPOT if request.param == "local-spot" else Market.SERVERLESS
        fake = LocalMachine(tmp_path, market)
        local = Local(market, Settings(home=tmp_path), call_s=CALL_S)
        monkeypatch.setattr(local, "_folder", fake.folder)
        yield Rig(local, fake)
        fake.faults.disarm()
        fake.release()
        for remote in await local.find():
            assert await local.delete(remote.remote_name)
    elif request.param == "runpod":
        fake = RunPodApi()
        runner = web.AppRunner(fake.app(), shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        provider = RunPod(KEY, f"http://127.0.0.1:{port}/v2", call_s=CALL_S)
        yield Rig(provider, fake)
        await provider.close()
        await runner.cleanup()
    else:
        from google.cloud import run_v2
        from google.cloud.run_v2.services.services.transports import ServicesGrpcAsyncIOTransport
        from tests.fakes.cloudrun_api import CloudRunApi

        from tandemn.serving.providers.cloudrun import CloudRun

        fake = CloudRunApi()
        channel = grpc.aio.insecure_channel(await fake.start())
        client = run_v2.ServicesAsyncClient(transport=ServicesGrpcAsyncIOTransport(channel=channel))
        cloudrun = CloudRun(run_v2, client, project="project", call_s=CALL_S)
        yield Rig(cloudrun, fake)
        await cloudrun.close()
        await fake.stop()


async def becomes(rig, remote, state):
    """Wait until the provider says so, which those far away do at once."""
    async with asyncio.timeout(60):
        while (status := await rig.provider.status(remote)).state is not state:
            assert rig.is_local, status
            await asyncio.sleep(0.05)
    return status


def test_every_provider_is_here():
    assert set(NAMES) <= set(providers())


async def test_deploy_status_scale_destroy(rig):
    assert (await rig.provider.check()).provider == rig.provider.name
    remote = await rig.ensure()
    assert Remote.from_json(json.loads(json.dumps(remote.as_json()))) == remote
    assert rig.fake.left() == [REMOTE]
    status = await becomes(rig, remote, BackendState.IDLE)
    assert status.url
    assert status.url.startswith("http://127.0.0.1:" if rig.is_local else "https://")
    await rig.provider.scale(remote, 1)
    if rig.provider.name != "cloudrun":  # there only metrics tell
        assert (await becomes(rig, remote, BackendState.READY)).replicas == 1
    assert await rig.delete()
    assert rig.fake.left() == []
    assert (await rig.provider.status(remote)).state is BackendState.DELETED


async def test_ensure_twice_makes_one(rig):
    first = await rig.ensure()
    assert (await rig.ensure()).remote_id == first.remote_id
    assert rig.fake.left() == [REMOTE]


async def test_delete_of_what_is_not_there_is_done(rig):
    assert await rig.delete()


async def test_find_knows_its_own_and_no_other(rig):
    await rig.ensure()
    other = rig.provider.plan(rig.spec.model_copy(update={"service_name": "two"}))
    await rig.provider.ensure(other, SECRETS)
    assert [each.remote_name for each in await rig.provider.find(REMOTE)] == [REMOTE]
    assert sorted(each.remote_name for each in await rig.provider.find()) == [REMOTE, "tandemn-two"]
    assert await rig.delete()
    assert rig.fake.left() == ["tandemn-two"]


async def test_secrets_reach_the_backend_and_nothing_else(rig):
    remote = await rig.ensure()
    (header,) = rig.provider.auth(SECRETS).values()
    if rig.is_local:
        order = rig.fake.folder(REMOTE).path / f"{rig.provider.market}.json"
        assert order.stat().st_mode & 0o777 == 0o600
        assert all(secret in order.read_text() for secret in SECRETS.values())
        environment = {"VLLM_API_KEY": SECRETS.engine_api_key}
    else:
        environment = rig.fake.environment_of(REMOTE)
        assert environment["HF_TOKEN"] == SECRETS.hf_token
    if rig.provider.name == "runpod":  # its gateway asks for its own key
        assert header == f"Bearer {KEY}"
    else:
        assert header == f"Bearer {environment['VLLM_API_KEY']}"
    shown = repr(rig.plan) + repr(SECRETS) + repr(remote.as_json())
    assert not any(secret in shown for secret in (*SECRETS.values(), KEY))


#: What the caller learns. Modal says the same for a quota and for a lack of GPUs.
MEANINGS: dict[Fault, tuple[type[TandemnError], str]] = {
    Fault.BROKEN: (Retryable, "provider_unavailable"),
    Fault.CREDENTIALS: (InvalidInput, "provider_credentials"),
    Fault.PERMISSION: (InvalidInput, "provider_permission"),
    Fault.QUOTA: (QuotaExceeded, "quota_exceeded"),
    Fault.CONFLICT: (Conflict, "provider_conflict"),
    Fault.REFUSED: (InvalidInput, "provider_refused"),
}
#: A machine asks nobody's leave but the kernel's.
LOCAL_MEANINGS = [Fault.BROKEN, Fault.PERMISSION, Fault.QUOTA]
REFUSALS = [(name, fault) for name in REMOTE_NAMES for fault in MEANINGS]
REFUSALS += [(name, fault) for name in LOCAL_NAMES for fault in LOCAL_MEANINGS]
CREATE = {
    "modal": "AppPublish",
    "runpod": "POST serverless",
    "cloudrun": "CreateService",
    "local": "start",
    "local-spot": "start",
}


@pytest.mark.parametrize(("rig", "fault"), REFUSALS, indirect=["rig"])
async def test_a_refused_create_says_what_can_be_done(rig, fault):
    rig.fake.faults.arm(fault, call=CREATE[rig.provider.name])
    with pytest.raises(MEANINGS[fault][0]) as caught:
        await rig.ensure()
    assert caught.value.code == MEANINGS[fault][1]
    assert not any(secret in str(caught.value) for secret in (*SECRETS.values(), KEY))
    assert "\n" not in str(caught.value)
    await rig.remove()
    assert rig.fake.left() == []


# Modal takes every deploy and lets requests wait: it has no such answer. Nor has this machine.
@pytest.mark.parametrize("rig", [name for name in REMOTE_NAMES if name != "modal"], indirect=True)
async def test_no_capacity_sends_the_caller_to_the_next_offer(rig):
    rig.fake.faults.arm(Fault.CAPACITY, call=CREATE[rig.provider.name])
    with pytest.raises(TandemnError) as caught:
        await rig.ensure()
    assert caught.value.code == "no_capacity"


async def calls_of(rig, act) -> list[str]:
    """Run it once without faults and return the calls that it made."""
    rig.fake.faults.disarm()
    await act()
    calls = list(rig.fake.faults.calls)
    assert calls
    return calls


@pytest.mark.parametrize("fault", [Fault.BROKEN, Fault.CREDENTIALS, Fault.NOT_FOUND])
async def test_a_fault_at_every_call_of_a_deploy_leaves_nothing_after_destroy(rig, fault):
    calls = await calls_of(rig, rig.ensure)
    await rig.remove()
    struck = 0
    for place in range(len(calls)):
        rig.fake.faults.arm(fault, place=place)
        try:
            await rig.ensure()
        except TandemnError:
            struck += 1
        await rig.remove()
        assert rig.fake.left() == [], f"{fault} at {calls[place]}"
    assert struck


@pytest.mark.parametrize("fault", [Fault.BROKEN, Fault.CREDENTIALS, Fault.CONFLICT])
async def test_a_fault_at_every_call_of_a_destroy_is_never_taken_for_gone(rig, fault):
    await rig.ensure()
    calls = await calls_of(rig, rig.delete)
    for place in range(len(calls)):
        rig.fake.faults.disarm()
        await rig.ensure()
        rig.fake.faults.arm(fault, place=place)
        try:
            is_gone = await rig.delete()
        except TandemnError:
            is_gone = False
        assert not (is_gone and rig.fake.left()), f"{fault} at {calls[place]}"
        await rig.remove()
        assert rig.fake.left() == []


async def settled(rig, task: asyncio.Future[Any]) -> None:
    if rig.is_local:
        rig.fake.release()
    done, _ = await asyncio.wait([task], timeout=10)
    assert done, "a cancelled call does not end"


async def test_an_interrupt_at_every_call_of_a_deploy_leaves_nothing_after_destroy(rig):
    """Done at the provider, and the command ends before it hears of it: Ctrl-C between create and record."""
    calls = await calls_of(rig, rig.ensure)
    await rig.remove()
    for place in range(len(calls)):
        rig.fake.faults.arm(Fault.LOST, place=place)
        task = asyncio.ensure_future(rig.ensure())
        async with asyncio.timeout(10):
            while not rig.fake.faults.struck and not task.done():
                await asyncio.sleep(0.005)
        task.cancel()
        await settled(rig, task)
        await rig.remove()
        assert rig.fake.left() == [], f"interrupted at {calls[place]}"


async def test_an_interrupted_deploy_is_continued_by_the_next(rig):
    rig.fake.faults.arm(Fault.LOST, call=CREATE[rig.provider.name])
    task = asyncio.ensure_future(rig.ensure())
    async with asyncio.timeout(10):
        while not rig.fake.faults.struck:
            await asyncio.sleep(0.005)
    task.cancel()
    await settled(rig, task)
    rig.fake.faults.disarm()
    await rig.ensure()
    assert rig.fake.left() == [REMOTE]


async def test_silence_is_a_passing_fault(rig):
    remote = await rig.ensure()
    rig.fake.faults.arm(Fault.SILENT)
    rig.provider._call_s = 0.2
    with pytest.raises(Retryable) as caught:
        await rig.provider.status(remote)
    assert caught.value.code == "provider_unavailable"


# A process on this machine that does not end is killed: see below.
@pytest.mark.parametrize("rig", REMOTE_NAMES, indirect=True)
async def test_a_slow_delete_is_done_only_when_the_provider_says_so(rig):
    await rig.ensure()
    rig.fake.slow_deletes = 2
    assert not await rig.delete()
    assert rig.fake.left() == [REMOTE]
    for _ in range(5):
        left = rig.fake.left()
        if await rig.delete():
            break
        assert left == [REMOTE]
    assert rig.fake.left() == []


@pytest.mark.parametrize("rig", LOCAL_NAMES, indirect=True)
async def test_a_process_that_does_not_end_is_killed_and_gone_only_then(rig, monkeypatch):
    monkeypatch.setattr(local_provider, "STOP_S", 0.2)
    await rig.ensure()
    rig.fake.folder(REMOTE).signal(signal.SIGSTOP)
    assert not await rig.delete()
    await rig.remove()
    assert rig.fake.left() == []


@pytest.mark.parametrize("rig", LOCAL_NAMES, indirect=True)
async def test_one_backend_of_a_process_goes_and_the_other_stays(rig):
    other = Local(
        Market.SPOT if rig.provider.market is Market.SERVERLESS else Market.SERVERLESS, rig.provider._settings
    )
    remote = await other.ensure(other.plan(LOCAL_SPEC), SECRETS)
    await rig.ensure()
    await becomes(rig, remote, BackendState.IDLE)
    assert await rig.delete()
    assert await rig.provider.find() == []
    assert (await other.status(remote)).state is BackendState.IDLE
    assert await other.delete(REMOTE)
    assert rig.fake.left() == []


async def test_scaling_what_is_gone_says_so(rig):
    remote = await rig.ensure()
    await rig.delete()
    with pytest.raises(NotFound) as caught:
        await rig.provider.scale(remote, 1)
    assert caught.value.code == "provider_not_found"


async def test_wrong_credentials_from_the_start():
    fake = RunPodApi()
    runner = web.AppRunner(fake.app(), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    provider = RunPod("wrong", f"http://127.0.0.1:{runner.addresses[0][1]}/v2", call_s=CALL_S)
    with pytest.raises(InvalidInput) as caught:
        await provider.check()
    assert (caught.value.code, caught.value.exit_code) == ("provider_credentials", 2)
    await provider.close()
    await runner.cleanup()


async def test_runpod_doubles_become_one_and_all_are_deleted():
    """Names are not unique there: a create whose answer was lost may have been sent twice."""
    fake = RunPodApi()
    runner = web.AppRunner(fake.app(), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    provider = RunPod(KEY, f"http://127.0.0.1:{runner.addresses[0][1]}/v2", call_s=CALL_S)
    body = dict(provider.plan(SPEC).request)
    for _ in range(3):
        await provider._ask("POST", "/serverless", body)
    assert fake.left() == [REMOTE] * 3
    remote = await provider.ensure(provider.plan(SPEC), SECRETS)
    assert fake.left() == [REMOTE]
    usage = await provider.usage(remote, 0, 3600)
    assert (usage.usd, usage.source) == (Decimal("1.75"), "billed")
    await provider.close()
    await runner.cleanup()
