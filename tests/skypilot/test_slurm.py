"""Jobs on real SkyPilot clusters, by `make test-skypilot`: two GPU types, a preemption, an add, a swap, nothing left."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest
import yaml
from tests.ports import free_port
from tests.process import watch
from tests.process.conftest import built
from tests.process.house import House, chat_lines, read_lines
from tests.serving.providers.test_skypilot_router import FLAGS, names_of, setup
from tests.skypilot.slurm import SkyHome, Slurm, told

from tandemn.fleet.launchers.tunnels import port_of
from tandemn.protocol.deployments import BackendState
from tandemn.serving.providers import skypilot_router, skypilot_router_task
from tandemn.serving.spec import spec_from_flags
from tandemn.settings import Settings
from tandemn.skypilot.environment import SkyPilot, task

pytestmark = pytest.mark.skypilot

#: Of the simulated engine: some ten requests a second.
ENGINE = ("--slots", "8", "--decode-step-s", "0.05")
RATE = 10
#: A launch takes 40 s on a quiet machine, and minutes on a busy one.
LAUNCH_S = 900.0


class Site:
    """A control plane on loopback, SkyPilot, and Slurm."""

    def __init__(self, house: House, home: SkyHome, slurm: Slurm) -> None:
        self.house, self.home, self.slurm = house, home, slurm

    def submit(self, requests: int, *options: str) -> str:
        (self.house.home / "in.jsonl").write_text(chat_lines(requests))
        fleet = ("--slo", "4h", "--engine", "simulated", "--cloud", "slurm", "--chunk-size", "50", *options)
        return self.house.submit("any-model", "in.jsonl", *fleet, "--", *ENGINE)

    def replicas(self, job: str, state: str) -> list[str]:
        found = watch.status(self.house, job)["replicas"]
        return [each["replica_id"] for each in found if each["state"] == state]

    def wait_running(self, job: str, *names: str) -> float:
        """Wait until these replicas compute; return how long it took."""
        began = time.monotonic()
        wanted = {f"{job}-{name}" for name in names}

        def up() -> bool:
            status = watch.status(self.house, job)
            assert not status["ended_at"], status
            return wanted <= {
                each["replica_id"]
                for each in status["replicas"]
                if each["state"] == "running" and each["chunks_completed"] > 0
            }

        self.house.wait_for(up, timeout=LAUNCH_S)
        return time.monotonic() - began

    def check_answers(self, job: str, requests: int) -> None:
        done = self.house.run("download", job, "-o", f"{job}.jsonl")
        assert done.returncode == 0, done.stderr
        lines = read_lines(self.house.home / f"{job}.jsonl")
        assert [line["custom_id"] for line in lines] == [f"r{number}" for number in range(requests)]
        assert all(line["response"]["status_code"] == 200 for line in lines)

    def wait_ended(self, job: str, timeout: float):
        ends = {"completed", "failed", "cancelled", "expired", "over_budget"}
        self.house.wait_for(lambda: watch.state(self.house, job) in ends, timeout=timeout)
        status = watch.status(self.house, job)
        assert status["state"] == "completed", status
        return status


@pytest.fixture(scope="module")
def site():
    folder = Path(tempfile.mkdtemp(prefix="tdm-sky-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        slurm = Slurm(folder / "slurm")
        stack.callback(slurm.close)
        home = SkyHome(folder / "home", slurm)
        stack.callback(home.close)
        began = time.monotonic()
        home.sky("check", "slurm")
        told(f"SkyPilot's API server and `sky check`: {time.monotonic() - began:.0f} s")
        house = stack.enter_context(built(**home.environment, TANDEMN_CLOUD_LOOK_S="5"))
        yield Site(house, home, slurm)


@pytest.fixture(scope="module")
def launch_s(site) -> float:
    """How long a launch takes here and now: the first job's."""
    job = site.submit(100, "--gpu", "L40S", "--replicas", "1")
    began = time.monotonic()
    status = site.wait_ended(job, LAUNCH_S)
    took = float(status["started_at"] - status["created_at"])
    told(
        f"a job of 100 requests on a new cluster: first answer after {took:.0f} s, all after {time.monotonic() - began:.0f} s"
    )
    site.check_answers(job, 100)
    assert site.slurm.jobs() == {}
    return took


