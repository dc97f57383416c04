"""The seam to SkyPilot's own environment: the real worker process, over a fake `sky` package."""

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.fakes.sky import FakeSky, Faults, until

from tandemn.errors import InvalidInput, MissingDependency, NoCapacity, NotFound, Retryable
from tandemn.skypilot.environment import SkyPilot, find_python, member, task

TASK = {
    "name": "t",
    "run": "echo computed; sleep 60",
    "resources": {"infra": "aws/us-east-1", "accelerators": {"L4": 1}},
}


@pytest.fixture
def fake(tmp_path):
    fake = FakeSky(tmp_path / "sky")
    yield fake
    fake.end_all()


@pytest.fixture
def sky(fake, tmp_path):
    sky = SkyPilot(sys.executable, tmp_path / "sky.log", environment=fake.environment)
    yield sky
    sky.close()


def status(sky):
    return sky.call("status", refresh=member("StatusRefreshMode", "FORCE"))


def test_a_cluster_from_launch_to_gone(sky, fake):
    request = sky.call("launch", answer="request", task=task(TASK), cluster_name="tandemn-a")
    assert isinstance(request, str)
    job_id, handle = sky.call("get", request_id=request)
    assert (job_id, handle["region"]) == (1, "us-east-1")
    [record] = status(sky)
    assert (record["name"], record["status"]) == ("tandemn-a", "UP")
    until(
        lambda: (
            "computed"
            in sky.read(
                "tail_logs", "output_stream", cluster_name="tandemn-a", job_id=None, follow=False, tail=5
            )
        )
    )
    sky.call("down", cluster_name="tandemn-a")
    assert status(sky) == []
    assert "Running on cluster: tandemn-a" in (sky._log).read_text(), "what SkyPilot prints is in the log"


def test_waiting_calls_do_not_hold_others_up(sky, fake):
    fake.fail(Faults(boot_s=1.0))
    request = sky.call("launch", answer="request", task=task(TASK), cluster_name="tandemn-a")
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(sky.call, "get", request_id=request)
        [record] = until(lambda: status(sky))
        assert record["status"] == "INIT"
        assert not waiting.done()
        assert waiting.result(30)[0] == 1


def test_errors_say_what_the_caller_can_do(sky, fake):
    fake.fail(Faults(unavailable=["aws/us-east-1"]))
    request = sky.call("launch", answer="request", task=task(TASK), cluster_name="tandemn-a")
    with pytest.raises(NoCapacity, match="aws/us-east-1: out of capacity"):
        sky.call("get", request_id=request)
    with pytest.raises(NotFound) as caught:
        sky.call("down", cluster_name="tandemn-b")
    assert caught.value.code == "cluster_not_found"
    with pytest.raises(InvalidInput, match="unsupported field: colour"):
        sky.call("launch", task=task({**TASK, "colour": "red"}), cluster_name="tandemn-b")
    with pytest.raises(Retryable, match="no_such_function"):
        sky.call("no_such_function")


def test_an_answer_that_does_not_come_is_retryable(sky, fake):
    fake.fail(Faults(boot_s=30))
    request = sky.call("launch", answer="request", task=task(TASK), cluster_name="tandemn-a")
    with pytest.raises(Retryable) as caught:
        sky.call("get", within_s=0.2, request_id=request)
    assert caught.value.code == "skypilot_silent"


def test_an_api_server_that_is_slow_to_start_is_tried_again_a_few_times(sky, fake):
    fake.fail(Faults(slow_starts=2))
    assert sky.call("api_info") == {"status": "healthy"}
    fake.fail(Faults(slow_starts=3))
    with pytest.raises(Retryable) as caught:
        sky.call("api_info")
    assert caught.value.code == "skypilot_unavailable"


def test_a_worker_that_died_is_replaced_and_the_request_is_still_there(sky, fake):
    fake.fail(Faults(boot_s=1.0))
    request = sky.call("launch", answer="request", task=task(TASK), cluster_name="tandemn-a")
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(sky.call, "get", request_id=request)
        until(lambda: sky._worker.waiting)
        os.kill(sky._worker.process.pid, signal.SIGKILL)
        with pytest.raises(Retryable) as caught:
            waiting.result(30)
    assert caught.value.code == "skypilot_gone"
    assert sky.call("get", request_id=request)[0] == 1


def test_the_worker_ends_with_whoever_started_it(sky):
    sky.call("status")
    process = sky._worker.process
    process.stdin.close()
    assert process.wait(30) == 0


def test_no_setting_of_ours_reaches_it(fake, tmp_path):
    sky = SkyPilot(
        sys.executable, tmp_path / "log", environment={**fake.environment, "TANDEMN_API_KEY": "sk-secret"}
    )
    assert "TANDEMN_API_KEY" not in sky.environment


@pytest.mark.parametrize(
    ("environment", "words"),
    [({"FAKE_SKY_VERSION": "0.9.3"}, "0.9.3"), ({"PYTHONPATH": ""}, "No module named 'sky'")],
)
def test_what_is_no_use_is_said(fake, tmp_path, environment, words):
    sky = SkyPilot(sys.executable, tmp_path / "log", environment={**fake.environment, **environment})
    with pytest.raises(MissingDependency, match=words) as caught:
        sky.call("status")
    assert caught.value.code == "skypilot_missing"


def test_a_python_that_is_none_is_said(tmp_path):
    sky = SkyPilot(str(tmp_path / "nothing"), tmp_path / "log")
    with pytest.raises(MissingDependency, match="does not start"):
        sky.call("status")


def test_the_python_is_found_beside_the_command(tmp_path):
    tool = tmp_path / "tools" / "skypilot" / "bin"
    tool.mkdir(parents=True)
    for name in ("sky", "python3"):
        (tool / name).write_text("#!/bin/sh\n")
        (tool / name).chmod(0o755)
    path = tmp_path / "bin"
    path.mkdir()
    (path / "sky").symlink_to(tool / "sky")
    assert find_python(None, str(path)) == str(tool / "python3")
    assert find_python("/named/python", str(path)) == "/named/python"
    assert find_python(None, str(tmp_path)) is None
