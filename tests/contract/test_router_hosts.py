"""The suite of hosts of routers, on this machine's: a real router as a process that outlives whoever started it."""

import asyncio
import json
import signal
import socket
from contextlib import closing
from decimal import Decimal

import aiohttp
import psutil
import pytest

from tandemn.errors import NotFound, Retryable
from tandemn.protocol.deployments import BackendState
from tandemn.serving.providers import local_router
from tandemn.serving.providers.adapters import open_host
from tandemn.serving.providers.local_router import LocalRouters
from tandemn.serving.router_host import LOCAL_HOST, RouterPlan, RouterSetup
from tandemn.serving.spec import spec_from_flags
from tandemn.settings import Settings

SPEC = spec_from_flags({"model": "demo/tiny", "gpu": "cpu", "service_name": "one"}, cloud="local")
ADMIN, KEY = "sk-admin-not-to-be-shown", "sk-client-not-to-be-shown"


def setup(*names, keys=(KEY,), admin=ADMIN):
    backends = [{"name": name, "market": "serverless", "url": "http://127.0.0.1:9"} for name in names]
    table = {"version": 1, "backends": backends} | ({"keys": list(keys)} if keys else {})
    return RouterSetup(table=json.dumps(table).encode(), admin_key=admin)


async def names_of(url):
    """The backends that the router has, as its health tells."""
    headers = {"Authorization": f"Bearer {ADMIN}"}
    async with aiohttp.ClientSession() as http, http.get(f"{url}/router/health", headers=headers) as answer:
        return [each["name"] for each in (await answer.json())["backends"]]


async def asked(url, key):
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession() as http, http.get(f"{url}/v1/models", headers=headers) as answer:
        return answer.status


async def becomes(host, remote, state):
    async with asyncio.timeout(60):
        while (status := await host.status(remote)).state is not state:
            await asyncio.sleep(0.02)
    return status


async def is_reaped(pid):
    """It has let its lock go, which is its end for us; its starter's thread asks for its status a moment later."""
    async with asyncio.timeout(10):
        while psutil.pid_exists(pid):
            await asyncio.sleep(0.01)


@pytest.fixture
def home(tmp_path, monkeypatch):
    # What clients of some other router show must not become this one's.
    monkeypatch.setenv("TANDEMN_ROUTER_KEY", "sk-of-another")
    return tmp_path


@pytest.fixture
async def host(home):
    host = LocalRouters(Settings(home=home))
    yield host
    async with asyncio.timeout(60):
        for remote in await host.find():
            while not await host.delete(remote.remote_name):
                pass
    await host.close()


@pytest.fixture
def plan(host):
    return host.plan(SPEC)


def test_it_is_found_and_its_plan_is_json():
    host = open_host(LOCAL_HOST)
    plan = host.plan(SPEC)
    assert (plan.host, plan.remote_name, plan.usd_per_hour) == (LOCAL_HOST, "tandemn-one", Decimal(0))
    assert RouterPlan.from_json(json.loads(json.dumps(plan.as_json()))) == plan


async def test_its_life(host, home, plan):
    assert (await host.check()).provider == host.name
    remote = await host.ensure(plan, setup("a"))
    status = await becomes(host, remote, BackendState.READY)
    assert status.url == remote.url
    assert await names_of(remote.url) == ["a"]
    assert [await asked(remote.url, key) for key in (None, "sk-of-another", KEY)] == [401, 401, 502]
    secret_files = [path for path in (home / "routers" / "tandemn-one").iterdir() if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in secret_files} == {0o600}
    line = " ".join(psutil.Process(status.pid).cmdline())
    assert ADMIN not in line
    assert KEY not in line

    await host.push(remote, setup("a", "b", keys=()))
    assert await names_of(remote.url) == ["a", "b"]
    assert await asked(remote.url, None) == 502

    # Another control plane finds it, whoever started it.
    other = LocalRouters(Settings(home=home))
    assert await other.find() == [remote]
    assert await other.ensure(plan, setup("c")) == remote
    assert (await other.status(remote)).pid == status.pid
    assert await names_of(remote.url) == ["c"]
    await other.close()

    assert await host.delete("tandemn-one")
    await is_reaped(status.pid)
    assert (await host.status(remote)).state is BackendState.DELETED
    assert await host.find() == []
    assert await host.delete("tandemn-one")
    with pytest.raises(NotFound):
        await host.push(remote, setup("a"))


async def test_one_that_died_comes_back_at_the_same_place_with_its_last_table(host, plan):
    remote = await host.ensure(plan, setup("a"))
    status = await becomes(host, remote, BackendState.READY)
    await host.push(remote, setup("b"))
    psutil.Process(status.pid).kill()
    await becomes(host, remote, BackendState.DELETED)
    with pytest.raises(NotFound):
        await host.push(remote, setup("c"))
    assert host._folder("tandemn-one").start()
    again = await becomes(host, remote, BackendState.READY)
    assert again.pid != status.pid
    assert again.url == status.url
    assert await names_of(remote.url) == ["b"]


async def test_another_admin_key_is_taken_by_starting_it_again(host, plan):
    remote = await host.ensure(plan, setup("a", admin="sk-former"))
    former = await becomes(host, remote, BackendState.READY)
    with pytest.raises(Retryable) as caught:
        await host.ensure(plan, setup("b"))
    assert ADMIN not in str(caught.value)
    await becomes(host, remote, BackendState.DELETED)
    await host.ensure(plan, setup("b"))
    assert (await becomes(host, remote, BackendState.READY)).pid != former.pid
    assert await names_of(remote.url) == ["b"]


async def test_ports_that_are_taken_are_passed_over(home):
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        first = taken.getsockname()[1]
        host = LocalRouters(Settings(home=home, local_router_port=first))
        folder = host._folder("tandemn-one")
        record = folder.want(setup("a").table, ADMIN)
        assert record.port > first
        # One that is not up yet has its port all the same.
        other = host._folder("tandemn-two").want(setup("a").table, ADMIN)
        assert other.port > record.port
        assert folder.want(setup("b").table, ADMIN) == record
        for each in (folder, host._folder("tandemn-two")):
            each.forget()


async def test_one_whose_port_another_router_took_is_not_up(host, plan, tmp_path):
    remote = await host.ensure(plan, setup("a"))
    await becomes(host, remote, BackendState.READY)
    neighbour = LocalRouters(Settings(home=tmp_path / "neighbour"))
    try:
        other = await neighbour.ensure(plan, setup("b", admin="sk-neighbours"))
        await becomes(neighbour, other, BackendState.READY)
        # As after two state folders saw one port free at the same moment.
        folder = host._folder("tandemn-one")
        record = folder.record().model_copy(update={"port": int(str(other.url).rpartition(":")[2])})
        (folder.path / "router.json").write_text(record.model_dump_json())
        assert (await host.status(remote)).state is BackendState.PROVISIONING
    finally:
        while not await neighbour.delete("tandemn-one"):
            pass
        await neighbour.close()


async def test_one_that_has_not_ended_yet_is_not_gone(host, plan, monkeypatch):
    monkeypatch.setattr(local_router, "STOP_S", 0.2)
    remote = await host.ensure(plan, setup("a"))
    status = await becomes(host, remote, BackendState.READY)
    psutil.Process(status.pid).suspend()
    assert not await host.delete("tandemn-one")
    assert [each.remote_name for each in await host.find()] == ["tandemn-one"]
    psutil.Process(status.pid).send_signal(signal.SIGCONT)
    async with asyncio.timeout(30):
        while not await host.delete("tandemn-one"):
            pass
    await is_reaped(status.pid)
