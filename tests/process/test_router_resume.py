"""Streams survive their backend: the client's text equals the unbroken one, whatever dies and whenever."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import pytest
from tests.fakes.router_rig import (
    FAKE,
    Events,
    Process,
    Rig,
    ask,
    backend,
    health,
    metrics,
    text_of,
    wait_for,
)

PATHS = ["/v1/chat/completions", "/v1/completions"]


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    """One router in front of four backends; a test that kills some gets them back on the same ports."""
    rig = Rig(tmp_path_factory.mktemp("router"))
    rig.ports = [rig.vllm().port for _ in range(4)]
    urls = [process.url for process in rig.processes]
    rig.front = rig.router(
        *(backend(f"b{i}", url, price_usd_per_hour=float(i)) for i, url in enumerate(urls))
    )
    yield rig
    rig.end()


@pytest.fixture
def backends(rig):
    """The backends, cheapest first, all alive and believed to be."""
    for number, port in enumerate(rig.ports):
        if rig.processes[number].popen.poll() is not None:
            rig.processes[number] = Process([sys.executable, str(FAKE), "--port", str(port)])
    wait_for(lambda: all(b["state"] == "ready" for b in use_all(rig)))
    return rig.processes[:4]


def use_all(rig):
    """Requests are what closes a serverless backend's circuit."""
    ask(rig.front.port, {"model": "tiny", "messages": [], "max_tokens": 1})
    return health(rig.front.port)["backends"]


CHAT: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "tell me"}],
    "temperature": 0,
    "min_tokens": 120,
}
TEXT: dict[str, Any] = {"model": "tiny", "prompt": "tell me", "temperature": 0, "min_tokens": 120}


def unbroken(process, path, body):
    answer = json.loads(ask(process.port, {**body, "stream": False}, path=path)[2])
    choice = answer["choices"][0]
    return (
        choice["message"]["content"] if "message" in choice else choice["text"],
        answer["usage"],
        choice["finish_reason"],
    )


def read_killing(victim, rig, path, body, kill_after):
    """The events of a stream whose backend is killed -9 after `kill_after` events with text."""
    events = Events(rig.front.port, body, path=path)
    seen, texts = [], 0
    for data in events:
        seen.append(data)
        texts += bool(text_of(data))
        if texts == kill_after and victim.popen.poll() is None:
            victim.kill()
    events.close()
    return seen


@pytest.mark.parametrize("kill_after", [1, 2, 17, 63, 119])
@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)])
def test_the_text_equals_the_unbroken_one(rig, backends, path, body, kill_after):
    body = {**body, "max_tokens": 150, "stream_options": {"include_usage": True}}
    text, usage, reason = unbroken(backends[1], path, body)
    seen = read_killing(backends[0], rig, path, body, kill_after)
    events = [json.loads(data) for data in seen[:-1]]
    assert "".join(map(text_of, seen)) == text
    assert seen[-1] == "[DONE]"
    assert len({event["id"] for event in events}) == 1
    assert len({event["created"] for event in events}) == 1
    assert {event["object"] for event in events} == {events[0]["object"]}
    assert events[-1]["usage"] == usage
    reasons = [c["finish_reason"] for event in events for c in event["choices"] if c["finish_reason"]]
    assert reasons == [reason]
    assert not any(
        c.get("token_ids") or c.get("prompt_token_ids") for event in events for c in event["choices"]
    )
    roles = [
        event for event in events if event["choices"] and event["choices"][0].get("delta", {}).get("role")
    ]
    assert len(roles) == (1 if "messages" in body else 0)


def test_a_stream_survives_several_backends(rig, backends):
    body = {**CHAT, "max_tokens": 150}
    text, _, _ = unbroken(backends[3], "/v1/chat/completions", body)
    events = Events(rig.front.port, body)
    got, victims = "", backends[:3]
    for data in events:
        got += text_of(data)
        if victims and len(got) > 40 * (4 - len(victims)):
            victims.pop(0).kill()
    assert got == text
    assert not victims
    assert data == "[DONE]"


