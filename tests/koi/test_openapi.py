"""The document of the contract is the one that the code speaks."""

from __future__ import annotations

import json

import pytest
import yaml
from openapi_spec_validator import validate
from tests.fakes.koi_service import DOCUMENT, GOOD, Contract
from tests.koi.test_recommendation import BAD, NOTHING, spec

from tandemn.koi import openapi
from tandemn.koi.recommendation import question


def test_it_is_made_of_the_types():
    assert DOCUMENT.read_text() == openapi.text(), "python -m tandemn.koi.openapi > docs/koi.openapi.yaml"


def test_it_is_openapi():
    validate(yaml.safe_load(DOCUMENT.read_text()))


def test_a_judge_by_it_takes_what_is_right_and_nothing_else():
    contract = Contract()
    asked = question(
        spec(), NOTHING, job_id=None, event_id="e", requests=1, input_tokens=1, output_tokens=1, now=0.0
    )
    body = json.loads(asked.model_dump_json(exclude_none=True))
    assert contract.faults("/decide", body) == []
    assert contract.faults("/decide", body | {"more": 1}) != []
    assert contract.faults("/decide", {key: value for key, value in body.items() if key != "event_id"}) != []
    assert contract.faults("/job/unheard-of", body) != []
    assert contract.faults_of_answer("/decide", "post", GOOD) == []


@pytest.mark.parametrize("name", [name for name in BAD if BAD[name].startswith(b"{")])
def test_what_is_refused_of_an_answer_is_against_it(name):
    try:
        body = json.loads(BAD[name])
    except (ValueError, RecursionError):
        return  # no JSON value, so that there is nothing to hold against it
    if name in {"NaN", "infinite", "a boolean for a number"}:
        return  # no JSON Schema can say so: NaN is no JSON, and Python's True is 1
    assert Contract().faults_of_answer("/decide", "post", body) != []
