"""Which streams can go on, by what request, and how the seam is closed."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tandemn.router.progress import Progress
from tandemn.router.resume import (
    CHAT,
    TEXT,
    Continuation,
    Finish,
    Refusal,
    ask_for_ids,
    continue_stream,
    read_ask,
)
from tandemn.router.seam import Seam, SeamMismatch, broken_events
from tandemn.router.sse import data_of
from tandemn.router.table import Engine

FIRST = {"id": "cmpl-1", "object": "text_completion", "created": 5, "model": "m"}


def event(text, ids=None, prompt=None, finish=None, **more):
    choice = {"index": 0, "text": text, "finish_reason": finish, "token_ids": ids, "prompt_token_ids": prompt}
    return b"data: " + json.dumps({**FIRST, "choices": [choice], **more}).encode() + b"\n\n"


def chat_event(delta, finish=None, **more):
    return (
        b"data: "
        + json.dumps(
            {**FIRST, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}
        ).encode()
        + b"\n\n"
    )


def progress(*events):
    made = Progress()
    made.fold(b"".join(events))
    return made


def go_on(path, request, made, engine=Engine.VLLM, max_model_len=None):
    return continue_stream(
        path, json.dumps({"stream": True, **request}).encode(), made, engine, max_model_len
    )


SAID = (event("ab", [1], prompt=[7, 8]), event("c", [2]), event("d", [3]))


def test_by_ids_with_what_is_left():
    step = go_on(TEXT, {"prompt": "x", "max_tokens": 10, "min_tokens": 5, "temperature": 1}, progress(*SAID))
    assert isinstance(step, Continuation)
    body = json.loads(step.body)
    assert (body["prompt"], body["max_tokens"], body["min_tokens"]) == ([7, 8, 1, 2, 3], 7, 2)
    assert step.overlap == ""


def test_a_completion_without_max_tokens_means_16_and_a_chat_means_the_context():
    step = go_on(TEXT, {"prompt": "x"}, progress(*SAID))
    assert json.loads(step.body)["max_tokens"] == 13
    step = go_on(TEXT, {"prompt": "x", "max_tokens": None}, progress(*SAID))
    assert json.loads(step.body)["max_tokens"] is None
    step = go_on(CHAT, {"messages": []}, progress(*SAID))
    assert json.loads(step.body)["max_tokens"] is None
    assert step.path == TEXT
    step = go_on(CHAT, {"messages": []}, progress(*SAID), max_model_len=10)
    assert json.loads(step.body)["max_tokens"] == 5


def test_text_that_lags_is_cut_back_to_the_last_aligned_event():
    lagging = progress(*SAID, event("", [4]), event("", [5]))
    step = go_on(TEXT, {"prompt": "x", "max_tokens": 9}, lagging)
    assert json.loads(step.body)["prompt"] == [7, 8, 1, 2, 3]
    assert step.used_tokens == 3


def test_several_tokens_in_one_event_are_no_place_to_cut():
    step = go_on(
        TEXT, {"prompt": "x", "max_tokens": 9, "temperature": 0}, progress(*SAID, event("ef", [4, 5]))
    )
    assert json.loads(step.body)["prompt"] == [7, 8, 1, 2, 3]
    assert step.overlap == "ef"
    step = go_on(
        TEXT, {"prompt": "x", "max_tokens": 9, "temperature": 1}, progress(*SAID, event("ef", [4, 5]))
    )
    assert json.loads(step.body)["prompt"] == "xabcdef"


def test_with_stop_strings_only_text_beyond_their_reach_is_sure():
    request = {"prompt": "x", "max_tokens": 9, "temperature": 0, "stop": "zzz"}
    step = go_on(TEXT, request, progress(*SAID))
    # Of 4 characters 2 more were held back at each event: after the first, tokens reach to 4.
    assert json.loads(step.body)["prompt"] == [7, 8, 1]
    assert step.overlap == ""


def test_nothing_left_is_finished_here():
    step = go_on(
        TEXT, {"prompt": "x", "max_tokens": 3, "stream_options": {"include_usage": True}}, progress(*SAID)
    )
    assert isinstance(step, Finish)
    last, usage, done = data_of(step.events)
    assert json.loads(last)["choices"][0]["finish_reason"] == "length"
    assert json.loads(usage)["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    assert done == b"[DONE]"
    step = go_on(TEXT, {"prompt": "x"}, progress(*SAID, event("", finish="stop")))
    assert data_of(step.events) == [b"[DONE]"]
    step = go_on(TEXT, {"prompt": "x", "max_tokens": 99}, progress(*SAID), max_model_len=5)
    assert isinstance(step, Finish)


def test_before_the_first_token_the_same_request_is_sent_again():
    step = go_on(
        CHAT, {"messages": [], "max_tokens": 9}, progress(chat_event({"role": "assistant", "content": ""}))
    )
    assert json.loads(step.body) == {
        "return_token_ids": True,
        "stream": True,
        "messages": [],
        "max_tokens": 9,
    }


def test_by_text_where_ids_are_not_known():
    said = progress(
        chat_event({"role": "assistant", "content": ""}),
        chat_event({"content": "Hel"}),
        chat_event({"content": "lo"}),
    )
    step = go_on(CHAT, {"messages": [{"role": "user", "content": "x"}], "max_completion_tokens": 9}, said)
    body = json.loads(step.body)
    assert body["messages"][-1] == {"role": "assistant", "content": "Hello"}
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    assert body["max_completion_tokens"] == 7
    step = go_on(CHAT, {"messages": [], "max_tokens": 9}, said, Engine.LLAMACPP)
    assert "continue_final_message" not in json.loads(step.body)


@pytest.mark.parametrize(
    ("request_", "said", "reason"),
    [
        ({"tools": [{}]}, (), "tools"),
        ({"n": 2}, (), "n > 1"),
        ({"best_of": 3}, (), "best_of > 1"),
        ({"logprobs": True}, (), "logprobs"),
        ({"response_format": {"type": "json_schema"}}, (), "structured output"),
        ({"guided_json": {}}, (), ""),
        ({"guided_json": {"a": 1}}, (), "structured output"),
        ({"frequency_penalty": 0.1}, (), "penalties"),
        ({"repetition_penalty": 1.0}, (), ""),
        ({"presence_penalty": 0}, (), ""),
        ({"messages": [{"content": [{"type": "image_url"}]}]}, (), "multimodal"),
        ({}, ({"tool_calls": [{}]},), "tool_calls"),
        ({}, ({"reasoning_content": "hm"},), "reasoning_content"),
        ({}, ({"content": "<think>a"},), "reasoning"),
        ({}, ({"content": "fine"},), ""),
    ],
)
def test_what_is_not_resumable_says_why(request_, said, reason):
    step = go_on(CHAT, {"messages": [], "max_tokens": 50, **request_}, progress(*map(chat_event, said)))
    if reason:
        assert isinstance(step, Refusal)
        assert reason in step.reason
    else:
        assert isinstance(step, Continuation)


def test_several_prompts_echo_and_odd_events_are_refused():
    for request in ({"prompt": ["a", "b"]}, {"prompt": "a", "echo": True}, {"prompt": "a", "suffix": "b"}):
        assert isinstance(go_on(TEXT, request, progress(*SAID)), Refusal)
    assert isinstance(go_on(TEXT, {"prompt": "a"}, progress(b"data: what\n\n")), Refusal)
    assert isinstance(continue_stream(TEXT, b"[]", progress(*SAID), Engine.VLLM, None), Refusal)


_ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_FIELDS = (
    "messages",
    "prompt",
    "stop",
    "max_tokens",
    "max_completion_tokens",
    "min_tokens",
    "stream_options",
)


@given(
    st.sampled_from([CHAT, TEXT]),
    st.dictionaries(st.sampled_from([*_FIELDS, "temperature", "n", "continue_final_message"]), _ODD) | _ODD,
    st.sampled_from([SAID, (event("ab"), event("c")), (event("a", [1], prompt=[7]), event("", [2]))]),
    st.sampled_from(Engine),
)
@example(CHAT, {"stream": True}, (event("ab"),), Engine.VLLM)
def test_a_request_that_a_backend_took_although_it_is_odd_is_continued_or_refused(
    path, request_, said, engine
):
    made = progress(*said)
    step = continue_stream(path, json.dumps(request_).encode(), made, engine, None)
    assert isinstance(step, Continuation | Finish | Refusal)


def test_the_seam_keeps_name_shape_and_usage():
    said = progress(chat_event({"role": "assistant", "content": ""}), event("a", [1], prompt=[7, 8]))
    said.template = json.loads(data_of(chat_event({"content": "a"}))[0])
    step = go_on(CHAT, {"messages": [], "max_tokens": 9}, said)
    seam = Seam(step, said, is_chat=True, shows_ids=False)
    other = {"id": "cmpl-2", "created": 9}
    told = json.loads(seam.translate(data_of(event("b", [2], prompt=[7, 8, 1], **other))[0])[6:])
    assert (told["id"], told["created"]) == ("cmpl-1", 5)
    assert told["choices"] == [{"index": 0, "delta": {"content": "b"}, "finish_reason": None}]
    usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    closing = b'{"id":"cmpl-2","choices":[],"usage":%b}' % json.dumps(usage).encode()
    assert json.loads(seam.translate(closing)[6:])["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 2,
        "total_tokens": 4,
    }
    assert seam.translate(b"[DONE]") == b"data: [DONE]\n\n"
    assert said.text == "ab"
    assert said.ids == [1, 2]


def test_the_overlap_is_compared_and_dropped_in_any_pieces():
    for pieces in (["ef", "g"], ["e", "fg"], ["efg"], ["e", "f", "g"]):
        said = progress(*SAID, event("ef", [4, 5]))
        seam = Seam(
            go_on(TEXT, {"prompt": "x", "temperature": 0}, said), said, is_chat=False, shows_ids=False
        )
        told = b"".join(seam.translate(data_of(event(piece, [9]))[0]) for piece in pieces)
        assert "".join(json.loads(data)["choices"][0]["text"] for data in data_of(told)) == "g"
        assert said.text == "abcdefg"
    said = progress(*SAID, event("ef", [4, 5]))
    seam = Seam(go_on(TEXT, {"prompt": "x", "temperature": 0}, said), said, is_chat=False, shows_ids=False)
    with pytest.raises(SeamMismatch):
        seam.translate(data_of(event("x", [9]))[0])


def test_an_engine_that_repeats_the_partial_answer_is_not_repeated():
    partial = "a partial answer, long enough"
    for says in ((partial + " goes on",), (" goes on",)):
        said = progress(chat_event({"content": partial}))
        step = go_on(CHAT, {"messages": [], "max_tokens": 99}, said, Engine.LLAMACPP)
        seam = Seam(step, said, is_chat=True, shows_ids=False)
        told = b"".join(seam.translate(data_of(chat_event({"content": text}))[0]) for text in says)
        assert [json.loads(data)["choices"][0]["delta"]["content"] for data in data_of(told)] == [" goes on"]


def glance(body: bytes) -> tuple[bool, bool, bool]:
    ask = read_ask(CHAT, body)
    assert ask is not None
    return ask.is_resumable, ask.wants_injection, ask.wants_ids


def test_a_glance_at_the_request():
    assert glance(b'{"stream": true, "messages": []}') == (True, True, False)
    assert glance(b'{"stream": true, "n": 2}') == (False, False, False)
    assert glance(b'{"stream": true, "tools": [{"type": "function"}]}') == (False, False, False)
    assert glance(b'{"stream": true, "tools": [], "logprobs": null, "stop": ["a"]}') == (True, True, False)
    assert glance(b'{"stream": true, "return_token_ids": false}') == (True, False, False)
    assert glance(b'{"stream": true, "return_token_ids": true}') == (True, False, True)
    assert read_ask(CHAT, b'{"stream": false}') is None
    assert read_ask(CHAT, b'{"stream": tru') is None
    assert read_ask(b"/v1/embeddings", b'{"stream": true}') is None
    assert json.loads(ask_for_ids(b' {"stream": true}')) == {"return_token_ids": True, "stream": True}


def test_a_broken_stream_ends_as_clients_expect():
    error, done = data_of(broken_events("why"))
    assert json.loads(error)["error"]["code"] == "stream_broken"
    assert done == b"[DONE]"
