"""What is asked of Koi, and how much of an answer is believed."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from tandemn.koi.contract import Resources
from tandemn.koi.recommendation import (
    SAID_CHARS,
    Choice,
    Recommendation,
    Unused,
    overridden,
    plain,
    question,
    read_answer,
)
from tandemn.protocol.jobs import JobSpec
from tandemn.protocol.replicas import Market

NOTHING = Resources(snapshot_time=0, instances=[], quotas=[], notes=[])


def spec(**fields):
    return JobSpec(model="m", input_file_id="f", slo_s=3600, **fields)


def answer(*, config=None, **fields):
    whole = {
        "decision_id": "dec-1",
        "config": {"gpu_type": "L4", "tp": 2, "pp": 1, "dp": 3, **(config or {})},
        "predicted_tps": 1200.5,
        **fields,
    }
    return json.dumps({key: value for key, value in whole.items() if value is not ...}).encode()


def read(body=None, *, of=None, **fields):
    return read_answer(answer(**fields) if body is None else body, of or spec())


def test_a_recommendation_as_the_contract_says():
    read_one = read(
        config={"market": "spot", "region": "us-east-1", "instance_type": "g6.12xlarge"},
        reasoning="cheap",
        alternatives=[{"gpu_type": "H100-80GB", "tp": 1, "planned_market": "on_demand"}],
    )
    assert read_one == Recommendation(
        decision_id="dec-1",
        choice=Choice(
            gpu="L4",
            tp=2,
            pp=1,
            replicas=3,
            market=Market.SPOT,
            region="us-east-1",
            instance_type="g6.12xlarge",
        ),
        predicted_tokens_per_s=1200.5,
        alternatives=(
            Choice(
                gpu="H100",
                tp=1,
                pp=1,
                replicas=None,
                market=Market.ON_DEMAND,
                region=None,
                instance_type=None,
            ),
        ),
        said="cheap",
    )


def test_names_and_fields_that_other_kois_use():
    body = json.loads(answer(planned_market="on_demand", latency_seconds=3, config={"region": "unknown"}))
    body["_decision_id"] = body.pop("decision_id")
    body["config"] |= {"market": "unknown", "engine_config": {"max_num_seqs": 256}, "num_gpus": 6}
    found = read(json.dumps(body).encode())
    assert isinstance(found, Recommendation)
    assert found.decision_id == "dec-1"
    assert (found.choice.market, found.choice.region) == (None, None)


BAD = {
    "nothing": b"",
    "HTML": b"<html><body>Sign in</body></html>",
    "not UTF-8": b'{"decision_id": "\xff"}',
    "a list": b"[]",
    "null": b"null",
    "deep": b'{"config": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a number of many digits": answer().replace(b'"tp": 2', b'"tp": ' + b"9" * 100_000),
    "no decision id": answer(decision_id=...),
    "an empty decision id": answer(decision_id=""),
    "a long decision id": answer(decision_id="d" * 200),
    "no configuration": answer(config={"gpu_type": None}),
    "text for a number": answer(config={"tp": "2"}),
    "a boolean for a number": answer(config={"tp": True}),
    "a fraction": answer(config={"dp": 1.5}),
    "no replica": answer(config={"dp": 0}),
    "too many replicas": answer(config={"dp": 100_000}),
    "below nothing": answer(config={"pp": -1}),
    "NaN": answer().replace(b"1200.5", b"NaN"),
    "infinite": answer().replace(b"1200.5", b"1e999"),
    "no throughput": answer(predicted_tps=0),
    "another market": answer(config={"market": "black"}),
    "alternatives that are none": answer(alternatives="none"),
    "an alternative without a GPU": answer(alternatives=[{"tp": 1}]),
    "alternatives without end": answer(alternatives=[{"gpu_type": "L4"}] * 1000),
    "reasons without end": answer(reasoning="x" * 100_000),
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD)
def test_an_answer_that_is_none(body):
    found = read(body)
    assert isinstance(found, Unused), found
    assert found.code == "koi_bad_answer"
    assert len(found.reason) <= SAID_CHARS + 1
    assert found.reason.isprintable()


def test_an_unknown_gpu_is_named():
    found = read(config={"gpu_type": "Voodoo2\x1b[2J"})
    assert isinstance(found, Unused)
    assert found.code == "koi_unknown_gpu"
    assert "Voodoo2" in found.reason
    assert "\x1b" not in found.reason
    whole = read(alternatives=[{"gpu_type": "Voodoo2"}])
    assert isinstance(whole, Recommendation), "an alternative that is of no use spoils nothing else"
    assert isinstance(whole.alternatives[0], Unused)


@pytest.mark.parametrize(
    ("flags", "config"),
    [
        ({"gpu": "H100"}, {}),
        ({"gpu": "cpu"}, {}),
        ({"tp": 1}, {}),
        ({"pp": 2}, {}),
        ({"replicas": 2}, {}),
        ({"region": "eu-west-1"}, {"region": "us-east-1"}),
        ({"on_demand": True}, {"market": "spot"}),
    ],
)
def test_what_the_user_fixed_is_never_overruled(flags, config):
    found = read(config=config, of=spec(**flags))
    assert isinstance(found, Unused)
    assert found.code == "koi_contradicts"
    assert next(iter(flags)).replace("_", "-") in found.reason


def test_what_the_user_fixed_and_koi_agrees_with():
    flags = {"gpu": "L4-24GB", "tp": 2, "pp": 1, "replicas": 3, "region": "us-east-1", "on_demand": True}
    found = read(config={"market": "on_demand"}, of=spec(**flags))
    assert isinstance(found, Recommendation)
    followed = overridden(spec(**flags), found.choice)
    assert (followed.gpu, followed.tp, followed.replicas, followed.region) == ("L4", 2, 3, "us-east-1")


def test_a_choice_becomes_flags():
    found = read(config={"market": "on_demand", "region": "us-east-1"})
    assert isinstance(found, Recommendation)
    followed = overridden(spec(budget_usd=Decimal(5)), found.choice)
    assert followed == spec(
        gpu="L4", tp=2, pp=1, replicas=3, region="us-east-1", on_demand=True, budget_usd=Decimal(5)
    )


def test_a_question_has_the_job_and_the_wishes():
    asked = question(
        spec(gpu="L4", region="us-east-1", on_demand=True, budget_usd=Decimal("2.5")),
        NOTHING,
        job_id="job-1",
        event_id="job-1:decide",
        requests=10,
        input_tokens=99.6,
        output_tokens=0.0,
        now=5.0,
    )
    assert asked.model_dump(exclude_none=True) == {
        "event_id": "job-1:decide",
        "event_type": "decide_request",
        "emitted_at": 5.0,
        "correlation_id": "job-1",
        "job_request": {
            "job_id": "job-1",
            "model_name": "m",
            "task_type": "batch",
            "num_requests": 10,
            "avg_input_tokens": 100,
            "avg_output_tokens": 1,
            "slo_deadline_hours": 1.0,
            "objective": "cheapest",
            "preferred_gpu_types": ["L4"],
            "region": "us-east-1",
            "preferred_market": "on_demand",
            "cost_roofline_usd": 2.5,
        },
        "resource_map": NOTHING.model_dump(),
    }


def test_a_strangers_text_is_cut_and_cleaned():
    assert plain("a\nb\x00\x1b[31m\u202e") == "a b  [31m"
    assert plain("x" * 10_000) == "x" * SAID_CHARS + "…"