def test_a_job_lives_through_a_preemption_an_add_and_a_swap_and_leaves_nothing(site, launch_s):
    house, slurm = site.house, site.slurm
    # Long enough for three more launches, one after the other, while one replica works: they may take thrice as long
    # as the first did.
    requests = int(max(RATE * launch_s * 12, 2500))
    job = site.submit(requests, "--gpu", "L40S", "--replicas", "1")
    site.wait_running(job, "r0")

    added = house.json("add", job, "1", "--gpu", "H100")
    assert added["new"] == [f"{job}-r1"]
    took = site.wait_running(job, "r1")
    told(f"add: at work after {took:.0f} s")
    assert sorted(slurm.jobs().values()) == ["h100", "l40s"]
    shown = site.home.sky("status")
    assert f"tandemn-{job}-r0" in shown

    # The replicas' only way to the control plane: it does not listen on the port that they call.
    url = str(house.json("server", "status")["url"])
    assert int(url.rpartition(":")[2]) not in {port_of(f"{job}-r0"), port_of(f"{job}-r1")}

    # A preemption: the machine goes without a word.
    victim = next(number for number, partition in slurm.jobs().items() if partition == "l40s")
    began = time.monotonic()
    slurm.run("scancel", victim)
    house.wait_for(lambda: f"{job}-r0" in site.replicas(job, "preempted"), timeout=300)
    told(f"preemption noticed after {time.monotonic() - began:.0f} s")
    site.wait_running(job, "r2")
    told(f"preempted replica replaced, at work after {time.monotonic() - began:.0f} s")

    house.json("kill", job, "--replica", "r1")
    house.wait_for(lambda: f"{job}-r1" in site.replicas(job, "killed"), timeout=300)
    assert sorted(slurm.jobs().values()) == ["l40s"]

    swapped = house.json("swap", job, "--gpu", "H100", "--replicas", "1")
    assert swapped["new"] == [f"{job}-r3"]
    status = site.wait_ended(job, LAUNCH_S + 3 * requests / RATE)
    states = {each["replica_id"].rpartition("-")[2]: each["state"] for each in status["replicas"]}
    assert states == {"r0": "preempted", "r1": "killed", "r2": "swapped_out", "r3": "completed"}
    assert status["requests"]["completed"] == requests
    told(f"{requests} requests, {status['requests']['recomputed']} computed again")
    site.check_answers(job, requests)
    assert slurm.jobs() == {}
    assert f"tandemn-{job}" not in site.home.sky("status")


def test_a_control_plane_that_died_adopts_its_clusters_and_opens_its_tunnels_again(site, launch_s):
    job = site.submit(int(max(RATE * launch_s * 2, 1000)), "--gpu", "H100", "--replicas", "1")
    site.wait_running(job, "r0")
    watch.kill(site.house.server_pid())
    before = watch.query(
        site.house, "SELECT chunks_completed FROM replicas WHERE replica_id = ?", f"{job}-r0"
    )
    site.house.status(job)  # starts another
    site.house.wait_for(
        lambda: (
            watch.status(site.house, job)["replicas"][0]["chunks_completed"]
            > before[0]["chunks_completed"] + 1
        ),
        timeout=300,
    )
    assert site.replicas(job, "running") == [f"{job}-r0"]
    assert site.house.run("cancel", job).returncode == 0
    site.house.wait_for(lambda: site.slurm.jobs() == {}, timeout=300)


def test_a_router_on_a_machine_of_its_own_is_launched_adopted_and_ended(site, tmp_path, monkeypatch):
    port = free_port()
    for module in (skypilot_router, skypilot_router_task):
        monkeypatch.setattr(module, "PORT", port)
    # Its machine is this one: nobody else should reach it.
    monkeypatch.setattr(skypilot_router_task, "HOST", "127.0.0.1")
    python, environment = site.home.environment["TANDEMN_SKYPILOT_PYTHON"], site.house.environment

    @asynccontextmanager
    async def opened():
        sky = SkyPilot(python, tmp_path / "sky.log", environment=environment)
        host = skypilot_router.SkyPilotRouters(sky, Settings(home=tmp_path), grace_s=1)
        yield host
        await host.close()

    async def live() -> None:
        began = time.monotonic()
        async with opened() as host:
            plan = host.plan(spec_from_flags({**FLAGS, "router_cloud": "slurm"}))
            remote = await host.ensure(plan, setup("a"))
            status = await host.status(remote)
            while status.state is not BackendState.READY:
                assert status.state is BackendState.PROVISIONING, status
                assert time.monotonic() - began < LAUNCH_S, status
                await asyncio.sleep(2)
                status = await host.status(remote)
            told(f"a router's machine answers after {time.monotonic() - began:.0f} s")
        jobs = site.slurm.jobs()
        assert len(jobs) == 1
        async with opened() as other:
            assert [each.remote_name for each in await other.find()] == [plan.remote_name]
            adopted = await other.ensure(plan, setup("a", "b"))
            assert await names_of(adopted) == ["a", "b"]
            assert site.slurm.jobs() == jobs
            assert plan.remote_name in site.home.sky("status")
            began = time.monotonic()
            while not await other.delete(plan.remote_name):
                assert time.monotonic() - began < LAUNCH_S
                await asyncio.sleep(0.5)
            told(f"it is gone after {time.monotonic() - began:.0f} s")
            assert await other.find() == []
        assert site.slurm.jobs() == {}

    asyncio.run(live())


def test_what_is_wrong_on_the_machine_ends_the_replica_and_is_told(site, launch_s):
    """A task whose setup fails: SkyPilot says so, and its words reach whoever asks."""
    sky = SkyPilot(
        site.home.environment["TANDEMN_SKYPILOT_PYTHON"],
        site.house.home / "logs" / "direct.log",
        environment={**site.house.environment},
    )
    config = yaml.safe_load(
        "{name: broken, resources: {infra: slurm/loopback, accelerators: 'H100:1'}, run: 'true'}"
    )
    config["setup"] = "echo so that is that; exit 3"
    try:
        sky.call("launch", within_s=LAUNCH_S, task=task(config), cluster_name="tandemn-broken")
        site.house.wait_for(
            lambda: "FAILED_SETUP" in sky.call("job_status", cluster_name="tandemn-broken").values(),
            timeout=120,
        )
        text = sky.read(
            "tail_logs", "output_stream", cluster_name="tandemn-broken", job_id=None, follow=False, tail=20
        )
        assert "so that is that" in text
    finally:
        sky.call("down", within_s=LAUNCH_S, cluster_name="tandemn-broken")
        sky.close()
    assert site.slurm.jobs() == {}
