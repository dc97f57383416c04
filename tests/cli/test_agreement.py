"""Where a job runs is said, and what costs money is shown and asked about first."""

import pytest
from tests.fakes.user_api import job_status

from tandemn.errors import InvalidInput, Retryable
from tandemn.protocol import plans

CLOUD = ("deploy", "Qwen/Qwen3-32B", "--slo", "4h", "--cloud", "aws")


@pytest.fixture
def planned(plane):
    row = {
        "rank": 0,
        "gpu": "L4",
        "tp": 1,
        "pp": 1,
        "instance_type": "g6.xlarge",
        "instances": 2,
        "replicas": 2,
        "market": "spot",
        "provider": "aws",
        "region": "us-east-1",
        "zone": "us-east-1a",
        "usd_per_hour": 0.62,
        "expected_usd": 1.86,
        "expected_finish_s": 10800,
        "slow_finish_s": 12000,
        "margin_s": 3600,
        "tokens_per_s": 1000,
        "reason": "least expected cost that meets the deadline",
        "price_source": "SkyPilot catalog",
        "price_date": "2026-11-25",
    }
    plane.job_plan = plans.PlanAnswer.model_validate(
        {
            "plan": [row],
            "losers": [],
            "workload": {
                "requests": 2,
                "input_tokens_mean": 10,
                "output_tokens_mean": 20,
                "context": 2048,
                "basis": "counted",
            },
            "predictor": "roofline",
            "warnings": [],
        }
    )
    plane.on_submit = [job_status(state="launching", requests={"total": 2})]
    return plane


@pytest.fixture
def terminal(monkeypatch):
    """A person at a terminal, who answers what is asked."""
    asked = []

    def sit_down(answer: bool, whose: str = "own"):
        monkeypatch.setattr("sys.stdin.isatty", lambda: True)

        def confirm(question, **_):
            asked.append(question)
            return answer

        def prompt(question, **_):
            asked.append(question)
            return whose

        monkeypatch.setattr("typer.confirm", confirm)
        monkeypatch.setattr("typer.prompt", prompt)
        return asked

    return sit_down


def test_a_terminal_sees_the_plan_with_its_price_and_is_asked(planned, lines, tandemn, terminal):
    asked = terminal(answer=True)
    result = tandemn(*CLOUD, lines)
    assert result.code == 0, result.err
    assert "g6.xlarge" in result.out
    [question] = asked
    assert "$0.62 an hour" in question
    assert "$1.86 in all" in question
    assert planned.called("POST", "/api/jobs")


def test_a_no_launches_nothing_and_leaves_nothing(planned, lines, tandemn, terminal):
    terminal(answer=False)
    result = tandemn(*CLOUD, lines)
    assert result.code == 1
    assert "nothing was launched" in result.err
    assert not planned.called("POST", "/api/jobs")
    assert planned.files == {}


@pytest.fixture
def advised(planned):
    """Koi has a plan that holds, at half the price."""
    advice = plans.KoiAdvice(
        is_feasible=True,
        code="koi_not_chosen",
        reason="the own plan was asked for",
        decision_id="dec-1",
        gpu="L40S",
        tp=1,
        pp=1,
        replicas=1,
        expected_usd=0.93,
        expected_finish_s=9000,
    )
    planned.job_plan = planned.job_plan.model_copy(update={"koi": advice})
    return planned


def test_with_koi_a_terminal_is_asked_whose_plan(advised, lines, tandemn, terminal):
    asked = terminal(answer=True, whose="own")
    assert tandemn(*CLOUD, lines).code == 0
    [question] = asked
    assert "own (about $1.86 in all)" in question
    assert "Koi's (about $0.93)" in question
    [body] = advised.called("POST", "/api/jobs")
    assert body["advisor"] == "own"