@pytest.mark.parametrize("path", PATHS)
def test_stop_strings_hold_text_back_and_nothing_is_lost(rig, backends, path):
    body = {**(CHAT if "chat" in path else TEXT), "max_tokens": 140, "stop": ["never said so long"]}
    text, _, reason = unbroken(backends[1], path, body)
    seen = read_killing(backends[0], rig, path, body, 30)
    assert "".join(map(text_of, seen)) == text
    assert json.loads(seen[-2])["choices"][0]["finish_reason"] == reason


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stop", [None, ["impossible stop"]])
def test_a_sampled_answer_repeats_and_loses_nothing_at_the_seam(rig, backends, path, stop):
    body: dict[str, Any] = {"model": "count", "max_tokens": 200, "temperature": 1.0, "stop": stop}
    body |= {"messages": [{"role": "user", "content": "!"}]} if "chat" in path else {"prompt": "!"}
    seen = read_killing(backends[0], rig, path, body, 40)
    text = "".join(map(text_of, seen))
    numbers = [int(word[:-1]) for word in text.split()]
    assert re.fullmatch(r"(\d{3}[a-j] )+", text)
    assert numbers == list(range(1, len(numbers) + 1))
    # Held-back text leaves open how many tokens were said beyond it.
    assert len(numbers) == 40 if stop is None else 36 <= len(numbers) <= 44
    assert seen[-1] == "[DONE]"


def test_ids_stay_where_the_client_asked_for_them(rig, backends):
    body = {**TEXT, "max_tokens": 130, "return_token_ids": True}
    seen = read_killing(backends[0], rig, "/v1/completions", body, 50)
    ids = [token for data in seen[:-1] for c in json.loads(data)["choices"] for token in c["token_ids"] or ()]
    again = Events(backends[1].port, body, path="/v1/completions")
    want = [
        token
        for data in list(again)[:-1]
        for c in json.loads(data)["choices"]
        for token in c["token_ids"] or ()
    ]
    assert ids == want


NOT_RESUMABLE: dict[str, Any] = {
    "tools": {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
    "several choices": {"n": 2},
    "logprobs": {"logprobs": True},
    "structured output": {"response_format": {"type": "json_object"}},
    "structured outputs": {"structured_outputs": {"regex": "a*"}},
    "penalties": {"presence_penalty": 0.5},
    "repetition": {"repetition_penalty": 1.1},
    "multimodal": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "x"},
                    {"type": "image_url", "image_url": {"url": "x"}, "text": ""},
                ],
            }
        ]
    },
}


@pytest.mark.parametrize("case", list(NOT_RESUMABLE))
def test_what_cannot_be_resumed_ends_with_an_error_event(rig, backends, case):
    events = Events(rig.front.port, {**CHAT, "max_tokens": 100, **NOT_RESUMABLE[case]})
    seen = []
    for data in events:
        seen.append(data)
        if len(seen) == 20:
            backends[0].kill()
    assert events.is_ended
    assert seen[-1] == "[DONE]"
    error = json.loads(seen[-2])["error"]
    assert error["code"] == "stream_broken"


def test_resumes_are_counted(rig, backends):
    series = 'tandemn_router_resumes_total{backend="b0"}'
    before = metrics(rig.front.port)[series]
    read_killing(backends[0], rig, "/v1/completions", {**TEXT, "max_tokens": 130}, 10)
    assert metrics(rig.front.port)[series] == before + 1


def test_an_answer_cut_at_its_last_token_is_finished_here(rig, backends):
    body = {**TEXT, "max_tokens": 20, "min_tokens": 0, "stream_options": {"include_usage": True}}
    text, usage, _ = unbroken(backends[1], "/v1/completions", body)
    events = Events(rig.front.port, body, path="/v1/completions")
    seen = []
    for data in events:
        seen.append(data)
        if len(seen) == 19:
            backends[0].kill()
    assert "".join(map(text_of, seen)) == text
    assert json.loads(seen[-2])["usage"] == usage
