"""The fleet process of a local deployment: real engines, real kills, nobody else's help."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import asynccontextmanager

import aiohttp
import psutil
import pytest

from tandemn.protocol.deployments import BackendState
from tandemn.protocol.replicas import Market
from tandemn.serving.local.folder import fleet_folder
from tandemn.serving.local.lifetimes import LifetimeLog
from tandemn.serving.providers.local import Local
from tandemn.serving.providers.local_router import LocalRouters
from tandemn.serving.providers.provider import Secrets
from tandemn.serving.router_host import RouterSetup
from tandemn.serving.scaling import read_policy
from tandemn.serving.spec import spec_from_flags
from tandemn.settings import Settings

NAME = "tandemn-one"
SECRETS = Secrets(engine_api_key="sk-engine")
#: Nothing here takes longer, however busy the machine is.
PATIENCE_S = 90.0


class Fleet:
    """Both backends of one deployment, driven as the control plane does."""

    def __init__(self, home, policy, args):
        settings = Settings(home=home, local_engine="simulated", local_usd_per_hour=36)
        self.home, self.args = home, args
        self.policy = read_policy(policy.encode())
        self.spot, self.serverless = Local(Market.SPOT, settings), Local(Market.SERVERLESS, settings)
        self.folder = fleet_folder(home, NAME)
        self.session = aiohttp.ClientSession(headers={"Authorization": f"Bearer {SECRETS.engine_api_key}"})
        self.urls = {}

    async def ensure(self, *args):
        self.args = args or self.args
        spec = spec_from_flags(
            {"model": "m", "gpu": "cpu", "service_name": "one", "engine_args": self.args},
            policy=self.policy,
            cloud="local",
        )
        for provider in (self.spot, self.serverless):
            self.remote = await provider.ensure(provider.plan(spec), SECRETS)
        for provider in (self.spot, self.serverless):
            self.urls[provider] = (await self.until(provider, lambda seen: seen.url)).url

    async def until(self, provider, condition):
        """Wait until what the provider tells is so."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition(seen := await provider.status(self.remote)):
                await asyncio.sleep(0.02)
        return seen

    async def ready(self, provider, count=1):
        return living(await self.until(provider, lambda seen: seen.replicas == count))

    async def ask(self, provider, *, tokens=4, stream=False, prompt="hi"):
        body = {"model": "m", "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "stream": stream}
        async with self.session.post(f"{self.urls[provider]}/v1/completions", json=body) as answer:
            return answer.status, await answer.read()

    def processes(self):
        """Every process of this state folder."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("TANDEMN_HOME") == str(self.home) and process.pid != os.getpid():
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def process(self):
        return next(each for each in self.processes() if "tandemn.serving.local" in each.cmdline())

    async def close(self):
        async with asyncio.timeout(PATIENCE_S):
            for provider in (self.spot, self.serverless):
                while not await provider.delete(NAME):
                    pass
        await self.session.close()
        assert self.processes() == []


@asynccontextmanager
async def deployed(home, policy, *args):
    fleet = Fleet(home, policy, args)
    try:
        await fleet.ensure()
        yield fleet
    finally:
        await fleet.close()


def living(status):
    """The replicas that run; those that ended lately are told of, too."""
    return [each for each in status.seen if each.ended is None]


async def settle(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.02)


async def test_serverless_starts_what_requests_need_and_ends_it_when_they_do_not(tmp_path):
    policy = "serverless: {concurrency: 2, scaledown_window: 1}\nspot: {upscale_delay: 86400}"
    async with deployed(tmp_path, policy, "--decode-step-s", "0.02") as fleet:
        answers = await asyncio.gather(*(fleet.ask(fleet.serverless, tokens=20) for _ in range(5)))
        assert [status for status, _ in answers] == [200] * 5
        await fleet.until(fleet.serverless, lambda seen: seen.state is BackendState.IDLE and not living(seen))
        lives = list(LifetimeLog(fleet.folder.lifetimes).read())
        assert 1 <= len(lives) <= 3
        assert {each.market for each in lives} == {Market.SERVERLESS}
        usage = await fleet.serverless.usage(fleet.remote, 0, 4e9)
        assert usage.replica_seconds == pytest.approx(sum(each.seconds(0, 4e9) for each in lives))
        assert (usage.usd, usage.source) == (0, "metered")
        assert (await fleet.ask(fleet.serverless))[0] == 200, "from zero again"


async def test_a_killed_fleet_takes_its_engines_along_and_the_next_one_goes_on(tmp_path):
    policy = "spot: {min_replicas: 2}"
    async with deployed(tmp_path, policy) as fleet:
        await fleet.ready(fleet.spot, 2)
        assert (await fleet.ask(fleet.spot))[0] == 200
        fleet.process().kill()
        await settle(lambda: not fleet.processes())
        assert (await fleet.spot.status(fleet.remote)).state is BackendState.DELETED
        before = dict(fleet.urls)
        # As after a crash of the machine's: some time passes.
        process = json.loads((fleet.folder.path / "process.json").read_text())
        (fleet.folder.path / "process.json").write_text(json.dumps(process | {"started": 0}))
        await fleet.ensure()
        assert fleet.urls == before, "the router's table is still right"
        await fleet.ready(fleet.spot, 2)
        lives = list(LifetimeLog(fleet.folder.lifetimes).read())
        assert [each.why for each in lives] == ["its fleet process died"] * 2 + ["", ""]
        assert [each.ended for each in lives[2:]] == [None, None]
        usage = await fleet.spot.usage(fleet.remote, lives[0].began, lives[0].ended)
        assert usage.usd > 0


async def test_spot_is_replaced_when_it_is_killed_and_finishes_when_it_has_notice(tmp_path):
    policy = "spot: {min_replicas: 2}"
    async with deployed(tmp_path, policy, "--decode-step-s", "0.05") as fleet:
        first, second = await fleet.ready(fleet.spot, 2)
        streams = [asyncio.create_task(fleet.ask(fleet.spot, tokens=60, stream=True)) for _ in range(4)]
        busy = lambda: sum(r.inflight for r in fleet.folder.report().backends[Market.SPOT].replicas)  # noqa: E731
        await settle(lambda: busy() == 4)
        (fleet.folder.notices).mkdir()
        (fleet.folder.notices / first.replica_id).touch()
        answers = await asyncio.gather(*streams)
        assert all(body.endswith(b"data: [DONE]\n\n") for _, body in answers)
        replaced = await fleet.until(
            fleet.spot,
            lambda seen: seen.replicas == 2 and first.replica_id not in {r.replica_id for r in living(seen)},
        )
        os.kill(second.pid, signal.SIGKILL)
        await fleet.until(
            fleet.spot,
            lambda seen: seen.replicas == 2 and second.replica_id not in {r.replica_id for r in living(seen)},
        )
        ids = {each.replica_id for each in living(replaced)}
        assert first.replica_id not in ids
        whys = {each.replica_id: each.why for each in LifetimeLog(fleet.folder.lifetimes).read()}
        assert whys[first.replica_id] == "it was preempted, with notice"
        assert whys[second.replica_id] == "ended unasked with status 137"


async def test_an_engine_that_does_not_start_is_reported_and_does_not_let_requests_wait(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("TANDEMN_LOCAL_SPEED", "10")
    async with deployed(tmp_path, "spot: {upscale_delay: 86400}", "--fail-load") as fleet:
        status, body = await fleet.ask(fleet.serverless)
        assert status == 503
        assert json.loads(body)["error"]["code"] == "startup_failed"
        seen = await fleet.until(fleet.serverless, lambda seen: seen.state is BackendState.FAILED)
        assert "as told by --fail-load" in seen.reason
        await fleet.ensure("--slots", "8")
        assert (await fleet.ask(fleet.serverless))[0] == 200


async def test_another_engine_comes_without_an_outage(tmp_path):
    async with deployed(tmp_path, "spot: {min_replicas: 1, max_replicas: 1}", "--seed", "1") as fleet:
        await fleet.ready(fleet.spot)
        former = (await fleet.ask(fleet.spot))[1]
        statuses = []

        async def ask_on():
            while True:
                statuses.append((await fleet.ask(fleet.spot))[0])

        asking = asyncio.create_task(ask_on())
        await fleet.ensure("--seed", "2")
        text = lambda body: json.loads(body)["choices"][0]["text"]  # noqa: E731
        async with asyncio.timeout(PATIENCE_S):
            while text((await fleet.ask(fleet.spot))[1]) == text(former):
                await asyncio.sleep(0.05)
        asking.cancel()
        assert set(statuses) == {200}
        await fleet.until(fleet.spot, lambda seen: len(living(seen)) == 1)


async def test_a_dead_router_is_started_again_by_the_fleet(tmp_path):
    async with deployed(tmp_path, ""):
        host = LocalRouters(Settings(home=tmp_path))
        spec = spec_from_flags({"model": "m", "gpu": "cpu", "service_name": "one"}, cloud="local")
        setup = RouterSetup(table=b'{"version": 1, "backends": []}', admin_key="sk-admin")
        remote = await host.ensure(host.plan(spec), setup)

        async def pid():
            async with asyncio.timeout(PATIENCE_S):
                while (seen := await host.status(remote)).state is not BackendState.READY:
                    await asyncio.sleep(0.02)
            return seen.pid

        first = await pid()
        os.kill(first, signal.SIGKILL)
        await settle(lambda: not psutil.pid_exists(first))
        assert await pid() != first
        async with asyncio.timeout(PATIENCE_S):
            while not await host.delete(NAME):
                pass
        await host.close()
        await asyncio.sleep(1)
        assert await host.find() == [], "one that is not wanted stays away"


async def test_a_faster_clock_makes_a_day_of_a_policy_short(tmp_path, monkeypatch):
    monkeypatch.setenv("TANDEMN_LOCAL_SPEED", "600")
    policy = "spot: {upscale_delay: 300, downscale_delay: 1200}\nserverless: {scaledown_window: 600}"
    async with deployed(tmp_path, policy) as fleet:
        async with asyncio.timeout(PATIENCE_S):
            # Until it is up it is needed: a boot takes longer than these delays.
            while not (await fleet.spot.status(fleet.remote)).replicas:
                assert (await fleet.ask(fleet.serverless))[0] == 200
                await asyncio.sleep(0.05)
        for provider in (fleet.spot, fleet.serverless):
            await fleet.until(provider, lambda seen: seen.state is BackendState.IDLE)
        await settle(
            lambda: all(each.ended is not None for each in LifetimeLog(fleet.folder.lifetimes).read())
        )
        read = LifetimeLog(fleet.folder.lifetimes).read()
        lives = {each.market: each.seconds(0, each.ended or 0) for each in read}
        assert lives[Market.SERVERLESS] > 600
        assert lives[Market.SPOT] > 1200
