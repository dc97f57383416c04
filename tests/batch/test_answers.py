from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandemn.batch.answers import (
    Answer,
    decode_segment,
    encode_segment,
    engine_error,
    first_answers,
    not_run_line,
    refusal_line,
    success_line,
)


def test_a_success_embeds_the_engines_bytes():
    line = success_line("b1", 'odd "id" é', request_id="r1", body=b'{"n": 1.0e5}')
    assert b'"body":{"n": 1.0e5}' in line
    parsed = json.loads(line)
    assert parsed.pop("id").startswith("batch_req_")
    assert parsed == {
        "custom_id": 'odd "id" é',
        "response": {"status_code": 200, "request_id": "r1", "body": {"n": 1e5}},
        "error": None,
    }


def test_a_body_of_several_lines_becomes_one():
    line = success_line("b1", "a", request_id="r1", body=b'{\r\n  "text": "one\\ntwo",\n "x": [1,\n2]}')
    assert b"\n" not in line
    assert json.loads(line)["response"]["body"] == {"text": "one\ntwo", "x": [1, 2]}


def test_ids_are_the_same_each_time_and_differ_by_request():
    ids = [json.loads(not_run_line("b1", name, code="c", message="m"))["id"] for name in ("a", "a", "b")]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            b'{"error":{"message":"too long","type":"invalid_request_error","code":"context"}}',
            ("context", "too long"),
        ),
        (b'{"error":{"message":"too long","type":"invalid","code":400}}', ("invalid", "too long")),
        (
            b'{"object":"error","message":"bad","type":"BadRequestError","code":400}',
            ("BadRequestError", "bad"),
        ),
        (b'{"detail":[{"msg":"x"}]}', ("http_400", '[{"msg":"x"}]')),
        (b'{"error":"plain"}', ("http_400", "plain")),
        (b"Internal \xff\n", ("http_400", "Internal \ufffd\n")),
        (b"", ("http_400", "the engine answered with status 400")),
        (b"[" * 5000, ("http_400", "[" * 2000)),
    ],
)
def test_a_refusal_carries_the_engines_words(body, expected):
    assert engine_error(400, body) == expected
    line = refusal_line("b1", "a", request_id="r", status=400, body=body)
    assert b"\n" not in line
    parsed = json.loads(line)
    assert (parsed["error"]["code"], parsed["error"]["message"]) == expected
    assert parsed["response"]["status_code"] == 400


answers = st.builds(
    Answer,
    index=st.integers(0, 10**6),
    kind=st.sampled_from("oe"),
    line=st.sampled_from([b"{}", b'{"a": "b c"}']),
)


@given(st.lists(answers), st.integers(0, 50))
def test_a_torn_segment_loses_only_its_last_line(written, torn):
    data = encode_segment(written)
    assert list(decode_segment(data)) == written
    whole = data[: max(0, len(data) - torn)].count(b"\n")
    assert list(decode_segment(data[: max(0, len(data) - torn)])) == written[:whole]


@given(st.binary())
def test_damaged_segments_do_not_crash(data):
    list(decode_segment(data))


def test_the_first_answer_counts():
    first = encode_segment([Answer(index=1, kind="o", line=b'{"n":1}')])
    second = encode_segment(
        [Answer(index=1, kind="e", line=b'{"n":2}'), Answer(index=0, kind="o", line=b"{}")]
    )
    assert first_answers([first, second])[1].line == b'{"n":1}'
    assert set(first_answers([first, second])) == {0, 1}