def test_koi_is_chosen_and_its_plan_is_seen_before_it_is_launched(advised, lines, tandemn, terminal):
    asked = terminal(answer=True, whose="koi")
    assert tandemn(*CLOUD, lines).code == 0
    assert [body["advisor"] for body in advised.called("POST", "/api/plans")] == ["own", "koi"]
    [body] = advised.called("POST", "/api/jobs")
    assert body["advisor"] == "koi"
    assert len(asked) == 2
    assert "Launch it, at" in asked[1]


@pytest.mark.parametrize(("whose", "answer"), [("none", True), ("koi", False)])
def test_neither_plan_launches_nothing_and_leaves_nothing(advised, lines, tandemn, terminal, whose, answer):
    terminal(answer=answer, whose=whose)
    result = tandemn(*CLOUD, lines)
    assert result.code == 1
    assert "nothing was launched" in result.err
    assert not advised.called("POST", "/api/jobs")
    assert advised.files == {}


@pytest.mark.parametrize("flag", ["own", "koi"])
def test_who_named_an_adviser_is_not_asked_again(advised, lines, tandemn, terminal, flag):
    asked = terminal(answer=True, whose="none")
    assert tandemn(*CLOUD, "--advisor", flag, lines).code == 0
    [question] = asked
    assert "Launch it, at" in question
    [body] = advised.called("POST", "/api/jobs")
    assert body["advisor"] == flag


def test_a_recommendation_that_does_not_hold_is_no_choice(advised, lines, tandemn, terminal):
    koi = advised.job_plan.koi.model_copy(update={"is_feasible": False, "code": "koi_over_budget"})
    advised.job_plan = advised.job_plan.model_copy(update={"koi": koi})
    asked = terminal(answer=True, whose="koi")
    assert tandemn(*CLOUD, lines).code == 0
    assert len(asked) == 1
    assert "Launch it, at" in asked[0]


def test_yes_and_a_pipe_are_not_asked(planned, lines, tandemn, terminal):
    assert tandemn(*CLOUD, lines).code == 0  # no terminal
    planned.on_submit = [job_status(state="launching", requests={"total": 2})]
    asked = terminal(answer=False)
    assert tandemn(*CLOUD, "--yes", lines).code == 0
    assert asked == []
    assert not planned.called("POST", "/api/plans")


@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        (InvalidInput("nothing is known of m", code="unknown_model"), 2),
        (Retryable("the hub does not answer", code="hub_unavailable"), 1),
    ],
)
def test_a_gpu_that_was_named_needs_no_plan(refusal, code, planned, lines, tandemn, terminal):
    planned.refusals["POST", "/api/plans"] = refusal
    asked = terminal(answer=True)
    result = tandemn(*CLOUD, "--gpu", "L4", "--replicas", "3", lines)
    assert result.code == 0, result.err
    assert "3 x L4 tp1, spot on aws" in result.err
    assert len(asked) == 1
    assert tandemn(*CLOUD, lines).code == code, "without one, it is an error"


def test_no_cloud_is_this_machine_and_is_said(planned, lines, tandemn, terminal):
    asked = terminal(answer=False)
    planned.cloud = plans.CloudChoice(cloud="local", reason="no cloud is set up: SkyPilot is not installed")
    result = tandemn("deploy", "Qwen/Qwen3-32B", "--slo", "4h", lines)
    assert result.code == 0
    assert "submitted on this machine (no cloud is set up: SkyPilot is not installed)" in result.out
    assert asked == []
    [body] = planned.called("POST", "/api/jobs")
    assert body["cloud"] == "local"


def test_a_cloud_that_was_found_is_asked_about(planned, lines, tandemn, terminal):
    asked = terminal(answer=True)
    planned.cloud = plans.CloudChoice(cloud="aws", reason="the cloud that SkyPilot has access to")
    assert tandemn("deploy", "Qwen/Qwen3-32B", "--slo", "4h", lines).code == 0
    assert len(asked) == 1
    [body] = planned.called("POST", "/api/jobs")
    assert body["cloud"] == "aws"
