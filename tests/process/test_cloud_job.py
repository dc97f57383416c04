"""A job on "clouds": everything is real but SkyPilot, which the fake stands in for at its outermost edge.

Replicas call back through the reverse tunnel, since the control plane listens on loopback only.
"""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import pytest
from tests.fakes.sky import FakeSky, Faults
from tests.process import watch
from tests.process.conftest import built
from tests.process.house import chat_lines, read_lines

from tandemn.skypilot.environment import SkyPilot, task

if TYPE_CHECKING:
    from pathlib import Path

# Each machine of a cloud is several processes here.
pytestmark = pytest.mark.alone

SIMULATED = ("--engine", "simulated", "--cloud", "aws")


@pytest.fixture
def cloud(tmp_path):
    fake = FakeSky(tmp_path / "sky")
    environment = {
        "TANDEMN_SKYPILOT_PYTHON": fake.python(),
        "TANDEMN_CLOUD_LOOK_S": "0.3",
        "TANDEMN_FLUSH_S": "0.5",
        "FAKE_SKY": str(fake.folder),
        "HOME": fake.environment["HOME"],
        "PATH": fake.environment["PATH"],
    }
    with built(**environment) as house:
        yield fake, house
        fake.end_all()


def submit(house, count: int, *arguments: str, gpu: str = "L4", replicas: int = 2) -> str:
    (house.home / "in.jsonl").write_text(chat_lines(count))
    fleet = ("--gpu", gpu, "--replicas", str(replicas), "--chunk-size", "20")
    before, _, after = " ".join(arguments).partition("-- ")
    job: str = house.submit(
        "any-model",
        "in.jsonl",
        "--slo",
        "1h",
        *SIMULATED,
        *fleet,
        *before.split(),
        *(["--", *after.split()] if after else []),
    )
    return job


def running(house, job: str) -> list[str]:
    return [each["replica_id"] for each in watch.status(house, job)["replicas"] if each["state"] == "running"]


def begun(house) -> tuple[str, Path]:
    """A job whose two replicas have done some of it, and that goes on when the file is gone, however slow the machine."""
    hold = house.home / "hold"
    hold.touch()
    job = submit(house, 600, "--", "--slots", "8", "--decode-step-s", "0.02", "--hold", str(hold))
    house.wait_for(lambda: len(running(house, job)) == 2)
    hold.unlink()
    house.wait_for(lambda: watch.done(house, job) >= 2)
    hold.touch()
    return job, hold


def test_a_job_on_a_cloud_survives_a_preemption_and_leaves_nothing(cloud):
    fake, house = cloud
    job, hold = begun(house)
    assert fake.machines() == [f"tandemn-{job}-r0", f"tandemn-{job}-r1"]
    fake.preempt(f"tandemn-{job}-r0")
    house.wait_for(lambda: f"tandemn-{job}-r2" in fake.machines())
    hold.unlink()
    status = watch.wait(house, job, "completed")
    assert status["requests"]["completed"] == 600
    ended = {each["replica_id"]: each for each in status["replicas"]}
    assert ended[f"{job}-r0"]["state"] == "preempted"
    assert ended[f"{job}-r0"]["reason_code"] == "spot_preemption"
    assert fake.machines() == fake.clusters() == []
    done = house.run("download", job, "-o", "out.jsonl")
    assert done.returncode == 0, done.stderr
    assert [line["custom_id"] for line in read_lines(house.home / "out.jsonl")] == [
        f"r{n}" for n in range(600)
    ]
    assert "assignment" in house.run("logs", job, "--replica", "r1").stdout


def test_a_control_plane_that_died_adopts_its_clusters(cloud):
    fake, house = cloud
    job, hold = begun(house)
    before = fake.machines()
    os.kill(house.server_pid(), signal.SIGKILL)
    house.status(job)  # starts another
    hold.unlink()
    status = watch.wait(house, job, "completed")
    launches = [call for call in fake.calls() if call["name"] == "sky.launch"]
    assert len(launches) == 2, f"{before} were launched, and again: {status['replicas']}"
    assert fake.machines() == []


def test_a_launch_that_fails_everywhere_ends_the_job_and_says_what_was_tried(cloud):
    fake, house = cloud
    fake.fail(Faults(unavailable=["aws"]))
    job = submit(house, 40)
    status = watch.wait(house, job, "failed")
    assert status["code"] == "no_capacity"
    assert "could be had" in status["reason"]
    assert "aws/us-east-1" in status["reason"]
    assert fake.clusters() == []


def test_credentials_that_are_missing_end_the_job_at_once(cloud):
    fake, house = cloud
    fake.fail(Faults(error={"type": "NoCloudAccessError", "message": "aws is not enabled"}))
    job = submit(house, 40)
    status = watch.wait(house, job, "failed")
    assert status["code"] == "cloud_credentials"
    assert "sky check" in status["reason"]


def test_a_cancelled_job_ends_clusters_that_are_still_coming_up_and_gc_those_that_nobody_knows(
    cloud, tmp_path
):
    fake, house = cloud
    fake.fail(Faults(boot_s=120))
    sky = SkyPilot(fake.python(), tmp_path / "direct.log", environment=fake.environment)
    config = task({"name": "t", "run": "true", "resources": {"infra": "aws"}})
    sky.call("launch", answer="request", task=config, cluster_name="tandemn-job-000000000000-r0")
    sky.call("launch", answer="request", task=config, cluster_name="somebody-elses")
    sky.close()
    job = submit(house, 40)
    house.wait_for(lambda: len(fake.clusters()) == 4)
    [stray] = [each for each in house.json("gc")["strays"] if each["kind"] == "cluster"]
    assert stray["remote_name"] == "tandemn-job-000000000000-r0"
    done = house.run("gc", "tandemn-job-000000000000-r0", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(fake.clusters()) == 3
    done = house.run("cancel", job)
    assert done.returncode == 0, done.stderr
    watch.wait(house, job, "cancelled")
    house.wait_for(lambda: fake.clusters() == ["somebody-elses"])


def test_no_skypilot_is_said_when_the_job_is_submitted():
    with built(PATH="/usr/bin:/bin") as house:
        (house.home / "in.jsonl").write_text(chat_lines(2))
        done = house.run("deploy", "m", "in.jsonl", "--slo", "1h", "--cloud", "aws", "--gpu", "L4", "--json")
        assert done.returncode == 2
        assert "skypilot_missing" in done.stderr
        assert "uv tool install" in done.stderr
        assert json.loads(house.run("list", "--json").stdout)["jobs"] == []
