import pytest
from tests.fakes.user_api import job_status

from tandemn.errors import QueueUnavailable
from tandemn.protocol.jobs import AddAnswer, KillAnswer, ReplicaConfig, SwapAnswer


@pytest.fixture
def running(plane):
    plane.jobs["job-1"] = [job_status()]
    config = ReplicaConfig(gpu="L40S", tp=2)
    plane.answers["job-1", "add"] = AddAnswer(job_id="job-1", new=["r2", "r3"], config=config)
    plane.answers["job-1", "kill"] = KillAnswer(
        job_id="job-1", killed=["r0"], skipped={"r1": "it has [ended]"}, chunks_reclaimed=1, replicas_wanted=3
    )
    plane.answers["job-1", "swap"] = SwapAnswer(
        job_id="job-1", new=["r4", "r5"], old=["r0", "r1"], config=config, threshold=2
    )
    return plane


def test_add(running, tandemn):
    result = tandemn("add", "job-1", "2", "--gpu", "L40S", "--tp", "2", "--on-demand")
    assert result.out == "new: r2, r3\neach L40S, tp 2, pp 1, spot\n"
    assert running.called("POST", "/api/jobs/job-1/add") == [
        {"replicas": 2, "gpu": "L40S", "tp": 2, "pp": None, "on_demand": True}
    ]
    assert tandemn("add", "job-1", "2", "--json").json["new"] == ["r2", "r3"]


def test_kill(running, tandemn):
    result = tandemn("kill", "job-1", "--replica", "r0", "--replica", "r1")
    assert result.out.splitlines() == [
        "killed: r0",
        "skipped: r1, it has [ended]",
        "1 chunk reclaimed",
        "the job wants 3 replicas from now on",
    ]
    assert running.called("POST", "/api/jobs/job-1/kill") == [{"replicas": ["r0", "r1"]}]
    assert tandemn("kill", "job-1", "--replica", "r0", "--json").json["skipped"] == {"r1": "it has [ended]"}


def test_swap(running, tandemn):
    result = tandemn(
        "swap", "job-1", "--gpu", "L40S", "--tp", "2", "--replicas", "2", "--ready-threshold", "2"
    )
    assert "old: r0, r1, until 2 new replicas have begun to process" in result.out
    assert running.called("POST", "/api/jobs/job-1/swap") == [
        {"gpu": "L40S", "tp": 2, "pp": None, "replicas": 2, "ready_threshold": 2, "on_demand": False}
    ]
    assert tandemn("swap", "job-1", "--gpu", "x", "--json").json["threshold"] == 2


def test_swap_is_cancelled(running, tandemn):
    assert tandemn("swap", "job-1", "--cancel").out == "no swap is under way\n"
    view = {
        "state": "cancelled",
        "reason": "by request",
        "new": [],
        "old": ["r0"],
        "ready": 0,
        "threshold": 1,
    }
    running.jobs["job-1"] = [job_status(swap=view)]
    result = tandemn("swap", "job-1", "--cancel")
    assert result.out == "swap cancelled: 0 of 1 new replicas at work; by request\n"
    both = tandemn("swap", "job-1", "--cancel", "--ready-threshold", "2")
    assert both.code == 2
    assert "--cancel stands alone, without --ready-threshold" in both.err


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["add", "job-1", "0"], "[wrong_usage]"),
        (["add", "job-1", "1001"], "error: N: "),
        (["add", "job-1", "1", "--tp", "0"], "error: --tp: "),
        (["kill", "job-1"], "--replica is missing"),
        (["swap", "job-1", "--replicas", "0"], "error: --replicas: "),
        (["swap", "job-1", "--ready-threshold", "0"], "error: --ready-threshold: "),
    ],
)
def test_impossible_values_are_named(arguments, what, running, tandemn):
    result = tandemn(*arguments)
    assert result.code == 2
    assert what in result.err
    assert not [call for call in running.calls if call[0] == "POST"]


def test_while_redis_is_down(running, tandemn):
    running.refusals["POST", "/api/jobs/job-1/kill"] = QueueUnavailable(
        "Redis does not answer; nothing changed"
    )
    result = tandemn("kill", "job-1", "--replica", "r0", "--json")
    assert result.code == 1
    assert result.json["error"]["code"] == "queue_unavailable"
